"""`llamita new` on a folder that a person would have, killed in every step and between them."""

from __future__ import annotations

import gzip
import json
import os
import random
import signal
import subprocess
import sys
import threading
from email.message import EmailMessage
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("lxml")
pytest.importorskip("pypdfium2")

from tests.document_writers import docx, epub, lines, odt, paragraph, pdf, pptx, xlsx, zip_of

pytestmark = [pytest.mark.slow, pytest.mark.skipif(os.name != "posix", reason="POSIX signals")]

NAMES, THINGS, ACTS = ("Mia", "Tom", "小明", "Ana"), ("a red kite", "the old bridge", "一盏灯", "two pears"), (
    "found", "painted", "lost", "sold",
)  # fmt: skip


def story(seed: int) -> str:
    """Some sentences, English and Chinese."""
    choice = random.Random(seed).choice
    return " ".join(f"{choice(NAMES)} {choice(ACTS)} {choice(THINGS)} on day {seed * 7 + i}." for i in range(12))


def paragraphs(first: int, count: int = 6) -> list[str]:
    return [story(first + i) for i in range(count)]


def make_folder(folder: Path) -> None:
    """Documents of every kind, questions, pairs, and broken files."""
    (folder / "旧 文件").mkdir(parents=True)
    (folder / "笔记.txt").write_text("\n\n".join(paragraphs(0, 60)), encoding="utf-8")
    (folder / "旧 文件" / "gbk.txt").write_bytes(
        "\n\n".join(["小明在桥上看见一盏灯，天黑了，他回家去。"] * 9).encode("gbk")
    )
    (folder / "notes.md.gz").write_bytes(gzip.compress("\n\n".join(paragraphs(100, 30)).encode()))
    (folder / "报告.pdf").write_bytes(pdf([lines("\n".join(paragraphs(200)), 50, 700)]))
    (folder / "b c.docx").write_bytes(docx("".join(map(paragraph, paragraphs(300)))))
    (folder / "slides.pptx").write_bytes(pptx([paragraphs(400), paragraphs(410)]))
    cell = '<row r="1"><c r="A1" t="s"><v>0</v></c></row>'
    (folder / "表.xlsx").write_bytes(xlsx({"one": cell}, [story(500)]))
    page = "".join(f"<p>{each}</p>" for each in paragraphs(600))
    (folder / "page.html").write_text(f"<html><body><main>{page}</main></body></html>", encoding="utf-8")
    (folder / "page.xhtml").write_text(f"<html><body><main>{page}</main></body></html>", encoding="utf-8")
    (folder / "书.epub").write_bytes(epub([f"<p>{each}</p>" for each in paragraphs(700)]))
    (folder / "d.odt").write_bytes(odt("".join(f"<text:p>{each}</text:p>" for each in paragraphs(800))))
    (folder / "e.rtf").write_bytes(b"{\\rtf1\\ansi " + b"\\par ".join([b"Mia sold two pears."] * 9) + b"}")
    cells = [{"cell_type": "markdown", "metadata": {}, "source": paragraphs(900)}]
    (folder / "f.ipynb").write_text(json.dumps({"cells": cells, "metadata": {}, "nbformat": 4, "nbformat_minor": 5}))
    (folder / "g.srt").write_text(
        "".join(f"{i}\n00:00:0{i},000 --> 00:00:0{i},900\n{story(i)}\n\n" for i in range(1, 9))
    )
    mail = EmailMessage()
    mail["Subject"] = "灯"
    mail.set_content("\n\n".join(paragraphs(1000)))
    (folder / "h.eml").write_bytes(bytes(mail))
    (folder / "旧 文件" / "i.zip").write_bytes(zip_of({"里面.txt": story(1100), "x.html": page}))
    (folder / "rows.csv").write_text("text\n" + "".join(f'"{story(1200 + i)}"\n' for i in range(40)), encoding="utf-8")
    rows = [
        {"question": f"What did {name} do on day {i}?", "answer": story(i)[:60]} for i in range(40) for name in NAMES
    ]
    texts = [json.dumps(row, ensure_ascii=False) for row in rows]
    (folder / "问答.jsonl").write_text("\n".join([*texts[:50], "{broken", *texts[50:]]), encoding="utf-8")
    pairs = [{"prompt": f"Day {i}?", "chosen": story(i)[:50], "rejected": "No."} for i in range(60)]
    (folder / "旧 文件" / "pairs.json").write_text(json.dumps(pairs), encoding="utf-8")
    # broken ones
    (folder / "cut.docx").write_bytes(docx(paragraph("x"))[:-50])
    (folder / "empty.pdf").write_bytes(b"")
    (folder / "scan.pdf").write_bytes(pdf([[], []]))
    (folder / "bomb.docx").write_bytes(zip_of({"word/document.xml": b" " * (80 << 20)}))
    (folder / "settings.json").write_text('{"a": 1}')
    (folder / "half.json").write_text('[{"question": "a"')
    (folder / "noise.txt").write_bytes(random.Random(0).randbytes(5000))
    (folder / "photo.png").write_bytes(b"\x89PNG")
    (folder / ".hidden").write_text("x")


class Process:
    """`llamita new`, and what it prints, line by line."""

    def __init__(self, folder: Path, *words: str) -> None:
        environment = dict(os.environ, OMP_NUM_THREADS="1", PYTHONUNBUFFERED="1")
        self._process = subprocess.Popen(
            [sys.executable, "-m", "llamita", "new", *words], cwd=folder, env=environment, stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, encoding="utf-8", errors="surrogateescape",
        )  # fmt: skip
        self._timer = threading.Timer(400, self._process.kill)
        self._timer.start()
        self.lines: list[str] = []

    def wait_for(self, text: str) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self.lines.append(line.rstrip("\n"))
            if text in line:
                return
        raise AssertionError(f"no {text!r} in:\n" + "\n".join(self.lines))

    def end(self, sent: signal.Signals | None = None) -> int:
        if sent is not None:
            self._process.send_signal(sent)
        assert self._process.stdout is not None
        self.lines += self._process.stdout.read().splitlines()
        self._timer.cancel()
        return self._process.wait()

    @property
    def text(self) -> str:
        return "\n".join(self.lines)


# What each start is killed after, and the first step of the next one.
KILLS = (
    ("step 1 of 6", "step 1"), ("step 2 of 6", "step 2"), ("held-out ", "step 2"),
    ("step 3 of 6", "step 3"), ("step 4 of 6", "step 4"), ("held-out loss", "step 4"), ("step 5 of 6", "step 5"),
    ("step 6 of 6", "step 6"),
)  # fmt: skip


def test_killed_in_every_step(tmp_path: Path) -> None:
    make_folder(tmp_path / "我的 文件")
    words = ["我的 文件", "--minutes", "2", "--split-on", "blank-lines", "--yes", "--out", "out put"]
    expected = "step 1"
    for text, following in KILLS:
        process = Process(tmp_path, *words)
        process.wait_for(text)
        assert process.end(signal.SIGKILL) == -signal.SIGKILL
        first = next(line for line in process.lines if line.startswith("step "))
        assert first.startswith(expected), process.text
        expected = following
    last = Process(tmp_path, *words)
    assert last.end() == 0, last.text
    assert "done are prepare, train, evaluate, finetune, prefer" in last.text and "what came of it:" in last.text
    out = tmp_path / "out put"
    state = json.loads((out / "new.json").read_text(encoding="utf-8"))
    assert state["done"] == ["prepare", "train", "evaluate", "finetune", "prefer", "export"]
    assert not [path for path in out.rglob("*") if path.name.endswith((".partial", ".lock"))]
    answered = subprocess.run(
        [sys.executable, "-m", "llamita", "chat", out / "我的 文件.gguf", "--choice", "yes"], input="Who?\n",
        capture_output=True, text=True,
    )  # fmt: skip
    assert answered.stdout == "yes\n", answered.stderr
    store = json.loads((out / "tokens" / "store.json").read_text(encoding="utf-8"))
    names = {source["name"] for source in store["sources"]}
    assert {"报告.pdf", "旧 文件/gbk.txt", "旧 文件/i.zip", "rows.csv", "text.jsonl"} <= names
    assert not {"问答.jsonl", "旧 文件/pairs.json", "settings.json", "half.json", "noise.txt"} & names
    again = Process(tmp_path, *words)
    assert again.end() == 0, again.text
    assert not any(line.startswith("step ") for line in again.lines), "there is nothing left to do"


def test_what_it_says_about_the_folder(tmp_path: Path) -> None:
    make_folder(tmp_path / "我的 文件")
    process = Process(tmp_path, "我的 文件", "--minutes", "2", "--split-on", "blank-lines", "--yes")
    process.wait_for("data: ")
    assert process.end(signal.SIGINT) == 130
    said = process.text
    for part in (
        "160 conversations: 问答.jsonl", "60 pairs of a better and a worse answer: pairs.json", "问答.jsonl:51",
        "cut.docx", "1 scanned file without text, 2 pages", "settings.json", "half.json", "noise.txt", "photo.png",
        "converted from GB18030", "does not learn facts", "goes on with it: llamita new '我的 文件' --out",
    ):  # fmt: skip
        assert part in said, f"{part}\n{said}"
    assert "Traceback" not in said

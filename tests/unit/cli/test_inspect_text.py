"""llamita inspect of text: what it prints and writes, and one line with exit code 2 for what is wrong."""

from __future__ import annotations

import json
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

from llamita.cli import main

TEXT = """The old fox walked to the mill, and it was not there. Number {}: he had lost his way.
<script>alert(1)</script> & more"""


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "my <texts>.txt"
    texts = [TEXT.format(i) for i in range(40)] + ["老狐狸写信给abc@qq.com。\u200b"]
    path.write_text("\n<|endoftext|>\n".join(texts), encoding="utf-8")
    return path


def test_what_is_printed(source: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(source)]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    for expected in (
        f"{source}: text, {source.stat().st_size:,} bytes in 1 file\n",
        "documents   41, ", "text (41)", "English 9", "39 near, ",
        "1 that repeat over documents, such as '<script>alert(1)</script> & more' in 40",
        "mail addresses: 1", "U+200B ZERO WIDTH SPACE: 1", f"next: llamita prepare '{source}' --near-duplicates drop",
    ):  # fmt: skip
        assert expected in out


def test_page_and_lines(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page, lines = tmp_path / "data.html", tmp_path / "lines.txt"
    assert main(["inspect", str(source), "--html", str(page), "--lines", str(lines)]) == 0
    assert f"--drop-lines {lines}" in capsys.readouterr().out
    assert lines.read_text() == "<script>alert(1)</script> & more\n"
    text = page.read_text(encoding="utf-8")
    assert text.count("<script>") == 1 and "&lt;script&gt;alert" in text and "my <texts>" not in text
    for expected in ("Languages", "Near-duplicates", "Lines that repeat", "Personal data", "Odd characters", "abc…om"):
        assert expected in text
    assert "abc@qq" not in text.partition("Samples")[0]
    assert "src=" not in text and "href=" not in text, "the page is self-contained"
    open_tags: list[str] = []

    class Parser(HTMLParser):
        def handle_starttag(self, tag: str, attrs: object) -> None:
            if tag not in ("meta", "input", "link", "br"):
                open_tags.append(tag)

        def handle_endtag(self, tag: str) -> None:
            assert open_tags.pop() == tag

    Parser().feed(text)
    assert open_tags == []


def test_a_store_has_a_page(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store, page = tmp_path / "store", tmp_path / "store.html"
    assert main(["prepare", str(source), "-o", str(store), "--vocab-size", "270", "--val-fraction", "0.5"]) == 0
    capsys.readouterr()
    assert main(["inspect", str(store), "--html", str(page)]) == 0
    out = capsys.readouterr().out
    assert "token store" in out and "41, " in out and "of them in training, of a held-out document" in out
    assert "repeat a held-out one" in page.read_text(encoding="utf-8")


def test_json_of_text_and_of_a_store(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = tmp_path / "store"
    assert main(["prepare", str(source), "-o", str(store), "--vocab-size", "270", "--val-fraction", "0.5"]) == 0
    for path, near_held_out in ((source, False), (store, True)):
        capsys.readouterr()
        assert main(["inspect", str(path), "--json", "--lines", str(tmp_path / "lines.txt")]) == 0
        out, err = capsys.readouterr()
        found = json.loads(out)
        assert err == "" and out.count("\n") == 1 and out.isascii()
        assert found["documents"] == 41 and found["forms"] == {"text": 41} and found["paths"] == [str(path)]
        assert found["near_duplicates"]["documents"] == 39 and (found["near_held_out"] > 0) == near_held_out
        assert found["lines"] == [["<script>alert(1)</script> & more", 40]]
        assert found["personal"][0]["count"] == 1 and found["odd_characters"][0]["name"].startswith("U+200B")
    page = (Path(__file__).parents[3] / "docs" / "your-own-text.md").read_text(encoding="utf-8")
    assert [name for name in found if f"`{name}`" not in page] == []


def test_several_paths(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "b.md").write_text("Another text.")
    assert main(["inspect", str(source), str(tmp_path / "b.md")]) == 0
    out = capsys.readouterr().out
    assert "in 2 files" in out and "documents   42, " in out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "inspect: no PATH given"),
        (["a.txt", "--html", "page.txt"], "--html: expected a name that ends with .html, found page.txt"),
        (["a.txt", "--html", "a.txt/page.html"], "a.txt"),
        (["a.txt", "--lines", "a.txt/lines.txt"], "a.txt"),
        (["a.txt", "model.bin"], "expected one PATH, or several of text; model.bin is no text"),
        (["a.txt", "none.txt"], "no such file or folder: none.txt"),
        (["a.txt", "--encoding", "klingon"], "--encoding: expected the name of an encoding"),
        (["a.txt", "--split-on", "pages"], "--split-on"),
        (["tok.json", "--html", "page.html"], "tok.json"),
    ],
)
def test_wrong_words_are_one_line(
    words: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a.txt").write_text("Some text.")
    Path("model.bin").write_bytes(bytes(40))
    Path("tok.json").write_text("{}")
    assert main(["inspect", *words]) == 2
    out, err = capsys.readouterr()
    assert message in err and err.count("\n") == 1 and out == ""


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--near-duplicates", "delete"], "--near-duplicates"),
        (["--drop-lines", "none.txt"], "none.txt"),
        (["--drop-lines", "empty.txt"], "cannot use --drop-lines empty.txt: it has no lines"),
    ],
)
def test_wrong_options_of_prepare(
    words: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a.txt").write_text("Some text.")
    Path("empty.txt").write_text(" \n")
    assert main(["prepare", "a.txt", "-o", "store", *words]) == 2
    err = capsys.readouterr().err
    assert message in err and err.count("\n") == 1


def test_text_needs_no_extra() -> None:
    program = (
        "import sys, llamita.cli.inspect, llamita.data.survey, llamita.report.data_page; "
        "print([name for name in ('torch', 'tokenizers', 'lxml', 'pyarrow') if name in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True).stdout == "[]\n"


def test_summary_of_prepare(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "lines.txt").write_text("<script>alert(1)</script> & more\n")
    words = ["prepare", str(source), "--vocab-size", "270", "--val-fraction", "0.5", "--mask-personal-data"]
    words += ["--drop-lines", str(tmp_path / "lines.txt")]
    assert main([*words, "-o", str(tmp_path / "a"), "--near-duplicates", "report"]) == 0
    out = capsys.readouterr().out
    assert "lines       40 lines of --drop-lines removed (1,320 bytes)" in out
    assert "masked      mail addresses: 1 (3 bytes fewer)" in out
    assert "near-dup.   39 documents repeat another for the most part" in out
    assert "of them training documents a held-out one: the held-out loss will look too good" in out
    texts = [" ".join(f"{word}{i}" for word in "abcdefghijklmnopqrst") for i in range(300)]
    source.write_text("\n<|endoftext|>\n".join([*texts, *(f"{text} u" for text in texts)]))
    assert (
        main(["prepare", str(source), "--vocab-size", "270", "-o", str(tmp_path / "b"), "--near-duplicates", "drop"])
        == 0
    )
    assert "0 duplicates (0 bytes), 300 near-duplicates (" in capsys.readouterr().out

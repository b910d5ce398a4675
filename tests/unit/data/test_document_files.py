"""Documents in folders: all bytes are counted, and a bad one among good ones costs one line."""

from __future__ import annotations

import concurrent.futures
import email.message
import gzip
import importlib.util
import os
import shutil
import signal
import threading
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("lxml")
pytest.importorskip("pypdfium2")

from llamita.cli import main
from llamita.data import document_files, document_worker
from llamita.data.document_files import DOCUMENT_SUFFIXES
from llamita.data.documents import SourceCounts, list_sources, read_documents
from llamita.data.readers.kinds import READERS
from llamita.data.utf8_files import Conversions
from llamita.errors import SourceError
from tests.document_writers import docx, lines, paragraph, pdf, zip_of


def read(*paths: Path, **options: Any) -> tuple[list[tuple[str, str]], SourceCounts, Conversions]:
    """(source, text) of every document."""
    counts, conversions = SourceCounts(), Conversions()
    found = list(read_documents([*map(str, paths)], counts=counts, conversions=conversions, **options))
    parts = (counts.document_bytes, counts.whitespace_bytes, counts.separator_bytes, counts.container_bytes)
    assert counts.source_bytes == sum(parts) + counts.unread_bytes
    assert counts.source_bytes == sum(file.num_bytes for path in paths for file in list_sources([str(path)]).files)
    assert counts.document_bytes == sum(document.text_bytes for document in found)
    return [(document.source, document.text) for document in found], counts, conversions


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made")
    (folder / "a 狐狸.pdf").write_bytes(pdf([lines("床前明月光，\n疑是地上霜。", 50, 700)]))
    (folder / "b.docx").write_bytes(docx(paragraph("One.") + paragraph("Two.")))
    (folder / "c.html.gz").write_bytes(gzip.compress("<p>网页</p>".encode()))
    (folder / "d.txt").write_text("plain")
    (folder / "e scan.pdf").write_bytes(pdf([[], []]))
    (folder / "f cut.docx").write_bytes(docx(paragraph("x"))[:-50])
    (folder / "g bomb.docx").write_bytes(zip_of({"word/document.xml": b" " * (80 << 20)}))
    (folder / "h empty.pdf").write_bytes(b"")
    (folder / "i nothing.html").write_bytes(b"<!-- -->")
    return folder


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    """Good documents, and bad ones among them."""
    return Path(shutil.copytree(made, tmp_path / "文件"))


def test_a_folder_of_good_and_bad_documents(folder: Path) -> None:
    found, counts, conversions = read(folder)
    assert found == [
        (str(folder / "a 狐狸.pdf"), "床前明月光，\n疑是地上霜。"),
        (str(folder / "b.docx"), "One.\n\nTwo."),
        (str(folder / "c.html.gz"), "网页"),
        (str(folder / "d.txt"), "plain"),
    ]
    bad = [file.num_bytes for file in list_sources([str(folder)]).files][4:]
    assert counts.unread_bytes == sum(bad) and counts.files == 9
    readers = conversions.document_files
    assert readers.describe_read() == "1 .pdf, 1 .docx, 1 .html"
    assert [(Path(path).name, why[:30]) for path, why in readers.unread.items()] == [
        ("f cut.docx", "it is no complete .docx: its Z"),
        ("g bomb.docx", "it unpacks to more than 200 ti"),
        ("h empty.pdf", "it is no complete PDF; copy it"),
        ("i nothing.html", "it has no text"),
    ]
    scans, others = conversions.describe()
    assert scans.startswith("1 scanned file without text, 2 pages (") and "e scan.pdf" in scans and "OCR" in scans
    assert others.startswith("4 files not read: ") and others.count("; ") >= 3


def test_documents_end_where_text_files_do(tmp_path: Path) -> None:
    (tmp_path / "a.docx").write_bytes(docx(paragraph("One.") + paragraph(" <|endoftext|>") + paragraph("Two.")))
    path = str(tmp_path / "a.docx")
    assert read(tmp_path)[0] == [(path, "One."), (path, "Two.")]
    assert [text for _, text in read(tmp_path, split_on="blank-lines")[0]] == ["One.", "<|endoftext|>", "Two."]
    assert len(read(tmp_path, split_on="file")[0]) == 1


def test_texts_are_read_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    conversions = Conversions()
    first = list(read_documents([str(folder)], conversions=conversions))
    monkeypatch.setattr(document_files, "LimitedProcess", None)
    assert list(read_documents([str(folder)], conversions=conversions)) == first


def test_a_file_given_twice_is_not_mistaken_for_its_neighbor(tmp_path: Path) -> None:
    for name in "abc":
        (tmp_path / f"{name}.html").write_text(f"<p>page {name}</p>")
    documents, _, _ = read(tmp_path / "a.html", tmp_path)
    assert [text.strip() for _, text in documents] == ["page a", "page a", "page b", "page c"]


def test_without_a_place_for_failures_they_are_errors(folder: Path) -> None:
    with pytest.raises(SourceError, match="cannot read all documents: 1 scanned file"):
        list(read_documents([str(folder)]))


def test_one_document_costs_only_itself(folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A reader that crashes, and one that hangs."""
    worker = tmp_path / "worker.py"
    source = Path(document_worker.__file__).read_text().partition('if __name__ == "__main__"')[0]
    worker.write_text(
        f"{source}\n"
        "real = read\n"
        "def read(asked):\n"
        "    import os, time\n"
        "    if '/a' in asked['path']: os._exit(1)\n"
        "    if '/b' in asked['path']: time.sleep(60)\n"
        "    return real(asked)\n"
        "main()\n"
    )
    monkeypatch.setattr(document_files, "_WORKER", worker)
    monkeypatch.setattr(document_files, "_SECONDS", 1.2)
    found, _, conversions = read(folder)
    assert [text for _, text in found] == ["网页", "plain"]
    why = {Path(path).name[:1]: why for path, why in conversions.document_files.unread.items()}
    assert why["a"] == why["b"] == "its reader crashed, or took more than 1 s; the file is damaged or malicious"


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="Windows has no timer of processor time")
def test_the_limit_is_processor_time() -> None:
    """A busy machine makes no document too slow."""
    before = signal.getitimer(signal.ITIMER_REAL)[0]
    with document_worker.limit_time(50.0):
        assert 40.0 < signal.getitimer(signal.ITIMER_PROF)[0] <= 51.0
        assert signal.getitimer(signal.ITIMER_REAL)[0] <= before
    assert signal.getitimer(signal.ITIMER_PROF)[0] == 0.0


def test_leaving_early_ends_a_process_that_was_just_starting(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    starting, closing, ended = threading.Event(), threading.Event(), threading.Event()

    class Starting:
        is_running = False

        def __init__(self, *_: Any) -> None:
            starting.set()
            assert closing.wait(10)

        def close(self) -> None:
            ended.set()

    class Pool(concurrent.futures.ThreadPoolExecutor):
        def submit(self, function: Any, /, *arguments: Any, **options: Any) -> Any:
            super().submit(function, *arguments, **options)
            assert starting.wait(10)
            raise KeyboardInterrupt

        def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
            if wait:  # the second call, after the processes were closed
                closing.set()
            super().shutdown(wait, cancel_futures=cancel_futures)

    monkeypatch.setattr(document_files, "LimitedProcess", Starting)
    monkeypatch.setattr(concurrent.futures, "ThreadPoolExecutor", Pool)
    with pytest.raises(KeyboardInterrupt):
        next(document_files._read_ahead([(folder / "b.docx", ".docx")]))
    assert ended.is_set()


def test_archives(tmp_path: Path) -> None:
    inner = zip_of({"c.docx": docx(paragraph("three")), "bomb.docx": zip_of({"word/document.xml": b" " * (80 << 20)})})
    deep = b"x"
    for _ in range(5):
        deep = zip_of({"a.zip": deep})
    members = {"a.txt": "one", "文/b.html": "<p>二", "d.zip": inner, "deep.zip": deep, "x.png": "", "e.pdf": pdf([[]])}
    path = tmp_path / "all.zip"
    path.write_bytes(zip_of(members))
    mail = email.message.EmailMessage()
    mail["Subject"] = "mail"
    mail.set_content("text")
    mail.add_attachment(path.read_bytes(), maintype="application", subtype="zip", filename="x.zip")
    (tmp_path / "m.eml").write_bytes(mail.as_bytes())
    found, _, conversions = read(tmp_path)
    texts = ["one", "二", "three"]
    places = [f"{path}/a.txt", f"{path}/文/b.html", f"{path}/d.zip/c.docx"]
    assert found[:3] == list(zip(places, texts, strict=True))
    assert found[3] == (str(tmp_path / "m.eml"), "mail\n\ntext") and [text for _, text in found[4:]] == texts
    readers = conversions.document_files
    assert readers.describe_read() == "1 .zip (3 documents), 1 .eml (4 documents)"
    assert readers.unread[f"{path}/d.zip/bomb.docx"].startswith("it unpacks to more than 200 times its size")
    assert readers.unread[f"{path}/deep.zip/a.zip/a.zip/a.zip"] == "archives in archives, 4 deep; unpack it"
    assert readers.scans == {f"{path}/e.pdf": 1, f"{tmp_path}/m.eml/x.zip/e.pdf": 1}
    assert readers.notes[str(path)] == "1 file of unknown types in it: x.png"


def test_rows_in_archives(tmp_path: Path) -> None:
    """Each row is a document as it is; one bad row costs its file."""
    inner = zip_of({"c.csv": "id;text\n1;three\n2;four\n"})
    members = {
        "文/a.jsonl": '{"text": "one<|endoftext|>\\n two "}\n\n{"text": null}\n{"text": "日本", "x": 1}\n'.encode(),
        "b.JSON": '[{"text": "five"}]',
        "gb.tsv": "text\n你好，世界。这是一个表格，它的编码是国标。\n".encode("gb18030"),
        "d.zip": inner,
        "bad.jsonl": '{"text": "lost"}\n{"text": 5}\n',
        "other.jsonl": '{"question": "x", "answer": "y"}\n',
        "broken.json": "[{",
    }
    path = tmp_path / "all.zip"
    path.write_bytes(zip_of(members))
    counts, conversions = SourceCounts(), Conversions()
    found = list(read_documents([str(path)], counts=counts, conversions=conversions))
    assert [(each.source, each.text, each.position) for each in found] == [
        (f"{path}/文/a.jsonl", "one<|endoftext|>\n two", 1),
        (f"{path}/文/a.jsonl", "日本", 4),
        (f"{path}/b.JSON", "five", 1),
        (f"{path}/gb.tsv", "你好，世界。这是一个表格，它的编码是国标。", 2),
        (f"{path}/d.zip/c.csv", "three", 2),
        (f"{path}/d.zip/c.csv", "four", 3),
    ]
    assert (counts.documents, counts.empty_documents, counts.whitespace_bytes) == (6, 1, 1)
    assert counts.source_bytes == path.stat().st_size == (
        counts.document_bytes + counts.whitespace_bytes + counts.separator_bytes + counts.container_bytes
    )  # fmt: skip
    unread = conversions.document_files.unread
    assert list(unread) == [f"{path}/{name}" for name in ("bad.jsonl", "other.jsonl", "broken.json")]
    assert unread[f"{path}/bad.jsonl"] == "cannot read bad.jsonl:2: 'text': expected text, found a number"
    assert "expected 'text', found question, answer" in unread[f"{path}/other.jsonl"]
    chosen = read_documents([str(path)], text_key="answer", conversions=Conversions())
    assert [each.text for each in chosen] == ["y"]


def test_limits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.docx"
    path.write_bytes(docx(paragraph("word " * 100)))
    monkeypatch.setattr(document_files, "MAX_CHARACTERS", 100)
    assert read(path)[2].document_files.unread[str(path)] == "it holds more than 100 characters; split it"
    monkeypatch.setattr(document_files, "MAX_FILE_BYTES", 100)
    assert "expected at most 100; split it" in read(path)[2].document_files.unread[str(path)]


def test_a_missing_package_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "pypdfium2" else find(name))
    with pytest.raises(SourceError, match=r"a 狐狸.pdf: .pdf needs pypdfium2: pip install 'llamita\[documents\]'"):
        read(folder)
    assert main(["prepare", str(folder), "--out", str(folder.parent / "out")]) == 2


def test_every_kind_has_a_reader() -> None:
    assert set(DOCUMENT_SUFFIXES) == set(READERS) - {".txt", ".md"}


@pytest.mark.skipif(not hasattr(os, "fork"), reason="limits of POSIX")
def test_no_reader_opens_files() -> None:
    with document_worker.no_files(), pytest.raises(OSError, match="Too many open files"):
        open(__file__)  # noqa: SIM115
    open(__file__).close()


def test_prepare(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number in range(40):
        story = f"A llama number {number} went home. It was {number * 7} years old. " * 5
        (folder / f"story {number}.docx").write_bytes(docx(paragraph(story)))
    words = ["prepare", str(folder), "--out", str(tmp_path / "store"), "--vocab-size", "270", "--val-fraction", "0.3"]
    assert main(words) == 0
    printed = capsys.readouterr().out
    assert "  documents   text of 1 .pdf, 41 .docx, 1 .html\n" in printed
    assert (
        " bytes: 1 scanned file without text, 2 pages (" in printed and "\n              4 files not read: " in printed
    )
    assert main(words) == 0 and "nothing to do" in capsys.readouterr().out
    alone = ["prepare", str(folder / "e scan.pdf"), "--out", str(tmp_path / "scan")]
    assert main(alone) == 2
    assert "scanned file without text, 2 pages" in capsys.readouterr().err and not (tmp_path / "scan").exists()


def test_finetune_and_eval_read_documents(made: Path, tmp_path: Path) -> None:
    pytest.importorskip("torch")
    from llamita.eval.score import Data
    from llamita.finetune.dataset import is_text, read_texts

    path = tmp_path / "b.docx"
    shutil.copy(made / "b.docx", path)
    assert is_text(path) and is_text(tmp_path) and read_texts(path) == ["One.\n\nTwo."]
    assert "a text file's documents end at" in Data((str(tmp_path),)).describe_documents()
    scan = tmp_path / "e.pdf"
    shutil.copy(made / "e scan.pdf", scan)
    with pytest.raises(SourceError, match=r"cannot use .*e\.pdf: 1 scanned file without text"):
        read_texts(scan, Conversions())
    with pytest.raises(SourceError, match=r"cannot score on .*e\.pdf: 1 scanned file without text"):
        Data((str(scan),)).encode_texts(lambda texts: texts, 0)

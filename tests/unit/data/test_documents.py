"""Files to documents: where they end, that all bytes are counted, and which are refused."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from llamita import config
from llamita.data import documents, utf8_files
from llamita.data.documents import SourceCounts, SplitOn, list_sources, read_documents, read_texts
from llamita.data.file_formats import ROW_READERS, SUFFIXES, list_suffixes
from llamita.errors import SourceError


def read(path: Path, split_on: SplitOn = "separator", text_key: str = "text") -> tuple[list[str], SourceCounts]:
    counts = SourceCounts()
    found = list(read_documents([str(path)], split_on=split_on, text_key=text_key, counts=counts))
    assert counts.documents == len(found)
    assert counts.document_bytes == sum(len(d.text.encode()) for d in found) == sum(d.text_bytes for d in found)
    assert counts.source_bytes == sum(file.num_bytes for file in list_sources([str(path)]).files)
    parts = (counts.document_bytes, counts.whitespace_bytes, counts.separator_bytes, counts.container_bytes)
    assert counts.source_bytes == sum(parts)
    return [d.text for d in found], counts


def write(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


# ---- text files


def test_documents_end_at_the_separator(tmp_path: Path) -> None:
    data = "\n One.\r\nTwo 狐. \n<|endoftext|>\n<|endoftext|>三<|endoftext|>\n\n".encode()
    texts, counts = read(write(tmp_path / "a.txt", data))
    assert texts == ["One.\r\nTwo 狐.", "三"]
    assert (counts.empty_documents, counts.separator_bytes) == (1, 3 * 13)


def test_without_separator_a_file_is_a_document(tmp_path: Path) -> None:
    assert read(write(tmp_path / "a.md", b"# A\n\ntext\n"))[0] == ["# A\n\ntext"]
    data = b"a<|endoftext|>b"
    assert read(write(tmp_path / "a.md", data), "file")[0] == [data.decode()]
    assert read(write(tmp_path / "a.md", b""))[1].empty_documents == 1
    assert read(write(tmp_path / "a.md", b" \n"))[1].empty_documents == 1


def test_blank_lines(tmp_path: Path) -> None:
    data = "\n\none\nmore\n\ntwo\r\n\r\nthree\n \t\u3000\n\u00a0\n\n four\n\n\n".encode()
    texts, counts = read(write(tmp_path / "a.txt", data), "blank-lines")
    assert texts == ["one\nmore", "two", "three", "four"]
    assert counts.empty_documents == 0


def test_own_separator(tmp_path: Path) -> None:
    write(tmp_path / "a.txt", b"a\n%\nb\n%\nc % d\n")
    assert [d.text for d in read_documents([str(tmp_path)], separator="\n%\n")] == ["a", "b", "c % d"]


def test_byte_order_mark_is_no_text(tmp_path: Path) -> None:
    texts, counts = read(write(tmp_path / "a.txt", b"\xef\xbb\xbfa<|endoftext|>b"))
    assert texts == ["a", "b"] and counts.container_bytes == 3
    found = list(read_documents([str(tmp_path / "a.txt")]))
    assert [d.position for d in found] == [3, 17]


@pytest.mark.parametrize("block_bytes", [1, 40, 1 << 20])
def test_lists_of_texts_are_the_documents(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block_bytes: int) -> None:
    """In files of several formats, with empty documents."""
    monkeypatch.setattr(documents, "_BLOCK_BYTES", block_bytes)
    write(tmp_path / "a.txt", "one<|endoftext|> <|endoftext|>狐 and\n two\u2003<|endoftext|>".encode())
    write(tmp_path / "b.jsonl", b'{"text": " three"}\n{"text": null}\n{"text": "four"}')
    for number in range(5):
        write(tmp_path / f"c{number}.md", f"\n{number}\n".encode())
    one, many = SourceCounts(), SourceCounts()
    texts = [document.text for document in read_documents([str(tmp_path)], counts=one)]
    blocks = list(read_texts([str(tmp_path)], counts=many))
    assert [text.decode() for block in blocks for text in block] == texts and len(texts) == 9
    assert one == many and len(blocks) == {1: 8, 40: 1, 1 << 20: 1}[block_bytes] and all(blocks)


@pytest.mark.parametrize("split_on", ["separator", "blank-lines"])
def test_no_chunk_boundary_matters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, split_on: SplitOn) -> None:
    choose = random.Random(4)
    pieces = ["a", "狐狸", " ", "\n", "\r\n", "<|endoftext|>", "<|end", "\u3000", "word"]
    path = tmp_path / "a.txt"
    for _ in range(60):
        write(path, "".join(choose.choices(pieces, k=choose.randrange(40))).encode())
        monkeypatch.setattr(utf8_files, "_CHUNK_BYTES", 1 << 20)
        expected = read(path, split_on)
        for size in (1, 2, 3, 7, 16):
            monkeypatch.setattr(utf8_files, "_CHUNK_BYTES", size)
            texts, counts = read(path, split_on)
            assert texts == expected[0]
            assert counts.empty_documents == expected[1].empty_documents


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("café".encode("latin-1") * 20, r"byte 3 is not UTF-8; it looks like Latin-1"),
        (b"plain, then " * 200_000 + "élan vital\n".encode("latin-1"), r"byte 2,400,000 is not UTF-8"),
        ("床前明月光，疑是地上霜。".encode("gb18030"), r"byte 0 is not UTF-8; it looks like GB18030"),
        ("hello".encode("utf-16"), "byte 0: expected UTF-8 text, found UTF-16"),
        ("hello".encode("utf-16-be"), "byte 0 is NUL"),
        (b"text\0text", "byte 4 is NUL: this is binary data"),
        (bytes(range(1, 256)), "it looks like binary data"),
        (b"%PDF-1.7\n", "found a PDF"),
        (b"\x1f\x8b\x08", "found a gzip file"),
        ("狐".encode()[:2], "ends inside a character"),
    ],
    ids=["latin-1", "latin-1 far in", "gb18030", "utf-16", "utf-16-be", "nul", "binary", "pdf", "gzip", "cut"],
)
def test_what_is_not_utf8(tmp_path: Path, data: bytes, message: str) -> None:
    for suffix in (".txt", ".jsonl", ".csv"):
        path = write(tmp_path / f"bad{suffix}", data)
        with pytest.raises(SourceError, match=message) as caught:
            read(path)
        assert str(path) in str(caught.value) and "\n" not in str(caught.value)


# ---- rows


def test_jsonl(tmp_path: Path) -> None:
    lines = ['{"text": " a\\u00e9\\n", "x": 1}', "", '{"x": [1], "text": "<|endoftext|>"}', '{"text": null}']
    lines.append('{"text": ""}')
    texts, counts = read(write(tmp_path / "a.jsonl", b"\xef\xbb\xbf" + "\n".join(lines).encode()))
    assert texts == ["aé", "<|endoftext|>"] and counts.empty_documents == 2
    found = list(read_documents([str(tmp_path / "a.jsonl")]))
    assert [d.position for d in found] == [1, 3]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"text": "a"', r"a\.jsonl:3: broken JSON at column"),
        ("[1]", r"a\.jsonl:3: expected a JSON object, found an array"),
        ('{"txt": "a", "id": 7}', r"a\.jsonl:3: expected 'text', found txt, id; .*--text-key"),
        ('{"text": 7}', r"a\.jsonl:3: 'text': expected text, found a number"),
        ('{"text": "\\ud800"}', r"a\.jsonl:3: the text has half"),
        ("[" * 100_000, r"a\.jsonl:3: broken JSON"),
    ],
)
def test_broken_jsonl(tmp_path: Path, line: str, message: str) -> None:
    path = write(tmp_path / "a.jsonl", b'{"text": "one"}\n\n' + line.encode() + b"\n")
    with pytest.raises(SourceError, match=message):
        read(path)


def test_json_array(tmp_path: Path) -> None:
    path = write(tmp_path / "a.json", '[{"text": " 狐 ", "x": 1},\n {"text": null}, {"text": "b"}]'.encode())
    texts, counts = read(path)
    assert texts == ["狐", "b"] and counts.empty_documents == 1
    assert [d.position for d in read_documents([str(path)])] == [1, 3]
    with pytest.raises(SourceError, match=r"a\.json: item 1: expected 'x', found text"):
        read(write(path, b'[{"text": "a"}]'), text_key="x")


def test_help_names_every_format() -> None:
    """A new format in file_formats.py must be added to the help of `prepare` too."""
    source = Path(config.__file__).read_text(encoding="utf-8")
    assert list_suffixes(SUFFIXES) in " ".join(source.split())
    for suffix in ROW_READERS:
        assert suffix in source.partition("text_key")[2][:200]


def test_csv(tmp_path: Path) -> None:
    data = 'id,story\n1,"He said ""hi"",\r\nthen left"\n2, 狐 \n3,\n'.encode()
    texts, counts = read(write(tmp_path / "a.csv", data), text_key="story")
    assert texts == ['He said "hi",\r\nthen left', "狐"] and counts.empty_documents == 1


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "it is empty"),
        (b"id,body\n1,x\n", "expected 'text', found id, body"),
        (b"id,text\n1,x\n2\n", r"a\.csv:3: expected 2 columns, found 1"),
        (b'text\n"a"b\n', r"a\.csv:2: broken CSV"),
        (b'text\n"a\n', "broken CSV"),
    ],
)
def test_broken_csv(tmp_path: Path, data: bytes, message: str) -> None:
    with pytest.raises(SourceError, match=message):
        read(write(tmp_path / "a.csv", data))


def test_parquet(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    pytest.importorskip("pyarrow.parquet")
    table = pyarrow.table({"text": [" one ", None, "狐"] * 2000, "id": range(6000)})
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    texts, counts = read(tmp_path / "a.parquet")
    assert texts == ["one", "狐"] * 2000 and counts.empty_documents == 2000
    with pytest.raises(SourceError, match="expected 'story', found text, id"):
        read(tmp_path / "a.parquet", text_key="story")
    with pytest.raises(SourceError, match="row 1: 'id': expected text, found a number"):
        read(tmp_path / "a.parquet", text_key="id")
    data = (tmp_path / "a.parquet").read_bytes()
    for size in (0, 3, 100, len(data) - 1):
        with pytest.raises(SourceError, match="not a complete parquet file"):
            read(write(tmp_path / "cut.parquet", data[:size]))


# ---- folders


def test_folder_is_read_by_name_and_hidden_files_are_counted(tmp_path: Path) -> None:
    for name in ("b.txt", "a/2.md", "a/1.txt", ".hidden.txt", ".git/x.txt", "a/.DS_Store"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(name)
    (tmp_path / "c.jsonl").write_text(json.dumps({"text": "c"}))
    (tmp_path / "a" / "loop").symlink_to(tmp_path, target_is_directory=True)
    found = list_sources([str(tmp_path)])
    assert sorted(file.name for file in found.files) == ["a/1.txt", "a/2.md", "b.txt", "c.jsonl"]
    assert found.hidden_files == 3
    assert len(list(read_documents(found))) == 4


def test_missing_empty_and_unknown(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="no such file or folder"):
        list_sources([str(tmp_path / "missing.txt")])
    with pytest.raises(SourceError, match="it has no files"):
        list_sources([str(tmp_path)])
    (tmp_path / ".x.txt").write_text("a")
    with pytest.raises(SourceError, match="no files except 1 hidden"):
        list_sources([str(tmp_path)])
    (tmp_path / "a.docx").write_text("a")
    for source in (tmp_path, tmp_path / "a.docx"):
        with pytest.raises(SourceError, match=r"a\.docx: unknown file type \(\.docx\); expected \.txt"):
            list_sources([str(source)])


def test_unknown_types_can_be_skipped(tmp_path: Path) -> None:
    for name in ("a.txt", "b.pdf", "sub/c.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    with pytest.raises(SourceError, match=r"b\.pdf: unknown file type .*; --skip-unknown leaves such files out"):
        list_sources([str(tmp_path)], skip_unknown=False)
    found = list_sources([str(tmp_path)], skip_unknown=True)
    assert [file.name for file in found.files] == ["a.txt"]
    assert sorted(found.skipped) == [str(tmp_path / "b.pdf"), str(tmp_path / "sub" / "c.jpg")]
    with pytest.raises(SourceError, match="no files except 1 of unknown types"):
        list_sources([str(tmp_path / "sub")], skip_unknown=True)
    with pytest.raises(SourceError, match="unknown file type"):  # named by the user, not found in a folder
        list_sources([str(tmp_path / "b.pdf")], skip_unknown=True)


def test_a_large_file_streams(tmp_path: Path) -> None:
    import tracemalloc

    path = tmp_path / "a.txt"
    with open(path, "wb") as file:
        for _ in range(3000):
            file.write(b"some words of a story. " * 400 + b"<|endoftext|>\n")
    tracemalloc.start()
    count = sum(1 for _ in read_documents([str(path)]))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert count == 3000 and peak < 8 << 20 < path.stat().st_size

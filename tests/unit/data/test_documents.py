"""Files to documents: where they end, that all bytes are counted, and which are refused."""

from __future__ import annotations

import gzip
import json
import os
import random
from pathlib import Path
from typing import Any

import pytest

from llamita import config
from llamita.cli import main
from llamita.data import documents, utf8_files
from llamita.data.documents import SourceCounts, SplitOn, list_sources, read_documents, read_texts
from llamita.data.file_formats import ROW_READERS, SUFFIXES, BadRows, list_suffixes, read_rows
from llamita.errors import SourceError


def read(
    path: Path, split_on: SplitOn = "separator", text_key: str = "text", keep_line_ends: bool = False
) -> tuple[list[str], SourceCounts]:
    counts = SourceCounts()
    options = {"split_on": split_on, "text_key": text_key, "keep_line_ends": keep_line_ends}
    found = list(read_documents([str(path)], counts=counts, **options))  # type: ignore[arg-type]
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
    assert texts == ["One.\nTwo 狐.", "三"]
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


@pytest.mark.parametrize("split_on", ["separator", "lines", "blank-lines"])
def test_no_chunk_boundary_matters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, split_on: SplitOn) -> None:
    choose = random.Random(4)
    pieces = ["a", "狐狸", " ", "\n", "\r\n", "\r", "<|endoftext|>", "<|end", "\u3000", "word", "\u2028", "\ufeff"]
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
        ("饕餮".encode("gb18030"), r"byte 0 is not UTF-8; it looks like .*: say which with --encoding NAME"),
        (b"text\0text", "byte 4 is NUL: this is binary data"),
        (b"plain words " * 90 + b"\0" + b"and more " * 90, r"byte 1,080 is NUL in the middle of text: remove it"),
        ("hello".encode("utf-32"), "found UTF-32 text"),
        (bytes(range(1, 256)), "it looks like binary data"),
        (b"%PDF-1.7\n", "found a PDF"),
        (b"\x1f\x8b\x08", "found a gzip file"),
        ("狐".encode()[:2], "ends inside a character"),
    ],
    ids=[
        "latin-1",
        "latin-1 far in",
        "two rare characters",
        "nul",
        "stray nul",
        "utf-32",
        "binary",
        "pdf",
        "gzip",
        "cut",
    ],
)
def test_what_is_not_utf8(tmp_path: Path, data: bytes, message: str) -> None:
    for suffix in (".txt", ".jsonl", ".csv"):
        path = write(tmp_path / f"bad{suffix}", data)
        with pytest.raises(SourceError, match=message) as caught:
            read(path)
        assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_line_ends_become_lf_and_are_counted(tmp_path: Path) -> None:
    data = b"\r\none\r\ntwo\rthree\nfour\r\n<|endoftext|>\r\nfive\r\rsix"
    texts, counts = read(write(tmp_path / "a.txt", data))
    assert texts == ["one\ntwo\nthree\nfour", "five\n\nsix"] and counts.line_ends == 4
    kept, counts = read(write(tmp_path / "a.txt", data), keep_line_ends=True)
    assert kept == ["one\r\ntwo\rthree\nfour", "five\r\rsix"] and counts.line_ends == 0
    write(tmp_path / "b.jsonl", b'{"text": "a\\r\\nb"}\r\n{"text": "c"}')
    assert read(tmp_path / "b.jsonl")[0] == ["a\nb", "c"]
    assert read(tmp_path / "b.jsonl", keep_line_ends=True)[0] == ["a\r\nb", "c"]


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r", "\u2028", "\u2029", "\u0085"])
def test_every_kind_of_line_end_ends_a_document(tmp_path: Path, end: str) -> None:
    path = write(tmp_path / "a.txt", f"one{end} \t{end}two{end}more{end}{end}{end}three{end}".encode())
    assert read(path, "lines")[0] == ["one", "two", "more", "three"]
    texts, counts = read(path, "blank-lines", keep_line_ends=True)
    assert texts == ["one", f"two{end}more", "three"] and counts.empty_documents == 0


def test_byte_order_marks_inside_files_are_removed(tmp_path: Path) -> None:
    """What `cat *.txt` of Notepad's files leaves, in every format."""
    mark = "\ufeff"
    texts, counts = read(write(tmp_path / "a.txt", f"{mark}one\n{mark}two<|endoftext|>{mark}\n".encode()))
    assert texts == ["one\ntwo"] and (counts.byte_order_marks, counts.container_bytes) == (2, 9)
    assert counts.empty_documents == 0
    lines = f'{mark}{{"text": "{mark}a"}}\n{mark}{{"text": "b\\ufeff"}}\n'
    assert read(write(tmp_path / "a.jsonl", lines.encode()))[0] == ["a", "b"]
    assert read(write(tmp_path / "a.json", f'{mark}[{mark}{{"text": "a"}}]'.encode()))[0] == ["a"]
    assert read(write(tmp_path / "a.csv", f'{mark}{mark}"text",id\n{mark}x,1\n'.encode()))[0] == ["x"]


def test_packed_files_are_read_like_plain_ones(tmp_path: Path) -> None:
    plain = {
        "a.txt": b"\xef\xbb\xbfone<|endoftext|>two\r\n" * 300,
        "b.md": b"",
        "c.jsonl": b'{"text": "three"}\n',
        "d.json": b'[{"text": "four"}]',
        "e.csv": b"text;id\nfive;1\n",
        "f.tsv": b"text\tid\nsix\t1\n",
    }
    for name, data in plain.items():
        expected = read(write(tmp_path / name, data))[0]
        path = write(tmp_path / f"{name.upper()}.GZ", gzip.compress(data[:5]) + gzip.compress(data[5:]))
        assert read(path)[0] == expected
    for name in ("a.parquet.gz", "a.gz", "a.tar.gz"):
        with pytest.raises(SourceError, match=r"unknown file type"):
            read(write(tmp_path / name, b""))


@pytest.mark.parametrize("suffix", [".txt.gz", ".jsonl.gz", ".json.gz", ".csv.gz"])
def test_damaged_packed_files_are_one_line(tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = gzip.compress(json.dumps({"text": "".join(map(str, range(9999)))}).encode())
    broken = bytearray(whole)
    broken[len(whole) // 2] ^= 255
    for data in (b"", b"text", whole[:5], whole[: len(whole) // 2], whole[:-1], bytes(broken), whole + b"more"):
        with pytest.raises(
            SourceError, match="expected a complete gzip file, found a damaged one or one cut"
        ) as caught:
            read(write(tmp_path / f"a{suffix}", data))
        assert "\n" not in str(caught.value) and len(str(caught.value)) < 500
    monkeypatch.setattr(utf8_files, "MIN_GZIP_BYTES", 1 << 16)
    with pytest.raises(SourceError, match="it expands more than 200 times"):
        read(write(tmp_path / f"a{suffix}", gzip.compress(b" " * (1 << 25))))
    with pytest.raises(SourceError, match="byte 1 is not UTF-8"):
        read(write(tmp_path / f"a{suffix}", gzip.compress(b"a\xff")))


def test_a_line_without_end_takes_linear_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Counted in bytes that are copied or searched, not in seconds."""
    touched = 0

    class Counting(bytearray):
        def __getitem__(self, index: Any) -> Any:
            nonlocal touched
            found = super().__getitem__(index)
            touched += len(found) if isinstance(index, slice) else 1
            return found

    monkeypatch.setattr(documents, "bytearray", Counting, raising=False)
    monkeypatch.setattr(utf8_files, "_CHUNK_BYTES", 1 << 10)
    for filler in (b" ", b"x", "\u3000".encode(), b"\n \t"):
        data = b"a\n" + filler * (600_000 // len(filler)) + b"b"
        touched = 0
        texts, _ = read(write(tmp_path / "a.txt", data), "blank-lines")
        assert touched < 8 * len(data) and " ".join(texts).split() in (["a", "b"], ["a", "x" * 600_000 + "b"])
    lines = list(utf8_files.read_lines(write(tmp_path / "b.txt", b"x" * 500_000 + b"\ny")))
    assert [len(line) for line in lines] == [500_001, 1]


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
        assert suffix in source.partition("    text_key: ")[2][:200]


def test_json_lines_named_json(tmp_path: Path) -> None:
    path = write(tmp_path / "a.json", '\n{"text": "a\u2028"}\n\n{"text": "b"}\n'.encode())
    assert read(path)[0] == ["a", "b"]
    with pytest.raises(SourceError, match=r"a\.json:2: broken JSON at column 2"):
        read(write(path, b'{"text": "a"}\n{"text\n'))
    with pytest.raises(SourceError, match=r"a\.json: broken JSON at line 3, column 1: Extra data"):
        read(write(path, b'[{"text": "a"}\n]\n{}'))
    with pytest.raises(SourceError, match="expected a JSON array of objects, found an object"):
        read(write(path, b'{"text": "a"}\n'))
    with pytest.raises(SourceError, match=r"a\.jsonl:1: expected one JSON object per line.*name the file \.json"):
        read(write(tmp_path / "a.jsonl", b'[\n{"text": "a"}\n]'))


def test_examples_are_pointed_to_finetune(tmp_path: Path) -> None:
    for name, data in (("qa.jsonl", b'{"question": "a", "answer": "b"}'), ("qa.csv", b"query,response\n")):
        with pytest.raises(SourceError, match=r"expected 'text', found .*; these are examples for `llamita finetune"):
            read(write(tmp_path / name, data))


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("a.csv", 'id;text\n1;x, y\n2;"a;b"\n'),
        ("a.csv", "sep=;\nid;text\n1;x, y\n2;a;b\n"),
        ("a.csv", 'id\ttext\n1\tx, y\n2\t"a;b"\n'),
        ("a.tsv", "id\ttext\r\n1\tx, y\r\n2\ta;b\r\n"),
        ("a.csv", 'id,text\n1,"x, y"\n2,a;b\n'),
        ("a.csv", 'id,text\r1,"x, y"\r2,a;b\r'),
        ("a.csv", 'a;b;c,text\n1,"x, y"\n2,a;b\n'),
        ("a.tsv", "text\nx, y\na;b\n"),
    ],
)
def test_delimiters(tmp_path: Path, name: str, data: str) -> None:
    if data.startswith("sep="):
        data = data.replace("2;a;b", '2;"a;b"')
    assert read(write(tmp_path / name, data.encode()))[0] == ["x, y", "a;b"]


def test_file_names_of_any_bytes(tmp_path: Path) -> None:
    path = tmp_path / os.fsdecode(b"caf\xe9.txt")
    try:
        path.write_text("text")
    except OSError:
        pytest.skip("the file system takes UTF-8 names only")
    (found,) = list_sources([str(tmp_path)]).files
    assert found.name == "caf\\xe9.txt"
    documents.check_unchanged([found])
    assert [each.text for each in read_documents([str(tmp_path)])] == ["text"]


def test_csv(tmp_path: Path) -> None:
    data = 'id,story\n1,"He said ""hi"",\r\nthen left"\n2, 狐 \n3,\n'.encode()
    texts, counts = read(write(tmp_path / "a.csv", data), text_key="story")
    assert texts == ['He said "hi",\nthen left', "狐"] and counts.empty_documents == 1 and counts.line_ends == 1


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


def test_a_text_that_is_there_twice_is_refused(tmp_path: Path) -> None:
    for name, content in (
        ("a.jsonl", b'{"text": "one", "text": "two"}\n'),
        ("a.json", b'[{"text": "one", "text": "two"}]'),
        ("a.csv", b"text,id,text\none,1,two\n"),
    ):
        with pytest.raises(SourceError, match=r"found 'text' twice|two columns have the same name"):
            read(write(tmp_path / name, content))
    for name, content in (
        ("b.jsonl", b'{"id": 1, "text": "one", "id": 2}\n'),
        ("b.json", b'[{"id": 1, "text": "one", "id": 2}]'),
        ("b.csv", b"id,text,id\n1,one,2\n"),
    ):
        assert read(write(tmp_path / name, content))[0] == ["one"], "other keys are not read"


def test_parquet_with_a_damaged_name(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    pytest.importorskip("pyarrow.parquet")
    pyarrow.parquet.write_table(pyarrow.table({"columnname": ["One."]}), tmp_path / "a.parquet")
    raw = (tmp_path / "a.parquet").read_bytes()
    write(tmp_path / "a.parquet", raw.replace(b"columnname", b"colum\xbfname"))
    with pytest.raises(SourceError, match=r"cannot read .*a\.parquet: not a complete parquet file: "):
        list(read_rows(tmp_path / "a.parquet"))


def test_parquet_with_a_column_twice(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    pytest.importorskip("pyarrow.parquet")
    table = pyarrow.Table.from_arrays([pyarrow.array(["one"]), pyarrow.array(["two"])], names=["text", "text"])
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    for key in ("text", None):
        with pytest.raises(SourceError, match="two columns have the same name: text, text; rename one"):
            list(read_rows(tmp_path / "a.parquet", key))


def test_parquet_with_damaged_text(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    pytest.importorskip("pyarrow.parquet")
    bad = pyarrow.Array.from_buffers(
        pyarrow.string(), 3, [None, pyarrow.array([0, 1, 2, 3], "int32").buffers()[1], pyarrow.py_buffer(b"a\xffb")]
    )
    table = pyarrow.table({"text": pyarrow.chunked_array([pyarrow.array(["x"] * 2000), bad])})
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(SourceError, match=r"a\.parquet: row 2002: text that is not UTF-8; the file is damaged"):
        read(tmp_path / "a.parquet")
    skipped = BadRows(1)
    rows = list(read_rows(tmp_path / "a.parquet", bad=skipped))
    assert [row.number for row in rows[-2:]] == [2001, 2003] and len(skipped.skipped) == 1


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
    (tmp_path / "a.doc").write_text("a")
    for source in (tmp_path, tmp_path / "a.doc"):
        with pytest.raises(SourceError, match=r"a\.doc: unknown file type \(\.doc\); expected \.txt"):
            list_sources([str(source)])


def test_unknown_types_can_be_skipped(tmp_path: Path) -> None:
    for name in ("a.txt", "b.png", "sub/c.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    with pytest.raises(SourceError, match=r"b\.png: unknown file type .*; --skip-unknown leaves such files out"):
        list_sources([str(tmp_path)], skip_unknown=False)
    found = list_sources([str(tmp_path)], skip_unknown=True)
    assert [file.name for file in found.files] == ["a.txt"]
    assert sorted(found.skipped) == [str(tmp_path / "b.png"), str(tmp_path / "sub" / "c.jpg")]
    with pytest.raises(SourceError, match="no files except 1 of unknown types"):
        list_sources([str(tmp_path / "sub")], skip_unknown=True)
    with pytest.raises(SourceError, match="unknown file type"):  # named by the user, not found in a folder
        list_sources([str(tmp_path / "b.png")], skip_unknown=True)


def test_files_and_folders_can_be_excluded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a.txt", "b.png", "sub/c.txt", "sub/d.txt", "other/e.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    monkeypatch.chdir(tmp_path)
    exclude = ["b.png", "sub/../sub/d.txt", str(tmp_path / "other")]
    assert [file.name for file in list_sources(["."], exclude=exclude).files] == ["a.txt", "sub/c.txt"]
    with pytest.raises(SourceError, match="--exclude: no such file or folder: missing"):
        list_sources(["."], exclude=["missing"])
    assert main(["prepare", ".", "--exclude", "missing", "-o", str(tmp_path.with_name("store"))]) == 2


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

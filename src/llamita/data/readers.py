"""Files and folders of .txt, .md, .jsonl, .csv and .parquet to documents, streamed, with every byte accounted for."""

from __future__ import annotations

import codecs
import csv
import dataclasses
import hashlib
import itertools
import json
import operator
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any, Literal

from llamita.errors import SourceError

SplitOn = Literal["separator", "blank-lines", "file"]
SUFFIXES = (".txt", ".md", ".jsonl", ".csv", ".parquet")
_CHUNK_BYTES = 1 << 20
_BLOCK_BYTES, _BLOCK_DOCUMENTS = 1 << 20, 4096
_BOM = b"\xef\xbb\xbf"
# A line that holds nothing but spaces (U+00A0 and U+3000 included), with the end of the line before it. One group, the
# whole: split gives the borders too.
_BLANK_LINES = re.compile(rb"(\n(?:(?:[ \t\r\f\v]|\xc2\xa0|\xe3\x80\x80)*\n)+)")
_BLANK_BYTES = b" \t\r\n\f\v\xc2\xa0\xe3\x80"
_MAGIC = (
    (b"\xff\xfe", "UTF-16 text (convert it: iconv -f UTF-16 -t UTF-8)"),
    (b"\xfe\xff", "UTF-16 text (convert it: iconv -f UTF-16 -t UTF-8)"),
    (b"%PDF", "a PDF"),
    (b"PK\x03\x04", "a ZIP archive or an office document"),
    (b"\x1f\x8b", "a gzip file (unpack it first)"),
    (b"\x28\xb5\x2f\xfd", "a zstd file (unpack it first)"),
    (b"PAR1", "a parquet file"),
    (b"GGUF", "a GGUF model"),
    (b"\x89PNG", "a picture"),
    (b"\xff\xd8\xff", "a picture"),
    (b"\x7fELF", "a program"),
)


@dataclasses.dataclass(frozen=True)
class Document:
    """One text, stripped of whitespace around it and otherwise byte for byte as in its source (CRLF is kept)."""

    text: str
    source: str  # the file
    position: int  # byte offset of a text file's document, line or row (from 1) of the others
    text_bytes: int  # UTF-8


@dataclasses.dataclass
class SourceCounts:
    """Where the sources' bytes went: source = document + whitespace + separator + container."""

    files: int = 0
    source_bytes: int = 0
    documents: int = 0  # those yielded
    document_bytes: int = 0  # their stripped text, UTF-8
    empty_documents: int = 0  # nothing left after stripping, or null
    whitespace_bytes: int = 0  # stripped around documents
    separator_bytes: int = 0
    container_bytes: int = 0  # BOM, JSON keys and escapes, other columns; negative where a file compresses its text


@dataclasses.dataclass(frozen=True)
class SourceFile:
    """A file to read, and its name relative to the folder it was found in."""

    path: Path
    name: str
    num_bytes: int
    modified_ns: int


@dataclasses.dataclass(frozen=True)
class SourceList:
    """The files of some sources in reading order, and how many hidden ones were passed over."""

    files: tuple[SourceFile, ...]
    hidden_files: int

    @property
    def num_bytes(self) -> int:
        return sum(file.num_bytes for file in self.files)


def list_sources(sources: Sequence[str]) -> SourceList:
    """Find the files: a folder's are taken with those of its subfolders, by name; names that begin with a dot are
    passed over and counted. Raises SourceError: missing, empty folder, unknown suffix."""
    files: list[SourceFile] = []
    hidden = 0
    for source in sources:
        path = Path(source)
        if path.is_dir():
            found, hidden_here = _list_folder(path)
            hidden += hidden_here
            if not found:
                passed = f" but {hidden_here} hidden ones" if hidden_here else ""
                raise SourceError(f"no text in folder {path}: it holds no files{passed}; expected {_suffixes()}")
            files += found
        elif path.exists():
            files.append(_source_file(path, path.name))
        else:
            raise SourceError(f"no such file or folder: {path}")
    return SourceList(tuple(files), hidden)


def check_unchanged(files: Iterable[SourceFile]) -> None:
    """Raise SourceError if a file is not what it was when it was listed."""
    for file in files:
        if _source_file(file.path, file.name) != file:
            raise SourceError(f"{file.path} changed while it was being read; run the command again")


def hash_source(file: SourceFile) -> str:
    """sha256 (hex) of a file's bytes."""
    digest = hashlib.sha256()
    with _open(file.path) as stream:
        while chunk := _read_chunk(stream, file.path):
            digest.update(chunk)
    return digest.hexdigest()


def read_documents(
    sources: Sequence[str] | SourceList,
    *,
    separator: str = "<|endoftext|>",
    split_on: SplitOn = "separator",
    text_key: str = "text",
    counts: SourceCounts | None = None,
) -> Iterator[Document]:
    """Yield every document that is not empty, file by file, in order; memory holds two megabytes, or one document, at a
    time.

    .txt and .md: a document ends at `separator` and at the file's end, at blank lines, or only at the file's end.
    .jsonl, .csv, .parquet: a line or row is a document, its text is under `text_key`; null counts as empty.
    `counts` is added to. Raises SourceError naming file and byte, line or row.
    """
    counts = counts if counts is not None else SourceCounts()
    for file, texts, positions in _read(sources, separator, split_on, text_key, counts):
        source = str(file.path)
        for text, position in zip(texts, positions, strict=True):
            yield Document(text.decode("utf-8"), source, position, len(text))


def read_texts(
    sources: Sequence[str] | SourceList,
    *,
    separator: str = "<|endoftext|>",
    split_on: SplitOn = "separator",
    text_key: str = "text",
    counts: SourceCounts,
) -> Iterator[list[bytes]]:
    """The texts of `read_documents`, UTF-8, in lists of about a megabyte: for many short ones the faster way."""
    block: list[bytes] = []
    size = 0
    for _, texts, _ in _read(sources, separator, split_on, text_key, counts):
        block += texts
        size += sum(map(len, texts))
        if size >= _BLOCK_BYTES or len(block) >= _BLOCK_DOCUMENTS:
            yield block
            block, size = [], 0
    if block:
        yield block


def _read(
    sources: Sequence[str] | SourceList, separator: str, split_on: SplitOn, text_key: str, counts: SourceCounts
) -> Iterator[tuple[SourceFile, list[bytes], list[int]]]:
    """Documents as they come: their file, texts and positions."""
    borders: dict[str, bytes | re.Pattern[bytes] | None] = {
        "separator": separator.encode("utf-8"), "blank-lines": _BLANK_LINES, "file": None,
    }  # fmt: skip
    border = borders[split_on]
    for file in (sources if isinstance(sources, SourceList) else list_sources(sources)).files:
        counts.files += 1
        suffix = file.path.suffix.lower()
        if suffix in (".txt", ".md"):
            for texts, positions in _read_text(file, border, counts):
                yield file, texts, positions
            continue
        rows: Callable[[SourceFile, str], Iterator[tuple[int, str | None]]]
        rows = {".jsonl": _read_jsonl, ".csv": _read_csv, ".parquet": _read_parquet}[suffix]
        counts.source_bytes += file.num_bytes
        counts.container_bytes += file.num_bytes
        for position, text in rows(file, text_key):
            raw = _utf8(text or "", file, position)
            counts.container_bytes -= len(raw)
            yield file, *_strip([raw], [position], counts)


def _strip(
    raws: list[bytes], positions: list[int], counts: SourceCounts, *, count_empty: bool = True
) -> tuple[list[bytes], list[int]]:
    """Strip and count texts; returns those of which something is left, and their positions."""
    texts = [raw.decode("utf-8").strip().encode("utf-8") for raw in raws]
    text_bytes = sum(map(len, texts))
    counts.whitespace_bytes += sum(map(len, raws)) - text_bytes
    counts.document_bytes += text_bytes
    if not all(texts):
        positions = list(itertools.compress(positions, texts))
        texts = list(filter(None, texts))
        counts.empty_documents += len(raws) - len(texts) if count_empty else 0
    counts.documents += len(texts)
    return texts, positions


def _utf8(text: str, file: SourceFile, position: int) -> bytes:
    try:
        return text.encode("utf-8")
    except UnicodeEncodeError:
        raise SourceError(
            f"cannot read {file.path}:{position}: the text holds half of a UTF-16 pair (\\ud800 to \\udfff), "
            "which is no character"
        ) from None


# ---- folders


def _list_folder(folder: Path) -> tuple[list[SourceFile], int]:
    files: list[SourceFile] = []
    hidden = 0
    visited: set[str] = set()

    def refuse(error: OSError) -> None:
        raise SourceError(f"cannot read folder {error.filename}: {error.strerror}")

    for place, folders, names in os.walk(folder, followlinks=True, onerror=refuse):
        real = os.path.realpath(place)
        if real in visited:
            folders.clear()
            continue
        visited.add(real)
        hidden += sum(name.startswith(".") for name in [*names, *folders])
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            if not name.startswith("."):
                path = Path(place) / name
                files.append(_source_file(path, path.relative_to(folder).as_posix()))
    return files, hidden


def _source_file(path: Path, name: str) -> SourceFile:
    if path.suffix.lower() not in SUFFIXES:
        kind = path.suffix or "no suffix"
        raise SourceError(f"cannot read {path}: unknown kind of file ({kind}); expected {_suffixes()}")
    if not path.is_file():
        raise SourceError(f"cannot read {path}: not a regular file")
    try:
        status = path.stat()
        return SourceFile(path, name, status.st_size, status.st_mtime_ns)
    except OSError as error:
        raise SourceError(f"cannot read {path}: {error.strerror}") from None


def _suffixes() -> str:
    return ", ".join(SUFFIXES[:-1]) + " or " + SUFFIXES[-1]


# ---- text files


def _read_text(
    file: SourceFile, border: bytes | re.Pattern[bytes] | None, counts: SourceCounts
) -> Iterator[tuple[list[bytes], list[int]]]:
    """Documents of a text file and their positions. Blank blocks, and a blank rest after the last separator, are
    whitespace."""
    with _open(file.path) as stream:
        chunks = _utf8_chunks(stream, file.path)
        start = next(chunks)
        bom_bytes = len(_BOM) if start.startswith(_BOM) else 0
        counts.container_bytes += bom_bytes
        counts.source_bytes += bom_bytes
        end = bom_bytes
        for raws, border_sizes in _cut(start[bom_bytes:], chunks, border):
            begin = end
            *positions, end = itertools.accumulate(map(operator.add, map(len, raws), border_sizes), initial=begin)
            counts.source_bytes += end - begin
            counts.separator_bytes += sum(border_sizes)
            is_rest = border_sizes == [0] and begin > bom_bytes
            yield _strip(raws, positions, counts, count_empty=not (is_rest or isinstance(border, re.Pattern)))


def _cut(
    start: bytes, chunks: Iterator[bytes], border: bytes | re.Pattern[bytes] | None
) -> Iterator[tuple[list[bytes], list[int]]]:
    """Cut a stream of bytes: (the parts before borders, the bytes of each border); last the rest alone, with 0.

    A blank-line border that a chunk's end cuts in two may come as two borders with a blank text between them.
    """
    buffer = bytearray(start)
    scan = 0  # no border begins before this place
    while True:
        if isinstance(border, bytes):
            if buffer.find(border, scan) >= 0:
                *raws, rest = bytes(buffer).split(border)
                yield raws, [len(border)] * len(raws)
                buffer = bytearray(rest)
            scan = max(0, len(buffer) - len(border) + 1)
        elif border is not None:
            if border.search(buffer, scan):
                *pieces, rest = border.split(bytes(buffer))
                yield pieces[::2], list(map(len, pieces[1::2]))
                buffer = bytearray(rest)
            scan = len(buffer.rstrip(_BLANK_BYTES))
        chunk = next(chunks, None)
        if chunk is None:
            yield [bytes(buffer)], [0]
            return
        buffer += chunk


def _utf8_chunks(stream: IO[bytes], path: Path) -> Iterator[bytes]:
    """The file's bytes, at least one chunk, every one checked: UTF-8, and text rather than something binary."""
    decoder = codecs.getincrementaldecoder("utf-8")("strict")
    offset = 0
    while True:
        chunk = _read_chunk(stream, path)
        pending = decoder.getstate()[0]
        if offset == 0:
            kind = next((name for magic, name in _MAGIC if chunk.startswith(magic)), None)
            if kind is not None:
                raise SourceError(f"cannot read {path}: byte 0: expected UTF-8 text, found {kind}")
        try:
            decoder.decode(chunk, final=not chunk)
        except UnicodeDecodeError as error:
            at = offset - len(pending) + error.start
            raise SourceError(
                f"cannot read {path}: byte {at:,} is not UTF-8; {_describe(pending + chunk, error)}"
            ) from None
        if (nul := chunk.find(b"\0")) >= 0:
            raise SourceError(f"cannot read {path}: byte {offset + nul:,} is NUL: this is binary data, not text")
        if chunk or offset == 0:
            yield chunk
        if not chunk:
            return
        offset += len(chunk)


def _describe(data: bytes, error: UnicodeDecodeError) -> str:
    """What bytes that are not UTF-8 look like, from those around the first bad one."""
    near = data[max(0, error.start - 2000) : error.start + 2000]
    if error.reason == "unexpected end of data":
        return "the file ends inside a character: was it cut off?"
    controls = sum(byte < 32 and byte not in b"\t\n\v\f\r\x1b" for byte in near)
    if controls * 50 > len(near) or b"\0" in near:
        return "it looks like binary data, not text"
    high = [i for i, byte in enumerate(near[:-1]) if byte >= 128]
    paired = sum(near[i + 1] >= 128 for i in high)
    if high and paired * 3 > len(high) * 2:
        return "it looks like GB18030, Big5 or Shift-JIS: convert it (iconv -f GB18030 -t UTF-8)"
    return "it looks like Latin-1 or Windows-1252: convert it (iconv -f WINDOWS-1252 -t UTF-8)"


# ---- rows: (line or row number from 1, text or None)


def read_lines(file: SourceFile) -> Iterator[str]:
    """Lines of a UTF-8 file with their ends, the BOM taken off."""
    with _open(file.path) as stream:
        rest = b""
        first = True
        for chunk in _utf8_chunks(stream, file.path):
            chunk = chunk[len(_BOM) :] if first and chunk.startswith(_BOM) else chunk
            first = False
            *lines, rest = (rest + chunk).split(b"\n")
            for line in lines:
                yield line.decode("utf-8") + "\n"
        if rest:
            yield rest.decode("utf-8")


def _read_jsonl(file: SourceFile, text_key: str) -> Iterator[tuple[int, str | None]]:
    for number, line in enumerate(read_lines(file), start=1):
        if not line.strip():
            continue
        try:
            value = json.loads(line.rstrip("\r\n"))
        except json.JSONDecodeError as error:
            what = f"broken JSON at column {error.colno}: {error.msg}"
            raise SourceError(f"cannot read {file.path}:{number}: {what}") from None
        except (RecursionError, ValueError) as error:
            raise SourceError(f"cannot read {file.path}:{number}: broken JSON: {error}") from None
        if not isinstance(value, dict):
            raise SourceError(f"cannot read {file.path}:{number}: expected a JSON object, found {json_name(value)}")
        if text_key not in value:
            raise SourceError(_wrong_key(f"{file.path}:{number}", text_key, value))
        yield number, _text_of(value[text_key], text_key, f"{file.path}:{number}")


def _read_csv(file: SourceFile, text_key: str) -> Iterator[tuple[int, str | None]]:
    csv.field_size_limit(2**31 - 1)
    reader = csv.reader(read_lines(file), strict=True)
    try:
        columns = next(reader, None)
        if columns is None:
            raise SourceError(f"cannot read {file.path}: it is empty; expected a first line with the columns' names")
        if text_key not in columns:
            raise SourceError(_wrong_key(f"{file.path}:1", text_key, columns))
        column = columns.index(text_key)
        for row in reader:
            if not row:
                continue
            if len(row) != len(columns):
                raise SourceError(
                    f"cannot read {file.path}:{reader.line_num}: expected {len(columns)} columns, found {len(row)}"
                )
            yield reader.line_num, row[column]
    except csv.Error as error:
        raise SourceError(f"cannot read {file.path}:{reader.line_num}: broken CSV: {error}") from None


def _read_parquet(file: SourceFile, text_key: str) -> Iterator[tuple[int, str | None]]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise SourceError(f"cannot read {file.path}: parquet needs pyarrow: pip install 'llamita[train]'") from None
    try:
        with pyarrow.parquet.ParquetFile(file.path) as table:  # type: ignore[no-untyped-call]
            columns = table.schema_arrow.names
            if text_key not in columns:
                raise SourceError(_wrong_key(str(file.path), text_key, columns))
            number = 0
            for batch in table.iter_batches(batch_size=1024, columns=[text_key]):
                for value in batch.column(0).to_pylist():
                    number += 1
                    yield number, _text_of(value, text_key, f"{file.path}: row {number}")
    except (pyarrow.lib.ArrowException, OSError) as error:
        message = " ".join(str(error).split())[:200]
        raise SourceError(f"cannot read {file.path}: not a whole parquet file: {message}") from None


def _text_of(value: Any, text_key: str, where: str) -> str | None:
    if value is None or isinstance(value, str):
        return value
    raise SourceError(f"cannot read {where}: {text_key!r}: expected text, found {json_name(value)}")


def _wrong_key(where: str, text_key: str, found: Iterable[str]) -> str:
    names = ", ".join(list(found)[:20]) or "nothing"
    return f"cannot read {where}: no {text_key!r} in it, found {names}; name the right one with --text-key"


def json_name(value: Any) -> str:
    """What a JSON value is, for a message."""
    names = {list: "an array", dict: "an object", str: "a string", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number" if isinstance(value, (int, float)) else type(value).__name__)


# ---- the system


def _open(path: Path) -> IO[bytes]:
    try:
        return open(path, "rb")
    except OSError as error:
        raise SourceError(f"cannot read {path}: {error.strerror or error}") from None


def _read_chunk(stream: IO[bytes], path: Path) -> bytes:
    try:
        return stream.read(_CHUNK_BYTES)
    except OSError as error:
        raise SourceError(f"cannot read {path}: {error.strerror or error}") from None

"""Streams documents from files and folders, and accounts for every byte that it reads."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import itertools
import operator
import os
import re
from collections.abc import Generator, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Literal

from llamita.data.document_files import DOCUMENT_SUFFIXES, DocumentText
from llamita.data.document_origins import DocumentOrigins
from llamita.data.file_formats import (
    SUFFIXES,
    TEXT_SUFFIXES,
    BadRows,
    find_suffix,
    list_suffixes,
    read_rows,
    row_text,
    unknown_type,
)
from llamita.data.utf8_files import BOM, Conversions, is_gzipped, open_file, read_chunk, utf8_chunks
from llamita.errors import SourceError

SplitOn = Literal["separator", "lines", "blank-lines", "file"]
Boundary = bytes | re.Pattern[bytes] | None  # between two documents of a text file
_BLOCK_BYTES, _BLOCK_DOCUMENTS = 1 << 20, 4096
# Line ends: CRLF, LF, CR, and Unicode's NEL, LINE SEPARATOR and PARAGRAPH SEPARATOR. (Where a chunk
# ends between CR and LF, the LF is at the next text's beginning and is stripped.)
_LINE_END = rb"(?:\r\n|\n|\r(?!\n)|\xc2\x85|\xe2\x80[\xa8\xa9])"
# The groups make re.split return the boundaries. A blank line holds spaces (U+00A0 and U+3000 too).
_LINES = re.compile(rb"(" + _LINE_END + rb")")
_BLANK_LINES = re.compile(rb"(" + _LINE_END + rb"(?:(?:[ \t\f\v]|\xc2\xa0|\xe3\x80\x80)*" + _LINE_END + rb")+)")
# The same for text in which every line ends with LF: faster.
_OF_LF = {
    _LINES: re.compile(rb"(\n)"),
    _BLANK_LINES: re.compile(rb"(\n(?:(?:[ \t\f\v]|\xc2\xa0|\xe3\x80\x80)*\n)+)"),
}
_OTHER_ENDS = (b"\r", b"\xc2\x85", b"\xe2\x80\xa8", b"\xe2\x80\xa9")
_BLANK_BYTES = b" \t\r\n\f\v\xc2\xa0\x85\xe3\x80\xe2\xa8\xa9"


@dataclasses.dataclass(frozen=True)
class Document:
    """A text, without the whitespace around it and without byte order marks. Its line ends are LF,
    unless they were to be kept."""

    text: str
    source: str  # the file; FILE/NAME in an archive
    position: int  # byte offset in a text file or in a document's text; line, item or row, from 1, of rows
    text_bytes: int  # UTF-8


@dataclasses.dataclass
class SourceCounts:
    """Counts of bytes: source = document + whitespace + separator + container + unread + dropped_line
    + masked."""

    files: int = 0
    source_bytes: int = 0
    documents: int = 0  # not empty
    document_bytes: int = 0  # of their stripped text, UTF-8
    empty_documents: int = 0  # only whitespace, or null
    whitespace_bytes: int = 0  # stripped around documents
    separator_bytes: int = 0
    # BOMs, CR of CRLF, JSON keys, other columns; negative if a file is compressed
    container_bytes: int = 0
    unread_bytes: int = 0  # of documents that could not be read
    line_ends: int = 0  # CRLF and CR that became LF
    byte_order_marks: int = 0  # inside the file: left over where files were joined
    dropped_lines: int = 0  # --drop-lines
    dropped_line_bytes: int = 0  # with the whitespace around them
    masked_mail: int = 0  # pieces of personal data that --mask-personal-data replaced
    masked_phone: int = 0
    masked_id: int = 0
    masked_account: int = 0
    masked_bytes: int = 0  # how much shorter the text became; negative if longer


@dataclasses.dataclass(frozen=True)
class SourceFile:
    """A file to read. name: relative to the folder in which it was found, always valid UTF-8."""

    path: Path
    name: str
    num_bytes: int
    modified_ns: int


@dataclasses.dataclass(frozen=True)
class SourceList:
    """The files of all sources in reading order, the number of hidden files skipped, and the paths of
    those skipped because their type is unknown."""

    files: tuple[SourceFile, ...]
    hidden_files: int
    skipped: tuple[str, ...] = ()

    @property
    def num_bytes(self) -> int:
        return sum(file.num_bytes for file in self.files)


def list_sources(
    sources: Sequence[str], *, skip_unknown: bool | None = None, exclude: Sequence[str] = ()
) -> SourceList:
    """Find the files, those of folders and subfolders by name. Hidden ones are skipped and counted.

    Raises SourceError for a missing file, an empty folder, or an unknown suffix; with skip_unknown,
    files of folders with an unknown suffix are skipped. skip_unknown: None if the caller's user
    cannot choose. exclude: files and folders of `sources` to leave out; a missing one is an error.
    """
    excluded = frozenset(map(os.path.realpath, exclude))
    lost = next((path for path in exclude if not os.path.lexists(path)), None)
    if lost is not None:
        raise SourceError(f"--exclude: no such file or folder: {lost}")
    files: list[SourceFile] = []
    hidden = 0
    skipped: list[str] = []
    for source in sources:
        path = Path(source)
        if path.is_dir():
            found, hidden_here, skipped_here = _list_folder(path, skip_unknown, excluded)
            hidden += hidden_here
            skipped += skipped_here
            if not found:
                others = [
                    f"{count} {what}"
                    for count, what in ((hidden_here, "hidden ones"), (len(skipped_here), "of unknown types"))
                    if count
                ]
                excepted = f" except {' and '.join(others)}" if others else ""
                raise SourceError(
                    f"no text in folder {path}: it has no files{excepted}; expected {list_suffixes(SUFFIXES)}"
                )
            files += found
        elif path.exists():
            files.append(_source_file(path, path.name))
        else:
            raise SourceError(f"no such file or folder: {path}")
    return SourceList(tuple(files), hidden, tuple(skipped))


def check_unchanged(files: Iterable[SourceFile]) -> None:
    """Raise SourceError if a file has changed since it was listed."""
    for file in files:
        if _source_file(file.path, file.name) != file:
            raise SourceError(f"{file.path} changed while it was being read; run the command again")


def hash_source(file: SourceFile) -> str:
    """sha256 (hex) of a file."""
    digest = hashlib.sha256()
    with open_file(file.path) as stream:
        while chunk := read_chunk(stream, file.path):
            digest.update(chunk)
    return digest.hexdigest()


def read_documents(
    sources: Sequence[str] | SourceList,
    *,
    separator: str = "<|endoftext|>",
    split_on: SplitOn = "separator",
    text_key: str = "text",
    keep_line_ends: bool = False,
    counts: SourceCounts | None = None,
    conversions: Conversions | None = None,
) -> Iterator[Document]:
    """Yield every document that is not empty, file by file. Except for .json, memory holds two
    megabytes, or one document, at a time.

    In a text file, and in the text of a PDF or another file with a reader, `split_on` says where
    documents end: at `separator` and the end of the file, at line ends, at blank lines, or only at
    the end of the file. In a file of rows, each row is a document: the text under `text_key`; null
    counts as empty. CRLF and CR become LF unless `keep_line_ends`. Adds to `counts` and
    `conversions`; a position in a file of another encoding is one in its UTF-8.

    Raises SourceError, which names the file and the byte, line or row. A PDF or the like that cannot
    be read is skipped and kept in `conversions`; without `conversions` it is an error too.
    """
    counts = counts if counts is not None else SourceCounts()
    for file, name, texts, positions in _read(
        sources, separator, split_on, text_key, keep_line_ends, counts, conversions
    ):
        source = f"{file.path}/{name}" if name else str(file.path)
        for text, position in zip(texts, positions, strict=True):
            yield Document(text.decode("utf-8"), source, position, len(text))


def read_texts(
    sources: Sequence[str] | SourceList,
    *,
    separator: str = "<|endoftext|>",
    split_on: SplitOn = "separator",
    text_key: str = "text",
    keep_line_ends: bool = False,
    counts: SourceCounts,
    conversions: Conversions | None = None,
    origins: DocumentOrigins | None = None,
) -> Iterator[list[bytes]]:
    """The texts of `read_documents`, in lists of about a megabyte: faster for many short texts.
    origins: gets where each text comes from."""
    block: list[bytes] = []
    size = 0
    for file, name, texts, positions in _read(
        sources, separator, split_on, text_key, keep_line_ends, counts, conversions
    ):
        if origins is not None:
            origins.add(f"{file.name}/{name}" if name else file.name, positions)
        block += texts
        size += sum(map(len, texts))
        if size >= _BLOCK_BYTES or len(block) >= _BLOCK_DOCUMENTS:
            yield block
            block, size = [], 0
    if block:
        yield block


def _read(
    sources: Sequence[str] | SourceList,
    separator: str,
    split_on: SplitOn,
    text_key: str,
    keep_line_ends: bool,
    counts: SourceCounts,
    conversions: Conversions | None,
) -> Iterator[tuple[SourceFile, str, list[bytes], list[int]]]:
    """The texts and positions of some documents at a time, their file, and their name in an
    archive."""
    boundaries: dict[str, Boundary] = {
        "separator": separator.encode("utf-8"), "lines": _LINES, "blank-lines": _BLANK_LINES, "file": None,
    }  # fmt: skip
    boundary = boundaries[split_on]
    cleaner = _Cleaner(counts, keep_line_ends)
    is_strict, conversions = conversions is None, conversions or Conversions()
    files = (sources if isinstance(sources, SourceList) else list_sources(sources)).files
    with contextlib.closing(_read_document_files(files, text_key, conversions, is_strict=is_strict)) as document_files:
        for file in files:
            counts.files += 1
            suffix = find_suffix(file.path)
            if suffix in TEXT_SUFFIXES:
                for texts, positions in _read_text(file, boundary, cleaner, counts, conversions):
                    yield file, "", texts, positions
                continue
            counts.source_bytes += file.num_bytes
            if suffix in DOCUMENT_SUFFIXES:
                for name, texts, positions in _cut_documents(file, next(document_files), boundary, cleaner, counts):
                    yield file, name, texts, positions
                continue
            counts.container_bytes += file.num_bytes
            for row in read_rows(file.path, text_key, BadRows(conversions=conversions)):
                raw = row_text(row, text_key)
                counts.container_bytes -= len(raw)
                yield file, "", *cleaner.clean([raw], [row.number])


@dataclasses.dataclass(frozen=True)
class _Cleaner:
    """Strips and counts texts, drops byte order marks, and makes line ends LF."""

    counts: SourceCounts
    keep_line_ends: bool

    def clean(
        self, raws: list[bytes], positions: list[int], *, count_empty: bool = True
    ) -> tuple[list[bytes], list[int]]:
        """Returns the texts that are not empty, and their positions."""
        counts = self.counts
        before = sum(map(len, raws))
        joined = raws[0] if len(raws) == 1 else b"".join(raws)  # one search is faster than many
        if BOM in joined:
            counts.byte_order_marks += sum(raw.count(BOM) for raw in raws)
            raws = [raw.replace(BOM, b"") for raw in raws]
        marked = before - sum(map(len, raws))
        texts = [raw.decode("utf-8").strip().encode("utf-8") for raw in raws]
        stripped_bytes = sum(map(len, texts))
        if not self.keep_line_ends and b"\r" in joined:
            counts.line_ends += sum(text.count(b"\r") for text in texts)
            texts = [text.replace(b"\r\n", b"\n").replace(b"\r", b"\n") for text in texts]
        text_bytes = sum(map(len, texts))
        counts.container_bytes += marked + stripped_bytes - text_bytes
        counts.whitespace_bytes += before - marked - stripped_bytes
        counts.document_bytes += text_bytes
        if not all(texts):
            positions = list(itertools.compress(positions, texts))
            texts = list(filter(None, texts))
            counts.empty_documents += len(raws) - len(texts) if count_empty else 0
        counts.documents += len(texts)
        return texts, positions


# ---- folders


def _list_folder(
    folder: Path, skip_unknown: bool | None, excluded: frozenset[str]
) -> tuple[list[SourceFile], int, list[str]]:
    """The files, the number of hidden ones, and the paths of those whose type is unknown."""
    files: list[SourceFile] = []
    skipped: list[str] = []
    hidden = 0
    visited: set[str] = set()

    def refuse(error: OSError) -> None:
        raise SourceError(f"cannot read folder {error.filename}: {error.strerror}")

    for place, folders, names in os.walk(folder, followlinks=True, onerror=refuse):
        real = os.path.realpath(place)
        if real in visited or real in excluded:
            folders.clear()
            continue
        visited.add(real)
        hidden += sum(name.startswith(".") for name in [*names, *folders])
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            path = Path(place) / name
            if not name.startswith(".") and not (excluded and os.path.realpath(path) in excluded):
                if skip_unknown and find_suffix(path) is None:
                    skipped.append(str(path))
                elif skip_unknown is False and find_suffix(path) is None:
                    raise SourceError(f"{unknown_type(path, SUFFIXES)}; --skip-unknown leaves such files out")
                else:
                    files.append(_source_file(path, path.relative_to(folder).as_posix()))
    return files, hidden, skipped


def _source_file(path: Path, name: str) -> SourceFile:
    if find_suffix(path) is None:
        raise unknown_type(path, SUFFIXES)
    if not path.is_file():
        raise SourceError(f"cannot read {path}: not a regular file")
    try:
        status = path.stat()
        readable = os.fsencode(name).decode("utf-8", "backslashreplace")  # a name may be any bytes
        return SourceFile(path, readable, status.st_size, status.st_mtime_ns)
    except OSError as error:
        raise SourceError(f"cannot read {path}: {error.strerror}") from None


# ---- documents that are no text files


def _read_document_files(
    files: Sequence[SourceFile], text_key: str, conversions: Conversions, *, is_strict: bool
) -> Generator[list[DocumentText], None, None]:
    """The documents of each file that has a reader, in order. is_strict: raise SourceError for one
    that cannot be read, in whole or in part."""
    found = [(file.path, suffix) for file in files if (suffix := find_suffix(file.path)) in DOCUMENT_SUFFIXES]
    readers = conversions.document_files
    with contextlib.closing(readers.read(found, text_key)) as answers:
        for texts in answers:
            if is_strict and (bad := readers.describe_unread()):
                raise SourceError(f"cannot read all documents: {bad[0]}")
            yield texts


def _cut_documents(
    file: SourceFile, found: list[DocumentText], boundary: Boundary, cleaner: _Cleaner, counts: SourceCounts
) -> Iterator[tuple[str, list[bytes], list[int]]]:
    """The names, texts and positions of the documents in a file with a reader, cut as the text of a
    text file; rows are not cut."""
    if not found:
        counts.unread_bytes += file.num_bytes
        return
    counts.container_bytes += file.num_bytes
    for text, name, row in found:
        end = 0
        if row:  # a document as it is
            raw = text.encode("utf-8")
            counts.container_bytes -= len(raw)
            yield name, *cleaner.clean([raw], [row])
            continue
        for raws, boundary_sizes in _cut(text.encode("utf-8"), iter(()), boundary):
            begin = end
            *positions, end = itertools.accumulate(map(operator.add, map(len, raws), boundary_sizes), initial=begin)
            counts.container_bytes -= end - begin
            counts.separator_bytes += sum(boundary_sizes)
            is_rest = boundary_sizes == [0] and begin > 0
            yield name, *cleaner.clean(raws, positions, count_empty=not (is_rest or isinstance(boundary, re.Pattern)))


# ---- text files


def _read_text(
    file: SourceFile, boundary: Boundary, cleaner: _Cleaner, counts: SourceCounts, conversions: Conversions
) -> Iterator[tuple[list[bytes], list[int]]]:
    """The documents of a text file and their positions. Blank blocks, and blank text after the last
    separator, count as whitespace and not as empty documents."""
    chunks = utf8_chunks(file.path, conversions)
    start = next(chunks)
    bom_bytes = len(BOM) if start.startswith(BOM) else 0
    counts.container_bytes += bom_bytes
    counts.source_bytes += bom_bytes
    end = bom_bytes
    for raws, boundary_sizes in _cut(start[bom_bytes:], chunks, boundary):
        begin = end
        *positions, end = itertools.accumulate(map(operator.add, map(len, raws), boundary_sizes), initial=begin)
        counts.source_bytes += end - begin
        counts.separator_bytes += sum(boundary_sizes)
        is_rest = boundary_sizes == [0] and begin > bom_bytes
        yield cleaner.clean(raws, positions, count_empty=not (is_rest or isinstance(boundary, re.Pattern)))
    if is_gzipped(file.path) or str(file.path) in conversions.converted:
        counts.source_bytes += file.num_bytes - end
        counts.container_bytes += file.num_bytes - end


def _cut(start: bytes, chunks: Iterator[bytes], boundary: Boundary) -> Iterator[tuple[list[bytes], list[int]]]:
    """Cut a stream of bytes into texts and the sizes of the boundaries after them. The last text
    comes alone, with size 0.

    Blank lines that the end of a chunk cuts may become two boundaries with a blank text between.
    """
    buffer = bytearray(start)
    scan = 0  # no boundary begins before this offset
    wanted = 0  # bytes in the buffer at which the next scan is worth its time
    is_last = False
    while True:
        if isinstance(boundary, bytes):
            if buffer.find(boundary, scan) >= 0:
                *raws, rest = bytes(buffer).split(boundary)
                yield raws, [len(boundary)] * len(raws)
                buffer = bytearray(rest)
            scan = max(0, len(buffer) - len(boundary) + 1)
        elif boundary is not None and (len(buffer) >= wanted or is_last):
            pattern = boundary if any(end in buffer for end in _OTHER_ENDS) else _OF_LF[boundary]
            if pattern.search(buffer, scan):
                *pieces, rest = pattern.split(bytes(buffer))
                yield pieces[::2], list(map(len, pieces[1::2]))
                buffer, scan = bytearray(rest), 0
            scan += len(buffer[scan:].rstrip(_BLANK_BYTES))
            wanted = 2 * len(buffer) - scan  # however long the blanks are, they are scanned a few times at most
        if is_last:
            yield [bytes(buffer)], [0]
            return
        chunk = next(chunks, None)
        is_last = chunk is None
        buffer += chunk or b""

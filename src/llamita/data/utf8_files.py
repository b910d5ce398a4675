"""Reads UTF-8 text files in chunks or lines, and says what is wrong with files that are not."""

from __future__ import annotations

import codecs
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from llamita.errors import SourceError

BOM = b"\xef\xbb\xbf"
_CHUNK_BYTES = 1 << 20
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


def open_file(path: Path) -> IO[bytes]:
    """Open a file for reading. Raises SourceError."""
    try:
        return open(path, "rb")
    except OSError as error:
        raise SourceError(f"cannot read {path}: {error.strerror or error}") from None


def read_chunk(stream: IO[bytes], path: Path) -> bytes:
    """The next chunk of bytes, empty at the end of the file. Raises SourceError."""
    try:
        return stream.read(_CHUNK_BYTES)
    except OSError as error:
        raise SourceError(f"cannot read {path}: {error.strerror or error}") from None


def utf8_chunks(stream: IO[bytes], path: Path) -> Iterator[bytes]:
    """The bytes of a file, in at least one chunk. Raises SourceError unless they are UTF-8 text."""
    decoder = codecs.getincrementaldecoder("utf-8")("strict")
    offset = 0
    while True:
        chunk = read_chunk(stream, path)
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
                f"cannot read {path}: byte {at:,} is not UTF-8; {_guess_encoding(pending + chunk, error)}"
            ) from None
        if (nul := chunk.find(b"\0")) >= 0:
            raise SourceError(f"cannot read {path}: byte {offset + nul:,} is NUL: this is binary data, not text")
        if chunk or offset == 0:
            yield chunk
        if not chunk:
            return
        offset += len(chunk)


def read_lines(path: Path) -> Iterator[str]:
    """The lines of a UTF-8 file with their line ends, without a BOM. Raises SourceError."""
    with open_file(path) as stream:
        rest = b""
        first = True
        for chunk in utf8_chunks(stream, path):
            chunk = chunk[len(BOM) :] if first and chunk.startswith(BOM) else chunk
            first = False
            *lines, rest = (rest + chunk).split(b"\n")
            for line in lines:
                yield line.decode("utf-8") + "\n"
        if rest:
            yield rest.decode("utf-8")


def _guess_encoding(data: bytes, error: UnicodeDecodeError) -> str:
    """Guess from the bytes around the first invalid one what the file is."""
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

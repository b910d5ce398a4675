"""Reads UTF-8 text files, plain or gzipped, and says what is wrong with files that are not."""

from __future__ import annotations

import codecs
import gzip
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from llamita.errors import SourceError

BOM = b"\xef\xbb\xbf"
_CHUNK_BYTES = 1 << 20
GZIP_SUFFIX = ".gz"
# Text shrinks 3 to 20 times, deflate's limit is 1,032: what exceeds both of these is a bomb.
MAX_GZIP_RATIO, MIN_GZIP_BYTES = 200, 64 << 20
_LONE_CR = re.compile(r"\r(?!\n)|\r?\n")
_NEAR_BYTES = 2000  # around a bad byte, to guess what a file is
_MAGIC = (
    (b"\xff\xfe\0\0", "UTF-32 text (convert it: iconv -f UTF-32 -t UTF-8)"),
    (b"\0\0\xfe\xff", "UTF-32 text (convert it: iconv -f UTF-32 -t UTF-8)"),
    (b"\xff\xfe", "UTF-16 text (convert it: iconv -f UTF-16 -t UTF-8)"),
    (b"\xfe\xff", "UTF-16 text (convert it: iconv -f UTF-16 -t UTF-8)"),
    (b"%PDF", "a PDF"),
    (b"PK\x03\x04", "a ZIP archive or an office document"),
    (b"\x1f\x8b", "a gzip file (unpack it, or let its name end with .gz)"),
    (b"\x28\xb5\x2f\xfd", "a zstd file (unpack it first)"),
    (b"PAR1", "a parquet file"),
    (b"GGUF", "a GGUF model"),
    (b"\x89PNG", "a picture"),
    (b"\xff\xd8\xff", "a picture"),
    (b"\x7fELF", "a program"),
)


def open_file(path: Path) -> IO[bytes]:
    """Open a file for reading, as it is on the disk. Raises SourceError."""
    try:
        return open(path, "rb")
    except OSError as error:
        raise SourceError(f"cannot read {path}: {error.strerror or error}") from None


def is_gzipped(path: Path) -> bool:
    return path.name.lower().endswith(GZIP_SUFFIX)


def read_chunk(stream: IO[bytes], path: Path) -> bytes:
    """The next chunk of bytes, empty at the end of the file. Raises SourceError."""
    try:
        return stream.read(_CHUNK_BYTES)
    except OSError as error:
        raise SourceError(f"cannot read {path}: {error.strerror or error}") from None


def _text_bytes(path: Path) -> Iterator[bytes]:
    """The bytes of a file, unpacked if its name ends with .gz; the last chunk is empty."""
    with open_file(path) as stream:
        if not is_gzipped(path):
            while chunk := read_chunk(stream, path):
                yield chunk
            yield b""
            return
        found = 0
        try:
            with gzip.GzipFile(fileobj=stream) as unpacked:
                while chunk := unpacked.read(_CHUNK_BYTES):
                    found += len(chunk)
                    if found > max(MIN_GZIP_BYTES, MAX_GZIP_RATIO * stream.tell()):
                        raise SourceError(
                            f"cannot read {path}: it expands more than {MAX_GZIP_RATIO} times: expected text, which "
                            "never does; unpack it if you trust it"
                        )
                    yield chunk
            if stream.tell() == 0:
                raise EOFError("it is empty")
        except (EOFError, zlib.error, OSError) as error:
            raise SourceError(
                f"cannot read {path}: after {found:,} unpacked bytes: expected a complete gzip file, found a "
                f"damaged one or one cut off ({' '.join(str(error).split())[:120]}); copy it again"
            ) from None
        yield b""


def utf8_chunks(path: Path) -> Iterator[bytes]:
    """The text of a file as bytes, in at least one chunk. Raises SourceError unless it is UTF-8."""
    decoder = codecs.getincrementaldecoder("utf-8")("strict")
    offset = 0
    for chunk in _text_bytes(path):
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
                f"cannot read {path}: byte {at:,} is not UTF-8; "
                f"{_guess_encoding(pending + chunk, error, offset - len(pending))}"
            ) from None
        if (nul := chunk.find(b"\0")) >= 0:
            raise SourceError(f"cannot read {path}: byte {offset + nul:,} is NUL{_guess_nul(chunk, nul, offset)}")
        if chunk or offset == 0:
            yield chunk
        offset += len(chunk)


def read_lines(path: Path) -> Iterator[str]:
    """The lines of a UTF-8 file with their line ends (LF, CRLF or CR), without byte order marks,
    which stand inside a file that was joined from several. Raises SourceError."""
    parts: list[bytes] = []  # of a line that is not complete
    for chunk in utf8_chunks(path):
        *lines, rest = chunk.split(b"\n")
        for line in lines:
            parts.append(line)
            yield from _line(b"".join(parts) + b"\n")
            parts = []
        parts.append(rest)
    if last := b"".join(parts):
        yield from _line(last)


def _line(line: bytes) -> Iterator[str]:
    """A line, or several if it has line ends of the old Macintosh."""
    text = (line.replace(BOM, b"") if BOM in line else line).decode("utf-8")
    if "\r" not in text or (text.find("\r") >= len(text) - 2 and text.endswith("\r\n")):
        yield text
        return
    start = 0
    for end in _LONE_CR.finditer(text):
        yield text[start : end.end()]
        start = end.end()
    if start < len(text):
        yield text[start:]


def _guess_encoding(data: bytes, error: UnicodeDecodeError, offset: int) -> str:
    """Guess from the bytes around the first invalid one what the file is. data begins at `offset`."""
    first = max(0, error.start - _NEAR_BYTES)
    near = data[first : error.start + _NEAR_BYTES]
    if error.reason == "unexpected end of data":
        return "the file ends inside a character: was it cut off?"
    if (name := _utf16_name(near, offset + first)) is not None:
        return _UTF16.format(name)
    controls = sum(byte < 32 and byte not in b"\t\n\v\f\r\x1b" for byte in near)
    if controls * 50 > len(near) or b"\0" in near:
        return "it looks like binary data, not text"
    high = [i for i, byte in enumerate(near[:-1]) if byte >= 128]
    paired = sum(near[i + 1] >= 128 for i in high)
    if high and paired * 3 > len(high) * 2:
        return "it looks like GB18030, Big5 or Shift-JIS: convert it (iconv -f GB18030 -t UTF-8)"
    return "it looks like Latin-1 or Windows-1252: convert it (iconv -f WINDOWS-1252 -t UTF-8)"


_UTF16 = "it looks like {0} text without a byte order mark: convert it (iconv -f {0} -t UTF-8)"


def _guess_nul(chunk: bytes, nul: int, offset: int) -> str:
    """What a NUL in otherwise valid UTF-8 means. chunk begins at `offset`."""
    first = max(0, nul - _NEAR_BYTES)
    near = chunk[first : nul + _NEAR_BYTES]
    if (name := _utf16_name(near, offset + first)) is not None:
        return "; " + _UTF16.format(name)
    controls = sum(byte < 32 and byte not in b"\t\n\v\f\r\x1b" for byte in near)
    if controls * 50 > len(near):
        return ": this is binary data, not text"
    return " in the middle of text: remove it (tr -d '\\000' < FILE)"


def _utf16_name(near: bytes, offset: int) -> str | None:
    """UTF-16LE or UTF-16BE if bytes that begin at `offset` of a file are such text with spaces or
    line ends, whose high bytes are NUL."""
    near = near[offset % 2 :]
    near = near[: len(near) // 2 * 2]
    for name, high in (("UTF-16LE", 1), ("UTF-16BE", 0)):
        if len(near) < 16 or not near[high::2].count(0) > 8 * near[1 - high :: 2].count(0):
            continue
        text = near.decode(name, "replace")
        if sum(letter.isprintable() or letter.isspace() for letter in text[1:-1]) >= 0.97 * (len(text) - 2):
            return name
    return None

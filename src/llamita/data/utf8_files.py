"""Reads text files, plain or gzipped, as UTF-8: converts other encodings, and says what is wrong
with files that are no text."""

from __future__ import annotations

import codecs
import collections
import gzip
import itertools
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from llamita.data.document_files import DocumentFiles
from llamita.data.encodings import (
    SAMPLE_BYTES,
    Found,
    Unsure,
    describe_mojibake,
    detect,
    find_codec,
    find_seven_bit,
    find_utf8_run,
    utf8_letter_bytes,
)
from llamita.errors import ConfigError, SourceError

BOM = b"\xef\xbb\xbf"
_CHUNK_BYTES = 1 << 20
GZIP_SUFFIX = ".gz"
# Text shrinks 3 to 20 times, deflate's limit is 1,032: what exceeds both of these is a bomb.
MAX_GZIP_RATIO, MIN_GZIP_BYTES = 200, 64 << 20
_ANY_LINE = re.compile(r"[^\r\n]*(?:\r\n?|\n)|[^\r\n]+")
_NEAR_BYTES = 2000  # around a bad byte, to guess what a file is
_MAGIC = (
    (b"\xff\xfe\0\0", "UTF-32 text (convert it: iconv -f UTF-32 -t UTF-8)"),
    (b"\0\0\xfe\xff", "UTF-32 text (convert it: iconv -f UTF-32 -t UTF-8)"),
    (b"\xff\xfe", "UTF-16 text (leave --encoding utf-8 out)"),
    (b"\xfe\xff", "UTF-16 text (leave --encoding utf-8 out)"),
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
_CUT_ESCAPE = re.compile(rb"\x1b(?:\$\(?)?\Z")  # of ISO-2022-JP
_CONTROL = re.compile(rb"[\0-\x08\x0e-\x1f]")
_UTF16_BOMS = {b"\xff\xfe": Found("utf-16-le", "UTF-16LE"), b"\xfe\xff": Found("utf-16-be", "UTF-16BE")}
_REPLACED = "\ufffd".encode()
MIN_REPLACED = 3  # a text may well speak of U+FFFD once
MAX_NAMED_FILES = 3


def binary_kind(start: bytes) -> str | None:
    """What a file is that begins with these bytes and is no text; None if it may be text. A text may
    begin with the letters GGUF too: in a model a number follows."""
    for magic, name in _MAGIC:
        if start.startswith(magic) and (not magic.isalnum() or _CONTROL.search(start, len(magic), 8)):
            return name
    return None


class Conversions:
    """The encoding that files are read as, and what was found in them; the readers of documents.
    encoding: None to recognize it in each file, utf-8 to refuse everything else. Raises ConfigError
    if it has no codec."""

    def __init__(self, encoding: str | None = None) -> None:
        self.asked = None if encoding is None else find_codec(encoding)
        if encoding is not None and self.asked is None:
            raise ConfigError(
                f"--encoding: expected the name of an encoding, such as gb18030, big5, shift-jis, euc-kr, utf-16, "
                f"windows-1252 or utf-8, found {encoding[:80]!r}"
            )
        self.converted: dict[str, str] = {}  # file → encoding
        self.damaged: dict[str, str] = {}  # file → what happened to it
        self.not_read: list[str] = []  # in folders of examples: files of other types, and folders
        self.document_files = DocumentFiles()

    def describe_converted(self) -> str:
        """One line: encodings, how many files, and which; "" if all was UTF-8."""
        by_name: dict[str, list[str]] = collections.defaultdict(list)
        for path, name in self.converted.items():
            by_name[name].append(path)
        return "; ".join(
            f"{len(paths):,} file{'' if len(paths) == 1 else 's'} converted from {name} ({_few(paths)})"
            for name, paths in by_name.items()
        )

    def describe_damaged(self) -> str:
        """One line about files that were converted wrongly before; "" if there are none."""
        first = [f"{path}: {what}" for path, what in itertools.islice(self.damaged.items(), MAX_NAMED_FILES)]
        more = len(self.damaged) - len(first)
        return "; ".join(first) + (f"; and {more:,} more files" if more else "")

    def describe(self) -> list[str]:
        """All lines, without those that are empty."""
        damaged, others = self.describe_damaged(), _few(self.not_read)
        lines = (
            self.describe_converted(), damaged and f"damaged: {damaged}",
            others and f"not read, because they are not files of examples: {others}", *self.document_files.describe(),
        )  # fmt: skip
        return [line for line in lines if line]


def _few(paths: list[str]) -> str:
    more = len(paths) - MAX_NAMED_FILES
    return ", ".join(paths[:MAX_NAMED_FILES]) + (f" and {more:,} more" if more > 0 else "")


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


def utf8_chunks(path: Path, conversions: Conversions | None = None) -> Iterator[bytes]:
    """The text of a file as bytes of UTF-8, in at least one chunk, converted if it is in another
    encoding. Raises SourceError. Adds to `conversions`."""
    conversions = conversions or Conversions()
    replaced, is_examined = 0, False
    for chunk in _as_utf8(path, conversions):
        replaced += chunk.count(_REPLACED)
        if not is_examined and not chunk.isascii():
            is_examined = True
            if (damage := describe_mojibake(chunk.decode("utf-8", "ignore"))) is not None:
                conversions.damaged[str(path)] = damage
        yield chunk
    if replaced >= MIN_REPLACED:
        conversions.damaged.setdefault(
            str(path), f"it holds {replaced:,} replacement characters (U+FFFD): its letters were lost"
        )


def _as_utf8(path: Path, conversions: Conversions) -> Iterator[bytes]:
    """Bytes of ASCII are the same in every encoding but UTF-16 and those with escapes; the first others
    decide."""
    chunks = _text_bytes(path)
    found, offset = conversions.asked, 0
    unsure = Unsure(())
    if found is None:
        for chunk in chunks:
            while offset == 0 and len(chunk) < SAMPLE_BYTES and (more := next(chunks, b"")):
                chunk += more
            is_known = offset == 0 and binary_kind(chunk) is not None
            is_plain = chunk.isascii() and b"\0" not in chunk and find_seven_bit(chunk) is None
            if chunk and is_plain and not is_known and not _CUT_ESCAPE.search(chunk):
                yield chunk
                offset += len(chunk)
                continue
            sample, more = chunk, chunk
            while more and (len(sample) < SAMPLE_BYTES or _CUT_ESCAPE.search(sample)) and (more := next(chunks, b"")):
                sample += more
            chunks = itertools.chain([sample] if sample else [], chunks, [b""])
            recognized = _recognize(sample, offset)
            if isinstance(recognized, Found):
                found = recognized
            else:
                unsure = recognized or unsure
            break
    if found is None or found.codec == "utf-8":
        yield from _checked(path, chunks, offset, unsure)
        return
    conversions.converted[str(path)] = found.name
    yield from _converted(path, chunks, offset, found, is_asked=conversions.asked is not None)


def _recognize(sample: bytes, offset: int) -> Found | Unsure | None:
    """The encoding of a file from `offset`, where the first bytes are that are not ASCII; None for
    UTF-8, and for what is no text."""
    if offset == 0 and (found := _UTF16_BOMS.get(sample[:2])) and sample[:4] != b"\xff\xfe\0\0":
        return found
    if offset == 0 and binary_kind(sample) is not None:
        return None
    if (seven := find_seven_bit(sample)) is not None:
        return seven
    first = next((i for i, byte in enumerate(sample) if byte >= 0x80 or not byte), 0)
    near = sample[0 if first < SAMPLE_BYTES // 2 else first // 2 * 2 :][:SAMPLE_BYTES]
    if b"\0" not in near:
        try:
            codecs.getincrementaldecoder("utf-8")("strict").decode(near)
            return None
        except UnicodeDecodeError:
            high = sum(byte >= 0x80 for byte in near)
            if utf8_letter_bytes(near) > 0.7 * high:  # UTF-8 with a bad byte
                return None
    return detect(near)


def _converted(path: Path, chunks: Iterator[bytes], offset: int, found: Found, *, is_asked: bool) -> Iterator[bytes]:
    decoder = codecs.getincrementaldecoder(found.codec)("strict")
    is_first = True
    for chunk in chunks:
        pending = decoder.getstate()[0]
        if not found.codec.startswith("utf-16") and (mixed := find_utf8_run(pending + chunk)) is not None:
            raise SourceError(
                f"cannot read {path}: byte {offset - len(pending) + mixed:,}: expected {found.name}, found UTF-8: the "
                "file mixes two encodings; convert its parts separately, then join them"
            )
        try:
            text = decoder.decode(chunk, final=not chunk)
        except UnicodeDecodeError as error:
            at = offset - len(pending) + error.start
            why = "as --encoding says" if is_asked else "which the text before it is; choose with --encoding NAME"
            raise SourceError(f"cannot read {path}: byte {at:,} is not {found.name}, {why}") from None
        if (nul := text.find("\0")) >= 0:
            at = offset - len(pending) + len(text[:nul].encode(found.codec))
            raise SourceError(f"cannot read {path}: byte {at:,} of {found.name} text is NUL; remove it")
        if is_first:
            text = text.removeprefix("\ufeff")
        if text or (is_first and not chunk):
            yield text.encode("utf-8")
            is_first = False
        offset += len(chunk)


def _checked(path: Path, chunks: Iterator[bytes], start: int, unsure: Unsure) -> Iterator[bytes]:
    """Chunks of UTF-8, which begin at `start`. Raises SourceError at the first byte that is not."""
    decoder = codecs.getincrementaldecoder("utf-8")("strict")
    offset = start
    for chunk in chunks:
        pending = decoder.getstate()[0]
        if offset == 0:
            kind = binary_kind(chunk)
            if kind is not None:
                raise SourceError(f"cannot read {path}: byte 0: expected UTF-8 text, found {kind}")
        try:
            decoder.decode(chunk, final=not chunk)
        except UnicodeDecodeError as error:
            at = offset - len(pending) + error.start
            raise SourceError(
                f"cannot read {path}: byte {at:,} is not UTF-8; "
                f"{_guess_encoding(pending + chunk, error, offset - len(pending), unsure)}"
            ) from None
        if (nul := chunk.find(b"\0")) >= 0:
            raise SourceError(f"cannot read {path}: byte {offset + nul:,} is NUL{_guess_nul(chunk, nul, offset)}")
        if chunk or offset == 0:
            yield chunk
        offset += len(chunk)


def read_lines(path: Path, conversions: Conversions | None = None) -> Iterator[str]:
    """The lines of a text file with their line ends (LF, CRLF or CR), without byte order marks,
    which stand inside a file that was joined from several. Raises SourceError."""
    parts: list[bytes] = []  # of lines that are not complete
    for chunk in utf8_chunks(path, conversions):
        end = chunk.rfind(b"\n") + 1
        parts.append(chunk[:end] if end else chunk)
        if end:
            yield from split_lines(b"".join(parts))
            parts = [chunk[end:]]
    if last := b"".join(parts):
        yield from split_lines(last)


def split_lines(data: bytes) -> list[str]:
    """The lines of UTF-8 with their ends, without byte order marks."""
    text = (data.replace(BOM, b"") if BOM in data else data).decode("utf-8")
    if "\r" in text:
        return _ANY_LINE.findall(text)
    *lines, last = text.split("\n")
    return [f"{line}\n" for line in lines] + ([last] if last else [])


def _guess_encoding(data: bytes, error: UnicodeDecodeError, offset: int, unsure: Unsure) -> str:
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
    if (name := _other_lines(data)) is not None:
        return f"the file mixes UTF-8 and {name}: convert its parts separately, then join them"
    if utf8_letter_bytes(near) > 0.7 * sum(byte >= 0x80 for byte in near):
        return "the rest near it is UTF-8: this character is damaged"
    if not unsure.candidates and isinstance(found := detect(data[first : first + SAMPLE_BYTES]), Found):
        return f"it looks like {found.name}: say so with --encoding {found.codec}"
    high = [i for i, byte in enumerate(near[:-1]) if byte >= 128]
    paired = sum(near[i + 1] >= 128 for i in high)
    names = [name for name in unsure.candidates if name != "Windows-1252"]
    one_byte = "Latin-1, Windows-1252 or another encoding of one byte a letter"
    if high and paired * 3 > len(high) * 2 and names:
        names.append(one_byte)
    else:
        names.insert(0, one_byte)
    return f"it looks like {', or '.join(names)}: say which with --encoding NAME"


def _other_lines(data: bytes) -> str | None:
    """The encoding of the lines that are not UTF-8, if other lines are; None for damaged UTF-8."""
    has_utf8, others = False, b""
    for line in data.splitlines(keepends=True):
        try:
            line.decode("utf-8")
            has_utf8 |= not line.isascii()
        except UnicodeDecodeError:
            others += line
    is_damaged = 2 * utf8_letter_bytes(others) > sum(byte >= 0x80 for byte in others)
    found = None if is_damaged or not has_utf8 else detect(others)
    return found.name if isinstance(found, Found) else None


_UTF16 = "it looks like {0} text without a byte order mark: say so with --encoding {0}"


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

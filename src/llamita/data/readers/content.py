"""What readers of documents return and raise, and what they share: text without damage from its
layout."""

from __future__ import annotations

import dataclasses
import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator

from llamita.data.encodings import Found, detect, find_seven_bit

CELL = " | "  # between the cells of a table's row
_LIGATURES = {code: unicodedata.normalize("NFKC", chr(code)) for code in range(0xFB00, 0xFB07)}
_DROPPED = dict.fromkeys([*range(9), 0x0B, *range(0x0E, 0x20), 0x7F, 0xAD, 0x200B, 0x2060, 0xFEFF, 0xFFFE, 0xFFFF])
_SPACES = dict.fromkeys([0x09, 0x0A, 0x0C, 0x0D, 0x85, 0xA0, *range(0x2000, 0x200B), 0x2028, 0x2029, 0x202F, 0x205F])
_CLEAN = str.maketrans({**_LIGATURES, **_DROPPED, **dict.fromkeys(_SPACES, " ")})
# Scripts that are written without spaces between words: ideographs, kana, their punctuation.
CJK = (
    "\u2e80-\u2fdf\u3001-\u303f\u3040-\u30ff\u3100-\u312f\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\uff00-\uffef"
    "\U00020000-\U0003ffff"
)
_BLANKS = re.compile(" {2,}")


class ReaderError(Exception):
    """A document cannot be read: what is wrong with it, and what to do."""


class ScanError(ReaderError):
    """A document of pictures."""

    def __init__(self, num_pages: int) -> None:
        super().__init__(f"it has no text, only pictures on {num_pages:,} page{'s' * (num_pages != 1)}")
        self.num_pages = num_pages


@dataclasses.dataclass(frozen=True)
class Text:
    """The text of one document. name: its place in an archive, "" outside of one. notes: what was
    left out. row: its number, from 1, if it is the row of a file."""

    text: str
    name: str = ""
    notes: tuple[str, ...] = ()
    row: int = 0


@dataclasses.dataclass(frozen=True)
class Member:
    """A file in an archive or a mail; or why it cannot be read."""

    name: str
    data: bytes = b""
    error: str = ""


Reader = Callable[[bytes], Iterator[Text | Member]]


def clean(text: str) -> str:
    """The text of a paragraph in one line, with plain spaces, ligatures as letters, and without
    characters that no one sees."""
    return _BLANKS.sub(" ", text.translate(_CLEAN)).strip()


def clean_lines(text: str) -> str:
    """The same of every line, without blank ones."""
    return "\n".join(filter(None, map(clean, text.splitlines())))


def join_cells(cells: Iterable[str]) -> str:
    """A row of a table as one line; "" if all cells are empty."""
    joined = CELL.join(cell.replace("\n", " ") for cell in cells)
    return "" if not joined.replace("|", "").strip() else joined.strip()


def join_blocks(blocks: Iterable[str]) -> str:
    """Paragraphs and tables with blank lines between."""
    return "\n\n".join(filter(None, (block.strip() for block in blocks)))


def decode(data: bytes, declared: str | None = None) -> str:
    """The text of bytes: by their byte order mark, in ISO-2022-JP or another encoding of 7 bits, as
    UTF-8, in the declared encoding, or in the one that they look like. Raises ReaderError."""
    for mark, codec in ((b"\xef\xbb\xbf", "utf-8"), (b"\xff\xfe", "utf-16-le"), (b"\xfe\xff", "utf-16-be")):
        if data.startswith(mark):
            return data[len(mark) :].decode(codec, "replace")
    if (seven := find_seven_bit(data, declared)) is not None:
        return data.decode(seven.codec, "replace")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        wrong = error
    # As browsers do: pages that say GB2312 or Latin-1 mean their larger successors.
    known = {"gb2312": "gb18030", "gbk": "gb18030", "iso-8859-1": "cp1252", "latin-1": "cp1252", "ascii": "cp1252"}
    if declared is not None and declared.lower() not in ("utf-8", "utf8"):
        try:
            return data.decode(known.get(declared.lower(), declared), "replace")
        except LookupError:
            pass
    found = detect(data[: 1 << 16])
    if isinstance(found, Found):
        return data.decode(found.codec, "replace")
    if len(data) - wrong.start < 4 or declared is not None:
        return data.decode("utf-8", "replace")
    raise ReaderError(f"its encoding is unknown: byte {wrong.start:,} is not UTF-8; convert it to UTF-8")

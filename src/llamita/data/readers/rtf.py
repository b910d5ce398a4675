"""Reads .rtf: the text between its control words, in the code pages that they name."""

from __future__ import annotations

import re
from collections.abc import Iterator

from llamita.data.readers.content import ReaderError, Text, clean_lines, join_blocks, join_cells

_TOKEN = re.compile(
    rb"\\([a-zA-Z]{1,32})(-?\d{1,10})? ?|\\'([0-9a-fA-F]{2})|\\([^a-zA-Z])|([{}])|[\r\n]+|([^\\{}\r\n]+)"
)
# Groups whose content is no text.
_SKIPPED = frozenset((
    "fonttbl", "colortbl", "stylesheet", "info", "pict", "object", "header", "headerl", "headerr", "headerf",
    "footer", "footerl", "footerr", "footerf", "fldinst", "themedata", "colorschememapping", "latentstyles",
    "datastore", "xmlnstbl", "listtable", "listoverridetable", "revtbl", "rsidtbl", "generator", "filetbl",
    "pgptbl", "annotation", "atnid", "atnauthor", "bkmkstart", "bkmkend", "nonshppict", "mmathPr", "listtext",
    "pntext", "xe", "tc", "deleted",
))  # fmt: skip
_CHARACTERS = {
    "tab": " ", "line": "\n", "lquote": "‘", "rquote": "’", "ldblquote": "“", "rdblquote": "”", "bullet": "•",
    "endash": "–", "emdash": "—", "emspace": " ", "enspace": " ", "qmspace": " ",
}  # fmt: skip
_CHARSETS = {
    0: "cp1252", 77: "mac_roman", 128: "cp932", 129: "cp949", 134: "gb18030", 136: "cp950", 161: "cp1253",
    162: "cp1254", 163: "cp1258", 177: "cp1255", 178: "cp1256", 186: "cp1257", 204: "cp1251", 222: "cp874",
    238: "cp1250",
}  # fmt: skip
_MAX_DEPTH = 10_000


class _State:
    """What a group inherits and does not give back."""

    __slots__ = ("codec", "hidden", "skipped", "unicode_skip")

    def __init__(self, codec: str, skipped: bool, hidden: bool, unicode_skip: int) -> None:
        self.codec, self.skipped, self.hidden, self.unicode_skip = codec, skipped, hidden, unicode_skip

    def copy(self) -> _State:
        return _State(self.codec, self.skipped, self.hidden, self.unicode_skip)


def read_rtf(data: bytes) -> Iterator[Text]:
    """Paragraphs, rows of tables, and then footnotes. Raises ReaderError."""
    if not data.lstrip(b"\xef\xbb\xbf \r\n\t").startswith(b"{\\rtf"):
        raise ReaderError("it is no RTF: it does not begin with {\\rtf")
    yield Text(_Rtf().text(data))


class _Rtf:
    """Reads tokens into paragraphs."""

    def __init__(self) -> None:
        self._page = "cp1252"
        self._fonts: dict[int, str] = {}
        self._line: list[str] = []
        self._bytes = bytearray()  # of one code page
        self._blocks: list[str] = []
        self._cells: list[str] = []
        self._rows: list[str] = []
        self._notes: list[str] = []
        self._outer: list[tuple[int, list[str]]] = []  # paragraphs that a footnote interrupts, and its depth
        self._state = _State("cp1252", False, False, 1)

    def text(self, data: bytes) -> str:
        """The text of the file."""
        stack: list[_State] = []
        to_skip = 0  # characters after one in Unicode, for readers that know none
        is_star = False  # after \*: a group to skip if its word is unknown
        font: int | None = None  # in the font table
        in_fonts = 0
        for match in _TOKEN.finditer(data):
            word, number, code, symbol, brace, plain = match.groups()
            state = self._state
            if brace == b"{":
                self._flush()
                if len(stack) > _MAX_DEPTH:
                    raise ReaderError("its groups are nested too deeply")
                stack.append(state)
                self._state = state.copy()
                to_skip, is_star = 0, False
            elif brace == b"}":
                self._flush()
                if self._outer and self._outer[-1][0] == len(stack):
                    note = clean_lines("".join(self._line))
                    self._line = self._outer.pop()[1]
                    self._notes.append(f"[{len(self._notes) + 1}] {note}")
                    self._line.append(f"[{len(self._notes)}]")
                if in_fonts == len(stack):
                    in_fonts = 0
                self._state = stack.pop() if stack else state
                to_skip, is_star = 0, False
            elif word is not None:
                name, value = word.decode("ascii"), int(number) if number else None
                if name == "fonttbl":
                    in_fonts = len(stack)
                if in_fonts and name == "f":
                    font = value
                elif in_fonts and name == "fcharset" and font is not None:
                    self._fonts[font] = _CHARSETS.get(value or 0, self._page)
                if name == "footnote" and not state.skipped:
                    self._flush()
                    self._outer.append((len(stack), self._line))
                    self._line = []
                elif name in _SKIPPED or (is_star and name not in ("shppict", "shpinst", "shptxt")):
                    state.skipped = True
                elif name == "u" and value is not None:
                    self._unicode(value)
                    to_skip = state.unicode_skip
                elif name == "bin":
                    raise ReaderError("it holds binary pictures; save it again without pictures")
                else:
                    self._word(name, value)
                is_star = False
            elif code is not None:
                if to_skip:
                    to_skip -= 1
                elif not (state.skipped or state.hidden):
                    self._bytes.append(int(code, 16))
            elif symbol is not None:
                if symbol == b"*":
                    is_star = True
                elif to_skip:
                    to_skip -= 1
                else:
                    self._symbol(symbol)
            elif plain is not None:
                part = plain[to_skip:]
                to_skip -= min(to_skip, len(plain))
                if not (state.skipped or state.hidden):
                    self._bytes += part
        self._end_paragraph()
        self._end_table()
        return join_blocks([*self._blocks, *self._notes])

    def _symbol(self, symbol: bytes) -> None:
        if self._state.skipped or self._state.hidden:
            return
        if symbol in b"\\{}":
            self._bytes += symbol
        elif symbol in b"\r\n":
            self._end_paragraph()
        elif symbol in (b"~", b"_"):
            self._flush()
            self._line.append(" " if symbol == b"~" else "-")

    def _unicode(self, value: int) -> None:
        self._flush()
        if not (self._state.skipped or self._state.hidden):
            code = value + 65536 if value < 0 else value
            self._line.append(chr(code) if 0 <= code <= 0x10FFFF else "")

    def _word(self, name: str, value: int | None) -> None:
        state = self._state
        if name == "ansicpg" and value:
            self._page = state.codec = {936: "gb18030"}.get(value, f"cp{value}" if value != 10000 else "mac_roman")
            if value == 65001:
                self._page = state.codec = "utf-8"
        elif name == "f" and value is not None:
            self._flush()
            state.codec = self._fonts.get(value, self._page)
        elif name == "uc":
            state.unicode_skip = min(max(value or 0, 0), 100)
        elif name == "v":
            self._flush()
            state.hidden = value != 0
        elif name == "plain":
            self._flush()
            state.hidden = False
        elif state.skipped or state.hidden:
            return
        elif name in _CHARACTERS:
            self._flush()
            self._line.append(_CHARACTERS[name])
        elif name in ("par", "sect", "page", "column"):
            self._end_paragraph()
        elif name == "cell":
            self._flush()
            self._cells.append(clean_lines(_joined(self._line)))
            self._line = []
        elif name == "row":
            self._rows.append(join_cells(self._cells))
            self._cells = []

    def _flush(self) -> None:
        """Decode the bytes so far."""
        if self._bytes:
            try:
                self._line.append(self._bytes.decode(self._state.codec, "replace"))
            except LookupError:
                self._line.append(self._bytes.decode("cp1252", "replace"))
            self._bytes.clear()

    def _end_paragraph(self) -> None:
        self._flush()
        if self._outer or self._cells:
            self._line.append("\n")
            return
        text = clean_lines(_joined(self._line))
        self._line = []
        if text:
            self._end_table()
            self._blocks.append(text)

    def _end_table(self) -> None:
        if rows := [row for row in self._rows if row]:
            self._blocks.append("\n".join(rows))
        self._rows = []


def _joined(pieces: list[str]) -> str:
    r"""The text, with characters that \u wrote as two halves."""
    return "".join(pieces).encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")

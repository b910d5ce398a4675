"""Reads the text of a PDF in the order in which people read it.

PDFium gives characters with their places. Characters make spans, spans that stand side by side
make rows, rows make paragraphs. Columns are found by the empty strip between them; rows whose gaps
are in the same places are a table. What repeats at the edges of pages (headers, footers, page
numbers) is left out.
"""

from __future__ import annotations

import collections
import ctypes
import dataclasses
import itertools
import re
import statistics
from collections.abc import Iterator, Sequence
from typing import Any

from llamita.data.readers.content import CELL, CJK, ReaderError, ScanError, Text, clean, join_blocks

MAX_PAGES = 20_000
MAX_PAGE_CHARACTERS = 200_000
# Lengths are in units of the font size (em) unless they say otherwise.
_SPAN_GAP = 1.2  # a wider gap in a line separates columns or cells
_CELL_GAP = 0.5  # a gap between cells, if other rows of the table have a cell that begins there
_MIN_GUTTER = 0.7
_MIN_PROSE_WIDTH = 11.0  # of the lines of a column; those of a table's cells are shorter
_MIN_PROSE_ROWS = 3
_MAX_CROSSING = 0.3  # share of the spans that may be as wide as both columns
_EDGE = 0.14  # of a page's height, where headers and footers are
_EDGE_ROWS = 3
_PAGE_NUMBER = re.compile(
    r"[-–—·•\[(|]?\s*(?:(?:page|seite|p\.|p|pág\.|página)\s*)?(?:\d{1,4}|[ivxlc]{1,7})"
    r"(?:\s*(?:/|of|von|de|sur)\s*\d{1,4})?\s*[-–—·•\])|]?"
    r"|第\s*\d{1,4}\s*[页頁](?:\s*[,，/]?\s*共\s*\d{1,4}\s*[页頁])?",
    re.IGNORECASE,
)
_BULLET = re.compile(r"(?:[•‣◦▪▫●○■□–—*·➢✓-]|\(?(?:\d{1,3}(?:\.\d{1,3})*|[a-zA-Z]|[ivx]{1,5})[.)]?)")
_LIST_ITEM = re.compile(r"(?:[•‣◦▪▫●○■□*·➢✓-]|\(?(?:\d{1,3}|[a-zA-Z])[.)])\s")
_RULE = re.compile(r"[^\w]*([-=_*.~])\1{5,}[^\w]*")
_ENDS_SENTENCE = re.compile(r"[.!?:;。！？：；…][\"'”’」』)）\]]*$")
_HYPHENS = "-\u00ad\u2010\u0002\ufffe"
_WIDE = "·“”‘’…—"  # of Chinese and of other scripts
_BESIDE_HAN = re.compile(f"[{CJK}]( ?)[A-Za-z0-9]|[A-Za-z0-9]( ?)[{CJK}]")
_WORDS, _CUT_WORD = re.compile(r"\w+(?:-\w+)*"), re.compile(r"\w*[-\u2010]$")
_WORD_END, _WORD_START = re.compile(r"(\w+)[-\u2010]$"), re.compile(r"\w+")
_NO_SPACE = re.compile(f"[{CJK}]")


@dataclasses.dataclass(slots=True)
class Span:
    """Characters of one line without a wide gap. y grows upward."""

    text: str
    left: float
    bottom: float
    right: float
    top: float
    size: float  # of the font
    word_right: float  # of the first word
    parts: tuple[tuple[float, str], ...]  # where it may be cut into cells: places and texts

    @property
    def middle(self) -> float:
        return (self.bottom + self.top) / 2


@dataclasses.dataclass(slots=True)
class Row:
    """Spans side by side, from left to right."""

    spans: list[Span]

    @property
    def left(self) -> float:
        return self.spans[0].left

    @property
    def right(self) -> float:
        return self.spans[-1].right

    @property
    def main(self) -> Span:
        """The longest span: not a bullet."""
        return max(self.spans, key=lambda span: len(span.text))

    @property
    def middle(self) -> float:
        return self.main.middle

    @property
    def size(self) -> float:
        return self.main.size

    @property
    def text(self) -> str:
        return " ".join(span.text for span in self.spans)


@dataclasses.dataclass(slots=True)
class Page:
    """The rows of a page in reading order, column by column, and its height."""

    columns: list[list[Row]]
    height: float

    def rows(self) -> list[Row]:
        return [row for column in self.columns for row in column]


def read_pdf(data: bytes) -> Iterator[Text]:
    """The document's text. Raises ReaderError."""
    import pypdfium2
    import pypdfium2.raw as pdfium

    try:
        document = pypdfium2.PdfDocument(data)
        num_pages = len(document)
    except pypdfium2.PdfiumError as error:
        if "assword" in str(error):
            raise ReaderError("it is encrypted; save it without a password") from None
        raise ReaderError("it is no complete PDF; copy it again") from None
    if num_pages > MAX_PAGES:
        raise ReaderError(f"it has {num_pages:,} pages, expected at most {MAX_PAGES:,}; split it")
    pages, empty = [], 0
    for number in range(num_pages):
        try:
            page = document[number]
        except pypdfium2.PdfiumError:
            empty += 1
            continue
        spans = _spans(page, pdfium)
        empty += not spans
        pages.append(Page([list(_rows(column)) for column in _columns(spans)], page.get_height()))
        page.close()
    if empty == num_pages:
        raise ScanError(num_pages)
    _drop_edges(pages)
    notes = (f"{empty:,} of {num_pages:,} pages without text",) if empty else ()
    yield Text(_text(pages), notes=notes)


# ---- characters to spans


def _spans(page: Any, pdfium: Any) -> list[Span]:
    """The spans of a page, in the order of the file."""
    holder = page.get_textpage()
    text_page = holder.raw
    rotation, width, height = page.get_rotation(), page.get_width(), page.get_height()
    box = pdfium.FS_RECTF()
    place = ctypes.byref(box)
    count = pdfium.FPDFText_CountChars(text_page)
    if count > MAX_PAGE_CHARACTERS:
        raise ReaderError(f"a page has {count:,} characters, expected at most {MAX_PAGE_CHARACTERS:,}")
    builder = _SpanBuilder()
    for index in range(count):
        code = pdfium.FPDFText_GetUnicode(text_page, index)
        if pdfium.FPDFText_IsGenerated(text_page, index) == 1:
            if code in (10, 13):
                builder.is_broken = True
            else:
                builder.add_space()
            continue
        if code in (0, 10, 13) or not pdfium.FPDFText_GetLooseCharBox(text_page, index, place):
            continue
        x0, y0, x1, y1 = box.left, box.bottom, box.right, box.top
        if rotation:
            x0, y0, x1, y1 = _rotate(rotation, x0, y0, x1, y1, width, height)
        if y1 <= y0 or x1 < x0:
            continue
        character = "-" if code in (2, 0xFFFE) else chr(code) if code <= 0x10FFFF else ""
        if not 0xD800 <= code < 0xDC00 and character.isspace():
            if x0 - builder.right < _SPAN_GAP * builder.size:
                builder.add_space()
        elif not builder.extend(character, x0, y0, x1, y1):
            is_turned = not rotation and 0.3 < pdfium.FPDFText_GetCharAngle(text_page, index) < 5.98
            if not is_turned:
                builder.begin(character, x0, y0, x1, y1)
    builder.finish()
    holder.close()
    return builder.spans


class _SpanBuilder:
    """Joins characters to spans. right, size: of the open span; is_broken: a line ended after its
    last character."""

    def __init__(self) -> None:
        self.spans: list[Span] = []
        self.right = self.size = 0.0
        self.is_broken = False
        self._left = self._bottom = self._top = 0.0
        self._word_right: float | None = None
        self._text: list[str] = []
        self._cuts: list[tuple[float, int]] = []  # after gaps that may be between cells

    def begin(self, character: str, x0: float, y0: float, x1: float, y1: float) -> None:
        """Begin a span; the last one must be finished."""
        self._cuts.append((x0, 0))
        self._text.append(character)
        self._left, self._bottom, self.right, self._top = x0, y0, x1, y1
        self.size, self._word_right, self.is_broken = y1 - y0, None, False

    def add_space(self) -> None:
        """Add a space to the open span, if it does not end with one."""
        if self._text and self._text[-1] != " ":
            self._text.append(" ")
            self._word_right = self.right if self._word_right is None else self._word_right

    def extend(self, character: str, x0: float, y0: float, x1: float, y1: float) -> bool:
        """Add a character to the open span and return True; or finish the span, if the character
        stands elsewhere, and return False."""
        if not self._text:
            return False
        em, gap = y1 - y0, x0 - self.right
        overlap = min(self._top, y1) - max(self._bottom, y0)
        is_same = overlap > 0.4 * min(em, self._top - self._bottom) and (
            -0.7 * self.size < gap < _SPAN_GAP * max(self.size, em)
        )
        if not is_same or (self.is_broken and gap > 0.6 * self.size):
            self.finish()
            return False
        text = self._text
        if text[-1] == " " and gap < 0.5 * self.size and _is_cjk(character) and _is_cjk(text[-2:-1]):
            text.pop()
        elif gap > 0.25 * self.size and not (_is_cjk(character) or _is_cjk(text[-1:])):
            self.add_space()
        if gap > _CELL_GAP * self.size:
            self._cuts.append((x0, len(text)))
        text.append(character)
        self.right, self._bottom, self._top = max(self.right, x1), min(self._bottom, y0), max(self._top, y1)
        if len(text) <= 3:  # not that of a bullet
            self.size = em
        self.is_broken = False
        return True

    def finish(self) -> None:
        """End the open span, if there is one."""
        text = clean("".join(self._text))
        if text:
            ends = [start for _, start in self._cuts[1:]] + [len(self._text)]
            parts = tuple(
                (x, clean("".join(self._text[start:end]))) for (x, start), end in zip(self._cuts, ends, strict=True)
            )
            word_right = self.right if self._word_right is None else self._word_right
            self.spans.append(Span(text, self._left, self._bottom, self.right, self._top, self.size, word_right, parts))
        self._text.clear()
        self._cuts.clear()


def _is_cjk(text: str | list[str]) -> bool:
    return bool(text) and _NO_SPACE.match("".join(text)) is not None


def _rotate(
    rotation: int, x0: float, y0: float, x1: float, y1: float, width: float, height: float
) -> tuple[float, float, float, float]:
    """A box as it is seen on a page that viewers turn clockwise. width, height: as seen."""
    if rotation == 90:
        return y0, height - x1, y1, height - x0
    if rotation == 180:
        return width - x1, height - y1, width - x0, height - y0
    return width - y1, x0, width - y0, x1


# ---- spans to columns and rows


def _rows(spans: Sequence[Span]) -> Iterator[Row]:
    """Rows from top to bottom."""
    rest = sorted(spans, key=lambda span: -span.middle)
    while rest:
        first = max(rest[:8], key=lambda span: span.size * (abs(span.middle - rest[0].middle) < 0.3 * rest[0].size))
        near = [span for span in rest if abs(span.middle - first.middle) < 0.5 * first.size] or [rest[0]]
        chosen = set(map(id, near))
        rest = [span for span in rest if id(span) not in chosen]
        yield Row(sorted(near, key=lambda span: span.left))


def _columns(spans: list[Span], depth: int = 0) -> list[list[Span]]:
    """The spans of each column, in reading order; what is as wide as several columns stands between
    what is above and below it."""
    gutter = _gutter(spans) if depth < 4 and len(spans) >= 2 * _MIN_PROSE_ROWS else None
    if gutter is None:
        return [spans] if spans else []
    wide = [span for span in spans if span.left < gutter < span.right]
    narrow = [span for span in spans if not span.left < gutter < span.right]
    edges = sorted({span.middle for span in wide}, reverse=True)
    zones: dict[int, tuple[list[Span], list[Span]]] = collections.defaultdict(lambda: ([], []))
    for span in narrow:
        zones[sum(edge > span.middle for edge in edges)][span.left >= gutter].append(span)
    columns: list[list[Span]] = []
    between: list[Span] = []
    for number in range(len(edges) + 1):
        left, right = zones.get(number, ([], []))
        if left or right:
            if between:
                columns.append(between)
                between = []
            columns += _columns(left, depth + 1) + _columns(right, depth + 1)
        if number < len(edges):
            between += [span for span in wide if span.middle == edges[number]]
    return columns + ([between] if between else [])


def _gutter(spans: list[Span]) -> float | None:
    """The middle of the empty strip between two columns of prose, or None."""
    em = statistics.median(span.size for span in spans)
    low, high = min(span.left for span in spans), max(span.right for span in spans)
    if high - low < 2 * _MIN_PROSE_WIDTH * em:
        return None
    step = em / 4
    cells = min(4000, int((high - low) / step) + 1)
    covered = [0.0] * (cells + 1)
    for span in spans:
        start, end = int((span.left - low) / step), int((span.right - low) / step)
        for cell in range(max(0, start), min(cells, end) + 1):
            covered[cell] += 1
    allowed = max(2, _MAX_CROSSING * len(spans))
    best: tuple[float, float, float] | None = None
    cell = cells // 6
    while cell < cells - cells // 6:
        if covered[cell] <= allowed:
            end = cell
            while end < cells and covered[end] <= allowed:
                end += 1
            # Inside a strip that some wide lines cross, the emptiest part.
            least = min(covered[cell:end])
            inside = [i for i in range(cell, end) if covered[i] == least]
            found = (least, -len(inside), low + (inside[len(inside) // 2] + 0.5) * step)
            if len(inside) * step >= _MIN_GUTTER * em and (best is None or found < best):
                middle = found[2]
                left = [span for span in spans if span.right <= middle]
                right = [span for span in spans if span.left >= middle]
                if _is_prose(left, em) and _is_prose(right, em):
                    best = found
            cell = end
        cell += 1
    return None if best is None else best[2]


def _is_prose(spans: list[Span], em: float) -> bool:
    """Whether the spans are lines of text, and not cells of a table."""
    rows = list(_rows(spans)) if len(spans) >= _MIN_PROSE_ROWS else []
    if len(rows) < _MIN_PROSE_ROWS:
        return False
    widths = sorted(max(span.right - span.left for span in row.spans) for row in rows)
    return widths[len(widths) // 2] >= _MIN_PROSE_WIDTH * em and widths[-1] >= 1.2 * _MIN_PROSE_WIDTH * em


# ---- headers, footers, page numbers


def _drop_edges(pages: list[Page]) -> None:
    """Remove page numbers, and rows that stand at the edge of several pages."""
    places: dict[tuple[str, int], set[int]] = collections.defaultdict(set)
    edges: list[tuple[int, Row, tuple[str, int]]] = []
    lowest: dict[int, Row] = {}
    for number, page in enumerate(pages):
        rows = sorted(page.rows(), key=lambda row: -row.middle)
        top = [row for row in rows[:_EDGE_ROWS] if row.middle > (1 - _EDGE) * page.height]
        low = [row for row in rows[-_EDGE_ROWS:] if row.middle < _EDGE * page.height]
        if rows:
            lowest[number] = rows[-1]
        for row in (*top, *low):
            key = (re.sub(r"\d+|\b[ivxlc]+\b", "#", row.text), round(row.middle / 4))
            edges.append((number, row, key))
            places[key].add(number)
    dropped: set[int] = set()
    for number, row, (text, place) in edges:
        on = set().union(*(places.get((text, place + shift), set()) for shift in (-1, 0, 1)))
        repeats = len(on) >= 3 or (len(on) == 2 and len(pages) <= 4)
        is_number = _PAGE_NUMBER.fullmatch(row.text) and (
            len(pages) > 1 or not row.text.isdigit() or row is lowest.get(number)
        )
        if repeats or is_number:
            dropped.add(id(row))
    if len(dropped) < sum(len(page.rows()) for page in pages):
        for page in pages:
            page.columns = [[row for row in column if id(row) not in dropped] for column in page.columns]


# ---- rows to text


class _Writer:
    """Joins rows to paragraphs, also across columns and pages."""

    def __init__(self, words: collections.Counter[str], *, spaces_beside_han: bool) -> None:
        self._words = words
        self._spaces_beside_han = spaces_beside_han  # between ideographs and Latin letters or digits
        self._blocks: list[str] = []
        self._notes: list[str] = []  # footnotes wait for the end of the paragraph they interrupt
        self._open = ""  # a paragraph that may go on
        self._may_go_on = False
        self._size = 0.0

    def block(self, text: str, size: float = 0, *, joins: bool = False, goes_on: bool = False) -> None:
        """Add a paragraph. joins: it may be the rest of the last one, if that one goes on."""
        if joins and self._may_go_on and abs(size - self._size) < 0.1 * size and _continues(self._open, text):
            self._open = self.join(self._open, text)
        else:
            self.finish()
            self._open, self._size = text, size
        self._may_go_on = goes_on

    def note(self, text: str) -> None:
        self._notes.append(text)

    def finish(self) -> None:
        self._blocks += [self._open, *self._notes]
        self._open, self._notes, self._may_go_on = "", [], False

    def text(self) -> str:
        self.finish()
        return join_blocks(self._blocks)

    def join(self, before: str, after: str) -> str:
        """Two lines of a paragraph as one."""
        if before and before[-1] in _HYPHENS and after[:1].islower() and before[-2:-1].isalpha():
            head, tail = _WORD_END.search(before), _WORD_START.match(after)
            if head is not None and tail is not None:
                whole, parts = head[1] + tail[0], f"{head[1]}-{tail[0]}"
                # The hyphen of a compound stays. The tail is there once as the beginning of a line.
                known, both = self._words[whole.lower()], self._words[parts.lower()]
                is_compound = not known and self._words[head[1].lower()] > 0 and self._words[tail[0].lower()] > 1
                keeps = both > known or is_compound
                return before + after if keeps else before[:-1] + after
        if before and after and (_is_cjk(before[-1]) or _is_cjk(after[0])):
            sides = before[-1] + after[0]
            if all(_is_cjk(side) or side in _WIDE for side in sides) or not self._spaces_beside_han:
                return before + after
        if before.endswith("-") and before[-2:-1].isalnum() and after[:1].isalnum():
            return before + after
        return f"{before} {after}" if before else after


def _continues(before: str, after: str) -> bool:
    """Whether a text at the top of a column goes on with a sentence that the last column began."""
    return bool(before) and not _LIST_ITEM.match(after) and not _ENDS_SENTENCE.search(before)


def _text(pages: list[Page]) -> str:
    rows = [row for page in pages for row in page.rows()]
    sizes: collections.Counter[float] = collections.Counter()
    words: collections.Counter[str] = collections.Counter()
    for row in rows:
        for span in row.spans:
            sizes[round(span.size * 2) / 2] += len(span.text)
            words.update(_WORDS.findall(_CUT_WORD.sub("", span.text.lower())))
    body = sizes.most_common(1)[0][0] if sizes else 10.0
    beside = [bool(one or other) for row in rows for one, other in _BESIDE_HAN.findall(row.text)]
    writer = _Writer(words, spaces_beside_han=2 * sum(beside) > len(beside))
    for page in pages:
        for column in page.columns:
            _write_column(column, page, body, writer)
    return writer.text()


def _write_column(rows: list[Row], page: Page, body: float, writer: _Writer) -> None:
    """Add the paragraphs, tables and footnotes of a column."""
    notes = len(rows)
    while notes > 1 and rows[notes - 1].size < 0.9 * body and rows[notes - 1].middle < 0.4 * page.height:
        notes -= 1
    if notes == 1 and rows and rows[0].size < 0.9 * body:
        notes = len(rows)
    tables = _tables(rows)
    pitch = _pitch(rows)
    edge = _right_edges(rows, pitch)
    start = 0
    is_first = True
    while start < len(rows):
        if tables[start]:
            end = start
            while end < len(rows) and tables[end]:
                end += 1
            writer.block("\n".join(map(CELL.join, _table(rows[start:end]))))
            start, is_first = end, False
            continue
        end = start + 1
        text = rows[start].text
        while end < len(rows) and not tables[end] and (end < notes) == (start < notes):
            ends = _break(rows[end - 1], rows[end], edge[end - 1], pitch)
            if ends == "block":
                break
            text = f"{text}\n{rows[end].text}" if ends == "line" else writer.join(text, rows[end].text)
            end += 1
        if start >= notes:
            writer.note(text)
        else:
            is_full = rows[end - 1].right > edge[end - 1] - 6 * rows[end - 1].size
            writer.block(text, rows[start].size, joins=is_first, goes_on=is_full and end in (notes, len(rows)))
        start, is_first = end, False


def _cells(row: Row) -> list[str]:
    """The cells of a table's row; a bullet or a number stands with the cell after it."""
    cells = [span.text for span in row.spans]
    if len(cells) == 2 and _BULLET.fullmatch(cells[0]):
        return [" ".join(cells)]
    return cells


def _table(rows: list[Row]) -> Iterator[list[str]]:
    """The cells of each row. A span is cut where cells of other rows begin."""
    places = [span.left for row in rows for span in row.spans[1:]]
    for row in rows:
        cells: list[Span] = []
        for span in row.spans:
            text: list[str] = []
            for x, part in span.parts:
                if text and any(abs(x - place) < 0.4 * span.size for place in places):
                    cells.append(dataclasses.replace(span, text=" ".join(text)))
                    text = []
                text.append(part)
            cells.append(dataclasses.replace(span, text=" ".join(text)))
        yield _cells(Row(cells))


def _tables(rows: list[Row]) -> list[bool]:
    """For each row whether it belongs to a table: it has several cells, and so has a neighbor, with
    a cell that begins or ends at the same place."""
    several = [len(_cells(row)) > 1 for row in rows]
    found = [False] * len(rows)
    for i in range(len(rows) - 1):
        for j in (i + 1, i + 2):
            if j < len(rows) and several[i] and several[j] and _are_aligned(rows[i], rows[j]):
                found[i : j + 1] = [True] * (j + 1 - i)
    return found


def _are_aligned(one: Row, other: Row) -> bool:
    em = max(one.size, other.size)
    if abs(one.middle - other.middle) > 6 * em:
        return False
    return any(
        abs(a.left - b.left) < 0.5 * em
        or abs(a.right - b.right) < 0.5 * em
        or abs(a.left + a.right - b.left - b.right) < em
        for a in one.spans[1:]
        for b in other.spans[1:]
    )


def _right_edges(rows: list[Row], pitch: float) -> list[float]:
    """For each row where the lines around it end at most, without a wide gap between."""
    edges: list[float] = []
    start, whole = 0, max((row.right for row in rows), default=0.0)
    left = min((row.left for row in rows), default=0.0)
    for end in range(1, len(rows) + 1):
        if end == len(rows) or _is_apart(rows[end - 1], rows[end], pitch):
            near = [max(row.right for row in rows[max(start, i - 8) : min(end, i + 9)]) for i in range(start, end)]
            # A few short lines are an address or a list, not a narrow paragraph.
            is_short = end - start < 5 and max(near) - left < 0.8 * (whole - left)
            edges += [whole] * (end - start) if is_short else near
            start = end
    return edges


def _is_apart(before: Row, after: Row, pitch: float) -> bool:
    """Whether there is more space between two rows than between the lines of a paragraph, or another
    size of letters."""
    step = before.middle - after.middle
    return not (0 <= step <= 1.3 * pitch + 0.1 * before.size and 0.85 < after.size / before.size < 1.18)


def _pitch(rows: list[Row]) -> float:
    """The usual distance of lines; 0 if there is one line."""
    steps = [a.middle - b.middle for a, b in itertools.pairwise(rows) if 0 < a.middle - b.middle < 3 * a.size]
    return statistics.median_low(steps) if steps else 0.0


def _are_verses(one: Row, other: Row) -> bool:
    """Whether two lines of Chinese have the same length and are whole sentences."""
    ends = all(row.text[-1] in "。！？；" for row in (one, other))
    return ends and abs(one.right - one.left - other.right + other.left) < 0.5 * one.size


def _break(before: Row, after: Row, edge: float, pitch: float) -> str:
    """Whether a row is a new "block", a new "line", or the rest of the one before it: ""."""
    em = before.size
    if _is_apart(before, after, pitch):
        return "block"
    if _LIST_ITEM.match(after.text) or _RULE.fullmatch(before.text) or _RULE.fullmatch(after.text):
        return "line"
    if before.text[-1] in _HYPHENS and after.text[0].islower():
        return ""
    if edge - before.left < _MIN_PROSE_WIDTH * em or _are_verses(before, after):
        return "line"
    # A sign that must not begin a line takes one ideograph with it.
    width = 2 * em if _is_cjk(after.text[0]) else after.spans[0].word_right - after.left + 0.25 * em
    has_room = before.right + width < edge
    indent = after.left - before.left
    is_indented = 0.8 * em < indent < 6 * em
    if is_indented and _ENDS_SENTENCE.search(before.text):
        return "block"
    if has_room:
        return "block" if is_indented else "line"
    return ""

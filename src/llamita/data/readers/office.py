"""Reads documents, slides and workbooks of Office Open XML: .docx, .pptx, .xlsx."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from llamita.data.readers.content import Text, clean, clean_lines, join_blocks, join_cells
from llamita.data.readers.package import Package, attribute, local

_MAX_DEPTH = 40  # of tables and text boxes in each other
_SKIPPED = frozenset((
    "del", "moveFrom", "instrText", "delText", "delInstrText", "rPr", "pPr", "sectPr", "tblPr", "trPr", "tcPr",
    "Fallback", "docPartPr", "sdtPr", "rubyPr", "rt", "ctrlPr",
))  # fmt: skip
_DATES = re.compile(r"[dmyhs]", re.IGNORECASE)


# ---- documents


def read_docx(data: bytes) -> Iterator[Text]:
    """Paragraphs, rows of tables, and then footnotes and endnotes, without what was deleted under
    change tracking. Headers, footers and comments are other parts, which are not read."""
    package = Package(data, ".docx")
    main = next((part for kind, part in package.related("").values() if kind == "officeDocument"), "word/document.xml")
    reader = _Docx()
    body = next((each for each in package.xml(main) if local(each) == "body"), None)
    blocks = reader.blocks(body) if body is not None else []
    for kind, part in sorted(package.related(main).values()):
        if kind in ("footnotes", "endnotes") and part in package:
            notes = {attribute(note, "id"): note for note in package.xml(part) if attribute(note, "type") is None}
            cited = reader.cited[kind]
            blocks += [
                f"[{cited.index(number) + 1}] {text}"
                for number in cited
                if number in notes and (text := " ".join(reader.blocks(notes[number])))
            ]
    yield Text(join_blocks(blocks))


class _Docx:
    """The blocks of a document, and the ids of the notes that they cite."""

    def __init__(self) -> None:
        self.cited: dict[str, list[str]] = {"footnotes": [], "endnotes": []}

    def blocks(self, parent: Any, depth: int = 0) -> list[str]:
        """One text for each paragraph, table or list."""
        found: list[str] = []
        was_item = False
        for each in parent:
            name = local(each)
            if name == "p":
                text, boxes = self._paragraph(each, depth)
                is_item = self._is_item(each)
                if is_item and text:
                    text = f"- {text}"
                    if was_item and found:
                        found[-1] += f"\n{text}"
                    else:
                        found.append(text)
                else:
                    found.append(text)
                was_item = is_item if text else was_item
                found += boxes
                continue
            was_item = False
            if name == "tbl":
                found.append("\n".join(filter(None, map(join_cells, self._rows(each, depth)))))
            elif name not in _SKIPPED and len(each) and depth < _MAX_DEPTH:  # sdt, ins, customXml, …
                found += self.blocks(each, depth + 1)
        return [text for text in found if text]

    def _rows(self, table: Any, depth: int) -> Iterator[list[str]]:
        for row in _descend(table, "tr"):
            if depth < _MAX_DEPTH:
                yield [" ".join(self.blocks(cell, depth + 1)) for cell in _descend(row, "tc")]

    def _is_item(self, paragraph: Any) -> bool:
        properties = next((each for each in paragraph if local(each) == "pPr"), None)
        if properties is None:
            return False
        for each in properties:
            if local(each) == "numPr":
                return all(attribute(number, "val") != "0" for number in each if local(number) == "numId")
            if local(each) == "pStyle" and (attribute(each, "val") or "").lower().startswith("list"):
                return True
        return False

    def _paragraph(self, paragraph: Any, depth: int) -> tuple[str, list[str]]:
        """The text of a paragraph, and the blocks of text boxes in it."""
        pieces: list[str] = []
        boxes: list[str] = []
        stack = list(reversed(paragraph))
        while stack:
            node = stack.pop()
            name = local(node)
            if name == "t":
                pieces.append(node.text or "")
            elif name in ("tab", "ptab"):
                pieces.append(" ")
            elif name in ("br", "cr"):
                pieces.append("\n")
            elif name == "noBreakHyphen":
                pieces.append("-")
            elif name in ("footnoteReference", "endnoteReference"):
                cited = self.cited[name.replace("Reference", "s")]
                number = attribute(node, "id") or ""
                if number not in cited:
                    cited.append(number)
                pieces.append(f"[{cited.index(number) + 1}]")
            elif name == "txbxContent":
                if depth < _MAX_DEPTH:
                    boxes += self.blocks(node, depth + 1)
            elif name not in _SKIPPED:
                stack += reversed(node)
        return clean_lines("".join(pieces)), boxes


def _descend(parent: Any, name: str) -> Iterator[Any]:
    """The next elements of this name, also inside of content controls."""
    for each in parent:
        if local(each) == name:
            yield each
        elif local(each) in ("sdt", "sdtContent", "ins", "customXml"):
            yield from _descend(each, name)


# ---- slides


def read_pptx(data: bytes) -> Iterator[Text]:
    """The slides in their order: text, tables, and the speaker's notes."""
    package = Package(data, ".pptx")
    main = next(
        (part for kind, part in package.related("").values() if kind == "officeDocument"), "ppt/presentation.xml"
    )
    related = package.related(main)
    slides = []
    for each in package.xml(main).iter():
        if local(each) == "sldId":
            kind, part = related.get(_relation(each), ("", ""))
            if kind == "slide" and part in package:
                slides.append(part)
    blocks: list[str] = []
    for slide in slides:
        root = package.xml(slide)
        if root.get("show") == "0":
            continue
        blocks += _slide_blocks(root)
        for kind, part in package.related(slide).values():
            if kind == "notesSlide" and part in package:
                blocks += _slide_blocks(package.xml(part))
    yield Text(join_blocks(blocks))


_FURNITURE = frozenset(("sldNum", "dt", "ftr", "hdr", "sldImg"))  # placeholders


def _slide_blocks(root: Any) -> list[str]:
    blocks: list[str] = []
    shapes = [each for each in root.iter() if local(each) in ("sp", "tbl", "graphicData")]
    for shape in shapes:
        if local(shape) == "tbl":
            rows = ([_drawn(cell) for cell in row if local(cell) == "tc"] for row in shape if local(row) == "tr")
            blocks.append("\n".join(filter(None, map(join_cells, rows))))
        elif local(shape) == "sp":
            kinds = {each.get("type") for each in shape.iter() if local(each) == "ph"}
            if not kinds & _FURNITURE:
                body = next((each for each in shape if local(each) == "txBody"), None)
                blocks.append(_drawn(body) if body is not None else "")
    return [block for block in blocks if block]


def _drawn(body: Any) -> str:
    """The text of a shape or a cell, one paragraph a line."""
    lines = []
    for paragraph in body.iter():
        if local(paragraph) == "p":
            pieces = [
                "\n" if local(each) == "br" else (each.text or "")
                for each in paragraph.iter()
                if local(each) in ("t", "br")
            ]
            lines.append(clean_lines("".join(pieces)))
    return "\n".join(filter(None, lines))


def _relation(element: Any) -> str:
    """The id of a relation: r:id, beside an id of the element's own."""
    return next((str(value) for key, value in element.attrib.items() if key.endswith("}id")), "")


# ---- workbooks


def read_xlsx(data: bytes) -> Iterator[Text]:
    """The sheets in their order: the name, and each row that is not empty as a line."""
    package = Package(data, ".xlsx")
    main = next((part for kind, part in package.related("").values() if kind == "officeDocument"), "xl/workbook.xml")
    related = package.related(main)
    shared, formats = _shared_strings(package, related), _date_formats(package, related)
    workbook = package.xml(main)
    from_1904 = any(local(each) == "workbookPr" and each.get("date1904") in ("1", "true") for each in workbook.iter())
    sheets = [each for each in workbook.iter() if local(each) == "sheet"]
    blocks: list[str] = []
    for sheet in sheets:
        kind, part = related.get(_relation(sheet), ("", ""))
        if kind != "worksheet" or part not in package or sheet.get("state") in ("hidden", "veryHidden"):
            continue
        rows = [join_cells(row) for row in _sheet_rows(package.xml(part), shared, formats, from_1904)]
        if any(rows):
            title = [clean(sheet.get("name") or "")] if len(sheets) > 1 else []
            blocks.append("\n".join([*title, *filter(None, rows)]))
    yield Text(join_blocks(blocks))


def _shared_strings(package: Package, related: dict[str, tuple[str, str]]) -> list[str]:
    part = next((part for kind, part in related.values() if kind == "sharedStrings"), None)
    if part is None or part not in package:
        return []
    return [_string(item) for item in package.xml(part) if local(item) == "si"]


def _string(item: Any) -> str:
    """The text of a string, of runs too, without the reading of its ideographs."""
    pieces = []
    for each in item:
        if local(each) == "t":
            pieces.append(each.text or "")
        elif local(each) == "r":
            pieces += [run.text or "" for run in each if local(run) == "t"]
    return clean("".join(pieces))


def _date_formats(package: Package, related: dict[str, tuple[str, str]]) -> list[bool]:
    """For each style of cells whether its numbers are dates."""
    part = next((part for kind, part in related.values() if kind == "styles"), None)
    if part is None or part not in package:
        return []
    root = package.xml(part)
    own = {each.get("numFmtId"): each.get("formatCode") or "" for each in root.iter() if local(each) == "numFmt"}
    styles = next((each for each in root if local(each) == "cellXfs"), ())
    found = []
    for style in styles:
        number = style.get("numFmtId") or "0"
        code = re.sub(r'"[^"]*"|\\.|\[[^\]]*\]|_.|General', "", own.get(number, ""))
        is_built_in = number.isdigit() and (14 <= int(number) <= 22 or 45 <= int(number) <= 47)
        found.append(is_built_in or _DATES.search(code) is not None)
    return found


_MAX_COLUMNS = 16_384


def _sheet_rows(sheet: Any, shared: list[str], dates: list[bool], from_1904: bool) -> Iterator[list[str]]:
    for row in sheet.iter():
        if local(row) != "row":
            continue
        cells: list[str] = []
        for cell in row:
            if local(cell) != "c":
                continue
            column = _column(cell.get("r") or "", len(cells))
            if len(cells) < column < _MAX_COLUMNS:
                cells += [""] * (column - len(cells))
            cells.append(_cell(cell, shared, dates, from_1904))
        while cells and not cells[-1]:
            cells.pop()
        yield cells


def _column(reference: str, default: int) -> int:
    letters = reference.rstrip("0123456789")
    if not letters.isascii() or not letters.isalpha() or len(letters) > 3:
        return default
    number = 0
    for letter in letters.upper():
        number = number * 26 + ord(letter) - 64
    return number - 1


def _cell(cell: Any, shared: list[str], dates: list[bool], from_1904: bool) -> str:
    kind = cell.get("t") or "n"
    if kind == "inlineStr":
        return " ".join(_string(each) for each in cell if local(each) == "is")
    value = next((each.text or "" for each in cell if local(each) == "v"), "")
    if kind == "s":
        return shared[int(value)] if value.isdecimal() and int(value) < len(shared) else ""
    if kind == "b":
        return {"1": "TRUE", "0": "FALSE"}.get(value, value)
    if kind == "n" and value:
        style = cell.get("s") or "0"
        is_date = style.isdecimal() and int(style) < len(dates) and dates[int(style)]
        return _date(value, from_1904) if is_date else _number(value)
    return clean(value)


def _number(value: str) -> str:
    """As a spreadsheet shows it: 15 digits at most."""
    try:
        number = float(value)
    except ValueError:
        return clean(value)
    return value if value.lstrip("-").isdecimal() else f"{number:.15g}"


def _date(value: str, from_1904: bool) -> str:
    import datetime

    start = datetime.datetime(1904, 1, 1) if from_1904 else datetime.datetime(1899, 12, 30)
    try:
        days = float(value)
        moment = start + datetime.timedelta(seconds=round(days * 86400))
    except (ValueError, OverflowError):
        return clean(value)
    clock = moment.strftime("%H:%M:%S").removesuffix(":00")
    if 0 <= days < 1:
        return clock
    day = moment.date().isoformat()
    return day if days == int(days) else f"{day} {clock}"

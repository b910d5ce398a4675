"""Reads documents of OpenDocument: .odt, of LibreOffice and others."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from llamita.data.readers.content import ReaderError, Text, clean_lines, join_blocks, join_cells
from llamita.data.readers.package import Package, local

_MAX_DEPTH = 40
_SKIPPED = frozenset((
    "tracked-changes", "annotation", "annotation-end", "sequence-decls", "table-of-content", "alphabetical-index",
    "illustration-index", "bibliography", "forms", "variable-decls", "user-field-decls", "ruby-text", "desc", "title",
    "note-citation", "script", "object-ole",
))  # fmt: skip


def read_odt(data: bytes) -> Iterator[Text]:
    """Paragraphs, list items, rows of tables, and then notes; what was deleted under change tracking is
    left out. Headers and footers are in another part, which is not read. Raises ReaderError."""
    package = Package(data, ".odt")
    if "META-INF/manifest.xml" in package:
        manifest = package.xml("META-INF/manifest.xml")
        if any(local(each) == "encryption-data" for each in manifest.iter()):
            raise ReaderError("it is encrypted; save it without a password")
    root = package.xml("content.xml")
    body = next((each for each in root.iter() if local(each) == "text" and len(each)), None)
    reader = _Odt()
    blocks = reader.blocks(body, 0) if body is not None else []
    yield Text(join_blocks([*blocks, *reader.notes]))


class _Odt:
    """The blocks of a document, and its notes."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self._boxes: list[str] = []  # text boxes of the paragraph in progress

    def blocks(self, parent: Any, depth: int) -> list[str]:
        """One text for each paragraph, list or table."""
        found: list[str] = []
        for each in parent:
            name = local(each)
            if name in _SKIPPED or depth > _MAX_DEPTH:
                continue
            if name in ("p", "h"):
                text = clean_lines(self._inline(each, depth))
                found += [text, *self._boxes] if text or self._boxes else []
                self._boxes = []
            elif name == "list":
                items = [
                    " ".join(self.blocks(item, depth + 1))
                    for item in each
                    if local(item) in ("list-item", "list-header")
                ]
                found.append("\n".join(f"- {item}" for item in items if item))
            elif name == "table":
                found.append("\n".join(filter(None, map(join_cells, self._rows(each, depth)))))
            else:
                found += self.blocks(each, depth + 1)
        return [text for text in found if text]

    def _rows(self, table: Any, depth: int) -> Iterator[list[str]]:
        for each in table:
            name = local(each)
            if name == "table-row":
                yield [" ".join(self.blocks(cell, depth + 1)) for cell in each if local(cell).endswith("table-cell")]
            elif name in ("table-header-rows", "table-rows", "table-row-group") and depth < _MAX_DEPTH:
                yield from self._rows(each, depth + 1)

    def _inline(self, node: Any, depth: int) -> str:
        """The text of a paragraph."""
        pieces = [_spaces(node.text)]
        for each in node:
            name = local(each)
            if name == "s" or name == "tab":
                pieces.append(" ")
            elif name == "line-break":
                pieces.append("\n")
            elif name == "note":
                body = next((part for part in each if local(part) == "note-body"), None)
                number = len(self.notes) + 1
                self.notes.append("")
                if body is not None and depth < _MAX_DEPTH:
                    self.notes[number - 1] = f"[{number}] {' '.join(self.blocks(body, depth + 1))}"
                pieces.append(f"[{number}]")
            elif name == "frame":
                box = next((part for part in each if local(part) == "text-box"), None)
                if box is not None and depth < _MAX_DEPTH:
                    outer = self._boxes
                    found = self.blocks(box, depth + 1)
                    self._boxes = outer + found
            elif name not in _SKIPPED and depth < _MAX_DEPTH:
                pieces.append(self._inline(each, depth + 1))
            pieces.append(_spaces(each.tail))
        return "".join(pieces)


def _spaces(text: str | None) -> str:
    """White space of XML is one space."""
    return "" if text is None else text.replace("\n", " ")

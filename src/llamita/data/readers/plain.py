"""Reads text in other clothes: notebooks of Jupyter, subtitles, and text files in archives."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from llamita.data.readers.content import ReaderError, Text, clean, decode, join_blocks

_TIMES = re.compile(r"\s*(?:\d+:)?\d{1,2}:\d{2}[,.]\d{1,3}\s*-->\s*(?:\d+:)?\d{1,2}:\d{2}[,.]\d{1,3}.*")
_MARKUP = re.compile(r"<[^<>\n]{0,200}>|\{\\[^{}\n]{0,200}\}")
_PAUSE_ENDS = re.compile(r"[.!?。！？…♪\"”」』)）\]]$")


def read_text(data: bytes) -> Iterator[Text]:
    """A text file. Raises ReaderError."""
    yield Text(decode(data).replace("\0", "").replace("\r\n", "\n"))


def read_notebook(data: bytes) -> Iterator[Text]:
    """Cells of text and code, without what the code printed. Raises ReaderError."""
    try:
        content = json.loads(decode(data))
    except (ValueError, RecursionError) as error:
        raise ReaderError(f"it is no notebook: broken JSON: {' '.join(str(error).split())[:100]}") from None
    cells = content.get("cells") if isinstance(content, dict) else None
    if cells is None and isinstance(content, dict) and isinstance(content.get("worksheets"), list):  # version 3
        sheets = [each for each in content["worksheets"] if isinstance(each, dict)]
        cells = [cell for sheet in sheets for cell in (sheet.get("cells") or [])]
    if not isinstance(cells, list):
        raise ReaderError("it is no notebook: it has no cells")
    yield Text(join_blocks(map(_cell, cells)))


def _cell(cell: Any) -> str:
    if not isinstance(cell, dict):
        return ""
    source = cell.get("source", cell.get("input"))
    text = "".join(map(str, source)) if isinstance(source, list) else source if isinstance(source, str) else ""
    return f"```\n{text.strip()}\n```" if cell.get("cell_type") == "code" and text.strip() else text


def read_subtitles(data: bytes) -> Iterator[Text]:
    """What is said, without numbers, times and markup: the lines of a sentence in one line."""
    lines: list[str] = []
    said: list[str] = []  # of the sentence in progress
    for block in re.split(r"\n[ \t]*\n+", decode(data).replace("\r\n", "\n").replace("\r", "\n")):
        rows = block.strip().split("\n")
        times = next((i for i, row in enumerate(rows[:2]) if _TIMES.fullmatch(row)), None)
        if times is None:
            continue
        spoken = [text for row in rows[times + 1 :] if (text := clean(_MARKUP.sub("", row)))]
        if said and spoken and spoken[0].startswith(("-", "–", "—")):
            lines.append(_sentence(said))
            said = []
        for row in spoken:
            if row.startswith(("- ", "– ", "— ")) and said:
                lines.append(_sentence(said))
                said = []
            said.append(row)
        if said and _PAUSE_ENDS.search(said[-1]):
            lines.append(_sentence(said))
            said = []
    if said:
        lines.append(_sentence(said))
    if data.strip() and not lines:
        raise ReaderError("it has no subtitles: expected lines such as 00:00:01,000 --> 00:00:02,500")
    yield Text("\n".join(lines))


def _sentence(pieces: list[str]) -> str:
    """Pieces of a sentence, with spaces between words but not between ideographs."""
    joined = pieces[0]
    for piece in pieces[1:]:
        is_spaced = ord(joined[-1]) < 0x2E80 or ord(piece[0]) < 0x2E80
        joined += f" {piece}" if is_spaced else piece
    return joined

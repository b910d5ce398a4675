"""Tables and number formats for the terminal and the report."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import TextIO

from rich.cells import cell_len
from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from llamita.errors import clean_line

SHORT_UNITS = {"tokens": "tok", "target tokens": "target tok"}

MAX_CELL_CHARS = 2000

Rows = list[tuple[str, ...]]  # every row has the same number of cells


def print_table(rows: Sequence[Sequence[str]], file: TextIO | Console) -> None:
    """Print an indented table; cells are cleaned, since names in them come from files.

    On a terminal the first column is bold, and long cells wrap. Elsewhere each row is one line.
    """
    if not rows:
        return
    rows = [[clean_line(cell, MAX_CELL_CHARS) for cell in row] for row in rows]
    console = file if isinstance(file, Console) else Console(file=file, highlight=False)
    if not console.is_terminal:
        widths = [max(cell_len(row[column]) for row in rows) for column in range(len(rows[0]))]
        for row in rows:
            cells = [cell + " " * (width - cell_len(cell)) for cell, width in zip(row, widths, strict=True)]
            print("  " + "  ".join(cells).rstrip(), file=console.file)
        return
    table = Table.grid(padding=(0, 2))
    table.add_column(style="bold", no_wrap=True)
    for _ in rows[0][1:]:
        table.add_column(overflow="fold")
    for row in rows:
        table.add_row(*map(Text, row))
    console.print(Padding(table, (0, 0, 0, 2), expand=False))


def format_count(value: float) -> str:
    """12345 → 12.3k."""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.{1 if value < 100 * size else 0}f}{letter}"
    return f"{value:.0f}"


def format_bytes(num_bytes: float) -> str:
    """1234567 → 1.2 MB; below a million in kB."""
    return f"{num_bytes / 1e6:,.1f} MB" if num_bytes >= 1e6 else f"{num_bytes / 1e3:,.0f} kB"


def count_of(number: int, what: str) -> str:
    """1, "file" → 1 file; 1200, "file" → 1,200 files."""
    return f"{number:,} {what}" + ("" if number == 1 else "s")


def format_speed(per_second: float, targets: str) -> str:
    """12345 tokens → 12.3k tok/s; 0.66 pairs → 0.66 pairs/s."""
    return f"{format_rate(per_second)} {speed_unit(targets)}"


def format_rate(per_second: float) -> str:
    """Like format_count, with decimals below 10."""
    return format_count(per_second) if per_second >= 10 else f"{per_second:.2g}"


def speed_unit(targets: str) -> str:
    """tokens → tok/s."""
    return f"{SHORT_UNITS.get(targets, targets)}/s"


def format_seconds(seconds: float) -> str:
    """3723 → 1:02:03."""
    whole = max(0, round(seconds))
    hours, minutes, rest = whole // 3600, whole // 60 % 60, whole % 60
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def _start(text: str, columns: int) -> str:
    """As many characters as fit into the columns."""
    widths = itertools.accumulate(map(cell_len, text))
    return text[: sum(width <= columns for width in widths)]


def shorten(text: str, limit: int = 240, max_lines: int = 12) -> str:
    """The start of a text, with its lines and their indentation, but without control characters and
    repeated blank lines. limit: in columns of a terminal, of which a wide character takes two."""
    kept: list[str] = []
    for line in text.strip("\n").split("\n"):
        clean = "".join(c if c.isprintable() or c == "\u3000" else " " for c in line.expandtabs(4)).rstrip()
        if clean or (kept and kept[-1]):
            kept.append(clean)
    short = "\n".join(kept[:max_lines])
    if cell_len(short) > limit:
        short = _start(short, limit)
        at_word = short.rpartition(" ")[0]  # far back where words have no spaces
        short = at_word if 2 * len(at_word) > len(short) else short
    return short if len(kept) <= max_lines and len(short) == len("\n".join(kept)) else f"{short} …"

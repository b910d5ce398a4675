"""Rows of words to an aligned table: with rich on a terminal, plain lines when piped."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TextIO

from rich.console import Console
from rich.table import Table

Rows = list[tuple[str, ...]]  # of equally many cells


def print_table(rows: Sequence[Sequence[str]], file: TextIO | Console) -> None:
    """Print rows of equally many cells, indented, the first column emphasised on a terminal."""
    if not rows:
        return
    console = file if isinstance(file, Console) else Console(file=file, highlight=False)
    if not console.is_terminal:
        widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
        for row in rows:
            cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=True)]
            print("  " + "  ".join(cells).rstrip(), file=console.file)
        return
    table = Table.grid(padding=(0, 2))
    table.add_column(style="bold", no_wrap=True)
    for _ in rows[0][1:]:
        table.add_column(overflow="fold")
    for row in rows:
        table.add_row(*(_escaped(cell) for cell in row))
    console.print(table)


def _escaped(cell: str) -> str:
    """Rich takes [words] for markup; ours are words."""
    return cell.replace("[", "\\[")

"""Progress in bytes: bars on a terminal, nothing elsewhere."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import TextIO

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn
from rich.table import Column


def byte_bars(console: Console, *, transient: bool) -> Progress:
    """Bars that fill the width of the terminal; without one, they do nothing."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=None),
        DownloadColumn(table_column=Column(no_wrap=True)),
        TransferSpeedColumn(),
        TimeRemainingColumn(compact=True),
    )
    return Progress(*columns, console=console, transient=transient, disable=not console.is_terminal, expand=True)


@contextlib.contextmanager
def byte_progress(what: str, file: TextIO) -> Iterator[Callable[[int, int], None] | None]:
    """Yield a function of (bytes done, bytes in all); None if no terminal would show it."""
    if not file.isatty():
        yield None
        return
    with byte_bars(Console(file=file), transient=True) as progress:
        task = progress.add_task(what, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)

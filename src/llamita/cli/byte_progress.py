"""Bytes done of bytes to do, as a bar on a terminal and as nothing elsewhere."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import TextIO

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn


@contextlib.contextmanager
def byte_progress(what: str, file: TextIO) -> Iterator[Callable[[int, int], None] | None]:
    """Yield a function of (bytes done, bytes in all), or None where nobody would see it."""
    if not file.isatty():
        yield None
        return
    columns = (
        TextColumn(what),
        BarColumn(bar_width=None),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(file=file), transient=True) as progress:
        task = progress.add_task(what, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)

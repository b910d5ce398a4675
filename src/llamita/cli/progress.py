"""Progress bars: on a terminal on stderr; elsewhere nothing is printed."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from rich import progress as rich_progress
from rich.console import Console
from rich.table import Column

from llamita.progress import Progress


def make_bars(console: Console, *, in_bytes: bool = False, transient: bool = True) -> rich_progress.Progress:
    """Bars as wide as the terminal; in_bytes: with sizes and speed instead of a percentage."""
    columns = [rich_progress.TextColumn("{task.description}"), rich_progress.BarColumn(bar_width=None)]
    if in_bytes:
        columns.append(rich_progress.DownloadColumn(table_column=Column(no_wrap=True)))
        columns.append(rich_progress.TransferSpeedColumn())
    else:
        columns.append(rich_progress.TaskProgressColumn())
    columns.append(rich_progress.TimeRemainingColumn(compact=in_bytes))
    return rich_progress.Progress(
        *columns, console=console, transient=transient, disable=not console.is_terminal, expand=in_bytes
    )


@contextlib.contextmanager
def progress_bars(
    *, in_bytes: bool = False, transient: bool = True, console: Console | None = None
) -> Iterator[Progress]:
    """Yield a callback that shows one bar for each stage. transient: the bars vanish at the end."""
    with make_bars(console or Console(stderr=True), in_bytes=in_bytes, transient=transient) as bars:
        tasks: dict[str, rich_progress.TaskID] = {}

        def show(stage: str, done: int, total: int) -> None:
            if stage not in tasks:
                tasks[stage] = bars.add_task(stage, total=total)
            bars.update(tasks[stage], completed=done, total=total)

        yield show

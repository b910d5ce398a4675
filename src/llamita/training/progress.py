"""Training progress on stderr: a live bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Sequence
from types import TracebackType

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn

from llamita.console import MAX_CELL_CHARS, format_seconds, format_speed, print_table, shorten
from llamita.errors import clean_line

SECONDS_BETWEEN_LINES = 10.0
OTHER_COLUMNS = 30  # of the bar: "evaluating 100 %", a short bar, "100 %"


class TrainingDisplay:
    """Progress, messages and tables. `enabled=False` (all ranks except 0) prints nothing."""

    def __init__(self, *, enabled: bool = True, console: Console | None = None) -> None:
        self.console = console or Console(stderr=True, highlight=False)
        self.enabled = enabled
        self.is_live = enabled and self.console.is_terminal
        self._last_line = -SECONDS_BETWEEN_LINES
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=None, complete_style="green"),
            TextColumn("{task.percentage:>3.0f} %"),
            TextColumn("{task.fields[numbers]}"),
            console=self.console,
            transient=True,
        )
        self._task = self._progress.add_task("training", total=1.0, numbers="")

    def __enter__(self) -> TrainingDisplay:
        if self.is_live:
            self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.is_live:
            self._progress.stop()

    def say(self, text: str, style: str | None = None) -> None:
        """Print a line."""
        if self.enabled:
            self.console.print(escape(clean_line(text, MAX_CELL_CHARS)), style=style, soft_wrap=not self.is_live)

    def show_sample(self, text: str) -> None:
        """Print the beginning of a generated text, indented, with its lines."""
        for line in shorten(text).split("\n"):
            self.say(f"  {line}".rstrip(), style="dim")

    def table(self, rows: Sequence[Sequence[str]]) -> None:
        """Print a table whose first row and column are headings."""
        if self.enabled:
            print_table(rows, self.console)

    def update(
        self,
        progress: float,
        *,
        step: int,
        loss: float,
        bits_per_byte: float | None,
        val: float | None,
        tokens_per_second: float,
        targets: str,
        mfu: float | None,
        seconds_left: float,
    ) -> None:
        """Show the current numbers; a line every ten seconds if there is no terminal.

        targets: unit of tokens_per_second, see Task.targets.
        """
        if not self.enabled:
            return
        loss_text, bpb = f"loss {loss:.3f}", "" if bits_per_byte is None else f"bpb {bits_per_byte:.3f}"
        speed, left = format_speed(tokens_per_second, targets), f"{format_seconds(seconds_left)} left"
        val_text = "" if val is None else f"held-out {val:.4f}"
        mfu_text = "" if mfu is None else f"MFU {100 * mfu:.0f} %"
        if self.is_live:
            by_importance = (loss_text, left, bpb, speed, val_text, f"step {step}", mfu_text)
            order = (f"step {step}", loss_text, bpb, val_text, speed, mfu_text, left)
            numbers = fit(by_importance, order, self.console.width - OTHER_COLUMNS)
            self._progress.update(self._task, description="training", completed=progress, numbers=numbers)
        elif time.monotonic() - self._last_line >= SECONDS_BETWEEN_LINES:
            self._last_line = time.monotonic()
            losses = loss_text + (f" · {bpb}" if bpb else "") + (f" ({val_text})" if val_text else "")
            fast = f"{speed}, {mfu_text}" if mfu_text else speed
            self.console.print(f"{100 * progress:3.0f} % | step {step} | {losses} | {fast} | {left}", soft_wrap=True)

    def show_stage(self, stage: str, done: int, total: int) -> None:
        """Show the progress of an evaluation; a `llamita.progress.Progress`."""
        if self.is_live:
            self._progress.update(self._task, description=f"{stage} {100 * done / total:3.0f} %")


def fit(by_importance: Sequence[str], order: Sequence[str], columns: int) -> str:
    """The most important texts that fit into the columns, joined in the given order."""
    chosen: set[str] = set()
    for text in by_importance:
        if len(" · ".join(filter(None, (*chosen, text)))) <= columns:
            chosen.add(text)
    return " · ".join(text for text in order if text and text in chosen)

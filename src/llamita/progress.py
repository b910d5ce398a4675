"""The callback that long work reports its progress with."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

Progress: TypeAlias = Callable[[str, int, int], None]
"""progress(stage, done, total): what is being done, and how many of how many units are done.

A stage counts in its own units: bytes, tokens, texts. `done` never decreases within a stage.
Work that can be stopped is stopped by an exception from the callback, which passes through. A
function takes `progress: Progress = no_progress`; it does not test for None.

Still to move here: Task.prepare calls advance(share); Task.evaluate and eval.bits_per_byte call
advance(share), where False stops them. Callbacks named `say` print lines and are not progress.
"""


def no_progress(stage: str, done: int, total: int) -> None:
    """Ignore it: the default."""

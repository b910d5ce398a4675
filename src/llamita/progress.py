"""The callback that long work reports its progress with, and is cancelled with."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import TypeAlias

Progress: TypeAlias = Callable[[str, int, int], None]
"""progress(stage, done, total): what is being done, and how many of how many units are done.

A stage counts in its own units: bytes, tokens, texts. `done` never decreases within a stage. A
function takes `progress: Progress = no_progress`; it does not test for None. To cancel the work,
the callback raises an exception, which passes through: Cancelled if it is not an error. Work that
several processes share must be cancelled in all of them or in none. Callbacks named `say` print
lines and are not progress.
"""


class Cancelled(Exception):
    """Raised by a progress callback to cancel the work; its caller catches it."""


def no_progress(stage: str, done: int, total: int) -> None:
    """Ignore it: the default."""


def split_progress(progress: Progress, costs: Sequence[int]) -> list[Progress]:
    """A callback for each of several consecutive phases of a stage, which is as long as all costs."""

    def phase(start: int, cost: int) -> Progress:
        return lambda stage, done, total: progress(stage, start + round(done * cost / total), sum(costs))

    return [phase(*each) for each in zip(itertools.accumulate(costs, initial=0), costs, strict=False)]

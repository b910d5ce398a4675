"""Turns how far a run is into the learning rate's share of its peak."""

from __future__ import annotations

import dataclasses
import math
from typing import Literal


@dataclasses.dataclass(frozen=True)
class Schedule:
    """warmup, cooldown, final: shares of the run, of the run, of the peak."""

    kind: Literal["wsd", "cosine"]
    warmup: float
    cooldown: float
    final: float

    def factor(self, progress: float) -> float:
        """The share of the peak at `progress` in [0, 1]: a linear rise, then

        wsd: the peak until 1 - cooldown, then a straight line down (warm-up, stable, decay: arXiv 2405.18392);
        cosine: half a wave down.
        """
        progress = min(1.0, max(0.0, progress))
        if progress < self.warmup:
            return progress / self.warmup
        if self.kind == "cosine":
            falling = (progress - self.warmup) / (1.0 - self.warmup) if self.warmup < 1.0 else 0.0
            fallen = 0.5 - 0.5 * math.cos(math.pi * falling)
        else:
            start = 1.0 - self.cooldown
            fallen = (progress - start) / self.cooldown if progress > start else 0.0
        return 1.0 - (1.0 - self.final) * fallen

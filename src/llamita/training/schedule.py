"""Turns how far a run is into the learning rate's share of its peak."""

from __future__ import annotations

import dataclasses
import math
from typing import Literal


@dataclasses.dataclass(frozen=True)
class Schedule:
    """warmup, cooldown, final: shares of the run, of the run, of the peak."""

    kind: Literal["wsd", "linear", "cosine"]
    warmup_fraction: float
    decay_fraction: float
    final: float

    def factor(self, progress: float) -> float:
        """The share of the peak at `progress` in [0, 1]: a linear rise, then

        wsd: the peak until 1 - cooldown, then a straight line down (warm-up, stable, decay: arXiv 2405.18392);
        linear: a straight line down from there;
        cosine: half a wave down.
        """
        progress = min(1.0, max(0.0, progress))
        if progress < self.warmup_fraction:
            return progress / self.warmup_fraction
        start = 1.0 - self.decay_fraction if self.kind == "wsd" else self.warmup_fraction
        fallen = (progress - start) / (1.0 - start) if progress > start else 0.0
        if self.kind == "cosine":
            fallen = 0.5 - 0.5 * math.cos(math.pi * fallen)
        return 1.0 - (1.0 - self.final) * fallen

"""Learning-rate schedules."""

from __future__ import annotations

import dataclasses
import math
from typing import Literal

AVERAGED_FINAL_RATE = 0.3  # of the peak: with a rate that falls to 0, averaging gains less (docs/experiments.md)


@dataclasses.dataclass(frozen=True)
class Schedule:
    """warmup_fraction, decay_fraction: of the run. final_lr_fraction: of the peak learning rate."""

    kind: Literal["wsd", "linear", "cosine"]
    warmup_fraction: float
    decay_fraction: float
    final_lr_fraction: float

    def factor(self, progress: float, initial: float = 0.0) -> float:
        """The factor of the peak learning rate at `progress` in [0, 1]: a linear warm-up, then

        wsd: constant until 1 - decay_fraction, then linear decay (warmup-stable-decay,
            arXiv 2405.18392);
        linear: linear decay;
        cosine: half a cosine wave.

        initial: where the warm-up begins. A run that is trained longer re-warms from its last rate
        (arXiv 2403.08763).
        """
        progress = min(1.0, max(0.0, progress))
        if progress < self.warmup_fraction:
            return initial + (1.0 - initial) * progress / self.warmup_fraction
        start = self.decay_start
        fallen = (progress - start) / (1.0 - start) if progress > start else 0.0
        if self.kind == "cosine":
            fallen = 0.5 - 0.5 * math.cos(math.pi * fallen)
        return 1.0 - (1.0 - self.final_lr_fraction) * fallen

    @property
    def decay_start(self) -> float:
        """The progress from which the rate falls."""
        return 1.0 - self.decay_fraction if self.kind == "wsd" else self.warmup_fraction

    def describe(self, initial: float) -> str:
        """What the learning rate does, for a message."""
        rise, fall = f"{100 * self.warmup_fraction:g} %", f"{100 * self.decay_fraction:g} %"
        start = f"rises from {100 * initial:.3g} % to its peak in the first {rise}"
        if self.kind != "wsd":
            return f"{start}, then falls ({self.kind})"
        return f"{start}, stays there, and falls in the last {fall}"

"""Learning-rate schedules."""

from __future__ import annotations

import dataclasses
import math
from typing import Literal


@dataclasses.dataclass(frozen=True)
class Schedule:
    """warmup_fraction, decay_fraction: of the run. final_lr_fraction: of the peak learning rate."""

    kind: Literal["wsd", "linear", "cosine"]
    warmup_fraction: float
    decay_fraction: float
    final_lr_fraction: float

    def factor(self, progress: float) -> float:
        """The factor of the peak learning rate at `progress` in [0, 1]: a linear warm-up, then

        wsd: constant until 1 - decay_fraction, then linear decay (warmup-stable-decay,
            arXiv 2405.18392);
        linear: linear decay;
        cosine: half a cosine wave.
        """
        progress = min(1.0, max(0.0, progress))
        if progress < self.warmup_fraction:
            return progress / self.warmup_fraction
        start = 1.0 - self.decay_fraction if self.kind == "wsd" else self.warmup_fraction
        fallen = (progress - start) / (1.0 - start) if progress > start else 0.0
        if self.kind == "cosine":
            fallen = 0.5 - 0.5 * math.cos(math.pi * fallen)
        return 1.0 - (1.0 - self.final_lr_fraction) * fallen

"""Generations of a run on little text: each model learns from the best one before it (born-again
networks, Furlanello et al. 2018, arXiv 1805.04770).

The first model learns from the text alone. Each of the others has the same shape, new weights, and
the best checkpoint so far as its teacher (distillation.py). A model that reads a little text for a
long time learns it by heart; several that share the time do not.
"""

from __future__ import annotations

import dataclasses

TEACHER_COST = 1.35  # time of a token with a teacher of the same shape, in times without one
# The fewest epochs that each of 3 or 2 generations must get. With fewer, a third one gained nothing;
# a fourth one gained nothing with more (docs/experiments.md).
MIN_EPOCHS = {3: 7.0, 2: 3.0}


@dataclasses.dataclass(frozen=True)
class Stretch:
    """The part of a run that a generation takes: of what is left when it begins, and of the run."""

    of_rest: float = 1.0
    of_run: float = 1.0

    def run_progress(self, progress: float) -> float:
        """The share of the run that is done, from that of the generation."""
        return 1.0 - self.of_run / self.of_rest + self.of_run * progress


WHOLE = Stretch()


def stretch_of(generation: int, generations: int, *, is_timed: bool) -> Stretch:
    """The stretch of a generation, from 0. All get the same number of steps; is_timed: the run is
    measured in time, and a step with a teacher takes TEACHER_COST times as long."""
    costs = [1.0, *[TEACHER_COST if is_timed else 1.0] * (generations - 1)]
    cost = costs[generation]
    return Stretch(cost / sum(costs[generation:]), cost / sum(costs))


def epochs_each(epochs: float, generations: int) -> float:
    """The epochs of each generation in a time that is enough for `epochs` without a teacher."""
    return epochs / (1 + (generations - 1) * TEACHER_COST)


def generations_for(epochs: float) -> int:
    """How many generations to train in a time that is enough for `epochs` without a teacher."""
    return next((count for count, fewest in MIN_EPOCHS.items() if epochs_each(epochs, count) >= fewest), 1)

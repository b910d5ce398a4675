"""Detects that training diverges, and limits how often it may roll back."""

from __future__ import annotations

import math
from pathlib import Path

from llamita.errors import TrainingError

MAX_ROLLBACKS = 3
ROLLBACK_LR_FACTOR = 0.5  # of all learning rates, with every rollback


class DivergenceError(Exception):
    """Training cannot recover from the step that the message names."""


def learning_rate_factor(rollbacks: int) -> float:
    """The factor of all learning rates after this many rollbacks."""
    return ROLLBACK_LR_FACTOR**rollbacks


def check_gradient(norm: float, step: int) -> None:
    """Raise DivergenceError if the norm of a gradient is not finite."""
    if not math.isfinite(norm):
        raise DivergenceError(f"step {step}: expected a finite gradient, found {norm}")


def check_loss(loss: float, step: int, uniform_loss: float) -> None:
    """Raise DivergenceError if a loss that was below uniform_loss is now a nat above it.

    uniform_loss: the loss of a model that gives all tokens the same probability.
    """
    if loss > uniform_loss + 1:
        raise DivergenceError(
            f"step {step}: expected a loss below the uniform baseline ln(vocab_size) = {uniform_loss:.2f}, "
            f"found {loss:.2f}"
        )


def check_rollbacks(rollbacks: int, error: DivergenceError, learning_rate: float, checkpoint: Path | None) -> None:
    """Raise TrainingError, which says what to change, if another rollback would be one too many."""
    if rollbacks == MAX_ROLLBACKS:
        raise TrainingError(
            f"training diverged: {error}, after {rollbacks} rollbacks; start again with a --learning-rate below "
            f"{learning_rate:.2g} or a longer --warmup-fraction (last checkpoint: {checkpoint or 'none'})"
        )

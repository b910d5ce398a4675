"""What tests that train share: a run's metrics without times, a signal in the middle of a step."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest

TIMINGS = ("seconds", "evaluation_seconds", "tokens_per_second", "mfu")


def untimed(run: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl, without what differs from one run to the next."""
    from llamita.run_directory import read_metrics  # needs torch

    return [{key: value for key, value in line.items() if key not in TIMINGS} for line in read_metrics(run)]


def stop_at(monkeypatch: pytest.MonkeyPatch, step: int, number: signal.Signals = signal.SIGINT) -> None:
    """Send this process a signal in the middle of the given step."""
    from llamita.training.trainer import Trainer  # needs torch

    real = Trainer._step

    def step_and_signal(self: Trainer) -> None:
        if self.state.progress.step == step:
            os.kill(os.getpid(), number)
        real(self)

    monkeypatch.setattr(Trainer, "_step", step_and_signal)

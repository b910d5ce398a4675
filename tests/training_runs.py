"""What tests that train share: a tiny run, its metrics without times, a signal in the middle of a step."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest

TINY: dict[str, Any] = {
    "layers": 1, "hidden": 32, "heads": 2, "kv_heads": 1, "ffn": 64, "context": 64, "micro_batch_size": 4,
    "device": "cpu", "threads": 1,
}  # fmt: skip
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


def hold_nothing_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pretraining finds no held-out text in a store."""
    from llamita.training.pretraining import Pretraining  # needs torch

    real = Pretraining.__init__

    def without_val(self: Pretraining, *arguments: Any) -> None:
        real(self, *arguments)
        self.val_tokens = 0

    monkeypatch.setattr(Pretraining, "__init__", without_val)

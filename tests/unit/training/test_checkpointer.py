"""Checkpoints in the background: consistent copies, one at a time, errors are raised."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from llamita.checkpoint import TrainingState  # noqa: E402
from llamita.config import ModelConfig  # noqa: E402
from llamita.errors import OutputError  # noqa: E402
from llamita.training.checkpointer import Checkpointer  # noqa: E402
from llamita.training.distributed import Ranks  # noqa: E402

TINY = ModelConfig(50, 16, 24, 2, 4, 2, 4, 32)
ALONE = Ranks(0, 1, torch.device("cpu"))


def test_what_is_written_is_the_moment_of_saving() -> None:
    weight, moment, may_write = torch.ones(4), torch.full((4,), 2.0), threading.Event()
    written: list[tuple[list[float], list[float], int]] = []

    def write(weights: Mapping[str, torch.Tensor], state: TrainingState) -> None:
        assert may_write.wait(60)
        written.append((weights["w"].tolist(), state.tensors["m/w"].tolist(), state.values["step"]))

    with Checkpointer(ALONE, sharded=False) as checkpointer:
        checkpointer.save(Path("step-1"), {"w": weight}, {"m/w": moment}, {"step": 1}, write)
        weight.zero_()  # training goes on while the writer has not even begun
        moment.zero_()
        assert not written
        checkpointer.check()
        may_write.set()
        checkpointer.save(Path("step-2"), {"w": weight}, {"m/w": moment}, {"step": 2}, write)
        assert written[0] == ([1.0] * 4, [2.0] * 4, 1), "the one before is written before its copies are"
        checkpointer.wait()
    assert written[1] == ([0.0] * 4, [0.0] * 4, 2)
    assert checkpointer.stalled_seconds > 0


def test_a_writers_error_surfaces_once() -> None:
    def write(weights: Mapping[str, torch.Tensor], state: TrainingState) -> None:
        raise OutputError("cannot write: no space left")

    with Checkpointer(ALONE, sharded=False) as checkpointer:
        checkpointer.save(Path("step-1"), {}, {}, {}, write)
        with pytest.raises(OutputError, match="no space left"):
            checkpointer.wait()
        checkpointer.wait()


def test_leaving_waits_for_the_writer() -> None:
    done = threading.Event()
    with pytest.raises(KeyError), Checkpointer(ALONE, sharded=False) as checkpointer:
        checkpointer.save(Path("step-1"), {}, {}, {}, lambda weights, state: done.set())
        raise KeyError
    assert done.is_set()

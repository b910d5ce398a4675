"""Batches made ahead are those of the stream, and a saved position is that of the last step."""

from __future__ import annotations

import gc
import threading
import time
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from llamita.data.batches import Batches  # noqa: E402
from llamita.training.prefetch import StepStream  # noqa: E402
from llamita.training.run import freeze_garbage  # noqa: E402

CPU = torch.device("cpu")


def documents(count: int = 300) -> Any:
    choose = np.random.default_rng(1)
    texts = [np.append(choose.integers(1, 50, choose.integers(1, 30)), 0).astype(np.uint16) for _ in range(count)]
    return SimpleNamespace(
        num_documents=count, num_tokens=sum(map(len, texts)), lengths=np.array([len(text) for text in texts]),
        document=texts.__getitem__,
    )  # fmt: skip


def stream(*, ahead: bool) -> StepStream:
    return StepStream(Batches(documents(), 0, 32, 2, seed=1), 3, CPU, ahead=ahead)


def same(one: Any, two: Any) -> bool:
    pairs = zip(one.passes, two.passes, strict=True)
    return one.num_targets == two.num_targets and all(
        torch.equal(a, b) for left, right in pairs for a, b in zip(left, right, strict=True)
    )


def test_steps_made_ahead_are_the_same() -> None:
    plain, ahead = stream(ahead=False), stream(ahead=True)
    for _ in range(60):  # some epochs
        assert plain.state_dict() == ahead.state_dict()
        one, two = next(plain), next(ahead)
        assert len(one.passes) == 3 and one.passes[0][0].shape == (2, 32) and same(one, two)
    ahead.close()


def test_a_position_is_that_of_the_last_step() -> None:
    """A resumed run, and one rolled back, takes the step that was made ahead, not the one after."""
    ahead = stream(ahead=True)
    for _ in range(5):
        next(ahead)
    position, wanted = ahead.state_dict(), next(ahead)
    other = stream(ahead=True)
    other.load_state_dict(position)
    assert same(next(other), wanted)
    ahead.load_state_dict(position)
    assert ahead.state_dict() == position and same(next(ahead), wanted)
    with pytest.raises(ValueError, match="window: expected less than"):
        other.load_state_dict(position | {"window": 99})
    ahead.close()
    other.close()


class Slow:
    """A stream whose third batch fails."""

    epoch = 0

    def __init__(self) -> None:
        self.made = 0
        self.threads: set[int] = set()

    def __next__(self) -> Any:
        self.made += 1
        self.threads.add(threading.get_ident())
        time.sleep(0.01)
        if self.made == 3:
            raise OSError("the disk is gone")
        values = {"inputs": np.zeros((1, 2), np.int64), "reference": np.zeros(2), "num_targets": 2}
        return SimpleNamespace(num_targets=2, _asdict=lambda: values)

    def state_dict(self) -> dict[str, int]:
        return {"row": self.made}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.made = state["row"]


def test_one_step_ahead_in_another_thread() -> None:
    source = Slow()
    steps = StepStream(source, 1, CPU, ahead=True)
    assert source.made == 0, "nothing is made before the first step: DPO first computes its reference"
    next(steps)
    assert steps.state_dict() == {"row": 1}
    next(steps)
    with pytest.raises(OSError, match="the disk is gone"):
        next(steps)
    assert threading.get_ident() not in source.threads
    steps.close()
    assert source.made == 3


def test_apple_gpus_get_no_float64() -> None:
    (tensors,) = next(StepStream(Slow(), 1, torch.device("mps"), ahead=False)).passes
    assert [tensor.dtype for tensor in tensors] == [torch.int64, torch.float32]
    (tensors,) = next(StepStream(Slow(), 1, CPU, ahead=False)).passes
    assert tensors[1].dtype == torch.float64


def test_the_thread_pins_memory_through_its_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each thread begins with the first GPU, on which pinning would open a context."""
    chosen: list[Any] = []
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: tensor)
    device = torch.device("cuda", 1)
    steps = StepStream(Batches(documents(), 0, 32, 2, seed=1), 3, device, ahead=True)
    next(steps)
    steps.close()
    assert chosen == [device]


def test_garbage_of_the_start_is_frozen() -> None:
    before = gc.get_freeze_count()
    with freeze_garbage():
        assert gc.get_freeze_count() > before + 1000
    assert gc.get_freeze_count() == 0

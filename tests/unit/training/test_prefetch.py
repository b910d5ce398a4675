"""Batches made one ahead: the same ones, the state of those taken, and errors."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from llamita.data.batches import Batches  # noqa: E402
from llamita.training.prefetch import Prefetcher  # noqa: E402

CUDA = torch.device("cuda", 1)


class Texts:
    """Documents of 3 to 9 tokens."""

    lengths = np.arange(60) % 7 + 3
    num_documents, num_tokens = 60, int((np.arange(60) % 7 + 3).sum())

    def document(self, index: int, /) -> Any:
        return np.full(self.lengths[index], index)


@pytest.fixture
def devices(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The devices that threads chose; pinning returns the tensor."""
    chosen: list[Any] = []
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda self: self)
    return chosen


def stream() -> Batches:
    return Batches(Texts(), 1, 16, 2, seed=3)


def test_the_same_batches_and_states(devices: list[Any]) -> None:
    """Over two epochs; the state is that after the batch that was taken, not of the one ahead."""
    plain, ahead = stream(), Prefetcher(stream(), CUDA)
    assert ahead.state_dict() == plain.state_dict()
    while plain.epoch < 2:
        one, other = next(plain), next(ahead)
        assert isinstance(other.inputs, torch.Tensor) and other.num_targets == one.num_targets
        assert np.array_equal(one.inputs, other.inputs.numpy()) and np.array_equal(one.targets, other.targets.numpy())
        assert ahead._coming is not None and ahead._coming.exception() is None  # the one ahead is made
        assert (ahead.epoch, ahead.state_dict()) == (plain.epoch, plain.state_dict())
    ahead.close()
    assert devices == [CUDA], "else memory would be pinned through the first GPU"


def test_a_loaded_state_discards_the_batch_ahead(devices: list[Any]) -> None:
    ahead, plain = Prefetcher(stream(), CUDA), stream()
    state = {}
    for number in range(4):
        next(ahead)
        if number == 1:
            state = ahead.state_dict()
    ahead.load_state_dict(state)
    plain.load_state_dict(state)
    assert np.array_equal(next(ahead).inputs.numpy(), next(plain).inputs)
    with pytest.raises(ValueError, match="window: expected less than"):
        ahead.load_state_dict({"epoch": 0, "window": 99, "row": 0})
    ahead.close()


def test_an_error_is_raised_with_its_batch(devices: list[Any]) -> None:
    """Not one batch early, and not lost."""

    class Damaged(Batches):
        count = 0

        def __next__(self) -> Any:
            self.count += 1
            if self.count == 3:
                raise OSError("damaged")
            return super().__next__()

    ahead = Prefetcher(Damaged(Texts(), 1, 16, 2, seed=3), CUDA)
    next(ahead)
    next(ahead)
    with pytest.raises(OSError, match="damaged"):
        next(ahead)
    ahead.close()

"""The loss of a batch in two threads beside the same in one."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable, Iterator
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from torch import Tensor, nn  # noqa: E402

from llamita.config import ModelConfig  # noqa: E402
from llamita.model.llama import Llama  # noqa: E402
from llamita.training.distillation import DistillationLoss  # noqa: E402
from llamita.training.loss import SummedLoss  # noqa: E402
from llamita.training.loss_in_halves import can_halve, loss_in_halves  # noqa: E402

TINY = ModelConfig(50, 16, 24, 2, 4, 2, 4, 32)


@pytest.fixture(autouse=True)
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def make_model(seed: int = 0, *, tied: bool = True) -> Llama:
    config = dataclasses.replace(TINY, tie_word_embeddings=tied)
    return Llama(config).initialize(torch.Generator().manual_seed(seed))


def some_batch(rows: int) -> tuple[Tensor, Tensor]:
    """inputs, targets [rows, 8]; some targets do not count."""
    inputs, targets = torch.randint(0, 50, (2, rows, 8), generator=torch.Generator().manual_seed(1))
    targets[0, 3:] = -100
    return inputs, targets


def loss_and_gradients(loss: nn.Module, rows: int, scale: float = 0.3) -> tuple[Tensor, list[Tensor]]:
    loss.zero_grad()
    nats = loss(*some_batch(rows))
    (nats * scale).backward()
    return nats.detach(), [parameter.grad.clone() for parameter in loss.parameters() if parameter.grad is not None]


def distilled(model: Llama, compute: torch.dtype) -> DistillationLoss:
    return DistillationLoss(model, make_model(1).to(compute), compute)


@pytest.mark.parametrize("make_loss", [SummedLoss, distilled])
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("rows", [2, 5])
def test_two_threads_compute_what_one_does(
    make_loss: Callable[[Llama, torch.dtype], nn.Module], tied: bool, rows: int
) -> None:
    loss = make_loss(make_model(tied=tied), torch.float32)
    nats, gradients = loss_and_gradients(loss, rows)
    again, same_gradients = loss_and_gradients(loss, rows)
    assert nats == again and all(map(torch.equal, gradients, same_gradients))
    torch.set_num_threads(1)
    expected, expected_gradients = loss_and_gradients(loss, rows)
    torch.testing.assert_close(nats, expected)
    assert len(gradients) == len(expected_gradients) == len(list(loss.parameters()))
    for gradient, other in zip(gradients, expected_gradients, strict=True):
        torch.testing.assert_close(gradient, other)


@pytest.mark.parametrize("make_loss", [SummedLoss, distilled])
def test_bfloat16_is_close(make_loss: Callable[[Llama, torch.dtype], nn.Module]) -> None:
    loss = make_loss(make_model(), torch.bfloat16)
    nats, gradients = loss_and_gradients(loss, 4)
    torch.set_num_threads(1)
    expected, expected_gradients = loss_and_gradients(loss, 4)
    torch.testing.assert_close(nats, expected, rtol=1e-3, atol=0)
    for gradient, other in zip(gradients, expected_gradients, strict=True):
        assert gradient.dtype == torch.float32
        assert (gradient - other).norm() < 0.02 * other.norm()


def test_a_batch_is_halved_only_where_that_helps(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def counted(*arguments: Any, **options: Any) -> Tensor:
        calls.append(1)
        return loss_in_halves(*arguments, **options)

    monkeypatch.setattr("llamita.training.loss.loss_in_halves", counted)
    loss = SummedLoss(make_model())
    loss(*some_batch(2))
    assert len(calls) == 1
    loss(*some_batch(1))
    with torch.no_grad():
        loss(*some_batch(2))
    torch.set_num_threads(1)
    loss(*some_batch(2))
    assert len(calls) == 1
    assert not can_halve(loss.model, torch.zeros(2, 8, device="meta"))


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs g++")
def test_compiled_halves() -> None:
    """The first pass compiles in one thread, the next ones run in both."""
    loss = SummedLoss(make_model())
    expected, expected_gradients = loss_and_gradients(loss, 5)
    compiled = SummedLoss(loss.model, compiled=True)
    for _ in range(2):
        nats, gradients = loss_and_gradients(compiled, 5)
        torch.testing.assert_close(nats, expected)
        for gradient, other in zip(gradients, expected_gradients, strict=True):
            torch.testing.assert_close(gradient, other, rtol=1e-4, atol=1e-5)


def test_the_threads_of_both_halves() -> None:
    """They share the threads, and afterwards the caller has all of them again."""
    torch.set_num_threads(5)
    weight, seen = torch.ones(1, requires_grad=True), {}

    def loss(rows: Tensor) -> Tensor:
        seen[len(rows)] = torch.get_num_threads()
        return (rows * weight).sum()

    assert loss_in_halves(loss, [weight], torch.ones(5, 2)).item() == 10
    assert seen == {3: 3, 2: 2} and torch.get_num_threads() == 5


@pytest.mark.parametrize("failing", [3, 2])
def test_an_error_in_a_half(failing: int) -> None:
    weight = torch.ones(1, requires_grad=True)

    def loss(rows: Tensor) -> Tensor:
        if len(rows) == failing:
            raise MemoryError("half")
        return (rows * weight).sum()

    with pytest.raises(MemoryError, match="half"):
        loss_in_halves(loss, [weight], torch.ones(5, 2))
    assert torch.get_num_threads() == 2

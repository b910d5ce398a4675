"""The loss and gradient of a batch on a CPU, the halves of the batch at the same time in two threads.

The operations of a small network take microseconds, and the threads that share an operation wait
for one another after each. The halves of a batch meet only once a pass.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from typing import Any

import torch
from torch import Tensor

from llamita.model.llama import Llama
from llamita.training.fused_cpu import can_fuse


def can_halve(model: Llama, rows: Tensor) -> bool:
    """Whether a pass over a batch of rows [B, ...] can be computed in two halves: with a gradient, on
    a CPU, with threads for both, of a network that can_fuse."""
    if not torch.is_grad_enabled() or torch.get_num_threads() == 1:
        return False
    return rows.device.type == "cpu" and len(rows) > 1 and can_fuse(model)


def loss_in_halves(
    loss: Callable[..., Tensor], parameters: Sequence[Tensor], *batch: Tensor, in_turn: bool = False
) -> Tensor:
    """The sum of loss(*first half) and loss(*second half), float32 scalars.

    batch: tensors [B, ...], B > 1. parameters: all tensors that learn. Where the loss is a sum over
    rows, only rounding differs from loss(*batch). in_turn: one half after the other, where the first
    to come compiles.
    """
    total: Tensor = _LossInHalves.apply(loss, batch, in_turn, *parameters)  # type: ignore[no-untyped-call]
    return total


class _LossInHalves(torch.autograd.Function):
    """The forward pass computes the gradient too, like _ChunkedCrossEntropy."""

    @staticmethod
    def forward(
        ctx: Any, loss: Callable[..., Tensor], batch: tuple[Tensor, ...], in_turn: bool, *parameters: Tensor
    ) -> Tensor:
        middle, threads = (len(batch[0]) + 1) // 2, torch.get_num_threads()

        def of_half(rows: slice, num_threads: int) -> tuple[Tensor, tuple[Tensor, ...]]:
            torch.set_num_threads(num_threads)  # of the operations that this thread calls
            with torch.enable_grad():
                nats = loss(*(tensor[rows] for tensor in batch))
                return nats.detach(), torch.autograd.grad(nats, parameters)

        try:
            with ThreadPoolExecutor(1) as other:
                second = other.submit(of_half, slice(middle, None), threads // 2)
                if in_turn:
                    wait([second])
                nats, gradients = of_half(slice(middle), threads - threads // 2)
            second_nats, second_gradients = second.result()
        finally:
            torch.set_num_threads(threads)
        torch._foreach_add_(gradients, second_gradients)
        ctx.gradients = gradients
        return nats + second_nats

    @staticmethod
    def backward(ctx: Any, *outputs: Tensor) -> tuple[Tensor | None, ...]:
        return None, None, None, *torch._foreach_mul(ctx.gradients, outputs[0])

"""Turns final hidden states and targets into the summed cross-entropy, without ever holding all logits.

Shape letters: N tokens of a batch, D hidden, V vocab.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llamita.data.batches import IGNORED
from llamita.model.llama import Llama

CHUNK_LOGITS = {"cpu": 1 << 21, "cuda": 1 << 27}  # at a time: what stays in a CPU's cache; a GPU wants big products
FEWEST_TOKENS = 192  # at a time: each chunk reads the whole classifier, which a large vocabulary's must be worth


class _ChunkedCrossEntropy(torch.autograd.Function):
    """Σ -log softmax(hidden @ weightᵀ)[target], its gradient computed in the same pass, a chunk of tokens at a time."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, with_gradient: bool, weight_learns: bool
    ) -> Tensor:
        """hidden [N, D], weight [V, D] of one type, targets [N] → float32 scalar."""
        hidden_gradient = torch.empty_like(hidden) if with_gradient else None
        weight_gradient = torch.zeros_like(weight, dtype=torch.float32) if with_gradient and weight_learns else None
        total = torch.zeros((), device=hidden.device)
        chunk = max(FEWEST_TOKENS, CHUNK_LOGITS["cuda" if hidden.is_cuda else "cpu"] // weight.shape[0])
        for start in range(0, len(targets), chunk):
            part, target = hidden[start : start + chunk], targets[start : start + chunk]
            log_p = F.log_softmax((part @ weight.t()).float(), dim=-1)  # [chunk, V]
            total += F.nll_loss(log_p, target, ignore_index=IGNORED, reduction="sum")
            if hidden_gradient is None:
                continue
            counts = (target != IGNORED)[:, None]
            gradient = log_p.exp_()  # softmax - onehot(target), zero where the target does not count
            gradient.scatter_add_(1, target.clamp_min(0)[:, None], torch.full_like(log_p[:, :1], -1.0))
            gradient = gradient.mul_(counts).to(weight.dtype)
            torch.mm(gradient, weight, out=hidden_gradient[start : start + len(part)])
            if weight_gradient is None:
                continue
            if weight.dtype == torch.float32:
                weight_gradient.addmm_(gradient.t(), part)
            else:
                weight_gradient += gradient.t() @ part
        if with_gradient:
            ctx.save_for_backward(hidden_gradient, weight_gradient)
        return total

    @staticmethod
    def backward(ctx: Any, *outputs: Tensor) -> tuple[Tensor | None, ...]:
        hidden_gradient, weight_gradient = ctx.saved_tensors
        of_weight = None if weight_gradient is None else (weight_gradient * outputs[0]).to(hidden_gradient.dtype)
        return hidden_gradient * outputs[0], of_weight, None, None, None


def summed_cross_entropy(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """Σ nats over the targets that count: hidden [N, D], weight [V, D] of one type, targets [N] → float32 scalar.

    A frozen weight costs no gradient's memory.
    """
    total: Tensor = _ChunkedCrossEntropy.apply(  # type: ignore[no-untyped-call]
        hidden, weight, targets, torch.is_grad_enabled(), weight.requires_grad
    )
    return total


class SummedLoss(nn.Module):
    """A network with its loss: inputs, targets [B, T] → Σ nats over the targets that count, float32.

    compute: the type of matrix products; anything but float32 goes through autocast.
    """

    def __init__(self, model: Llama, compute: torch.dtype = torch.float32, *, compiled: bool = False) -> None:
        super().__init__()
        self.model, self.compute = model, compute
        self._hidden_states = torch.compile(model.hidden_states, dynamic=False) if compiled else model.hidden_states

    def forward(self, inputs: Tensor, targets: Tensor) -> Tensor:
        with torch.autocast(inputs.device.type, self.compute, enabled=self.compute != torch.float32):
            hidden = self._hidden_states(inputs)
        hidden = hidden.reshape(-1, hidden.shape[-1]).to(self.compute)
        weight = self.model.output_weight.to(self.compute)
        return summed_cross_entropy(hidden, weight, targets.reshape(-1))

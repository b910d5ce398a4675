"""The training loss: summed cross-entropy of hidden states, without holding all logits at once.

Shape letters: N tokens of a batch, D hidden, V vocab.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from llamita.data.batches import IGNORED
from llamita.model.llama import Llama
from llamita.model.sdpa import can_attend_packed
from llamita.training.fused_bf16 import fused_hidden_states_bf16
from llamita.training.fused_cpu import can_fuse, fused_hidden_states
from llamita.training.loss_in_halves import can_halve, loss_in_halves

CHUNK_LOGITS = {"cpu": 1 << 21, "cuda": 1 << 27, "mps": 1 << 24}  # fits a CPU's cache; GPUs want large products
MIN_TOKENS = 192  # per chunk, because each chunk reads the whole classifier


def tokens_per_chunk(weight: Tensor) -> int:
    """How many tokens' logits exist at a time; weight [V, D] is the classifier."""
    return max(MIN_TOKENS, CHUNK_LOGITS.get(weight.device.type, CHUNK_LOGITS["cpu"]) // weight.shape[0])


def softmax_gradient(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """logits [N, V], targets [N] → -log softmax(logits)[target] [N] and its gradient by the logits.

    The gradient has the type of the logits. Both are 0 where a target is IGNORED. Written to be
    compiled into one kernel.
    """
    wide = logits.float()
    largest = wide.amax(-1, keepdim=True)
    shares = (wide - largest).exp()
    total = shares.sum(-1, keepdim=True)
    is_target = torch.arange(wide.shape[1], device=wide.device) == targets[:, None]
    nats = largest[:, 0] + total[:, 0].log() - torch.where(is_target, wide, 0.0).sum(-1)
    counts = (targets != IGNORED).float()
    gradient = (shares / total - is_target.float()) * counts[:, None]
    return nats * counts, gradient.to(logits.dtype)


@functools.cache
def _compiled_softmax_gradient() -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]:
    return torch.compile(softmax_gradient)


class _ChunkedCrossEntropy(torch.autograd.Function):
    """Σ -log softmax(hidden @ weightᵀ)[target] and its gradient, a chunk of tokens at a time."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, with_gradient: bool, weight_learns: bool
    ) -> Tensor:
        """hidden [N, D], weight [V, D] of one type, targets [N] → float32 scalar."""
        hidden_gradient = torch.empty_like(hidden) if with_gradient else None
        weight_gradient = torch.zeros_like(weight, dtype=torch.float32) if with_gradient and weight_learns else None
        nats = torch.empty(len(targets), device=hidden.device)
        counts = (targets != IGNORED).float()  # 1 or 0
        chunk = tokens_per_chunk(weight)
        for start in range(0, len(targets), chunk):
            rows = slice(start, start + chunk)
            part, target = hidden[rows], targets[rows].clamp_min(0)[:, None]
            logits = (part @ weight.t()).float()  # [chunk, V]
            largest, target_logits = logits.amax(-1), logits.gather(1, target)[:, 0]
            shares = torch.softmax(logits, -1)  # the largest share is 1 / Σ exp(logit - largest)
            nats[rows] = largest - target_logits - shares.amax(-1).log()
            if hidden_gradient is None:
                continue
            gradient = shares.scatter_add_(1, target, torch.full_like(target, -1, dtype=shares.dtype)).to(weight.dtype)
            scale = counts[rows, None]
            torch.mm(gradient, weight, out=hidden_gradient[rows]).mul_(scale)
            if weight_gradient is None:
                continue
            scaled = (part * scale).to(weight.dtype)
            if weight.dtype == torch.float32:
                weight_gradient.addmm_(gradient.t(), scaled)
            else:
                weight_gradient += gradient.t() @ scaled
        if with_gradient:
            ctx.save_for_backward(hidden_gradient, weight_gradient)
        return (nats * counts).sum()

    @staticmethod
    def backward(ctx: Any, *outputs: Tensor) -> tuple[Tensor | None, ...]:
        hidden_gradient, weight_gradient = ctx.saved_tensors
        weight_result = None if weight_gradient is None else (weight_gradient * outputs[0]).to(hidden_gradient.dtype)
        return hidden_gradient * outputs[0], weight_result, None, None, None


def packed_mask(segments: Tensor) -> Tensor:
    """segments [B, T], each position's document in its row → bool [B, 1, T, T]: True where query t
    may attend to key s, that is, if s ≤ t and both belong to the same document.

    RoPE depends only on distances, so a document in a packed row is computed as if it started at
    position 0.
    """
    time = segments.shape[1]
    causal = torch.ones(time, time, dtype=torch.bool, device=segments.device).tril()
    return (segments[:, None, :, None] == segments[:, None, None, :]) & causal


def packed_attention(model: Llama, compute: torch.dtype, segments: Tensor, cu_seqlens: Tensor | None) -> Tensor:
    """What keeps the documents of packed rows apart, for Llama.hidden_states: cu_seqlens (see
    sdpa.attend_packed) where that can train, else a mask."""
    if cu_seqlens is not None and uses_varlen(model, compute, segments.device):
        return cu_seqlens
    return packed_mask(segments)


def uses_varlen(model: Llama, compute: torch.dtype, device: torch.device) -> bool:
    """Whether varlen_attn can train the network in this type; it has no dropout."""
    return model.model.dropout.p == 0 and can_attend_packed(device, compute, model.config.head_dim)


def target_positions(targets: Tensor, positions: Tensor | None = None) -> Tensor:
    """Where in the flattened targets those that count are. [N]

    On a GPU finding them waits for all queued work, since only then their number is known. Batches
    therefore bring their positions along.
    """
    return (targets.flatten() != IGNORED).nonzero()[:, 0] if positions is None else positions


def summed_cross_entropy(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """Σ nats over the targets that count: hidden [N, D], weight [V, D] of one type, targets [N] →
    float32 scalar. A frozen weight gets no gradient, and no memory for one."""
    total: Tensor = _ChunkedCrossEntropy.apply(  # type: ignore[no-untyped-call]
        hidden, weight, targets, torch.is_grad_enabled(), weight.requires_grad
    )
    return total


class _CompiledCrossEntropy(torch.autograd.Function):
    """_ChunkedCrossEntropy with a compiled kernel for the logits: for GPUs, with a gradient."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
        """hidden [N, D], weight [V, D] of one type, targets [N] → float32 scalar."""
        logits_gradient = _compiled_softmax_gradient()
        hidden_gradient = torch.empty_like(hidden)
        weight_gradient = torch.zeros_like(weight, dtype=torch.float32)
        nats = torch.zeros((), device=hidden.device)
        # logits and their gradient exist only in bfloat16: twice the tokens take the same memory
        for rows in even_slices(len(hidden), 2 * tokens_per_chunk(weight)):
            losses, gradient = logits_gradient(hidden[rows] @ weight.t(), targets[rows])
            nats += losses.sum()
            torch.mm(gradient, weight, out=hidden_gradient[rows])
            weight_gradient += gradient.t() @ hidden[rows]
        ctx.save_for_backward(hidden_gradient, weight_gradient)
        return nats

    @staticmethod
    def backward(ctx: Any, *outputs: Tensor) -> tuple[Tensor | None, ...]:
        hidden_gradient, weight_gradient = ctx.saved_tensors
        weight_result = (weight_gradient * outputs[0]).to(hidden_gradient.dtype)
        return hidden_gradient * outputs[0].to(hidden_gradient.dtype), weight_result, None


def compiled_cross_entropy(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """summed_cross_entropy for GPUs, with a gradient."""
    total: Tensor = _CompiledCrossEntropy.apply(hidden, weight, targets)  # type: ignore[no-untyped-call]
    return total


def even_slices(length: int, max_size: int) -> list[slice]:
    """The fewest slices of at most max_size, all but the last of one length.

    Equal lengths need only one compiled kernel.
    """
    size = math.ceil(length / math.ceil(length / max_size))
    return [slice(start, start + size) for start in range(0, length, size)]


def training_hidden_states(model: Llama, inputs: Tensor, compute: torch.dtype) -> Tensor:
    """inputs [B, T] → [B, T, D] after the final norm, through the fused passes of CPUs for a network
    that can_fuse."""
    if can_fuse(model):
        fused = fused_hidden_states if compute == torch.float32 else fused_hidden_states_bf16
        return fused(model, inputs)
    return model.hidden_states(inputs, compute=compute)


class SummedLoss(nn.Module):
    """A network with its loss: inputs, targets [B, T] → Σ nats over counted targets, float32.

    compute: the type to compute in; weights are cast to it and stored unchanged. compiled: compile
    the pass with a gradient; evaluations have rows of other lengths and should not wait for the
    compiler. A network that can_fuse trains on batches in halves, and without compiling through
    fused_cpu.py.
    """

    def __init__(self, model: Llama, compute: torch.dtype = torch.float32, *, compiled: bool = False) -> None:
        super().__init__()
        self.model, self.compute = model, compute
        self._compiled = torch.compile(model.hidden_states, dynamic=False) if compiled else None
        self._must_compile = compiled

    def forward(self, inputs: Tensor, targets: Tensor) -> Tensor:
        if not can_halve(self.model, inputs):
            return self._summed(inputs, targets)
        in_turn, self._must_compile = self._must_compile, False
        return loss_in_halves(self._summed, tuple(self.model.parameters()), inputs, targets, in_turn=in_turn)

    def _summed(self, inputs: Tensor, targets: Tensor) -> Tensor:
        hidden = self._hidden_states(inputs)
        hidden = hidden.reshape(-1, hidden.shape[-1])
        weight = self.model.output_weight.to(self.compute)
        if self._compiled is not None and torch.is_grad_enabled() and hidden.is_cuda:
            return compiled_cross_entropy(hidden, weight, targets.reshape(-1))
        return summed_cross_entropy(hidden, weight, targets.reshape(-1))

    def _hidden_states(self, inputs: Tensor) -> Tensor:
        if not torch.is_grad_enabled():
            return self.model.hidden_states(inputs, compute=self.compute)
        if self._compiled is not None:
            compiled: Tensor = self._compiled(inputs, compute=self.compute)
            return compiled
        return training_hidden_states(self.model, inputs, self.compute)

"""The loss of a student that learns from a larger network with the same tokenizer.

    Σ over targets of (1-α) · -log q(target) + α T² · KL(p_T ‖ q_T)

p_T, q_T: the teacher's and the student's distributions, softmax(logits / T). T² keeps the
gradient's size as T grows (Hinton, Vinyals, Dean, arXiv 1503.02531, section 2). Neither network's
logits ever exist all at once.

Shape letters: B batch, T time, N targets that count, D the student's hidden, E the teacher's, V
vocab.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llamita.checkpoint import load_model, resolve_checkpoint
from llamita.config import ModelConfig, RunConfig
from llamita.console import format_count
from llamita.errors import TrainingError
from llamita.model.llama import Llama
from llamita.tokenizer import Tokenizer, load_tokenizer
from llamita.training.loss import (
    packed_attention,
    summed_cross_entropy,
    target_positions,
    tokens_per_chunk,
    training_hidden_states,
)
from llamita.training.loss_in_halves import can_halve, loss_in_halves

DEFAULT_ALPHA, DEFAULT_TEMPERATURE = 0.5, 1.0


def tokens_per_distillation_chunk(weight: Tensor) -> int:
    """tokens_per_chunk, divided by four on a GPU.

    Eight float32 copies of the logits exist at once here; the plain loss has two.
    """
    return max(1, tokens_per_chunk(weight) // 4) if weight.is_cuda else tokens_per_chunk(weight)


class _ChunkedDistillation(torch.autograd.Function):
    """The loss above with its gradient, one chunk of tokens at a time."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, teacher_hidden: Tensor, teacher_weight: Tensor, targets: Tensor,
        alpha: float, temperature: float, with_gradient: bool, weight_learns: bool,
    ) -> Tensor:  # fmt: skip
        """hidden [N, D], weight [V, D] of one type, teacher_hidden [N, E], teacher_weight [V, E] of
        one type, targets [N] → float32 scalar."""
        hidden_gradient = torch.empty_like(hidden) if with_gradient else None
        weight_gradient = torch.zeros_like(weight, dtype=torch.float32) if with_gradient and weight_learns else None
        total = torch.zeros((), device=hidden.device)
        chunk = tokens_per_distillation_chunk(weight)
        for start in range(0, len(targets), chunk):
            part, target = hidden[start : start + chunk], targets[start : start + chunk]
            logits = (part @ weight.t()).float()  # [chunk, V]
            log_p = F.log_softmax(
                (teacher_hidden[start : start + chunk] @ teacher_weight.t()).float() / temperature, -1
            )
            log_q = F.log_softmax(logits / temperature, dim=-1)
            total += alpha * temperature**2 * F.kl_div(log_q, log_p, reduction="sum", log_target=True)
            log_q_plain = log_q if temperature == 1 else F.log_softmax(logits, dim=-1)
            total += (1 - alpha) * F.nll_loss(log_q_plain, target, reduction="sum")
            if hidden_gradient is None:
                continue
            target_part = log_q_plain.exp()  # softmax - onehot(target)
            target_part.scatter_add_(1, target[:, None], torch.full_like(logits[:, :1], -1.0))
            teacher_part = log_q.exp() - log_p.exp()  # of KL(p_T ‖ q_T), times T
            gradient = ((1 - alpha) * target_part).add_(teacher_part, alpha=alpha * temperature).to(weight.dtype)
            torch.mm(gradient, weight, out=hidden_gradient[start : start + len(part)])
            if weight_gradient is not None:
                weight_gradient += gradient.t() @ part
        if with_gradient:
            ctx.save_for_backward(hidden_gradient, weight_gradient)
        return total

    @staticmethod
    def backward(ctx: Any, *outputs: Tensor) -> tuple[Tensor | None, ...]:
        hidden_gradient, weight_gradient = ctx.saved_tensors
        weight_result = None if weight_gradient is None else (weight_gradient * outputs[0]).to(hidden_gradient.dtype)
        return (hidden_gradient * outputs[0].to(hidden_gradient.dtype), weight_result, *[None] * 7)


class DistillationLoss(nn.Module):
    """A network with its loss beside a teacher's: a batch → Σ nats over counted targets, float32.

    With eval() it is plain cross-entropy, so that validation losses stay comparable; so it is without
    a teacher, until `learn_from` brings one. compute: the
    type of the student's computation. The teacher computes in the type of its weights, without
    gradients and dropout.
    """

    def __init__(
        self,
        model: Llama,
        teacher: Llama | None,
        compute: torch.dtype = torch.float32,
        *,
        alpha: float = DEFAULT_ALPHA,
        temperature: float = DEFAULT_TEMPERATURE,
        compiled: bool = False,
    ) -> None:
        """alpha: the teacher's weight in the loss. compiled: compile the student."""
        super().__init__()
        assert 0.0 <= alpha <= 1.0 and temperature > 0
        self.model, self.compute = model, compute
        self.alpha, self.temperature = alpha, temperature
        # as in SummedLoss: only where there is a gradient to compute
        self._compiled = torch.compile(model.hidden_states, dynamic=False) if compiled else None
        self._teacher: tuple[Llama, ...] = ()  # in a tuple, so not a submodule
        if teacher is not None:
            self.learn_from(teacher)

    def learn_from(self, teacher: Llama) -> None:
        """Replace the teacher by another one with the same vocabulary."""
        assert self.model.config.vocab_size == teacher.config.vocab_size
        self._teacher = (teacher.requires_grad_(False).eval(),)

    @property
    def teacher(self) -> Llama | None:
        return self._teacher[0] if self._teacher else None

    def describe(self) -> str:
        """A line about the teacher for the start of a run; empty without one."""
        if self.teacher is None:
            return ""
        weights = format_count(self.teacher.config.num_parameters)
        return f"teacher: {weights} weights, {self.alpha:g} of the loss, temperature {self.temperature:g}"

    def forward(
        self,
        inputs: Tensor,
        targets: Tensor,
        segments: Tensor | None = None,
        positions: Tensor | None = None,
        cu_seqlens: Tensor | None = None,
    ) -> Tensor:
        """segments, cu_seqlens: see packed_attention; without them attention is causal over the whole
        row. positions: see target_positions."""
        if segments is not None:
            mask_for = functools.partial(
                packed_attention, compute=self.compute, segments=segments, cu_seqlens=cu_seqlens
            )
            return self._summed(inputs, targets, positions, mask_for)
        if self._compiled is None and can_halve(self.model, inputs):
            return loss_in_halves(self._summed, tuple(self.model.parameters()), inputs, targets)
        return self._summed(inputs, targets, positions)

    def _summed(
        self,
        inputs: Tensor,
        targets: Tensor,
        positions: Tensor | None = None,
        mask_for: Callable[[Llama], Tensor | None] = lambda model: None,
    ) -> Tensor:
        """mask_for: the mask of a network's attention, or None for causal attention over the row."""
        mask = mask_for(self.model)
        if mask is None and self._compiled is None and torch.is_grad_enabled():
            hidden = training_hidden_states(self.model, inputs, self.compute)
        else:
            compiled = self._compiled if torch.is_grad_enabled() else None
            hidden_states = self.model.hidden_states if compiled is None else compiled
            hidden = hidden_states(inputs, mask=mask, compute=self.compute)
        positions = target_positions(targets, positions)
        weight = self.model.output_weight.to(self.compute)
        hidden, targets = hidden.flatten(0, 1).index_select(0, positions), targets.flatten()[positions]
        if not self.training or self.teacher is None:
            return summed_cross_entropy(hidden, weight, targets)
        with torch.no_grad():
            teacher_hidden = self.teacher.hidden_states(inputs, mask=mask_for(self.teacher))
            teacher_hidden = teacher_hidden.flatten(0, 1).index_select(0, positions)
        total: Tensor = _ChunkedDistillation.apply(  # type: ignore[no-untyped-call]
            hidden, weight, teacher_hidden, self.teacher.output_weight, targets, self.alpha, self.temperature,
            torch.is_grad_enabled(), weight.requires_grad,
        )  # fmt: skip
        return total


def load_teacher(
    directory: Path, tokenizer: Tokenizer, config: ModelConfig, context: int, device: torch.device, compute: torch.dtype
) -> Llama:
    """A checkpoint as a teacher on the device, in the type `compute`.

    tokenizer, config: the student's; context: tokens per row. Raises CheckpointError, and
    TrainingError if the teacher's tokenizer differs, its vocabulary has another size, or its
    context is too short.
    """
    directory = resolve_checkpoint(directory)
    teacher = load_model(directory)
    if load_tokenizer(directory).fingerprint != tokenizer.fingerprint:
        raise TrainingError(
            f"cannot learn from {directory}: expected a teacher with the student's tokenizer, found another; "
            "prepare the data with the teacher's tokenizer (llamita prepare --tokenizer), or choose another teacher"
        )
    if teacher.config.vocab_size != config.vocab_size:
        raise TrainingError(
            f"cannot learn from {directory}: expected the student's vocabulary size of {config.vocab_size:,}, found "
            f"{teacher.config.vocab_size:,}; choose another teacher"
        )
    if teacher.config.max_position_embeddings < context:
        raise TrainingError(
            f"cannot learn from {directory}: expected a context of at least {context:,} tokens, found "
            f"{teacher.config.max_position_embeddings:,}; lower --context"
        )
    return teacher.to(device, compute).requires_grad_(False).eval()


def distillation_loss(
    config: RunConfig,
    model: Llama,
    tokenizer: Tokenizer,
    context: int,
    compute: torch.dtype,
    *,
    compiled: bool = False,
) -> DistillationLoss:
    """The loss for --teacher, --teacher-weight and --temperature, with the teacher, if one is given, on
    the model's device in the type `compute`. Raises what load_teacher raises."""
    teacher = None
    if config.teacher is not None:
        teacher = load_teacher(config.teacher, tokenizer, model.config, context, model.output_weight.device, compute)
    return DistillationLoss(
        model,
        teacher,
        compute,
        alpha=DEFAULT_ALPHA if config.teacher_weight is None else config.teacher_weight,
        temperature=DEFAULT_TEMPERATURE if config.temperature is None else config.temperature,
        compiled=compiled,
    )

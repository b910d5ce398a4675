"""The losses of preference optimization on packed pairs of answers: DPO, cDPO and IPO.

With the log-ratio r(y) = log π(y|x) - log π_reference(y|x) of an answer's tokens, end token
included, and Δ = r(chosen) - r(rejected):

    dpo   -log σ(β Δ)                          arXiv 2305.18290, equation 7
          -(1-ε) log σ(β Δ) - ε log σ(-β Δ)    label smoothing: labels are wrong with probability ε (Mitchell,
                                               "A note on DPO with noisy preferences", 2023)
    ipo   (Δ' - 1/(2β))²                       arXiv 2310.12036, equation 17, β its τ; in Δ' each log-ratio is
                                               divided by its number of tokens, as in TRL

The reference is the network before the first step. Its log-probabilities are computed once, so no
second network is needed.

Shape letters: B rows, T time, N targets, D hidden, V vocab, P pairs.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llamita.model.device import accumulator_type
from llamita.model.llama import Llama
from llamita.training.loss import packed_attention, target_positions, tokens_per_chunk

PreferenceKind = Literal["dpo", "ipo"]


class _TargetLogProbabilities(torch.autograd.Function):
    """log softmax(hidden @ weightᵀ)[target] of each token, a chunk of tokens at a time.

    The scale of a token's gradient is known only when all tokens are summed. With a frozen weight,
    the unscaled gradient of hidden is computed in the forward pass; otherwise backward computes the
    logits again.
    """

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, with_gradient: bool, weight_trains: bool
    ) -> Tensor:
        """hidden [N, D], weight [V, D] of one type, targets [N] → float32 [N]."""
        log_probabilities = torch.empty(len(targets), device=hidden.device)
        hidden_gradient = torch.empty_like(hidden) if with_gradient and not weight_trains else None
        for part in _chunks(hidden, weight):
            log_p = F.log_softmax((hidden[part] @ weight.t()).float(), dim=-1)  # [chunk, V]
            log_probabilities[part] = log_p.gather(1, targets[part, None])[:, 0]
            if hidden_gradient is not None:
                torch.mm(_logits_gradient(log_p, targets[part]).to(weight.dtype), weight, out=hidden_gradient[part])
        ctx.weight_trains = weight_trains
        if with_gradient:
            ctx.save_for_backward(*((hidden, weight, targets) if weight_trains else (hidden_gradient,)))
        return log_probabilities

    @staticmethod
    def backward(ctx: Any, *outputs: Tensor) -> tuple[Tensor | None, ...]:
        scale = outputs[0][:, None]  # [N, 1]
        if not ctx.weight_trains:
            (hidden_gradient,) = ctx.saved_tensors
            return (hidden_gradient * scale).to(hidden_gradient.dtype), None, None, None, None
        hidden, weight, targets = ctx.saved_tensors
        hidden_gradient, weight_gradient = torch.empty_like(hidden), torch.zeros_like(weight, dtype=torch.float32)
        for part in _chunks(hidden, weight):
            log_p = F.log_softmax((hidden[part] @ weight.t()).float(), dim=-1)
            gradient = (_logits_gradient(log_p, targets[part]) * scale[part]).to(weight.dtype)
            torch.mm(gradient, weight, out=hidden_gradient[part])
            weight_gradient += gradient.t() @ hidden[part]
        return hidden_gradient, weight_gradient.to(weight.dtype), None, None, None


def _chunks(hidden: Tensor, weight: Tensor) -> list[slice]:
    size = tokens_per_chunk(weight)
    return [slice(start, min(start + size, len(hidden))) for start in range(0, len(hidden), size)]


def _logits_gradient(log_p: Tensor, targets: Tensor) -> Tensor:
    """∂ log softmax(logits)[target] / ∂ logits = onehot - softmax, [chunk, V]; overwrites log_p."""
    gradient = log_p.exp_().neg_()
    return gradient.scatter_add_(1, targets[:, None], torch.ones_like(gradient[:, :1]))


def target_log_probabilities(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """Each target's log-probability: hidden [N, D], weight [V, D] of one type, targets [N] →
    float32 [N]."""
    found: Tensor = _TargetLogProbabilities.apply(  # type: ignore[no-untyped-call]
        hidden, weight, targets, torch.is_grad_enabled(), weight.requires_grad
    )
    return found


def preference_losses(
    ratios: Tensor, num_tokens: Tensor, kind: PreferenceKind, beta: float, label_smoothing: float = 0.0
) -> Tensor:
    """ratios, num_tokens [2, P], of chosen and rejected answers → the loss of each pair [P]."""
    if kind == "ipo":
        assert label_smoothing == 0.0, "IPO has no label smoothing"
        chosen, rejected = ratios / num_tokens
        return (chosen - rejected - 1 / (2 * beta)).square()
    margin = beta * (ratios[0] - ratios[1])
    return -(1 - label_smoothing) * F.logsigmoid(margin) - label_smoothing * F.logsigmoid(-margin)


class DpoLoss(nn.Module):
    """The arrays of a DpoBatch → Σ of the pairs' losses, of accumulator_type.

    compute: the type to compute in.
    Log-probabilities are summed in float64 where the device has it: those of a long answer are
    large, and their difference from the reference is small.
    """

    def __init__(
        self,
        model: Llama,
        kind: PreferenceKind = "dpo",
        beta: float = 0.1,
        label_smoothing: float = 0.0,
        compute: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        self.model, self.compute = model, compute
        self.kind, self.beta, self.label_smoothing = kind, beta, label_smoothing

    def forward(
        self,
        inputs: Tensor,
        targets: Tensor,
        segments: Tensor,
        reference: Tensor,
        positions: Tensor | None = None,
        cu_seqlens: Tensor | None = None,
    ) -> Tensor:
        """positions: see target_positions. cu_seqlens: see PackedBatch."""
        found, num_tokens = self.log_probabilities(inputs, targets, segments, reference.shape[1], positions, cu_seqlens)
        losses = preference_losses(found - reference, num_tokens, self.kind, self.beta, self.label_smoothing)
        return losses.sum()

    def log_probabilities(
        self,
        inputs: Tensor,
        targets: Tensor,
        segments: Tensor,
        num_pairs: int,
        positions: Tensor | None = None,
        cu_seqlens: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """[2, P]: log-probabilities of the chosen and the rejected answers, and their
        numbers of tokens."""
        mask = packed_attention(self.model, self.compute, segments, cu_seqlens)
        hidden = self.model.hidden_states(inputs, mask=mask, compute=self.compute)
        positions = target_positions(targets, positions)
        is_second = torch.arange(len(inputs), device=inputs.device) >= len(inputs) // 2
        answer = (segments + num_pairs * is_second[:, None]).flatten()[positions]  # [N]
        log_p = target_log_probabilities(
            hidden.flatten(0, 1).index_select(0, positions),
            self.model.output_weight.to(self.compute),
            targets.flatten()[positions],
        ).to(accumulator_type(inputs.device))
        zeros = torch.zeros(2 * num_pairs, dtype=log_p.dtype, device=inputs.device)
        sums = zeros.index_add(0, answer, log_p), zeros.index_add(0, answer, torch.ones_like(log_p))
        return sums[0].view(2, num_pairs), sums[1].view(2, num_pairs)

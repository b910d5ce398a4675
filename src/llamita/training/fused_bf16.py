"""The passes of fused_cpu.py with matrix products in bfloat16, for CPUs that have them.

Weights and the residual stream are float32. A layer's weights are rounded once a pass, the norm's
gain multiplied into them. Tiles are rounded where they enter a product; norms, RoPE and SiLU are
computed in float32, and so are the sums over tiles.

Shape letters: N tokens of a batch, D hidden, F ffn, G heads of all rows, T time, S head size.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from llamita.model.llama import Attention, Llama, RMSNorm
from llamita.training.fused_cpu import Passes, _apply, _inverse_rms, _rotate_, _tiles, run_passes

BF16 = torch.bfloat16
TILE_SCORES = 1 << 19  # of attention at a time: 1 MiB
MAX_STORED_CONTEXT = 512  # beyond it attention's shares, T numbers a token and head, are not stored


def fused_hidden_states_bf16(model: Llama, ids: Tensor) -> Tensor:
    """ids [B, T] → bfloat16 [B, T, D] after the final norm: Llama.hidden_states of a model that
    can_fuse, computed in bfloat16."""
    return run_passes(model, ids, Passes(_attend, _FeedForward, _Norm))


def _attend(attention: Attention, norm: RMSNorm, residual: Tensor, cos: Tensor, sin: Tensor, batch: int) -> Tensor:
    """residual [N, D] plus the output of attention."""
    weights = norm.weight, attention.q_proj.weight, attention.k_proj.weight, attention.v_proj.weight
    joined = _apply(_QueryKeyValue, residual, *weights, cos, sin, norm.eps)
    heads = joined.view(batch, len(cos), -1, attention.head_dim).transpose(1, 2)  # [B, H + 2 K, T, S]
    num_kv = len(attention.k_proj.weight) // attention.head_dim
    out = causal_attention(*torch.split(heads, [heads.shape[1] - 2 * num_kv, num_kv, num_kv], dim=1))
    projected = out.transpose(1, 2).reshape(len(residual), -1) @ attention.o_proj.weight.to(BF16).t()
    return residual + projected


def causal_attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """query [B, H, T, S]; key, value [B, K, T, S], bfloat16 → [B, H, T, S].

    PyTorch's kernel computes a quarter as much a second as products of whole heads.
    """
    batch, heads, time, size = query.shape
    if time > MAX_STORED_CONTEXT:
        is_grouped = heads != key.shape[1]
        return F.scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=is_grouped)
    if heads != key.shape[1]:
        key, value = (x.repeat_interleave(heads // x.shape[1], dim=1) for x in (key, value))
    out: Tensor = _apply(_HeadAttention, *(x.reshape(-1, time, size) for x in (query, key, value)))
    return out.view(batch, heads, time, size)


def _rounded(norm: Tensor | None, *weights: Tensor) -> Tensor:
    """The rows of all weights [rows, D], times the norm's gain [D], in bfloat16."""
    whole = torch.cat(weights)
    return (whole if norm is None else whole.mul_(norm)).to(BF16)


def _normed(x: Tensor, scale: Tensor) -> Tensor:
    return (x * scale).to(BF16)


def _norm_backward(gradient: Tensor, x: Tensor, scale: Tensor) -> Tensor:
    """Backward of y = x * scale with scale = _inverse_rms(x): scale * (g - y * mean(g * y)).

    gradient: float32, overwritten.
    """
    share = (gradient * x).sum(-1, keepdim=True) * scale**3
    return gradient.mul_(scale).addcmul_(x, share, value=-1 / x.shape[-1])


def _weight_gradients(joined: Tensor, norm: Tensor, *weights: Tensor) -> tuple[Tensor, ...]:
    """The gradients of norm and weights from that of _rounded(norm, *weights)."""
    parts = torch.split(joined, [len(weight) for weight in weights])
    norm_gradient = sum(((part * weight).sum(0) for part, weight in zip(parts, weights, strict=True)), torch.zeros(()))
    return norm_gradient, *(part.mul_(norm) for part in parts)


class _Norm(torch.autograd.Function):
    """x [N, D] → bfloat16 of x / rms(x) * weight."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        out, scales = torch.empty_like(x, dtype=BF16), x.new_empty(len(x), 1)
        for tile in _tiles(len(x), x.shape[1]):
            scales[tile] = _inverse_rms(x[tile], eps)
            out[tile] = (x[tile] * scales[tile]).mul_(weight)
        ctx.save_for_backward(x, weight, scales)
        return out

    @staticmethod
    def backward(ctx: Any, *outputs: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, scales = ctx.saved_tensors
        x_gradient, weight_gradient = torch.empty_like(x), torch.zeros_like(weight)
        for tile in _tiles(len(x), x.shape[1]):
            gradient = outputs[0][tile].float()
            weight_gradient.addmv_((gradient * x[tile]).t(), scales[tile, 0])
            x_gradient[tile] = _norm_backward(gradient.mul_(weight), x[tile], scales[tile])
        return x_gradient, weight_gradient, None


class _QueryKeyValue(torch.autograd.Function):
    """x [N, D] → queries, keys and values side by side, bfloat16 [N, (H + 2 K) * S], after norm,
    projections and RoPE."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, norm: Tensor, query: Tensor, key: Tensor, value: Tensor, cos: Tensor, sin: Tensor,
        eps: float,
    ) -> Tensor:  # fmt: skip
        """norm [D]; query, key, value: weights [heads * S, D]; cos, sin [T, S/2]."""
        joined = _rounded(norm, query, key, value)
        out, scales = x.new_empty(len(x), len(joined), dtype=BF16), x.new_empty(len(x), 1)
        for tile in _tiles(len(x), len(joined), len(cos)):
            scales[tile] = _inverse_rms(x[tile], eps)
            part = _normed(x[tile], scales[tile]) @ joined.t()
            out[tile] = _turned(part, len(query) + len(key), cos, sin)
        ctx.save_for_backward(x, norm, query, key, value, cos, sin, scales, joined)
        return out

    @staticmethod
    def backward(ctx: Any, *outputs: Tensor) -> tuple[Tensor | None, ...]:
        x, norm, query, key, value, cos, sin, scales, joined = ctx.saved_tensors
        x_gradient, joined_gradient = torch.empty_like(x), torch.zeros_like(joined, dtype=torch.float32)
        for tile in _tiles(len(x), len(joined), len(cos)):
            # the inverse rotation
            gradient = _turned(outputs[0][tile], len(query) + len(key), cos, -sin).to(BF16)
            joined_gradient += gradient.t() @ _normed(x[tile], scales[tile])
            x_gradient[tile] = _norm_backward((gradient @ joined).float(), x[tile], scales[tile])
        return x_gradient, *_weight_gradients(joined_gradient, norm, query, key, value), None, None, None


def _turned(x: Tensor, size: int, cos: Tensor, sin: Tensor) -> Tensor:
    """x [rows * T, width] in float32, the first `size` numbers of each token rotated by RoPE."""
    time, half = cos.shape
    wide = x.float()
    _rotate_(wide[:, :size].view(-1, time, size // (2 * half), 2 * half), cos[:, None], sin[:, None])
    return wide


class _HeadAttention(torch.autograd.Function):
    """Causal attention of heads [G, T, S] by products of whole heads, as many at a time as stay in
    the cache. Stores the shares, bfloat16 [G, T, T]."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        count, time, size = query.shape
        out, shares = torch.empty_like(query), query.new_empty(count, time, time)
        mask = query.new_full((time, time), -torch.inf).triu_(1)
        for tile in _tiles_of_heads(query):
            scores = torch.baddbmm(mask, query[tile], key[tile].mT, alpha=size**-0.5)
            torch.softmax(scores, -1, out=shares[tile])
            torch.bmm(shares[tile], value[tile], out=out[tile])
        ctx.save_for_backward(query, key, value, shares)
        return out

    @staticmethod
    def backward(ctx: Any, *outputs: Tensor) -> tuple[Tensor, ...]:
        query, key, value, shares = ctx.saved_tensors
        gradients = [torch.empty_like(query) for _ in range(3)]
        scaled = outputs[0] * query.shape[2] ** -0.5
        for tile in _tiles_of_heads(query):
            gradient = torch.bmm(scaled[tile], value[tile].mT)  # of the shares
            gradient = torch._softmax_backward_data(gradient, shares[tile], -1, BF16)
            torch.bmm(gradient, key[tile], out=gradients[0][tile])
            torch.bmm(gradient.mT, query[tile], out=gradients[1][tile])
            torch.bmm(shares[tile].mT, outputs[0][tile], out=gradients[2][tile])
        return tuple(gradients)


def _tiles_of_heads(heads: Tensor) -> list[slice]:
    count, time, _ = heads.shape
    size = max(1, TILE_SCORES // time**2)
    return [slice(start, start + size) for start in range(0, count, size)]


class _FeedForward(torch.autograd.Function):
    """x [N, D] → x + down(silu(gate(n)) * up(n)), n = x / rms(x) * norm."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, norm: Tensor, gate: Tensor, up: Tensor, down: Tensor, eps: float) -> Tensor:
        """norm [D]; gate, up [F, D]; down [D, F]."""
        joined, down_rounded = _rounded(norm, gate, up), _rounded(None, down)
        gates_ups = x.new_empty(len(x), len(joined), dtype=BF16)
        out, scales = torch.empty_like(x), x.new_empty(len(x), 1)
        for tile in _tiles(len(x), len(gate)):
            scales[tile] = _inverse_rms(x[tile], eps)
            torch.mm(_normed(x[tile], scales[tile]), joined.t(), out=gates_ups[tile])
            gates, ups = gates_ups[tile].float().chunk(2, dim=-1)
            active = F.silu(gates).mul_(ups).to(BF16)
            torch.add(x[tile], active @ down_rounded.t(), out=out[tile])
        ctx.save_for_backward(x, norm, gate, up, joined, down_rounded, gates_ups, scales)
        return out

    @staticmethod
    def backward(ctx: Any, *outputs: Tensor) -> tuple[Tensor | None, ...]:
        x, norm, gate, up, joined, down, gates_ups, scales = ctx.saved_tensors
        x_gradient = torch.empty_like(x)
        joined_gradient, down_gradient = (torch.zeros_like(weight, dtype=torch.float32) for weight in (joined, down))
        for tile in _tiles(len(x), len(gate)):
            out_gradient = outputs[0][tile].to(BF16)
            gates, ups = gates_ups[tile].float().chunk(2, dim=-1)
            sigmoid = gates.sigmoid()
            active = gates.mul_(sigmoid)
            slope = torch.addcmul(sigmoid, active, 1 - sigmoid)  # of silu
            down_gradient += out_gradient.t() @ (active * ups).to(BF16)
            gradient = (out_gradient @ down).float()  # of silu(gate) * up
            parts = gates_ups.new_empty(len(gradient), len(joined))
            parts[:, len(gate) :] = active.mul_(gradient)
            parts[:, : len(gate)] = gradient.mul_(ups).mul_(slope)
            joined_gradient += parts.t() @ _normed(x[tile], scales[tile])
            x_part = _norm_backward((parts @ joined).float(), x[tile], scales[tile])
            torch.add(x_part, outputs[0][tile], out=x_gradient[tile])
        return x_gradient, *_weight_gradients(joined_gradient, norm, gate, up), down_gradient, None

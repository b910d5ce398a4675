"""A faster CPU training path for model/llama.py, with backward passes written out by hand.

A layer is two functions. Each walks over the tokens in tiles small enough for a processor's cache,
forward and backward, and recomputes cheap values (norms, activations) instead of storing them.

Shape letters: N tokens of a batch, D hidden, F ffn, S head size.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llamita.model.llama import Attention, DecoderLayer, Linear, Llama, RMSNorm

TILE_NUMBERS = 1 << 18  # in a tile's widest matrix: 1 MiB, about 340 tokens of 768


def can_fuse(model: Llama) -> bool:
    """Whether the fused passes compute what the model does: a plain Llama with float32 weights on a
    CPU, complete layers of plain matrices that all learn, no dropout."""
    config = model.config
    if config.attention_bias or config.use_qk_norm or config.no_rope_layers:
        return False
    layers, parameters = list(model.model.layers), list(model.parameters())
    # not sharded, wrapped or checkpointed
    is_whole = type(model) is Llama and all(
        type(each) is DecoderLayer and "forward" not in vars(each) for each in layers
    )
    if not is_whole or (model.training and model.model.dropout.p > 0):
        return False
    is_plain = all(type(module) is Linear for layer in layers for module in _projections(layer))
    return is_plain and all(p.requires_grad and p.device.type == "cpu" and p.dtype == torch.float32 for p in parameters)


class Passes(NamedTuple):
    """The parts of a layer, computed in one type."""

    attend: Callable[[Attention, RMSNorm, Tensor, Tensor, Tensor, int], Tensor]
    feed_forward: type[torch.autograd.Function]
    norm: type[torch.autograd.Function]


def fused_hidden_states(model: Llama, ids: Tensor) -> Tensor:
    """ids [B, T] → [B, T, D] after the final norm: Llama.hidden_states of a model that can_fuse."""
    return run_passes(model, ids, Passes(_attend, _FeedForward, _Norm))


def run_passes(model: Llama, ids: Tensor, passes: Passes) -> Tensor:
    """ids [B, T] → [B, T, D] after the final norm, in the type that the last pass returns."""
    (batch, time), size = ids.shape, model.config.hidden_size
    residual = F.embedding(ids.reshape(-1), model.model.embed_tokens.weight)  # [N, D]
    cos, sin = (table[:, 0] for table in model.rope_rows(0, time))
    for layer in model.model.layers:
        assert isinstance(layer, DecoderLayer)
        residual = passes.attend(layer.self_attn, layer.input_layernorm, residual, cos, sin, batch)
        norm, mlp = layer.post_attention_layernorm, layer.mlp
        weights = norm.weight, mlp.gate_proj.weight, mlp.up_proj.weight, mlp.down_proj.weight
        residual = _apply(passes.feed_forward, residual, *weights, norm.eps)
    last = model.model.norm
    hidden: Tensor = _apply(passes.norm, residual, last.weight, last.eps)
    return hidden.view(batch, time, size)


def _apply(function: type[torch.autograd.Function], *arguments: Any) -> Any:
    return function.apply(*arguments)  # type: ignore[no-untyped-call]


def _projections(layer: nn.Module) -> list[nn.Module]:
    assert isinstance(layer, DecoderLayer)
    attention, mlp = layer.self_attn, layer.mlp
    return [
        attention.q_proj, attention.k_proj, attention.v_proj, attention.o_proj,
        mlp.gate_proj, mlp.up_proj, mlp.down_proj,
    ]  # fmt: skip


def _attend(attention: Attention, norm: RMSNorm, residual: Tensor, cos: Tensor, sin: Tensor, batch: int) -> Tensor:
    """residual [N, D] plus the output of attention."""
    weights = norm.weight, attention.q_proj.weight, attention.k_proj.weight, attention.v_proj.weight
    query, key, value = _apply(_QueryKeyValue, residual, *weights, cos, sin, norm.eps)
    query, key, value = (x.view(batch, len(cos), -1, attention.head_dim).transpose(1, 2) for x in (query, key, value))
    out = F.scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=query.shape[1] != key.shape[1])
    return torch.addmm(residual, out.transpose(1, 2).reshape(len(residual), -1), attention.o_proj.weight.t())


# ---------------------------------------------------------------- tiles


def _tiles(num_tokens: int, width: int, multiple: int = 1) -> list[slice]:
    """Slices of the tokens, about even, so that rows of `width` numbers make at most TILE_NUMBERS.

    All sizes but the last are a multiple of `multiple`.
    """
    most = max(multiple, TILE_NUMBERS // width // multiple * multiple)
    size = math.ceil(num_tokens / math.ceil(num_tokens / most) / multiple) * multiple
    return [slice(start, min(start + size, num_tokens)) for start in range(0, num_tokens, size)]


def _inverse_rms(x: Tensor, eps: float) -> Tensor:
    """1 / rms of each row: [N, D] → [N, 1]."""
    return torch.linalg.vector_norm(x, dim=-1, keepdim=True).square_().div_(x.shape[-1]).add_(eps).rsqrt_()


def _norm_backward(gradient: Tensor, x: Tensor, weight: Tensor, scale: Tensor, weight_gradient: Tensor) -> Tensor:
    """Backward of x * scale * weight with scale = _inverse_rms(x).

    Returns the gradient of x, in the memory of `gradient`, and adds the weight's to
    weight_gradient. With g = gradient * weight: scale * (g - x * scale² * mean(g * x)).
    """
    product = gradient * x
    weight_gradient.addmv_(product.t(), scale[:, 0])
    share = (product @ weight)[:, None] * scale**3
    return gradient.mul_(weight).mul_(scale).addcmul_(x, share, value=-1 / x.shape[-1])


def _rotate_(x: Tensor, cos: Tensor, sin: Tensor) -> None:
    """model.llama.rotate in place: x [rows, T, heads, S]; cos, sin [T, 1, S/2]."""
    first, second = x.chunk(2, dim=-1)
    crossed = first * sin
    first.mul_(cos).addcmul_(second, sin, value=-1)
    second.mul_(cos).add_(crossed)


# ---------------------------------------------------------------- the functions


class _Norm(torch.autograd.Function):
    """x [N, D] → x / rms(x) * weight."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        out, scales = torch.empty_like(x), x.new_empty(len(x), 1)
        for tile in _tiles(len(x), x.shape[1]):
            scales[tile] = _inverse_rms(x[tile], eps)
            torch.mul(x[tile], scales[tile], out=out[tile]).mul_(weight)
        ctx.save_for_backward(x, weight, scales)
        return out

    @staticmethod
    def backward(ctx: Any, *outputs: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, scales = ctx.saved_tensors
        x_gradient, weight_gradient = torch.empty_like(x), torch.zeros_like(weight)
        for tile in _tiles(len(x), x.shape[1]):
            gradient = outputs[0][tile].clone()
            x_gradient[tile] = _norm_backward(gradient, x[tile], weight, scales[tile], weight_gradient)
        return x_gradient, weight_gradient, None


class _QueryKeyValue(torch.autograd.Function):
    """x [N, D] → queries, keys and values [N, heads * S], after norm, projections and RoPE."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        norm: Tensor,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        cos: Tensor,
        sin: Tensor,
        eps: float,
    ) -> tuple[Tensor, ...]:
        """norm [D]; query, key, value: weights [heads * S, D]; cos, sin [T, S/2]."""
        outs = [x.new_empty(len(x), len(weight)) for weight in (query, key, value)]
        scales = x.new_empty(len(x), 1)
        time, half = cos.shape
        turn = cos[:, None], sin[:, None]
        for tile in _tiles(len(x), x.shape[1], time):
            scales[tile] = _inverse_rms(x[tile], eps)
            normed = (x[tile] * scales[tile]).mul_(norm)
            for out, weight in zip(outs, (query, key, value), strict=True):
                torch.mm(normed, weight.t(), out=out[tile])
            for out in outs[:2]:
                _rotate_(out[tile].view(-1, time, out.shape[1] // (2 * half), 2 * half), *turn)
        ctx.save_for_backward(x, norm, query, key, value, cos, sin, scales)
        return tuple(outs)

    @staticmethod
    def backward(ctx: Any, *outputs: Tensor) -> tuple[Tensor | None, ...]:
        x, norm, query, key, value, cos, sin, scales = ctx.saved_tensors
        weights = query, key, value
        x_gradient, norm_gradient = torch.empty_like(x), torch.zeros_like(norm)
        weight_gradients = [torch.zeros_like(weight) for weight in weights]
        time, half = cos.shape
        turn = cos[:, None], -sin[:, None]  # the inverse rotation
        for tile in _tiles(len(x), x.shape[1], time):
            parts = [outputs[0][tile].clone(), outputs[1][tile].clone(), outputs[2][tile]]
            for part in parts[:2]:
                _rotate_(part.view(-1, time, part.shape[1] // (2 * half), 2 * half), *turn)
            normed = (x[tile] * scales[tile]).mul_(norm)
            gradient = parts[0] @ query
            gradient.addmm_(parts[1], key).addmm_(parts[2], value)
            for part, weight_gradient in zip(parts, weight_gradients, strict=True):
                weight_gradient.addmm_(part.t(), normed)
            x_gradient[tile] = _norm_backward(gradient, x[tile], norm, scales[tile], norm_gradient)
        return x_gradient, norm_gradient, *weight_gradients, None, None, None


class _FeedForward(torch.autograd.Function):
    """x [N, D] → x + down(silu(gate(n)) * up(n)), n = x / rms(x) * norm."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, norm: Tensor, gate: Tensor, up: Tensor, down: Tensor, eps: float) -> Tensor:
        """norm [D]; gate, up [F, D]; down [D, F]."""
        gates, ups = x.new_empty(len(x), len(gate)), x.new_empty(len(x), len(up))
        out, scales = torch.empty_like(x), x.new_empty(len(x), 1)
        for tile in _tiles(len(x), len(gate)):
            scales[tile] = _inverse_rms(x[tile], eps)
            normed = (x[tile] * scales[tile]).mul_(norm)
            torch.mm(normed, gate.t(), out=gates[tile])
            torch.mm(normed, up.t(), out=ups[tile])
            torch.addmm(x[tile], F.silu(gates[tile]).mul_(ups[tile]), down.t(), out=out[tile])
        ctx.save_for_backward(x, norm, gate, up, down, gates, ups, scales)
        return out

    @staticmethod
    def backward(ctx: Any, *outputs: Tensor) -> tuple[Tensor | None, ...]:
        x, norm, gate, up, down, gates, ups, scales = ctx.saved_tensors
        x_gradient = torch.empty_like(x)
        norm_gradient, gate_gradient, up_gradient, down_gradient = (
            torch.zeros_like(weight) for weight in (norm, gate, up, down)
        )
        for tile in _tiles(len(x), len(gate)):
            out_gradient = outputs[0][tile]
            active = F.silu(gates[tile])
            down_gradient.addmm_(out_gradient.t(), active * ups[tile])
            gradient = out_gradient @ down  # of silu(gate) * up
            up_part = active.mul_(gradient)
            gate_part = torch.ops.aten.silu_backward(gradient.mul_(ups[tile]), gates[tile])
            normed = (x[tile] * scales[tile]).mul_(norm)
            gate_gradient.addmm_(gate_part.t(), normed)
            up_gradient.addmm_(up_part.t(), normed)
            normed_gradient = (gate_part @ gate).addmm_(up_part, up)
            x_part = _norm_backward(normed_gradient, x[tile], norm, scales[tile], norm_gradient)
            torch.add(x_part, out_gradient, out=x_gradient[tile])
        return x_gradient, norm_gradient, gate_gradient, up_gradient, down_gradient, None

"""The network on one page: a Llama like Hugging Face's LlamaForCausalLM, forward pass only.

Shape letters: B batch, T time, D hidden, H query heads, K kv heads, S head size, F ffn, V vocab.
Parameter names are Hugging Face's, so that a state_dict is a checkpoint. The same network in C is
engine/src/model/forward.c.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llamita.config import ModelConfig
from llamita.model.kv_cache import KVCache
from llamita.model.sdpa import attend


class Linear(nn.Linear):
    """x weightᵀ in the type of x."""

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight.to(x.dtype))


class RMSNorm(nn.Module):
    """x / rms(x) * weight over the last axis, in float32 (arXiv 1910.07467)."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, (x.shape[-1],), self.weight.to(x.dtype), self.eps)


def rope_frequencies(config: ModelConfig) -> Tensor:
    """Angle per position of each of the S/2 pairs, float32: theta^(-2i/S) (arXiv 2104.09864),
    scaled as configured.

    rope_scaling: None, {"rope_type": "linear", factor}, or Llama 3's {"rope_type": "llama3",
    factor, low_freq_factor, high_freq_factor, original_max_position_embeddings}: long wavelengths
    are stretched by the factor, short ones kept, those between interpolated (Llama 3.1's reference
    code).
    """
    exponent = torch.arange(0, config.head_dim, 2, dtype=torch.float32) / config.head_dim
    frequency = 1.0 / (config.rope_theta**exponent)
    scaling = config.rope_scaling
    if scaling is None:
        return frequency
    factor = float(scaling["factor"])
    if scaling["rope_type"] == "linear":
        return frequency / factor
    assert scaling["rope_type"] == "llama3", scaling  # ModelConfig rejects other types
    low, high = float(scaling["low_freq_factor"]), float(scaling["high_freq_factor"])
    turns = scaling["original_max_position_embeddings"] * frequency / (2 * math.pi)  # in the original context
    smooth = ((turns - low) / (high - low)).clamp(0.0, 1.0)
    return frequency * smooth + frequency / factor * (1 - smooth)


def rope_tables(config: ModelConfig) -> tuple[Tensor, Tensor]:
    """cos and sin of every position's angles, float32 [context, 1, S/2]."""
    positions = torch.arange(config.max_position_embeddings, dtype=torch.float32)
    angles = torch.outer(positions, rope_frequencies(config))[:, None]
    return angles.cos(), angles.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate each pair (i, i + S/2) of x [B, T, heads, S] by its position's angle; cos, sin [T, 1,
    S/2]."""
    first, second = x.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)


class Attention(nn.Module):
    """Causal self-attention with H query heads in groups that share one of K kv heads (arXiv
    2305.13245)."""

    def __init__(self, config: ModelConfig, layer: int, dropout: float) -> None:
        super().__init__()
        self.layer, self.head_dim, self.dropout = layer, config.head_dim, dropout
        query_size = config.num_attention_heads * config.head_dim
        key_size = config.num_key_value_heads * config.head_dim
        self.q_proj = Linear(config.hidden_size, query_size, bias=False)
        self.k_proj = Linear(config.hidden_size, key_size, bias=False)
        self.v_proj = Linear(config.hidden_size, key_size, bias=False)
        self.o_proj = Linear(query_size, config.hidden_size, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, cache: KVCache | None, mask: Tensor | None) -> Tensor:
        batch, time, _ = x.shape
        query = rotate(self.q_proj(x).view(batch, time, -1, self.head_dim), cos, sin)  # [B, T, H, S]
        key = rotate(self.k_proj(x).view(batch, time, -1, self.head_dim), cos, sin)  # [B, T, K, S]
        value = self.v_proj(x).view(batch, time, -1, self.head_dim)  # [B, T, K, S]
        query, key, value = query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2)
        if cache is not None:
            key, value = cache.append(self.layer, key, value)  # [B, K, past + T, S]
        out = attend(query, key, value, mask, self.dropout if self.training else 0.0)
        return self.o_proj(out.transpose(1, 2).reshape(batch, time, -1))


class SwiGLU(nn.Module):
    """down(silu(gate(x)) * up(x)) (arXiv 2002.05202)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.gate_proj = Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class DecoderLayer(nn.Module):
    def __init__(self, config: ModelConfig, layer: int, dropout: float) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = Attention(config, layer, dropout)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = SwiGLU(config)
        self.dropout = nn.Dropout(dropout)

    def forward(self, residual: Tensor, cos: Tensor, sin: Tensor, cache: KVCache | None, mask: Tensor | None) -> Tensor:
        residual = residual + self.dropout(self.self_attn(self.input_layernorm(residual), cos, sin, cache, mask))
        return residual + self.dropout(self.mlp(self.post_attention_layernorm(residual)))


class Decoder(nn.Module):
    def __init__(self, config: ModelConfig, dropout: float) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(DecoderLayer(config, i, dropout) for i in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.dropout = nn.Dropout(dropout)


class Llama(nn.Module):
    """ids [B, T] → logits [B, T, V].

    dropout (training only): on embeddings, attention probabilities, and the outputs of both
    branches, as in llama2.c.
    """

    cos: Tensor  # [context, 1, S/2]
    sin: Tensor

    def __init__(self, config: ModelConfig, dropout: float = 0.0) -> None:
        super().__init__()
        self.config = config
        self.model = Decoder(config, dropout)
        if not config.tie_word_embeddings:
            self.lm_head = Linear(config.hidden_size, config.vocab_size, bias=False)
        cos, sin = rope_tables(config)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)

    @property
    def output_weight(self) -> Tensor:
        """The classifier's matrix [V, D]: the embeddings if they are tied."""
        return self.model.embed_tokens.weight if self.config.tie_word_embeddings else self.lm_head.weight

    def hidden_states(
        self,
        ids: Tensor,
        cache: KVCache | None = None,
        mask: Tensor | None = None,
        compute: torch.dtype | None = None,
    ) -> Tensor:
        """ids [B, T] → [B, T, D] after the final norm, the input of the classifier.

        mask: bool [B, 1, T, past + T], True where a query may attend to a key; default: causal.
        compute: the type to compute in; default: that of the embeddings.
        """
        time = ids.shape[1]
        past = 0 if cache is None else cache.num_tokens
        if mask is None and cache is not None:
            mask = cache.causal_mask(time)
        assert past + time <= self.config.max_position_embeddings, (past, time)
        residual = self.model.embed_tokens(ids)
        residual = self.model.dropout(residual if compute is None else residual.to(compute))
        cos, sin = self.cos[past : past + time].to(residual.dtype), self.sin[past : past + time].to(residual.dtype)
        for layer in self.model.layers:
            residual = layer(residual, cos, sin, cache, mask)
        if cache is not None:
            cache.num_tokens += time
        return self.model.norm(residual)

    def forward(self, ids: Tensor, cache: KVCache | None = None, compute: torch.dtype | None = None) -> Tensor:
        hidden = self.hidden_states(ids, cache, compute=compute)
        return F.linear(hidden, self.output_weight.to(hidden.dtype))

    @torch.no_grad()
    def initialize(self, generator: torch.Generator | None = None) -> Llama:
        """Initialize all parameters."""
        for name, parameter in self.named_parameters():
            parameter.copy_(self.fresh_weight(name, parameter.shape, generator))
        return self

    def fresh_weight(self, name: str, shape: torch.Size, generator: torch.Generator | None = None) -> Tensor:
        """A parameter's initial value, on the CPU: N(0, 0.02), ones for norms.

        The two projections that write to the residual stream get N(0, 0.02 / sqrt(2 L)), so that
        its variance does not grow with depth (GPT-2). llama2.c mistakenly scales the gate's
        projection instead.
        """
        if len(shape) == 1:
            return torch.ones(shape)
        writes_residual = name.endswith(("o_proj.weight", "down_proj.weight"))
        scale = 1 / math.sqrt(2 * self.config.num_hidden_layers) if writes_residual else 1.0
        return torch.empty(shape).normal_(0.0, 0.02 * scale, generator=generator)

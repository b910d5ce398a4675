"""The network on one page: a Llama like Hugging Face's LlamaForCausalLM, forward pass only. Qwen2,
Qwen3 and SmolLM3 are the same network with biases, norms of q and k, or layers without RoPE.

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
from llamita.formats.rope_scaling import attention_factor, yarn_range
from llamita.model.kv_cache import KVCache
from llamita.model.sdpa import attend, shared_mask


class Linear(nn.Linear):
    """x weightᵀ + bias in the type of x."""

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight.to(x.dtype), None if self.bias is None else self.bias.to(x.dtype))


class RMSNorm(nn.Module):
    """x / rms(x) * weight over the last axis, in float32 (arXiv 1910.07467)."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, (x.shape[-1],), self.weight.to(x.dtype), self.eps)


def rope_frequencies(config: ModelConfig, num_tokens: int | None = None) -> Tensor:
    """Angle per position of each of the S/2 pairs, float32: theta^(-2i/S) (arXiv 2104.09864),
    scaled as configured, for a text of num_tokens tokens (None: of the whole context).

    rope_scaling, as formats/rope_scaling.py completes it: None; "linear" divides by the factor;
    "dynamic" changes nothing within the context; "llama3" stretches long wavelengths by the factor,
    keeps short ones and interpolates those between (Llama 3.1's reference code); "yarn" does so by
    the index of the pair (arXiv 2309.00071); "longrope" divides by one list of factors in texts up
    to the original context and by another in longer ones (arXiv 2402.13753).
    """
    exponent = torch.arange(0, config.head_dim, 2, dtype=torch.float32) / config.head_dim
    frequency = 1.0 / (config.rope_theta**exponent)
    scaling = config.rope_scaling
    if scaling is None or scaling["rope_type"] == "dynamic":
        return frequency
    if scaling["rope_type"] == "longrope":
        is_long = (num_tokens or config.max_position_embeddings) > scaling["original_max_position_embeddings"]
        factors = torch.tensor(scaling["long_factor" if is_long else "short_factor"], dtype=torch.float32)
        return 1.0 / (factors * config.rope_theta**exponent)
    factor = float(scaling["factor"])
    if scaling["rope_type"] == "linear":
        return frequency / factor
    if scaling["rope_type"] == "yarn":
        first, last = yarn_range(config)
        pairs = torch.arange(config.head_dim // 2, dtype=torch.float32)
        slow = ((pairs - first) / max(last - first, 0.001)).clamp(0.0, 1.0)
        return frequency / factor * slow + frequency * (1 - slow)
    assert scaling["rope_type"] == "llama3", scaling  # the readers reject other types
    low, high = float(scaling["low_freq_factor"]), float(scaling["high_freq_factor"])
    turns = scaling["original_max_position_embeddings"] * frequency / (2 * math.pi)  # in the original context
    smooth = ((turns - low) / (high - low)).clamp(0.0, 1.0)
    return frequency * smooth + frequency / factor * (1 - smooth)


def rope_tables(config: ModelConfig, num_tokens: int | None = None) -> tuple[Tensor, Tensor]:
    """cos and sin of every position's angles, times the attention factor, float32 [num_tokens, 1,
    S/2], for a text of that length (None: of the whole context)."""
    positions = torch.arange(num_tokens or config.max_position_embeddings, dtype=torch.float32)
    angles = torch.outer(positions, rope_frequencies(config, num_tokens))[:, None]
    factor = attention_factor(config)
    return angles.cos() * factor, angles.sin() * factor


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
        self.use_qk_norm, self.use_rope = config.use_qk_norm, layer not in config.no_rope_layers
        query_size = config.num_attention_heads * config.head_dim
        key_size = config.num_key_value_heads * config.head_dim
        self.q_proj = Linear(config.hidden_size, query_size, bias=config.attention_bias)
        self.k_proj = Linear(config.hidden_size, key_size, bias=config.attention_bias)
        self.v_proj = Linear(config.hidden_size, key_size, bias=config.attention_bias)
        self.o_proj = Linear(query_size, config.hidden_size, bias=False)
        if config.use_qk_norm:  # over each head
            self.q_norm = RMSNorm(config.head_dim, config.rms_norm_eps)
            self.k_norm = RMSNorm(config.head_dim, config.rms_norm_eps)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, cache: KVCache | None, mask: Tensor | None) -> Tensor:
        batch, time, _ = x.shape
        query = self.q_proj(x).view(batch, time, -1, self.head_dim)  # [B, T, H, S]
        key = self.k_proj(x).view(batch, time, -1, self.head_dim)  # [B, T, K, S]
        value = self.v_proj(x).view(batch, time, -1, self.head_dim)  # [B, T, K, S]
        if self.use_qk_norm:
            query, key = self.q_norm(query), self.k_norm(key)
        if self.use_rope:
            query, key = rotate(query, cos, sin), rotate(key, cos, sin)
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
    short_cos: Tensor | None  # longrope: [original context, 1, S/2], for texts up to it
    short_sin: Tensor | None

    def __init__(self, config: ModelConfig, dropout: float = 0.0) -> None:
        super().__init__()
        self.config = config
        self.model = Decoder(config, dropout)
        if not config.tie_word_embeddings:
            self.lm_head = Linear(config.hidden_size, config.vocab_size, bias=False)
        self.fill_rope()

    def fill_rope(self, device: torch.device | None = None) -> None:
        """Compute the rotary tables, anew after a construction on the meta device."""
        cos, sin = rope_tables(self.config)
        self.register_buffer("cos", cos.to(device), persistent=False)
        self.register_buffer("sin", sin.to(device), persistent=False)
        scaling, short = self.config.rope_scaling, None
        if scaling is not None and scaling["rope_type"] == "longrope":
            original = scaling["original_max_position_embeddings"]
            if original < self.config.max_position_embeddings:
                short = rope_tables(self.config, original)
        self.register_buffer("short_cos", None if short is None else short[0].to(device), persistent=False)
        self.register_buffer("short_sin", None if short is None else short[1].to(device), persistent=False)

    def rope_rows(self, past: int, time: int) -> tuple[Tensor, Tensor]:
        """cos and sin [T, 1, S/2] of the last `time` tokens of a text of past + time."""
        cos, sin = self.cos, self.sin
        if self.short_cos is not None and self.short_sin is not None and past + time <= len(self.short_cos):
            cos, sin = self.short_cos, self.short_sin
        return cos[past : past + time], sin[past : past + time]

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

        mask: bool [B, 1, T, past + T], True where a query may attend to a key; or where documents
        begin, see sdpa.attend_packed; default: causal.
        compute: the type to compute in; default: that of the embeddings.
        """
        time = ids.shape[1]
        past = 0 if cache is None else cache.num_tokens
        if mask is None and cache is not None:
            mask = cache.causal_mask(time)
        assert past + time <= self.config.max_position_embeddings, (past, time)
        residual = self.model.embed_tokens(ids)
        residual = self.model.dropout(residual if compute is None else residual.to(compute))
        if mask is not None and mask.dtype == torch.bool and residual.device.type != "cpu":
            mask = shared_mask(mask, residual)
        cos, sin = (table.to(residual.dtype) for table in self.rope_rows(past, time))
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
        """A parameter's initial value, on the CPU: N(0, 0.02), ones for norms, zeros for biases.

        The two projections that write to the residual stream get N(0, 0.02 / sqrt(2 L)), so that
        its variance does not grow with depth (GPT-2). llama2.c mistakenly scales the gate's
        projection instead.
        """
        if len(shape) == 1:
            return torch.zeros(shape) if name.endswith(".bias") else torch.ones(shape)
        writes_residual = name.endswith(("o_proj.weight", "down_proj.weight"))
        scale = 1 / math.sqrt(2 * self.config.num_hidden_layers) if writes_residual else 1.0
        return torch.empty(shape).normal_(0.0, 0.02 * scale, generator=generator)

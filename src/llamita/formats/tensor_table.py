"""The tensors of a model: the name of each in every format, its shape and its kind.

Shapes are PyTorch's: [rows, row length] = [out, in]. V vocab, D hidden, H*S query heads times head
size, K*S kv heads times head size, F ffn.

    Hugging Face                                   GGUF                      llama2.c        shape     kind
    model.embed_tokens.weight                      token_embd.weight         tok_embeddings  [V, D]    embedding
    model.layers.N.input_layernorm.weight          blk.N.attn_norm.weight    attention_norm  [D]       norm
    model.layers.N.self_attn.q_proj.weight         blk.N.attn_q.weight       wq              [H*S, D]  query
    model.layers.N.self_attn.k_proj.weight         blk.N.attn_k.weight       wk              [K*S, D]  key
    model.layers.N.self_attn.v_proj.weight         blk.N.attn_v.weight       wv              [K*S, D]  matrix
    model.layers.N.self_attn.o_proj.weight         blk.N.attn_output.weight  wo              [D, H*S]  matrix
    model.layers.N.post_attention_layernorm.weight blk.N.ffn_norm.weight     ffn_norm        [D]       norm
    model.layers.N.mlp.gate_proj.weight            blk.N.ffn_gate.weight     w1              [F, D]    matrix
    model.layers.N.mlp.up_proj.weight              blk.N.ffn_up.weight       w3              [F, D]    matrix
    model.layers.N.mlp.down_proj.weight            blk.N.ffn_down.weight     w2              [D, F]    matrix
    model.norm.weight                              output_norm.weight        norm            [D]       norm
    lm_head.weight (untied only)                   output.weight             output          [V, D]    matrix

With attention_bias, after the weights of q, k and v:

    model.layers.N.self_attn.q_proj.bias           blk.N.attn_q.bias                         [H*S]     bias
    model.layers.N.self_attn.k_proj.bias           blk.N.attn_k.bias                         [K*S]     bias
    model.layers.N.self_attn.v_proj.bias           blk.N.attn_v.bias                         [K*S]     bias

With use_qk_norm, after v_proj:

    model.layers.N.self_attn.q_norm.weight         blk.N.attn_q_norm.weight                  [S]       norm
    model.layers.N.self_attn.k_norm.weight         blk.N.attn_k_norm.weight                  [S]       norm
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

from llamita.config import ModelConfig
from llamita.errors import FormatError

Kind = Literal["embedding", "norm", "query", "key", "matrix", "bias"]
Naming = Literal["huggingface", "gguf", "llama2c"]

# The largest Llama has 126 layers; this bounds the table that a hostile header can ask for.
MAX_LAYERS = 1024

# Only in GGUF with llama3 RoPE scaling: [S/2] divisors of the frequencies. Not a weight.
GGUF_ROPE_FACTORS = "rope_freqs.weight"
# Only with longrope, in the same way.
GGUF_LONG_FACTORS, GGUF_SHORT_FACTORS = "rope_factors_long.weight", "rope_factors_short.weight"


@dataclasses.dataclass(frozen=True)
class TensorSpec:
    """A tensor. Rows of kinds `query` and `key` are ordered differently between formats
    (rope_order.py)."""

    huggingface: str
    gguf: str
    llama2c: str
    layer: int | None
    shape: tuple[int, ...]
    kind: Kind

    def name(self, naming: Naming) -> str:
        """Its name in a format; for llama2.c, in its PyTorch checkpoint, which has only Llamas."""
        if naming == "huggingface":
            return self.huggingface
        if naming == "gguf":
            return self.gguf
        if self.layer is None:
            return f"{self.llama2c}.weight"
        return f"layers.{self.layer}.{_LLAMA2C_FOLDERS.get(self.llama2c, '')}{self.llama2c}.weight"

    def rope_heads(self, config: ModelConfig) -> int | None:
        """Number of heads for permute_qk and unpermute_qk; None for tensors whose rows are never
        permuted."""
        if not has_interleaved_rope(config):
            return None
        if self.kind == "query":
            return config.num_attention_heads
        return config.num_key_value_heads if self.kind == "key" else None


_LLAMA2C_FOLDERS = {
    "wq": "attention.", "wk": "attention.", "wv": "attention.", "wo": "attention.",
    "w1": "feed_forward.", "w2": "feed_forward.", "w3": "feed_forward.",
}  # fmt: skip


# Hugging Face's, GGUF's and llama2.c's name in a layer, shape, kind.
_Row = tuple[str, str, str, tuple[int, ...], Kind]


def has_interleaved_rope(config: ModelConfig) -> bool:
    """Whether the formats other than Hugging Face's keep rows of q and k interleaved. GGUF runtimes
    rotate Qwen's heads as two halves, as Hugging Face does."""
    return config.architecture in ("llama", "smollm3")


def tensor_table(config: ModelConfig) -> tuple[TensorSpec, ...]:
    """Every tensor of a model with this config, in the order of the forward pass; lm_head only if
    untied."""
    hidden, ffn, vocab = config.hidden_size, config.intermediate_size, config.vocab_size
    query_rows = config.num_attention_heads * config.head_dim
    key_rows = config.num_key_value_heads * config.head_dim
    if config.num_hidden_layers > MAX_LAYERS:
        raise FormatError(
            f"model config: num_hidden_layers: expected at most {MAX_LAYERS}, found {config.num_hidden_layers}"
        )
    biases: list[_Row] = [
        ("self_attn.q_proj.bias", "attn_q.bias", "", (query_rows,), "bias"),
        ("self_attn.k_proj.bias", "attn_k.bias", "", (key_rows,), "bias"),
        ("self_attn.v_proj.bias", "attn_v.bias", "", (key_rows,), "bias"),
    ]
    qk_norms: list[_Row] = [
        ("self_attn.q_norm.weight", "attn_q_norm.weight", "", (config.head_dim,), "norm"),
        ("self_attn.k_norm.weight", "attn_k_norm.weight", "", (config.head_dim,), "norm"),
    ]
    in_layer: list[_Row] = [
        ("input_layernorm.weight", "attn_norm.weight", "attention_norm", (hidden,), "norm"),
        ("self_attn.q_proj.weight", "attn_q.weight", "wq", (query_rows, hidden), "query"),
        ("self_attn.k_proj.weight", "attn_k.weight", "wk", (key_rows, hidden), "key"),
        ("self_attn.v_proj.weight", "attn_v.weight", "wv", (key_rows, hidden), "matrix"),
        *(biases if config.attention_bias else []),
        *(qk_norms if config.use_qk_norm else []),
        ("self_attn.o_proj.weight", "attn_output.weight", "wo", (hidden, query_rows), "matrix"),
        ("post_attention_layernorm.weight", "ffn_norm.weight", "ffn_norm", (hidden,), "norm"),
        ("mlp.gate_proj.weight", "ffn_gate.weight", "w1", (ffn, hidden), "matrix"),
        ("mlp.up_proj.weight", "ffn_up.weight", "w3", (ffn, hidden), "matrix"),
        ("mlp.down_proj.weight", "ffn_down.weight", "w2", (hidden, ffn), "matrix"),
    ]
    table = [
        TensorSpec(
            "model.embed_tokens.weight", "token_embd.weight", "tok_embeddings", None, (vocab, hidden), "embedding"
        )
    ]
    for n in range(config.num_hidden_layers):
        table += [
            TensorSpec(f"model.layers.{n}.{hf}", f"blk.{n}.{gguf}", llama2c, n, shape, kind)
            for hf, gguf, llama2c, shape, kind in in_layer
        ]
    table.append(TensorSpec("model.norm.weight", "output_norm.weight", "norm", None, (hidden,), "norm"))
    if not config.tie_word_embeddings:
        table.append(TensorSpec("lm_head.weight", "output.weight", "output", None, (vocab, hidden), "matrix"))
    return tuple(table)


def check_tensors(
    found: Mapping[str, Sequence[int]] | Iterable[tuple[str, Sequence[int]]],
    config: ModelConfig,
    naming: Naming,
    where: str,
) -> None:
    """Raise FormatError unless the found names and shapes are exactly those of the table."""
    wanted = {spec.name(naming): spec.shape for spec in tensor_table(config)}
    seen: set[str] = set()
    for name, shape in found.items() if isinstance(found, Mapping) else found:
        if name in seen:
            raise FormatError(f"cannot read {where}: tensor {name} occurs twice")
        seen.add(name)
        if name not in wanted:
            raise FormatError(f"cannot read {where}: unknown tensor {name[:80]}; {_reason(name, config.architecture)}")
        if tuple(shape) != wanted[name]:
            raise FormatError(
                f"cannot read {where}: tensor {name}: expected shape {list(wanted[name])}, found {list(shape)}"
            )
    missing = [name for name in wanted if name not in seen]
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise FormatError(f"cannot read {where}: tensor {missing[0]} is missing{more}")


def _reason(name: str, architecture: str) -> str:
    """Why an unknown tensor is refused."""
    models = {"llama": "plain Llamas", "qwen2": "Qwen2 models", "qwen3": "Qwen3 models", "smollm3": "SmolLM3 models"}
    which = models[architecture]
    if name.endswith((".bias", "_bias")):
        return f"{which} have no biases{' but those of q, k and v' if architecture == 'qwen2' else ''}"
    if any(word in name for word in ("q_norm", "k_norm")):
        return f"{which} have no norms on queries and keys"
    if any(word in name for word in ("expert", "_exps", "router")):
        return f"{which} have no experts, and neither the network nor the engine supports them"
    return f"{which} have no such tensor"

"""A ModelConfig and a Tokenizer to the metadata keys that GGUF's architecture "llama" and its runtimes go by."""

from __future__ import annotations

import numpy as np

from llamita.config import ModelConfig
from llamita.formats.gguf import FILE_TYPES, Value
from llamita.formats.tensor_types import Floats

QUANTIZATION_VERSION = 2  # of ggml's blocks


def model_metadata(config: ModelConfig, name: str, file_type: str) -> dict[str, Value]:
    """The general and architecture keys. file_type: the type of most matrices, as "Q8_0"."""
    metadata: dict[str, Value] = {
        "general.architecture": "llama",
        "general.name": name,
        "general.file_type": FILE_TYPES[file_type],
        "general.quantization_version": QUANTIZATION_VERSION,
        "llama.context_length": config.max_position_embeddings,
        "llama.embedding_length": config.hidden_size,
        "llama.block_count": config.num_hidden_layers,
        "llama.feed_forward_length": config.intermediate_size,
        "llama.attention.head_count": config.num_attention_heads,
        "llama.attention.head_count_kv": config.num_key_value_heads,
        "llama.attention.layer_norm_rms_epsilon": float(config.rms_norm_eps),
        "llama.rope.dimension_count": config.head_dim,
        "llama.rope.freq_base": float(config.rope_theta),
        "llama.vocab_size": config.vocab_size,
    }
    if config.head_dim * config.num_attention_heads != config.hidden_size:
        metadata["llama.attention.key_length"] = config.head_dim
        metadata["llama.attention.value_length"] = config.head_dim
    scaling = config.rope_scaling
    if scaling is not None and scaling["rope_type"] == "linear":
        metadata["llama.rope.scaling.type"] = "linear"
        metadata["llama.rope.scaling.factor"] = float(scaling["factor"])
    return metadata


def rope_factors(config: ModelConfig) -> Floats | None:
    """The [S/2] divisors of RoPE's frequencies that rope_freqs.weight holds; None where there is no such tensor.

    Llama 3's rule, as meta-llama's reference code has it: frequencies that turn often within the original context are
    kept, slow ones divided by the factor, those between interpolated.
    """
    scaling = config.rope_scaling
    if scaling is None or scaling["rope_type"] != "llama3":
        return None
    low, high = float(scaling["low_freq_factor"]), float(scaling["high_freq_factor"])
    frequency = config.rope_theta ** -(np.arange(0, config.head_dim, 2, dtype=np.float64) / config.head_dim)
    turns = scaling["original_max_position_embeddings"] * frequency / (2 * np.pi)
    smooth = np.clip((turns - low) / (high - low), 0.0, 1.0)
    divisors: Floats = (1.0 / (smooth + (1.0 - smooth) / float(scaling["factor"]))).astype(np.float32)
    return divisors

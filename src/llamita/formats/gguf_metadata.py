"""A ModelConfig and a Tokenizer to the metadata keys that GGUF's architecture "llama" and its runtimes go by."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from llamita.config import ModelConfig
from llamita.errors import FormatError
from llamita.formats.gguf import FILE_TYPES, Value
from llamita.formats.tensor_types import Floats
from llamita.formats.vocabulary import padded_pieces

if TYPE_CHECKING:  # so that files are read where the `tokenizers` package is not
    from llamita.tokenizer import Tokenizer

QUANTIZATION_VERSION = 2  # of ggml's blocks

# GGUF has three places for ids that end a text: of a document, of a turn, of a message.
END_KEYS = ("tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id", "tokenizer.ggml.eom_token_id")


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


def tokenizer_metadata(tokenizer: Tokenizer, vocab_size: int, end_ids: Sequence[int]) -> dict[str, Value]:
    """The tokenizer's keys. end_ids: every id that ends a text, the most usual first.

    Raises FormatError where the tokenizer does not fit the model or stock runtimes could not tokenize alike.
    """
    pieces, types = padded_pieces(tokenizer, vocab_size)
    metadata: dict[str, Value] = {"tokenizer.ggml.model": tokenizer.kind}
    scores = tokenizer.scores()
    if tokenizer.kind == "gpt2":
        if tokenizer.split is None:
            raise FormatError(
                "cannot export the tokenizer: its regular expression is none that GGUF runtimes know "
                "(qwen2, llama-bpe, gpt-2, smollm), so they would cut texts in another way"
            )
        metadata["tokenizer.ggml.pre"] = tokenizer.split
    else:
        metadata["tokenizer.ggml.pre"] = "default"
    metadata["tokenizer.ggml.tokens"] = pieces
    if scores is not None:
        padding = [0.0] * (vocab_size - len(scores))
        metadata["tokenizer.ggml.scores"] = np.array(scores + padding, dtype=np.float32)
    metadata["tokenizer.ggml.token_type"] = np.array(types, dtype=np.int32)
    if tokenizer.kind == "gpt2":
        metadata["tokenizer.ggml.merges"] = tokenizer.merges()
    metadata |= _special_ids(tokenizer, end_ids)
    metadata["tokenizer.ggml.add_bos_token"] = tokenizer.bos_id is not None
    metadata["tokenizer.ggml.add_eos_token"] = False
    if tokenizer.kind == "llama":
        metadata["tokenizer.ggml.add_space_prefix"] = tokenizer.add_space_prefix
        metadata["tokenizer.ggml.remove_extra_whitespaces"] = tokenizer.remove_extra_whitespaces
    if tokenizer.chat_template is not None:
        metadata["tokenizer.chat_template"] = tokenizer.chat_template
    return metadata


def _special_ids(tokenizer: Tokenizer, end_ids: Sequence[int]) -> dict[str, Value]:
    if len(end_ids) > len(END_KEYS):
        raise FormatError(
            f"cannot export: {len(end_ids)} ids end a text ({', '.join(map(str, end_ids))}), GGUF has room for "
            f"{len(END_KEYS)}; shorten eos_token_id in config.json and generation_config.json"
        )
    ids: dict[str, Value] = {}
    if tokenizer.bos_id is not None:
        ids["tokenizer.ggml.bos_token_id"] = tokenizer.bos_id
    ids |= dict(zip(END_KEYS, end_ids, strict=False))
    if tokenizer.unknown_id is not None:
        ids["tokenizer.ggml.unknown_token_id"] = tokenizer.unknown_id
    return ids

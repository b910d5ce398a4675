"""GGUF's metadata keys for architecture "llama": written from a ModelConfig, and read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import numpy as np

from llamita.config import ModelConfig
from llamita.errors import ConfigError, FormatError
from llamita.formats.gguf import FILE_TYPES, QUANTIZATION_VERSION, GgufFile, Value
from llamita.formats.tensor_table import GGUF_ROPE_FACTORS, MAX_LAYERS
from llamita.formats.tensor_types import Floats
from llamita.tokenizer.gguf import END_KEYS

# Keys that must be missing or have the value that changes nothing. The engine has the same list
# (engine/src/formats/gguf_model.c).
_UNSUPPORTED: Final[dict[str, tuple[float, str]]] = {
    "llama.expert_count": (0, "experts"),
    "llama.expert_used_count": (0, "experts"),
    "llama.attention.clamp_kqv": (0, "clamped queries, keys and values"),
    "llama.attention.sliding_window": (0, "attention in windows"),
    "llama.attention.causal": (1, "attention without a causal mask"),
    "llama.attention.scale": (0, "scaled attention"),
    "llama.rope.scaling.attn_factor": (1, "scaled attention"),
    "llama.use_parallel_residual": (0, "parallel branches"),
    "llama.logit_scale": (1, "scaled logits"),
    "llama.residual_scale": (1, "scaled residuals"),
    "llama.embedding_scale": (1, "scaled embeddings"),
}
# These may be arrays with the same number for every layer.
_PER_LAYER: Final = ("llama.attention.head_count", "llama.attention.head_count_kv", "llama.feed_forward_length")
# Of llama3 scaling only the divisors are stored: the reader tries the settings that give them.
_LOW_FREQ, _HIGH_FREQ = 1.0, 4.0
_ORIGINAL_CONTEXTS: Final = (8192, *(2**k for k in range(5, 18) if k != 13))
_FACTOR_TOLERANCE: Final = 1e-4


# ---------------------------------------------------------------- writing


def model_metadata(config: ModelConfig, name: str, file_type: str) -> dict[str, Value]:
    """The general and architecture keys. file_type: the type of most matrices, such as "Q8_0"."""
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
    """The [S/2] divisors of the RoPE frequencies (rope_freqs.weight), or None without llama3
    scaling.

    Llama 3's rule, from Meta's reference code: frequencies that turn often within the original
    context are kept, slow ones are divided by the factor, those between are interpolated.
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


# ---------------------------------------------------------------- reading


def config_from_gguf(file: GgufFile) -> tuple[ModelConfig, list[str]]:
    """(the ModelConfig that metadata and tensor shapes describe, notes for the user).

    Raises FormatError for anything that is missing, malformed, or more than a plain Llama.
    """
    read, notes = _Keys(file), list[str]()
    check_not_split(file, "cannot use")
    architecture = file.metadata.get("general.architecture")
    if architecture != "llama":
        raise FormatError(
            f"cannot use {file.path}: general.architecture: expected llama, found {str(architecture)[:60]}; it "
            "would need another network"
        )
    read.refuse_more()
    embedding = file.tensors.get("token_embd.weight")
    if embedding is None or len(embedding.shape) != 2:
        raise FormatError(f"cannot read {file.path}: tensor token_embd.weight: expected a matrix, found none")
    heads, hidden = read.whole("llama.attention.head_count"), read.whole("llama.embedding_length")
    layers = read.whole("llama.block_count")
    if layers > MAX_LAYERS:
        raise FormatError(f"cannot use {file.path}: llama.block_count: expected at most {MAX_LAYERS}, found {layers}")
    head_dim = _head_dim(read, hidden, heads)
    values: dict[str, Any] = {
        "vocab_size": embedding.shape[0],
        "hidden_size": hidden,
        "intermediate_size": read.whole("llama.feed_forward_length"),
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": read.whole("llama.attention.head_count_kv", heads),
        "head_dim": head_dim,
        "max_position_embeddings": read.whole("llama.context_length"),
        "rms_norm_eps": read.real("llama.attention.layer_norm_rms_epsilon"),
        "rope_theta": read.real("llama.rope.freq_base", 10000.0),
        "tie_word_embeddings": "output.weight" not in file.tensors,
    }
    rows = embedding.shape[0]
    bos, ends = read.token("tokenizer.ggml.bos_token_id", rows), [read.token(key, rows) for key in END_KEYS]
    found = [i for i in dict.fromkeys(ends) if i is not None]
    values |= {"bos_token_id": bos, "pad_token_id": read.padding(rows)}
    values["eos_token_id"] = (found[0] if len(found) == 1 else tuple(found)) if found else None
    values["rope_scaling"] = _linear(read) or _llama3(file, values, notes)
    try:
        return ModelConfig(**values), notes
    except ConfigError as error:
        raise FormatError(f"cannot use {file.path}: {error}") from error


def check_not_split(file: GgufFile, what: str) -> None:
    """Raise FormatError for one file of a split model; only the first names its architecture."""
    count = file.metadata.get("split.count", 0)
    if count not in (0, 1):
        raise FormatError(
            f"{what} {file.path}: it is one of {str(count)[:20]} parts (split.count); merge them first with "
            "llama-gguf-split --merge"
        )


class _Keys:
    """Reads typed metadata values. Raises FormatError for a missing or invalid one."""

    def __init__(self, file: GgufFile) -> None:
        self.metadata, self.path = file.metadata, file.path

    def wrong(self, key: str, expected: str) -> FormatError:
        found = str(self.metadata[key])[:60] if key in self.metadata else "nothing"
        return FormatError(f"cannot use {self.path}: {key}: expected {expected}, found {found}")

    def whole(self, key: str, default: int | None = None) -> int:
        value = self.metadata.get(key, default)
        if key in _PER_LAYER and isinstance(value, np.ndarray) and value.size and value.dtype.kind in "iu":
            value = int(value[0]) if (value == value[0]).all() else None
        if isinstance(value, bool) or not isinstance(value, int) or not 0 < value < 2**31:
            raise self.wrong(key, "a positive whole number")
        return value

    def real(self, key: str, default: float | None = None) -> float:
        value = self.metadata.get(key, default)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < 1e30:
            raise self.wrong(key, "a positive number")
        # the shortest decimal of a float32: 1e-05, not 9.999999747378752e-06
        return float(str(np.float32(value))) if float(np.float32(value)) == value else float(value)

    def token(self, key: str, rows: int) -> int | None:
        value = self.metadata.get(key)
        if value is None or value in (-1, 2**32 - 1):
            return None
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < rows:
            raise self.wrong(key, f"an id below {rows}")
        return value

    def padding(self, rows: int) -> int | None:
        """Runtimes never use it, so one out of range is none."""
        value = self.metadata.get("tokenizer.ggml.padding_token_id")
        return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < rows else None

    def refuse_more(self) -> None:
        """Refuse what a plain Llama lacks."""
        for key, (neutral, what) in _UNSUPPORTED.items():
            value = self.metadata.get(key, neutral)
            if not isinstance(value, (int, float)) or value != neutral:
                raise FormatError(
                    f"cannot use {self.path}: {key}: {str(self.metadata[key])[:40]} is not supported; it would need "
                    f"{what}"
                )


def _head_dim(read: _Keys, hidden: int, heads: int) -> int:
    if "llama.attention.key_length" not in read.metadata and hidden % heads:
        raise read.wrong("llama.attention.head_count", f"a divisor of llama.embedding_length {hidden}")
    head_dim = read.whole("llama.attention.key_length", max(1, hidden // heads))
    for key, what in (("llama.attention.value_length", "its own size for values"),
                      ("llama.rope.dimension_count", "RoPE over a part of each head")):  # fmt: skip
        if read.whole(key, head_dim) != head_dim:
            raise FormatError(
                f"cannot use {read.path}: {key}: expected {head_dim}, the head size, found {read.whole(key)}; it "
                f"would need {what}"
            )
    return head_dim


def _linear(read: _Keys) -> dict[str, Any] | None:
    """The rule of llama.cpp and the engine: a missing type is linear, the older key counts where
    the newer is missing, a factor of 0 is none."""
    kind = read.metadata.get("llama.rope.scaling.type", "linear")
    if kind not in ("none", "linear"):
        raise FormatError(
            f"cannot use {read.path}: llama.rope.scaling.type: expected none or linear, found {str(kind)[:40]}; it "
            "would need that RoPE scaling in the network and the engine"
        )
    keys = ("llama.rope.scaling.factor", "llama.rope.scale_linear")
    key = next((key for key in keys if key in read.metadata), None)
    if key is None or (isinstance(read.metadata[key], float) and read.metadata[key] == 0.0):
        return None
    factor = read.real(key)
    return None if kind == "none" or factor == 1.0 else {"rope_type": "linear", "factor": factor}


def _llama3(file: GgufFile, values: Mapping[str, Any], notes: list[str]) -> dict[str, Any] | None:
    """The llama3 scaling that gives the stored divisors. Raises FormatError if none does."""
    if GGUF_ROPE_FACTORS not in file.tensors:
        return None
    info, head_dim = file.tensors[GGUF_ROPE_FACTORS], values["head_dim"]
    if info.shape != (head_dim // 2,) or info.type != "F32":
        raise FormatError(
            f"cannot read {file.path}: tensor {info.name}: expected F32 [{head_dim // 2}], found {info.type} "
            f"{list(info.shape)}"
        )
    divisors = file.dequantize(GGUF_ROPE_FACTORS)
    if np.all(divisors == 1.0):
        return None
    scaling = _fit_llama3(divisors, values)
    if scaling is None:
        raise FormatError(
            f"cannot use {file.path}: tensor {info.name}: its divisors of the RoPE frequencies do not follow "
            "Llama 3's rule; another rule would be needed"
        )
    notes.append(
        f"RoPE scaling: rope_freqs.weight is Llama 3's rule with factor {scaling['factor']:g} and an original context "
        f"of {scaling['original_max_position_embeddings']}"
    )
    return scaling


def _fit_llama3(divisors: np.ndarray[Any, np.dtype[np.float32]], values: Mapping[str, Any]) -> dict[str, Any] | None:
    factor = float(str(divisors.max()))
    if not np.isfinite(factor) or factor <= 1:
        return None
    best: tuple[float, dict[str, Any]] | None = None
    for original in _ORIGINAL_CONTEXTS:
        scaling = {
            "rope_type": "llama3", "factor": factor, "low_freq_factor": _LOW_FREQ, "high_freq_factor": _HIGH_FREQ,
            "original_max_position_embeddings": original,
        }  # fmt: skip
        expected = rope_factors(ModelConfig(**{**values, "rope_scaling": scaling}))
        assert expected is not None
        error = float(np.abs(divisors / expected - 1).max())
        if best is None or error < best[0]:
            best = error, scaling
    return best[1] if best is not None and best[0] < _FACTOR_TOLERANCE else None

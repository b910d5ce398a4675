"""GGUF's metadata keys of a network: written from a ModelConfig, and read.

The keys of the architecture are spelled "llama." here, and begin with the architecture's name in a
file.
"""

from __future__ import annotations

import typing
from collections.abc import Mapping
from typing import Any, Final

import numpy as np

from llamita.config import Architecture, ModelConfig
from llamita.errors import ConfigError, FormatError
from llamita.formats.gguf import FILE_TYPES, QUANTIZATION_VERSION, GgufFile, Value, check_whole
from llamita.formats.gguf_keys import PREFIX, KeyReader, known_keys
from llamita.formats.huggingface import NO_ROPE_INTERVAL, supported_models
from llamita.formats.rope_scaling import BETA_FAST, BETA_SLOW, yarn_attention_factor, yarn_range
from llamita.formats.tensor_table import (
    GGUF_LONG_FACTORS,
    GGUF_ROPE_FACTORS,
    GGUF_SHORT_FACTORS,
    MAX_LAYERS,
)
from llamita.formats.tensor_types import Floats
from llamita.tokenizer.gguf import END_KEYS

# Of llama3 scaling only the divisors are stored: the reader tries the settings that give them.
_LOW_FREQ, _HIGH_FREQ = 1.0, 4.0
_ORIGINAL_CONTEXTS: Final = (8192, *(2**k for k in range(5, 18) if k != 13))
_FACTOR_TOLERANCE: Final = 1e-4


ARCHITECTURES: Final[tuple[str, ...]] = typing.get_args(Architecture)

# ---------------------------------------------------------------- writing


def model_metadata(config: ModelConfig, name: str, file_type: str) -> dict[str, Value]:
    """The general and architecture keys. file_type: the type of most matrices, such as "Q8_0".

    Raises FormatError for what GGUF cannot express."""
    if config.architecture == "smollm3" and config.no_rope_layers != _no_rope_layers(config.num_hidden_layers):
        raise FormatError(
            f"cannot export: no_rope_layers: expected every layer whose number is a multiple of {NO_ROPE_INTERVAL}, "
            f"found {str(config.no_rope_layers)[:60]}; GGUF has no key for it, so runtimes would compute another model"
        )
    metadata: dict[str, Value] = {
        "general.architecture": config.architecture,
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
    metadata |= _scaling_metadata(config)
    return {
        f"{config.architecture}.{key.removeprefix(PREFIX)}" if key.startswith(PREFIX) else key: value
        for key, value in metadata.items()
    }


def _no_rope_layers(num_layers: int) -> tuple[int, ...]:
    """The layers in which GGUF runtimes leave out RoPE, of architecture smollm3."""
    return tuple(range(NO_ROPE_INTERVAL - 1, num_layers, NO_ROPE_INTERVAL))


def _scaling_metadata(config: ModelConfig) -> dict[str, Value]:
    """The keys of RoPE scaling. Raises FormatError for a scaling that GGUF cannot express."""
    scaling = config.rope_scaling
    kind = None if scaling is None else scaling["rope_type"]
    if config.architecture != "llama" and kind in ("llama3", "longrope"):
        raise FormatError(
            f"cannot export: rope_scaling: expected none, linear or yarn for {config.architecture}, found {kind}; "
            "llama.cpp reads factors of RoPE in Llamas only"
        )
    if scaling is None or kind not in ("linear", "yarn", "longrope"):
        return {}
    metadata: dict[str, Value] = {"llama.rope.scaling.type": str(kind)}
    if kind == "linear":
        return metadata | {"llama.rope.scaling.factor": float(scaling["factor"])}
    metadata["llama.rope.scaling.original_context_length"] = scaling["original_max_position_embeddings"]
    attention = float(scaling["attention_factor"])
    if kind == "yarn":
        if not scaling.get("truncate", True):
            raise FormatError(
                "cannot export: rope_scaling: truncate: expected true, found false; GGUF has no key for it, so "
                "runtimes would compute another model"
            )
        factor = float(scaling["factor"])
        metadata["llama.rope.scaling.factor"] = factor
        attention /= yarn_attention_factor(factor)  # runtimes multiply with it
        for key, default in (("beta_fast", BETA_FAST), ("beta_slow", BETA_SLOW)):
            if scaling[key] != default:
                metadata[f"llama.rope.scaling.yarn_{key}"] = float(scaling[key])
    if abs(attention - 1) > _FACTOR_TOLERANCE**2:
        metadata["llama.rope.scaling.attn_factor"] = attention
    return metadata


def rope_tensors(config: ModelConfig) -> dict[str, Floats]:
    """The tensors of RoPE scaling, [S/2] each: rope_freqs.weight for llama3, two for longrope."""
    scaling = config.rope_scaling
    if scaling is not None and scaling["rope_type"] == "longrope":
        pairs = ((GGUF_LONG_FACTORS, "long_factor"), (GGUF_SHORT_FACTORS, "short_factor"))
        return {name: np.array(scaling[key], np.float32) for name, key in pairs}
    divisors = rope_factors(config)
    return {} if divisors is None else {GGUF_ROPE_FACTORS: divisors}


def rope_notes(config: ModelConfig) -> tuple[str, ...]:
    """What runtimes do with the scaling in another way than transformers."""
    scaling = config.rope_scaling
    kind = None if scaling is None else scaling["rope_type"]
    if (
        scaling is not None
        and kind == "yarn"
        and (scaling["beta_fast"], scaling["beta_slow"]) != (BETA_FAST, BETA_SLOW)
    ):
        return (
            f"RoPE scaling yarn: llama.cpp does not read beta_fast and beta_slow of Llamas; start it with "
            f"--yarn-beta-fast {scaling['beta_fast']:g} --yarn-beta-slow {scaling['beta_slow']:g}",
        )
    if kind == "dynamic":
        return (
            f"RoPE scaling dynamic begins beyond the context of {config.max_position_embeddings} tokens; within it "
            "there is none, so the file has none",
        )
    if kind == "longrope":
        return (
            "RoPE scaling longrope: GGUF runtimes choose short or long factors by the context they are opened with, "
            "transformers by the length of each text",
        )
    return ()


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

    Raises FormatError for anything that is missing, malformed, or not supported.
    """
    check_whole(file, "cannot use")
    architecture = file.metadata.get("general.architecture")
    if architecture not in ARCHITECTURES:
        raise FormatError(
            f"cannot use {file.path}: general.architecture: {supported_models(ARCHITECTURES)}, found "
            f"{str(architecture)[:60]}; it would need another network"
        )
    read, notes = KeyReader(file.metadata, file.path, str(architecture)), list[str]()
    read.refuse_fixed()
    notes += read.unknown_note()
    embedding = file.tensors.get("token_embd.weight")
    if embedding is None or len(embedding.shape) != 2:
        raise FormatError(f"cannot read {file.path}: tensor token_embd.weight: expected a matrix, found none")
    heads, hidden = read.whole("llama.attention.head_count"), read.whole("llama.embedding_length")
    layers, context = read.whole("llama.block_count"), read.whole("llama.context_length")
    if layers > MAX_LAYERS:
        raise read.wrong("llama.block_count", f"at most {MAX_LAYERS}")
    window = read.whole("llama.attention.sliding_window")
    if 0 < window < context:
        raise read.wrong("llama.attention.sliding_window", f"0 or at least the context of {context} tokens")
    values: dict[str, Any] = {
        "vocab_size": embedding.shape[0],
        "hidden_size": hidden,
        "intermediate_size": read.whole("llama.feed_forward_length"),
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": read.whole("llama.attention.head_count_kv", heads),
        "head_dim": _head_dim(read, hidden, heads),
        "max_position_embeddings": context,
        "rms_norm_eps": read.real("llama.attention.layer_norm_rms_epsilon"),
        "rope_theta": read.real("llama.rope.freq_base"),
        "tie_word_embeddings": "output.weight" not in file.tensors,
        "architecture": architecture,
        "attention_bias": architecture == "qwen2",
        "use_qk_norm": architecture == "qwen3",
        "no_rope_layers": _no_rope_layers(layers) if architecture == "smollm3" else (),
    }
    rows = embedding.shape[0]
    bos, ends = read.token("tokenizer.ggml.bos_token_id", rows), [read.token(key, rows) for key in END_KEYS]
    found = [i for i in dict.fromkeys(ends) if i is not None]
    values |= {"bos_token_id": bos, "pad_token_id": _padding(file, rows)}
    values["eos_token_id"] = (found[0] if len(found) == 1 else tuple(found)) if found else None
    values["rope_scaling"] = _rope_scaling(read, file, values, notes)
    try:
        config = ModelConfig(**values)
        if config.rope_scaling is not None and config.rope_scaling["rope_type"] == "yarn":
            yarn_range(config)
        return config, notes
    except (ConfigError, FormatError) as error:
        raise FormatError(f"cannot use {file.path}: {error}") from error


def _padding(file: GgufFile, rows: int) -> int | None:
    """Runtimes never use it, so one out of range is none."""
    value = file.metadata.get("tokenizer.ggml.padding_token_id")
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < rows else None


def _head_dim(read: KeyReader, hidden: int, heads: int) -> int:
    if "llama.attention.key_length" not in read.metadata and hidden % heads:
        raise read.wrong("llama.attention.head_count", f"a divisor of embedding_length {hidden}")
    head_dim = read.whole("llama.attention.key_length", max(1, hidden // heads))
    for key in ("llama.attention.value_length", "llama.rope.dimension_count"):
        if read.whole(key, head_dim) != head_dim:
            raise read.wrong(key, f"the head size {head_dim}, as {known_keys()[key].feature} are not supported")
    return head_dim


def _rope_scaling(
    read: KeyReader, file: GgufFile, values: Mapping[str, Any], notes: list[str]
) -> dict[str, Any] | None:
    """The rule of llama.cpp and the engine: a missing type is linear, the older key counts where
    the newer is missing, a factor of 0 is none."""
    kind = read.text("llama.rope.scaling.type", "linear")
    if kind not in ("none", "linear", "yarn", "longrope"):
        raise read.wrong("llama.rope.scaling.type", "none, linear, yarn or longrope")
    keys = ("llama.rope.scaling.factor", "llama.rope.scale_linear")
    key = next((key for key in keys if key in read.metadata), keys[0])
    factor = read.real(key) or 1.0
    attention = read.real("llama.rope.scaling.attn_factor")
    original = read.whole("llama.rope.scaling.original_context_length", values["max_position_embeddings"])
    beta_fast, beta_slow = (read.real(f"llama.rope.scaling.yarn_beta_{end}") for end in ("fast", "slow"))
    if kind == "longrope":
        short, long = (_divisors(file, name, values) for name in (GGUF_SHORT_FACTORS, GGUF_LONG_FACTORS))
        return {
            "rope_type": "longrope",
            "short_factor": [each * factor for each in short],
            "long_factor": [each * factor for each in long],
            "original_max_position_embeddings": original,
            "attention_factor": attention,
        }
    if kind == "yarn":
        if factor < 1:
            raise read.wrong(key, "at least 1 for yarn")
        _refuse_rope_freqs(file, kind)
        return {
            "rope_type": "yarn",
            "factor": factor,
            "original_max_position_embeddings": original,
            "attention_factor": attention * yarn_attention_factor(factor),
            "beta_fast": beta_fast,
            "beta_slow": beta_slow,
        }
    if attention != 1.0:
        raise read.wrong("llama.rope.scaling.attn_factor", "1 without yarn or longrope")
    if kind == "none" or factor == 1.0:
        return _llama3(file, values, notes)
    _refuse_rope_freqs(file, "linear")
    return {"rope_type": "linear", "factor": factor}


def _refuse_rope_freqs(file: GgufFile, kind: str) -> None:
    if GGUF_ROPE_FACTORS in file.tensors:
        raise FormatError(
            f"cannot use {file.path}: tensor {GGUF_ROPE_FACTORS}: expected none beside RoPE scaling {kind}; a "
            "checkpoint has one scaling"
        )


def _divisors(file: GgufFile, name: str, values: Mapping[str, Any]) -> list[float]:
    """The shortest decimals of a tensor of divisors."""
    if name not in file.tensors:
        raise FormatError(f"cannot read {file.path}: tensor {name} is missing; longrope needs it")
    info, pairs = file.tensors[name], values["head_dim"] // 2
    if info.shape != (pairs,) or info.type != "F32":
        raise FormatError(
            f"cannot read {file.path}: tensor {name}: expected F32 [{pairs}], found {info.type} {list(info.shape)}"
        )
    numbers = file.dequantize(name)
    if not (np.isfinite(numbers) & (numbers > 0)).all():
        raise FormatError(f"cannot use {file.path}: tensor {name}: expected positive numbers; the file is damaged")
    return [float(str(number)) for number in numbers]


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

"""Converts Hugging Face's config.json to a ModelConfig and back, as transformers 4 and 5 spell it.

Version 4 has `rope_theta` and `rope_scaling`; version 5 has `rope_parameters` for both. Both are
written, and either is read. Features that a plain Llama lacks are refused by name, so that a file
that loads computes what its author intended.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llamita.config import ModelConfig
from llamita.errors import ConfigError, FormatError
from llamita.formats.rope_scaling import normalize_rope_scaling, yarn_range
from llamita.formats.tensor_table import MAX_LAYERS

ARCHITECTURE = "LlamaForCausalLM"
MODEL_TYPE = "llama"
# model_type → architecture, of the models that compute what a Llama computes.
_ARCHITECTURES = {MODEL_TYPE: ARCHITECTURE, "mistral": "MistralForCausalLM"}

# LlamaConfig's defaults for missing keys (a null is different: it means "none").
_LLAMA_DEFAULTS: dict[str, Any] = {
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": None,
}

# MistralConfig's defaults, kv heads and window included.
_MISTRAL_DEFAULTS: dict[str, Any] = _LLAMA_DEFAULTS | {"max_position_embeddings": 131072}
_MISTRAL_KV_HEADS, _MISTRAL_WINDOW = 8, 4096
_ORIGINAL = "original_max_position_embeddings"

_SHAPE_KEYS = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")

# Keys that must be absent, null or one of these values: key → (allowed values, what is supported).
_FIXED: dict[str, tuple[tuple[Any, ...], str]] = {
    "hidden_act": (("silu", "swish"), "only SwiGLU"),
    "attention_bias": ((False,), "no biases"),
    "mlp_bias": ((False,), "no biases"),
    "quantization_config": ((), "only plain weights"),
    "partial_rotary_factor": ((1, 1.0), "RoPE over whole heads"),
    "is_encoder_decoder": ((False,), "only decoders"),
}


def config_to_dict(config: ModelConfig, dtype: str = "float32") -> dict[str, Any]:
    """The content of config.json for weights of this dtype; transformers 4 and 5 read it."""
    scaling = normalize_rope_scaling(
        config.rope_scaling, "model config", config.max_position_embeddings, config.head_dim
    )
    eos = config.eos_token_id
    # Where transformers 4 looks for it.
    original = {_ORIGINAL: scaling[_ORIGINAL]} if scaling and scaling["rope_type"] == "longrope" else {}
    return {
        "architectures": [ARCHITECTURE],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": config.bos_token_id,
        "eos_token_id": list(eos) if isinstance(eos, (tuple, list)) else eos,
        "head_dim": config.head_dim,
        "hidden_act": "silu",
        "hidden_size": config.hidden_size,
        "initializer_range": 0.02,
        "intermediate_size": config.intermediate_size,
        "max_position_embeddings": config.max_position_embeddings,
        "mlp_bias": False,
        "model_type": MODEL_TYPE,
        "num_attention_heads": config.num_attention_heads,
        "num_hidden_layers": config.num_hidden_layers,
        "num_key_value_heads": config.num_key_value_heads,
        "pad_token_id": config.pad_token_id,
        "rms_norm_eps": config.rms_norm_eps,
        "rope_parameters": {"rope_theta": config.rope_theta, **(scaling or {"rope_type": "default"})},
        "rope_scaling": scaling,
        "rope_theta": config.rope_theta,
        "tie_word_embeddings": config.tie_word_embeddings,
        "torch_dtype": dtype,
        "vocab_size": config.vocab_size,
        **original,
    }


def config_from_dict(d: Mapping[str, Any], where: str, longest_text: int | None = None) -> ModelConfig:
    """The ModelConfig for the content of a config.json; `where` names the file in errors.

    longest_text: in tokens, if no text will be as long as the context: a sliding window of that
    length does not matter.

    Raises FormatError for keys that are missing, malformed, or unsupported by a plain Llama.
    """
    if not isinstance(d, Mapping):
        raise FormatError(f"cannot read {where}: expected a JSON object, found {type(d).__name__}")
    _refuse_other_models(d, where)
    values: dict[str, Any] = {key: _whole_number(_required(d, key, where), key, where) for key in _SHAPE_KEYS}
    if values["num_hidden_layers"] > MAX_LAYERS:
        raise _wrong("num_hidden_layers", f"at most {MAX_LAYERS}", values["num_hidden_layers"], where)
    is_mistral = d.get("model_type") == "mistral"
    for key, default in (_MISTRAL_DEFAULTS if is_mistral else _LLAMA_DEFAULTS).items():
        values[key] = d.get(key, default)
    kv_heads = d.get("num_key_value_heads", _MISTRAL_KV_HEADS if is_mistral else None)
    values["num_key_value_heads"] = _whole_number(
        _given(kv_heads, values["num_attention_heads"]), "num_key_value_heads", where
    )
    values["head_dim"] = _head_dim(d, values, where)
    values["max_position_embeddings"] = _whole_number(
        values["max_position_embeddings"], "max_position_embeddings", where
    )
    if is_mistral:
        _refuse_window(d, longest_text or values["max_position_embeddings"], where)
    values["rms_norm_eps"] = _number(values["rms_norm_eps"], "rms_norm_eps", where)
    if not isinstance(values["tie_word_embeddings"], bool):
        raise _wrong("tie_word_embeddings", "true or false", values["tie_word_embeddings"], where)
    values["rope_theta"], values["rope_scaling"] = _rope(
        d, values["max_position_embeddings"], values["head_dim"], where
    )
    for key in ("bos_token_id", "pad_token_id"):
        values[key] = _token_id(values[key], key, values["vocab_size"], where)
    values["eos_token_id"] = _end_ids(values["eos_token_id"], values["vocab_size"], where)
    try:
        config = ModelConfig(**values)
        if config.rope_scaling is not None and config.rope_scaling["rope_type"] == "yarn":
            yarn_range(config)
        return config
    except (ConfigError, FormatError) as error:
        raise FormatError(f"cannot use {where}: {error}") from error


# Models related to Llama → what they would need.
_OTHER_MODELS = {
    "qwen2": "; it would need biases on q, k and v",
    "qwen3": "; it would need norms on q and k",
    "gemma": "; it would need GELU, scaled embeddings and norms of 1 + w",
    "phi3": "; it would need joined qkv and gate_up matrices",
    "mixtral": "; it would need experts",
    "llama4_text": "; it would need experts and layers without RoPE",
    "mllama": "; it would need cross-attention to images",
}


def _refuse_window(d: Mapping[str, Any], context: int, where: str) -> None:
    """Refuse a sliding window that is shorter than the context."""
    window = d.get("sliding_window", _MISTRAL_WINDOW)
    if window is not None and _whole_number(window, "sliding_window", where) < context:
        raise FormatError(
            f"cannot use {where}: sliding_window: expected none, or at least max_position_embeddings "
            f"({context}), found {window}; windowed attention is not supported; import with --context-tokens {window}"
        )


def _refuse_other_models(d: Mapping[str, Any], where: str) -> None:
    kind, architectures = d.get("model_type"), d.get("architectures")
    if not isinstance(kind, str) or kind not in _ARCHITECTURES:
        more = _OTHER_MODELS.get(kind, "") if isinstance(kind, str) else ""
        raise FormatError(f"cannot use {where}: model_type: expected 'llama', found {kind!r:.60}{more}")
    if architectures is not None and architectures != [_ARCHITECTURES[kind]]:
        found = ", ".join(map(str, architectures)) if isinstance(architectures, list) else repr(architectures)
        raise FormatError(f"cannot use {where}: architectures: expected {_ARCHITECTURES[kind]}, found {found[:80]}")
    for key in _FIXED:
        _refuse_unless_fixed(d, key, where)


def _refuse_unless_fixed(d: Mapping[str, Any], key: str, where: str) -> None:
    """Refuse a key of _FIXED with an unsupported value."""
    value = d.get(key)
    allowed, supported = _FIXED[key]
    if value is not None and value not in allowed:
        shown = str(value)[:80] if isinstance(value, (str, int, float)) else type(value).__name__
        raise FormatError(f"cannot use {where}: {key}: {shown} is not supported ({supported})")


def _rope(d: Mapping[str, Any], context: int, head_dim: int, where: str) -> tuple[float, dict[str, Any] | None]:
    """(rope_theta, rope_scaling) from the keys of version 4 or 5, or both if they agree."""
    new = d.get("rope_parameters")

    def normalized(scaling: Any) -> dict[str, Any] | None:
        original = d.get(_ORIGINAL)  # transformers prefers the one outside
        if isinstance(scaling, Mapping) and original is not None:
            scaling = {**scaling, _ORIGINAL: original}
        return normalize_rope_scaling(scaling, where, context, head_dim)

    old_theta, old_scaling = d.get("rope_theta"), normalized(d.get("rope_scaling"))
    if new is None:
        return _number(_given(old_theta, 10000.0), "rope_theta", where), old_scaling
    if not isinstance(new, Mapping):
        raise _wrong("rope_parameters", "an object", new, where)
    _refuse_unless_fixed(new, "partial_rotary_factor", where)
    scaling = normalized(new)
    theta = _number(_given(new.get("rope_theta"), _given(old_theta, 10000.0)), "rope_theta", where)
    if old_theta is not None and _number(old_theta, "rope_theta", where) != theta:
        raise _wrong("rope_theta", f"the rope_theta of rope_parameters ({theta})", old_theta, where)
    if d.get("rope_scaling") is not None and old_scaling != scaling:
        raise _wrong("rope_scaling", f"the same as rope_parameters ({str(scaling)[:80]})", old_scaling, where)
    return theta, scaling


def _head_dim(d: Mapping[str, Any], values: Mapping[str, Any], where: str) -> int:
    hidden, heads = values["hidden_size"], values["num_attention_heads"]
    if d.get("head_dim") is not None:
        return _whole_number(d["head_dim"], "head_dim", where)
    if hidden % heads:
        expected = f"a divisor of hidden_size ({hidden}), as head_dim is not given"
        raise _wrong("num_attention_heads", expected, heads, where)
    return int(hidden // heads)


def _end_ids(value: Any, vocab_size: int, where: str) -> int | tuple[int, ...] | None:
    if not isinstance(value, (list, tuple)):
        return _token_id(value, "eos_token_id", vocab_size, where)
    ids = tuple(_token_id(item, "eos_token_id", vocab_size, where) for item in value)
    if not ids or None in ids:
        raise _wrong("eos_token_id", "an id or a list of ids", value, where)
    return tuple(item for item in ids if item is not None)


def _token_id(value: Any, key: str, vocab_size: int, where: str) -> int | None:
    """An id inside the vocabulary, or None. Some tools write -1 for none."""
    if value is None or value == -1:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < vocab_size:
        raise _wrong(key, f"a token id below vocab_size ({vocab_size})", value, where)
    return value


def _required(d: Mapping[str, Any], key: str, where: str) -> Any:
    if d.get(key) is None:
        raise FormatError(f"cannot use {where}: {key} is missing")
    return d[key]


def _given(value: Any, default: Any) -> Any:
    return default if value is None else value


def _whole_number(value: Any, key: str, where: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 < value < 2**31:
        raise _wrong(key, "a positive whole number", value, where)
    return value


def _number(value: Any, key: str, where: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < 1e30:
        raise _wrong(key, "a positive number", value, where)
    return float(value)


def _wrong(key: str, expected: str, found: Any, where: str) -> FormatError:
    return FormatError(f"cannot use {where}: {key}: expected {expected}, found {str(found)[:80]!r}")

"""Converts Hugging Face's config.json to a ModelConfig and back, as transformers 4 and 5 spell it.

Version 4 has `rope_theta` and `rope_scaling`; version 5 has `rope_parameters` for both. Both are
written, and either is read. Features that the network lacks are refused by name, so that a file
that loads computes what its author intended.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from llamita.config import Architecture, ModelConfig
from llamita.errors import ConfigError, FormatError
from llamita.formats.rope_scaling import normalize_rope_scaling, yarn_range
from llamita.formats.tensor_table import MAX_LAYERS
from llamita.json_file import Key, Schema, check_object, shortened, shown

# model_type → the class in transformers. A mistral without a window computes what a Llama computes.
_CLASSES = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "smollm3": "SmolLM3ForCausalLM",
}
NO_ROPE_INTERVAL = 4  # SmolLM3: every fourth layer, unless the config lists them

_ORIGINAL = "original_max_position_embeddings"
_MAX_NUMBER = 1e30


def _size_key(use: str, *, required: bool = False) -> Key:
    return Key("integer", required=required, positive=True, maximum=2**31 - 1, use=use)


def _number_key(default: float | None, use: str, *, null: bool = True) -> Key:
    return Key("number", default=default, null=null, positive=True, maximum=_MAX_NUMBER, use=use)


def _rope_keys() -> dict[str, Key]:
    return {
        "rope_type": Key("string", use="the kind of RoPE scaling, with its parameters"),
        "type": Key("string", use="the old name of rope_type"),
        "rope_theta": _number_key(None, "the base of RoPE's frequencies"),
    }


# What the model is: checked first, as other architectures have other keys.
IDENTITY: Schema = {
    "model_type": Key("string", use="llama, mistral, qwen2, qwen3 or smollm3"),
    "architectures": Key("list", items=Key("string"), use="the one of model_type"),
}
# With LlamaConfig's defaults for missing keys (a null is different: it means "none").
CONFIG: Schema = {
    "vocab_size": _size_key("rows of the embedding", required=True),
    "hidden_size": _size_key("", required=True),
    "intermediate_size": _size_key("", required=True),
    "num_hidden_layers": _size_key("", required=True),
    "num_attention_heads": _size_key("", required=True),
    "num_key_value_heads": _size_key("missing or null: num_attention_heads"),
    "head_dim": _size_key("missing or null: hidden_size / num_attention_heads"),
    "max_position_embeddings": Key("integer", default=2048, null=False, positive=True, maximum=2**31 - 1,
                                   use="the context"),
    "rms_norm_eps": _number_key(1e-6, "", null=False),
    "tie_word_embeddings": Key("boolean", default=False, null=False, use="the output matrix is the embedding"),
    "rope_theta": _number_key(None, "the base of RoPE's frequencies; missing or null: 10000"),
    _ORIGINAL: _size_key("outranks the one of the scaling"),
    "rope_scaling": Key("object", keys=_rope_keys(), use="transformers 4"),
    "rope_parameters": Key("object", keys=_rope_keys(), use="transformers 5; must agree with the keys of version 4"),
    "bos_token_id": Key("integer", default=1, use="-1 means none"),
    "eos_token_id": Key(("integer", "list"), default=2, items=Key("integer"), use="-1 means none"),
    "pad_token_id": Key("integer", use="-1 means none"),
    "sliding_window": Key("integer", positive=True, maximum=2**31 - 1, use="mistral: at least the context"),
}  # fmt: skip
WINDOWS: Schema = {
    "use_sliding_window": Key("boolean", default=False, null=False, use="qwen2, qwen3, smollm3"),
    "max_window_layers": Key("integer", default=28, null=False, minimum=0, maximum=2**31 - 1,
                             use="qwen2, qwen3: the first layer with a window"),
    "layer_types": Key("list", items=Key("string", null=False), use="qwen2, qwen3, smollm3: full_attention"),
}  # fmt: skip
NO_ROPE: Schema = {
    "no_rope_layers": Key("list", items=Key("integer", null=False, minimum=0, maximum=1),
                          use="smollm3: 0 for each layer without RoPE"),
    "no_rope_layer_interval": Key("integer", default=NO_ROPE_INTERVAL, null=False, positive=True, maximum=2**31 - 1,
                                  use="smollm3: every n-th layer is without RoPE"),
}  # fmt: skip


def _with_defaults(schema: Schema, **defaults: Any) -> Schema:
    return {**schema} | {key: dataclasses.replace(schema[key], default=value) for key, value in defaults.items()}


# The other keys and defaults of each class of transformers.
_NO_IDS = dict.fromkeys(("bos_token_id", "eos_token_id"))
_QWEN = _with_defaults(
    {**CONFIG, **WINDOWS}, max_position_embeddings=32768, num_key_value_heads=32, sliding_window=4096, **_NO_IDS
)
SCHEMAS: dict[str, Schema] = {
    "llama": CONFIG,
    "mistral": _with_defaults(CONFIG, max_position_embeddings=131072, num_key_value_heads=8, sliding_window=4096),
    "qwen2": _QWEN,
    "qwen3": _with_defaults(_QWEN, head_dim=128),
    "smollm3": _with_defaults(
        {**CONFIG, **WINDOWS, **NO_ROPE}, max_position_embeddings=32768, num_key_value_heads=4,
        tie_word_embeddings=True, bos_token_id=128000, eos_token_id=128001, pad_token_id=128004,
    ),
}  # fmt: skip
_THETAS = {"smollm3": 2000000.0}  # others: 10000
_SHAPE_KEYS = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
               "max_position_embeddings", "rms_norm_eps", "tie_word_embeddings")  # fmt: skip

# Keys that must be absent, null or one of these values: key → (allowed values, what is supported).
FIXED: dict[str, tuple[tuple[Any, ...], str]] = {
    "hidden_act": (("silu", "swish"), "only SwiGLU"),
    "attention_bias": ((False,), "no biases but Qwen2's of q, k and v"),
    "mlp_bias": ((False,), "no biases"),
    "quantization_config": ((), "only plain weights; import reads FP8"),
    "partial_rotary_factor": ((1, 1.0), "RoPE over whole heads"),
    "is_encoder_decoder": ((False,), "only decoders"),
}


def config_to_dict(config: ModelConfig, dtype: str = "float32") -> dict[str, Any]:
    """The content of config.json for weights of this dtype; transformers 4 and 5 read it."""
    scaling = normalize_rope_scaling(
        config.rope_scaling, "model config", config.max_position_embeddings, config.head_dim
    )
    eos, kind = config.eos_token_id, config.architecture
    # Where transformers 4 looks for it.
    original = {_ORIGINAL: scaling[_ORIGINAL]} if scaling and scaling["rope_type"] == "longrope" else {}
    return {
        "architectures": [_CLASSES[kind]],
        # Qwen2's biases have no key; in the other classes the key adds a bias to o too.
        **({} if kind == "qwen2" else {"attention_bias": False}),
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
        "model_type": kind,
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
        **_layer_settings(config),
    }


def _layer_settings(config: ModelConfig) -> dict[str, Any]:
    """The keys that say what each layer does, of architectures that have some."""
    if config.architecture == "llama":
        return {}
    layers = range(config.num_hidden_layers)
    settings: dict[str, Any] = {
        "layer_types": ["full_attention" for _ in layers], "max_window_layers": len(layers), "sliding_window": None,
        "use_sliding_window": False,
    }  # fmt: skip
    if config.architecture == "smollm3":
        settings["no_rope_layers"] = [int(layer not in config.no_rope_layers) for layer in layers]
    return settings


def config_from_dict(d: Mapping[str, Any], where: str, longest_text: int | None = None) -> ModelConfig:
    """The ModelConfig for the content of a config.json; `where` names the file in errors.

    longest_text: in tokens, if no text will be as long as the context: a sliding window of that
    length does not matter.

    Raises FormatError for keys that are missing, malformed, or not supported.
    """
    if not isinstance(d, Mapping):
        raise FormatError(f"cannot read {where}: expected a JSON object, found {shown(d)}")
    d = check_object(d, IDENTITY, where, FormatError)
    _refuse_other_models(d, where)
    kind = d["model_type"]
    d = check_object(d, SCHEMAS[kind], where, FormatError)
    values: dict[str, Any] = {key: d[key] for key in _SHAPE_KEYS}
    if values["num_hidden_layers"] > MAX_LAYERS:
        raise _wrong("num_hidden_layers", f"at most {MAX_LAYERS}", values["num_hidden_layers"], where)
    values["num_key_value_heads"] = _given(d["num_key_value_heads"], values["num_attention_heads"])
    values["head_dim"] = _head_dim(d, values, where)
    values |= _architecture(kind, d, where)
    if _has_window(kind, d, values, where):
        _refuse_window(d, longest_text or values["max_position_embeddings"], where)
    values["rope_theta"], values["rope_scaling"] = _rope(
        d, values["max_position_embeddings"], values["head_dim"], where
    )
    for key in ("bos_token_id", "pad_token_id"):
        values[key] = _token_id(d[key], key, values["vocab_size"], where)
    values["eos_token_id"] = _end_ids(d["eos_token_id"], values["vocab_size"], where)
    try:
        config = ModelConfig(**values)
        if config.rope_scaling is not None and config.rope_scaling["rope_type"] == "yarn":
            yarn_range(config)
        return config
    except (ConfigError, FormatError) as error:
        raise FormatError(f"cannot use {where}: {error}") from error


# Related models → what they would need.
_OTHER_MODELS = {
    "qwen2_moe": "; it would need experts",
    "qwen3_moe": "; it would need experts",
    "qwen3_next": "; it would need linear attention and experts",
    "qwen3_5": "; it would need linear attention",
    "qwen3_5_text": "; it would need linear attention",
    "minicpm": "; it would need scaled embeddings, residuals and logits",
    "gemma": "; it would need GELU, scaled embeddings and norms of 1 + w",
    "phi3": "; it would need joined qkv and gate_up matrices",
    "mixtral": "; it would need experts",
    "llama4_text": "; it would need experts and layers without RoPE",
    "mllama": "; it would need cross-attention to images",
}


# Small models that can be imported, by the languages that they were trained for; docs/formats.md has
# the same list.
SMALL_MODELS = {
    "Chinese and English": "Qwen2.5-0.5B, Qwen3-0.6B, Chinese-LLaMA-2-1.3B, Yi-6B",
    "English": "SmolLM2-135M, TinyLlama-1.1B",
    "several languages": "SmolLM3-3B, Llama-3.2-1B",
}


def supported_models(kinds: Sequence[str] = tuple(_CLASSES)) -> str:
    """What is expected instead of another model, for errors. kinds: what the file calls them."""
    listed = "; ".join(f"{languages}: {names}" for languages, names in SMALL_MODELS.items())
    return f"expected {', '.join(kinds[:-1])} or {kinds[-1]} ({listed})"


def _architecture(kind: str, d: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The fields of ModelConfig in which architectures differ."""
    architecture: Architecture = "llama" if kind == "mistral" else kind  # type: ignore[assignment]
    values: dict[str, Any] = {
        "architecture": architecture, "attention_bias": kind == "qwen2", "use_qk_norm": kind == "qwen3",
    }  # fmt: skip
    if kind == "smollm3":
        layers, given = range(d["num_hidden_layers"]), d["no_rope_layers"]
        if given is None:
            given = [(layer + 1) % d["no_rope_layer_interval"] for layer in layers]
        if len(given) < len(layers):
            raise _wrong("no_rope_layers", f"a number for each of {len(layers)} layers", f"{len(given)} of them", where)
        values["no_rope_layers"] = tuple(layer for layer in layers if given[layer] == 0)
    return values


def _has_window(kind: str, d: Mapping[str, Any], values: Mapping[str, Any], where: str) -> bool:
    """Whether some layer attends to a window only. Raises FormatError for other kinds of layers."""
    if kind in ("llama", "mistral"):
        return kind == "mistral"
    types, layers = d["layer_types"], values["num_hidden_layers"]
    known = ("full_attention", "sliding_attention") if d["use_sliding_window"] else ("full_attention",)
    if types is not None and (len(types) != layers or not set(types) <= set(known)):
        other = next((each for each in types if each not in known), f"{len(types)} of them")
        raise _wrong("layer_types", f"{' or '.join(known)} for each of {layers} layers", other, where)
    if not d["use_sliding_window"]:
        return False
    if types is not None:
        return "sliding_attention" in types
    return bool(values["no_rope_layers"]) if kind == "smollm3" else bool(d["max_window_layers"] < layers)


def _refuse_window(d: Mapping[str, Any], context: int, where: str) -> None:
    """Refuse a sliding window that is shorter than the context."""
    window = d["sliding_window"]
    if window is not None and window < context:
        raise FormatError(
            f"cannot use {where}: sliding_window: expected none, or at least max_position_embeddings "
            f"({context}), found {window}; windowed attention is not supported; import with --context {window}"
        )


def _refuse_other_models(d: Mapping[str, Any], where: str) -> None:
    kind, architectures = d.get("model_type"), d.get("architectures")
    if kind not in _CLASSES:
        found, more = None if kind is None else shown(kind), _OTHER_MODELS.get(str(kind), "")
        raise FormatError(f"cannot use {where}: model_type: {supported_models()}, found {found}{more}")
    # The network without an output matrix (LlamaModel) is a whole model if that is the embedding.
    known = [_CLASSES[kind]], [_CLASSES[kind].replace("ForCausalLM", "Model")]
    if architectures is not None and architectures not in known:
        found = shortened(", ".join(map(str, architectures)), 80)
        raise FormatError(f"cannot use {where}: architectures: expected {_CLASSES[kind]}, found {found}")
    for key in FIXED:
        if not (kind == "qwen2" and key == "attention_bias"):  # which Qwen2 does not read
            _refuse_unless_fixed(d, key, where)


def _refuse_unless_fixed(d: Mapping[str, Any], key: str, where: str) -> None:
    """Refuse a key of FIXED with an unsupported value."""
    value = d.get(key)
    allowed, supported = FIXED[key]
    if value is not None and value not in allowed:
        if key == "quantization_config" and isinstance(value, Mapping) and "quant_method" in value:
            value = f"quantization by {value['quant_method']}"
        found = shortened(str(value), 80) if isinstance(value, (str, int, float)) else type(value).__name__
        raise FormatError(f"cannot use {where}: {key}: {found} is not supported ({supported})")


def _rope(d: Mapping[str, Any], context: int, head_dim: int, where: str) -> tuple[float, dict[str, Any] | None]:
    """(rope_theta, rope_scaling) from the keys of version 4 or 5, or both if they agree."""
    new, old_theta, default = d["rope_parameters"], d["rope_theta"], _THETAS.get(d["model_type"], 10000.0)

    def normalized(scaling: Mapping[str, Any] | None) -> dict[str, Any] | None:
        given = _present(scaling)
        if given is not None and d[_ORIGINAL] is not None:  # transformers prefers the one outside
            given[_ORIGINAL] = d[_ORIGINAL]
        return normalize_rope_scaling(given, where, context, head_dim)

    old_scaling = normalized(d["rope_scaling"])
    if new is None:
        return float(_given(old_theta, default)), old_scaling
    _refuse_unless_fixed(new, "partial_rotary_factor", where)
    scaling = normalized(new)
    theta = float(_given(new["rope_theta"], _given(old_theta, default)))
    if old_theta is not None and old_theta != theta:
        raise _wrong("rope_theta", f"the rope_theta of rope_parameters ({theta})", old_theta, where)
    if d["rope_scaling"] is not None and old_scaling != scaling:
        raise _wrong("rope_scaling", f"the same as rope_parameters ({shown(scaling)})", old_scaling, where)
    return theta, scaling


def _head_dim(d: Mapping[str, Any], values: Mapping[str, Any], where: str) -> int:
    hidden, heads = values["hidden_size"], values["num_attention_heads"]
    if d["head_dim"] is not None:
        return int(d["head_dim"])
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


def _present(values: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """The keys that are neither missing nor null."""
    return None if values is None else {key: value for key, value in values.items() if value is not None}


def _given(value: Any, default: Any) -> Any:
    return default if value is None else value


def _wrong(key: str, expected: str, found: Any, where: str) -> FormatError:
    return FormatError(f"cannot use {where}: {key}: expected {expected}, found {shown(found)}")

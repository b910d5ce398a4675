"""Reads and writes LoRA adapters in PEFT's format. This module owns the adapter directory:

    adapter_config.json        peft_type LORA, r, lora_alpha, use_rslora, target_modules, …
    adapter_model.safetensors  base_model.model.MODULE.lora_A.weight [R, in], ….lora_B.weight [out, R]
    tokenizer.json, …          llamita only: the tokenizer, with the chat template used in training

The rows of q and k are in Hugging Face's RoPE order, as in the checkpoint, so nothing is permuted
here. Other kinds of adapters (DoRA, trained biases, whole layers, changed base weights) are rejected
with an error that names the setting. So are settings that this version does not know.
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from llamita.atomic import atomic_directory
from llamita.checkpoint import ADAPTER_CONFIG, TrainingState, copy_tokenizer, write_training_state
from llamita.config import ModelConfig
from llamita.errors import CheckpointError, FormatError
from llamita.finetune.lora import LINEAR_LAYERS, LoraConfig, LoraUpdate, lora_scale, lora_specs
from llamita.formats.safetensors_io import (
    FLOAT_DTYPES,
    SafetensorsReader,
    TensorEntry,
    checked,
    open_safetensors_file,
    write_safetensors,
)
from llamita.json_file import read_json_object

CONFIG: Final = ADAPTER_CONFIG
WEIGHTS: Final = "adapter_model.safetensors"
_PREFIX: Final = "base_model.model."
_PARTS: Final = {"a": ".lora_A.weight", "b": ".lora_B.weight"}
_PATTERN: Final = re.compile(r"\^?[\w.|\\]{1,400}\$?")
# PEFT settings that change more than W + s B A: the value for "not used", and the feature's name.
_UNSUPPORTED: Final[dict[str, tuple[Any, str]]] = {
    "use_dora": (False, "DoRA"),
    "bias": ("none", "trained biases"),
    "lora_bias": (False, "a bias of lora_B"),
    "fan_in_fan_out": (False, "transposed weights"),
    "modules_to_save": (None, "whole layers"),
    "trainable_token_indices": (None, "trained tokens"),
    "layer_replication": (None, "repeated layers"),
    "target_parameters": (None, "updates of bare parameters"),
    "alora_invocation_tokens": (None, "aLoRA"),
    "use_qalora": (False, "QALoRA"),
    "use_bdlora": (None, "block-diagonal LoRA"),
    "arrow_config": (None, "Arrow"),
    "kasa_config": (None, "KaSA"),
    "velora_config": (None, "VeLoRA"),
    "monteclora_config": (None, "MonteCLoRA"),
}
# Initializations that leave the base weights as they are. The others (PiSSA, OLoRA, CorDA, LoRA-GA,
# LoftQ) train on a changed base, so W + s B A with the checkpoint's W is another model.
_PLAIN_INITS: Final = (True, False, None, "gaussian", "eva", "orthogonal", "mica")
_CONVERTIBLE_INITS: Final = ("pissa", "olora", "corda")  # PEFT can save these as plain LoRA
_USED: Final = frozenset((
    "peft_type", "base_model_name_or_path", "r", "lora_alpha", "lora_dropout", "use_rslora", "rank_pattern",
    "alpha_pattern", "init_lora_weights",
))  # fmt: skip
# They describe the training, or which layers have tensors, which the file itself shows. The
# *_config belong to values of init_lora_weights; the last line is ms-swift's.
_HARMLESS: Final = frozenset((
    "task_type", "inference_mode", "auto_mapping", "revision", "peft_version", "runtime_config", "target_modules",
    "exclude_modules", "layers_to_transform", "layers_pattern", "megatron_core", "ensure_weight_tying",
    "qalora_group_size", "loftq_config", "eva_config", "corda_config", "lora_ga_config",
    "lora_dtype", "lorap_lr_ratio", "lorap_emb_lr",
))  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Adapter:
    """updates: by module name (`model.layers.0.self_attn.q_proj`)."""

    directory: Path
    updates: dict[str, LoraUpdate]
    dropout: float

    @property
    def num_parameters(self) -> int:
        return sum(update.a.numel() + update.b.numel() for update in self.updates.values())


def save_adapter(
    directory: Path,
    updates: Mapping[str, LoraUpdate],
    config: LoraConfig,
    base: str | None,
    tokenizer: Path | Callable[[Path], None] | None = None,
    training: TrainingState | None = None,
) -> None:
    """Write a new adapter directory, whole or not at all.

    updates: finetune.lora.updates_of. base: the base model's name or path, for PEFT. tokenizer: the
    folder to copy the tokenizer's files from, or a function that writes them. training: the state
    for resuming. Raises OutputError if the directory exists.
    """
    tensors = {
        f"{_PREFIX}{name}{_PARTS[part]}": getattr(update, part).cpu()
        for name, update in updates.items()
        for part in _PARTS
    }
    entries = [TensorEntry(name, tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()]
    with atomic_directory(directory) as temporary:
        content = json.dumps(_config_values(config, base), indent=2, ensure_ascii=False) + "\n"
        (temporary / CONFIG).write_text(content, encoding="utf-8")
        write_safetensors(temporary / WEIGHTS, entries, lambda name: tensors[name])
        if isinstance(tokenizer, Path):
            copy_tokenizer(tokenizer, temporary)
        elif tokenizer is not None:
            tokenizer(temporary)
        if training is not None:
            write_training_state(temporary, training)


def resolve_adapter(path: Path, *, prefer: str = "best") -> Path:
    """The adapter directory itself, or that of a run: "best" or "latest", as preferred."""
    path = Path(path)
    links = (path, path / prefer, path / "latest")
    return next((each for each in links if (each / CONFIG).is_file()), path)


def other_base(adapter: Path, checkpoint: Path) -> str | None:
    """The base model that the adapter names, if that is an existing folder other than this one."""
    base = read_json_object(adapter / CONFIG, CheckpointError).get("base_model_name_or_path")
    if not isinstance(base, str) or not Path(base).is_dir() or Path(base).resolve() == checkpoint.resolve():
        return None
    return base


def load_adapter(directory: Path, config: ModelConfig) -> Adapter:
    """Read an adapter for a Llama of this config; every tensor must be there with its shape.

    Raises CheckpointError if it is not an adapter, of an unsupported kind, or made for another
    model.
    """
    directory = Path(directory)
    settings = _read_settings(directory)
    stored = _open(directory)
    found: dict[str, dict[str, str]] = {}
    for tensor_name in stored.shapes:
        module, part = _split(tensor_name, directory)
        found.setdefault(module, {})[part] = tensor_name
    shapes = {module: spec.shape for module, spec in lora_specs(config)}
    order = {module: number for number, module in enumerate(shapes)}
    updates: dict[str, LoraUpdate] = {}
    for module in sorted(found, key=lambda name: order.get(name, -1)):
        if module not in shapes:
            known = f"layers 0 to {config.num_hidden_layers - 1}: {', '.join(LINEAR_LAYERS)}"
            raise CheckpointError(
                f"cannot use adapter {directory}: {module}: expected a linear layer of the model ({known}); "
                "the adapter was made for another model, or for layers that are not supported"
            )
        updates[module] = _read_update(directory, stored, settings, module, found[module], shapes[module])
    if not updates:
        raise CheckpointError(f"cannot use adapter {directory}: {WEIGHTS} has no tensors")
    return Adapter(directory, updates, float(settings.get("lora_dropout") or 0.0))


def _config_values(config: LoraConfig, base: str | None) -> dict[str, Any]:
    alpha = config.alpha_or_default
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "inference_mode": True,
        "r": config.rank,
        "lora_alpha": int(alpha) if alpha.is_integer() else alpha,
        "lora_dropout": config.dropout,
        "use_rslora": config.rslora,
        "target_modules": list(config.layers),
        "bias": "none",
        "fan_in_fan_out": False,
        "init_lora_weights": True,
        "modules_to_save": None,
        "rank_pattern": {},
        "alpha_pattern": {},
    }


def _read_settings(directory: Path) -> dict[str, Any]:
    path = directory / CONFIG
    if not path.is_file():
        raise CheckpointError(
            f"cannot open adapter {directory}: {CONFIG} is missing; expected a directory written by PEFT"
        )
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"cannot read {path}: {str(error)[:200]}") from error
    if not isinstance(settings, dict):
        raise CheckpointError(f"cannot read {path}: expected a JSON object, found {type(settings).__name__}")
    if settings.get("peft_type") != "LORA":
        raise CheckpointError(f"cannot use {path}: peft_type: expected LORA, found {settings.get('peft_type')!r}")
    for key, (unused, what) in _UNSUPPORTED.items():
        if settings.get(key, unused) not in (unused, None, False, [], {}):
            raise CheckpointError(
                f"cannot use {path}: {key}: expected {json.dumps(unused)}, found {str(settings[key])[:60]}: {what} "
                "is not supported; merge the adapter with peft (merge_and_unload) and import the result"
            )
    _check_init(path, settings.get("init_lora_weights"))
    if settings.get("use_rslora") not in (None, True, False):
        raise CheckpointError(
            f"cannot read {path}: use_rslora: expected true or false, found {str(settings['use_rslora'])[:60]!r}"
        )
    known = _USED | _HARMLESS | _UNSUPPORTED.keys()
    for key, value in settings.items():
        if key not in known and value not in (None, False, "", [], {}):
            raise CheckpointError(
                f"cannot use {path}: {key[:60]!r}: expected a setting that llamita knows, found "
                f"{str(value)[:60]!r}; it may change the weights: remove it if it does not, or merge the adapter with "
                "peft (merge_and_unload) and import the result"
            )
    for key in ("rank_pattern", "alpha_pattern"):
        if not isinstance(settings.get(key) or {}, dict):
            raise CheckpointError(f"cannot read {path}: {key}: expected an object, found {str(settings[key])[:60]}")
    return settings


def _check_init(path: Path, value: Any) -> None:
    """Reject an adapter whose training changed the base weights."""
    name = value.lower() if isinstance(value, str) else value
    if name in _PLAIN_INITS:
        return
    save = "save_pretrained with path_initial_model_for_weight_conversion, or "
    raise CheckpointError(
        f"cannot use {path}: init_lora_weights: expected true, false or one of "
        f"{', '.join(each for each in _PLAIN_INITS if isinstance(each, str))}, found {str(value)[:60]!r}: the adapter "
        "belongs to base weights that its initialization changed; convert it with peft ("
        f"{save if isinstance(name, str) and name.startswith(_CONVERTIBLE_INITS) else ''}merge_and_unload on the "
        "weights it was trained with) and use the result"
    )


def _open(directory: Path) -> SafetensorsReader:
    path = directory / WEIGHTS
    if not path.is_file():
        raise CheckpointError(
            f"cannot open adapter {directory}: {WEIGHTS} is missing (an adapter_model.bin is a pickle: load it in peft "
            "and save it again)"
        )
    try:
        return open_safetensors_file(path)
    except FormatError as error:
        raise CheckpointError(str(error)) from error


def _split(tensor_name: str, directory: Path) -> tuple[str, str]:
    """The module and the part, "a" or "b", that a tensor's name stands for."""
    for part, suffix in _PARTS.items():
        if tensor_name.startswith(_PREFIX) and tensor_name.endswith(suffix):
            return tensor_name[len(_PREFIX) : -len(suffix)], part
    raise CheckpointError(
        f"cannot use adapter {directory}: unknown tensor {tensor_name[:120]}; expected {_PREFIX}LAYER.lora_A.weight "
        "and ….lora_B.weight"
    )


def _read_update(
    directory: Path,
    stored: SafetensorsReader,
    settings: dict[str, Any],
    module: str,
    names: dict[str, str],
    shape: tuple[int, ...],
) -> LoraUpdate:
    for part, suffix in _PARTS.items():
        if part not in names:
            raise CheckpointError(f"cannot use adapter {directory}: tensor {_PREFIX}{module}{suffix} is missing")
    rank = stored.shapes[names["a"]][0] if len(stored.shapes[names["a"]]) == 2 else 0
    for part, wanted in (("a", (rank, shape[1])), ("b", (shape[0], rank))):
        found = stored.shapes[names[part]]
        if tuple(found) != wanted or rank < 1:
            raise CheckpointError(
                f"cannot use adapter {directory}: tensor {names[part]}: expected shape "
                f"{['R' if rank < 1 and size == rank else size for size in wanted]}, found {list(found)}; the adapter "
                "was made for another model"
            )
    configured = _number(directory, settings, "r", "rank_pattern", module)
    if configured != rank:
        raise CheckpointError(
            f"cannot use adapter {directory}: {module}: expected rank {configured:g} as in {CONFIG}, found {rank}"
        )
    scale = lora_scale(
        _number(directory, settings, "lora_alpha", "alpha_pattern", module), rank, bool(settings.get("use_rslora"))
    )
    return LoraUpdate(_read(directory, stored, names["a"]), _read(directory, stored, names["b"]), scale)


def _read(directory: Path, stored: SafetensorsReader, name: str) -> Tensor:
    try:
        if stored.dtype(name) not in FLOAT_DTYPES:
            raise FormatError(
                f"cannot use adapter {directory}: tensor {name}: expected floats, found {stored.dtype(name)}"
            )
        return checked(stored.read(name), name, f"cannot use adapter {directory}", torch.float32)
    except FormatError as error:
        raise CheckpointError(str(error)) from error


def _number(directory: Path, settings: dict[str, Any], key: str, pattern_key: str, module: str) -> float:
    """A layer's rank or alpha: of the first pattern that matches the end of its name, else the
    default (PEFT)."""
    value: Any = settings.get(key)
    for pattern, special in (settings.get(pattern_key) or {}).items():
        if not _PATTERN.fullmatch(pattern):  # repetitions could take exponential time
            raise CheckpointError(
                f"cannot use {directory / CONFIG}: {pattern_key}: expected module names, found {pattern[:80]!r}"
            )
        if re.fullmatch(rf"(.*\.)?({pattern})", module):
            value = special
            break
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value) or value <= 0:
        raise CheckpointError(f"cannot read {directory / CONFIG}: {key}: expected a positive number, found {value!r}")
    return float(value)

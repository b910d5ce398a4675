"""Reads and writes LoRA adapters in PEFT's format. This module owns the adapter directory:

    adapter_config.json        peft_type LORA, r, lora_alpha, use_rslora, target_modules, …
    adapter_model.safetensors  base_model.model.MODULE.lora_A.weight [R, in], ….lora_B.weight [out, R]
    tokenizer.json, …          llamita only: the tokenizer, with the chat template used in training

The rows of q and k are in Hugging Face's RoPE order, as in the checkpoint, so nothing is permuted
here. Adapters of other programs may also hold trained embeddings, whole tensors and rows of single
tokens (`TensorChange`), which only a merge can apply. Other kinds of adapters (DoRA, trained biases,
changed base weights) are rejected with an error that names the setting. So are settings that this
version does not know.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from llamita.atomic import atomic_directory
from llamita.checkpoint import ADAPTER_CONFIG, TrainingState, adapter_base, write_tokenizer_and_training
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
from llamita.formats.tensor_table import tensor_table
from llamita.json_file import Key, Schema, read_json_object, shortened, shown

CONFIG: Final = ADAPTER_CONFIG
WEIGHTS: Final = "adapter_model.safetensors"
_PREFIX: Final = "base_model.model."
_PARTS: Final = {"a": ".lora_A.weight", "b": ".lora_B.weight"}
# Other endings of tensor names, longest first. PEFT writes the untouched tensor of a module, and with
# a vocabulary of another size the module itself, beside what it trained.
_OTHER_PARTS: Final = {
    "base": (".token_adapter.base_layer.weight", ".base_layer.weight"),
    "rows": (".token_adapter.trainable_tokens_delta",),
    "original": (".original_module.weight",),
    "trained": (".modules_to_save.weight",),
    "embedding_a": (".lora_embedding_A",),
    "embedding_b": (".lora_embedding_B",),
    "whole": (".weight",),
}
EMBEDDING: Final = "model.embed_tokens"
HEAD: Final = "lm_head"
_PATTERN: Final = re.compile(r"\^?[\w.|\\]{1,400}\$?")
# PEFT settings that change more than W + s B A: the value for "not used", and the feature's name.
UNSUPPORTED: Final[dict[str, tuple[Any, str]]] = {
    "use_dora": (False, "DoRA"),
    "bias": ("none", "trained biases"),
    "lora_bias": (False, "a bias of lora_B"),
    "fan_in_fan_out": (False, "transposed weights"),
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
_POSITIVE: Final = Key("number", positive=True, null=False)
_NAMES: Final = Key(("list", "string"), items=Key("string", null=False))  # a string is a pattern
USED: Final[Schema] = {
    "peft_type": Key("string", use="LORA"),
    "base_model_name_or_path": Key("string", use="where `merge` looks for the base model"),
    "r": Key("number", positive=True, use="the rank"),
    "lora_alpha": Key("number", positive=True, use="the scale is lora_alpha / r"),
    "lora_dropout": Key("number", minimum=0, maximum=1, use="for training on"),
    "use_rslora": Key("boolean", use="the scale is lora_alpha / √r"),
    "rank_pattern": Key("object", items=_POSITIVE, use="r of some layers"),
    "alpha_pattern": Key("object", items=_POSITIVE, use="lora_alpha of some layers"),
    "init_lora_weights": Key(("boolean", "string"), use="refused if it changed the base weights"),
    "modules_to_save": Key("list", items=Key("string", null=False), use="the tensors trained whole, merged"),
    "trainable_token_indices": Key(("list", "object"), use="the rows of the embedding trained, merged"),
    "ensure_weight_tying": Key("boolean", use="whether a tied head follows the embedding"),
    "target_modules": dataclasses.replace(_NAMES, use="if it lists names: all must have tensors"),
    "exclude_modules": dataclasses.replace(_NAMES, use="these need none"),
    "layers_to_transform": Key(("integer", "list"), items=Key("integer", null=False), use="the others need none"),
    "layers_pattern": _NAMES,
}
# They describe the training. The *_config belong to values of init_lora_weights; the last line is
# ms-swift's.
HARMLESS: Final = frozenset((
    "task_type", "inference_mode", "auto_mapping", "revision", "peft_version", "runtime_config", "megatron_core",
    "qalora_group_size", "loftq_config", "eva_config", "corda_config", "lora_ga_config",
    "lora_dtype", "lorap_lr_ratio", "lorap_emb_lr",
))  # fmt: skip


@dataclasses.dataclass(frozen=True)
class TensorChange:
    """What an adapter does to one tensor, other than to a linear layer of the decoder.

    whole: replaces it: trained, or resized for more tokens. update: is added then. rows: replace
    those of token_ids.
    """

    whole: Tensor | None = None
    update: LoraUpdate | None = None
    token_ids: tuple[int, ...] = ()
    rows: Tensor | None = None

    def apply(self, weight: Tensor, strength: float = 1.0) -> Tensor:
        """The changed tensor, float32."""
        changed = weight.float().clone() if self.whole is None else self.whole.float().clone()
        if self.update is not None:
            changed += self.update.delta() * strength
        if self.rows is not None:
            changed[list(self.token_ids)] = self.rows.float()
        return changed

    @property
    def num_parameters(self) -> int:
        tensors = [self.whole, self.rows, *((self.update.a, self.update.b) if self.update else ())]
        return sum(tensor.numel() for tensor in tensors if tensor is not None)


@dataclasses.dataclass(frozen=True)
class Adapter:
    """updates: by module name (`model.layers.0.self_attn.q_proj`). changes: of other tensors, by
    module name. keeps_tied: PEFT trained embedding and output head as one."""

    directory: Path
    updates: dict[str, LoraUpdate]
    dropout: float
    changes: dict[str, TensorChange] = dataclasses.field(default_factory=dict)
    keeps_tied: bool = False

    @property
    def num_parameters(self) -> int:
        layers = sum(update.a.numel() + update.b.numel() for update in self.updates.values())
        return layers + sum(change.num_parameters for change in self.changes.values())

    def check_only_layers(self, what: str) -> None:
        """Raise CheckpointError if the adapter changes more than the decoder's linear layers, which
        only a merge can apply."""
        if self.changes:
            raise CheckpointError(
                f"cannot {what} {self.directory}: expected updates of linear layers of the decoder, found a trained "
                f"{' and '.join(list(self.changes)[:3])}; merge the adapter: llamita merge CHECKPOINT "
                f"{self.directory} --out MERGED, and use MERGED"
            )


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
        write_tokenizer_and_training(temporary, tokenizer, training)


def resolve_adapter(path: Path, *, prefer: str = "best") -> Path:
    """The adapter directory itself, or that of a run: "best" or "latest", as preferred."""
    path = Path(path)
    links = (path, path / prefer, path / "latest")
    return next((each for each in links if (each / CONFIG).is_file()), path)


def other_base(adapter: Path, checkpoint: Path) -> str | None:
    """The base model that the adapter names, if that is an existing folder other than this one."""
    base = adapter_base(adapter)
    if base is None or not os.path.isdir(base) or Path(base).resolve() == checkpoint.resolve():
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
        if part in found.setdefault(module, {}):
            raise CheckpointError(f"cannot use adapter {directory}: {module}: expected one tensor {part}, found two")
        found[module][part] = tensor_name
    shapes = {module: spec.shape for module, spec in lora_specs(config)}
    weights = [spec for spec in tensor_table(config) if spec.huggingface.endswith(".weight")]
    others = {spec.huggingface.removesuffix(".weight"): spec.shape for spec in weights}
    others[HEAD] = others[EMBEDDING]  # an adapter may untie it
    updates: dict[str, LoraUpdate] = {}
    changes: dict[str, TensorChange] = {}
    order = {module: number for number, module in enumerate(others)}
    for module in sorted(found, key=lambda name: order.get(name, -1)):
        if module in shapes and not found[module].keys().isdisjoint(_PARTS):
            updates[module] = _read_update(directory, stored, settings, module, found[module], shapes[module])
        elif module in others:
            changes[module] = _read_change(directory, stored, settings, module, found[module], others[module])
        else:
            known = f"layers 0 to {config.num_hidden_layers - 1}: {', '.join(LINEAR_LAYERS)}"
            raise CheckpointError(
                f"cannot use adapter {directory}: {module}: expected a linear layer of the model ({known}); "
                "the adapter was made for another model, or for layers that are not supported"
            )
    if not updates and not changes:
        raise CheckpointError(f"cannot use adapter {directory}: {WEIGHTS} has no tensors")
    _check_all_there(directory, settings, others, changes)
    _check_targets(directory, settings, (*shapes, HEAD, EMBEDDING), {*updates, *changes})
    keeps_tied = bool(settings.get("ensure_weight_tying"))
    return Adapter(directory, updates, float(settings.get("lora_dropout") or 0.0), changes, keeps_tied)


def _check_all_there(
    directory: Path, settings: dict[str, Any], known: Iterable[str], changes: Mapping[str, TensorChange]
) -> None:
    """Raise CheckpointError if the settings name a trained module that the file lacks."""
    named = [*(settings.get("modules_to_save") or ()), *_token_indices(directory, settings)]
    for name in named:
        modules = [module for module in known if _is_part(name, module)]
        if modules and not any(module in changes for module in modules):
            raise CheckpointError(
                f"cannot use adapter {directory}: {CONFIG} says that {name} was trained, and {WEIGHTS} has no tensor "
                "of it; save the adapter again with peft (save_pretrained)"
            )


def _check_targets(directory: Path, settings: dict[str, Any], modules: Iterable[str], found: set[str]) -> None:
    """Raise CheckpointError if a module that target_modules lists has no tensors: PEFT leaves such
    a module untrained, and warns. A pattern is not compared: it can take exponential time."""
    targets, excluded = settings["target_modules"], settings["exclude_modules"] or []
    if not isinstance(targets, list) or isinstance(excluded, str):
        return
    if settings["layers_pattern"] not in (None, "", [], "layers", ["layers"]):
        return
    excluded = [*excluded, *(settings["modules_to_save"] or ())]
    layers = settings["layers_to_transform"]
    numbers = [layers] if isinstance(layers, int) else layers
    for module in modules:
        if not _is_named(module, targets) or any(_is_part(name, module) for name in excluded):
            continue
        if numbers and not (module.startswith("model.layers.") and int(module.split(".")[2]) in numbers):
            continue
        if module not in found:
            raise CheckpointError(
                f"cannot use adapter {directory}: {CONFIG} says that {module} was trained (target_modules), and "
                f"{WEIGHTS} has no tensor of it; save the adapter again with peft (save_pretrained), or list the "
                "trained layers in layers_to_transform"
            )


def _is_named(module: str, names: Iterable[str]) -> bool:
    """Whether PEFT finds the module by one of the names."""
    return any(f".{module}".endswith(f".{name}") for name in names if name)


def _is_part(name: str, module: str) -> bool:
    """Whether PEFT means the module, or one around it, by this name of a setting."""
    return f".{name}." in f".{module}."


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
    settings = read_json_object(path, CheckpointError, USED)
    if settings["peft_type"] != "LORA":
        raise CheckpointError(f"cannot use {path}: peft_type: expected LORA, found {shown(settings['peft_type'])}")
    for key, (unused, what) in UNSUPPORTED.items():
        if settings.get(key, unused) not in (unused, None, False, [], {}):
            raise CheckpointError(
                f"cannot use {path}: {key}: expected {json.dumps(unused)}, found {shown(settings[key])}: {what} "
                "is not supported; merge the adapter with peft (merge_and_unload) and import the result"
            )
    _check_init(path, settings.get("init_lora_weights"))
    known = USED.keys() | HARMLESS | UNSUPPORTED.keys()
    for key, value in settings.items():
        if key not in known and value not in (None, False, "", [], {}):
            raise CheckpointError(
                f"cannot use {path}: {shown(key)}: expected a setting that llamita knows, found "
                f"{shown(value)}; it may change the weights: remove it if it does not, or merge the adapter with "
                "peft (merge_and_unload) and import the result"
            )
    return settings


def _check_init(path: Path, value: Any) -> None:
    """Reject an adapter whose training changed the base weights."""
    name = value.lower() if isinstance(value, str) else value
    if name in _PLAIN_INITS:
        return
    save = "save_pretrained with path_initial_model_for_weight_conversion, or "
    raise CheckpointError(
        f"cannot use {path}: init_lora_weights: expected true, false or one of "
        f"{', '.join(each for each in _PLAIN_INITS if isinstance(each, str))}, found {shown(value)}: the adapter "
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
    """The module and the part that a tensor's name stands for."""
    endings = [(part, suffix) for part, suffix in _PARTS.items()]
    endings += [(part, suffix) for part, suffixes in _OTHER_PARTS.items() for suffix in suffixes]
    for part, suffix in endings:
        if tensor_name.startswith(_PREFIX) and tensor_name.endswith(suffix):
            return tensor_name[len(_PREFIX) : -len(suffix)], part
    raise CheckpointError(
        f"cannot use adapter {directory}: unknown tensor {shortened(tensor_name, 120)}; expected "
        f"{_PREFIX}LAYER.lora_A.weight and ….lora_B.weight"
    )


def _token_indices(directory: Path, settings: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """trainable_token_indices: the ids of trained rows by module; a list is the embedding's."""
    value = settings.get("trainable_token_indices")
    by_module = {"embed_tokens": value} if isinstance(value, list) else value or {}
    whole = isinstance(by_module, dict) and all(
        isinstance(ids, list) and ids and all(type(each) is int for each in ids) for ids in by_module.values()
    )
    if not whole:
        raise CheckpointError(
            f"cannot read {directory / CONFIG}: trainable_token_indices: expected null, a list of ids, or lists by "
            f"module, found {str(value)[:60]!r}"
        )
    return {name: tuple(ids) for name, ids in by_module.items()}


def _read_change(
    directory: Path,
    stored: SafetensorsReader,
    settings: dict[str, Any],
    module: str,
    names: dict[str, str],
    shape: tuple[int, ...],
) -> TensorChange:
    """The change of a tensor. In the embedding and the head, the number of rows may be another."""
    where = f"cannot use adapter {directory}"
    is_vocabulary = module in (EMBEDDING, HEAD)
    whole_name = names.get("trained") or names.get("base") or names.get("whole")
    update_parts = ("embedding_a", "embedding_b") if module == EMBEDDING else ("a", "b")
    allowed = {"trained", "original", "whole"} | ({"base", "rows", *update_parts} if is_vocabulary else set())
    unknown = [name for part, name in names.items() if part not in allowed]
    if unknown:
        raise CheckpointError(
            f"{where}: tensor {unknown[0][:120]} is not supported; merge the adapter with peft (merge_and_unload) and "
            "import the result"
        )
    whole = None
    if whole_name is not None:
        whole = _read(directory, stored, whole_name)
        if whole.shape != shape and not (is_vocabulary and whole.dim() == 2 and whole.shape[1] == shape[1]):
            raise CheckpointError(
                f"{where}: tensor {whole_name}: expected shape {list(shape)}, found {list(whole.shape)}; the adapter "
                "was made for another model"
            )
        shape = tuple(whole.shape)
    update = None
    if any(part in names for part in update_parts):
        update = _read_vocabulary_update(directory, stored, settings, module, names, update_parts, shape)
    if "rows" not in names:
        return TensorChange(whole, update)
    rows = _read(directory, stored, names["rows"])
    indices = _token_indices(directory, settings)
    ids = next((ids for name, ids in indices.items() if _is_part(name, module)), indices.get("embed_tokens", ()))
    if tuple(rows.shape) != (len(ids), shape[1]) or not all(0 <= each < shape[0] for each in ids):
        raise CheckpointError(
            f"{where}: tensor {names['rows']}: expected a row of {shape[1]} for each id of trainable_token_indices, "
            f"all from 0 to {shape[0] - 1}, found shape {list(rows.shape)} and {len(ids)} ids"
        )
    return TensorChange(whole, update, ids, rows)


def _read_vocabulary_update(
    directory: Path,
    stored: SafetensorsReader,
    settings: dict[str, Any],
    module: str,
    names: dict[str, str],
    parts: tuple[str, str],
    shape: tuple[int, ...],
) -> LoraUpdate:
    """The low-rank update of the head, or of the embedding, where PEFT stores B A of the transposed
    matrix: A [R, V], B [D, R]."""
    for part in parts:
        if part not in names:
            suffix = (_PARTS.get(part) or _OTHER_PARTS[part][0]).removeprefix(".")
            raise CheckpointError(f"cannot use adapter {directory}: tensor {_PREFIX}{module}.{suffix} is missing")
    first, second = (_read(directory, stored, names[part]) for part in parts)
    rank = first.shape[0] if first.dim() == 2 else 0
    a, b = (second.t(), first.t()) if parts[0] != "a" and second.dim() == first.dim() == 2 else (first, second)
    if rank < 1 or tuple(a.shape) != (rank, shape[1]) or tuple(b.shape) != (shape[0], rank):
        raise CheckpointError(
            f"cannot use adapter {directory}: tensors {names[parts[0]]} and {names[parts[1]]}: expected an update of "
            f"{shape[0]} rows of {shape[1]}, found {list(first.shape)} and {list(second.shape)}; the adapter was made "
            "for another model, or saved without its embedding (save_embedding_layers=True saves it)"
        )
    return LoraUpdate(a.contiguous(), b.contiguous(), _scale(directory, settings, module, rank))


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
    scale = _scale(directory, settings, module, rank)
    return LoraUpdate(_read(directory, stored, names["a"]), _read(directory, stored, names["b"]), scale)


def _scale(directory: Path, settings: dict[str, Any], module: str, rank: int) -> float:
    """The factor of a module's update, whose rank must be the configured one."""
    configured = _number(directory, settings, "r", "rank_pattern", module)
    if configured != rank:
        raise CheckpointError(
            f"cannot use adapter {directory}: {module}: expected rank {configured:g} as in {CONFIG}, found {rank}"
        )
    alpha = _number(directory, settings, "lora_alpha", "alpha_pattern", module)
    return lora_scale(alpha, rank, bool(settings.get("use_rslora")))


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
                f"cannot use {directory / CONFIG}: {pattern_key}: expected module names, found {shown(pattern)}"
            )
        if re.fullmatch(rf"(.*\.)?({pattern})", module):
            value = special
            break
    if value is None:
        raise CheckpointError(f"cannot read {directory / CONFIG}: {key}: expected a positive number, found null")
    return float(value)

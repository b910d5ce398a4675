"""Checkpoint directories: Hugging Face folders, written atomically, read, and found in runs.

    config.json  model.safetensors  tokenizer.json  tokenizer_config.json  generation_config.json
    [tokenizer.model]
    (or model-00001-of-0000N.safetensors … and model.safetensors.index.json)
    training/state.json         resume state as JSON: step, random states, data position, …
    training/state.safetensors  resume state as tensors: the optimizer's moments, …
    training/optimizer          replaces it if the optimizer is sharded: torch.distributed.checkpoint

A run directory holds checkpoints `step-NNNNNNNN` and the links `latest` and `best`, and `teacher`
from the second generation on. It can be given wherever a checkpoint is expected: its best one is
used. Links are replaced by rename, so that an interrupted run keeps valid ones.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from llamita.atomic import atomic_directory, sync
from llamita.commands import command_line
from llamita.config import ModelConfig
from llamita.errors import CheckpointError, FormatError, LlamitaError, OutputError
from llamita.formats import tensor_table
from llamita.formats.huggingface import config_from_dict, config_to_dict
from llamita.formats.safetensors_io import (
    FLOAT_DTYPES,
    INDEX,
    WEIGHTS,
    SafetensorsReader,
    TensorEntry,
    TensorReader,
    open_safetensors,
    write_safetensors,
    write_sharded_safetensors,
)
from llamita.json_file import Key, Schema, read_json_object, shortened
from llamita.model.llama import Llama
from llamita.tokenizer.load import GENERATION_CONFIG, load_tokenizer, needs_model_config

TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "tokenizer.model", "tokenizer.bin", "special_tokens_map.json",
    "added_tokens.json", "chat_template.jinja",
)  # fmt: skip
ADAPTER_CONFIG = "adapter_config.json"  # marks a folder as an adapter
_BASE: Schema = {"base_model_name_or_path": Key("string")}
STEP_NAME = re.compile(r"step-(\d{8})")
LINKS = ("latest", "best", "teacher")  # of a run directory


@dataclasses.dataclass(frozen=True)
class TrainingState:
    """Resume state besides the weights: JSON values, and tensors by name or in a folder of shards.

    The folder is moved into the new checkpoint."""

    values: dict[str, Any]
    tensors: dict[str, Tensor]
    shards: Path | None = None


def save_checkpoint(
    directory: Path,
    config: ModelConfig,
    tensors: Mapping[str, Tensor],
    tokenizer: Path | Callable[[Path], None] | None,
    training: TrainingState | None = None,
) -> None:
    """Write a new checkpoint folder atomically.

    tensors: a Llama's state_dict. tokenizer: a folder to copy the tokenizer's files from, or a
    function that writes them. Raises OutputError if the folder exists or cannot be written.
    """
    with atomic_directory(directory) as temporary:
        _write_settings(temporary, config, _main_dtype(_entries(tensors)))
        _write_tensors(temporary / WEIGHTS, tensors)
        write_tokenizer_and_training(temporary, tokenizer, training)


def write_tokenizer_and_training(
    folder: Path, tokenizer: Path | Callable[[Path], None] | None, training: TrainingState | None
) -> None:
    """Write what stands beside the weights of a checkpoint or an adapter. tokenizer, training: as
    in `save_checkpoint`."""
    if isinstance(tokenizer, Path):
        copy_tokenizer(tokenizer, folder)
    elif tokenizer is not None:
        tokenizer(folder)
    if training is None:
        return
    (folder / "training").mkdir()
    _write_json(folder / "training" / "state.json", training.values)
    if training.shards is None:
        _write_tensors(folder / "training" / "state.safetensors", training.tensors)
    else:
        os.rename(training.shards, folder / "training" / "optimizer")


def stream_checkpoint(
    directory: Path,
    config: ModelConfig,
    entries: Sequence[TensorEntry],
    tensor: TensorReader,
    write_tokenizer: Callable[[Path], None],
    shard_bytes: int | None = None,
    check: Callable[[Path], None] | None = None,
) -> int:
    """Write a new checkpoint folder atomically, one tensor at a time; returns the weights' bytes.

    entries: the tensors to write, by Hugging Face name. tensor: returns a tensor, called once per
    name. write_tokenizer: writes the tokenizer's files into the folder. shard_bytes: largest
    weights file (None: one file). check: called with the finished folder before it gets its name;
    if it raises, nothing is left behind. Raises OutputError.
    """
    with atomic_directory(directory) as temporary:
        _write_settings(temporary, config, _main_dtype(entries))
        write_tokenizer(temporary)
        num_bytes = write_sharded_safetensors(temporary, entries, tensor, shard_bytes)
        if check is not None:
            check(temporary)
        return num_bytes


def has_tokenizer(checkpoint: Path) -> bool:
    """Whether a checkpoint's folder holds a tokenizer."""
    return any((checkpoint / name).is_file() for name in ("tokenizer.json", "tokenizer.model", "tokenizer.bin"))


def copy_tokenizer(source: Path, directory: Path) -> None:
    """Copy the tokenizer's files from one folder to another.

    BOS and EOS that only config.json names are written to tokenizer_config.json: an adapter's
    folder has no config.json."""
    for name in TOKENIZER_FILES:
        if (source / name).is_file():
            shutil.copyfile(source / name, directory / name)
    if needs_model_config(source):
        load_tokenizer(source).save(directory)


def resolve_checkpoint(path: Path, *, prefer: str = "best") -> Path:
    """The checkpoint folder for `path`: itself, or a run's `prefer`red link ("best", "latest").

    Raises CheckpointError if there is none.
    """
    path = Path(path)
    if (path / "config.json").is_file() and _has_weights(path):
        return path
    for link in (prefer, "latest"):
        if _has_weights(path / link):
            return path / link
    _refuse_adapter(path)
    if not path.exists():
        raise CheckpointError(f"cannot open checkpoint {path}: no such folder")
    if path.is_file():
        raise CheckpointError(
            f"cannot open checkpoint {path}: expected a folder with config.json, found a "
            "file; `llamita import` makes a checkpoint of a model file, which `llamita run` and `chat` use as it is"
        )
    if (path / "store.json").is_file():
        raise CheckpointError(
            f"cannot open checkpoint {path}: it is a token store, text to train on; train a model on it: "
            + command_line("train", path, "--out", "RUN")
        )
    if (path / "run.json").is_file():
        raise CheckpointError(f"cannot open checkpoint {path}: this run has not saved a checkpoint yet")
    missing = "model.safetensors" if (path / "config.json").is_file() else "config.json"
    raise CheckpointError(
        f"cannot open checkpoint {path}: {missing} is missing; expected a Hugging Face folder or a run directory"
    )


def _refuse_adapter(path: Path) -> None:
    """Raise CheckpointError if the path is an adapter, or a run whose checkpoints are adapters."""
    adapter = next((each for each in (path, path / "best", path / "latest") if (each / ADAPTER_CONFIG).is_file()), None)
    if adapter is not None:
        base = shortened(adapter_base(adapter) or "BASE", 100)
        raise CheckpointError(
            f"cannot open checkpoint {path}: it is an adapter (LoRA) of {base}; merge it first: "
            + command_line("merge", base, path, "--out", "CHECKPOINT")
        )


def adapter_base(adapter: Path) -> str | None:
    """The base model that an adapter's folder names. Raises CheckpointError."""
    base: str | None = read_json_object(adapter / ADAPTER_CONFIG, CheckpointError, _BASE)["base_model_name_or_path"]
    return base


def _has_weights(path: Path) -> bool:
    return (path / WEIGHTS).is_file() or (path / INDEX).is_file()


def load_config(directory: Path) -> ModelConfig:
    """The ModelConfig of a checkpoint, with all end ids. Raises CheckpointError, FormatError."""
    path = resolve_checkpoint(directory) / "config.json"
    config = config_from_dict(read_json_object(path, CheckpointError), str(path))
    return with_all_end_ids(config, path.parent, CheckpointError)


def with_all_end_ids(config: ModelConfig, folder: Path, error: type[LlamitaError]) -> ModelConfig:
    """The config with those end ids of the folder's generation_config.json that config.json lacks: a
    chat model's end of turn may be only there. Raises `error` if that file is damaged."""
    path = folder / "generation_config.json"
    ends = read_json_object(path, error, GENERATION_CONFIG)["eos_token_id"] if path.is_file() else None
    more = ends if isinstance(ends, list) else [ends]
    ids = [*config.eos_token_ids]
    ids += [i for i in more if type(i) is int and 0 <= i < config.vocab_size and i not in ids]
    return dataclasses.replace(config, eos_token_id=ids[0] if len(ids) == 1 else tuple(ids)) if ids else config


def load_tensors(directory: Path) -> dict[str, Tensor]:
    """All weights by Hugging Face name, in their stored types. Raises CheckpointError."""
    return _read_tensors(resolve_checkpoint(directory))


def open_tensors(directory: Path) -> SafetensorsReader:
    """A reader of the weights, in one file or in shards. Raises CheckpointError."""
    return _open_tensors(resolve_checkpoint(directory))


def load_model(directory: Path, *, dropout: float = 0.0) -> Llama:
    """Load a checkpoint as a float32 network on the CPU.

    Raises CheckpointError naming the missing, unknown or misshapen tensor.
    """
    directory = resolve_checkpoint(directory)
    config, tensors = load_config(directory), load_tensors(directory)
    check_tensors(tensors, config, directory)
    model = Llama(config, dropout)
    model.load_state_dict({name: tensor.float() for name, tensor in tensors.items()})
    return model


def check_tensors(tensors: Mapping[str, Tensor], config: ModelConfig, where: Path) -> None:
    """Raise CheckpointError unless names and shapes are those of a Llama with this config."""
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    try:
        tensor_table.check_tensors(shapes, config, "huggingface", str(where))
    except FormatError as error:
        raise CheckpointError(str(error)) from error


def load_training_state(directory: Path) -> TrainingState:
    """The `training` that save_checkpoint or save_adapter wrote; of a run directory, the latest.

    Raises CheckpointError if there is none."""
    latest = Path(directory) / "latest"
    folder = (latest if latest.is_dir() else Path(directory)) / "training"
    if not folder.is_dir():
        raise CheckpointError(f"cannot resume from {directory}: it has no training/ folder, only weights")
    values, shards = read_json_object(folder / "state.json", CheckpointError), folder / "optimizer"
    if shards.is_dir():
        return TrainingState(values, {}, shards)
    return TrainingState(values, _read_tensors(folder, "state"))


# ---------------------------------------------------------------- run directories


def step_directory(run: Path, step: int) -> Path:
    """The folder of a run's checkpoint after `step` optimizer steps."""
    return Path(run) / f"step-{step:08d}"


def sharded_state_directory(checkpoint: Path) -> Path:
    """Where processes write optimizer shards before they move into the checkpoint."""
    return checkpoint.with_name(f".{checkpoint.name}.optimizer.partial")


def point_link(run: Path, link: str, checkpoint: Path) -> None:
    """Point run/link (one of LINKS) at this checkpoint, atomically."""
    temporary = Path(run) / f".{link}.partial"
    try:
        temporary.unlink(missing_ok=True)
        temporary.symlink_to(checkpoint.name, target_is_directory=True)
        os.replace(temporary, Path(run) / link)
        sync(Path(run))  # before checkpoints without a link are deleted
    except OSError as error:
        raise OutputError(f"cannot write {Path(run) / link}: {error.strerror or error}") from error


def prune_checkpoints(run: Path) -> None:
    """Delete checkpoints without a link, and what interrupted saves left behind."""
    kept = {os.path.realpath(Path(run) / link) for link in LINKS}
    for entry in Path(run).iterdir():
        unfinished = entry.name.startswith(".step-") and entry.name.endswith(".partial")
        if unfinished or (STEP_NAME.fullmatch(entry.name) and os.path.realpath(entry) not in kept):
            shutil.rmtree(entry, ignore_errors=True)


# ---------------------------------------------------------------- files


def _generation_config(config: ModelConfig) -> dict[str, Any]:
    eos = config.eos_token_id
    values = {
        "bos_token_id": config.bos_token_id,
        "eos_token_id": list(eos) if isinstance(eos, tuple) else eos,
        "pad_token_id": config.pad_token_id,
        "do_sample": True,
    }
    return {name: value for name, value in values.items() if value is not None}


def _write_json(path: Path, values: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _write_settings(folder: Path, config: ModelConfig, dtype: torch.dtype) -> None:
    _write_json(folder / "config.json", config_to_dict(config, str(dtype).removeprefix("torch.")))
    _write_json(folder / "generation_config.json", _generation_config(config))


def _main_dtype(entries: Sequence[TensorEntry]) -> torch.dtype:
    """The type of most weights, for config.json."""
    sizes = {dtype: sum(e.num_bytes for e in entries if e.dtype == dtype) for dtype in FLOAT_DTYPES}
    return max(sizes, key=lambda dtype: sizes[dtype])


def _entries(tensors: Mapping[str, Tensor]) -> list[TensorEntry]:
    return [TensorEntry(name, tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()]


def _write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    write_safetensors(path, _entries(tensors), lambda name: tensors[name].cpu())


def _open_tensors(folder: Path, stem: str = "model") -> SafetensorsReader:
    try:
        return open_safetensors(folder, stem)
    except FormatError as error:
        raise CheckpointError(str(error)) from error


def _read_tensors(folder: Path, stem: str = "model") -> dict[str, Tensor]:
    stored = _open_tensors(folder, stem)
    try:
        return {name: stored.read(name) for name in stored.shapes}
    except FormatError as error:
        raise CheckpointError(str(error)) from error

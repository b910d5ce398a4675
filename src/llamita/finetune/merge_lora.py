"""Merges a LoRA adapter into its base model: W + s B A replaces W, one tensor at a time."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch

from llamita.checkpoint import (
    ADAPTER_CONFIG,
    copy_tokenizer,
    load_config,
    open_tensors,
    resolve_checkpoint,
    stream_checkpoint,
)
from llamita.config import ModelConfig
from llamita.convert.export import model_name
from llamita.errors import CheckpointError, ConfigError, FormatError, OutputError
from llamita.finetune.adapter import load_adapter, other_base, resolve_adapter
from llamita.formats import tensor_table
from llamita.formats.safetensors_io import DTYPES, TensorEntry, checked
from llamita.json_file import read_json_object
from llamita.model_card import load_card
from llamita.progress import Progress, no_progress
from llamita.tokenizer import load_tokenizer


@dataclasses.dataclass(frozen=True)
class MergeReport:
    """What was written. largest_change: √(Σ(s B A)² / ΣW²) of most_changed, the layer where it is
    largest. other_base: the checkpoint that the adapter was made for, if it is another one."""

    path: Path
    config: ModelConfig
    num_layers: int
    num_bytes: int
    largest_change: float
    most_changed: str
    tokenizer_from: Path
    other_base: str | None = None


def merge_adapter(
    checkpoint: Path,
    adapter: Path,
    out: Path,
    *,
    strength: float = 1.0,
    dtype: str | None = None,
    progress: Progress = no_progress,
) -> MergeReport:
    """Write a new checkpoint with the adapter's updates added, whole or not at all.

    The sums are computed in float32. The tokenizer, with its chat template, is the adapter's if it
    has one, else the checkpoint's. Raises CheckpointError, ConfigError, TokenizerError,
    OutputError.

    adapter: its directory, or a run directory, whose best adapter is taken. strength: an additional
    factor of the updates. dtype: of the weights, one of DTYPES; default: the checkpoint's.
    progress: counts the bytes of weights.
    """
    if not math.isfinite(strength):
        raise ConfigError(f"cannot merge: strength: expected a number, found {strength}")
    if dtype is not None and dtype not in DTYPES:
        raise ConfigError(f"cannot merge: dtype: expected one of {', '.join(DTYPES)}, found {dtype!r}")
    directory, adapter, out = resolve_checkpoint(Path(checkpoint)), resolve_adapter(adapter), Path(out)
    config, stored = load_config(directory), open_tensors(directory)
    try:
        tensor_table.check_tensors(stored.shapes, config, "huggingface", str(directory))
    except FormatError as error:
        raise CheckpointError(str(error)) from error
    updates = {f"{name}.weight": update for name, update in load_adapter(adapter, config).updates.items()}
    table = tensor_table.tensor_table(config)
    entries = [
        TensorEntry(s.huggingface, DTYPES[dtype] if dtype else stored.dtype(s.huggingface), s.shape) for s in table
    ]
    wanted = {entry.name: entry for entry in entries}
    total, done = sum(entry.num_bytes for entry in entries), 0
    changes: dict[str, float] = {}

    def tensor(name: str) -> torch.Tensor:
        nonlocal done
        weight = stored.read(name)
        if name in updates:
            exact, delta = weight.float(), updates[name].delta() * strength
            changes[name] = (delta.norm() / exact.norm().clamp_min(1e-30)).item()
            weight = exact.add_(delta)
        done += wanted[name].num_bytes
        progress("merging", done, total)
        return checked(weight, name, f"cannot merge {adapter} into {directory}", wanted[name].dtype)

    tokenizer_from = adapter if has_tokenizer(adapter) else directory
    check_same_tokens(tokenizer_from, directory)
    card = dataclasses.replace(load_card(directory), name=None, description=None).updated(load_card(adapter))

    def write_companions(folder: Path) -> None:
        copy_tokenizer(tokenizer_from, folder)
        card.save(folder)

    num_bytes = stream_checkpoint(out, config, entries, tensor, write_companions)
    worst = max(changes, key=lambda name: changes[name])
    return MergeReport(
        out, config, len(updates), num_bytes, changes[worst], worst, tokenizer_from, other_base(adapter, directory)
    )


@contextlib.contextmanager
def plain_checkpoint(path: Path, out: Path) -> Iterator[Path]:
    """The checkpoint at `path`. If that is an adapter, or a run directory of adapters: its base
    model with the adapter merged, in a temporary folder next to `out`.

    Raises CheckpointError if the base model is not where the adapter says; OutputError.
    """
    adapter = resolve_adapter(path)
    if not (adapter / ADAPTER_CONFIG).is_file():
        yield path
        return
    base = read_json_object(adapter / ADAPTER_CONFIG, CheckpointError).get("base_model_name_or_path")
    if not isinstance(base, str) or not Path(base).is_dir():
        raise CheckpointError(
            f"cannot merge adapter {path}: its base model {base} is not a folder here; merge it by hand: "
            f"llamita merge CHECKPOINT {path} --out FOLDER"
        )
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        folder = tempfile.mkdtemp(prefix=f".{out.name}.", suffix=".merged", dir=out.parent)
    except OSError as error:
        raise OutputError(f"cannot write {out}: {error.strerror or error}") from error
    try:
        merged = Path(folder) / model_name(path)
        merge_adapter(Path(base), adapter, merged)
        yield merged
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def has_tokenizer(folder: Path) -> bool:
    return any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer.model", "tokenizer.bin"))


def check_same_tokens(adapter: Path, checkpoint: Path) -> None:
    """Raise CheckpointError if the tokenizers of adapter and checkpoint differ."""
    if adapter == checkpoint or not has_tokenizer(checkpoint):
        return
    if load_tokenizer(adapter).fingerprint != load_tokenizer(checkpoint).fingerprint:
        raise CheckpointError(
            f"cannot merge {adapter}: expected the tokenizer of {checkpoint}, found another one; the adapter was "
            "made for another model"
        )

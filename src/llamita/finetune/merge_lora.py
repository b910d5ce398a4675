"""Merges a LoRA adapter into its base model: W + s B A replaces W, one tensor at a time.

Adapters may also bring whole tensors, embeddings for more tokens, and a head that is no longer tied to
the embedding; then the new checkpoint has another vocabulary size, or an lm_head of its own.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
from collections.abc import Iterator
from pathlib import Path

import torch

from llamita.atomic import temporary_folder
from llamita.checkpoint import (
    ADAPTER_CONFIG,
    adapter_base,
    copy_tokenizer,
    has_tokenizer,
    load_config,
    open_tensors,
    resolve_checkpoint,
    stream_checkpoint,
)
from llamita.config import ModelConfig
from llamita.convert.export import model_name
from llamita.errors import CheckpointError, ConfigError, FormatError
from llamita.finetune.adapter import EMBEDDING, HEAD, Adapter, TensorChange, load_adapter, other_base, resolve_adapter
from llamita.formats import tensor_table
from llamita.formats.safetensors_io import DTYPES, SafetensorsReader, TensorEntry, checked
from llamita.json_file import shortened
from llamita.model_card import load_card
from llamita.progress import Progress, no_progress
from llamita.tokenizer import load_tokenizer


@dataclasses.dataclass(frozen=True)
class MergeReport:
    """What was written. largest_change: √(Σ(s B A)² / ΣW²) of most_changed, the layer where it is
    largest; "" if no layer has an update. replaced: modules that the adapter changed otherwise.
    num_new_tokens: rows added to the vocabulary. untied: the head has become a tensor of its own.
    other_base: the checkpoint that the adapter was made for, if it is another one."""

    path: Path
    config: ModelConfig
    num_layers: int
    num_bytes: int
    largest_change: float
    most_changed: str
    tokenizer_from: Path
    other_base: str | None = None
    replaced: tuple[str, ...] = ()
    num_new_tokens: int = 0
    untied: bool = False


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
    loaded = load_adapter(adapter, config)
    if loaded.changes and strength != 1:
        raise ConfigError(
            f"cannot merge {adapter}: strength: expected 1, found {strength:g}: a trained "
            f"{next(iter(loaded.changes))} replaces the checkpoint's, whole"
        )
    updates = {f"{name}.weight": update for name, update in loaded.updates.items()}
    merged, changed = changed_tensors(loaded, config, stored, directory)
    table = tensor_table.tensor_table(merged)
    head_from = EMBEDDING if config.tie_word_embeddings else HEAD  # where an untied head came from
    sources = {s.huggingface: s.huggingface for s in table} | {f"{HEAD}.weight": f"{head_from}.weight"}
    entries = [
        TensorEntry(s.huggingface, DTYPES[dtype] if dtype else stored.dtype(sources[s.huggingface]), s.shape)
        for s in table
    ]
    wanted = {entry.name: entry for entry in entries}
    total, done = sum(entry.num_bytes for entry in entries), 0
    changes: dict[str, float] = {}

    def tensor(name: str) -> torch.Tensor:
        nonlocal done
        weight = changed.pop(name) if name in changed else stored.read(sources[name])
        if name in updates:
            exact, delta = weight.float(), updates[name].delta() * strength
            changes[name] = (delta.norm() / exact.norm().clamp_min(1e-30)).item()
            weight = exact.add_(delta)
        done += wanted[name].num_bytes
        progress("merging", done, total)
        return checked(weight, name, f"cannot merge {adapter} into {directory}", wanted[name].dtype)

    tokenizer_from = adapter if has_tokenizer(adapter) else directory
    check_same_tokens(tokenizer_from, directory, merged.vocab_size)
    card = dataclasses.replace(load_card(directory), name=None, description=None).updated(load_card(adapter))

    def write_companions(folder: Path) -> None:
        copy_tokenizer(tokenizer_from, folder)
        card.save(folder)

    num_bytes = stream_checkpoint(out, merged, entries, tensor, write_companions)
    worst = max(changes, key=lambda name: changes[name], default="")
    return MergeReport(
        out, merged, len(updates), num_bytes, changes.get(worst, 0.0), worst, tokenizer_from,
        other_base(adapter, directory), tuple(loaded.changes), max(0, merged.vocab_size - config.vocab_size),
        config.tie_word_embeddings and not merged.tie_word_embeddings,
    )  # fmt: skip


def changed_tensors(
    adapter: Adapter, config: ModelConfig, stored: SafetensorsReader, directory: Path
) -> tuple[ModelConfig, dict[str, torch.Tensor]]:
    """The config of the merged model, and by name the tensors that the adapter changes other than
    by updates of the decoder's linear layers.

    Raises CheckpointError if embedding and head would have different numbers of rows.
    """
    changes = dict(adapter.changes)
    tied = config.tie_word_embeddings
    embedding, head = changes.get(EMBEDDING), changes.get(HEAD)
    if tied and embedding is not None and head is None and not adapter.keeps_tied:
        if embedding.rows is not None and embedding.update is None:
            head = embedding  # PEFT ties rows of single tokens
        elif embedding.update is not None and embedding.whole is not None:
            head = TensorChange(embedding.whole)  # the update is the embedding's alone

    def changed(module: str, change: TensorChange) -> torch.Tensor:
        return change.apply(stored.read(f"{EMBEDDING if module == HEAD and tied else module}.weight"))

    tensors = {
        f"{module}.weight": changed(module, change) for module, change in changes.items() if module not in (HEAD,)
    }
    if EMBEDDING not in changes and HEAD not in changes and head is None:
        return config, tensors
    rows = f"{EMBEDDING}.weight"
    new_embedding = tensors.get(rows)
    if new_embedding is None:
        new_embedding = stored.read(rows)
    if head is not None:
        new_head = changed(HEAD, head)
    elif tied and adapter.keeps_tied:
        new_head = new_embedding
    else:
        new_head = stored.read(rows if tied else f"{HEAD}.weight")
    if len(new_head) != len(new_embedding):
        raise CheckpointError(
            f"cannot merge {adapter.directory} into {directory}: expected as many rows in lm_head as in embed_tokens "
            f"({len(new_embedding):,}), found {len(new_head):,}; save it with save_embedding_layers=True (peft)"
        )
    stays_tied = tied and (adapter.keeps_tied or torch.equal(new_head.float(), new_embedding.float()))
    merged = dataclasses.replace(config, vocab_size=len(new_embedding), tie_word_embeddings=stays_tied)
    if not stays_tied and (head is not None or tied):
        tensors[f"{HEAD}.weight"] = new_head
    return merged, tensors


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
    base = adapter_base(adapter)
    if base is None or not os.path.isdir(base):
        named = "" if base is None else f" {shortened(base, 100)}"
        raise CheckpointError(
            f"cannot merge adapter {path}: its base model{named} is not a folder here; merge it by hand: "
            f"llamita merge CHECKPOINT {path} --out FOLDER"
        )
    with temporary_folder(out.with_name(f"{out.name}.merged")) as folder:
        merged = folder / model_name(path)
        merge_adapter(Path(base), adapter, merged)
        yield merged


def check_same_tokens(adapter: Path, checkpoint: Path, vocab_size: int) -> None:
    """Raise CheckpointError unless the adapter's tokenizer is the checkpoint's, or has more tokens
    after its own, for which the model has rows."""
    if adapter == checkpoint or not has_tokenizer(checkpoint):
        return
    new, old = load_tokenizer(adapter), load_tokenizer(checkpoint)
    if new.fingerprint == old.fingerprint:
        return
    if new.vocab_size > old.vocab_size and new.pieces()[: old.vocab_size] == old.pieces():
        if new.vocab_size <= vocab_size:
            return
        raise CheckpointError(
            f"cannot merge {adapter}: expected at most {vocab_size:,} tokens, as many as the embedding has rows, found "
            f"{new.vocab_size:,} in its tokenizer; save the adapter with peft's save_embedding_layers=True"
        )
    raise CheckpointError(
        f"cannot merge {adapter}: expected the tokenizer of {checkpoint}, found another one; the adapter was "
        "made for another model"
    )

"""Exports a checkpoint: to .gguf with everything in it, to llama2.c's .bin, or to a folder.

llama2.c's .bin gets a tokenizer.bin beside it. A folder is a Hugging Face folder.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import os
import re
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Final

import numpy as np
import torch

from llamita.atomic import atomic_file, atomic_write_bytes
from llamita.checkpoint import (
    LINKS,
    STEP_NAME,
    copy_tokenizer,
    load_config,
    open_tensors,
    resolve_checkpoint,
    stream_checkpoint,
)
from llamita.config import ModelConfig
from llamita.convert.modelfile import write_modelfile
from llamita.convert.quant_mix import QuantMix, assign_types, quant_mix, quant_mix_notes
from llamita.convert.verify import Verification, is_small, text_notes, verify_file, verify_folder
from llamita.errors import ConfigError, EngineError
from llamita.formats.gguf import stream_gguf
from llamita.formats.gguf_card import card_metadata
from llamita.formats.gguf_metadata import model_metadata, rope_notes, rope_tensors
from llamita.formats.llama2c import (
    MAX_GROUP_SIZE,
    check_expressible,
    choose_group_size,
    stream_bin,
)
from llamita.formats.rope_order import permute_qk
from llamita.formats.safetensors_io import DTYPES, SafetensorsReader, TensorEntry, checked
from llamita.formats.tensor_table import TensorSpec, check_tensors, tensor_table
from llamita.formats.tensor_types import TYPES, Bytes, Floats, TypeName, quantize, quantize_chunks
from llamita.model_card import NO_CARD, ModelCard, load_card
from llamita.progress import Progress, no_progress
from llamita.tokenizer import Tokenizer, load_tokenizer
from llamita.tokenizer.gguf import tokenizer_metadata
from llamita.tokenizer.llama2c import tokenizer_bin, why_no_tokenizer_bin

VERSIONS: Final = (0, 1, 2)  # of llama2.c's .bin
# Elements of a tensor in memory as float32 at a time, rounded to whole heads.
_CHUNK_ELEMENTS: Final = 1 << 24


@dataclasses.dataclass(frozen=True)
class ExportReport:
    """What was written.

    num_tensors_by_type: such as {"Q8_0": 36, "F32": 11}. bits_per_weight: of tensor data alone.
    largest_error: the largest relative error of a tensor, √(Σ(stored - x)² / Σx²), and worst_tensor
    its name; 0 and None if every number is stored exactly. seconds: without verification. notes:
    one sentence each, for the user."""

    path: Path
    num_bytes: int
    num_parameters: int
    num_tensors_by_type: dict[str, int]
    bits_per_weight: float
    largest_error: float
    worst_tensor: str | None
    tokenizer_path: Path | None
    notes: tuple[str, ...]
    seconds: float = 0.0
    verification: Verification | None = None
    modelfile: Path | None = None


@dataclasses.dataclass(frozen=True)
class _Job:
    """The inputs of every kind of export."""

    directory: Path
    out: Path
    config: ModelConfig
    stored: SafetensorsReader
    tokenizer: Tokenizer
    verify: bool | None
    progress: Progress
    card: ModelCard

    @functools.cached_property
    def num_bytes(self) -> int:
        return sum(math.prod(s.shape) * self.stored.dtype(s.huggingface).itemsize for s in tensor_table(self.config))


def export(
    checkpoint: Path,
    out: Path,
    type: str | None = None,
    *,
    version: int | None = None,
    dtype: str | None = None,
    shard_bytes: int | None = None,
    card: ModelCard | None = None,
    modelfile: bool = False,
    verify: bool | None = None,
    progress: Progress = no_progress,
) -> ExportReport:
    """Write the checkpoint to `out` atomically: a .gguf, a llama2.c .bin, or a Hugging Face folder.

    type: of the matrices of a .gguf, one of QUANT_MIXES; None: q8_0. version: of a .bin; None: 0.
    dtype: of the weights of a folder, one of DTYPES; None: the checkpoint's. shard_bytes: largest
    file of a folder; None: one file. card: what to change in the checkpoint's card. modelfile: also
    write an Ollama Modelfile beside a .gguf. verify: compare the logits of the result with the
    checkpoint's; None: if the model is small and the engine is available. Unless it is False, the
    engine's ids of a sample of text are compared too; a difference is a note. progress:
    counts the bytes of weights. One tensor is in memory at a time. The same checkpoint under the
    same name gives the same bytes. Raises CheckpointError, FormatError, TokenizerError,
    ConfigError (a setting that does not apply to `out`), OutputError.
    """
    out = Path(out)
    kind = _kind(out)
    given = None if card == NO_CARD else card
    _check_settings(out, kind, type, version, dtype, shard_bytes, given)
    directory = resolve_checkpoint(Path(checkpoint))
    config, stored = load_config(directory), open_tensors(directory)
    check_tensors(stored.shapes, config, "huggingface", str(directory))
    if modelfile and kind != ".gguf":
        raise ConfigError(f"cannot export to {out}: a Modelfile needs a .gguf; choose a name that ends in .gguf")
    card = load_card(directory).updated(card or NO_CARD)
    job = _Job(directory, out, config, stored, load_tokenizer(directory), verify, progress, card)
    if kind == ".bin":
        return _export_bin(job, version or 0)
    if kind == ".gguf":
        report = _export_gguf(job, quant_mix(type or "q8_0", "export"), model_name(Path(checkpoint)))
        if not modelfile:
            return report
        path, notes = write_modelfile(out, card, job.tokenizer)
        return dataclasses.replace(report, modelfile=path, notes=(*report.notes, *notes))
    return _export_folder(job, dtype, shard_bytes)


def _kind(out: Path) -> str:
    """The suffix ".gguf" or ".bin", or "" for a folder. Raises ConfigError for any other suffix."""
    if out.suffix in (".gguf", ".bin"):
        return out.suffix
    if re.fullmatch(r"\.[A-Za-z]\w*", out.suffix):
        raise ConfigError(
            f"cannot export to {out}: expected a name that ends in .gguf or .bin, or a folder name without a suffix"
        )
    return ""


def _check_settings(
    out: Path,
    kind: str,
    type: str | None,
    version: int | None,
    dtype: str | None,
    shard_bytes: int | None,
    card: ModelCard | None,
) -> None:
    if out.name == "tokenizer.bin":
        raise ConfigError(f"cannot export to {out}: that name is reserved for the tokenizer; choose another one")
    if type is not None:
        type = quant_mix(type, "export").name
    if kind == ".bin" and (type not in (None, "f32") or (type == "f32" and version == 2)):
        raise ConfigError(
            f"cannot export to {out}: llama2.c's .bin is f32 (version 0, 1) or int8 (version 2), not {type}; export to "
            f".gguf for {type}"
        )
    if version is not None and version not in VERSIONS:
        raise ConfigError(f"cannot export: version: expected one of {', '.join(map(str, VERSIONS))}, found {version}")
    if dtype is not None and dtype not in DTYPES:
        raise ConfigError(f"cannot export: dtype: expected one of {', '.join(DTYPES)}, found {dtype!r}")
    if shard_bytes is not None and shard_bytes < 1:
        raise ConfigError(f"cannot export: shard size: expected a positive number of bytes, found {shard_bytes}")
    for name, value, wanted in (("type", type, (".gguf", ".bin")), ("version", version, (".bin",)),
                                ("dtype", dtype, ("",)), ("shard size", shard_bytes, ("",)),
                                ("model card", card, (".gguf", ""))):  # fmt: skip
        if value is not None and kind not in wanted:
            meant = " or ".join(each or "a folder" for each in wanted)
            raise ConfigError(f"cannot export to {out}: {name}: it only applies to {meant}")


def model_name(checkpoint: Path) -> str:
    """The name of the folder, or of the run whose step it is. (A path may be private.)"""
    folder = Path(os.path.abspath(checkpoint))
    is_step = STEP_NAME.fullmatch(folder.name) or folder.name in LINKS
    return (folder.parent.name if is_step else folder.name) or "model"


# ---------------------------------------------------------------- .gguf


def _export_gguf(job: _Job, mix: QuantMix, name: str) -> ExportReport:
    config, tokenizer = job.config, job.tokenizer
    metadata = model_metadata(config, name, mix.file_type) | card_metadata(job.card)
    metadata |= tokenizer_metadata(tokenizer, config.vocab_size, _end_ids(config, tokenizer))
    table = tensor_table(config)
    shapes = {spec.gguf: spec.shape for spec in table}
    types = assign_types(shapes, mix)
    infos: list[tuple[str, str, tuple[int, ...]]] = [(spec.gguf, types[spec.gguf], spec.shape) for spec in table]
    rope = rope_tensors(config)
    infos = [*((name, "F32", factors.shape) for name, factors in rope.items()), *infos]
    errors: dict[str, float] = {}

    def encoded() -> Iterator[Bytes]:
        for name, factors in rope.items():
            yield quantize(factors, "F32", name)
        count = _counter(job)
        for spec in table:
            data, errors[spec.huggingface] = quantize_chunks(
                _chunks(job, spec), math.prod(spec.shape), types[spec.gguf], f"tensor {spec.huggingface}"
            )
            count(spec)
            yield data

    start = time.perf_counter()
    with atomic_file(job.out) as temporary:
        with temporary.open("wb") as file:
            num_bytes = stream_gguf(file, metadata, infos, encoded())
        seconds = time.perf_counter() - start
        verification, notes = _verified(job, temporary, _coarsest(types.values()))
        notes = (*text_notes(tokenizer, temporary, run=job.verify is not False), *notes)
    worst = max(errors, key=lambda name: errors[name])
    exact = errors[worst] == 0.0
    weight_bytes = sum(TYPES[types[spec.gguf]].num_bytes(math.prod(spec.shape)) for spec in table)
    return ExportReport(
        path=job.out,
        num_bytes=num_bytes,
        num_parameters=config.num_parameters,
        num_tensors_by_type=dict(Counter(types[spec.gguf] for spec in table)),
        bits_per_weight=8 * weight_bytes / config.num_parameters,
        largest_error=errors[worst],
        worst_tensor=None if exact else worst,
        tokenizer_path=None,
        notes=(*quant_mix_notes(shapes, mix), *rope_notes(config), *_tokenizer_notes(tokenizer), *notes),
        seconds=seconds,
        verification=verification,
    )


def _coarsest(types: Iterable[TypeName]) -> TypeName:
    """The type with the fewest bits per weight."""
    return min(types, key=lambda name: TYPES[name].bits)


def _tokenizer_notes(tokenizer: Tokenizer) -> tuple[str, ...]:
    if tokenizer.kind != "llama" or not tokenizer.remove_extra_whitespaces:
        return ()
    return (
        "the tokenizer drops leading, trailing and repeated spaces; GGUF runtimes and llama2.c keep them, so their "
        "tokens differ for text with such spaces",
    )


def _end_ids(config: ModelConfig, tokenizer: Tokenizer) -> list[int]:
    """All ids that end a text: the tokenizer's EOS, config.json's, then the tokenizer's others."""
    first = () if tokenizer.eos_id is None else (tokenizer.eos_id,)
    return list(dict.fromkeys((*first, *config.eos_token_ids, *tokenizer.end_ids)))


# ---------------------------------------------------------------- .bin


def _export_bin(job: _Job, version: int) -> ExportReport:
    config, tokenizer = job.config, job.tokenizer
    check_expressible(config)
    reason = why_no_tokenizer_bin(tokenizer)
    vocabulary = tokenizer_bin(tokenizer, config.vocab_size) if reason is None else b""
    tokenizer_path = job.out.with_name("tokenizer.bin")
    count = _counter(job)

    def tensor(spec: TensorSpec) -> Floats:
        numbers = np.empty(spec.shape, np.float32)
        first = 0
        for chunk in _chunks(job, spec):
            # Raises FormatError for NaN and infinities.
            quantize(chunk, "F32", f"tensor {spec.huggingface}")
            numbers[first : first + len(chunk)] = chunk
            first += len(chunk)
        count(spec)
        return numbers

    start = time.perf_counter()
    with atomic_file(job.out) as temporary:
        with temporary.open("wb") as file:
            num_bytes = stream_bin(file, config, tensor, version)
        seconds = time.perf_counter() - start
        verification, verify_notes = _verified(job, temporary, "F32" if version < 2 else "Q8_0")
    if vocabulary:
        atomic_write_bytes(tokenizer_path, vocabulary)
        found = text_notes(tokenizer, job.out, tokenizer_path, run=job.verify is not False)
        verify_notes = (*found, *verify_notes)
    table = tensor_table(config)
    norms = sum(spec.kind == "norm" for spec in table)
    notes = _tokenizer_notes(tokenizer)
    group_size = choose_group_size(config)
    if version == 2 and group_size < MAX_GROUP_SIZE:
        notes = (
            *notes,
            f"groups of {group_size} weights: the largest that divides rows of {config.hidden_size} and "
            f"{config.intermediate_size} weights, as llama2.c's runq requires",
        )
    return ExportReport(
        path=job.out,
        num_bytes=num_bytes,
        num_parameters=config.num_parameters,
        num_tensors_by_type={"F32": len(table)} if version < 2 else {"INT8": len(table) - norms, "F32": norms},
        bits_per_weight=32.0 if version < 2 else 8 * num_bytes / config.num_parameters,
        largest_error=0.0,
        worst_tensor=None,
        tokenizer_path=tokenizer_path if vocabulary else None,
        notes=(*notes, *(() if reason is None else (reason,)), *verify_notes),
        seconds=seconds,
        verification=verification,
    )


# ---------------------------------------------------------------- a folder


def _export_folder(job: _Job, dtype: str | None, shard_bytes: int | None) -> ExportReport:
    table = tensor_table(job.config)
    specs = {spec.huggingface: spec for spec in table}
    wanted = {spec.huggingface: DTYPES[dtype] if dtype else job.stored.dtype(spec.huggingface) for spec in table}
    entries = [TensorEntry(spec.huggingface, wanted[spec.huggingface], spec.shape) for spec in table]
    count, verification, seconds, start = _counter(job), None, 0.0, time.perf_counter()

    def tensor(name: str) -> torch.Tensor:
        count(specs[name])
        return checked(job.stored.read(name), name, f"cannot export {job.directory}", wanted[name])

    def check(folder: Path) -> None:
        nonlocal verification, seconds
        seconds = time.perf_counter() - start
        if is_small(job.config) if job.verify is None else job.verify:
            verification = verify_folder(job.directory, folder, entries, job.out)

    def write_tokenizer(folder: Path) -> None:
        copy_tokenizer(job.directory, folder)
        job.card.save(folder)

    num_bytes = stream_checkpoint(job.out, job.config, entries, tensor, write_tokenizer, shard_bytes, check)
    kinds = Counter(str(entry.dtype).removeprefix("torch.") for entry in entries)
    return ExportReport(
        path=job.out,
        num_bytes=num_bytes,
        num_parameters=job.config.num_parameters,
        num_tensors_by_type=dict(kinds),
        bits_per_weight=8 * sum(entry.num_bytes for entry in entries) / job.config.num_parameters,
        largest_error=0.0,
        worst_tensor=None,
        tokenizer_path=None,
        notes=(),
        seconds=seconds,
        verification=verification,
    )


# ---------------------------------------------------------------- all


def _chunks(job: _Job, spec: TensorSpec) -> Iterator[Floats]:
    """The tensor as float32 in chunks of whole rows; q and k: interleaved, whole heads."""
    heads = spec.rope_heads(job.config)
    rows, row_length = spec.shape[0], math.prod(spec.shape[1:])
    unit = 1 if heads is None else rows // heads
    step = max(1, _CHUNK_ELEMENTS // row_length // unit) * unit
    for first in range(0, rows, step):
        number = min(step, rows - first)
        numbers: Floats = job.stored.read(spec.huggingface, first, number).float().numpy()
        yield numbers if heads is None else permute_qk(numbers, number // unit)


def _counter(job: _Job) -> Callable[[TensorSpec], None]:
    """Returns a function to call after each tensor, which reports progress."""
    done = 0

    def count(spec: TensorSpec) -> None:
        nonlocal done
        done += math.prod(spec.shape) * job.stored.dtype(spec.huggingface).itemsize
        job.progress("exporting", done, job.num_bytes)

    return count


def _verified(job: _Job, written: Path, type: str) -> tuple[Verification | None, tuple[str, ...]]:
    """(comparison of the written file's logits with the checkpoint's, notes)."""
    if not (is_small(job.config) if job.verify is None else job.verify):
        return None, ()
    try:
        return verify_file(job.directory, written, job.config, type, job.out), ()
    except EngineError as error:  # no engine here, or an unsupported type
        if job.verify:
            raise
        return None, (f"not compared with the checkpoint: {error}",)

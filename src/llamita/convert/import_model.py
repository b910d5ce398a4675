"""Imports a published model as a checkpoint, with one tensor in memory at a time."""

from __future__ import annotations

import dataclasses
import re
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from llamita.checkpoint import stream_checkpoint
from llamita.config import ModelConfig
from llamita.convert.import_gguf import open_gguf
from llamita.convert.import_huggingface import fetch_from_hub, is_hub_id, open_huggingface
from llamita.convert.import_llama2c import open_llama2c
from llamita.convert.import_meta import is_meta_folder, open_meta
from llamita.convert.model_source import ImportOptions, ModelSource
from llamita.convert.verify import Verification, import_notes, is_small, verify_import
from llamita.errors import ConfigError, FormatError, OutputError
from llamita.formats.mmap_file import map_file
from llamita.formats.safetensors_io import DTYPES, TensorEntry, TensorReader, checked
from llamita.formats.tensor_table import tensor_table
from llamita.progress import Progress, no_progress
from llamita.tokenizer.chat_templates import check_template_name, replace_chat_template


@dataclasses.dataclass(frozen=True)
class ImportReport:
    """What was read and written.

    num_tensors_by_type: such as {"bfloat16": 226}. verification: None if there was none. notes:
    decisions that the user should know, one sentence each."""

    path: Path
    kind: str
    config: ModelConfig
    tokenizer_path: Path
    num_bytes: int
    num_tensors_by_type: dict[str, int]
    seconds: float
    verification: Verification | None
    notes: tuple[str, ...]


def import_model(
    source: Path | str,
    out: Path,
    tokenizer: Path | None = None,
    *,
    pre: str | None = None,
    dtype: str | None = None,
    chat_template: str | None = None,
    context_tokens: int | None = None,
    verify: bool | None = None,
    progress: Progress = no_progress,
) -> ImportReport:
    """Write the model to the new checkpoint folder `out` atomically.

    source: a folder of Meta or Hugging Face, a Hugging Face hub id, a GGUF, or llama2.c's .bin or
    .pt. tokenizer: its file or folder; None: the one of the source. pre: how the
    tokenizer of a GGUF splits text, a value for tokenizer.ggml.pre; None: the file's. dtype: of the weights, one of
    DTYPES; None: the source's (float32 for quantized tensors). chat_template: a name in
    tokenizer/chat_templates.py or "none"; None: the source's. context_tokens: None: the source's.
    verify: compare the logits of the result with the source's, and the ids of a sample of text with
    the engine's for the source; None: if the model is small.
    progress: counts the bytes of weights. Raises FormatError, TokenizerError, ConfigError,
    NetworkError, OutputError.
    """
    source, out = Path(source), Path(out)
    if out.exists() or out.is_symlink():
        raise OutputError(f"cannot write {out}: it exists already; choose another name or remove it")
    if dtype is not None and dtype not in DTYPES:
        raise ConfigError(f"cannot import: dtype: expected one of {', '.join(DTYPES)}, found {dtype!r}")
    check_template_name(chat_template)
    model = open_source(source, ImportOptions(tokenizer, chat_template, context_tokens, pre))
    start = time.perf_counter()
    wanted = None if dtype is None else DTYPES[dtype]
    if wanted is None and any(model.dtype(spec) == torch.float64 for spec in tensor_table(model.config)):
        raise FormatError(
            f"cannot import {source}: expected weights of 16 or 32 bits, found float64; give a type with --dtype, such "
            "as float32"
        )
    verification, seconds, notes = None, 0.0, model.notes
    entries = [
        TensorEntry(spec.huggingface, wanted or model.dtype(spec), spec.shape) for spec in tensor_table(model.config)
    ]

    def check(folder: Path) -> None:
        nonlocal verification, seconds, notes
        seconds = time.perf_counter() - start
        if is_small(model.config) if verify is None else verify:
            verification = verify_import(model, folder, entries, out)
            notes = (*notes, *import_notes(model, folder, out, is_own_template=chat_template is None))

    def write_tokenizer(folder: Path) -> None:
        model.write_tokenizer(folder)
        if chat_template is not None:
            replace_chat_template(folder, chat_template)
        model.card.save(folder)

    reader = _reader(model, entries, wanted, progress)
    num_bytes = stream_checkpoint(out, model.config, entries, reader, write_tokenizer, check=check)
    counts = Counter(str(entry.dtype).removeprefix("torch.") for entry in entries)
    return ImportReport(
        out, model.kind, model.config, model.tokenizer_path, num_bytes, dict(counts), seconds, verification, notes,
    )  # fmt: skip


def open_source(path: Path, options: ImportOptions) -> ModelSource:
    """Detect the format, open and check it. Raises FormatError, TokenizerError, NetworkError."""
    if options.pre is not None and path.is_dir():
        raise ConfigError(f"cannot import {path}: pre: it only applies to a GGUF")
    if not path.exists() and is_hub_id(str(path)):
        return open_huggingface(fetch_from_hub(str(path)), options, name=str(path))
    if path.is_dir():
        return _open_folder(path, options)
    mapping = map_file(path)
    head = mapping[:16]
    mapping.close()
    if head[:4] == b"GGUF":
        return open_gguf(path, options)
    if options.pre is not None:
        raise ConfigError(f"cannot import {path}: pre: it only applies to a GGUF")
    is_part = re.fullmatch(r"consolidated\.\d+\.pth|pytorch_model.*\.bin", path.name) and head[:1] in (b"P", b"\x80")
    if is_part or path.suffix == ".safetensors":
        raise FormatError(f"cannot import {path}: it contains only weights; import its folder, {path.parent}, instead")
    pickled = head[:2] == b"PK" or path.suffix in (".pt", ".pth")
    return open_llama2c(path, options, pickled=pickled)


def _open_folder(path: Path, options: ImportOptions) -> ModelSource:
    if (path / "config.json").is_file():
        return open_huggingface(path, options, name=path.name)
    if is_meta_folder(path):
        return open_meta(path, options)
    raise FormatError(
        f"cannot import {path}: expected a folder with config.json (Hugging Face) or with params.json and "
        "consolidated.00.pth (Meta), found neither"
    )


def _reader(
    model: ModelSource, entries: Sequence[TensorEntry], wanted: torch.dtype | None, progress: Progress
) -> TensorReader:
    """A reader of the source's tensors, checked and converted, that reports progress."""
    specs = {spec.huggingface: spec for spec in tensor_table(model.config)}
    sizes = {entry.name: entry.num_bytes for entry in entries}
    total, done = sum(sizes.values()), 0

    def tensor(name: str) -> Tensor:
        nonlocal done
        value = checked(model.tensor(specs[name]), name, f"cannot import {model.path}", wanted)
        done += sizes[name]
        progress("importing", done, total)
        return value

    return tensor

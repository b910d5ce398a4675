"""A llama2.c model (.bin of version 0, 1 or 2, or a training checkpoint .pt) and its tokenizer to a checkpoint."""

from __future__ import annotations

import dataclasses
import tempfile
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from llamita.checkpoint import save_checkpoint
from llamita.config import ModelConfig
from llamita.errors import FormatError, OutputError, TokenizerError
from llamita.formats.llama2c import Llama2cModel, read_bin, read_checkpoint
from llamita.formats.mapping import map_file
from llamita.formats.rope_order import pairs_to_halves
from llamita.formats.tensor_table import TensorSpec, tensor_table
from llamita.tokenizer import Tokenizer, load_tokenizer


@dataclasses.dataclass(frozen=True)
class ImportReport:
    """What was read and written. version: "v0", "v1", "v2" or "checkpoint" of llama2.c."""

    path: Path
    version: str
    config: ModelConfig
    tokenizer_path: Path


def import_model(source: Path, out: Path, tokenizer: Path | None = None) -> ImportReport:
    """Write the model as the new checkpoint folder `out`, whole or not at all.

    tokenizer: a tokenizer.bin, SentencePiece .model or tokenizer.json; None takes the one beside the source that
    llama2.c would mean. Raises FormatError, TokenizerError (none found, or it does not fit), OutputError.
    """
    source, out = Path(source), Path(out)
    if out.exists():
        raise OutputError(f"cannot write {out}: it exists already; choose another name or remove it")
    model = _read(source)
    tokenizer_path = _find_tokenizer(source, model.config.vocab_size) if tokenizer is None else Path(tokenizer)
    loaded = load_tokenizer(tokenizer_path)
    _check_fit(loaded, model.config, tokenizer_path, source)
    tensors = {spec.huggingface: _tensor(model, spec) for spec in tensor_table(model.config)}
    with tempfile.TemporaryDirectory() as folder:
        loaded.save(Path(folder))
        save_checkpoint(out, model.config, tensors, Path(folder))
    return ImportReport(out, model.version, model.config, tokenizer_path)


def _read(source: Path) -> Llama2cModel:
    """Zip and pickle containers are PyTorch's; everything else must be a .bin."""
    if source.is_dir():
        raise FormatError(f"cannot import {source}: expected llama2.c's .bin or .pt, found a folder")
    head = map_file(source)[:4]
    if head == b"GGUF":
        raise FormatError(f"cannot import {source}: expected llama2.c's .bin or .pt, found GGUF; it runs as it is")
    if head[:2] == b"PK" or source.suffix in (".pt", ".pth"):
        return read_checkpoint(source)
    return read_bin(source)


def _find_tokenizer(source: Path, vocab_size: int) -> Path:
    """The tokenizer that lies beside the model under a name llama2.c gives it."""
    names = [f"tok{vocab_size}.model", f"tok{vocab_size}.bin", "tokenizer.model", "tokenizer.bin"]
    for name in names:
        if (source.parent / name).is_file():
            return source.parent / name
    raise TokenizerError(
        f"cannot import {source}: no tokenizer beside it (looked for {', '.join(names)}); name it with --tokenizer FILE"
    )


def _check_fit(tokenizer: Tokenizer, config: ModelConfig, path: Path, source: Path) -> None:
    if tokenizer.vocab_size != config.vocab_size:
        raise TokenizerError(
            f"cannot import {source} with tokenizer {path}: expected {config.vocab_size} tokens, found "
            f"{tokenizer.vocab_size}; they do not belong together"
        )
    if (tokenizer.bos_id, tokenizer.eos_id) != (config.bos_token_id, config.eos_token_ids[0]):
        raise TokenizerError(
            f"cannot import {source} with tokenizer {path}: expected BOS {config.bos_token_id} and EOS "
            f"{config.eos_token_ids[0]}, as llama2.c has them, found {tokenizer.bos_id} and {tokenizer.eos_id}"
        )


def _tensor(model: Llama2cModel, spec: TensorSpec) -> Tensor:
    numbers = model.tensor(spec)
    if not np.isfinite(numbers).all():
        raise FormatError(
            f"cannot import {model.path}: tensor {spec.name('llama2c')}: expected finite numbers, found NaN or "
            "infinity; the weights are broken"
        )
    heads = spec.rope_heads(model.config)
    return torch.from_numpy(numbers if heads is None else pairs_to_halves(numbers, heads))

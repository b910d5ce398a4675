"""Describes the contents of any file or folder that llamita reads or writes; detects its kind."""

from __future__ import annotations

import dataclasses
import json
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from llamita.config import ModelConfig
from llamita.data.file_formats import find_suffix
from llamita.errors import FormatError
from llamita.formats.gguf import FILE_TYPES, read_gguf
from llamita.formats.huggingface import config_from_dict
from llamita.formats.llama2c import Llama2cModel, read_bin, read_checkpoint
from llamita.formats.mmap_file import map_file
from llamita.formats.tensor_table import tensor_table
from llamita.json_file import read_json_object


@dataclasses.dataclass(frozen=True)
class TensorRow:
    """A tensor: name and type in the file, shape [rows, row length], size."""

    name: str
    type: str
    shape: tuple[int, ...]
    num_bytes: int


@dataclasses.dataclass(frozen=True)
class Inspection:
    """What a path contains. properties: (name, value) in display order."""

    path: Path
    kind: str
    num_bytes: int
    properties: tuple[tuple[str, str], ...]
    tensors: tuple[TensorRow, ...] = ()

    @property
    def num_parameters(self) -> int:
        return sum(math.prod(row.shape) for row in self.tensors)


def inspect(path: Path) -> Inspection:
    """Describe a GGUF, a llama2.c .bin, .pt or tokenizer.bin, a .safetensors, a tokenizer file, a
    checkpoint, a run directory or a token store. Raises FormatError (or the reader's own error) for
    anything else, and for damage."""
    path = Path(path)
    if path.is_dir():
        return _inspect_folder(path)
    if find_suffix(path) not in (None, ".json"):
        raise FormatError(
            f"cannot inspect {path}: expected a model, a tokenizer or a token store, found text; `llamita prepare` "
            "makes a token store of text, and `llamita finetune` trains on conversations"
        )
    mapping = map_file(path)
    head, num_bytes = mapping[:16], len(mapping)
    mapping.close()
    if head[:4] == b"GGUF":
        return _inspect_gguf(path)
    if path.suffix == ".safetensors":
        return _inspect_safetensors(path, num_bytes)
    if head[:2] == b"PK" or path.suffix in (".pt", ".pth"):
        return _inspect_llama2c(read_checkpoint(path), num_bytes)
    if path.suffix in (".json", ".model") or head[:1] in (b"{", b"\n"):
        return _inspect_tokenizer(path, num_bytes)
    return _inspect_bin(path, num_bytes)


def _inspect_bin(path: Path, num_bytes: int) -> Inspection:
    """A .bin is a model or a tokenizer; only its length shows which."""
    from llamita.errors import TokenizerError

    try:
        return _inspect_llama2c(read_bin(path), num_bytes)
    except FormatError as not_a_model:
        if path.suffix == ".bin":
            try:
                return _inspect_tokenizer(path, num_bytes)
            except TokenizerError as not_a_tokenizer:
                if path.stem.startswith("tok"):
                    raise not_a_tokenizer from None
        raise not_a_model from None


def _inspect_llama2c(model: Llama2cModel, num_bytes: int) -> Inspection:
    kind = "llama2.c training checkpoint" if model.version == "checkpoint" else f"llama2.c model {model.version}"
    properties = _config_properties(model.config)
    if model.group_size is not None:
        properties.append(("group size", f"{model.group_size:,}"))
    rows = []
    for spec in tensor_table(model.config):
        size = math.prod(spec.shape)
        quantized = model.group_size is not None and spec.kind != "norm"
        stored = size + size // model.group_size * 4 if quantized and model.group_size else 4 * size
        rows.append(TensorRow(spec.name("llama2c"), "INT8" if quantized else "F32", spec.shape, stored))
    return Inspection(model.path, kind, num_bytes, tuple(properties), tuple(rows))


def _inspect_gguf(path: Path) -> Inspection:
    file = read_gguf(path)
    names = {number: name for name, number in FILE_TYPES.items()}
    properties = [("version", str(file.version))]
    if len(file.pieces) > 1:
        properties.append(("files", f"{len(file.pieces)}, {file.pieces[0].name} to {file.pieces[-1].name}"))
    for key, value in file.metadata.items():
        shown = _shown(value)
        if key == "general.file_type" and value in names:
            shown = f"{value} (mostly {names[value]})"
        properties.append((key, shown))
    rows = tuple(TensorRow(t.name, t.type, t.shape, t.num_bytes) for t in file.tensors.values())
    return Inspection(path, "GGUF", file.num_bytes, tuple(properties), rows)


def _inspect_safetensors(path: Path, num_bytes: int) -> Inspection:
    from llamita.formats.safetensors_io import read_header  # needs torch

    tensors, metadata = read_header(path)
    rows = tuple(TensorRow(t.name, t.dtype, t.shape, t.num_bytes) for t in tensors)
    return Inspection(path, "safetensors", num_bytes, tuple(metadata.items()), rows)


def _inspect_tokenizer(path: Path, num_bytes: int) -> Inspection:
    return Inspection(path, "tokenizer", num_bytes, tuple(_tokenizer_properties(path)))


def _inspect_folder(path: Path) -> Inspection:
    if (path / "store.json").is_file():
        return _inspect_store(path)
    from llamita.checkpoint import has_tokenizer, resolve_checkpoint

    folder = resolve_checkpoint(path)
    name = folder / "config.json"
    properties = _config_properties(config_from_dict(read_json_object(name, FormatError), str(name)))
    if folder != path:
        properties.insert(0, ("checkpoint", str(folder.resolve().name)))
    if has_tokenizer(folder):
        properties += _tokenizer_properties(folder)
    else:
        properties.append(("tokenizer", "none"))
    if (folder / "training").is_dir():
        properties.append(("training", f"saved state, {_num_bytes(folder / 'training'):,} bytes"))
    weights = folder / "model.safetensors"
    shards = sorted(folder.glob("model-*-of-*.safetensors")) if not weights.is_file() else [weights]
    rows = [row for shard in shards for row in _inspect_safetensors(shard, 0).tensors]
    return Inspection(path, "checkpoint", _num_bytes(folder), tuple(properties), tuple(rows))


def _inspect_store(path: Path) -> Inspection:
    from llamita.data.token_store import TokenStore

    store = TokenStore(path)
    tokenizer = store.info["tokenizer"]
    properties = [("vocabulary", f"{store.vocab_size:,}"), ("tokenizer", str(tokenizer["fingerprint"])[:16])]
    for name in ("train", "val"):
        split = store.split(name)
        ratio = f", {split.text_bytes / split.num_tokens:.2f} bytes per token" if split.num_tokens else ""
        properties.append(
            (name, f"{split.num_documents:,} documents, {split.num_tokens:,} tokens, {split.text_bytes:,} bytes{ratio}")
        )
    return Inspection(path, "token store", _num_bytes(path), tuple(properties))


def type_counts(tensors: Sequence[TensorRow]) -> list[tuple[str, int, int, int]]:
    """(type, tensors, bytes, elements) of each type, most bytes first."""
    counts, sizes, numbers = Counter[str](), Counter[str](), Counter[str]()
    for row in tensors:
        counts[row.type] += 1
        sizes[row.type] += row.num_bytes
        numbers[row.type] += math.prod(row.shape)
    return [(name, counts[name], size, numbers[name]) for name, size in sizes.most_common()]


def _config_properties(config: ModelConfig) -> list[tuple[str, str]]:
    properties = [("parameters", f"{config.num_parameters:,}")]
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        properties.append((field.name, f"{value:,}" if type(value) is int else _shown(value)))
    return properties


def _tokenizer_properties(path: Path) -> list[tuple[str, str]]:
    from llamita.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(path)
    kind = "byte-level BPE" if tokenizer.kind == "gpt2" else "SentencePiece BPE"
    return [
        ("tokenizer", f"{kind}, {tokenizer.vocab_size:,} tokens"),
        ("split", _shown(tokenizer.split)),
        ("bos", _shown(tokenizer.bos_id)),
        ("eos", _shown(tokenizer.eos_id)),
        ("end ids", ", ".join(map(str, tokenizer.end_ids)) or "none"),
        ("chat template", _shown(tokenizer.chat_template)),
        ("fingerprint", tokenizer.fingerprint[:16]),
    ]


def _shown(value: Any) -> str:
    """A value in about 70 characters at most."""
    if isinstance(value, np.ndarray):
        return f"{value.dtype.name}[{value.size:,}]: {_first(f'{item:g}' for item in value[:7])}"
    if isinstance(value, list):
        return f"string[{len(value):,}]: {_first(_quoted(item) for item in value[:7])}"
    if value is None or value == ():
        return "none"
    if isinstance(value, tuple):
        return _first(f"{item}" for item in value[:7])
    if isinstance(value, str):
        return _quoted(value)[1:-1] if value.isprintable() and len(value) <= 70 else _quoted(value)
    return f"{value:g}" if isinstance(value, float) else str(value)


def _first(items: Iterable[str]) -> str:
    """The first six items, and an ellipsis if there are more."""
    shown = list(items)
    return ", ".join([*shown[:6], "…"] if len(shown) > 6 else shown)


def _quoted(text: str) -> str:
    short = text if len(text) <= 60 else f"{text[:60]}…"
    return json.dumps(short, ensure_ascii=False)


def _num_bytes(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())

"""Reads and writes .safetensors: one file, or shards with an index.

    model.safetensors
    model-00001-of-00002.safetensors  model-00002-of-00002.safetensors  model.safetensors.index.json

A file: u64 header length | JSON {name: {dtype, shape, data_offsets}, "__metadata__": {…}} | data

Each read returns new memory and keeps no mapping, so memory in use is what was returned.
"""

from __future__ import annotations

import dataclasses
import json
import math
import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from llamita.errors import FormatError
from llamita.formats.mmap_file import map_file, read_bytes
from llamita.json_file import Key, Schema, check_object, parse_json_object, read_json_object, shortened, shown

WEIGHTS: Final = "model.safetensors"
INDEX: Final = "model.safetensors.index.json"
MAX_HEADER_BYTES: Final = 100_000_000  # the reference implementation's
DTYPE_BYTES: Final = {
    "BOOL": 1, "U8": 1, "I8": 1, "F8_E5M2": 1, "F8_E4M3": 1, "I16": 2, "U16": 2, "F16": 2, "BF16": 2,
    "I32": 4, "U32": 4, "F32": 4, "I64": 8, "U64": 8, "F64": 8,
}  # fmt: skip

_DTYPES: dict[str, torch.dtype] = {
    "BOOL": torch.bool, "U8": torch.uint8, "I8": torch.int8, "I16": torch.int16, "I32": torch.int32,
    "I64": torch.int64, "F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32, "F64": torch.float64,
}  # fmt: skip
_DTYPE_NAMES = {dtype: name for name, dtype in _DTYPES.items()}
# Types that weights may have, by their names in flags and config.json.
DTYPES: Final[dict[str, torch.dtype]] = {
    "float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16,
}  # fmt: skip
FLOAT_DTYPES: Final = tuple(DTYPES.values())


# ---------------------------------------------------------------- reading a header

_MAX_DIMENSIONS: Final = 8
_MAX_OFFSET: Final = 2**63 - 1
_OFFSET = Key("integer", null=False, minimum=0, maximum=_MAX_OFFSET)
_HEADER: Schema = {"__metadata__": Key("object", items=Key("string", null=False))}
_ENTRY: Schema = {
    "dtype": Key("string", required=True),
    "shape": Key("list", required=True, items=_OFFSET),
    "data_offsets": Key("list", required=True, items=_OFFSET),
}


@dataclasses.dataclass(frozen=True)
class SafetensorsEntry:
    """A tensor of a .safetensors file. offset: of its first byte, from the start of the file."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int
    num_bytes: int


def read_header(path: Path) -> tuple[list[SafetensorsEntry], dict[str, str]]:
    """(tensors in the order of their data, metadata), checked against the file's length.

    Raises FormatError, also for gaps and overlaps in the data."""
    mapping = map_file(path)
    if len(mapping) < 8:
        raise FormatError(f"cannot read {path}: expected a .safetensors header, found {len(mapping)} bytes")
    (length,) = struct.unpack_from("<Q", mapping)
    if length > min(MAX_HEADER_BYTES, len(mapping) - 8):
        raise FormatError(
            f"cannot read {path}: header: expected {length} bytes, found {len(mapping) - 8} to the end of the file; it "
            "is truncated or not a .safetensors file"
        )
    where = f"{path}: header"
    header = parse_json_object(mapping[8 : 8 + length], where, FormatError, _HEADER, unique_keys=True)
    metadata = header.pop("__metadata__") or {}
    data_start = 8 + length
    tensors = [_entry(path, name, entry, data_start) for name, entry in header.items()]
    tensors.sort(key=lambda tensor: (tensor.offset, tensor.num_bytes))
    end = 0
    for tensor in tensors:
        start = tensor.offset - data_start
        if start != end:
            raise FormatError(f"cannot read {path}: tensor {tensor.name}: expected offset {end}, found {start}")
        end += tensor.num_bytes
    found = len(mapping) - data_start
    mapping.close()
    if end != found:
        raise FormatError(f"cannot read {path}: data: expected {end} bytes, found {found}; it is truncated or damaged")
    return tensors, metadata


def _entry(path: Path, name: str, fields: Any, data_start: int) -> SafetensorsEntry:
    where = f"{path}: header: tensor {shortened(name, 120)}"
    values = check_object(fields, _ENTRY, where, FormatError)
    dtype, shape, offsets = values["dtype"], tuple(values["shape"]), values["data_offsets"]
    if len(offsets) != 2 or len(shape) > _MAX_DIMENSIONS or dtype not in DTYPE_BYTES:
        raise FormatError(
            f"cannot read {where}: expected a known dtype, a shape and two data_offsets, found {shown(dtype)}, "
            f"{shown(shape)}, {shown(offsets)}"
        )
    (start, end), num_bytes = offsets, math.prod(shape) * DTYPE_BYTES[dtype]
    if end - start != num_bytes:
        raise FormatError(f"cannot read {where}: expected {num_bytes} bytes, found {end - start}")
    return SafetensorsEntry(name, dtype, shape, data_start + start, num_bytes)


# ---------------------------------------------------------------- reading tensors


class SafetensorsReader:
    """Reads tensors of one or more .safetensors files by name."""

    def __init__(self, places: Mapping[str, tuple[Path, SafetensorsEntry]]) -> None:
        self._places = dict(places)

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: stored.shape for name, (_, stored) in self._places.items()}

    def dtype(self, name: str) -> torch.dtype:
        """The stored type. Raises FormatError for a type that PyTorch does not support."""
        path, stored = self._places[name]
        if stored.dtype not in _DTYPES:
            known = ", ".join(_DTYPES)
            raise FormatError(f"cannot read {path}: tensor {name}: expected one of {known}, found {stored.dtype}")
        return _DTYPES[stored.dtype]

    def read(self, name: str, first_row: int = 0, num_rows: int | None = None) -> Tensor:
        """A tensor, or its rows [first_row, first_row + num_rows), in its type and new memory.

        Raises FormatError if the file cannot be read, or was truncated since it was opened.
        """
        path, stored = self._places[name]
        dtype, shape, offset = self.dtype(name), stored.shape, stored.offset
        if num_rows is not None:
            row_bytes = math.prod(shape[1:]) * dtype.itemsize
            assert first_row >= 0 and first_row + num_rows <= shape[0], (name, first_row, num_rows)
            shape, offset = (num_rows, *shape[1:]), offset + first_row * row_bytes
        raw = read_bytes(path, offset, math.prod(shape) * dtype.itemsize, name)
        return torch.from_numpy(raw).view(dtype).reshape(shape) if raw.size else torch.empty(shape, dtype=dtype)


def open_safetensors_file(path: Path) -> SafetensorsReader:
    """All tensors of one .safetensors file. Raises FormatError."""
    return SafetensorsReader({tensor.name: (path, tensor) for tensor in read_header(path)[0]})


def open_safetensors(folder: Path, stem: str = "model") -> SafetensorsReader:
    """All tensors of folder/STEM.safetensors, or of the shards that
    folder/STEM.safetensors.index.json names.

    Raises FormatError for a damaged file, a missing shard, or a tensor that is not where the index
    says.
    """
    index, single = folder / f"{stem}.safetensors.index.json", folder / f"{stem}.safetensors"
    if single.is_file() or not index.is_file():
        return open_safetensors_file(single)
    weight_map = read_index(index)
    places: dict[str, tuple[Path, SafetensorsEntry]] = {}
    for name in sorted(set(weight_map.values())):
        for tensor in read_header(folder / name)[0]:
            if weight_map.get(tensor.name) != name:
                listed = weight_map.get(tensor.name, "nowhere")
                raise FormatError(
                    f"cannot read {folder / name}: tensor {tensor.name}: the index says it is in {listed}"
                )
            places[tensor.name] = (folder / name, tensor)
    missing = next((name for name in weight_map if name not in places), None)
    if missing is not None:
        raise FormatError(
            f"cannot read {folder / weight_map[missing]}: tensor {missing} is missing, but the index lists it"
        )
    return SafetensorsReader(places)


INDEX_KEYS: Schema = {"weight_map": Key("object", default={}, null=False, items=Key("string", null=False))}


def read_index(path: Path) -> dict[str, str]:
    """The weight_map of an index.json: tensor name → file name in the same folder, never a path."""
    weight_map: dict[str, str] = read_json_object(path, FormatError, INDEX_KEYS)["weight_map"]
    if not weight_map:
        raise FormatError(f"cannot read {path}: expected weight_map, an object of tensor names and file names")
    for name, file in weight_map.items():
        if file != Path(file).name or file in ("", "..") or "\\" in file or not file.isprintable():
            raise FormatError(
                f"cannot read {path}: {shortened(name, 120)}: expected a file's name, found {shown(file)}"
            )
    return weight_map


# ---------------------------------------------------------------- writing


@dataclasses.dataclass(frozen=True)
class TensorEntry:
    """Name, type and shape of a tensor to be written."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def num_bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


# Returns the tensor of this name; called once per tensor.
TensorReader = Callable[[str], Tensor]


def write_safetensors(path: Path, entries: Iterable[TensorEntry], tensor: TensorReader) -> int:
    """Write one .safetensors file with one tensor in memory at a time; returns its size.

    Wide types come first, so that every tensor is aligned to its type. Raises OSError: the caller
    writes atomically."""
    ordered = sorted(entries, key=lambda entry: -entry.dtype.itemsize)
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for entry in ordered:
        assert DTYPE_BYTES[_DTYPE_NAMES[entry.dtype]] == entry.dtype.itemsize
        end = offset + entry.num_bytes
        kind = _DTYPE_NAMES[entry.dtype]
        header[entry.name] = {"dtype": kind, "shape": list(entry.shape), "data_offsets": [offset, end]}
        offset = end
    raw = json.dumps(header, separators=(",", ":")).encode("utf-8")
    raw += b" " * (-len(raw) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(raw)) + raw)
        for entry in ordered:
            value = tensor(entry.name).detach()
            assert (value.dtype, tuple(value.shape)) == (entry.dtype, entry.shape), (entry, value.dtype, value.shape)
            if entry.num_bytes:
                file.write(value.contiguous().reshape(-1).view(torch.uint8).numpy().data)
            del value
    return 8 + len(raw) + offset


def write_sharded_safetensors(
    folder: Path, entries: Sequence[TensorEntry], tensor: TensorReader, shard_bytes: int | None = None
) -> int:
    """Write folder/model.safetensors, or shards of at most shard_bytes and their index; returns the
    total size.

    A tensor larger than shard_bytes gets a shard of its own."""
    shards = _shards(entries, shard_bytes)
    if len(shards) == 1:
        return write_safetensors(folder / WEIGHTS, entries, tensor)
    weight_map: dict[str, str] = {}
    num_bytes = 0
    for number, shard in enumerate(shards, 1):
        name = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        num_bytes += write_safetensors(folder / name, shard, tensor)
        weight_map |= {entry.name: name for entry in shard}
    total = sum(entry.num_bytes for entry in entries)
    content = json.dumps({"metadata": {"total_size": total}, "weight_map": weight_map}, indent=2) + "\n"
    (folder / INDEX).write_text(content, encoding="utf-8")
    return num_bytes + len(content)


def _shards(entries: Sequence[TensorEntry], shard_bytes: int | None) -> list[list[TensorEntry]]:
    """The entries in order, split into shards of at most shard_bytes."""
    shards: list[list[TensorEntry]] = [[]]
    size = 0
    for entry in entries:
        if shard_bytes is not None and shards[-1] and size + entry.num_bytes > shard_bytes:
            shards.append([])
            size = 0
        shards[-1].append(entry)
        size += entry.num_bytes
    return shards


# ---------------------------------------------------------------- types


def checked(tensor: Tensor, name: str, what: str, wanted: torch.dtype | None) -> Tensor:
    """The tensor, converted to the wanted type (None: unchanged).

    Raises FormatError(what: …) if numbers are not finite, or too large for the type.
    """
    if not _finite(tensor):
        raise FormatError(
            f"{what}: tensor {name}: expected finite numbers, found NaN or infinity; the weights are broken"
        )
    if wanted is None or wanted == tensor.dtype:
        return tensor
    rounded = tensor.to(wanted)
    if not _finite(rounded):
        kind = str(wanted).removeprefix("torch.")
        raise FormatError(
            f"{what}: tensor {name}: its largest number, {float(tensor.abs().max()):.6g}, is too large for {kind}; "
            "use bfloat16 or float32"
        )
    return rounded


def _finite(tensor: Tensor) -> bool:
    """Whether all numbers are finite. aminmax returns NaN if there is any, and is 12 times faster
    than isfinite."""
    return tensor.numel() == 0 or all(bool(torch.isfinite(end)) for end in torch.aminmax(tensor))

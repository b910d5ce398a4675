"""The header of a .safetensors file, checked against the file's length, to a list of its tensors; no data is read.

u64 length of the header | header: JSON {name: {dtype, shape, data_offsets}, "__metadata__": {…}} | data
"""

from __future__ import annotations

import dataclasses
import json
import math
import struct
from pathlib import Path
from typing import Any, Final

from llamita.errors import FormatError
from llamita.formats.mmap_file import map_file

MAX_HEADER_BYTES: Final = 100_000_000  # the reference implementation's
DTYPE_BYTES: Final = {
    "BOOL": 1, "U8": 1, "I8": 1, "F8_E5M2": 1, "F8_E4M3": 1, "I16": 2, "U16": 2, "F16": 2, "BF16": 2,
    "I32": 4, "U32": 4, "F32": 4, "I64": 8, "U64": 8, "F64": 8,
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class SafetensorsEntry:
    """A tensor of a .safetensors file. offset: in the file, of its first byte."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int
    num_bytes: int


def read_safetensors_header(path: Path) -> tuple[list[SafetensorsEntry], dict[str, str]]:
    """(tensors in the order of their data, metadata). Raises FormatError, also for gaps and overlaps in the data."""
    mapping = map_file(path)
    if len(mapping) < 8:
        raise FormatError(f"cannot read {path}: expected a .safetensors header, found {len(mapping)} bytes")
    (length,) = struct.unpack_from("<Q", mapping)
    if length > min(MAX_HEADER_BYTES, len(mapping) - 8):
        raise FormatError(
            f"cannot read {path}: header: expected {length} bytes, found {len(mapping) - 8} to the end of the file; it "
            "is truncated or no .safetensors file"
        )
    try:
        header = json.loads(mapping[8 : 8 + length].decode("utf-8"), object_pairs_hook=_without_doubles)
    except (ValueError, RecursionError) as error:
        raise FormatError(f"cannot read {path}: header: expected JSON: {str(error)[:120]}") from error
    if not isinstance(header, dict):
        raise FormatError(f"cannot read {path}: header: expected a JSON object, found {type(header).__name__}")
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise FormatError(f"cannot read {path}: __metadata__: expected an object of strings")
    data_start = 8 + length
    tensors = [_tensor(path, name, entry, data_start) for name, entry in header.items()]
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


def _without_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"{next(name for name in names if names.count(name) > 1)!r} is there twice")
    return result


def _tensor(path: Path, name: str, entry: Any, data_start: int) -> SafetensorsEntry:
    try:
        dtype, shape, (start, end) = entry["dtype"], entry["shape"], entry["data_offsets"]
        whole = all(isinstance(number, int) and not isinstance(number, bool) for number in (*shape, start, end))
        if not whole or min(*shape, start, end, 0) < 0:
            raise ValueError
        num_bytes = math.prod(shape) * DTYPE_BYTES[dtype]
    except (TypeError, KeyError, ValueError) as error:
        raise FormatError(
            f"cannot read {path}: tensor {name}: expected a known dtype, a shape and two data_offsets, found "
            f"{str(entry)[:80]!r}"
        ) from error
    if end - start != num_bytes:
        raise FormatError(f"cannot read {path}: tensor {name}: expected {num_bytes} bytes, found {end - start}")
    return SafetensorsEntry(name, dtype, tuple(shape), data_start + start, num_bytes)

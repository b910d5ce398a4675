"""Converts float arrays to the blocks of GGUF's tensor types and back, in the engine.

The types are described in engine/src/kernels/tensor_type.h. Q8_0 is ggml's reference rule, byte for byte.
The other quantized types search: of many scales near ggml's, each block keeps the one with the least squared
error after rounding, weighted in Q4_0 and Q5_0 (engine/src/kernels/quantize_rows.h). The same numbers give the
same bytes, on any number of threads and any processor.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from llamita import engine
from llamita.cores import num_cores
from llamita.errors import EngineError, FormatError

__all__ = [
    "BLOCK",
    "OTHER_TYPES",
    "SUPER",
    "TYPES",
    "WRITTEN_TYPES",
    "Bytes",
    "Floats",
    "TensorType",
    "TypeName",
    "dequantize",
    "quantize",
    "quantize_chunks",
]

Bytes: TypeAlias = NDArray[np.uint8]
Floats: TypeAlias = NDArray[np.float32]
TypeName: TypeAlias = str  # of TYPES

BLOCK, SUPER = 32, 256  # elements of a block, of the small types and of the K types
_CHUNK_NUMBERS = 1 << 17  # encoded at a time: 512 KiB of floats stay in the cache
_MIN_THREAD_ELEMENTS = 1 << 17  # fewer are not worth a thread


@dataclasses.dataclass(frozen=True)
class TensorType:
    """A tensor type of ggml: its number in GGUF files, and the elements and bytes of a block."""

    name: TypeName
    number: int
    block_elements: int
    block_bytes: int

    @property
    def bits(self) -> float:
        """Bits per element, scales included."""
        return 8 * self.block_bytes / self.block_elements

    def num_bytes(self, num_elements: int) -> int:
        """Bytes of a tensor with this many elements (whole blocks)."""
        return num_elements // self.block_elements * self.block_bytes

    def fits(self, row_length: int) -> bool:
        """Whether rows of this length are whole blocks."""
        return row_length % self.block_elements == 0


class _Types(Mapping[str, TensorType]):
    """The engine's types, loaded on first use."""

    @functools.cached_property
    def _types(self) -> dict[str, TensorType]:
        return {name: TensorType(name, *sizes) for name, *sizes in engine.tensor_types()}

    def __getitem__(self, name: str) -> TensorType:
        return self._types[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._types)

    def __len__(self) -> int:
        return len(self._types)


TYPES: Mapping[str, TensorType] = _Types()

# The other types of ggml. A file that holds them can be inspected, but not dequantized.
OTHER_TYPES: dict[str, TensorType] = {
    kind.name: kind
    for kind in (
        TensorType("Q8_1", 9, BLOCK, 40),
        TensorType("Q8_K", 15, SUPER, 292),
        TensorType("IQ2_XXS", 16, SUPER, 66),
        TensorType("IQ2_XS", 17, SUPER, 74),
        TensorType("IQ3_XXS", 18, SUPER, 98),
        TensorType("IQ1_S", 19, SUPER, 50),
        TensorType("IQ3_S", 21, SUPER, 110),
        TensorType("IQ2_S", 22, SUPER, 82),
        TensorType("I8", 24, 1, 1),
        TensorType("I16", 25, 1, 2),
        TensorType("I32", 26, 1, 4),
        TensorType("I64", 27, 1, 8),
        TensorType("F64", 28, 1, 8),
        TensorType("IQ1_M", 29, SUPER, 56),
    )
}

# The types that `quantize` writes, the exact ones first.
WRITTEN_TYPES: tuple[TypeName, ...] = (
    "F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q4_K", "Q5_K", "Q6_K",
)  # fmt: skip


def quantize(array: NDArray[Any], type: TypeName, where: str = "tensor") -> Bytes:
    """The bytes of an array [..., row length] in this type, one of WRITTEN_TYPES, as a flat array.

    Raises FormatError naming `where` if a number is NaN, infinite or too large for the type, or if
    rows are not whole blocks.
    """
    return _quantize(array, type, where)[0]


def quantize_chunks(chunks: Iterable[Floats], num_elements: int, type: TypeName, where: str) -> tuple[Bytes, float]:
    """(bytes, relative error) of a tensor of num_elements that comes in chunks of whole rows.

    The error is √(Σ(stored - x)² / Σx²), 0 for a tensor of zeros. Raises FormatError as `quantize`
    does."""
    out = np.empty(TYPES[type].num_bytes(num_elements), np.uint8)
    end, power, lost = 0, 0.0, 0.0
    for numbers in chunks:
        data, squared_error = _quantize(numbers, type, where)
        out[end : end + data.size] = data
        end += data.size
        lost += squared_error
        power += float(np.dot(numbers.reshape(-1), numbers.reshape(-1))) if type != "F32" else 0.0
    assert end == out.size
    return out, math.sqrt(lost / power) if power > 0 else 0.0


def _quantize(array: NDArray[Any], type: TypeName, where: str) -> tuple[Bytes, float]:
    """(bytes, Σ(stored - x)²)."""
    assert type in WRITTEN_TYPES, f"{type} cannot be written"
    kind = TYPES[type]
    row_length = array.shape[-1] if array.ndim else 1
    if not kind.fits(row_length):
        raise FormatError(
            f"cannot store {where} as {type}: rows of {row_length} numbers are not whole blocks of "
            f"{kind.block_elements}; use F16"
        )
    rows = np.ascontiguousarray(array, dtype=np.float32).reshape(-1, row_length)
    out = np.empty(kind.num_bytes(rows.size), dtype=np.uint8)
    if type in _PLAIN_ENCODERS:
        return out, _encode_plain(rows.reshape(-1), type, out, where)
    try:
        return out, _quantize_in_threads(rows, type, out.reshape(len(rows), -1))
    except EngineError as error:
        if not str(error).startswith("cannot quantize"):  # the engine is missing
            raise
        raise _unstorable(rows, type, where) from error


def _encode_plain(flat: Floats, type: TypeName, out: Bytes, where: str) -> float:
    squared_error = 0.0
    for numbers, target in _chunks(flat, out, TYPES[type]):
        with np.errstate(over="ignore"):
            encoded = _PLAIN_ENCODERS[type](numbers) if np.isfinite(numbers).all() else None
        if encoded is None:
            raise _unstorable(numbers, type, where)
        target[:] = encoded
        if type != "F32":
            difference = dequantize(encoded, type, numbers.shape) - numbers
            squared_error += float(np.dot(difference, difference))
    return squared_error


def _quantize_in_threads(rows: Floats, type: TypeName, out: Bytes) -> float:
    """Quantize rows [N, row length] into out [N, bytes of a row], rows split over threads; returns
    Σ(stored - x)²."""
    available = num_cores()
    parts = max(1, min(available, len(rows), rows.size // _MIN_THREAD_ELEMENTS))
    if parts == 1:
        return engine.quantize(rows, type, out)
    ends = [len(rows) * part // parts for part in range(parts + 1)]
    with ThreadPoolExecutor(parts) as pool:
        tasks = [
            pool.submit(engine.quantize, rows[start:end], type, out[start:end])
            for start, end in itertools.pairwise(ends)
        ]
        return sum(task.result() for task in tasks)


def _unstorable(numbers: Floats, type: TypeName, where: str) -> FormatError:
    broken = numbers[~np.isfinite(numbers)]
    if broken.size:
        return FormatError(
            f"cannot store {where} as {type}: expected finite numbers, found {broken[0]}; the weights are broken"
        )
    largest = np.abs(numbers).max(initial=0)
    return FormatError(f"cannot store {where} as {type}: its largest number, {largest:.6g}, is too large; use F32")


def dequantize(data: NDArray[Any] | bytes | memoryview, type: TypeName, shape: tuple[int, ...]) -> Floats:
    """Decode bytes to a new float32 array [shape]. The data must have exactly the bytes of the
    shape."""
    raw = np.frombuffer(data, dtype=np.uint8)
    out = np.empty(shape, dtype=np.float32)
    flat = out.reshape(-1)
    assert raw.size == TYPES[type].num_bytes(flat.size), f"{raw.size} bytes are not {flat.size} numbers of {type}"
    engine.dequantize(raw, TYPES[type].number, flat)
    return out


def _chunks(flat: Floats, data: Bytes, kind: TensorType) -> Iterator[tuple[Floats, Bytes]]:
    """Matching slices of the numbers and the bytes, each a whole number of blocks."""
    for start in range(0, flat.size, _CHUNK_NUMBERS):
        numbers = flat[start : start + _CHUNK_NUMBERS]
        first = kind.num_bytes(start)
        yield numbers, data[first : first + kind.num_bytes(numbers.size)]


def _bytes(array: NDArray[Any]) -> Bytes:
    return np.ascontiguousarray(array).view(np.uint8)


# ---------------------------------------------------------------- plain types


def _encode_f32(x: Floats) -> Bytes | None:
    return _bytes(x.astype("<f4"))


def _encode_f16(x: Floats) -> Bytes | None:
    halves = x.astype("<f2")
    return None if np.isinf(halves).any() else _bytes(halves)


def _encode_bf16(x: Floats) -> Bytes | None:
    bits = x.view(np.uint32).astype(np.uint64)
    # Nearest, ties to even.
    rounded = (bits + 0x7FFF + ((bits >> np.uint64(16)) & np.uint64(1))) >> np.uint64(16)
    return None if ((rounded & 0x7FFF) == 0x7F80).any() else _bytes(rounded.astype("<u2"))


_PLAIN_ENCODERS = {"F32": _encode_f32, "F16": _encode_f16, "BF16": _encode_bf16}

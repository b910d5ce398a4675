"""Float arrays to the block bytes of GGUF's tensor types and back, in numpy: vectorised and deterministic.

The formats of the blocks are described where they are decoded: quantize_blocks.py and quantize_k.py.
Q8_0 and Q4_1 are ggml's reference rule, byte for byte. Q4_0 searches: of the scales near ggml's it keeps, for each
block, the one with the least squared error (after rounding to fp16), ggml's own among the candidates, so that no block
is worse than ggml's reference rule makes it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from llamita.errors import FormatError
from llamita.formats import quantize_blocks, quantize_k
from llamita.formats.quantize_blocks import BLOCK, Bytes, Floats
from llamita.formats.quantize_k import SUPER

__all__ = ["BLOCK", "TYPES", "WRITTEN_TYPES", "Bytes", "Floats", "TensorType", "TypeName", "dequantize", "quantize"]

TypeName = Literal[
    "F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "IQ4_NL", "MXFP4",
    "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_XS", "TQ1_0", "TQ2_0",
]  # fmt: skip

_CHUNK_BLOCKS = 4096  # blocks quantised at a time: 512 KiB of floats stay in the cache
_HALF_MAX = float(np.finfo(np.float16).max)

# Q4_0: the inverse scales tried, relative to ggml's: 8 / (the number with the largest magnitude). Beyond 1, that
# number is clipped and the others get finer steps; below 1, it gets a smaller code. On the trained weights of
# stories260K these 9 leave 0.893 of the squared error of ggml's rule; 15 leave 0.890, 101 leave 0.889.
_SEARCH = tuple(float(x) for x in np.linspace(0.85, 1.25, 9))


@dataclasses.dataclass(frozen=True)
class TensorType:
    """A GGUF tensor type: its number there, how many numbers a block holds and in how many bytes."""

    name: TypeName
    number: int
    block_elements: int
    block_bytes: int

    def num_bytes(self, num_elements: int) -> int:
        """Bytes of a tensor with this many elements (whole blocks)."""
        return num_elements // self.block_elements * self.block_bytes

    def fits(self, row_length: int) -> bool:
        """Whether rows of this length are whole blocks."""
        return row_length % self.block_elements == 0


def _table(*types: TensorType) -> dict[str, TensorType]:
    return {kind.name: kind for kind in types}


TYPES: dict[str, TensorType] = _table(
    TensorType("F32", 0, 1, 4),
    TensorType("F16", 1, 1, 2),
    TensorType("Q4_0", 2, BLOCK, 18),
    TensorType("Q4_1", 3, BLOCK, 20),
    TensorType("Q5_0", 6, BLOCK, 22),
    TensorType("Q5_1", 7, BLOCK, 24),
    TensorType("Q8_0", 8, BLOCK, 34),
    TensorType("Q2_K", 10, SUPER, 84),
    TensorType("Q3_K", 11, SUPER, 110),
    TensorType("Q4_K", 12, SUPER, 144),
    TensorType("Q5_K", 13, SUPER, 176),
    TensorType("Q6_K", 14, SUPER, 210),
    TensorType("IQ4_NL", 20, BLOCK, 18),
    TensorType("IQ4_XS", 23, SUPER, 136),
    TensorType("BF16", 30, 1, 2),
    TensorType("TQ1_0", 34, SUPER, 54),
    TensorType("TQ2_0", 35, SUPER, 66),
    TensorType("MXFP4", 39, BLOCK, 17),
)


WRITTEN_TYPES: tuple[TypeName, ...] = ("F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1")  # the others are only read


def quantize(array: NDArray[Any], type: TypeName, where: str = "tensor") -> Bytes:
    """The bytes of an array [..., row length] in this type, one of WRITTEN_TYPES, flat.

    Raises FormatError naming `where` if a number is NaN or infinite or too large for the type, or if the rows are not
    whole blocks.
    """
    assert type in WRITTEN_TYPES, f"{type} is only read"
    row_length = array.shape[-1] if array.ndim else 1
    if not TYPES[type].fits(row_length):
        raise FormatError(
            f"cannot store {where} as {type}: rows of {row_length} numbers are not whole blocks of "
            f"{TYPES[type].block_elements}; use F16"
        )
    flat = np.ascontiguousarray(array, dtype=np.float32).reshape(-1)
    out = np.empty(TYPES[type].num_bytes(flat.size), dtype=np.uint8)
    for numbers, target in _chunks(flat, out, TYPES[type]):
        finite = np.isfinite(numbers)
        if not finite.all():
            raise FormatError(
                f"cannot store {where} as {type}: expected finite numbers, found {numbers[~finite][0]}; "
                "the weights are broken"
            )
        with np.errstate(over="ignore", divide="ignore"):
            encoded = _ENCODERS[type](numbers)
        if encoded is None:
            largest = np.abs(numbers).max()
            raise FormatError(f"cannot store {where} as {type}: its largest number {largest:.6g} is too large; use F32")
        target[:] = encoded.reshape(-1)
    return out


def dequantize(data: NDArray[Any] | bytes | memoryview, type: TypeName, shape: tuple[int, ...]) -> Floats:
    """The numbers [shape] that the bytes hold; a new array. The data must have exactly the shape's bytes."""
    raw = np.frombuffer(data, dtype=np.uint8)
    out = np.empty(shape, dtype=np.float32)
    flat = out.reshape(-1)
    assert raw.size == TYPES[type].num_bytes(flat.size), f"{raw.size} bytes are not {flat.size} numbers of {type}"
    with np.errstate(all="ignore"):  # damaged scales give infinities and NaN, as they do everywhere else
        for numbers, source in _chunks(flat, raw, TYPES[type]):
            numbers[:] = _DECODERS[type](source.reshape(-1, TYPES[type].block_bytes)).reshape(-1)
    return out


def _chunks(flat: Floats, data: Bytes, kind: TensorType) -> Iterator[tuple[Floats, Bytes]]:
    """Matching slices of the numbers and the bytes, each a whole number of blocks."""
    elements = _CHUNK_BLOCKS * BLOCK
    for start in range(0, flat.size, elements):
        numbers = flat[start : start + elements]
        first = kind.num_bytes(start)
        yield numbers, data[first : first + kind.num_bytes(numbers.size)]


def _bytes(array: NDArray[Any]) -> Bytes:
    return np.ascontiguousarray(array).view(np.uint8)


def _halves(values: Floats) -> NDArray[np.float16] | None:
    """fp16, or None if one of them would become infinite."""
    halves = values.astype("<f2")
    return None if np.isinf(halves).any() else halves


# ---------------------------------------------------------------- plain types


def _encode_f32(x: Floats) -> Bytes | None:
    return _bytes(x.astype("<f4"))


def _encode_f16(x: Floats) -> Bytes | None:
    halves = _halves(x)
    return None if halves is None else _bytes(halves)


def _encode_bf16(x: Floats) -> Bytes | None:
    bits = x.view(np.uint32).astype(np.uint64)
    rounded = (bits + 0x7FFF + ((bits >> np.uint64(16)) & np.uint64(1))) >> np.uint64(16)  # nearest, ties to even
    return None if ((rounded & 0x7FFF) == 0x7F80).any() else _bytes(rounded.astype("<u2"))


def _decode_f32(raw: Bytes) -> Floats:
    return raw.view("<f4").astype(np.float32)


def _decode_f16(raw: Bytes) -> Floats:
    return raw.view("<f2").astype(np.float32)


def _decode_bf16(raw: Bytes) -> Floats:
    numbers: Floats = (raw.view("<u2").astype(np.uint32) << np.uint32(16)).view(np.float32)
    return numbers


# ---------------------------------------------------------------- blocks of 32; n blocks at once


def _encode_q8_0(x: Floats) -> Bytes | None:
    blocks = x.reshape(-1, BLOCK)
    scale = np.abs(blocks).max(axis=1, keepdims=True) / np.float32(127)
    scaled = blocks * _inverse(scale)
    magnitude = np.abs(scaled)
    whole = np.floor(magnitude)
    rounded = np.copysign(whole + np.floor(2 * (magnitude - whole)), scaled)  # C's roundf: halves go away from zero
    halves = _halves(scale)
    if halves is None:
        return None
    return np.concatenate([_bytes(halves), rounded.astype(np.int8).view(np.uint8)], axis=1)


def _encode_q4_0(x: Floats) -> Bytes | None:
    """Works on the transpose [32, n], where sums and maxima over a block are whole-row operations."""
    columns = np.ascontiguousarray(x.reshape(-1, BLOCK).T)
    largest = np.take_along_axis(columns, np.abs(columns).argmax(axis=0)[None], axis=0)[0]
    plain = _halves(largest / np.float32(-8))
    if plain is None:
        return None
    best_scale = plain.astype(np.float32)
    inverse = _inverse(largest / np.float32(-8))
    best_codes = _codes(columns, inverse)
    best_error = _squared_error(columns, best_codes, best_scale)
    for factor in _SEARCH:
        codes = _codes(columns, inverse * np.float32(factor))
        scale = _half_rounded(_least_squares_scale(columns, codes))
        error = _squared_error(columns, codes, scale)
        better = error < best_error
        best_error = np.where(better, error, best_error)
        best_scale = np.where(better, scale, best_scale)
        best_codes = np.where(better, codes, best_codes)
    return _pack_nibbles([best_scale.astype("<f2")], (best_codes + np.float32(8)).astype(np.uint8).T)


def _codes(columns: Floats, inverse: Floats) -> Floats:
    """q - 8 for each number, in -8 … 7: ggml's trunc(x·inverse + 8.5), clipped. [32, n]"""
    shifted = columns * inverse
    shifted += np.float32(8.5)
    np.clip(shifted, 0, 15.5, out=shifted)
    np.floor(shifted, out=shifted)
    shifted -= np.float32(8)
    return shifted


def _least_squares_scale(columns: Floats, codes: Floats) -> Floats:
    """The d that makes Σ(x - d·q)² least for given codes: Σxq / Σq². [n]"""
    power = _column_sums(codes * codes)
    return np.divide(_column_sums(columns * codes), power, out=np.zeros_like(power), where=power > 0)


def _squared_error(columns: Floats, codes: Floats, scale: Floats) -> Floats:
    difference = columns - codes * scale
    difference *= difference
    return _column_sums(difference)


def _column_sums(columns: Floats) -> Floats:
    """Σ over axis 0, row after row: one fixed order on every machine."""
    total: Floats = columns[0].copy()
    for row in columns[1:]:
        total += row
    return total


def _half_rounded(scale: Floats) -> Floats:
    """Rounded to fp16 and kept inside its range."""
    clipped: Floats = np.clip(scale, -_HALF_MAX, _HALF_MAX)
    return clipped.astype(np.float16).astype(np.float32)


def _encode_q4_1(x: Floats) -> Bytes | None:
    blocks = x.reshape(-1, BLOCK)
    low = blocks.min(axis=1, keepdims=True)
    scale = (blocks.max(axis=1, keepdims=True) - low) / np.float32(15)
    codes = np.trunc((blocks - low) * _inverse(scale) + np.float32(0.5)).clip(0, 15).astype(np.uint8)
    halves, low_halves = _halves(scale), _halves(low)
    return None if halves is None or low_halves is None else _pack_nibbles([halves, low_halves], codes)


def _inverse(scale: Floats) -> Floats:
    """1 / scale, and 0 for 0: a block of zeros gets codes of zeros. (So does one whose inverse overflows.)"""
    inverse = np.divide(np.float32(1), scale, out=np.zeros_like(scale), where=scale != 0)
    return np.where(np.isfinite(inverse), inverse, np.float32(0))


def _pack_nibbles(headers: list[NDArray[np.float16]], codes: Bytes) -> Bytes:
    """[n, bytes of a block] from fp16 headers [n] or [n, 1] and codes 0 … 15 [n, 32]."""
    packed = codes[:, : BLOCK // 2] | (codes[:, BLOCK // 2 :] << np.uint8(4))
    return np.concatenate([*(_bytes(h.reshape(-1, 1)) for h in headers), packed], axis=1)


_ENCODERS = {
    "F32": _encode_f32, "F16": _encode_f16, "BF16": _encode_bf16,
    "Q8_0": _encode_q8_0, "Q4_0": _encode_q4_0, "Q4_1": _encode_q4_1,
}  # fmt: skip
_DECODERS = {
    "F32": _decode_f32, "F16": _decode_f16, "BF16": _decode_bf16,
    "Q8_0": quantize_blocks.decode_q8_0, "Q4_0": quantize_blocks.decode_q4_0, "Q4_1": quantize_blocks.decode_q4_1,
    "Q5_0": quantize_blocks.decode_q5_0, "Q5_1": quantize_blocks.decode_q5_1,
    "IQ4_NL": quantize_blocks.decode_iq4_nl, "MXFP4": quantize_blocks.decode_mxfp4,
    "Q2_K": quantize_k.decode_q2_k, "Q3_K": quantize_k.decode_q3_k, "Q4_K": quantize_k.decode_q4_k,
    "Q5_K": quantize_k.decode_q5_k, "Q6_K": quantize_k.decode_q6_k, "IQ4_XS": quantize_k.decode_iq4_xs,
    "TQ1_0": quantize_k.decode_tq1_0, "TQ2_0": quantize_k.decode_tq2_0,
}  # fmt: skip

"""Blocks of 32 numbers with a scale of their own to float32, in numpy: the bytes of n blocks at
once.

All scales are little-endian fp16. Bytes of a block, and its numbers:
    Q8_0    34: d, 32 int8 q                        x = d·q
    Q4_0    18: d, 16 bytes of two q                x = d·(q - 8); byte j: low half q[j], high half q[j + 16]
    Q4_1    20: d, m, 16 bytes of two q             x = d·q + m
    Q5_0    22: d, 4 bytes, 16 bytes of two q       x = d·(q - 16); bit j of the 4 bytes is the fifth of q[j]
    Q5_1    24: d, m, 4 bytes, 16 bytes of two q    x = d·q + m
    IQ4_NL  18: d, 16 bytes of two q                x = d·IQ4_VALUES[q]
    MXFP4   17: e (8 bits), 16 bytes of two q       x = 2^(e - 128)·MXFP4_VALUES[q]
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Bytes = NDArray[np.uint8]

BLOCK = 32

IQ4_VALUES = np.array([-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113], dtype=np.float32)
# OCP's E2M1, doubled.
MXFP4_VALUES = np.array([0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12], dtype=np.float32)


def half_column(blocks: Bytes, offset: int) -> Floats:
    """The fp16 at this byte of each block, [n, 1]."""
    return np.ascontiguousarray(blocks[:, offset : offset + 2]).view("<f2").astype(np.float32)


def spread_bits(packed: Bytes, bits: int, group_bytes: int) -> Bytes:
    """Codes [n, codes] of bytes [n, bytes]: a group of bytes holds the lowest bits of all of them
    first."""
    shifts = np.arange(0, 8, bits, dtype=np.uint8).reshape(-1, 1)
    codes: Bytes = (packed.reshape(len(packed), -1, 1, group_bytes) >> shifts) & np.uint8((1 << bits) - 1)
    return codes.reshape(len(packed), -1)


def _floats(codes: NDArray[Any]) -> Floats:
    return codes.astype(np.float32)


def _nibbles(packed: Bytes) -> Bytes:
    return spread_bits(packed, 4, BLOCK // 2)


def _codes_of_5_bits(fifth: Bytes, packed: Bytes) -> Bytes:
    """Codes 0 … 31 [n, 32] from 4 bytes of fifth bits and 16 of nibbles."""
    high = np.unpackbits(np.ascontiguousarray(fifth), axis=1, bitorder="little")
    codes: Bytes = _nibbles(packed) | (high << np.uint8(4))
    return codes


def decode_q8_0(blocks: Bytes) -> Floats:
    return half_column(blocks, 0) * _floats(blocks[:, 2:].view(np.int8))


def decode_q4_0(blocks: Bytes) -> Floats:
    numbers: Floats = half_column(blocks, 0) * (_floats(_nibbles(blocks[:, 2:])) - np.float32(8))
    return numbers


def decode_q4_1(blocks: Bytes) -> Floats:
    return half_column(blocks, 0) * _floats(_nibbles(blocks[:, 4:])) + half_column(blocks, 2)


def decode_q5_0(blocks: Bytes) -> Floats:
    codes = _floats(_codes_of_5_bits(blocks[:, 2:6], blocks[:, 6:]))
    numbers: Floats = half_column(blocks, 0) * (codes - np.float32(16))
    return numbers


def decode_q5_1(blocks: Bytes) -> Floats:
    codes = _floats(_codes_of_5_bits(blocks[:, 4:8], blocks[:, 8:]))
    return half_column(blocks, 0) * codes + half_column(blocks, 2)


def decode_iq4_nl(blocks: Bytes) -> Floats:
    return half_column(blocks, 0) * IQ4_VALUES[_nibbles(blocks[:, 2:])]


def decode_mxfp4(blocks: Bytes) -> Floats:
    exponent = blocks[:, :1].astype(np.uint32)
    subnormal = np.uint32(0x00200000) << np.minimum(exponent, np.uint32(1))
    normal = (np.maximum(exponent, np.uint32(1)) - np.uint32(1)) << np.uint32(23)
    scale = np.where(exponent < 2, subnormal, normal).astype(np.uint32).view(np.float32)
    numbers: Floats = scale * MXFP4_VALUES[_nibbles(blocks[:, 1:])]
    return numbers

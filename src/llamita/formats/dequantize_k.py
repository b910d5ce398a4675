"""Blocks of 256 numbers, in groups with small scales of their own, to float32, in numpy: the bytes
of n blocks at once.

All scales are little-endian fp16; d scales the groups' scales, dmin their minima. Bytes of a block, and its numbers:
    Q2_K    84: 16 (scale, minimum: 4 bits each), 64 of 2-bit q, d, dmin     x = d·scale·q - dmin·minimum  (16 a group)
    Q3_K   110: 32 of third bits, 64 of 2-bit q, 12 of 6-bit scales, d       x = d·(scale - 32)·(q - 4)    (16)
    Q4_K   144: d, dmin, 12 of 6-bit scales and minima, 128 of two q         x = d·scale·q - dmin·minimum  (32)
    Q5_K   176: as Q4_K, with 32 bytes of fifth bits before the q            x = d·scale·q - dmin·minimum  (32)
    Q6_K   210: 128 of low halves, 64 of 2 high bits, 16 int8 scales, d      x = d·scale·(q - 32)          (16)
    IQ4_XS 136: d, 2 of high bits and 4 of low halves of scales, 128 of two  x = d·(scale - 32)·IQ4_VALUES[q]  (32)
    TQ1_0   54: 32 and 16 of five ternary digits, 4 of four, d               x = d·(digit - 1)
    TQ2_0   66: 64 of 2-bit q, d                                             x = d·(q - 1)
The order of the products is ggml's: a float depends on it.
"""

from __future__ import annotations

import numpy as np

from llamita.formats.dequantize import IQ4_VALUES, Bytes, Floats, half_column, spread_bits

SUPER = 256


def _scaled(scales: Floats, codes: Bytes | Floats) -> Floats:
    """scale·code, [n, groups, codes of a group], from [n, groups] and [n, 256]."""
    groups = codes.reshape(len(codes), scales.shape[1], -1).astype(np.float32)
    return np.multiply(scales[:, :, None], groups)


def _flat(groups: Floats) -> Floats:
    return groups.reshape(len(groups), SUPER)


def decode_q2_k(blocks: Bytes) -> Floats:
    scales = half_column(blocks, 80) * (blocks[:, :16] & np.uint8(15)).astype(np.float32)
    minima = half_column(blocks, 82) * (blocks[:, :16] >> np.uint8(4)).astype(np.float32)
    return _flat(_scaled(scales, spread_bits(blocks[:, 16:80], 2, 32)) - minima[:, :, None])


def decode_q3_k(blocks: Bytes) -> Floats:
    low, high = spread_bits(blocks[:, 96:104], 4, 8), spread_bits(blocks[:, 104:108], 2, 4)
    scales = half_column(blocks, 108) * ((low | (high << np.uint8(4))).astype(np.float32) - np.float32(32))
    codes = spread_bits(blocks[:, 32:96], 2, 32) | (spread_bits(blocks[:, :32], 1, 32) << np.uint8(2))
    return _flat(_scaled(scales, codes.astype(np.float32) - np.float32(4)))


def _scales_and_minima(blocks: Bytes) -> tuple[Floats, Floats]:
    """d·scale and dmin·minimum of Q4_K and Q5_K, [n, 8] each.

    The first four scales are the low 6 bits of bytes 0-3, the minima those of bytes 4-7; the last
    four have their low halves in bytes 8-11 (minima: the high half there) and their 2 high bits in
    those of bytes 0-3 (4-7).
    """
    first, second, third = blocks[:, 4:8], blocks[:, 8:12], blocks[:, 12:16]
    low, top, half = np.uint8(63), np.uint8(0x30), np.uint8(15)
    scales = np.concatenate([first & low, (third & half) | ((first >> np.uint8(2)) & top)], axis=1)
    minima = np.concatenate([second & low, (third >> np.uint8(4)) | ((second >> np.uint8(2)) & top)], axis=1)
    return (
        half_column(blocks, 0) * scales.astype(np.float32),
        half_column(blocks, 2) * minima.astype(np.float32),
    )


def decode_q4_k(blocks: Bytes) -> Floats:
    scales, minima = _scales_and_minima(blocks)
    return _flat(_scaled(scales, spread_bits(blocks[:, 16:], 4, 32)) - minima[:, :, None])


def decode_q5_k(blocks: Bytes) -> Floats:
    scales, minima = _scales_and_minima(blocks)
    codes = spread_bits(blocks[:, 48:], 4, 32) | (spread_bits(blocks[:, 16:48], 1, 32) << np.uint8(4))
    return _flat(_scaled(scales, codes) - minima[:, :, None])


def decode_q6_k(blocks: Bytes) -> Floats:
    scales = half_column(blocks, 208) * blocks[:, 192:208].view(np.int8).astype(np.float32)
    codes = spread_bits(blocks[:, :128], 4, 64) | (spread_bits(blocks[:, 128:192], 2, 32) << np.uint8(4))
    return _flat(_scaled(scales, codes.astype(np.float32) - np.float32(32)))


def decode_iq4_xs(blocks: Bytes) -> Floats:
    low = np.stack([blocks[:, 4:8] & np.uint8(15), blocks[:, 4:8] >> np.uint8(4)], axis=2).reshape(-1, 8)
    high = ((blocks[:, 2:4, None] >> np.array([0, 2, 4, 6], dtype=np.uint8)) & np.uint8(3)).reshape(-1, 8)
    scales = half_column(blocks, 0) * ((low | (high << np.uint8(4))).astype(np.float32) - np.float32(32))
    return _flat(_scaled(scales, IQ4_VALUES[spread_bits(blocks[:, 8:], 4, 16)]))


def _ternary_digits(packed: Bytes, digits: int) -> Bytes:
    """0 … 2, [n, digits · bytes]: the leading ternary digits of byte / 256, the first of all bytes
    first."""
    powers = np.array([1, 3, 9, 27, 81], dtype=np.uint8)[:digits, None]
    remainders = packed[:, None, :] * powers  # modulo 256
    return ((remainders.astype(np.uint16) * np.uint16(3)) >> np.uint16(8)).astype(np.uint8).reshape(len(packed), -1)


def decode_tq1_0(blocks: Bytes) -> Floats:
    parts = [
        _ternary_digits(blocks[:, :32], 5), _ternary_digits(blocks[:, 32:48], 5), _ternary_digits(blocks[:, 48:52], 4)
    ]  # fmt: skip
    digits = np.concatenate(parts, axis=1).astype(np.float32) - np.float32(1)
    return np.multiply(half_column(blocks, 52), digits)


def decode_tq2_0(blocks: Bytes) -> Floats:
    codes = spread_bits(blocks[:, :64], 2, 32).astype(np.float32)
    return np.multiply(half_column(blocks, 64), codes - np.float32(1))

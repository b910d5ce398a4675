"""The error that the quantizer's search makes small."""

from __future__ import annotations

import numpy as np

from llamita.formats.tensor_types import TYPES, TypeName, dequantize


def block_errors(array: np.ndarray, data: np.ndarray, name: TypeName) -> np.ndarray:
    """The squared error of each block, weighted in Q4_0 and Q5_0 (engine/src/kernels/quantize_rows.h)."""
    blocks = array.astype(np.float64).reshape(-1, TYPES[name].block_elements)
    squares = np.square(blocks)
    weights = np.sqrt(squares.mean(axis=1, keepdims=True) + squares) if name in ("Q4_0", "Q5_0") else 1.0
    return (weights * np.square(dequantize(data, name, blocks.shape) - blocks)).sum(axis=1)

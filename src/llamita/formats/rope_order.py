"""Permutes rows of q and k between the RoPE orders of Hugging Face and of GGUF, Meta and llama2.c.

RoPE rotates S/2 pairs of numbers in each head of size S. Hugging Face keeps pair i in rows
(i, i + S/2) of the head (two halves); the other formats keep it in rows (2i, 2i + 1) (interleaved).
This is the only place that converts between them. v is never permuted.

Shape letters: N heads (query heads for q, kv heads for k), S head size, D hidden.
"""

from __future__ import annotations

from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

Scalar = TypeVar("Scalar", bound=np.generic)


def permute_qk(weight: NDArray[Scalar], num_heads: int) -> NDArray[Scalar]:
    """Hugging Face's order to interleaved: row i + half·S/2 of a head becomes row 2i + half.

    weight: [N*S, D], or a bias [N*S]. Returns a new array."""
    return _swap(weight, num_heads, inner=(2, -1))


def unpermute_qk(weight: NDArray[Scalar], num_heads: int) -> NDArray[Scalar]:
    """Interleaved order to Hugging Face's: row 2i + half of a head becomes row i + half·S/2.

    weight: [N*S, D], or a bias [N*S]. Returns a new array."""
    return _swap(weight, num_heads, inner=(-1, 2))


def _swap(weight: NDArray[Scalar], num_heads: int, inner: tuple[int, int]) -> NDArray[Scalar]:
    rows = weight.shape[0]
    assert rows % (2 * num_heads) == 0, f"{rows} rows are not {num_heads} heads of even size"
    split = weight.reshape(num_heads, *inner, *weight.shape[1:])
    swapped: NDArray[Scalar] = np.array(split.swapaxes(1, 2), order="C").reshape(weight.shape)
    return swapped

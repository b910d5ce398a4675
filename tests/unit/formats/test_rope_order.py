"""The permutation of q and k: checked by hand, inverted, and without changing its input."""

from __future__ import annotations

import numpy as np
import pytest

from llamita.formats.rope_order import permute_qk, unpermute_qk


def test_one_head_by_hand() -> None:
    halves = np.arange(8.0)[:, None]  # pairs are (0, 4), (1, 5), (2, 6), (3, 7)
    assert permute_qk(halves, 1)[:, 0].tolist() == [0, 4, 1, 5, 2, 6, 3, 7]
    assert unpermute_qk(halves, 1)[:, 0].tolist() == [0, 2, 4, 6, 1, 3, 5, 7]


def test_heads_stay_apart_and_biases_work() -> None:
    rows = np.arange(12.0)
    assert permute_qk(rows, 3).tolist() == [0, 2, 1, 3, 4, 6, 5, 7, 8, 10, 9, 11]


@pytest.mark.parametrize(("heads", "size", "width"), [(1, 2, 1), (4, 16, 5), (8, 6, 7), (3, 128, 2)])
def test_round_trip(heads: int, size: int, width: int) -> None:
    weight = np.random.default_rng(0).standard_normal((heads * size, width)).astype(np.float32)
    kept = weight.copy()
    paired = permute_qk(weight, heads)
    assert np.array_equal(unpermute_qk(paired, heads), weight)
    assert np.array_equal(permute_qk(unpermute_qk(weight, heads), heads), weight)
    assert not np.shares_memory(paired, weight)
    assert np.array_equal(weight, kept)


def test_size_two_is_the_identity_but_a_copy() -> None:
    weight = np.arange(4.0).reshape(4, 1)
    paired = permute_qk(weight, 2)
    assert np.array_equal(paired, weight) and not np.shares_memory(paired, weight)


def test_rotation_is_the_same_in_both_orders() -> None:
    """Rotating halves and then permuting is permuting and then rotating neighbors."""
    size, rng = 8, np.random.default_rng(1)
    weight, x = rng.standard_normal((2 * size, 4)), rng.standard_normal(4)
    angle = 0.3 * np.arange(1, size // 2 + 1)
    cos, sin = np.cos(angle), np.sin(angle)
    halves = (weight @ x).reshape(2, 2, size // 2)
    turned_halves = np.stack([halves[:, 0] * cos - halves[:, 1] * sin, halves[:, 1] * cos + halves[:, 0] * sin], axis=1)
    pairs = (permute_qk(weight, 2) @ x).reshape(2, size // 2, 2)
    turned_pairs = np.stack(
        [pairs[..., 0] * cos - pairs[..., 1] * sin, pairs[..., 1] * cos + pairs[..., 0] * sin], axis=2
    )
    assert np.allclose(permute_qk(turned_halves.reshape(-1, 1), 2)[:, 0], turned_pairs.reshape(-1))

"""Quantisers against the gguf package's, against their own bounds, and on numbers that cannot be stored."""

from __future__ import annotations

import gguf
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from llamita.errors import FormatError
from llamita.formats.gguf import BLOCK_SIZES
from llamita.formats.quantize import TYPES, WRITTEN_TYPES, dequantize, quantize

NAMES = list(WRITTEN_TYPES)
BLOCKED = ["Q8_0", "Q4_0", "Q4_1"]


def oracle_type(name: str) -> gguf.GGMLQuantizationType:
    return gguf.GGMLQuantizationType[name]


def oracle_bytes(array: np.ndarray, name: str) -> np.ndarray:
    return gguf.quants.quantize(array, oracle_type(name)).view(np.uint8).reshape(-1)


def sample(rows: int = 40, width: int = 96) -> np.ndarray:
    """Rows of many sizes, some with outliers, some all zero, some all alike."""
    rng = np.random.default_rng(7)
    array = rng.standard_normal((rows, width)) * 10.0 ** rng.integers(-4, 3, (rows, 1))
    array[0] = 0
    array[1, ::2] = 0
    array[2] = 0.25
    array[3] = -3.5
    array[4, 5] = 60
    array[5] = np.abs(array[5])
    return array.astype(np.float32)


def test_types_are_the_packages() -> None:
    for name, kind in TYPES.items():
        assert int(oracle_type(name)) == kind.number
        assert gguf.GGML_QUANT_SIZES[oracle_type(name)] == (kind.block_elements, kind.block_bytes)
        assert BLOCK_SIZES[kind.number] == (name, kind.block_elements, kind.block_bytes)
    for number, (name, elements, size) in BLOCK_SIZES.items():
        assert gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType(number)] == (elements, size), name


@pytest.mark.parametrize("name", ["F32", "F16", "BF16", "Q8_0", "Q4_1"])
def test_bytes_are_the_oracles(name: str) -> None:
    assert np.array_equal(quantize(sample(), name), oracle_bytes(sample(), name))


@pytest.mark.parametrize("name", NAMES)
def test_numbers_are_the_oracles(name: str) -> None:
    data = quantize(sample(), name)
    theirs = gguf.quants.dequantize(data.reshape(sample().shape[0], -1), oracle_type(name))
    assert np.array_equal(dequantize(data, name, sample().shape), theirs.reshape(sample().shape))


@pytest.mark.parametrize("scale", [1e-3, 1.0, 100.0])
def test_q4_0_is_never_worse_than_the_reference_rule(scale: float) -> None:
    array = (np.random.default_rng(3).standard_normal((300, 64)) * scale).astype(np.float32)
    array[0], array[1, :32] = 0, 1e-9

    def block_errors(data: np.ndarray) -> np.ndarray:
        difference = dequantize(data, "Q4_0", array.shape).astype(np.float64) - array
        return np.square(difference).reshape(-1, 32).sum(axis=1)

    ours, theirs = block_errors(quantize(array, "Q4_0")), block_errors(oracle_bytes(array, "Q4_0"))
    assert (ours <= theirs * (1 + 1e-5) + 1e-12).all()
    assert ours.sum() < 0.93 * theirs.sum()  # the search pays


@given(
    arrays.arrays(np.float32, (3, 32), elements=st.floats(-1000, 1000, width=32, allow_nan=False)),
    st.sampled_from(BLOCKED),
)
@settings(max_examples=60, deadline=None)
def test_errors_are_bounded(array: np.ndarray, name: str) -> None:
    """No number is farther off than its block's step (and what fp16 rounds off the scale)."""
    out = dequantize(quantize(array, name), name, array.shape)
    largest = np.abs(array).max(axis=1, keepdims=True)
    spread = array.max(axis=1, keepdims=True) - array.min(axis=1, keepdims=True)
    step = {"Q8_0": largest / 127 / 2, "Q4_0": largest / 4, "Q4_1": spread / 15 / 2 + largest / 1024}[name]
    assert (np.abs(out - array) <= step * 1.02 + largest / 1024 + 1e-4).all()


@pytest.mark.parametrize("name", NAMES)
def test_zeros_stay_zeros_and_nothing_is_random(name: str) -> None:
    zeros = np.zeros((2, 64), dtype=np.float32)
    assert not dequantize(quantize(zeros, name), name, zeros.shape).any()
    kept = sample()
    assert np.array_equal(quantize(kept, name), quantize(sample(), name))
    assert np.array_equal(kept, sample())  # the input is left alone


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_broken_weights_are_refused_by_name(name: str, bad: float) -> None:
    array = sample(rows=200_000 // 96)
    array[-1, -1] = bad
    with pytest.raises(FormatError, match=r"tensor model\.norm\.weight.*expected finite numbers, found"):
        quantize(array, name, "tensor model.norm.weight")


TOO_LARGE = [("F16", 7e4), ("Q8_0", 1e7), ("Q4_0", 6e5), ("Q4_1", 1.2e6), ("BF16", 3.4e38)]


@pytest.mark.parametrize(("name", "largest"), TOO_LARGE)
def test_what_is_too_large_is_refused(name: str, largest: float) -> None:
    array = np.zeros((1, 32), dtype=np.float32)
    array[0, 3] = largest
    with pytest.raises(FormatError, match=rf"as {name}: its largest number .* is too large; use F32"):
        quantize(array, name)


@pytest.mark.parametrize("name", BLOCKED)
def test_rows_that_are_no_blocks_are_refused(name: str) -> None:
    assert not TYPES[name].fits(172)
    with pytest.raises(FormatError, match="rows of 172 numbers are not whole blocks of 32"):
        quantize(np.zeros((2, 172), dtype=np.float32), name)

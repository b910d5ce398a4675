"""Quantizers compared with the gguf package and with error bounds; numbers that cannot be
stored."""

from __future__ import annotations

import gguf
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from llamita.errors import FormatError
from llamita.formats import tensor_types as module
from llamita.formats.tensor_types import OTHER_TYPES, TYPES, WRITTEN_TYPES, dequantize, quantize
from tests.quantization_errors import block_errors

pytestmark = pytest.mark.usefixtures("engine_build")

NAMES = list(WRITTEN_TYPES)
BLOCKED = [name for name in NAMES if name not in ("F32", "F16", "BF16")]
SEARCHED = ["Q4_0", "Q4_1", "Q5_0", "Q5_1"]  # those of which the gguf package has the plain rule
K_TYPES = ["Q4_K", "Q5_K", "Q6_K"]


def oracle_type(name: str) -> gguf.GGMLQuantizationType:
    return gguf.GGMLQuantizationType[name]


def oracle_bytes(array: np.ndarray, name: str) -> np.ndarray:
    return gguf.quants.quantize(array, oracle_type(name)).view(np.uint8).reshape(-1)


def sample(rows: int = 40, width: int = 256) -> np.ndarray:
    """Rows of many magnitudes, some with outliers, all zero, or constant."""
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
    assert not TYPES.keys() & OTHER_TYPES.keys() and set(WRITTEN_TYPES) <= TYPES.keys()
    for name, kind in {**TYPES, **OTHER_TYPES}.items():
        assert kind.name == name and int(oracle_type(name)) == kind.number
        assert gguf.GGML_QUANT_SIZES[oracle_type(name)] == (kind.block_elements, kind.block_bytes)


@pytest.mark.parametrize("name", ["F32", "F16", "BF16", "Q8_0"])
def test_bytes_are_the_oracles(name: str) -> None:
    assert np.array_equal(quantize(sample(), name), oracle_bytes(sample(), name))


@pytest.mark.parametrize("name", NAMES)
def test_numbers_are_the_oracles(name: str) -> None:
    data = quantize(sample(), name)
    theirs = gguf.quants.dequantize(data.reshape(sample().shape[0], -1), oracle_type(name))
    assert np.array_equal(dequantize(data, name, sample().shape), theirs.reshape(sample().shape))


@pytest.mark.parametrize("scale", [1e-3, 1.0, 100.0])
@pytest.mark.parametrize("name", SEARCHED)
def test_no_block_is_worse_than_by_the_plain_rule(name: str, scale: float) -> None:
    array = (np.random.default_rng(3).standard_normal((300, 64)) * scale).astype(np.float32)
    array[0], array[1, :32] = 0, 1e-9
    ours, theirs = (block_errors(array, data, name) for data in (quantize(array, name), oracle_bytes(array, name)))
    assert (ours <= theirs * (1 + 1e-5) + 1e-12).all()
    assert ours.sum() < 0.9 * theirs.sum()  # the search pays


def plain_super_blocks(array: np.ndarray, name: str) -> np.ndarray:
    """What a K type's values are by the plain rule, [..., 256]: each group's scale and minimum just
    span its numbers, and are rounded to multiples of d = the largest / 63 (Q6_K: 127)."""
    if name == "Q6_K":
        groups = array.reshape(-1, 16, 16)
        scale = np.abs(groups).max(axis=2, keepdims=True) / 31
        d = np.maximum(scale.max(axis=1, keepdims=True) / 127, 1e-30).astype(np.float16).astype(np.float64)
        step = d * np.round(scale / d)
        return (np.round(groups / step).clip(-32, 31) * step).reshape(array.shape)
    groups = array.reshape(-1, 8, 32)
    low = np.minimum(groups.min(axis=2, keepdims=True), 0)
    scale = (groups.max(axis=2, keepdims=True) - low) / {"Q4_K": 15, "Q5_K": 31}[name]
    d, d_low = ((x.max(axis=1, keepdims=True) / 63).astype(np.float16).astype(np.float64) for x in (scale, -low))
    step, offset = d * np.round(scale / d), -d_low * np.round(-low / d_low)
    codes = np.round((groups - offset) / step).clip(0, {"Q4_K": 15, "Q5_K": 31}[name])
    return (codes * step + offset).reshape(array.shape)


@pytest.mark.parametrize("scale", [1e-2, 1.0, 100.0])
@pytest.mark.parametrize("name", K_TYPES)
def test_super_blocks_are_better_than_by_the_plain_rule(name: str, scale: float) -> None:
    array = (np.random.default_rng(4).standard_normal((100, 256)) * scale).astype(np.float32)
    array *= np.random.default_rng(5).uniform(0.2, 1, (100, 8, 1)).repeat(32, axis=2).reshape(100, 256)
    ours = block_errors(array, quantize(array, name), name)
    theirs = np.square(plain_super_blocks(array.astype(np.float64), name) - array).sum(axis=1)
    assert (ours <= theirs).all()
    assert ours.sum() < 0.85 * theirs.sum()


def search_symmetric(array: np.ndarray, zero: int, factors: list[float]) -> tuple[np.ndarray, np.ndarray]:
    """The engine's search for Q4_0 (zero 8) and Q5_0 (16), block after block in float32: codes and
    scales."""
    codes, scales = [], []
    zero32 = np.float32(zero)

    def code(block: np.ndarray, inverse: np.float32) -> np.ndarray:
        return np.trunc((block * inverse + (zero32 + np.float32(0.5))).clip(0, 2 * zero - 0.5)) - zero32

    def total(terms: np.ndarray) -> np.float32:
        return np.add.accumulate(terms, dtype=np.float32)[-1]  # from the first to the last

    def inverse_of(value: np.float32) -> np.float32:
        return np.float32(1) / value if abs(value) >= np.float32(1e-30) else np.float32(0)

    for block in array.reshape(-1, 32):
        weights = np.sqrt(total(np.square(block)) / np.float32(32) + np.square(block))
        extreme = block[np.abs(block).argmax()]
        best, best_gain = np.float32(0), np.float32(0)
        for factor in factors:
            trial = code(block, inverse_of(extreme) * -zero32 * np.float32(factor))
            products, squares = (total(trial * weights * other) for other in (block, trial))
            scale = products * inverse_of(squares)
            if products * scale > best_gain:
                best, best_gain = scale, products * scale
        found = []
        for scale in (extreme * np.float32(-1 / zero), best):
            stored = np.float32(np.float16(scale))
            coded = code(block, inverse_of(stored))
            found.append((total(weights * np.square(stored * coded - block)), stored, coded))
        _, scale, coded = found[1] if found[1][0] < found[0][0] else found[0]
        codes.append(coded)
        scales.append(scale)
    return np.array(codes), np.array(scales)


@pytest.mark.parametrize(
    ("name", "zero", "factors"),
    [
        ("Q4_0", 8, [0.85, 0.9, 0.95, 1.0, 1.05, 1.1, 1.15, 1.2, 1.25]),
        ("Q5_0", 16, [0.92, 0.95, 0.98, 1.0, 1.02, 1.05, 1.08, 1.11, 1.14]),
    ],
)
def test_the_search_equals_a_slow_search(name: str, zero: int, factors: list[float]) -> None:
    codes, scales = search_symmetric(sample(rows=8), zero, factors)
    expected = (scales[:, None] * codes).astype(np.float32).reshape(8, 256)
    assert np.array_equal(dequantize(quantize(sample(rows=8), name), name, (8, 256)), expected)


@pytest.mark.parametrize("name", BLOCKED)
def test_threads_do_not_matter(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    alone = quantize(sample(rows=33), name)
    monkeypatch.setattr(module, "_MIN_THREAD_ELEMENTS", 256)
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(5)), raising=False)
    assert np.array_equal(quantize(sample(rows=33), name), alone)


@given(
    arrays.arrays(np.float32, (3, 256), elements=st.floats(-1000, 1000, width=32, allow_nan=False)),
    st.sampled_from(BLOCKED),
)
@settings(max_examples=60, deadline=None)
def test_errors_are_bounded(array: np.ndarray, name: str) -> None:
    """No number is farther off than its block's step (and what fp16 rounds off the scale)."""
    out = dequantize(quantize(array, name), name, array.shape)
    kind = TYPES[name]
    values, blocks = out.reshape(-1, kind.block_elements), array.reshape(-1, kind.block_elements)
    largest = np.abs(blocks).max(axis=1, keepdims=True)
    if name == "Q8_0":
        assert (np.abs(values - blocks) <= largest / 127 / 2 * 1.02 + largest / 1024 + 1e-4).all()
    # Searched scales may clip a number for the others' sake: what is bounded is the sum.
    steps = {"Q8_0": 127, "Q4_0": 8, "Q4_1": 7.5, "Q5_0": 16, "Q5_1": 15.5, "Q4_K": 7, "Q5_K": 14, "Q6_K": 28}[name]
    error = np.sqrt(np.square(values.astype(np.float64) - blocks).mean(axis=1, keepdims=True))
    assert (error <= largest * (1 / steps + 1 / 1024) + 1e-4).all()


@pytest.mark.parametrize("name", NAMES)
def test_zeros_stay_zeros_and_results_repeat(name: str) -> None:
    zeros = np.zeros((2, 256), dtype=np.float32)
    assert not dequantize(quantize(zeros, name), name, zeros.shape).any()
    kept = sample()
    assert np.array_equal(quantize(kept, name), quantize(sample(), name))
    assert np.array_equal(kept, sample())  # the input is left alone


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_broken_weights_are_refused_by_name(name: str, bad: float) -> None:
    array = sample(rows=200_000 // 256)
    array[-1, -1] = bad
    with pytest.raises(FormatError, match=r"tensor model\.norm\.weight.*expected finite numbers, found"):
        quantize(array, name, "tensor model.norm.weight")


TOO_LARGE = [
    *(("F16", 7e4), ("BF16", 3.4e38), ("Q8_0", 1e7), ("Q4_0", 6e5), ("Q5_0", 1.2e6), ("Q4_1", 1.2e6), ("Q5_1", 7e4)),
    *((name, 5e6) for name in K_TYPES),
]


@pytest.mark.parametrize(("name", "largest"), TOO_LARGE)
def test_what_is_too_large_is_refused(name: str, largest: float) -> None:
    array = np.zeros((1, 256), dtype=np.float32)
    array[0, 3] = largest
    with pytest.raises(FormatError, match=rf"as {name}: its largest number, .*, is too large; use F32"):
        quantize(array, name)


@pytest.mark.parametrize("name", BLOCKED)
def test_rows_that_are_not_whole_blocks_are_refused(name: str) -> None:
    assert not TYPES[name].fits(172)
    with pytest.raises(FormatError, match=f"rows of 172 numbers are not whole blocks of {TYPES[name].block_elements}"):
        quantize(np.zeros((2, 172), dtype=np.float32), name)

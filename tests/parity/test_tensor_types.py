"""Every tensor type that is read gives the values of the gguf package's dequantizer, bit for bit."""

from __future__ import annotations

import subprocess
from pathlib import Path

import gguf
import numpy as np
import pytest

from llamita.formats import tensor_types
from llamita.formats.tensor_types import dequantize
from tests.conftest import build_engine

TYPES = (
    *("F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "IQ4_NL", "MXFP4"),
    *("Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_XS", "TQ1_0", "TQ2_0"),
)
# Where a block's halves lie: the scales that random bytes would make huge, infinite or NaN.
SCALE_OFFSETS = {
    **dict.fromkeys(("Q8_0", "Q4_0", "Q5_0", "IQ4_NL", "IQ4_XS"), (0,)),
    **dict.fromkeys(("Q4_1", "Q5_1", "Q4_K", "Q5_K"), (0, 2)),
    **{"Q2_K": (80, 82), "Q3_K": (108,), "Q6_K": (208,), "TQ1_0": (52,), "TQ2_0": (64,)},
}
ROW_LENGTH = 512
# Zeros, the smallest and a middling subnormal, the smallest normal, the largest finite half, infinity.
EXTREME_HALVES = np.array([0x0000, 0x8000, 0x0001, 0x8001, 0x01FF, 0x0400, 0x7BFF, 0xFBFF, 0x7C00], "<u2")


def random_blocks(name: str, num_blocks: int, scales: np.ndarray, seed: int) -> np.ndarray:
    """Blocks of random codes as uint8 [num_blocks, bytes]; their halves are drawn from scales."""
    rng = np.random.default_rng(seed)
    _, block_bytes = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[name]]
    blocks = rng.integers(0, 256, (num_blocks, block_bytes), dtype=np.uint8)
    for offset in SCALE_OFFSETS.get(name, ()):
        blocks[:, offset : offset + 2] = rng.choice(scales, num_blocks).view(np.uint8).reshape(-1, 2)
    return blocks


def sane_halves(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 0.01, 1000).astype("<f2").view("<u2")


def rows_of(name: str) -> np.ndarray:
    """Rows of ROW_LENGTH as uint8 [num_rows, row_bytes]: sane scales, extreme ones, all bytes the same."""
    elements, block_bytes = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[name]]
    per_row = ROW_LENGTH // elements
    parts = [
        random_blocks(name, 64 * per_row, sane_halves(1), 2),
        random_blocks(name, 64 * per_row, EXTREME_HALVES, 3),
        np.repeat(np.arange(256, dtype=np.uint8), block_bytes * per_row).reshape(-1, block_bytes),
    ]
    return np.concatenate(parts).reshape(-1, per_row * block_bytes)


def expected_values(name: str, rows: np.ndarray) -> np.ndarray:
    with np.errstate(all="ignore"):
        return gguf.quants.dequantize(rows, gguf.GGMLQuantizationType[name]).astype(np.float32, copy=False)


def assert_same_bits(found: np.ndarray, expected: np.ndarray) -> None:
    assert found.shape == expected.shape
    same = (found.view(np.uint32) == expected.view(np.uint32)) | (np.isnan(found) & np.isnan(expected))
    where = np.argwhere(~same)
    assert not len(where), f"{len(where)} differ, first at {where[0]}: {found[~same][0]} for {expected[~same][0]}"
    assert np.isfinite(expected).mean() > 0.5


@pytest.fixture(scope="module")
def dequantize_rows(engine_build: Path) -> Path:
    return build_engine("dequantize_rows") / "dequantize_rows"


@pytest.mark.parametrize("name", TYPES)
def test_engine_reads_every_type(name: str, dequantize_rows: Path) -> None:
    rows = rows_of(name)
    command = [dequantize_rows, str(int(gguf.GGMLQuantizationType[name])), str(ROW_LENGTH)]
    done = subprocess.run(command, input=rows.tobytes(), capture_output=True, check=True, timeout=60)
    found = np.frombuffer(done.stdout, np.float32).reshape(len(rows), ROW_LENGTH)
    assert_same_bits(found, expected_values(name, rows))


@pytest.mark.parametrize("name", TYPES)
def test_python_reads_every_type(name: str) -> None:
    rows = rows_of(name)
    assert_same_bits(dequantize(rows, name, (len(rows), ROW_LENGTH)), expected_values(name, rows))


def test_every_type_without_codebooks_is_covered() -> None:
    """A type that the gguf package learns to read shows up here, to be read too or to be refused by name."""
    refused = {"IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S"}  # their codes index tables
    integers = {"I8", "I16", "I32", "I64", "F64"}
    never_stored = {"Q8_1", "Q8_K"}
    newer = {"NVFP4", "Q1_0"}
    known = {t.name for t in gguf.GGMLQuantizationType}
    assert known - refused - integers - never_stored - newer == set(TYPES) == set(tensor_types.TYPES)

"""Row lengths and micro-batches that fit."""

from __future__ import annotations

import numpy as np

from llamita.config import ModelConfig
from llamita.finetune.defaults import row_length, tokens_that_fit


def test_rows_hold_the_longest_example() -> None:
    assert row_length(np.array([10, 300]), 1024) == 640
    assert row_length(np.array([1000, 10]), 1024) == 1024
    assert row_length(np.array([5, 5]), 1024) == 64 and row_length(np.array([90]), 100) == 100


def test_a_pass_fits_the_gpu() -> None:
    """A 7B with frozen weights leaves 66 of 80 GB, of which a pass of some thousand tokens may take
    half; a 135M leaves room for more than is wanted; where the weights do not fit, a row is
    tried."""
    seven = ModelConfig(32000, 4096, 11008, 32, 32, 32, 128, 4096, tie_word_embeddings=False)
    assert 4_000 < tokens_that_fit(80 * 10**9, seven, lora=True) < 8_000
    assert tokens_that_fit(80 * 10**9, seven, lora=False) == 0
    small = ModelConfig(49152, 576, 1536, 30, 9, 3, 64, 8192)
    assert tokens_that_fit(80 * 10**9, small, lora=True) > 30_000

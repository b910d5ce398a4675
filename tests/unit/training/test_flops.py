"""Floating-point operations per token, and the peak of a device."""

from __future__ import annotations

import dataclasses

import pytest

torch = pytest.importorskip("torch")

from llamita.config import ModelConfig  # noqa: E402
from llamita.training.flops import flops_per_token, peak_flops  # noqa: E402

CPU = torch.device("cpu")
TINY = ModelConfig(50, 16, 24, 2, 4, 2, 4, 32)


def test_flops_count_the_classifier_once_and_no_lookups() -> None:
    weights = TINY.num_parameters
    assert flops_per_token(TINY, 32) == 6 * weights + 6 * 2 * 4 * 4 * 32
    untied = dataclasses.replace(TINY, tie_word_embeddings=False)
    assert flops_per_token(untied, 32) == flops_per_token(TINY, 32)
    peak = peak_flops(CPU, torch.float32)
    assert peak is not None and peak > 1e8

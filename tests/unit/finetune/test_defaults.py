"""Row lengths and micro-batches that fit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from llamita.config import ModelConfig
from llamita.finetune.base_model import BaseModel
from llamita.finetune.defaults import fill_defaults, fitting_tokens, row_length
from llamita.training import cpu_dtype
from llamita.training.distributed import Ranks
from tests.unit.finetune.conftest import make_config


def test_rows_hold_the_longest_example() -> None:
    assert row_length(np.array([10, 300]), 1024) == 640
    assert row_length(np.array([1000, 10]), 1024) == 1024
    assert row_length(np.array([5, 5]), 1024) == 64 and row_length(np.array([90]), 100) == 100


@pytest.mark.parametrize(
    ("changes", "speedup", "expected"),
    [
        ({"minutes": 1.0, "steps": None}, 2.0, "bfloat16"),
        ({"minutes": 1.0, "steps": None}, 0.1, "float32"),
        ({"steps": 10**6}, 2.0, "bfloat16"),
        ({"steps": None, "epochs": 1e5}, 2.0, "bfloat16"),
        ({"steps": 6}, 2.0, "float32"),  # it takes a second: the same bits on every machine
        ({"steps": 10**6, "dtype": "float32"}, 2.0, "float32"),
        ({"steps": 6, "dtype": "bfloat16"}, 0.1, "bfloat16"),
    ],
)
def test_a_cpu_takes_the_faster_type(
    chat_base: Path, changes: dict[str, Any], speedup: float, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cpu_dtype, "product_speedup", lambda: speedup)
    config = make_config(chat_base, Path("data"), Path("run"), **changes)
    ranks = Ranks(0, 1, torch.device("cpu"))
    assert fill_defaults(config, BaseModel(chat_base), ranks, 64, 64, 10_000).dtype == expected


def test_a_pass_fits_the_gpu() -> None:
    """A 7B with frozen weights leaves 66 of 80 GB, of which a pass of some thousand tokens may take
    half; a 135M leaves room for more than is wanted; where the weights do not fit, a row is
    tried."""
    seven = ModelConfig(32000, 4096, 11008, 32, 32, 32, 128, 4096, tie_word_embeddings=False)
    lora, full = (
        make_config(Path("base"), Path("data"), Path("run"), lora=lora, dtype="bfloat16") for lora in (True, False)
    )
    assert 4_000 < fitting_tokens(80 * 10**9, seven, lora) < 8_000
    assert fitting_tokens(80 * 10**9, seven, full) == 0
    small = ModelConfig(49152, 576, 1536, 30, 9, 3, 64, 8192)
    assert fitting_tokens(80 * 10**9, small, lora) > 30_000

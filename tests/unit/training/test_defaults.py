"""Defaults of training: presets, batch sizes, types, weight decay."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from llamita.config import PRESETS, TrainConfig  # noqa: E402
from llamita.errors import ConfigError  # noqa: E402
from llamita.training.defaults import decay_for, fill_defaults, model_config, noise_for  # noqa: E402
from llamita.training.distributed import Ranks  # noqa: E402
from llamita.training.planner import resolve_plan  # noqa: E402

CPU = torch.device("cpu")


def make_config(**changes: Any) -> TrainConfig:
    return TrainConfig(data=Path("store"), out=Path("run"), **changes)


def test_presets_have_the_sizes_in_their_names() -> None:
    for name, size in {"0.5M": 0.5e6, "1.5M": 1.5e6, "3M": 3e6, "7M": 7e6}.items():
        filled = fill_defaults(make_config(preset=name), CPU, 1)
        shape = model_config(filled, SimpleNamespace(vocab_size=4096, bos_id=0, eos_id=0))  # type: ignore[arg-type]
        assert abs(shape.num_parameters / size - 1) < 0.1, (name, shape.num_parameters)
        assert shape.head_dim in (32, 64)
    assert len(PRESETS) == 8


def test_defaults_fill_every_field_and_flags_override_them() -> None:
    filled = fill_defaults(make_config(), CPU, 1)
    assert filled.minutes == 10 and filled.micro_batch_size and filled.micro_batch_size * filled.context == 2048
    assert filled.dtype == "float32" and filled.learning_rate and filled.beta2
    shared = fill_defaults(make_config(steps=5), CPU, 2)
    assert shared.minutes is None and shared.micro_batch_size * 2 == filled.micro_batch_size
    own = fill_defaults(make_config(layers=3, hidden=96, heads=3, learning_rate=0.5, micro_batch_size=7), CPU, 1)
    assert (own.layers, own.kv_heads, own.ffn, own.learning_rate, own.micro_batch_size) == (3, 3, 256, 0.5, 7)
    wider = fill_defaults(make_config(preset="3M", layers=2, context=64), CPU, 1)
    assert (wider.layers, wider.hidden, wider.context) == (2, 192, 64)


def test_token_noise_grows_with_epochs() -> None:
    assert [noise_for(epochs) for epochs in (0.1, 4, 6, 8, 12, 1000)] == [0, 0, 0.05, 0.1, 0.2, 0.2]
    assert fill_defaults(make_config(epochs=6.0), CPU, 1).token_noise == 0.05
    assert fill_defaults(make_config(epochs=6.0, token_noise=0.0), CPU, 1).token_noise == 0


def test_weight_decay_grows_with_epochs() -> None:
    assert [decay_for(epochs) for epochs in (0.1, 2, 3, 15, 1000)] == [0.1, 0.1, 0.1, 0.5, 1.0]
    assert fill_defaults(make_config(epochs=9.0), CPU, 1).weight_decay == 0.3
    steps = make_config(steps=100, context=64, micro_batch_size=4)
    assert fill_defaults(steps, CPU, 1, epoch_tokens=100 * 256 // 9).weight_decay == pytest.approx(0.3, abs=1e-3)
    assert fill_defaults(dataclasses.replace(steps, weight_decay=0.2), CPU, 1, epoch_tokens=10).weight_decay == 0.2


@pytest.mark.parametrize("length", [{}, {"minutes": 1.0}, {"steps": 3}, {"epochs": 1.0}])
@pytest.mark.parametrize("shape", [{"layers": 1, "hidden": 30, "heads": 4}, {"preset": "3M", "hidden": 30, "heads": 4}])
def test_heads_of_an_odd_size_are_refused_by_their_options(shape: dict[str, Any], length: dict[str, Any]) -> None:
    """Before anything is measured."""
    with pytest.raises(ConfigError, match="--hidden 30 and --heads 4: expected heads of the same even size"):
        resolve_plan(
            make_config(**shape, **length), vocab_size=99, lengths=np.full(9, 99), ranks=Ranks(0, 1, CPU), say=print
        )


def test_types() -> None:
    assert fill_defaults(make_config(dtype="bfloat16"), CPU, 1).dtype == "bfloat16"

"""The network: cache, initialization, positions."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from llamita.model.kv_cache import KVCache
from llamita.model.llama import Llama, rope_frequencies
from tests.unit.model.conftest import make_config


def make_model(**changes: Any) -> Llama:
    random = torch.Generator().manual_seed(0)
    model = Llama(make_config(**changes)).initialize(random).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # far enough from 0 for positions to matter
            parameter.mul_(10 if parameter.ndim == 2 else 1)
    return model


def test_parameter_count_is_the_configs() -> None:
    for changes in ({}, {"tie_word_embeddings": False}, {"num_key_value_heads": 1}, {"head_dim": 16}):
        model = make_model(**changes)
        assert sum(p.numel() for p in model.parameters()) == model.config.num_parameters


def test_initialization_scales_what_writes_to_the_residual() -> None:
    model = Llama(make_config(hidden_size=128, head_dim=32, intermediate_size=512)).initialize()
    deviations = {name: p.std().item() for name, p in model.named_parameters() if p.ndim == 2}
    for name, deviation in deviations.items():
        expected = 0.02 / math.sqrt(2 * 3) if name.endswith(("o_proj.weight", "down_proj.weight")) else 0.02
        assert deviation == pytest.approx(expected, rel=0.05), name


@pytest.mark.parametrize("pieces", [[1] * 12, [12], [5, 1, 6], [1, 11]])
def test_cache_changes_nothing(pieces: list[int]) -> None:
    model = make_model()
    ids = torch.arange(24).view(2, 12)
    with torch.no_grad():
        whole = model(ids)
        cache = KVCache(model.config, 2, 12)
        parts = [model(part, cache) for part in ids.split(pieces, dim=1)]
    assert cache.num_tokens == 12
    torch.testing.assert_close(torch.cat(parts, dim=1), whole, atol=1e-5, rtol=1e-4)


def test_the_future_is_hidden() -> None:
    model = make_model()
    ids = torch.arange(12).view(1, 12)
    changed = ids.clone()
    changed[0, 8] = 50
    with torch.no_grad():
        before, after = model(ids), model(changed)
    assert torch.equal(before[:, :8], after[:, :8]) and not torch.allclose(before[:, 8:], after[:, 8:])


def test_attention_sees_distances_not_positions() -> None:
    """Rotary embeddings: shifting queries and keys together changes no attention weight (arXiv
    2104.09864)."""
    frequency = rope_frequencies(make_config(head_dim=8))
    query, key = torch.randn(2, 8, generator=torch.Generator().manual_seed(0))

    def dot(query_position: int, key_position: int) -> float:
        def turn(x: torch.Tensor, position: int) -> torch.Tensor:
            a, b = x.chunk(2)
            c, s = (frequency * position).cos(), (frequency * position).sin()
            return torch.cat((a * c - b * s, b * c + a * s))

        return float(turn(query, query_position) @ turn(key, key_position))

    assert dot(7, 3) == pytest.approx(dot(27, 23), abs=1e-4)
    assert dot(7, 3) != pytest.approx(dot(7, 5), abs=1e-3)


def test_rope_scaling() -> None:
    plain = rope_frequencies(make_config(head_dim=64))
    linear = rope_frequencies(make_config(head_dim=64, rope_scaling={"rope_type": "linear", "factor": 2.0}))
    torch.testing.assert_close(linear, plain / 2)
    llama3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    scaled = rope_frequencies(
        make_config(head_dim=64, rope_scaling=llama3 | {"original_max_position_embeddings": 8192})
    )
    wavelength = 2 * math.pi / plain
    short, long = wavelength < 8192 / 4, wavelength > 8192
    torch.testing.assert_close(scaled[short], plain[short])
    torch.testing.assert_close(scaled[long], plain[long] / 8)
    between = ~short & ~long
    assert ((scaled < plain) & (scaled > plain / 8))[between].all()

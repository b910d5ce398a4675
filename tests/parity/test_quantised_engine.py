"""The engine on a file of every type that is written: its logits are those of the same values stored as float32."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")

from llamita.convert.export import export
from llamita.convert.quant_mix import QUANT_MIXES
from llamita.convert.quantize import quantize_file
from llamita.engine import Model
from llamita.formats.gguf import read_gguf

pytestmark = pytest.mark.usefixtures("engine_build")


@pytest.fixture(scope="module")
def checkpoint(make_checkpoint: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    sizes = {"hidden_size": 256, "head_dim": 64, "intermediate_size": 512}
    return make_checkpoint(tmp_path_factory.mktemp("quantized") / "model", num_hidden_layers=3, **sizes)


@pytest.mark.parametrize("type", QUANT_MIXES)
def test_logits_are_those_of_the_values(checkpoint: Path, tmp_path: Path, type: str) -> None:
    """Where weights are quantized, activations are rounded to eight bits, which this random network makes 6 to 10 % of;
    rows or codes in a wrong order give more than 1."""
    export(checkpoint, tmp_path / "small.gguf", type, verify=False)
    quantize_file(tmp_path / "small.gguf", tmp_path / "values.gguf", "f32")
    assert {t.type for t in read_gguf(tmp_path / "values.gguf").tensors.values()} == {"F32"}
    ids = list(range(3, 40))
    found, expected = (Model(tmp_path / f"{name}.gguf").logits(ids).astype(np.float64) for name in ("small", "values"))
    with Model(tmp_path / "small.gguf", pack_later=True) as later, later.session() as session:
        for _ in range(2):  # from rows of the file, then from packed weights
            session.rewind(0)
            assert np.array_equal(session.feed_logits(ids), found)
    bound = 1e-5 if type == "f32" else 5e-3 if type in ("f16", "bf16") else 0.2
    assert np.linalg.norm(found - expected) < bound * np.linalg.norm(expected)

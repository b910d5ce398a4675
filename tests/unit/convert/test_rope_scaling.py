"""RoPE scaling survives a GGUF: exported, run by the engine, imported again; what GGUF cannot express is
refused, and what other runtimes do differently is noted."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")
from llamita.checkpoint import load_config
from llamita.convert.export import export
from llamita.convert.import_model import import_model
from llamita.errors import FormatError
from llamita.formats.gguf import read_gguf, write_gguf
from tests.rope_scalings import LONGROPE, YARN

DYNAMIC = {"rope_type": "dynamic", "factor": 4.0}


@pytest.mark.parametrize("scaling", [YARN, LONGROPE, LONGROPE | {"original_max_position_embeddings": 4096}])
def test_through_gguf_and_back(
    make_checkpoint: Callable[..., Path], tmp_path: Path, engine_build: Path, scaling: dict[str, Any]
) -> None:
    """Export and import compare logits with the engine's."""
    checkpoint = make_checkpoint(tmp_path / "model", rope_scaling=scaling)
    export(checkpoint, tmp_path / "model.gguf", "f32", verify=True)
    found = import_model(tmp_path / "model.gguf", tmp_path / "back", verify=True).config.rope_scaling
    assert found is not None
    attention = found.pop("attention_factor")
    assert abs(attention / scaling["attention_factor"] - 1) < 1e-6  # a float32 in the file
    assert found == {key: value for key, value in scaling.items() if key != "attention_factor"}


def test_dynamic_is_no_scaling_within_the_context(
    make_checkpoint: Callable[..., Path], tmp_path: Path, engine_build: Path
) -> None:
    checkpoint = make_checkpoint(tmp_path / "model", rope_scaling=DYNAMIC)
    report = export(checkpoint, tmp_path / "model.gguf", "f32", verify=True)
    assert any("dynamic begins beyond the context of 128 tokens" in note for note in report.notes)
    assert not any(key.startswith("llama.rope.scaling") for key in read_gguf(tmp_path / "model.gguf").metadata)
    export(checkpoint, tmp_path / "folder")
    assert load_config(tmp_path / "folder").rope_scaling == DYNAMIC
    with pytest.raises(
        FormatError, match="context: expected at most 128 tokens, found 256; beyond it RoPE scaling dyn"
    ):
        import_model(checkpoint, tmp_path / "longer", context_tokens=256)


def test_what_gguf_cannot_express_is_refused(make_checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    checkpoint = make_checkpoint(tmp_path / "model", rope_scaling=YARN | {"truncate": False})
    with pytest.raises(FormatError, match="rope_scaling: truncate: expected true, found false; GGUF has no key for it"):
        export(checkpoint, tmp_path / "model.gguf", "f32")
    assert not (tmp_path / "model.gguf").exists()


def test_notes_of_other_runtimes(make_checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    for name, scaling, said in (("yarn", YARN, "--yarn-beta-fast 16"), ("longrope", LONGROPE, "by the context they")):
        checkpoint = make_checkpoint(tmp_path / name, rope_scaling=scaling)
        report = export(checkpoint, tmp_path / f"{name}.gguf", "f32", verify=False)
        assert any(said in note for note in report.notes)


def test_a_factor_beside_longrope_multiplies_its_factors(
    make_checkpoint: Callable[..., Path], tmp_path: Path, engine_build: Path
) -> None:
    """As in llama.cpp and the engine, with which the verification compares."""
    checkpoint = make_checkpoint(tmp_path / "model", rope_scaling=LONGROPE)
    export(checkpoint, tmp_path / "model.gguf", "f32", verify=False)
    file = read_gguf(tmp_path / "model.gguf")
    tensors = [(name, info.type, info.shape) for name, info in file.tensors.items()]
    metadata = file.metadata | {"llama.rope.scaling.factor": 2.0}
    write_gguf(tmp_path / "scaled.gguf", metadata, tensors, [file.data(name) for name in file.tensors])
    found = import_model(tmp_path / "scaled.gguf", tmp_path / "out", verify=True).config.rope_scaling
    assert found is not None and found["long_factor"] == [2 * each for each in LONGROPE["long_factor"]]


def test_a_longer_context_changes_no_scaling(make_checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    """Without attention_factor, it follows from the contexts of the source."""
    checkpoint = make_checkpoint(tmp_path / "model", rope_scaling=LONGROPE)
    content = json.loads((checkpoint / "config.json").read_text())
    content |= {"rope_parameters": None, "rope_scaling": LONGROPE | {"attention_factor": None}}
    (checkpoint / "config.json").write_text(json.dumps(content))
    config = load_config(checkpoint)
    longer = import_model(checkpoint, tmp_path / "longer", context_tokens=512).config
    assert longer == dataclasses.replace(config, max_position_embeddings=512)

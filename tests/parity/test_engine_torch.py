"""The engine on an exported file computes what the PyTorch network computes on the checkpoint."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import llamita
from llamita.checkpoint import load_model
from llamita.engine import encode_prompt
from tests.rope_scalings import LLAMA3, LONGROPE, YARN

LINEAR = {"rope_type": "linear", "factor": 4.0}
SHAPES: dict[str, dict[str, Any]] = {
    "grouped, tied": {},
    "multi-head, untied": {"num_key_value_heads": 4, "tie_word_embeddings": False},
    "multi-query": {"num_key_value_heads": 1},
    "head_dim of its own": {"head_dim": 24},
    "other constants": {"rope_theta": 500000.0, "rms_norm_eps": 1e-6},
    "linear rope": {"rope_scaling": LINEAR},
    "llama3 rope": {"rope_scaling": LLAMA3},
    "dynamic rope": {"rope_scaling": {"rope_type": "dynamic", "factor": 4.0}},
    "yarn": {"rope_scaling": YARN},
    "longrope": {"rope_scaling": LONGROPE},
    "odd ffn": {"intermediate_size": 100},
    "packed by threads": {"hidden_size": 512, "head_dim": 128, "intermediate_size": 3072},  # 44 MB
    "qwen2, packed by threads": {
        "architecture": "qwen2",
        "attention_bias": True,
        "hidden_size": 256,
        "head_dim": 64,
        "intermediate_size": 6144,
    },
    "qwen3": {"architecture": "qwen3", "use_qk_norm": True, "head_dim": 24},
    "qwen3, yarn": {"architecture": "qwen3", "use_qk_norm": True, "rope_scaling": YARN},
    "qwen3, heads of one pair": {"architecture": "qwen3", "use_qk_norm": True, "head_dim": 2},
    "smollm3": {"architecture": "smollm3", "num_hidden_layers": 5, "no_rope_layers": (3,)},
}


def torch_logits(checkpoint: Path, ids: list[int]) -> np.ndarray:
    model = load_model(checkpoint).eval()
    with torch.inference_mode():
        return model(torch.tensor([ids]))[0].numpy()


@pytest.mark.parametrize(
    ("shape", "kernels"),
    [
        pytest.param(shape, kernels, marks=[pytest.mark.slow] if kernels == "scalar" and "packed" in shape else [])
        for shape in SHAPES
        for kernels in ("auto", "scalar")
    ],
)
def test_same_logits(
    shape: str, kernels: str, make_checkpoint: Callable[..., Path], tmp_path: Path, engine_build: Path
) -> None:
    checkpoint = make_checkpoint(tmp_path / "checkpoint", **SHAPES[shape])
    llamita.export(checkpoint, tmp_path / "model.gguf", "f32")
    ids = [0, *np.random.default_rng(1).integers(3, 250, 99).tolist()]  # more than a pass of the engine
    expected = torch_logits(checkpoint, ids)
    with llamita.load(tmp_path / "model.gguf", kernels=kernels) as model:
        found, with_halves = model.logits(ids, kv_type="f32"), model.logits(ids)
    assert np.abs(expected).max() > 1  # the comparison is of something
    np.testing.assert_allclose(found, expected, atol=1e-4 * np.abs(expected).max())
    np.testing.assert_allclose(with_halves, expected, atol=5e-3 * np.abs(expected).max())


@pytest.mark.parametrize("context", [64, 65])
def test_longrope_chooses_its_factors_by_the_context(
    context: int, make_checkpoint: Callable[..., Path], tmp_path: Path, engine_build: Path
) -> None:
    """The engine by the session's context, PyTorch and transformers by the length of the text."""
    checkpoint = make_checkpoint(tmp_path / "checkpoint", rope_scaling=LONGROPE)
    llamita.export(checkpoint, tmp_path / "model.gguf", "f32")
    ids = [0, *np.random.default_rng(1).integers(3, 250, context - 1).tolist()]
    expected, short = torch_logits(checkpoint, ids), torch_logits(checkpoint, ids[:40])
    with llamita.load(tmp_path / "model.gguf") as model:
        found = model.logits(ids, kv_type="f32", context_tokens=context)
    np.testing.assert_allclose(found, expected, atol=1e-4 * np.abs(expected).max())
    assert np.allclose(expected[:40], short, atol=1e-4 * np.abs(short).max()) == (context == 64)


def test_half_precision_weights_are_near(
    make_checkpoint: Callable[..., Path], tmp_path: Path, engine_build: Path
) -> None:
    """√(Σ difference² / Σ logit²). What the quantized types cost is asked of a trained model, in tests/end_to_end."""
    checkpoint = make_checkpoint(tmp_path / "checkpoint")
    llamita.export(checkpoint, tmp_path / "model.gguf", "f16")
    ids = [0, *range(5, 60)]
    expected = torch_logits(checkpoint, ids)
    with llamita.load(tmp_path / "model.gguf") as model:
        difference = model.logits(ids) - expected
    assert np.sqrt(np.square(difference).sum() / np.square(expected).sum()) < 0.002


@pytest.mark.parametrize("shape", [shape for shape in SHAPES if shape != "longrope"])  # its contexts differ
def test_same_hidden_states(
    shape: str, make_checkpoint: Callable[..., Path], tmp_path: Path, engine_build: Path
) -> None:
    checkpoint = make_checkpoint(tmp_path / "checkpoint", **SHAPES[shape])
    llamita.export(checkpoint, tmp_path / "model.gguf", "f32")
    network = load_model(checkpoint).eval()
    texts = ["Once upon a time", "a", "The dog ran. " * 6]  # the last one is more than a pass
    with llamita.load(tmp_path / "model.gguf") as model, model.session(kv_type="f32") as session:
        vectors = model.embed(texts, kv_type="f32")
        for text, vector in zip(texts, vectors, strict=True):
            ids = encode_prompt(model, text)
            with torch.inference_mode():
                expected = network.hidden_states(torch.tensor([ids]))[0].numpy()
            session.rewind(0)
            found = session.decode_hidden_states([(0, ids, len(ids))])
            np.testing.assert_allclose(found, expected, atol=1e-4 * np.abs(expected).max())
            mean = expected.mean(axis=0, dtype=np.float64)
            np.testing.assert_allclose(vector, mean / np.linalg.norm(mean), atol=1e-4)

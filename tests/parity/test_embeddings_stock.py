"""Embeddings are those of the stock runtimes: transformers' last hidden states, and llama.cpp's mean pooling."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from llamita.convert.export import export
from llamita.engine import Model, encode_prompt

pytestmark = pytest.mark.compat

TEXTS = ["Once upon a time", "a", "She wasn't tired; they'll try 1024 times: 3.14!", "床前明月光，疑是地上霜。" * 4]


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_transformers(make_checkpoint: Callable[..., Path], tmp_path: Path, kind: str, engine_build: Path) -> None:
    transformers = pytest.importorskip("transformers")
    checkpoint = make_checkpoint(tmp_path / "checkpoint", kind, max_position_embeddings=256)
    export(checkpoint, tmp_path / "model.gguf", "f32")
    network = transformers.AutoModel.from_pretrained(checkpoint, dtype=torch.float32).eval()
    with Model(tmp_path / "model.gguf") as model:
        vectors = model.embed(TEXTS, kv_type="f32")
        for text, vector in zip(TEXTS, vectors, strict=True):
            with torch.inference_mode():
                states = network(torch.tensor([encode_prompt(model, text)])).last_hidden_state[0]
            mean = states.double().mean(dim=0)
            np.testing.assert_allclose(vector, (mean / mean.norm()).numpy(), atol=1e-4)


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_llama_cpp(make_checkpoint: Callable[..., Path], tmp_path: Path, kind: str, engine_build: Path) -> None:
    llama_cpp = pytest.importorskip("llama_cpp")
    checkpoint = make_checkpoint(tmp_path / "checkpoint", kind, max_position_embeddings=256)
    export(checkpoint, tmp_path / "model.gguf", "f32")
    llama = llama_cpp.Llama(
        str(tmp_path / "model.gguf"), n_ctx=256, n_batch=256, n_ubatch=256, n_threads=1, verbose=False,
        embedding=True, pooling_type=llama_cpp.LLAMA_POOLING_TYPE_MEAN,
        type_k=llama_cpp.GGML_TYPE_F32, type_v=llama_cpp.GGML_TYPE_F32,
    )  # fmt: skip
    with Model(tmp_path / "model.gguf") as model:
        vectors = model.embed(TEXTS, kv_type="f32")
        for text, vector in zip(TEXTS, vectors, strict=True):
            assert llama.tokenize(text.encode(), add_bos=True) == encode_prompt(model, text)
            np.testing.assert_allclose(vector, llama.embed(text, normalize=True), atol=1e-4)

"""Our quantizers beside llama.cpp's on the same weights: less squared error, the same types, files that it runs."""

from __future__ import annotations

import ctypes
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from llamita.convert.quantize import quantize_file
from llamita.formats.gguf import read_gguf
from llamita.formats.tensor_types import TYPES, TypeName, quantize
from tests.quantization_errors import block_errors

pytestmark = [pytest.mark.compat, pytest.mark.usefixtures("engine_build")]

# Our squared error (of Q4_0 and Q5_0: weighted, as the search weights it) relative to ggml's, at most, on weights of a
# heavy-tailed distribution.
BOUNDS: dict[TypeName, float] = {
    "Q4_0": 0.93, "Q5_0": 0.92, "Q4_1": 0.88, "Q5_1": 0.88, "Q4_K": 0.98, "Q5_K": 0.94, "Q6_K": 0.95,
}  # fmt: skip


@pytest.fixture(scope="module")
def ggml() -> Any:
    llama_cpp = pytest.importorskip("llama_cpp")
    folder = Path(llama_cpp.__file__).parent / "lib"
    library = ctypes.CDLL(str(folder / "libggml-base.so"))
    library.ggml_quantize_chunk.restype = ctypes.c_size_t
    library.ggml_quantize_chunk.argtypes = [
        *(ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64, ctypes.c_int64),
        ctypes.c_void_p,
    ]
    return library


@pytest.mark.parametrize("type", BOUNDS)
def test_the_squared_error_is_below_ggmls(type: TypeName, ggml: Any) -> None:
    array = (np.random.default_rng(1).standard_t(6, (400, 256)) * 0.02).astype(np.float32)
    theirs = np.empty(TYPES[type].num_bytes(array.size), np.uint8)
    ggml.ggml_quantize_chunk(TYPES[type].number, array.ctypes.data, theirs.ctypes.data, 0, *array.shape, None)
    ratio = block_errors(array, quantize(array, type), type).sum() / block_errors(array, theirs, type).sum()
    assert ratio < BOUNDS[type]


# In a process of its own: llama.cpp's messages and state are nobody else's business.
LLAMA_QUANTIZE = """
import ctypes, sys, llama_cpp
parameters = llama_cpp.llama_model_quantize_default_params()
parameters.nthread, parameters.ftype = 1, int(sys.argv[3])
sys.exit(llama_cpp.llama_model_quantize(sys.argv[1].encode(), sys.argv[2].encode(), ctypes.byref(parameters)))
"""


def llama_quantize(source: Path, out: Path, file_type: gguf.LlamaFileType) -> None:
    pytest.importorskip("llama_cpp")
    words = [sys.executable, "-c", LLAMA_QUANTIZE, str(source), str(out), str(int(file_type))]
    subprocess.run(words, check=True, capture_output=True, timeout=300)


@pytest.mark.parametrize("hidden_size", [256, 96])
@pytest.mark.parametrize("tied", [True, False])
def test_the_type_of_each_tensor_is_llama_cpps(
    make_checkpoint: Callable[..., Path], tmp_path: Path, hidden_size: int, tied: bool
) -> None:
    """Its defaults. Not q4_k and q5_k: they are mixtures there (Q4_K_S, Q5_K_S)."""
    from llamita.convert.export import export

    sizes = {"hidden_size": hidden_size, "head_dim": hidden_size // 4, "intermediate_size": 512}
    folder = make_checkpoint(tmp_path / "model", num_hidden_layers=9, tie_word_embeddings=tied, **sizes)
    export(folder, tmp_path / "f32.gguf", "f32", verify=False)
    for name in ("q4_0", "q4_1", "q5_0", "q5_1", "q6_k", "q8_0", "f16", "bf16", "q4_k_m"):
        quantize_file(tmp_path / "f32.gguf", tmp_path / "ours.gguf", name)
        llama_quantize(tmp_path / "f32.gguf", tmp_path / "theirs.gguf", gguf.LlamaFileType[f"MOSTLY_{name.upper()}"])
        ours, theirs = read_gguf(tmp_path / "ours.gguf"), read_gguf(tmp_path / "theirs.gguf")
        assert {n: t.type for n, t in ours.tensors.items()} == {n: t.type for n, t in theirs.tensors.items()}, name
        for key in ("general.file_type", "general.quantization_version"):
            assert ours.metadata[key] == theirs.metadata[key], name
    export(folder, tmp_path / "direct.gguf", "q4_k_m", verify=False)
    direct = read_gguf(tmp_path / "direct.gguf")
    for name in ours.tensors:
        assert bytes(direct.data(name)) == bytes(ours.data(name))


@pytest.mark.parametrize("type", ["q4_1", "q5_0", "q5_1", "q4_k", "q5_k", "q6_k", "q4_k_m"])
def test_llama_cpp_runs_what_we_write(make_checkpoint: Callable[..., Path], tmp_path: Path, type: str) -> None:
    """Its logits on our quantized file are near those on the same values stored as float32; it rounds activations to
    eight bits, for the K types by one scale for 256 of them, which makes up to 7 %."""
    from llamita.convert.export import export

    llama_cpp = pytest.importorskip("llama_cpp")
    folder = make_checkpoint(tmp_path / "model", hidden_size=256, head_dim=64, intermediate_size=512)
    export(folder, tmp_path / "small.gguf", type, verify=False)
    quantize_file(tmp_path / "small.gguf", tmp_path / "values.gguf", "f32")
    logits = []
    for name in ("small", "values"):
        llama = llama_cpp.Llama(
            str(tmp_path / f"{name}.gguf"), n_ctx=64, n_batch=64, n_ubatch=1, n_threads=1, n_threads_batch=1,
            logits_all=True, verbose=False,
        )  # fmt: skip
        llama.eval(list(range(3, 35)))
        logits.append(np.array(llama.scores[:32], np.float64))
    assert np.linalg.norm(logits[0] - logits[1]) < 0.15 * np.linalg.norm(logits[1])

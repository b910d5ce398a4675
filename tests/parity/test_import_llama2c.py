"""Trained llama2.c models imported: the same greedy tokens as llama2.c's, and exported again bit for bit."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from llamita.checkpoint import load_model, load_tensors  # noqa: E402
from llamita.convert.export import export  # noqa: E402
from llamita.convert.import_model import import_model  # noqa: E402
from llamita.formats.gguf import read_gguf  # noqa: E402
from llamita.model.generate import generate  # noqa: E402
from llamita.tokenizer import load_tokenizer  # noqa: E402

SOURCES = {
    "stories260K.bin": "stories260K_256",
    "stories260K_v1.bin": "stories260K_256",
    "stories260K.pt": "stories260K_256",
    "model5000.bin": "babyllama105_256",
}


def folder_of(name: str) -> str:
    return "babyllama105" if name == "model5000.bin" else "stories260K"


@pytest.fixture(scope="module")
def imported(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Path]]:
    root = tmp_path_factory.mktemp("imported")
    for name in SOURCES:
        import_model(shared_data / "models" / folder_of(name) / name, root / name)
    yield {name: root / name for name in SOURCES}


@pytest.fixture(scope="module")
def reference(shared_data: Path) -> dict[str, Any]:
    return json.loads((shared_data / "reference" / "greedy_ids.json").read_text())


@pytest.mark.parametrize("name", SOURCES)
def test_greedy_ids_are_the_references(imported: dict[str, Path], reference: dict[str, Any], name: str) -> None:
    model = load_model(imported[name])
    expected = reference[SOURCES[name]][: model.config.max_position_embeddings - 1]  # BOS takes a place
    assert len(expected) >= 255
    assert list(generate(model, [1], len(expected), temperature=0.0)) == expected


@pytest.mark.parametrize("name", ["stories260K.bin", "stories260K.pt"])
def test_the_story_is_byte_for_byte_llama2cs(imported: dict[str, Path], shared_data: Path, name: str) -> None:
    """200 positions: llama2.c prints the token that it computes at each of them."""
    expected = (shared_data / "reference" / "stories260K_t0_n200.expected.txt").read_bytes()
    tokenizer = load_tokenizer(imported[name])
    ids = generate(load_model(imported[name]), [1], 200, temperature=0.0, end_ids=tokenizer.end_ids)
    assert tokenizer.decode([1, *ids]) == expected


def test_all_three_files_hold_the_same(imported: dict[str, Path]) -> None:
    first = load_tensors(imported["stories260K.bin"])
    for name in ("stories260K_v1.bin", "stories260K.pt"):
        other = load_tensors(imported[name])
        assert first.keys() == other.keys() and all(torch.equal(first[key], other[key]) for key in first)


@pytest.mark.parametrize("name", SOURCES)
def test_exported_again_it_is_the_same_file(
    imported: dict[str, Path], shared_data: Path, tmp_path: Path, name: str
) -> None:
    """RoPE tables included: PyTorch makes them as llama2.c did. The tokenizer too."""
    export(imported[name], tmp_path / "model.bin")
    folder = shared_data / "models" / folder_of(name)
    original = folder / ("model5000.bin" if name == "model5000.bin" else "stories260K.bin")
    vocabulary = folder / ("tok105.bin" if name == "model5000.bin" else "tok512.bin")
    assert (tmp_path / "tokenizer.bin").read_bytes() == vocabulary.read_bytes()
    ours, theirs = (tmp_path / "model.bin").read_bytes(), original.read_bytes()
    assert len(ours) == len(theirs)
    differing = np.flatnonzero(np.frombuffer(ours, np.float32) != np.frombuffer(theirs, np.float32))
    assert differing.size == 0, f"{differing.size} numbers differ, the first at byte {4 * differing[0]}"


def test_q4_0_search_pays_on_trained_weights(imported: dict[str, Path], tmp_path: Path) -> None:
    gguf = pytest.importorskip("gguf")
    export(imported["model5000.bin"], tmp_path / "exact.gguf", "f32")
    export(imported["model5000.bin"], tmp_path / "small.gguf", "q4_0")
    exact, small = read_gguf(tmp_path / "exact.gguf"), read_gguf(tmp_path / "small.gguf")
    ours = theirs = 0.0
    for name, info in small.tensors.items():
        if info.type == "Q4_0":
            numbers, kind = exact.dequantize(name), gguf.GGMLQuantizationType.Q4_0
            plain = gguf.quants.dequantize(gguf.quants.quantize(numbers, kind), kind)
            ours += float(np.square(small.dequantize(name) - numbers).sum())
            theirs += float(np.square(plain - numbers).sum())
    print(f"Q4_0: {ours / theirs:.4f} of the squared error of ggml's rule")
    assert ours < 0.92 * theirs


@pytest.mark.compat
@pytest.mark.parametrize("name", ["stories260K.bin", "model5000.bin"])
def test_llama_cpp_generates_the_same_story(
    imported: dict[str, Path], reference: dict[str, Any], tmp_path: Path, name: str
) -> None:
    llama_cpp = pytest.importorskip("llama_cpp")
    export(imported[name], tmp_path / "model.gguf", "f32")
    llama = llama_cpp.Llama(
        str(tmp_path / "model.gguf"), n_ctx=256, n_ubatch=1, n_threads=1, verbose=False,
        type_k=llama_cpp.GGML_TYPE_F32, type_v=llama_cpp.GGML_TYPE_F32,
    )  # fmt: skip
    expected = reference[SOURCES[name]][:200]
    new: list[int] = []
    for token in llama.generate([1], temp=0.0, top_k=1, repeat_penalty=1.0):
        new.append(int(token))
        if len(new) == len(expected):
            break
    assert new == expected

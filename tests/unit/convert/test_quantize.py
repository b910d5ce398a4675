"""Quantized GGUF files: metadata and exact tensors kept, errors reported, requantizing opt-in."""

from __future__ import annotations

import struct
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from llamita.convert.quantize import quantize_file
from llamita.errors import ConfigError, FormatError
from llamita.formats.gguf import EncodedValue, Value, read_gguf, write_gguf
from llamita.formats.tensor_types import TYPES, TypeName, dequantize, quantize

pytestmark = pytest.mark.usefixtures("engine_build")

METADATA: dict[str, Value] = {
    "general.architecture": "llama",
    "general.name": "a llama",
    "general.file_type": 0,
    "general.alignment": 32,
    "llama.block_count": 8,
    "llama.rope.freq_base": 12345.678,
    "some.int8": EncodedValue(struct.pack("<Ib", 1, -3)),
    "some.uint64": EncodedValue(struct.pack("<IQ", 10, 2**63 + 5)),
    "some.double": EncodedValue(struct.pack("<Id", 12, 0.1)),
    "some.bools": EncodedValue(struct.pack("<IIQ3B", 9, 7, 3, 1, 0, 1)),
    "some.shorts": np.array([-1, 2, 300], dtype=np.int16),
    "tokenizer.ggml.tokens": ["a", "ü", "床"],
    "tokenizer.ggml.add_bos_token": True,
}


def weights(width: int = 256) -> dict[str, np.ndarray]:
    """The matrices and vectors of an 8-layer Llama that the choice of types depends on."""
    rng = np.random.default_rng(5)
    shapes: dict[str, tuple[int, ...]] = {"token_embd.weight": (20, width), "output_norm.weight": (width,)}
    for layer in range(8):
        shapes |= {f"blk.{layer}.attn_norm.weight": (width,), f"blk.{layer}.attn_v.weight": (6, width)}
        shapes[f"blk.{layer}.ffn_down.weight"] = (width, 2 * width)
    return {name: rng.normal(0, 0.05, shape).astype(np.float32) for name, shape in shapes.items()}


@pytest.fixture
def make_gguf(tmp_path: Path) -> Callable[..., Path]:
    def make(type: TypeName = "F32", width: int = 256, **changes: Any) -> Path:
        path = tmp_path / f"source-{type}-{width}.gguf"
        arrays = weights(width)
        types: dict[str, TypeName] = {name: "F32" if array.ndim == 1 else type for name, array in arrays.items()}
        infos = [(name, types[name], array.shape) for name, array in arrays.items()]
        write_gguf(path, METADATA | changes, infos, (quantize(a, types[n]) for n, a in arrays.items()))
        return path

    return make


def relative_error(path: Path, name: str, expected: np.ndarray) -> float:
    return float(np.linalg.norm(read_gguf(path).dequantize(name) - expected) / np.linalg.norm(expected))


@pytest.mark.parametrize(
    ("type", "output", "counts"),
    [
        ("q8_0", "Q8_0", {"Q8_0": 17, "F32": 9}),
        ("q5_k", "Q6_K", {"Q6_K": 1, "F32": 9, "Q5_K": 16}),
        ("q4_0", "Q6_K", {"Q6_K": 1, "F32": 9, "Q4_0": 16}),
        ("f16", "F16", {"F16": 17, "F32": 9}),
        ("bf16", "BF16", {"BF16": 17, "F32": 9}),
    ],
)
def test_matrices_change_and_nothing_else(
    make_gguf: Callable[..., Path], tmp_path: Path, type: str, output: str, counts: dict[str, int]
) -> None:
    source, out = make_gguf(), tmp_path / "out.gguf"
    report = quantize_file(source, out, type)
    before, after = read_gguf(source), read_gguf(out)
    assert list(after.tensors) == list(before.tensors)
    for name, array in weights().items():
        expected = output if name == "token_embd.weight" else type.upper() if array.ndim == 2 else "F32"
        assert after.tensors[name].type == expected and after.tensors[name].shape == array.shape
        assert bytes(after.data(name)) == bytes(quantize(array, TYPES[expected].name))
    for key in set(METADATA) - {"general.file_type", "general.alignment"}:
        assert after.encoded(key) == before.encoded(key)
    assert set(after.metadata) == (set(METADATA) | {"general.quantization_version"}) - {"general.alignment"}
    assert after.metadata["general.quantization_version"] == 2
    assert report.num_bytes == out.stat().st_size and report.source_bytes == sum(a.nbytes for a in weights().values())
    assert report.num_tensors_by_type == counts and report.notes == ()
    errors = {name: relative_error(out, name, array) for name, array in weights().items()}
    assert report.largest_error == pytest.approx(max(errors.values()), rel=1e-3)
    assert report.worst_tensor == max(errors, key=lambda name: errors[name])
    stored = sum(info.num_bytes for info in after.tensors.values())
    assert report.bits_per_weight == pytest.approx(8 * stored / report.num_parameters)


def test_the_mixture(make_gguf: Callable[..., Path], tmp_path: Path) -> None:
    report = quantize_file(make_gguf(), tmp_path / "out.gguf", "q4_k_m")
    after = read_gguf(tmp_path / "out.gguf")
    assert after.metadata["general.file_type"] == int(gguf.LlamaFileType.MOSTLY_Q4_K_M)
    assert report.num_tensors_by_type == {"Q6_K": 9, "F32": 9, "Q4_K": 8}
    assert after.tensors["blk.0.attn_v.weight"].type == "Q6_K" and after.tensors["blk.1.attn_v.weight"].type == "Q4_K"
    sizes = {reader.name: reader.n_bytes for reader in gguf.GGUFReader(tmp_path / "out.gguf").tensors}
    assert sizes == {name: info.num_bytes for name, info in after.tensors.items()}


def test_rows_that_fit_no_blocks_are_noted(make_gguf: Callable[..., Path], tmp_path: Path) -> None:
    report = quantize_file(make_gguf(width=96), tmp_path / "out.gguf", "q6_k")
    assert report.num_tensors_by_type == {"Q8_0": 17, "F32": 9}
    assert report.notes == (
        "stored as Q8_0 instead of Q6_K: 17 tensors (attn_v, ffn_down, token_embd), whose rows of 96, 192"
        " weights are not whole blocks of 256",
    )


def test_half_precision_is_a_source_and_back_to_float32_is_exact(
    make_gguf: Callable[..., Path], tmp_path: Path
) -> None:
    halves, out = make_gguf("F16"), tmp_path / "out.gguf"
    assert quantize_file(halves, out, "q8_0").num_tensors_by_type == {"Q8_0": 17, "F32": 9}
    back = quantize_file(out, tmp_path / "back.gguf", "f32")  # rounds nothing: no --requantize
    assert back.num_tensors_by_type == {"F32": 26} and back.worst_tensor is None and back.largest_error == 0.0
    for name in weights():
        assert np.array_equal(read_gguf(tmp_path / "back.gguf").dequantize(name), read_gguf(out).dequantize(name))


def test_requantizing_is_refused_by_default(make_gguf: Callable[..., Path], tmp_path: Path) -> None:
    source, out = make_gguf("Q4_0"), tmp_path / "out.gguf"
    with pytest.raises(FormatError, match=r"found 17 quantized ones \(17 Q4_0\).*accept the loss with --requant"):
        quantize_file(source, out, "q5_0")
    assert not out.exists()
    report = quantize_file(source, out, "q5_0", requantize=True)
    assert "the new rounding errors add to" in report.notes[0] and report.largest_error > 0
    # The output matrix.
    with pytest.raises(FormatError, match=r"found 1 quantized ones \(1 Q4_0\)"):
        quantize_file(source, out, "q4_0")


def test_tensors_that_have_their_type_are_copied(make_gguf: Callable[..., Path], tmp_path: Path) -> None:
    first, second = tmp_path / "first.gguf", tmp_path / "second.gguf"
    quantize_file(make_gguf(), first, "q4_0")
    assert quantize_file(first, second, "q4_0").worst_tensor is None
    assert second.read_bytes() == first.read_bytes()


def test_types_that_are_only_read_are_sources(tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    raw = rng.integers(0, 256, (2, 84), dtype=np.uint8)
    raw[:, 80:] = np.array([0.01, 0.02], dtype=np.float16).view(np.uint8)
    metadata: dict[str, Value] = {"general.architecture": "llama"}
    write_gguf(tmp_path / "q2.gguf", metadata, [("token_embd.weight", "Q2_K", (2, 256))], [raw.reshape(-1)])
    quantize_file(tmp_path / "q2.gguf", tmp_path / "out.gguf", "f32")
    found = read_gguf(tmp_path / "out.gguf").dequantize("token_embd.weight")
    assert np.array_equal(found, dequantize(raw, "Q2_K", (2, 256)))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"general.architecture": "gemma3"}, "architecture: expected llama, qwen2, qwen3 or smollm3, found gemma3"),
        ({"split.count": 3}, "the first of 3 pieces of a split model"),
        ({"split.count": 3, "split.no": 2, "general.architecture": "none"}, "found piece 3 of 3 of a split model"),
    ],
)
def test_incomplete_llamas_are_refused(
    make_gguf: Callable[..., Path], tmp_path: Path, changes: dict[str, Value], said: str
) -> None:
    with pytest.raises(FormatError, match=said):
        quantize_file(make_gguf(**changes), tmp_path / "out.gguf", "q8_0")


def test_shapes_and_names_that_are_refused(tmp_path: Path) -> None:
    metadata: dict[str, Value] = {"general.architecture": "llama"}
    write_gguf(tmp_path / "experts.gguf", metadata, [("experts", "F32", (2, 2, 32))], [np.zeros(512, np.uint8)])
    with pytest.raises(FormatError, match=r"tensor experts: expected a matrix, found shape \[2, 2, 32\]"):
        quantize_file(tmp_path / "experts.gguf", tmp_path / "out.gguf", "q8_0")
    write_gguf(tmp_path / "none.gguf", metadata, [], [])
    with pytest.raises(FormatError, match="found no tensors"):
        quantize_file(tmp_path / "none.gguf", tmp_path / "out.gguf", "q8_0")
    with pytest.raises(ConfigError, match="found the same; choose a new name"):
        quantize_file(tmp_path / "none.gguf", tmp_path / "none.gguf", "q8_0")


def test_broken_weights_leave_nothing_behind(tmp_path: Path) -> None:
    array = np.ones((4, 32), np.float32)
    array[2, 7] = np.nan
    metadata: dict[str, Value] = {"general.architecture": "llama"}
    write_gguf(tmp_path / "broken.gguf", metadata, [("a.weight", "F32", (4, 32))], [array.view(np.uint8).reshape(-1)])
    with pytest.raises(FormatError, match=r"tensor a\.weight as Q8_0: expected finite numbers, found nan"):
        quantize_file(tmp_path / "broken.gguf", tmp_path / "out.gguf", "q8_0")
    assert [path.name for path in tmp_path.iterdir()] == ["broken.gguf"]


def test_progress_counts_the_sources_bytes(make_gguf: Callable[..., Path], tmp_path: Path) -> None:
    seen: list[tuple[str, int, int]] = []
    report = quantize_file(make_gguf(), tmp_path / "out.gguf", "q4_1", progress=lambda *call: seen.append(call))
    assert seen[-1] == ("quantizing", report.source_bytes, report.source_bytes)
    assert seen == sorted(seen) and len(seen) == 26


def test_memory_holds_one_tensor(tmp_path: Path) -> None:
    """Twelve matrices of 4 MB: 48 MB of weights, of which a few are ever in memory (the mapping is
    not counted)."""
    shape = (1024, 1024)
    raw = np.random.default_rng(3).normal(size=shape).astype(np.float32).view(np.uint8).reshape(-1)
    infos = [(f"blk.{layer}.ffn_up.weight", "F32", shape) for layer in range(12)]
    write_gguf(tmp_path / "large.gguf", {"general.architecture": "llama"}, infos, [raw] * 12)
    tracemalloc.start()
    try:
        report = quantize_file(tmp_path / "large.gguf", tmp_path / "out.gguf", "q4_0")
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert report.source_bytes == 12 * 4 * 1024 * 1024 and peak < 8_000_000

"""llama2.c models built byte by byte from its documentation: read, written again, and damaged."""

from __future__ import annotations

import dataclasses
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llamita.config import ModelConfig
from llamita.errors import FormatError
from llamita.formats.llama2c import (
    check_expressible,
    read_bin,
    read_checkpoint,
    write_bin,
)
from llamita.formats.tensor_table import TensorSpec, tensor_table
from tests.pickle_bomb import PickleBomb

torch = pytest.importorskip("torch")

DIM, HIDDEN, LAYERS, HEADS, KV_HEADS, VOCAB, CONTEXT = 8, 12, 2, 4, 2, 6, 5
SIZES = (DIM, HIDDEN, LAYERS, HEADS, KV_HEADS, VOCAB, CONTEXT)
KV_DIM = DIM * KV_HEADS // HEADS
MAGIC = 0x616B3432


def make_fields(tied: bool) -> dict[str, np.ndarray]:
    """Every field with the layers' tensors stacked, all numbers distinct."""
    shapes = {
        "tok_embeddings": (VOCAB, DIM), "attention_norm": (LAYERS, DIM), "wq": (LAYERS, DIM, DIM),
        "wk": (LAYERS, KV_DIM, DIM), "wv": (LAYERS, KV_DIM, DIM), "wo": (LAYERS, DIM, DIM), "ffn_norm": (LAYERS, DIM),
        "w1": (LAYERS, HIDDEN, DIM), "w2": (LAYERS, DIM, HIDDEN), "w3": (LAYERS, HIDDEN, DIM), "norm": (DIM,),
        "output": (VOCAB, DIM),
    }  # fmt: skip
    fields, start = {}, 0
    for name, shape in shapes.items():
        size = int(np.prod(shape))
        fields[name] = (np.arange(start, start + size, dtype=np.float32) / 1000).reshape(shape)
        start += size
    if tied:
        del fields["output"]
    return fields


def v0_bytes(tied: bool = True) -> bytes:
    fields = make_fields(tied)
    frequency = 1.0 / (10000.0 ** (torch.arange(0, DIM // HEADS, 2).float() / (DIM // HEADS)))
    angles = torch.outer(torch.arange(CONTEXT), frequency)
    order = ["tok_embeddings", "attention_norm", "wq", "wk", "wv", "wo", "ffn_norm", "w1", "w2", "w3", "norm"]
    parts = [struct.pack("<7i", *SIZES[:5], VOCAB if tied else -VOCAB, CONTEXT)]
    parts += [fields[name].tobytes() for name in order]
    parts += [torch.cos(angles).numpy().tobytes(), torch.sin(angles).numpy().tobytes()]
    return b"".join(parts) + (b"" if tied else fields["output"].tobytes())


def newer_header(version: int, tied: bool, group_size: int | None = None) -> bytes:
    head = struct.pack("<Ii7iB", MAGIC, version, *SIZES, tied)
    head += struct.pack("<i", group_size) if group_size is not None else b""
    return head.ljust(256, b"\0")


NEWER_ORDER = ["tok_embeddings", "wq", "wk", "wv", "wo", "w1", "w2", "w3", "output"]


def v1_bytes(tied: bool = True) -> bytes:
    fields = make_fields(tied)
    order = ["attention_norm", "ffn_norm", "norm", *NEWER_ORDER]
    return newer_header(1, tied) + b"".join(fields[name].tobytes() for name in order if name in fields)


def v2_bytes(tied: bool = True, group_size: int = 4) -> bytes:
    fields = make_fields(tied)
    parts = [newer_header(2, tied, group_size)]
    parts += [fields[name].tobytes() for name in ("attention_norm", "ffn_norm", "norm")]
    for name in NEWER_ORDER:
        if name not in fields:
            continue
        stacked = fields[name].reshape(1 if fields[name].ndim == 2 else LAYERS, -1)
        for tensor in stacked:
            groups = tensor.reshape(-1, group_size)
            scale = np.abs(groups).max(axis=1) / 127
            codes = np.divide(groups, scale[:, None], out=np.zeros_like(groups), where=scale[:, None] > 0)
            parts += [np.round(codes).astype(np.int8).tobytes(), scale.astype(np.float32).tobytes()]
    return b"".join(parts)


def expected_tensor(spec: TensorSpec, tied: bool) -> np.ndarray:
    field = make_fields(tied)[spec.llama2c]
    return field if spec.layer is None else field[spec.layer]


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize(("make", "version"), [(v0_bytes, "v0"), (v1_bytes, "v1"), (v2_bytes, "v2")])
def test_reads_every_version(tmp_path: Path, make: Callable[[bool], bytes], version: str, tied: bool) -> None:
    path = tmp_path / "model.bin"
    path.write_bytes(make(tied))
    model = read_bin(path)
    assert model.version == version
    assert model.config == ModelConfig(
        vocab_size=VOCAB, hidden_size=DIM, intermediate_size=HIDDEN, num_hidden_layers=LAYERS,
        num_attention_heads=HEADS, num_key_value_heads=KV_HEADS, head_dim=DIM // HEADS, max_position_embeddings=CONTEXT,
        rms_norm_eps=1e-5, rope_theta=10000.0, tie_word_embeddings=tied, bos_token_id=1, eos_token_id=(2, 1),
    )  # fmt: skip
    for spec in tensor_table(model.config):
        expected = expected_tensor(spec, tied)
        atol = np.abs(expected).max() / 250 if version == "v2" and spec.kind != "norm" else 0
        assert np.allclose(model.tensor(spec), expected, rtol=0, atol=atol), spec.llama2c


@pytest.mark.parametrize("tied", [True, False])
def test_writes_what_llama2c_writes(tmp_path: Path, tied: bool) -> None:
    (tmp_path / "in.bin").write_bytes(v0_bytes(tied))
    model = read_bin(tmp_path / "in.bin")
    size = write_bin(tmp_path / "out.bin", model.config, model.tensor)
    assert (tmp_path / "out.bin").read_bytes() == v0_bytes(tied)
    assert size == len(v0_bytes(tied))


@pytest.mark.parametrize("make", [v0_bytes, v1_bytes, v2_bytes])
def test_truncated_at_any_byte(
    tmp_path: Path, make: Callable[[bool], bytes], refuses_every_prefix: Callable[..., None]
) -> None:
    path = tmp_path / "model.bin"
    path.write_bytes(make(False))
    refuses_every_prefix(path, read_bin)
    path.write_bytes(make(False) + b"\0")
    with pytest.raises(FormatError, match=r"expected \d+ bytes, found"):
        read_bin(path)


def with_size(index: int, value: int) -> bytes:
    content = bytearray(v0_bytes())
    struct.pack_into("<i", content, 4 * index, value)
    return bytes(content)


BAD: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "the file is empty"),
    "Git LFS": (
        b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n",
        "found a Git LFS pointer; fetch",
    ),
    "dim 0": (with_size(0, 0), "dim: expected a positive number, found 0"),
    "dim negative": (with_size(0, -8), "dim: expected a positive number, found -8"),
    "dim absurd": (with_size(0, 2**31 - 8), r"expected \d{10,} bytes, found"),
    "layers absurd": (with_size(2, 2**31 - 1), "n_layers: expected at most 1024"),
    "heads that do not divide": (with_size(3, 3), "n_heads: expected a divisor of dim 8, found 3"),
    "heads of an odd size": (with_size(3, 8), "RoPE needs an even number"),
    "kv heads that do not divide": (with_size(4, 3), "num_key_value_heads: expected a divisor"),
    "kv heads 0": (with_size(4, 0), "n_kv_heads: expected a positive number"),
    "vocabulary 0": (with_size(5, 0), "vocab_size: expected a positive number"),
    "vocabulary absurd": (with_size(5, -(2**31)), "vocab_size: expected a positive number"),
    "vocabulary without EOS": (with_size(5, 2), "vocab_size: expected more than 2"),
    "context 0": (with_size(6, 0), "max_seq_len: expected a positive number"),
    "version 3": (newer_header(3, True), "version: expected 1 or 2, found 3"),
    "version 0 with magic": (newer_header(0, True), "version: expected 1 or 2, found 0"),
    "flag 2": (newer_header(1, 2), "shared classifier: expected 0 or 1, found 2"),  # type: ignore[arg-type]
    "group size 0": (newer_header(2, True, 0), "group size: expected a positive number, found 0"),
    "group size negative": (newer_header(2, True, -64), "group size: expected a positive number, found -64"),
    "group size that does not divide": (newer_header(2, True, 5), "group size: expected a divisor of the"),
}


@pytest.mark.parametrize("name", BAD)
def test_damaged_files_are_refused_in_one_line(tmp_path: Path, name: str) -> None:
    content, said = BAD[name]
    path = tmp_path / "bad.bin"
    path.write_bytes(content)
    with pytest.raises(FormatError, match=said) as caught:
        read_bin(path)
    assert "\n" not in str(caught.value) and str(path) in str(caught.value)


# ---------------------------------------------------------------- .pt


def checkpoint(tied: bool = True, prefix: str = "_orig_mod.", **arguments: Any) -> dict[str, Any]:
    config = ModelConfig(
        vocab_size=VOCAB, hidden_size=DIM, intermediate_size=HIDDEN, num_hidden_layers=LAYERS,
        num_attention_heads=HEADS, num_key_value_heads=KV_HEADS, head_dim=DIM // HEADS, max_position_embeddings=CONTEXT,
        tie_word_embeddings=tied, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    state = {prefix + spec.name("llama2c"): torch.tensor(expected_tensor(spec, tied)) for spec in tensor_table(config)}
    if tied:
        state[f"{prefix}output.weight"] = state[f"{prefix}tok_embeddings.weight"]
    model_args = {
        "dim": DIM, "n_layers": LAYERS, "n_heads": HEADS, "n_kv_heads": KV_HEADS, "vocab_size": VOCAB,
        "multiple_of": 4, "max_seq_len": CONTEXT, "dropout": 0.05,
    }  # fmt: skip
    return {"model": state, "model_args": model_args | arguments, "iter_num": 3, "config": {"compile": True}}


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("prefix", ["", "_orig_mod."])
def test_reads_training_checkpoints(tmp_path: Path, tied: bool, prefix: str) -> None:
    torch.save(checkpoint(tied, prefix), tmp_path / "ckpt.pt")
    model = read_checkpoint(tmp_path / "ckpt.pt")
    assert model.config.tie_word_embeddings == tied
    assert (model.config.num_key_value_heads, model.config.intermediate_size) == (KV_HEADS, HIDDEN)
    for spec in tensor_table(model.config):
        assert np.array_equal(model.tensor(spec), expected_tensor(spec, tied)), spec.llama2c


def test_reads_missing_kv_heads_half_precision_and_old_buffers(tmp_path: Path) -> None:
    content = checkpoint()
    del content["model_args"]["n_kv_heads"]
    for name in list(content["model"]):
        if ".wk." in name or ".wv." in name:
            content["model"][name] = torch.ones(DIM, DIM, dtype=torch.bfloat16)
    content["model"]["_orig_mod.freqs_cos"] = torch.ones(3)
    torch.save(content, tmp_path / "ckpt.pt")
    model = read_checkpoint(tmp_path / "ckpt.pt")
    assert model.config.num_key_value_heads == HEADS
    assert all(model.tensor(spec).dtype == np.float32 for spec in tensor_table(model.config))


@pytest.mark.parametrize("zipped", [True, False])
def test_code_is_refused_by_name_and_not_run(tmp_path: Path, zipped: bool) -> None:
    content = checkpoint()
    content["model_args"]["dropout"] = PickleBomb(tmp_path / "ran")
    torch.save(content, tmp_path / "bomb.pt", _use_new_zipfile_serialization=zipped)
    with pytest.raises(FormatError, match=r"pickle contains code \((posix|nt)\.system\)"):
        read_checkpoint(tmp_path / "bomb.pt")
    assert not (tmp_path / "ran").exists()


def with_tensor(name: str, value: Any) -> dict[str, Any]:
    content = checkpoint(prefix="")
    content["model"][name] = value
    return content


BAD_CHECKPOINTS: dict[str, tuple[Any, str]] = {
    "no dictionary": ([1, 2], "with model and model_args"),
    "no model_args": ({"model": {}}, "with model and model_args"),
    "model is a list": ({"model": [], "model_args": {}}, "expected dictionaries"),
    "dim missing": (checkpoint(dim=None), "dim: expected a positive number, found None"),
    "dim as text": (checkpoint(dim="8"), "dim: expected a positive number"),
    "another dim": (checkpoint(dim=16), r"expected shape \[6, 16\], found \[6, 8\]"),
    "one layer fewer": (checkpoint(n_layers=1), r"unknown tensor layers\.1\."),
    "one layer more": (checkpoint(n_layers=3), r"tensor layers\.2\.attention_norm\.weight is missing and 8 more"),
    "a bias": (with_tensor("layers.0.attention.wq.bias", torch.ones(8)), r"unknown tensor .*bias"),
    "a tensor twice": (with_tensor("_orig_mod.norm.weight", torch.ones(8)), r"tensor norm\.weight occurs twice"),
    "whole numbers": (with_tensor("norm.weight", torch.ones(8).long()), r"norm\.weight: expected floats of 16 or 32"),
    "no embedding": (with_tensor("tok_embeddings.weight", None), r"tok_embeddings\.weight: expected"),
    "eps": (checkpoint(norm_eps=-1.0), "rms_norm_eps: expected a positive number"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_CHECKPOINTS)
def test_bad_checkpoints_are_refused_in_one_line(tmp_path: Path, name: str) -> None:
    content, said = BAD_CHECKPOINTS[name]
    torch.save(content, tmp_path / "bad.pt")
    with pytest.raises(FormatError, match=said) as caught:
        read_checkpoint(tmp_path / "bad.pt")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"hello", b"PK\3\4" + bytes(50), b"\x80\4N.", bytes(1000)])
def test_files_that_are_not_checkpoints(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "bad.pt").write_bytes(content)
    with pytest.raises(FormatError, match="cannot read") as caught:
        read_checkpoint(tmp_path / "bad.pt")
    assert "\n" not in str(caught.value) and "weights_only" not in str(caught.value)


def test_truncated_checkpoints(tmp_path: Path) -> None:
    torch.save(checkpoint(), tmp_path / "ckpt.pt")
    content = (tmp_path / "ckpt.pt").read_bytes()
    for length in range(0, len(content), 97):
        (tmp_path / "cut.pt").write_bytes(content[:length])
        with pytest.raises(FormatError, match="cannot read"):
            read_checkpoint(tmp_path / "cut.pt")


# ---------------------------------------------------------------- what version 0 cannot express


PLAIN = ModelConfig(
    vocab_size=VOCAB, hidden_size=DIM, intermediate_size=HIDDEN, num_hidden_layers=LAYERS, num_attention_heads=HEADS,
    num_key_value_heads=KV_HEADS, head_dim=DIM // HEADS, max_position_embeddings=CONTEXT,
)  # fmt: skip


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("rope_theta", 500000.0),
        ("rope_scaling", {"rope_type": "linear", "factor": 2.0}),
        ("rms_norm_eps", 1e-6),
        ("head_dim", 4),
    ],
)
def test_what_version_0_cannot_express_is_refused(tmp_path: Path, name: str, value: Any) -> None:
    check_expressible(PLAIN)
    config = dataclasses.replace(PLAIN, **{name: value})
    with pytest.raises(FormatError, match=f"{name}: the format has no place"):
        write_bin(tmp_path / "out.bin", config, lambda spec: np.zeros(spec.shape, np.float32))
    assert not list(tmp_path.iterdir())

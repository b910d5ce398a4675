"""Contents of files and folders, detected from the content and not only from the name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from llamita.checkpoint import load_config  # noqa: E402
from llamita.convert.export import export  # noqa: E402
from llamita.convert.inspect import inspect, type_counts  # noqa: E402
from llamita.errors import LlamitaError  # noqa: E402

MakeCheckpoint = Callable[..., Path]


@pytest.fixture(scope="module")
def folder(make_checkpoint: MakeCheckpoint, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("inspect")
    make_checkpoint(root / "model", "llama")
    export(root / "model", root / "model.gguf", "q8_0")
    export(root / "model", root / "model.bin")
    export(root / "model", root / "sharded", shard_bytes=50_000)
    return root


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("model", "checkpoint"), ("sharded", "checkpoint"), ("model.gguf", "GGUF"), ("model.bin", "llama2.c model v0"),
        ("tokenizer.bin", "tokenizer"), ("model/model.safetensors", "safetensors"),
        ("model/tokenizer.json", "tokenizer"), ("model/tokenizer.model", "tokenizer"),
    ],
)  # fmt: skip
def test_kinds_and_numbers(folder: Path, name: str, kind: str) -> None:
    found = inspect(folder / name)
    assert found.kind == kind
    if kind != "tokenizer":
        assert found.num_parameters == load_config(folder / "model").num_parameters
        assert sum(size for _, _, size, _ in type_counts(found.tensors)) == sum(t.num_bytes for t in found.tensors)
    if (folder / name).is_file():
        assert found.num_bytes == (folder / name).stat().st_size
    assert all(isinstance(value, str) and "\n" not in value and len(value) < 250 for _, value in found.properties)


def test_properties(folder: Path) -> None:
    gguf = dict(inspect(folder / "model.gguf").properties)
    assert gguf["general.file_type"] == "7 (mostly Q8_0)" and gguf["tokenizer.ggml.tokens"].startswith("string[420]: ")
    checkpoint = dict(inspect(folder / "model").properties)
    assert checkpoint["hidden_size"] == "64" and checkpoint["tokenizer"] == "SentencePiece BPE, 420 tokens"
    assert type_counts(inspect(folder / "model.gguf").tensors)[0][0] == "Q8_0"


def test_content_decides_not_the_name(folder: Path, tmp_path: Path) -> None:
    """A GGUF called .bin is a GGUF."""
    (tmp_path / "odd.bin").write_bytes((folder / "model.gguf").read_bytes())
    assert inspect(tmp_path / "odd.bin").kind == "GGUF"


@pytest.mark.parametrize("name", ["x.bin", "x.gguf", "x.pt", "x.safetensors", "x.json", "x.model", "tok.bin", "x"])
@pytest.mark.parametrize("content", [b"", b"\0", b"hello world, this is no model", bytes(300), b"\xff" * 300])
def test_nonsense_is_refused_in_one_line(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(LlamitaError) as caught:
        inspect(tmp_path / name)
    assert "\n" not in str(caught.value) and str(tmp_path) in str(caught.value)


def test_empty_folders(tmp_path: Path) -> None:
    with pytest.raises(LlamitaError, match=r"config\.json"):
        inspect(tmp_path)
    with pytest.raises(LlamitaError, match="No such file"):
        inspect(tmp_path / "none")
    (tmp_path / "store.json").write_text("{}")
    with pytest.raises(LlamitaError, match=r"store\.json"):
        inspect(tmp_path)

"""Imported llama2.c models: the matching tokenizer is found, others are refused."""

from __future__ import annotations

import shutil
import struct
from collections.abc import Callable
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from llamita.checkpoint import load_config  # noqa: E402
from llamita.convert.export import export  # noqa: E402
from llamita.convert.import_model import import_model  # noqa: E402
from llamita.errors import FormatError, OutputError, TokenizerError  # noqa: E402
from llamita.tokenizer import load_tokenizer  # noqa: E402


@pytest.fixture
def model_bin(make_checkpoint: Callable[..., Path], tmp_path: Path) -> Path:
    """A llama2.c model and its tokenizer.bin, in their own folder."""
    export(make_checkpoint(tmp_path / "original", "llama"), tmp_path / "seed" / "model.bin")
    return tmp_path / "seed" / "model.bin"


def test_texts_end_at_eos_and_at_bos(model_bin: Path, tmp_path: Path) -> None:
    """llama2.c separates texts with BOS and stops there."""
    report = import_model(model_bin, tmp_path / "out")
    assert report.kind == "llama2.c v0" and report.tokenizer_path == model_bin.with_name("tokenizer.bin")
    assert load_config(tmp_path / "out").eos_token_ids == (2, 1)
    assert set(load_tokenizer(tmp_path / "out").end_ids) == {1, 2}


def test_the_tokenizer_of_the_models_size_comes_first(
    model_bin: Path, tmp_path: Path, tiny_tokenizers: dict[str, Path]
) -> None:
    vocab_size = load_config(import_model(model_bin, tmp_path / "first").path).vocab_size
    shutil.copy(tiny_tokenizers["llama"] / "tokenizer.model", model_bin.with_name(f"tok{vocab_size}.model"))
    assert import_model(model_bin, tmp_path / "second").tokenizer_path.name == f"tok{vocab_size}.model"
    assert (tmp_path / "second" / "tokenizer.model").is_file()


def refuse(error: type[Exception], said: str, out: Path, source: Path, tokenizer: Path | None = None) -> None:
    with pytest.raises(error, match=said) as caught:
        import_model(source, out, tokenizer)
    assert "\n" not in str(caught.value) and not out.exists()


def test_tokenizers_that_do_not_belong(model_bin: Path, tmp_path: Path, tiny_tokenizers: dict[str, Path]) -> None:
    out = tmp_path / "out"
    refuse(TokenizerError, r"expected \d+ tokens, found 320", out, model_bin, tiny_tokenizers["gpt2"])
    refuse(TokenizerError, "none.bin", out, model_bin, tmp_path / "none.bin")
    model_bin.with_name("tokenizer.bin").unlink()
    refuse(TokenizerError, r"no tokenizer next to it .*--tokenizer FILE", out, model_bin)


def test_bad_sources(model_bin: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    refuse(FormatError, "No such file", out, tmp_path / "none.bin")
    refuse(FormatError, r"expected a folder with config\.json .* or with params\.json", out, tmp_path)
    (tmp_path / "model.gguf").write_bytes(b"GGUF" + bytes(50))
    refuse(FormatError, "version: expected 2 or 3, found 0", out, tmp_path / "model.gguf")
    content = bytearray(model_bin.read_bytes())
    struct.pack_into("<f", content, 28 + 4 * 10, float("nan"))
    model_bin.write_bytes(content)
    refuse(FormatError, r"model\.embed_tokens\.weight: expected finite numbers", out, model_bin)


def test_nothing_is_overwritten(model_bin: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with pytest.raises(OutputError, match="exists already"):
        import_model(model_bin, tmp_path / "out")
    assert not list((tmp_path / "out").iterdir())

"""`llamita quantize` as a user types it."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from llamita.cli import main
from llamita.convert.quant_mix import QUANT_MIXES
from llamita.formats.gguf import read_gguf, write_gguf
from llamita.formats.tensor_types import quantize

pytestmark = pytest.mark.usefixtures("engine_build")


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "model.gguf"
    array = np.random.default_rng(1).normal(size=(8, 96)).astype(np.float32)
    write_gguf(
        path, {"general.architecture": "llama"}, [("token_embd.weight", "F32", (8, 96))], [quantize(array, "F32")]
    )
    return path


def test_the_report(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["quantize", str(source), str(tmp_path / "small.gguf"), "--type", "q4_k"]) == 0
    out, err = capsys.readouterr()
    assert out == ""
    for said in ("small.gguf", "768, 8.50 bits each", "1 Q8_0", "% of token_embd.weight", "MB/s", "note", "not whole"):
        assert said in err
    assert read_gguf(tmp_path / "small.gguf").tensors["token_embd.weight"].type == "Q8_0"
    assert main(["quantize", str(tmp_path / "small.gguf"), str(tmp_path / "x.gguf"), "-t", "f16"]) == 2
    assert "--requantize" in capsys.readouterr().err
    assert main(["quantize", str(tmp_path / "small.gguf"), str(tmp_path / "x.gguf"), "-t", "f16", "--requantize"]) == 0


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["SOURCE", "TMP/x.gguf"], "--type"),
        (["SOURCE", "TMP/x.gguf", "--type", "q4_k_s"], "perhaps you meant q4_k"),
        (["SOURCE", "SOURCE", "--type", "q8_0"], "choose a new name"),
        (["TMP/none.gguf", "TMP/x.gguf", "--type", "q8_0"], "No such file"),
        (["SOURCE", "--type", "q8_0"], "OUT"),
    ],
)
def test_mistakes_get_one_line(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], said: str
) -> None:
    typed = [word.replace("SOURCE", str(source)).replace("TMP", str(tmp_path)) for word in words]
    assert main(["quantize", *typed]) == 2
    out, err = capsys.readouterr()
    assert out == "" and said in err and err.count("\n") == 1 and err.startswith("llamita: ")
    assert not (tmp_path / "x.gguf").exists()


@pytest.mark.parametrize("command", ["quantize", "export"])
def test_help_lists_every_type(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main([command, "--help"])
    assert QUANT_MIXES.keys() <= set(re.findall(r"[a-z]+\w*", capsys.readouterr().out))

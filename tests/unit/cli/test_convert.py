"""The commands export, import and inspect as a user types them: what they print, and one line for
every mistake."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

pytest.importorskip("torch")

from llamita.cli import main

MakeCheckpoint = Callable[..., Path]


@pytest.fixture(scope="module")
def checkpoint(make_checkpoint: MakeCheckpoint, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("commands") / "model", "llama", intermediate_size=172)


def test_export_inspect_import(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", str(checkpoint), str(tmp_path / "model.gguf"), "--type", "q4_0"]) == 0
    out, err = capsys.readouterr()
    assert out == "" and "1 Q8_0, 5 F32, 12 Q4_0, 2 F16" in err and "note" in err and "rounding error" in err
    assert main(["inspect", str(tmp_path / "model.gguf")]) == 0
    out, err = capsys.readouterr()
    assert err == "" and "llama.block_count" in out and "Q4_0  12 tensors" in out and "blk.0" not in out
    assert main(["inspect", "--tensors", str(tmp_path / "model.gguf")]) == 0
    assert "blk.1.ffn_down.weight" in capsys.readouterr().out
    assert main(["export", str(checkpoint), str(tmp_path / "model.bin")]) == 0
    assert "tokenizer.bin" in capsys.readouterr().err
    assert main(["import", str(tmp_path / "model.bin"), "--out", str(tmp_path / "again")]) == 0
    assert "llama2.c v0" in capsys.readouterr().err
    assert main(["inspect", str(tmp_path / "again")]) == 0
    assert "again: checkpoint" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["export", "CHECKPOINT", "TMP/x.onnx"], "ends in .gguf or .bin"),
        (["export", "CHECKPOINT", "TMP/x.gguf", "--type", "q8"], "perhaps you meant q8_0"),
        (["export", "CHECKPOINT", "TMP/x.gguf", "--tpye", "f16"], "--type"),
        (["export", "CHECKPOINT", "TMP/x.bin", "--type", "f16"], "(version 2), not f16"),
        (["export", "TMP/none", "TMP/x.gguf"], "no such folder"),
        (["export", "TMP", "TMP/x.gguf"], "config.json is missing"),
        (["export", "CHECKPOINT"], "OUT"),
        (["import", "TMP/none.bin", "--out", "TMP/x"], "No such file"),
        (["import", "TMP", "--out", "TMP/x"], "expected a folder with config.json"),
        (["import", "CHECKPOINT", "--out", "TMP/x", "--dtype", "int8"], "dtype: expected one of float32"),
        (["import", "CHECKPOINT", "--out", "TMP/x", "--chat-template", "llama"], "expected one of llama2"),
        (["import", "CHECKPOINT/model.safetensors", "--out", "TMP/x"], "import its folder"),
        (["inspect", "TMP/none"], "No such file"),
        (["inspect", "TMP"], "config.json"),
        (["inspect", "CHECKPOINT", "--tensor"], "--tensors"),
    ],
)
def test_mistakes_get_one_line_and_exit_code_2(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], said: str
) -> None:
    typed = [word.replace("CHECKPOINT", str(checkpoint)).replace("TMP", str(tmp_path)) for word in words]
    assert main(typed) == 2
    out, err = capsys.readouterr()
    assert out == "" and said in err and err.startswith("llamita: ") and err.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_folders_shards_and_verifying(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["export", str(checkpoint), str(tmp_path / "shards"), "--dtype", "bfloat16", "--shard-size", "40KB"]
    assert main(words) == 0
    err = capsys.readouterr().err
    assert "20 bfloat16" in err and "logits of 48 tokens" in err and "allowed: 0.1" in err
    assert len(list((tmp_path / "shards").glob("model-*.safetensors"))) > 2
    assert main(["import", str(tmp_path / "shards"), "--out", str(tmp_path / "again"), "--verify", "no"]) == 0
    err = capsys.readouterr().err
    assert "Hugging Face, safetensors" in err and "no (--verify yes)" in err and "MB/s" in err
    assert main(["export", str(checkpoint), str(tmp_path / "model.bin"), "--version", "2", "--verify", "no"]) == 0
    assert "15 INT8, 5 F32" in capsys.readouterr().err


def test_sizes_as_people_write_them() -> None:
    from llamita.cli.export import parse_bytes
    from llamita.errors import ConfigError

    sizes = {"5GB": 5 * 10**9, "500 MB": 5 * 10**8, "1GiB": 2**30, "40k": 40_000, "4096": 4096, "7B": 7}
    assert {text: parse_bytes(text) for text in sizes} == sizes
    for text in ("", "0", "0GB", "-5GB", "5.5GB", "GB", "5TB", "five", "9" * 30):
        with pytest.raises(ConfigError, match="expected a size such as 5GB or 500MB"):
            parse_bytes(text)

"""llamita merge and llamita export --adapter: what they write, what they say, what they refuse."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from llamita.checkpoint import load_config, load_model, load_tensors, point_link
from llamita.cli import main
from llamita.finetune.adapter import save_adapter
from llamita.finetune.lora import LoraConfig, add_lora, lora_layers, updates_of
from llamita.formats.gguf import read_gguf
from llamita.formats.rope_order import permute_qk


@pytest.fixture(scope="module")
def folder(make_checkpoint: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("adapter")
    checkpoint = make_checkpoint(root / "base")
    model = add_lora(load_model(checkpoint), LoraConfig(rank=4), torch.Generator().manual_seed(0))
    for update in updates_of(model).values():
        update.b.normal_(0, 0.1, generator=torch.Generator().manual_seed(1))
    save_adapter(root / "adapter", updates_of(model), LoraConfig(rank=4), None)
    return root


def test_merge(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["merge", str(folder / "base"), str(folder / "adapter"), "-o", str(tmp_path / "merged")]) == 0
    assert "14 layers" in capsys.readouterr().err
    base, merged = load_tensors(folder / "base"), load_tensors(tmp_path / "merged")
    changed = {name for name in base if not torch.equal(base[name], merged[name])}
    assert changed == {name for name in base if "_proj" in name}
    assert main(["merge", str(folder / "base"), str(folder / "adapter"), "-o", str(tmp_path / "merged")]) == 2
    assert "exists already" in capsys.readouterr().err
    assert main(["merge", str(folder / "base"), str(folder / "base"), "-o", str(tmp_path / "other")]) == 2
    assert "adapter_config.json is missing" in capsys.readouterr().err


def test_an_adapter_of_another_base_gives_a_warning(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(folder / "adapter", tmp_path / "adapter")
    config = tmp_path / "adapter" / "adapter_config.json"
    values = json.loads(config.read_text())
    for number, (base, warns) in enumerate(((folder / "base", False), (tmp_path, True), ("a-hub/name", False))):
        config.write_text(json.dumps(values | {"base_model_name_or_path": str(base)}))
        words = ["merge", str(folder / "base"), str(tmp_path / "adapter"), "-o", str(tmp_path / f"merged{number}")]
        assert main(words) == 0
        assert ("was made for" in capsys.readouterr().err) is warns


def test_export_adapter(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "adapter.gguf"
    words = ["export", str(folder / "base"), str(out), "--adapter", str(folder / "adapter")]
    assert main(words) == 0, capsys.readouterr().err
    said = " ".join(capsys.readouterr().err.split())
    assert f"llamita run|chat BASE.gguf --adapter {out}[:SCALE]" in said and f"--lora {out}" in said
    assert "the checkpoint has no chat template, and chat needs one in BASE.gguf" in said
    file, config = read_gguf(out), load_config(folder / "base")
    assert file.metadata["general.type"] == "adapter" and file.metadata["adapter.type"] == "lora"
    assert file.metadata["adapter.lora.alpha"] == 8.0 and len(file.tensors) == 28
    from llamita.finetune.adapter import load_adapter

    update = load_adapter(folder / "adapter", config).updates["model.layers.1.self_attn.k_proj"]
    expected = permute_qk(update.b.numpy(), config.num_key_value_heads)
    assert np.array_equal(file.dequantize("blk.1.attn_k.weight.lora_b"), expected)
    assert np.array_equal(file.dequantize("blk.1.attn_k.weight.lora_a"), update.a.numpy())
    capsys.readouterr()
    for more in (["--type", "q8_0"], ["--verify", "yes"], ["--license", "mit"]):
        assert main([*words, *more]) == 2
        assert "cannot export" in capsys.readouterr().err
    words[2] = str(tmp_path / "adapter.bin")
    assert main(words) == 2 and ".gguf" in capsys.readouterr().err


def test_export_adapter_of_a_base_that_chats(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What the note of a base that does not says to do; the base's folder without a tokenizer:
    nothing is known."""
    chats, silent, out = tmp_path / "chats", tmp_path / "silent", str(tmp_path / "adapter.gguf")
    assert main(["import", str(folder / "base"), "--out", str(chats), "--chat-template", "zephyr"]) == 0
    shutil.copytree(folder / "base", silent)
    for name in ("tokenizer.json", "tokenizer.model", "tokenizer.bin"):
        (silent / name).unlink(missing_ok=True)
    for base in (chats, silent):
        capsys.readouterr()
        assert main(["export", str(base), out, "--adapter", str(folder / "adapter")]) == 0
        said = capsys.readouterr().err
        assert "BASE.gguf --adapter" in said and "template" not in said


def test_export_of_a_run_of_adapters_is_that_of_the_merged(
    make_checkpoint: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base, adapter = make_checkpoint(tmp_path / "base"), tmp_path / "mine" / "step-00000001"
    model = add_lora(load_model(base), LoraConfig(rank=2))
    for _, layer in lora_layers(model):
        torch.nn.init.normal_(layer.lora_B.weight)
    save_adapter(adapter, updates_of(model), LoraConfig(rank=2), str(base), base)
    point_link(tmp_path / "mine", "best", adapter)
    assert main(["merge", str(base), str(tmp_path / "mine"), "--out", str(tmp_path / "merged" / "mine")]) == 0
    for source, out in (("mine", "a.gguf"), ("merged/mine", "b.gguf")):
        assert main(["export", str(tmp_path / source), str(tmp_path / out), "--type", "f32", "--verify", "no"]) == 0
    assert (tmp_path / "a.gguf").read_bytes() == (tmp_path / "b.gguf").read_bytes()
    assert not list(tmp_path.glob(".*")), "nothing is left over"
    shutil.rmtree(base)
    capsys.readouterr()
    assert main(["export", str(tmp_path / "mine"), str(tmp_path / "c.gguf")]) == 2
    assert "is not a folder here; merge it by hand" in capsys.readouterr().err
    assert main(["chat", str(tmp_path / "mine")]) == 2
    assert "is not a folder here; merge it by hand" in capsys.readouterr().err

"""Checkpoint folders: round trips, and errors that name what is wrong."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from llamita.checkpoint import (
    TrainingState,
    load_config,
    load_model,
    load_tensors,
    load_training_state,
    point_link,
    prune_checkpoints,
    resolve_checkpoint,
    save_checkpoint,
    step_directory,
)
from llamita.errors import CheckpointError, OutputError

MakeCheckpoint = Callable[..., Path]


@pytest.fixture
def checkpoint(make_checkpoint: MakeCheckpoint, tmp_path: Path) -> Path:
    return make_checkpoint(tmp_path / "checkpoint")


def test_round_trip(checkpoint: Path, tmp_path: Path) -> None:
    config, tensors = load_config(checkpoint), load_tensors(checkpoint)
    state = TrainingState({"step": 3}, {"exp_avg/model.norm.weight": torch.arange(4.0)})
    save_checkpoint(tmp_path / "again", config, tensors, checkpoint, state)
    assert load_config(tmp_path / "again") == config
    again = load_tensors(tmp_path / "again")
    assert again.keys() == tensors.keys() and all(torch.equal(again[name], tensors[name]) for name in tensors)
    assert load_training_state(tmp_path / "again").values == {"step": 3}
    assert (tmp_path / "again" / "tokenizer.json").read_bytes() == (checkpoint / "tokenizer.json").read_bytes()
    assert load_model(tmp_path / "again").config == config


def test_an_existing_checkpoint_is_not_overwritten(checkpoint: Path) -> None:
    with pytest.raises(OutputError, match="exists already"):
        save_checkpoint(checkpoint, load_config(checkpoint), load_tensors(checkpoint), None)


def change_tensors(checkpoint: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    tensors = load_file(checkpoint / "model.safetensors")
    change(tensors)
    save_file(tensors, checkpoint / "model.safetensors")


def test_tensors_are_checked_by_name_and_shape(
    checkpoint: Path, make_checkpoint: MakeCheckpoint, tmp_path: Path
) -> None:
    change_tensors(checkpoint, lambda tensors: tensors.pop("model.norm.weight"))
    with pytest.raises(CheckpointError, match=r"tensor model\.norm\.weight is missing"):
        load_model(checkpoint)
    change_tensors(checkpoint, lambda tensors: tensors.update({"model.norm.weight": torch.ones(3)}))
    with pytest.raises(CheckpointError, match=r"model\.norm\.weight: expected shape \[64\], found \[3\]"):
        load_model(checkpoint)
    other = make_checkpoint(tmp_path / "other")
    change_tensors(other, lambda tensors: tensors.update({"model.bias": torch.ones(3)}))
    with pytest.raises(CheckpointError, match=r"unknown tensor model\.bias"):
        load_model(other)


def test_damaged_files_are_named(checkpoint: Path) -> None:
    whole = (checkpoint / "model.safetensors").read_bytes()
    for length in (0, 7, 8, 100, len(whole) - 1):
        (checkpoint / "model.safetensors").write_bytes(whole[:length])
        with pytest.raises(CheckpointError, match=r"cannot read .*model\.safetensors"):
            load_tensors(checkpoint)
    for text in ("", "{", "[]", '"config"', "\udcff"):
        (checkpoint / "config.json").write_bytes(text.encode("utf-8", "surrogateescape"))
        with pytest.raises(CheckpointError, match=r"cannot read .*config\.json"):
            load_config(checkpoint)


def test_what_is_not_a_checkpoint_is_refused(tmp_path: Path, checkpoint: Path) -> None:
    with pytest.raises(CheckpointError, match="no such folder"):
        resolve_checkpoint(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match="found a file"):
        resolve_checkpoint(checkpoint / "config.json")
    (checkpoint / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"model\.safetensors is missing"):
        resolve_checkpoint(checkpoint)
    with pytest.raises(CheckpointError, match="no training/ folder"):
        (checkpoint / "model.safetensors").touch()
        load_training_state(checkpoint)


def test_a_run_directory_is_its_best_checkpoint(make_checkpoint: MakeCheckpoint, tmp_path: Path) -> None:
    for step in (1, 2, 3):
        make_checkpoint(step_directory(tmp_path, step), seed=step)
    (tmp_path / ".step-00000004.x.partial").mkdir()
    point_link(tmp_path, "latest", step_directory(tmp_path, 2))
    assert resolve_checkpoint(tmp_path).resolve().name == "step-00000002"
    point_link(tmp_path, "latest", step_directory(tmp_path, 3))
    point_link(tmp_path, "best", step_directory(tmp_path, 2))
    assert resolve_checkpoint(tmp_path).resolve().name == "step-00000002"
    assert resolve_checkpoint(tmp_path, prefer="latest").resolve().name == "step-00000003"
    prune_checkpoints(tmp_path)
    assert sorted(os.listdir(tmp_path)) == ["best", "latest", "step-00000002", "step-00000003"]


def test_a_full_disk_is_one_line_and_leaves_nothing(checkpoint: Path, tmp_path: Path) -> None:
    """In a process that may write no file larger than 64 KiB: as on a disk that fills up among the
    tensors."""
    code = (
        "import resource, signal, sys\n"
        "from pathlib import Path\n"
        "from llamita.checkpoint import load_config, load_tensors, save_checkpoint\n"
        "from llamita.errors import OutputError\n"
        "source, target = Path(sys.argv[1]), Path(sys.argv[2])\n"
        "config, tensors = load_config(source), load_tensors(source)\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, 1 << 16))\n"
        "try:\n"
        "    save_checkpoint(target, config, tensors, source)\n"
        "except OutputError as error:\n"
        "    print(error)\n"
    )
    target = tmp_path / "full" / "target"
    done = subprocess.run([sys.executable, "-c", code, checkpoint, target], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "cannot write" in done.stdout and done.stdout.count("\n") == 1
    assert not target.parent.exists() or os.listdir(target.parent) == []


def test_config_is_what_hugging_face_expects(checkpoint: Path) -> None:
    values = json.loads((checkpoint / "config.json").read_text())
    assert values["architectures"] == ["LlamaForCausalLM"] and values["model_type"] == "llama"
    assert values["hidden_size"] == 64 and values["num_key_value_heads"] == 2

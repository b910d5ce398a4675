"""A fine-tuning run, full or LoRA, killed with -9 and resumed, ends with the same bytes."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")

from llamita.tokenizer.chat_templates import replace_chat_template
from tests.end_to_end.test_resume import latest, wait_for
from tests.training_runs import untimed

pytestmark = pytest.mark.slow

PACE = [
    "--steps=40", "--eval-interval=10", "--log-interval=3", "--save-minutes=0.001", "--micro-batch-size=1",
    "--dropout=0.1",
    "--device=cpu", "--threads=1",
]  # fmt: skip


def start(base: Path, data: Path, run: Path, *more: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "llamita", "finetune", str(base), str(data), "--out", str(run), *PACE, *more]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


BIASES: dict[str, Any] = {"architecture": "qwen2", "attention_bias": True}
NORMS: dict[str, Any] = {"architecture": "qwen3", "use_qk_norm": True}
CASES: dict[str, tuple[dict[str, Any], list[str]]] = {
    "all weights": ({}, []),
    "updates": ({}, ["--lora", "--rank=4"]),
    "updates of 4 bits": ({}, ["--lora", "--rank=4", "--load-in-4bit"]),
    "all weights of Qwen2": (BIASES, []),
    "updates of Qwen3": (NORMS, ["--lora", "--rank=4"]),
}


@pytest.mark.parametrize("name", CASES)
def test_killed_runs_end_with_the_same_bytes(make_checkpoint: Callable[..., Path], tmp_path: Path, name: str) -> None:
    changes, flags = CASES[name]
    if "--load-in-4bit" in flags:
        pytest.importorskip("bitsandbytes", reason="QLoRA needs bitsandbytes: pip install 'llamita[qlora]'")
    base, data = make_checkpoint(tmp_path / "base", **changes), tmp_path / "questions.jsonl"
    replace_chat_template(base, "chatml")
    rows = [{"question": f"What is {number} and {number}?", "answer": str(2 * number)} for number in range(40)]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    process = start(base, data, whole, *flags)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors.decode()
    process = start(base, data, parts, *flags)
    wait_for(process, lambda: latest(parts) > "step-00000014")
    process.kill()
    process.communicate()
    assert process.returncode == -9 and latest(parts) < "step-00000040", "killed too late"
    process = start(base, data, parts, *flags, "--resume")
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors.decode()
    weights = "adapter_model.safetensors" if flags else "model.safetensors"
    for name in (weights, "training/state.safetensors", "tokenizer_config.json"):
        assert (whole / "latest" / name).read_bytes() == (parts / "latest" / name).read_bytes(), name
    assert untimed(whole) == untimed(parts)
    assert (whole / "best").readlink() == (parts / "best").readlink()

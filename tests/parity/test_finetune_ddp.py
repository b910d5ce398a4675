"""Two processes under torchrun fine-tune like one: the same rows, losses and judgments to 1e-5."""

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

pytestmark = pytest.mark.slow

PACE = ["--steps=8", "--eval-interval=4", "--log-interval=1", "--context=128", "--device=cpu", "--learning-rate=3e-3"]


def run_training(base: Path, data: Path, run: Path, processes: int, *more: str) -> list[dict[str, Any]]:
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"] if processes > 1 else []
    words = [sys.executable, *launcher, "-m", "llamita", "finetune", str(base), str(data), "--out", str(run), *PACE]
    done = subprocess.run([*words, *more], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("held out: ") == 1, "the first process alone reports"
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(
    "flags",
    [[], ["--lora"], ["--lora", "--load-in-4bit"], ["--fsdp"], ["--fsdp", "--lora"]],
    ids=["all weights", "updates", "updates of 4 bits", "sharded", "both"],
)
def test_two_processes_equal_one(make_checkpoint: Callable[..., Path], tmp_path: Path, flags: list[str]) -> None:
    if "--load-in-4bit" in flags:
        pytest.importorskip("bitsandbytes", reason="QLoRA needs bitsandbytes: pip install 'llamita[qlora]'")
    base, data = make_checkpoint(tmp_path / "base"), tmp_path / "questions.jsonl"
    replace_chat_template(base, "chatml")
    rows = [{"question": f"What is {number} and {number}?", "answer": str(2 * number)} for number in range(40)]
    rows += [{"question": "Why?", "answer": "Because it is so. " * number} for number in range(1, 6)]  # unevenly
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    one = run_training(base, data, tmp_path / "one", 1, *flags, "--micro-batch-size=2", "--grad-accum-steps=2")
    two = run_training(base, data, tmp_path / "two", 2, *flags, "--micro-batch-size=2")
    assert len(one) == len(two) == 8 + 3
    for alone, together in zip(one, two, strict=True):
        for key in ("kind", "step", "tokens", "exact", "contains", "sample"):
            assert alone.get(key) == together.get(key), (key, alone, together)
        assert abs(alone["loss"] - together["loss"]) < 1e-5 * max(1, alone["loss"]), (alone, together)

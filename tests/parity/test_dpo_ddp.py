"""Two processes under torchrun prefer like one: the same pairs, the same reference, the same losses
to 1e-5."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")

from llamita.finetune.dpo_evaluate import NAME

pytestmark = pytest.mark.slow

FLAGS = [
    "--preference=dpo", "--lora", "--rank=4", "--beta=0.3", "--learning-rate=5e-3", "--steps=6", "--eval-interval=3",
    "--log-interval=1", "--micro-batch-size=1", "--context=64", "--val-fraction=0.2", "--chat-template=zephyr",
    "--device=cpu", "--threads=1",
]  # fmt: skip


def run_finetune(checkpoint: Path, data: Path, run: Path, processes: int, *more: str) -> list[dict[str, Any]]:
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"] if processes > 1 else []
    words = [sys.executable, *launcher, "-m", "llamita", "finetune", str(checkpoint), str(data), f"--out={run}", *FLAGS]
    done = subprocess.run([*words, *more], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_two_processes_equal_one(make_checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    checkpoint = make_checkpoint(tmp_path / "base", "llama")
    data = tmp_path / "pairs.jsonl"
    words = [{"prompt": f"Is it {n}?", "chosen": f"yes, {n % 7}", "rejected": "no" * (1 + n % 4)} for n in range(40)]
    data.write_text("\n".join(map(json.dumps, words)))
    one = run_finetune(checkpoint, data, tmp_path / "one", 1, "--grad-accum-steps=2")
    two = run_finetune(checkpoint, data, tmp_path / "two", 2)
    assert len(one) == len(two) == 6 + 3
    for alone, together in zip(one, two, strict=True):
        same = ("kind", "step", "tokens")
        assert [alone[name] for name in same] == [together[name] for name in same]
        for name in ("loss", *(("margin", "accuracy") if alone["kind"] == "eval" else ())):
            assert abs(alone[name] - together[name]) < 1e-5, (alone, together)
    references = [np.load(tmp_path / name / NAME) for name in ("one", "two")]
    assert all(np.allclose(references[0][name], references[1][name], atol=1e-4) for name in ("learn", "val"))
    evaluated = [line for line in one if line["kind"] == "eval"]
    assert evaluated[-1]["margin"] > evaluated[0]["margin"] == 0

"""Two processes under torchrun train like one: same rows, same losses to 1e-5, one report."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.slow

pytest.importorskip("torch")

SHAPE = [
    "--layers=2",
    "--hidden=64",
    "--heads=4",
    "--kv-heads=2",
    "--context=64",
    "--micro-batch-size=4",
    "--device=cpu",
]
PACE = ["--steps=12", "--eval-interval=6", "--log-interval=1", "--optimizer=muon"]


def command(store: Path, run: Path, processes: int, *more: str) -> list[str]:
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"] if processes > 1 else []
    flags = ["train", str(store), "--out", str(run), *SHAPE, *PACE, *more]
    return [sys.executable, *launcher, "-m", "llamita", *flags]


def read_losses(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def run_training(store: Path, run: Path, processes: int, *more: str) -> list[dict[str, Any]]:
    words = command(store, run, processes, *more)
    done = subprocess.run(words, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("tokens per step: 512") == 1, "only the first process reports"
    return read_losses(run)


@pytest.fixture(scope="module")
def one(story_store: Path, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """The metrics of one process."""
    return run_training(story_store, tmp_path_factory.mktemp("one") / "run", 1, "--grad-accum-steps", "2")


def test_two_processes_equal_one(one: list[dict[str, Any]], story_store: Path, tmp_path: Path) -> None:
    two = run_training(story_store, tmp_path / "two", 2)
    assert len(one) == len(two) == 12 + 2
    for alone, together in zip(one, two, strict=True):
        assert (alone["kind"], alone["step"], alone["tokens"]) == (
            together["kind"],
            together["step"],
            together["tokens"],
        )
        assert abs(alone["loss"] - together["loss"]) < 1e-5, (alone, together)
    shares = json.loads((tmp_path / "two" / "summary.json").read_text())
    assert shares["processes"] == 2


def test_two_processes_train_the_same_generations(story_store: Path, tmp_path: Path) -> None:
    alone = run_training(story_store, tmp_path / "one", 1, "--grad-accum-steps=2", "--generations=2")
    together = run_training(story_store, tmp_path / "two", 2, "--generations=2")
    assert [line["kind"] for line in alone].count("generation") == 1 and len(alone) == len(together)
    for one, two in zip(alone, together, strict=True):
        assert (one["kind"], one["step"], one["tokens"]) == (two["kind"], two["step"], two["tokens"])
        assert one["kind"] == "generation" or abs(one["loss"] - two["loss"]) < 1e-5, (one, two)


def test_a_run_of_two_resumes_as_one(
    one: list[dict[str, Any]], story_store: Path, tmp_path: Path, kill_launch: Callable[[subprocess.Popen[bytes]], None]
) -> None:
    """The position in the data is global, so the number of processes may change."""
    run = tmp_path / "run"
    words = command(story_store, run, 2)
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    # the evaluation after step 6 saves the first checkpoint
    while not (run / "latest").is_symlink():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.001)
    kill_launch(process)
    assert len(read_losses(run)) < len(one), "killed too late"
    resumed = run_training(story_store, run, 1, "--grad-accum-steps", "2", "--resume")
    assert all(abs(a["loss"] - b["loss"]) < 1e-5 for a, b in zip(one, resumed, strict=True))

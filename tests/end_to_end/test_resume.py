"""A run killed with -9 at any moment, and resumed, ends with the same bytes.

LLAMITA_KILLS: the number of kills, by default 3. Some come while a checkpoint is being written.
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")

from tests.training_runs import untimed

pytestmark = pytest.mark.slow

SHAPE = [
    "--layers=2",
    "--hidden=64",
    "--heads=4",
    "--kv-heads=2",
    "--context=64",
    "--micro-batch-size=8",
    "--dropout=0.1",
]
PACE = [
    "--optimizer=muon",
    "--eval-interval=25",
    "--log-interval=7",
    "--save-minutes=0.001",
    "--device=cpu",
    "--threads=1",
]
KILLS = int(os.environ.get("LLAMITA_KILLS", "3"))
STEPS = max(100, 40 * KILLS)


def start(store: Path, run: Path, *more: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "llamita", "train", str(store), "--out", str(run), *SHAPE, *PACE, *more]
    command.append(f"--steps={STEPS}")
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def wait_for(process: subprocess.Popen[bytes], moment: Any) -> None:
    """Until moment() is true, or the process has ended."""
    deadline = time.monotonic() + 120
    while process.poll() is None and not moment():
        assert time.monotonic() < deadline, "training makes no progress"
        time.sleep(0.0005)


def latest(run: Path) -> str:
    return (run / "latest").readlink().name if (run / "latest").is_symlink() else ""


@pytest.mark.parametrize("more", [(), ("--resume",)], ids=["start", "resume"])
def test_a_second_trainer_of_a_run_is_refused(story_store: Path, tmp_path: Path, more: tuple[str, ...]) -> None:
    run = tmp_path / "run"
    first = start(story_store, run)
    try:
        wait_for(first, lambda: latest(run) != "")
        before = untimed(run)
        second = start(story_store, run, *more)
        _, errors = second.communicate()
        assert second.returncode == 2 and errors.count(b"\n") == 1, errors
        if more:
            assert f"process {first.pid} on ".encode() in errors and b"is training there; wait for it" in errors
        assert first.poll() is None and untimed(run)[: len(before)] == before
    finally:
        first.kill()
        first.communicate()
    assert (run / "run.lock").exists(), "nobody removed it"
    third = start(story_store, run, "--resume")
    _, errors = third.communicate()
    assert third.returncode == 0, errors
    assert not (run / "run.lock").exists() and len(untimed(run)) == len({str(line) for line in untimed(run)})


def test_killed_runs_end_with_the_same_bytes(story_store: Path, tmp_path: Path) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    process = start(story_store, whole)
    _, errors = process.communicate()
    assert process.returncode == 0, errors.decode()
    choose = random.Random(time.time_ns())
    during_saves = steps_at_kills = 0
    for kill in range(KILLS):
        process = start(story_store, parts, *(["--resume"] if (parts / "run.json").exists() else []))
        before = latest(parts)
        wait_for(process, lambda before=before: latest(parts) != before)
        if kill % 2:  # while a checkpoint is being written, behind the steps
            wait_for(process, lambda: any(parts.glob(".step-*.partial")))
        else:
            time.sleep(choose.uniform(0.0, 0.3))
        process.kill()
        _, errors = process.communicate()
        assert process.returncode in (-9, 0), errors.decode()
        during_saves += any(parts.glob(".step-*.partial"))
        steps_at_kills += process.returncode == -9
        (parts / latest(parts) / "model.safetensors").stat()
    assert steps_at_kills >= 2 and during_saves >= 1, "the kills came too late"
    process = start(story_store, parts, "--resume")
    _, errors = process.communicate()
    assert process.returncode == 0, errors.decode()
    for name in ("model.safetensors", "training/state.safetensors"):
        assert (whole / "latest" / name).read_bytes() == (parts / "latest" / name).read_bytes(), name
    assert untimed(whole) == untimed(parts)
    assert latest(whole) == latest(parts) == f"step-{STEPS:08d}"
    assert not list(parts.glob(".*")), "nothing is left over"

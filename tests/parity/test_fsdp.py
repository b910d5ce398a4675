"""FSDP2 and sharded Muon train like one process; a run moves from 2 processes to 1 to 4, and
survives a killed process."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from llamita.checkpoint import load_tensors, load_training_state  # noqa: E402
from llamita.config import TrainConfig  # noqa: E402
from llamita.training.pretraining import train  # noqa: E402
from tests.training_runs import stop_at  # noqa: E402

pytestmark = pytest.mark.slow

STEPS, ROWS, INTERRUPTED_STEP = 40, 8, 25
SHAPE: dict[str, Any] = {"layers": 2, "hidden": 32, "heads": 4, "kv_heads": 2, "context": 32}
PACE: dict[str, Any] = {
    "steps": STEPS, "averaged_fraction": 0.5, "eval_interval": 20, "log_interval": 1, "device": "cpu", "threads": 1,
}  # fmt: skip
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone"]


def make_config(store: Path, run: Path, **changes: Any) -> TrainConfig:
    return TrainConfig(
        data=store, out=run, **SHAPE, **(PACE | {"optimizer": "muon", "micro_batch_size": ROWS} | changes)
    )


def launch(store: Path, run: Path, processes: int, *more: str, restarts: int = 0) -> subprocess.Popen[str]:
    """`llamita train` in several processes, saving after each step."""
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in (SHAPE | PACE).items()]
    command = [*TORCHRUN, f"--nproc-per-node={processes}", f"--max-restarts={restarts}", "-m", "llamita", "train"]
    command += [str(store), "--out", str(run), "--optimizer=muon", "--save-minutes=0.0001", *flags, *more]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def wait_for_a_checkpoint(process: subprocess.Popen[str], run: Path) -> None:
    deadline = time.monotonic() + 240
    while not (run / "latest").is_symlink() or (run / "latest").readlink().name < "step-00000002":
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline, "no checkpoint"
        time.sleep(0.001)


def losses(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def check_same(run: Path, expected: Path) -> None:
    found, wanted = losses(run), losses(expected)
    assert len(found) == len(wanted) == STEPS + 2
    for a, b in zip(found, wanted, strict=True):
        assert (a["kind"], a["step"], a["tokens"]) == (b["kind"], b["step"], b["tokens"])
        assert abs(a["loss"] - b["loss"]) < 1e-4, (a, b)
    for name, tensor in load_tensors(expected / "latest").items():
        torch.testing.assert_close(load_tensors(run / "latest")[name], tensor, rtol=1e-3, atol=1e-3)


@pytest.fixture(scope="module")
def one(story_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An uninterrupted run of one process."""
    run = tmp_path_factory.mktemp("one") / "run"
    train(make_config(story_store, run))
    return run


def test_checks_in_two_processes() -> None:
    script = Path(__file__).with_name("fsdp_checks.py")
    done = subprocess.run(
        [*TORCHRUN, "--nproc-per-node=2", str(script)], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0 and "all checks passed" in done.stdout, done.stderr


def test_from_two_sharded_processes_to_one_to_four(
    one: Path,
    story_store: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    kill_launch: Callable[[subprocess.Popen[str]], None],
) -> None:
    """Killed with -9, resumed unsharded, interrupted, resumed in four shards: the same run."""
    run = tmp_path / "run"
    process = launch(story_store, run, 2, "--fsdp", "--micro-batch-size=2", "--grad-accum-steps=2")
    wait_for_a_checkpoint(process, run)
    kill_launch(process)
    state = load_training_state(run)
    assert state.shards is not None and {path.name for path in state.shards.glob("*.distcp")} >= {"__0_0.distcp"}
    assert state.values["trainer"]["progress"]["step"] < INTERRUPTED_STEP, "killed too late"
    with monkeypatch.context() as patched:
        stop_at(patched, INTERRUPTED_STEP)
        stopped = train(make_config(story_store, run, resume=True))
    assert stopped.interrupted and load_training_state(run).tensors.keys() >= {
        "momentum/model.layers.0.mlp.up_proj.weight"
    }
    process = launch(story_store, run, 4, "--fsdp", "--micro-batch-size=2", "--resume")
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0 and f"resuming at step {INTERRUPTED_STEP + 1}" in errors, errors
    check_same(run, one)
    assert json.loads((run / "summary.json").read_text())["processes"] == 4
    assert not [path for path in run.iterdir() if path.name.startswith(".")], "no temporary files are left"


def test_torchrun_restarts_when_a_process_dies(
    one: Path, story_store: Path, tmp_path: Path, kill_worker: Callable[[subprocess.Popen[str]], None]
) -> None:
    """Without --resume: the run belongs to this torchrun."""
    run = tmp_path / "run"
    process = launch(story_store, run, 2, "--micro-batch-size=4", restarts=1)
    wait_for_a_checkpoint(process, run)
    kill_worker(process)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0 and "resuming at step" in errors, errors
    check_same(run, one)

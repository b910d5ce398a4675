"""The two-machine commands of docs/scale.md, on two loopback addresses: a machine dies and returns."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from llamita.checkpoint import load_tensors  # noqa: E402

pytestmark = pytest.mark.slow

STEPS = 40
FLAGS = [
    "--layers=2", "--hidden=32", "--heads=4", "--kv-heads=2", "--context=32", "--micro-batch-size=4",
    f"--steps={STEPS}", "--eval-interval=20", "--log-interval=1", "--save-minutes=0.0001",
    "--device=cpu", "--threads=1",
]  # fmt: skip
PAGE = Path(__file__).parents[2] / "docs/scale.md"
ADDRESSES = ("127.0.0.1", "127.0.0.2")
Nodes = list[subprocess.Popen[str]]


def documented_launcher(port: int, launch: str) -> list[str]:
    """The options of torchrun on the page, with a CPU process on each machine."""
    page = PAGE.read_text(encoding="utf-8")
    found = re.search(r"\n(torchrun --nnodes 2.*?) -m llamita train", page, re.DOTALL)
    assert found is not None
    words = found[1].replace("\\\n", " ").split()[1:]
    values = {"8": "1", "node0:29500": f"{ADDRESSES[0]}:{port}", "stories-1": launch}
    assert values.keys() <= set(words)
    return [values.get(word, word) for word in words]


@pytest.fixture
def nodes(kill_launch: Callable[[subprocess.Popen[Any]], None]) -> Iterator[Nodes]:
    if sys.platform != "linux":
        pytest.skip("other systems have no address 127.0.0.2")
    started: Nodes = []
    yield started
    for process in started:
        if process.poll() is None:
            kill_launch(process)


def start(nodes: Nodes, node: int, port: int, launch: str, run: Path, store: Path, *more: str) -> None:
    launcher = [*documented_launcher(port, launch), f"--local-addr={ADDRESSES[node]}"]
    launcher += [f"--rdzv-conf=is_host={1 - node}"]  # both addresses are this machine's
    words = [sys.executable, "-m", "torch.distributed.run", *launcher, "-m", "llamita", "train", str(store)]
    name, value = re.findall(r"^export (TORCH_\w+)=(\w+)$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)[0]
    with open(run.with_name(f"{node}.log"), "a", encoding="utf-8") as log:
        environment = os.environ | {"COLUMNS": "200", name: value}
        nodes.append(
            subprocess.Popen(
                [*words, "--out", str(run), *FLAGS, *more], stdout=log, stderr=log, text=True, env=environment
            )
        )


def logs(run: Path) -> str:
    return "".join(run.with_name(f"{node}.log").read_text(encoding="utf-8") for node in range(2))


def finish(nodes: Nodes, run: Path) -> None:
    for process in nodes:
        assert process.wait(timeout=240) == 0, logs(run)
    nodes.clear()


def wait_for_a_checkpoint(nodes: Nodes, run: Path) -> None:
    deadline = time.monotonic() + 240
    while not (run / "latest").is_symlink() or (run / "latest").readlink().name < "step-00000002":
        assert all(process.poll() is None for process in nodes) and time.monotonic() < deadline, logs(run)
        time.sleep(0.001)


def free_port() -> int:
    with socket.socket() as each:
        each.bind((ADDRESSES[0], 0))
        return int(each.getsockname()[1])


def metrics(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("flags", [[], ["--fsdp"]], ids=["ddp", "fsdp"])
def test_a_machine_dies(
    nodes: Nodes,
    flags: list[str],
    story_store: Path,
    tmp_path: Path,
    kill_launch: Callable[[subprocess.Popen[Any]], None],
) -> None:
    """kill -9 one machine's processes and start them again: the other one waits. Then kill both,
    and start both anew with --resume."""
    whole, run = tmp_path / "whole" / "run", tmp_path / "killed" / "run"
    port, later_port = free_port(), free_port()
    for each in (whole, run):
        each.parent.mkdir()
    for node in range(2):
        start(nodes, node, port, "whole", whole, story_store, *flags)
    finish(nodes, whole)

    for node in range(2):
        start(nodes, node, port, "killed", run, story_store, *flags)
    wait_for_a_checkpoint(nodes, run)
    kill_launch(nodes.pop(1))
    start(nodes, 1, port, "killed", run, story_store, *flags)
    deadline = time.monotonic() + 240
    while "resuming at step" not in logs(run):
        assert all(process.poll() is None for process in nodes) and time.monotonic() < deadline, logs(run)
        time.sleep(0.001)
    for _ in range(2):
        kill_launch(nodes.pop())
    assert "lost the connection to another process" in logs(run), logs(run)
    assert len(metrics(run)) < STEPS + 2, "killed too late"
    for node in range(2):
        start(nodes, node, later_port, "later", run, story_store, "--resume", *flags)
    finish(nodes, run)

    found, wanted, tolerance = metrics(run), metrics(whole), 1e-4 if flags else 0.0
    assert len(found) == len(wanted) == STEPS + 2
    for a, b in zip(found, wanted, strict=True):
        assert (a["kind"], a["step"], a["tokens"]) == (b["kind"], b["step"], b["tokens"])
        assert abs(a["loss"] - b["loss"]) <= tolerance, (a, b)
    for name, tensor in load_tensors(whole / "latest").items():
        torch.testing.assert_close(load_tensors(run / "latest")[name], tensor, rtol=tolerance, atol=tolerance)

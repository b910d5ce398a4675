"""llamita update and train --from under torchrun: two processes train like one, the first one does the
rest."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

pytest.importorskip("torch")

from llamita.config import TrainConfig  # noqa: E402
from llamita.run_directory import read_metrics  # noqa: E402
from llamita.training.pretraining import train  # noqa: E402

SHAPE = {"layers": 1, "hidden": 32, "heads": 2, "kv_heads": 1, "ffn": 64, "context": 64, "micro_batch_size": 4}


@pytest.fixture(scope="module")
def base(story_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("base") / "run"
    train(TrainConfig(data=story_store, out=run, steps=20, device="cpu", threads=1, **SHAPE))
    return run


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "new.txt"
    path.write_text("<|endoftext|>".join(f"Number {i} met number {i + 1} and said hello to it." for i in range(900)))
    return path


def llamita(processes: int, *words: object) -> subprocess.CompletedProcess[str]:
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"] if processes > 1 else []
    command = [sys.executable, *launcher, "-m", "llamita", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


def update(processes: int, base: Path, text: Path, out: Path) -> subprocess.CompletedProcess[str]:
    return llamita(processes, "update", base, text, "--out", out, "--epochs", 0.3)


def test_two_processes_equal_one(base: Path, text: Path, tmp_path: Path) -> None:
    losses = []
    for processes in (1, 2):
        out = tmp_path / f"out{processes}"
        done = update(processes, base, text, out)
        assert done.returncode == 0, done.stderr
        for once in ("1/3  llamita prepare", "2/3  llamita train", "3/3  llamita export", "next: "):
            assert done.stderr.count(once) == 1, once
        assert (out / f"out{processes}.gguf").is_file()
        losses.append([(line["step"], line["loss"]) for line in read_metrics(out / "run")])
        again = update(processes, base, text, out)
        assert again.returncode == 0 and again.stderr.count("nothing to resume") == 1, again.stderr
    one, two = losses
    assert [step for step, _ in one] == [step for step, _ in two] and len(one) > 2
    assert all(abs(alone - together) < 1e-5 for (_, alone), (_, together) in zip(one, two, strict=True))


def test_shards_move_back_to_the_old_weights_as_a_whole_model_does(base: Path, text: Path, tmp_path: Path) -> None:
    store = tmp_path / "new"
    assert llamita(1, "prepare", text, "--tokenizer", base / "best", "--out", store).returncode == 0
    ends = []
    for processes, more in ((1, ["--threads", 1]), (2, ["--fsdp"])):
        words = [
            "train",
            store,
            "--from",
            base,
            "--out",
            tmp_path / f"run{processes}",
            "--device",
            "cpu",
            "--steps",
            12,
        ]
        done = llamita(processes, *words, "--learning-rate", 0.05, "--replay", 0, "--max-forgetting", 1, *more)
        assert done.returncode == 0, done.stderr
        ends.append(read_metrics(tmp_path / f"run{processes}")[-1])
    one, two = ends
    assert 0 < one["trained_share"] < 1
    assert all(abs(one[name] - two[name]) < 1e-3 for name in ("trained_share", "bpb", "old_bpb"))


def test_what_the_first_process_cannot_do_ends_all(base: Path, tmp_path: Path) -> None:
    (tmp_path / "empty.txt").write_text(" ")
    done = update(2, base, tmp_path / "empty.txt", tmp_path / "out")
    assert done.returncode != 0 and "no text" in done.stderr
    assert not (tmp_path / "out" / "run").exists()

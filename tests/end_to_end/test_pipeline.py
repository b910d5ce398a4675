"""The whole pipeline in seconds: prepare, train, eval, export, inspect, run."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from llamita.cli import main

ROOT = Path(__file__).resolve().parents[2]
TINY = (
    "--layers", "2", "--hidden", "32", "--heads", "4", "--kv-heads", "2", "--ffn", "64", "--context", "64",
    "--micro-batch-size", "8", "--threads", "1",
)  # fmt: skip


def call(*words: object) -> None:
    """A command of the pipeline, in this process; it must succeed."""
    assert main([str(word) for word in words]) == 0


def run_as_a_user_does(*words: object) -> subprocess.CompletedProcess[bytes]:
    """A command in its own process, with its output as bytes."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    command = [sys.executable, "-m", "llamita", *map(str, words)]
    return subprocess.run(command, capture_output=True, env=environment, timeout=120)


@pytest.fixture(scope="module")
def stories(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with tokens/, of 300 stories, and run/, a tiny model trained for 20 steps."""
    folder = tmp_path_factory.mktemp("stories")
    call("prepare", "stories", "--num-stories", 300, "--vocab-size", 384, "--out", folder / "tokens")
    call("train", folder / "tokens", "--steps", 20, "--eval-interval", 10, *TINY, "--out", folder / "run")
    return folder


def bits_per_byte(capsys: pytest.CaptureFixture[str], model: Path, tokens: Path) -> float:
    capsys.readouterr()
    call("eval", model, tokens, "--json")
    values = json.loads(capsys.readouterr().out)
    return float(values["bits_per_byte"])


def test_training_learned_something(stories: Path) -> None:
    lines = [json.loads(line) for line in (stories / "run" / "metrics.jsonl").read_text().splitlines()]
    val = [line["bpb"] for line in lines if line["kind"] == "eval"]
    assert len(val) == 2
    assert val[1] < val[0]
    assert (stories / "run" / "report.html").read_text(encoding="utf-8").startswith("<!doctype html>")


# The largest share by which each type may change the held-out bits per byte of so small a model.
@pytest.mark.parametrize(
    ("name", "drift"),
    [("f32.gguf", 1e-4), ("f16.gguf", 1e-3), ("q8_0.gguf", 5e-3), ("q4_0.gguf", 5e-2)],
)
def test_every_type_of_model_file(stories: Path, capsys: pytest.CaptureFixture[str], name: str, drift: float) -> None:
    model = stories / name
    call("export", stories / "run", model, "--type", name.removesuffix(".gguf"))
    call("inspect", model)
    assert "GGUF" in capsys.readouterr().out
    from_torch = bits_per_byte(capsys, stories / "run", stories / "tokens")
    from_engine = bits_per_byte(capsys, model, stories / "tokens")
    assert abs(from_engine - from_torch) < drift * from_torch
    call("run", model, "-i", "Once upon a time", "-n", 20, "-s", 1)
    output = capsys.readouterr()
    assert output.out.startswith("Once upon a time")
    assert len(output.out) > len("Once upon a time\n")
    assert "tok/s" in output.err.splitlines()[-1]


def test_engine_and_torch_generate_the_same_greedy_text(stories: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = stories / "greedy.gguf"
    call("export", stories / "run", model, "--type", "f32")
    capsys.readouterr()
    call("run", model, "-t", 0, "-n", 32, "-i", "One day")
    engine = capsys.readouterr().out
    call("sample", stories / "run", "-t", 0, "-n", 32, "-i", "One day")
    assert capsys.readouterr().out == engine


def test_a_user_of_the_shell_gets_text_on_stdout_and_one_line_for_a_mistake(stories: Path) -> None:
    model = stories / "shell.gguf"
    call("export", stories / "run", model)
    output = run_as_a_user_does("run", model, "-i", "The fox", "-n", 8, "-s", 3)
    assert output.returncode == 0
    assert output.stdout.startswith(b"The fox")
    again = run_as_a_user_does("run", model, "-i", "The fox", "-n", 8, "-s", 3)
    assert again.stdout == output.stdout
    wrong = run_as_a_user_does("run", stories / "no-such.gguf")
    assert wrong.returncode == 2
    assert wrong.stdout == b""
    assert wrong.stderr.count(b"\n") == 1 and b"no-such.gguf" in wrong.stderr


def test_a_store_and_a_checkpoint_can_be_inspected(stories: Path, capsys: pytest.CaptureFixture[str]) -> None:
    call("inspect", stories / "tokens")
    assert "384" in capsys.readouterr().out
    call("inspect", stories / "run" / "latest")
    assert "model.embed_tokens.weight" not in capsys.readouterr().out
    call("inspect", stories / "run" / "latest", "--tensors")
    assert "model.embed_tokens.weight" in capsys.readouterr().out


# ---------------------------------------------------------------- Chinese: three bytes a character

LINES = ("床前明月光", "疑是地上霜", "舉頭望明月", "低頭思故鄉", "春眠不覺曉", "處處聞啼鳥", "夜來風雨聲", "花落知多少")


def test_chinese_text_goes_through_and_no_character_is_broken(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    poems = [
        "，".join(LINES[(i * step + offset) % 8] for i in range(length)) + "。"
        for length in (4, 6, 8)
        for step in (1, 3, 5, 7)
        for offset in range(8)
    ]
    source = tmp_path / "poems.txt"
    source.write_text("\n\n".join(poems), encoding="utf-8")
    tokens, run, model = tmp_path / "tokens", tmp_path / "run", tmp_path / "poems.gguf"
    call("prepare", source, "--split-on", "blank-lines", "--vocab-size", 320, "--val-fraction", 0.2, "--out", tokens)
    call("train", tokens, "--steps", 60, "--eval-interval", 60, *TINY, "--learning-rate", 0.01, "--out", run)
    call("export", run, model, "--type", "f32")
    assert abs(bits_per_byte(capsys, model, tokens) - bits_per_byte(capsys, run, tokens)) < 1e-4
    output = run_as_a_user_does("run", model, "-i", "床前", "-t", 0, "-n", 24)
    assert output.returncode == 0
    text = output.stdout.decode("utf-8")  # raises if a character was broken
    assert text.startswith("床前")
    assert re.search(r"[\u4e00-\u9fff]", text.removeprefix("床前")), text


# ---------------------------------------------------------------- the demo


def test_demo_runs_again_and_replaces_its_own_stories_and_nobody_elses(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "demo"
    for again in (False, True):
        call("demo", "--minutes", 0.01, "--num-stories", 400, "--out", out)
        output = capsys.readouterr()
        assert output.out.strip()
        assert ("starting over" in output.err) == again
        assert ("made earlier" in output.err) == again
        assert (out / "stories.gguf").read_bytes()[:4] == b"GGUF"
        assert f"run {out / 'stories.gguf'} -i" in output.err
    out = out.rename(tmp_path / "my demo")
    call("demo", "--minutes", 0.01, "--num-stories", 300, "--out", out)
    output = capsys.readouterr()
    assert "300 stories (made in" in output.err and f"run '{out / 'stories.gguf'}' -i" in output.err
    (tmp_path / "my.txt").write_text("\n".join(f"Once there were {i} llamas, and {i * i} alpacas." for i in range(999)))
    call("prepare", tmp_path / "my.txt", "--split-on", "lines", "--out", out / "tokens", "--overwrite")
    capsys.readouterr()
    assert main(["demo", "--minutes", "0.01", "--out", str(out)]) == 2
    assert "made from other text" in capsys.readouterr().err
    assert (out / "run" / "summary.json").is_file(), "the run before is kept"


def test_demo_flags_are_checked(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["demo", "--minutes", "0"]) == 2
    assert capsys.readouterr().err.count("\n") == 1

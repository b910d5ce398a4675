"""llamita sample: what it prints, and one line for whatever a person can get wrong; and what all
commands share."""

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

from llamita.cli import main


@pytest.fixture
def checkpoint(make_checkpoint: Callable[..., Path], tmp_path: Path) -> Path:
    return make_checkpoint(tmp_path / "checkpoint")


def test_a_seed_decides(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    texts = []
    for seed in ("1", "1", "2"):
        assert main(["sample", str(checkpoint), "-i", "one", "-n", "12", "-s", seed]) == 0
        texts.append(capsys.readouterr().out)
    assert texts[0] == texts[1] != texts[2] and texts[0].startswith("one")


@pytest.mark.parametrize("begins", [True, False])
def test_a_text_begins_as_in_the_engine(
    checkpoint: Path, capsys: pytest.CaptureFixture[str], engine_build: Path, begins: bool
) -> None:
    """With BOS only if tokenizer.json says so; an empty text always."""
    if not begins:
        content = json.loads((checkpoint / "tokenizer.json").read_text())
        (checkpoint / "tokenizer.json").write_text(json.dumps(content | {"post_processor": None}))
    for prompt in ("one two", ""):
        texts = []
        for command in ("sample", "run"):
            assert main([command, str(checkpoint), "-i", prompt, "-n", "8", "-t", "0"]) == 0
            texts.append(capsys.readouterr().out.rstrip("\n\ufffd"))  # the last character may be half of one
        assert texts[0] == texts[1] and len(texts[0]) > len(prompt) + 1


def test_several_texts_and_where_the_prompt_comes_from(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "prompt.txt").write_text("one\n", encoding="utf-8")
    alone = []
    for seed in ("7", "8"):
        assert main(["sample", str(checkpoint), "one", "-n", "9", "-s", seed]) == 0
        alone.append(capsys.readouterr().out)
    for prompt in (["-i", r"o\x6ee", "-e"], ["-f", str(tmp_path / "prompt.txt")]):
        assert main(["sample", str(checkpoint), *prompt, "-n", "9", "-s", "7", "-N", "2"]) == 0
        text = "".join(f"--- {i + 1} of 2, seed {7 + i} ---\n{alone[i]}\n" for i in range(2))
        assert capsys.readouterr().out == text
    piped = subprocess.run(
        as_a_program("sample", checkpoint, "-n", 9, "-s", 7), input=b"one\n", capture_output=True, timeout=120
    )
    assert piped.stdout.decode() == alone[0]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["-N", "0"], "--num-samples: expected 1 to"),
        (["-t", "-1"], "--temperature: expected 0 to 1000"),
        (["-p", "0"], "--top-p: expected a number above 0"),
        (["-k", "-1"], "--top-k: expected 0 or more"),
        (["-n", "0"], "--max-new-tokens: expected 1 or more"),
        (["-s", "-1"], "--seed: expected 0 to 2^63"),
        (["-s", "99999999999999999999"], "--seed: expected 0 to 2^63"),
        (["--repetition-penalty", "inf"], "--repetition-penalty: expected 0.01 to 100"),
        (["-i", "a\udcff"], "--prompt: expected UTF-8 text"),
        (["-i", "word " * 500], "shorten the prompt"),
        (["--temprature", "1"], "perhaps you meant --temperature"),
    ],
)
def test_one_line_for_a_mistake(
    checkpoint: Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    assert main(["sample", str(checkpoint), *words]) == 2
    printed = capsys.readouterr()
    assert message in printed.err and printed.err.count("\n") == 1 and printed.out == ""


def test_cold_is_greedy(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    texts = []
    for temperature in ("0", "1e-300"):
        assert main(["sample", str(checkpoint), "-t", temperature, "-n", "8", "--ids"]) == 0
        texts.append(capsys.readouterr().out)
    assert texts[0] == texts[1]


@pytest.mark.parametrize("temperature", ["0", "1"])
def test_damaged_weights(checkpoint: Path, capsys: pytest.CaptureFixture[str], temperature: str) -> None:
    tensors = load_file(checkpoint / "model.safetensors")
    tensors["model.norm.weight"] = torch.full_like(tensors["model.norm.weight"], float("nan"))
    save_file(tensors, checkpoint / "model.safetensors")
    assert main(["sample", str(checkpoint), "-t", temperature, "-n", "3"]) == 2
    assert "non-finite logits" in capsys.readouterr().err


def as_a_program(*words: object) -> list[str]:
    return [sys.executable, "-m", "llamita", *(str(word) for word in words)]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
@pytest.mark.parametrize("words", [("sample", "-n", "3", "-t", "0"), ("inspect", "--tensors")])
def test_full_disk_on_stdout(checkpoint: Path, words: tuple[str, ...]) -> None:
    command, *flags = words
    with open("/dev/full", "w") as full:
        command = as_a_program(command, checkpoint, *flags)
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, timeout=120)
    assert done.returncode == 2 and done.stderr.startswith("llamita: cannot write the text: No space left on device")
    assert done.stderr.count("\n") == 1


def test_text_is_utf8_in_any_locale(checkpoint: Path) -> None:
    environment = os.environ | {"PYTHONUTF8": "0", "LC_ALL": "POSIX", "PYTHONCOERCECLOCALE": "0"}
    command = as_a_program("sample", checkpoint, "-i", "春", "-n", 1, "-t", 0)
    done = subprocess.run(command, capture_output=True, env=environment, timeout=120)
    assert done.returncode == 0 and done.stdout.startswith("春".encode()), done.stderr


def test_a_model_cannot_be_named_like_its_tokenizer(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", str(checkpoint), str(checkpoint.parent / "tokenizer.bin")]) == 2
    assert "that name is reserved for the tokenizer" in capsys.readouterr().err

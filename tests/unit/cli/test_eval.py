"""llamita eval: the numbers of samples, from a checkpoint and its model file alike, and one line
for mistakes."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llamita.cli import main

FEW = ("--samples", "5", "--max-new-tokens", "20")


@pytest.fixture
def checkpoint(make_checkpoint: Callable[..., Path], tmp_path: Path) -> Path:
    return make_checkpoint(tmp_path / "checkpoint")


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    path = tmp_path / "val.txt"
    path.write_text("A llama went home.\n<|endoftext|>\n床前明月光，疑是地上霜。\n", encoding="utf-8")
    return path


def evaluated(capsys: pytest.CaptureFixture[str], *words: object) -> dict[str, Any]:
    capsys.readouterr()
    assert main(["eval", *map(str, words), "--json"]) == 0
    values = json.loads(capsys.readouterr().out)
    assert isinstance(values, dict)
    return values


def test_bits_nats_and_perplexity_agree(
    checkpoint: Path, texts: Path, capsys: pytest.CaptureFixture[str], engine_build: Path
) -> None:
    values = evaluated(capsys, checkpoint, texts)
    assert math.isclose(values["bits_per_byte"] * values["text_bytes"] * math.log(2), values["nats"])
    assert math.isclose(values["perplexity"], math.exp(values["nats_per_token"]))
    assert "samples" not in values


def test_a_checkpoint_and_its_file_get_the_same_score(
    checkpoint: Path, texts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], engine_build: Path
) -> None:
    prompts, saved = tmp_path / "prompts.txt", tmp_path / "samples.jsonl"
    prompts.write_text("Once upon\n\n床前\n", encoding="utf-8-sig")
    assert main(["export", str(checkpoint), str(tmp_path / "model.gguf"), "--type", "f32"]) == 0
    words = (texts, *FEW, "--prompts", prompts, "--training", texts, "--seed", 3)
    ours = evaluated(capsys, checkpoint, *words)["samples"]
    theirs = evaluated(capsys, tmp_path / "model.gguf", *words, "--save-samples", saved)["samples"]
    assert ours == theirs
    assert ours["num_samples"] == 5 and 0 < ours["mean_tokens"] <= 20 and ours["seed"] == 3
    assert ours["overlap"]["length_tokens"] >= 1 and not ours["overlap"]["memorizes"]
    lines = [json.loads(line) for line in saved.read_text(encoding="utf-8").splitlines()]
    assert len(lines) == 5 and ours["stop_rate"] == sum(line["ended"] for line in lines) / 5


def test_the_table(checkpoint: Path, texts: Path, capsys: pytest.CaptureFixture[str], engine_build: Path) -> None:
    assert main(["eval", str(checkpoint), str(texts), *FEW]) == 0
    printed = capsys.readouterr().out
    for row in ("bits per byte", "perplexity", "samples ", "ended with EOS", "distinct-1", "repetition"):
        assert row in printed
    assert "not checked: name the training text" in printed
    assert main(["eval", str(checkpoint), str(texts), *FEW, "--training", str(texts)]) == 0
    printed = capsys.readouterr().out
    assert "longest copy" in printed and "memorizes" in printed


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--samples", "-1"], "--samples: expected 0 or more"),
        (["--samples", "2", "--top-p", "0"], "--top-p: expected a number above 0"),
        (["--samples", "2", "--split", "train"], "leave --split train out"),
        (["--training", "."], "say how many with --samples"),
        (["--samples", "2", "--prompts", "no-such.txt"], "no-such.txt: No such file"),
        (
            ["--samples", "2", "--save-samples", "no/such/samples.jsonl"],
            "cannot write no/such/samples.jsonl: there is no folder",
        ),
        (["--threads", "0"], "--threads: expected 1 or more"),
    ],
)
def test_one_line_for_a_mistake(
    checkpoint: Path,
    texts: Path,
    capsys: pytest.CaptureFixture[str],
    engine_build: Path,
    words: list[str],
    message: str,
) -> None:
    assert main(["eval", str(checkpoint), str(texts), *words]) == 2
    printed = capsys.readouterr()
    assert message in printed.err and printed.err.count("\n") == 1 and printed.out == ""


def test_empty_prompts(checkpoint: Path, texts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "prompts.txt").write_bytes("Gr\u00fc\u00dfe aus K\u00f6ln\n".encode("latin-1"))
    assert main(["eval", str(checkpoint), str(texts), *FEW, "--prompts", str(tmp_path / "prompts.txt")]) == 2
    assert "prompts.txt: byte 2 is not UTF-8; it looks like Latin-1" in capsys.readouterr().err
    (tmp_path / "prompts.txt").write_text("\n \n")
    assert main(["eval", str(checkpoint), str(texts), *FEW, "--prompts", str(tmp_path / "prompts.txt")]) == 2
    assert "found none" in capsys.readouterr().err


def test_how_documents_were_counted(
    checkpoint: Path, texts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "a.jsonl").write_text('{"text": "One day"}\n{"text": "Two days"}\n', encoding="utf-8")
    (folder / "b.png").write_text("x")
    for words, expected in (
        ((texts,), "2 documents, "),
        ((texts,), "a text file's documents end at '<|endoftext|>' and at its end (--separator, --split-on)"),
        ((texts, "--split-on", "file"), "1 document, "),
        ((texts, "--split-on", "file"), "each text file is a document"),
        ((texts, "--split-on", "blank-lines"), "a text file's documents end at blank lines"),
        ((folder, "--skip-unknown"), f"each row is a document; skipped, of unknown types: {folder / 'b.png'}"),
    ):
        assert main(["eval", str(checkpoint), *map(str, words)]) == 0
        assert expected in capsys.readouterr().out
    assert main(["eval", str(checkpoint), str(folder)]) == 2
    assert "b.png: unknown file type (.png)" in capsys.readouterr().err


def test_other_encodings_are_converted_and_named(
    checkpoint: Path, texts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], engine_build: Path
) -> None:
    text = texts.read_text(encoding="utf-8")
    (tmp_path / "gb.txt").write_bytes(text.encode("gb18030"))
    values = evaluated(capsys, checkpoint, texts)
    assert main(["eval", str(checkpoint), str(tmp_path / "gb.txt"), "--json"]) == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out)["nats"] == values["nats"]
    assert captured.err == f"note: 1 file converted from GB18030 ({tmp_path / 'gb.txt'})\n"
    assert main(["eval", str(checkpoint), str(tmp_path / "gb.txt"), "--encoding", "utf-8"]) == 2
    assert "is not UTF-8" in capsys.readouterr().err

"""llamita update: prepare, train --from and export in one, also after a kill."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest

pytest.importorskip("torch")

from llamita.cli import main
from llamita.cli.update import default_out
from llamita.config import PrepareConfig, TrainConfig
from llamita.convert import export as export_module
from llamita.data.prepare import prepare
from llamita.training.pretraining import train
from llamita.training.trainer import Trainer

SHAPE = {"layers": 1, "hidden": 32, "heads": 2, "kv_heads": 1, "ffn": 64, "context": 64, "micro_batch_size": 4}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("update")
    prepare(PrepareConfig(sources=("stories",), out=folder / "old", vocab_size=320, num_stories=200, val_fraction=0.1))
    train(TrainConfig(data=folder / "old", out=folder / "my", steps=4, device="cpu", threads=1, **SHAPE))
    return folder / "my"


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "a new text.txt"
    path.write_text("<|endoftext|>".join(f"Number {i} met number {i + 1} and said hello to it." for i in range(900)))
    return path


class Killed(BaseException):
    """As by kill -9: no command catches it."""


def killed(*arguments: object, **options: object) -> None:
    raise Killed


def test_killed_at_each_step_and_started_again_it_goes_on(
    run: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    words = ["update", str(run), str(text), "--out", str(out), "--epochs", "0.2"]
    for place, name in ((Trainer, "_step"), (export_module, "export")):
        with monkeypatch.context() as patched, pytest.raises(Killed):
            patched.setattr(place, name, killed)
            main(words)
    capfd.readouterr()
    assert main(words) == 0
    printed = capfd.readouterr()
    commands = [shlex.split(line.split(maxsplit=1)[1]) for line in printed.err.splitlines() if line[1:3] == "/3"]
    assert [command[1] for command in commands] == ["prepare", "train", "export"]
    assert commands[1][-1] == "--resume" and "nothing to resume" in printed.err
    assert "exists already" in printed.out and printed.err.count("next: ") == 1 and "next: " not in printed.out
    assert (out / "out.gguf").is_file() and json.loads((out / "run" / "summary.json").read_text())["finished"]
    for command in commands:  # each can be repeated as it is printed
        assert main([str(word) for word in command[1:]]) == 0


def test_the_folder_of_an_update_can_be_updated(run: Path, text: Path, tmp_path: Path) -> None:
    assert main(["update", str(run), str(text), "--out", str(tmp_path / "one"), "--epochs", "0.1"]) == 0
    text.write_text(text.read_text().replace("hello", "good bye"))
    assert main(["update", str(tmp_path / "one"), str(text), "--out", str(tmp_path / "two"), "--epochs", "0.1"]) == 0
    config = json.loads((tmp_path / "two" / "run" / "run.json").read_text())["config"]
    assert config["from_"] == str(tmp_path / "one" / "run") and len(config["replay_data"]) == 2


@pytest.mark.parametrize(
    ("run", "out"),
    [
        ("runs/my", "runs/my-update"), ("my-update", "my-update-2"), ("runs/my-update-9/", "runs/my-update-10"),
        ("updates", "updates-update"),
    ],
)  # fmt: skip
def test_the_default_folder(run: str, out: str) -> None:
    assert default_out(Path(run)) == Path(out)


def test_what_train_would_refuse_is_refused_before_anything_is_written(
    text: Path, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    for words, expected in (
        ([str(tmp_path / "nowhere"), str(text)], "no such folder"),
        ([str(run / "best"), str(text)], "--replay-data"),
        ([str(run), str(text), "--replay", "2"], "--replay: expected a share"),
        ([str(run), str(text), "--minutes", "1", "--epochs", "1"], "exclude each other"),
        ([str(run)], "update: no SOURCE given: expected files or folders of new documents"),
    ):
        assert main(["update", *words, "--out", str(out)]) == 2
        assert expected in capsys.readouterr().err
        assert not out.exists()


def test_other_text_in_the_same_folder_is_refused(
    run: Path, text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["update", str(run), str(text), "--out", str(tmp_path / "out"), "--epochs", "0.1"]
    assert main(words) == 0
    text.write_text(text.read_text().replace("hello", "good bye"))
    assert main(words) == 2
    assert "made from other text" in capsys.readouterr().err

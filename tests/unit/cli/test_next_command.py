"""Each command ends with the command that comes next, which can be copied as it is printed."""

from __future__ import annotations

import importlib
import os
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")

from llamita.cli import COMMANDS, main
from llamita.cli.next_command import print_next
from llamita.cli.parser import parse_arguments
from llamita.commands import command_line

FLAGS = {"train": "Train", "export": "ExportFlags", "run": "RunFlags", "chat": "ChatFlags", "sample": "SampleFlags",
         "inspect": "InspectFlags"}  # fmt: skip
SHAPE = ["--layers=1", "--hidden=32", "--heads=2", "--context=64", "--micro-batch-size=2", "--threads=1", "--steps=1"]


def next_commands(printed: Any) -> list[list[str]]:
    """The words of the commands in the last line of stdout or stderr; each can be parsed."""
    lines = [line for text in printed for line in text.splitlines()[-1:] if line.startswith("next: ")]
    assert len(lines) == 1, printed
    found = [shlex.split(line) for line in lines[0].removeprefix("next: ").split(" && ")]
    for program, command, *words in found:
        assert program == "llamita"
        module = importlib.import_module(f"llamita.cli.{COMMANDS[command][0]}")
        parse_arguments(getattr(module, FLAGS[command]), words)
    return found


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
@pytest.mark.parametrize("name", [b"a b", b"caf\xe9", b"it's\n\x1b[1m\\ \xff", "\u2028é".encode(), b"-", b"$HOME"])
def test_bash_reads_any_name_from_what_is_printed(name: bytes, capsys: pytest.CaptureFixture[str]) -> None:
    print_next(command_line("run", Path(os.fsdecode(name))))
    printed = capsys.readouterr().err
    assert printed.startswith("next: llamita run ") and printed.count("\n") == 1 and printed[:-1].isprintable()
    script = "llamita() { printf '%s' \"$2\"; }; " + printed.removeprefix("next: ")
    assert subprocess.run(["bash", "-c", script], capture_output=True).stdout == name


def test_the_printed_command_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], engine_build: Path
) -> None:
    """From a text, in a folder with a space, to a model that runs: by what is printed, and little else."""
    folder = tmp_path / "my texts"
    folder.mkdir()
    monkeypatch.chdir(folder)
    (folder / "my text.txt").write_text("<|endoftext|>".join(f"Number {i} met number {i + 1}." for i in range(3000)))

    def call(*words: str) -> list[list[str]]:
        capsys.readouterr()
        assert main(list(words)) == 0, capsys.readouterr().err
        return next_commands(capsys.readouterr())

    ((_, *train),) = call("prepare", "my text.txt", "-o", "my tokens", "--vocab-size=265")
    assert train == ["train", "my tokens", "--out", "runs/my tokens", "--minutes", "10"]
    assert call("inspect", "my tokens") == [["llamita", *train]]
    export, run = call(*train[:4], *SHAPE)
    assert call("inspect", "my tokens")[0][1:5] == ["train", "my tokens", "--out", "runs/my tokens-2"], "a new folder"
    assert export == ["llamita", "export", "runs/my tokens", "my tokens.gguf"]
    assert run == ["llamita", "run", "my tokens.gguf"]
    for words in (["report", "runs/my tokens"], ["sample", "runs/my tokens", "-n", "1"], ["inspect", "runs/my tokens"]):
        assert call(*words) == [export, run]
    assert call("eval", "runs/my tokens", "my tokens", "--threads=1") == [export, run]
    assert call(*export[1:]) == [run]
    assert main([*run[1:], "-n", "2"]) == 0
    assert call("inspect", "my tokens.gguf") == call("eval", "my tokens.gguf", "my tokens") == [run]
    assert call("quantize", "my tokens.gguf", "small.gguf", "-t", "f16", "--requantize") == [
        ["llamita", "run", "small.gguf"]
    ]
    assert call("import", "small.gguf", "-o", "back")[0] == ["llamita", "export", "back", "back.gguf"]
    assert call("export", "back", "folder") == [["llamita", "sample", "folder"]]
    assert call("export", "back", "old.bin") == [["llamita", "inspect", "old.bin"]]

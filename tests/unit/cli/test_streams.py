"""A closed stdout, Ctrl-C at any moment, and names from files: what the terminal sees."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from llamita.cli import main

# Sends SIGINT to itself before the N-th import below llamita.
INTERRUPTED = """
import importlib.abc, os, runpy, signal, sys
class Finder(importlib.abc.MetaPathFinder):
    left = int(sys.argv.pop(1))
    def find_spec(self, name, path=None, target=None):
        if "llamita.__main__" in sys.modules or "__main__" in name or name.startswith(("llamita.", "numpy", "rich")):
            Finder.left -= 1
            if Finder.left == 0:
                signal.raise_signal(signal.SIGINT)
        return None
sys.meta_path.insert(0, Finder())
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
from llamita.__main__ import main
main()
"""


@pytest.mark.skipif(os.name != "posix", reason="POSIX signals")
@pytest.mark.parametrize("moment", [2, 5, 9, 20, 40, 80, 160])
def test_an_interrupt_during_the_imports_is_one_line(moment: int, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", INTERRUPTED, str(moment), "prepare", "stories", "--num-stories", "50", "-o", "store"],
        cwd=tmp_path, capture_output=True, text=True,
    )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "llamita: interrupted\n")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("command", ["prepare", "import_model", "export", "plan", "quantize", "merge"])
def test_an_interrupt_of_the_work_is_one_line(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(f"llamita.cli.{command}.main", interrupt)
    assert main(["import" if command == "import_model" else command]) == 130
    assert capsys.readouterr().err == "llamita: interrupted\n"


@pytest.mark.skipif(os.name != "posix", reason="shell")
@pytest.mark.parametrize("words", ["--help", "prepare --help", "inspect {path} --tensors", "nonsense"])
@pytest.mark.parametrize("end", ["| head -1", "| true", ">&-", "2>&-", ">&- 2>&- <&-", "2>&1 | true"])
def test_nobody_reads(words: str, end: str, tmp_path: Path, story_store: Path) -> None:
    program = f"'{sys.executable}' -m llamita {words.format(path=story_store)}"
    done = subprocess.run(["sh", "-c", f"{program} {end}"], capture_output=True, text=True, cwd=tmp_path)
    assert "Traceback" not in done.stderr and "Exception" not in done.stderr and "Error" not in done.stderr
    assert done.stderr.count("\n") <= 1


def test_names_from_files_are_cleaned(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from llamita.console import print_table

    print_table([("name", "a\x1b[2J\nb" + "x" * 5_000_000)], sys.stdout)
    assert main(["inspect", str(tmp_path / "a\x1b]0;title\x07\nb")]) == 2
    printed = capsys.readouterr()
    assert printed.out.count("\n") == 1 and len(printed.out) < 3000 and "a?[2J?b" in printed.out
    assert printed.err.count("\n") == 1 and "a?]0;title??b" in printed.err and printed.err[:-1].isprintable()


def test_export_makes_no_folders(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words in (
        ["export", "x", str(tmp_path / "modles" / "a.gguf")],
        ["quantize", "x", str(tmp_path / "b" / "c"), "-t", "Q8_0"],
    ):
        assert main(words) == 2
        assert "there is no folder" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())

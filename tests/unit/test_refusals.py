"""The plugin that checks refusals (tests/refusals.py) finds what it looks for."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from llamita.errors import MAX_LINE_CHARS, ConfigError, clean_line

ROOT = Path(__file__).resolve().parents[2]
TEST = """
import pytest
from llamita.errors import ConfigError
from llamita.cli import main

@pytest.mark.parametrize("message", {messages!r})
def test_refusal(message):
    with pytest.raises(ConfigError):
        raise ConfigError(message)
"""
GOOD = ("cannot read a.json: expected an object, found 3; prepare it again", "--out: expected 床前, found “x”")
BAD = ("cannot read: KeyError('x')", "", "cannot use <class 'int'>", "x" * 3000, "found PosixPath('a')")


def run_tests(folder: Path, messages: tuple[str, ...]) -> str:
    (folder / "test_it.py").write_text(TEST.format(messages=messages))
    command = [sys.executable, "-m", "pytest", "-q", "-p", "refusals", "-p", "no:cacheprovider", str(folder)]
    done = subprocess.run(command, cwd=ROOT / "tests", capture_output=True, text=True, env=environment())
    return done.stdout.strip().splitlines()[-1]


def environment() -> dict[str, str]:
    import os

    return {**os.environ, "PYTHONPATH": str(ROOT / "tests")}


def test_bad_messages_fail_a_test_and_good_ones_do_not(tmp_path: Path) -> None:
    assert f"{len(GOOD)} passed" in run_tests(tmp_path, GOOD)
    last = run_tests(tmp_path, BAD)
    assert f"{len(BAD)} passed, {len(BAD)} error" in last or f"{len(BAD)} failed" in last, last


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("plain: 床前 ½ “x”", "plain: 床前 ½ “x”"),
        ("a\nb\r\tc\x1b[2J\x9b", "a?b??c?[2J?"),
        ("a\u2028b\u2029c\ud800\udcff\x7f", "a?b?c???"),
        ("\u00a0 wide", "\u00a0 wide"),
    ],
)
def test_a_clean_line(text: str, line: str) -> None:
    assert clean_line(text) == line == str(ConfigError(text))


def test_a_long_line_keeps_its_beginning_and_its_end() -> None:
    text = f"cannot read {'x' * 5_000_000}: expected y; do z"
    line = clean_line(text)
    assert len(line) <= MAX_LINE_CHARS and line.startswith("cannot read xx") and line.endswith("expected y; do z")

"""The command `llamita run`: through the binding, the same text, stops and messages as the
program."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest

from llamita.cli import main

pytestmark = pytest.mark.usefixtures("engine_build")
SOURCE = Path(__file__).resolve().parents[2] / "src"


@pytest.fixture(scope="module")
def endless(tiny_models):
    """Greedily repeats 日🦙 byte by byte, for longer than anybody waits."""
    ids = [tiny_models.byte_id(b) for b in "日🦙".encode()]
    return tiny_models.successor("cli_endless", dict(pairwise([1, *ids, ids[0]])), context=20000)


def start(*words: object) -> subprocess.Popen[bytes]:
    """The program, with SIGINT as a terminal has it: a shell's background job, as this suite may
    be, ignores it."""
    environment = dict(os.environ, PYTHONPATH=str(SOURCE))
    command = [sys.executable, "-m", "llamita", "run", *map(str, words)]
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment)
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["M", "--temprature", "1"], "perhaps you meant --temperature"),
        (["M", "-t", "warm"], "warm"),
        (["M", "-t", "-1"], "temperature"),
        (["M", "-t", "nan"], "temperature"),
        (["M", "-p", "1.5"], "--top-p: expected"),
        (["M", "-n", "-1"], "--num-tokens"),
        (["M", "-j", "9999"], "--threads"),
        (["M", "-c", "-3"], "--context"),
        (["M", "-c", "1000"], "context"),
        (["M", "-s", "-1"], "seed"),
        (["M", "-i", "a" * 100], "shorten it"),
        (["M", "--kernels", "sse9"], "sse9"),
        (["M", "-z", "/nowhere/tokenizer.bin"], "/nowhere/tokenizer.bin"),
        (["M", "N"], "N"),
        (["/nowhere/model.gguf"], "/nowhere/model.gguf"),
        (["/"], "/"),
    ],
)
def test_what_a_person_can_get_wrong(tiny_models, capfd, words: list[str], message: str) -> None:
    tiny = tiny_models.random()
    words = [str(tiny.path) if word == "M" else word for word in words]
    tokenizer = [] if "-z" in words else ["-z", str(tiny.tokenizer)]
    assert main(["run", *words, *tokenizer]) == 2
    printed = capfd.readouterr()
    assert printed.out == "" and re.fullmatch(r"llamita: [^\n]+\n", printed.err), printed
    assert message in printed.err


def test_prompt_text_and_stop(tiny_models, capfd) -> None:
    a, b = tiny_models.piece_id("a"), tiny_models.piece_id("b")
    tiny = tiny_models.successor("cli_ends", {1: a, a: b, b: 2})
    assert main(["run", str(tiny.path), "-z", str(tiny.tokenizer), "-t", "0", "-i", "x a"]) == 0
    printed = capfd.readouterr()
    assert printed.out == "x ab\n"
    assert printed.err.splitlines()[0] == "stopped: end token" and "generated 1 tokens" in printed.err.splitlines()[1]


def test_control_c(endless) -> None:
    with start(endless.path, "-z", endless.tokenizer, "-t", 0, "-n", 0, "-j", 1) as program:
        assert program.stdout
        program.stdout.read(3)
        program.send_signal(signal.SIGINT)
        text, status = program.communicate(timeout=30)
    assert program.returncode == 130 and text.endswith(b"\n") and text.decode()
    stopped, speed = status.decode().splitlines()
    assert stopped.startswith("stopped by Ctrl-C") and speed.startswith("prompt 1 tokens")


def test_nobody_reads(endless) -> None:
    with start(endless.path, "-z", endless.tokenizer, "-t", 0, "-n", 0) as program:
        assert program.stdout and program.stderr
        program.stdout.read(3)
        program.stdout.close()
        status = program.stderr.read()
    assert program.returncode == 141 and b"Traceback" not in status and b"Exception" not in status

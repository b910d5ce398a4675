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


@pytest.fixture(scope="module")
def alphabet(tiny_models):
    """Greedily generates the alphabet from "a"."""
    letters = [tiny_models.piece_id(c) for c in "abcdefghijklmnopqrstuvwxyz"]
    return tiny_models.successor("cli_alphabet", {1: letters[0], **dict(pairwise([*letters, 2]))})


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
        (["M", "-t", "-1"], "--temperature: expected"),
        (["M", "-t", "nan"], "temperature"),
        (["M", "-p", "1.5"], "--top-p: expected"),
        (["M", "-n", "-1"], "--max-new-tokens"),
        (["M", "-j", "9999"], "--threads"),
        (["M", "-c", "-3"], "--context"),
        (["M", "-c", "1000"], "--context: expected at most "),
        (["M", "-s", "-1"], "--seed: expected"),
        (["M", "-i", "a" * 100], "shorten it"),
        (["M", "--kernels", "sse9"], "sse9"),
        (["M", "-z", "/nowhere/tokenizer.bin"], "/nowhere/tokenizer.bin"),
        (["M", "N", "O"], "unexpected argument 'O'"),
        (["M", "N", "-i", "O"], "found PROMPT and --prompt; give one of them"),
        (["M", "-f", "/nowhere.txt"], "--prompt-file: /nowhere.txt: No such file"),
        (["M", "-N", "0"], "--num-samples: expected 1 to 100,000, found 0"),
        (["M", "-N", "2", "-s", str(2**63 - 1)], "--seed: expected at most 2^63 - 2"),
        (["Once upon a time"], "a text to continue follows -i"),
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


def program(*words: object, **options: object) -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, "-m", "llamita", *map(str, words)]
    return subprocess.run(command, capture_output=True, timeout=120, **options)  # type: ignore[call-overload]


def test_where_a_prompt_comes_from(alphabet, tmp_path: Path) -> None:
    """An argument, -i, a file, or stdin if it is a pipe or a file: the same text."""
    text = tmp_path / "prompt.txt"
    text.write_bytes(b"\xef\xbb\xbfx a\r\n")
    model = ("run", alphabet.path, "-z", alphabet.tokenizer, "-t", 0, "-n", 3)
    with text.open("rb") as file:
        found = [
            program(*model, "-i", "x a"),
            program(*model, "-f", text),
            program(*model, stdin=file),
            program(*model, input=b"x a\n"),
            program(*model, "-i", "-", input=b"x a"),
            program(*model, "-f", "-", input=b"x a"),
            program("run", alphabet.path, "x a", *model[2:]),
            program(*model, "-e", "-i", r"x\x20a"),
        ]
    assert [(each.returncode, each.stdout) for each in found] == [(0, b"x abcd\n")] * len(found), found
    assert program(*model, stdin=subprocess.DEVNULL).stdout == b"abc\n"
    assert program(*model, "-i", "", input=b"never read").stdout == b"abc\n"
    refused = program(*model, input=b"a\xff")
    assert refused.returncode == 2 and b"the prompt on stdin: expected UTF-8 text, found byte 0xff" in refused.stderr


def test_escapes_are_replaced_only_on_request(alphabet, capfd) -> None:
    model = ["run", str(alphabet.path), "-z", str(alphabet.tokenizer), "-t", "0", "-n", "1"]
    for flags, text in (([], r"1\n\q\\a"), (["-e"], "1\n\\q\\a")):
        assert main([*model, *flags, "-i", r"1\n\q\\a"]) == 0
        assert capfd.readouterr().out == text + "b\n"


def test_ten_of_them(capfd) -> None:
    """The texts of -N are those of one run for each seed, also with an adapter's options."""
    for flags in (["-i", "One day"], ["--kv", "q8", "-c", "40", "-n", "0", "-k", "5"]):
        words = ["run", "-n", "8", *flags]
        assert main([*words, "-s", "7", "-N", "18"]) == 0
        together = capfd.readouterr().out
        alone = ""
        for number in range(18):
            assert main([*words, "-s", str(7 + number)]) == 0
            alone += f"--- {number + 1} of 18, seed {7 + number} ---\n{capfd.readouterr().out}\n"
        assert together == alone


def test_a_folder(make_checkpoint, tmp_path: Path, capfd) -> None:
    """A checkpoint or a run directory runs, with the numbers of its exported file; any other folder
    is answered with the file or the command to use."""
    folder = make_checkpoint(tmp_path / "run" / "step-00000001")
    (tmp_path / "run" / "best").symlink_to(folder.name)
    assert main(["export", str(folder), str(tmp_path / "f32.gguf"), "--type", "f32"]) == 0
    texts = []
    for path in (tmp_path / "run", folder, tmp_path / "f32.gguf"):
        capfd.readouterr()
        assert main(["run", str(path), "-n", "9", "-s", "1"]) == 0
        texts.append(capfd.readouterr().out)
    assert texts[0] == texts[1] == texts[2] != ""
    files, store, empty = tmp_path / "files", tmp_path / "store", tmp_path / "empty"
    for each in (files, store, empty):
        each.mkdir()
    (files / "a b.gguf").write_bytes((tmp_path / "f32.gguf").read_bytes())
    (store / "store.json").write_text("{}")
    for command in ("run", "chat"):
        for path, expected in (
            (files, f"use llamita {command} '{files}/a b.gguf'"),
            (store, f"it is a token store, text to train on; train a model on it: llamita train {store} --out RUN"),
            (empty, "expected a Hugging Face folder or a run directory"),
        ):
            assert main([command, str(path)]) == 2
            assert expected in capfd.readouterr().err
    for command in ("sample", "export", "finetune"):
        words = {"sample": [], "export": ["x.gguf"], "finetune": ["x.jsonl", "--out", str(tmp_path / "out")]}[command]
        assert main([command, str(store), *words]) == 2
        assert "it is a token store" in capfd.readouterr().err


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


def test_the_printed_seed_can_be_given(capsys: pytest.CaptureFixture[str]) -> None:
    for _ in range(8):  # of random 64 bits half would be too large
        assert main(["run", "-i", "Once", "-n", "3"]) == 0
        printed = capsys.readouterr()
        (seed,) = re.findall(r"-s (\d+) gives the same text", printed.err)
        assert main(["run", "-i", "Once", "-n", "3", "-s", seed]) == 0
        assert capsys.readouterr().out == printed.out

"""The program engine/build/run: its flags, what it prints where, how it stops, and one line for whatever is wrong."""

from __future__ import annotations

import os
import re
import signal
import struct
import subprocess
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from llamita.cli import main

SPEED_LINE = re.compile(
    r"prompt \d+ tokens, [\d.]+ tok/s \| generated \d+ tokens, [\d.]+ tok/s, [\d.]+ GB/s \| "
    r"load [\d.]+ ms, first token [\d.]+ ms \| threads \d+"
)
Run = Callable[..., "subprocess.CompletedProcess[bytes]"]


@pytest.fixture(scope="session")
def run(engine_build: Path) -> Run:
    def run_program(*words: object, **options: object) -> subprocess.CompletedProcess[bytes]:
        command = [str(engine_build / "run"), *map(str, words)]
        return subprocess.run(command, capture_output=True, timeout=60, **options)  # type: ignore[call-overload]

    return run_program


def status_lines(done: subprocess.CompletedProcess[bytes]) -> list[str]:
    return done.stderr.decode().splitlines()


def assert_one_line(done: subprocess.CompletedProcess[bytes], *words: str) -> None:
    """Exit code 2, nothing on stdout, one line on stderr that holds the words."""
    assert done.returncode == 2, done
    assert done.stdout == b""
    assert re.fullmatch(rb"run: [^\n]+\n", done.stderr), done.stderr
    for word in words:
        assert word in done.stderr.decode(), done.stderr


@pytest.fixture(scope="session")
def alphabet(tiny_models):
    """Greedily generates the alphabet from "a", then ends."""
    letters = [tiny_models.piece_id(c) for c in "abcdefghijklmnopqrstuvwxyz"]
    return tiny_models.successor("alphabet", {1: letters[0], **dict(pairwise([*letters, 2]))})


@pytest.fixture(scope="session")
def endless(tiny_models):
    """Greedily repeats 日🦙 byte by byte, for longer than anybody waits."""
    ids = [tiny_models.byte_id(b) for b in "日🦙".encode()]
    return tiny_models.successor("endless", dict(pairwise([1, *ids, ids[0]])), context=20000)


def test_text_on_stdout_speed_last_on_stderr(run: Run, alphabet) -> None:
    done = run(alphabet.path, "-z", alphabet.tokenizer, "-t", 0, "-n", 5)
    assert (done.returncode, done.stdout) == (0, b"abcde\n")
    stopped, speed = status_lines(done)
    assert stopped == "stopped after 5 new tokens (-n)"
    assert SPEED_LINE.fullmatch(speed) and speed.startswith("prompt 1 tokens") and "generated 5 tokens" in speed


def test_prompt_is_echoed_and_not_counted(run: Run, alphabet) -> None:
    done = run(alphabet.path, "-z", alphabet.tokenizer, "-t", 0, "-n", 3, "-i", "xyz klm")
    assert done.stdout == b"xyz klmnop\n"
    assert "generated 3 tokens" in status_lines(done)[-1]


def test_where_a_prompt_comes_from(run: Run, alphabet, tmp_path: Path) -> None:
    """An argument, -i, a file, or stdin if it is a pipe or a file: the same text."""
    text = tmp_path / "prompt.txt"
    text.write_bytes(b"\xef\xbb\xbfx a\r\n")
    model = (alphabet.path, "-z", alphabet.tokenizer, "-t", 0, "-n", 3)
    with text.open("rb") as file:
        found = [
            run(*model, "-i", "x a"),
            run(*model, "-f", text),
            run(*model, stdin=file),
            run(*model, input=b"x a\n"),
            run(*model, "-i", "-", input=b"x a"),
            run(*model, "-f", "-", input=b"x a"),
            run(alphabet.path, "x a", *model[1:]),
            run(*model, "-e", "-i", r"x\x20a"),
        ]
    assert [(each.returncode, each.stdout) for each in found] == [(0, b"x abcd\n")] * len(found), found
    assert run(*model, stdin=subprocess.DEVNULL).stdout == b"abc\n"
    assert run(*model, "-i", "", input=b"never read").stdout == b"abc\n"
    assert_one_line(run(*model, input=b"a\xe6\x97"), "the prompt on stdin: expected UTF-8 text")
    for flags, expected in (([], rb"1\n\q\\\xg\x4\ a"), (["-e"], b"1\n\\q\\\\xg\x04\\ a")):
        assert run(*model, *flags, "-n", 1, "-i", r"1\n\q\\\xg\x4\ a").stdout == expected + b"b\n"


def test_stops_at_the_end_token(run: Run, alphabet) -> None:
    done = run(alphabet.path, "-z", alphabet.tokenizer, "-t", 0)
    assert done.stdout == b"abcdefghijklmnopqrstuvwxyz\n"
    assert status_lines(done)[0] == "stopped at the end token (id 2)"
    assert "generated 26 tokens" in status_lines(done)[-1]


def test_zero_new_tokens_means_to_the_end_of_the_context(run: Run, endless) -> None:
    done = run(endless.path, "-z", endless.tokenizer, "-t", 0, "-n", 0, "-c", 71)
    assert done.stdout.decode() == "日🦙" * 10 + "\n"  # 71 tokens of 7 bytes a round; the last one begins a character
    assert status_lines(done)[0].startswith("stopped: the context is full (71 tokens)")
    assert "its first 1 bytes were not written" in status_lines(done)[0]


def test_every_write_is_whole_characters(engine_build: Path, endless) -> None:
    command = [engine_build / "run", endless.path, "-z", endless.tokenizer, "-t", "0", "-n", "700", "-i", "🦙"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as program:
        assert program.stdout
        pieces = list(iter(lambda: os.read(program.stdout.fileno(), 65536), b""))
    assert "".join(piece.decode() for piece in pieces) == "🦙" + "日🦙" * 100 + "\n"


def test_bytes_that_are_no_characters_come_through(run: Run, endless) -> None:
    prompt = b"\xff\xfe a \x80"
    done = run(endless.path, "-z", endless.tokenizer, "-t", 0, "-n", 1, "-i", os.fsdecode(prompt))
    assert done.stdout.startswith(prompt)


def test_the_seed_decides(run: Run, tiny_models) -> None:
    tiny = tiny_models.random()
    words = [tiny.path, "-z", tiny.tokenizer, "-n", 20]
    first, second, other = (run(*words, "-s", seed).stdout for seed in (5, 5, 2**64 - 1))
    assert first == second != other
    first = run(*words)
    seed = re.search(r"; -s (\d+) gives the same text", status_lines(first)[0])
    assert seed and run(*words, "-s", seed[1]).stdout == first.stdout
    assert b"gives the same text" not in run(*words, "-t", 0).stderr


def test_llamita_run_generates_the_same(run: Run, tiny_models, capfd: pytest.CaptureFixture[str]) -> None:
    tiny = tiny_models.random()
    words = ["-z", str(tiny.tokenizer), "-n", "12", "-s", "11", "-k", "40", "-i", "the cat", "-j", "1"]
    done = run(tiny.path, *words)
    assert main(["run", str(tiny.path), *words]) == 0
    printed = capfd.readouterr()
    assert printed.out == done.stdout.decode("utf-8", "replace")
    ours, theirs = printed.err.splitlines()[-1], status_lines(done)[-1]
    assert SPEED_LINE.fullmatch(ours) and SPEED_LINE.fullmatch(theirs)
    assert re.sub(r"[\d.]+ (tok/s|GB/s|ms)", "", ours) == re.sub(r"[\d.]+ (tok/s|GB/s|ms)", "", theirs)


@pytest.mark.parametrize("flag", ["--min-p=0.1", "--repetition-penalty=1.3", "--top-k=3", "--top-p=0", "-j2", "-t0"])
def test_flags_are_read(run: Run, tiny_models, flag: str) -> None:
    tiny = tiny_models.random()
    done = run(tiny.path, "-z", tiny.tokenizer, "-n", 4, "-s", 1, *([flag] if "=" in flag else [flag[:2], flag[2:]]))
    assert done.returncode == 0 and len(status_lines(done)) == 2


def test_threads_and_kernels_change_nothing(run: Run, tiny_models) -> None:
    tiny = tiny_models.random(3)
    words = [tiny.path, "-z", tiny.tokenizer, "-n", 25, "-s", 1]
    texts = {run(*words, "-j", threads, "--kernels", "scalar").stdout for threads in (1, 2, 3)}
    assert len(texts) == 1 and len(texts.pop()) > 25


def test_llama2c_tokenizer_is_found_in_this_folder(run: Run, tiny_models) -> None:
    tiny = tiny_models.random()
    assert run(tiny.path, "-n", 3, "-t", 0, cwd=tiny.tokenizer.parent).returncode == 0


def test_help_and_version(run: Run) -> None:
    done = run("-h")
    assert done.returncode == 0 and done.stderr == b""
    for name in ("-t, --temperature", "-n, --max-new-tokens", "--min-p", "-j, --threads"):
        assert name in done.stdout.decode()
    assert max(map(len, done.stdout.decode().splitlines())) <= 140
    assert re.fullmatch(rb"llamita [\d.]+ \(\w+ kernels\)\n", run("--version").stdout)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "expected a model file"),
        (["M", "N", "O"], "expected one model and one prompt, found more: O"),
        (["M", "N", "-f", "O"], "expected one prompt"),
        (["M", "-f", "/nowhere.txt"], "--prompt-file: /nowhere.txt: No such file"),
        (["M", "--temprature", "1"], "perhaps you meant --temperature"),
        (["M", "-temp", "1"], "perhaps you meant --temperature"),
        (["M", "--seed7", "1"], "perhaps you meant --seed"),
        (["M", "-T", "1"], "perhaps you meant -t"),
        (["M", "-x", "1"], "unknown flag -x"),
        (["M", "--\n\x1b[31m"], "unknown flag --??[31m"),
        (["M", "-t"], "expected a value"),
        (["M", "-t", "warm"], "expected a number from 0 to 1000, found 'warm'"),
        (["M", "-t", "-0.1"], "found '-0.1'"),
        (["M", "-t", "nan"], "found 'nan'"),
        (["M", "-t", "inf"], "found 'inf'"),
        (["M", "-t", "0x1"], "found '0x1'"),
        (["M", "-t", " 1"], "found ' 1'"),
        (["M", "-t", ""], "found ''"),
        (["M", "-t", "1.0.0"], "found '1.0.0'"),
        (["M", "-p", "1.01"], "-p: expected a number from 0 to 1"),
        (["M", "-k", "2.5"], "whole number"),
        (["M", "-k", "99999999999999999999"], "whole number"),
        (["M", "-n", "-1"], "-n: expected a whole number from 0"),
        (["M", "-n", "12x"], "found '12x'"),
        (["M", "-s", "-1"], "from 0 to 18446744073709551615"),
        (["M", "-s", "18446744073709551616"], "from 0 to 18446744073709551615"),
        (["M", "-j", "9999"], "-j: expected a whole number from 0 to 1024"),
        (["M", "-m", "chat"], "no chat template"),
        (["M", "--repetition-penalty", "0"], "--repetition-penalty: expected a number"),
        (["M", "-c", "1000"], "context"),
        (["M", "--kernels", "sse9"], "sse9"),
        (["M", "-z", "/nowhere/tokenizer.bin"], "/nowhere/tokenizer.bin"),
        (["M", "-i", "a" * 100], "shorten the prompt"),
        (["/nowhere/model.gguf"], "/nowhere/model.gguf"),
        (["/"], "/"),
    ],
)
def test_what_a_person_can_get_wrong(run: Run, tiny_models, words: list[str], message: str) -> None:
    tiny = tiny_models.random()
    words = [str(tiny.path) if word == "M" else word for word in words]
    tokenizer = [] if "-z" in words else ["-z", str(tiny.tokenizer)]
    assert_one_line(run(*tokenizer, *words), message)


def test_llama2c_model_without_tokenizer(run: Run, tiny_models, tmp_path: Path) -> None:
    assert_one_line(run(tiny_models.random().path, cwd=tmp_path), "tokenizer.bin", "-z FILE")


def test_model_files_cut_anywhere(run: Run, tiny_models, tmp_path: Path) -> None:
    tiny = tiny_models.random()
    whole = tiny.path.read_bytes()
    for length in [0, 1, 27, 28, 29, 100, len(whole) // 2, len(whole) - 4, len(whole) - 1]:
        cut = tmp_path / "cut.bin"
        cut.write_bytes(whole[:length])
        assert_one_line(run(cut, "-z", tiny.tokenizer), "cut.bin")
    (tmp_path / "long.bin").write_bytes(whole + b"\0")
    assert_one_line(run(tmp_path / "long.bin", "-z", tiny.tokenizer), "long.bin")


@pytest.mark.parametrize("field", range(7))
@pytest.mark.parametrize("value", [0, -1, 3, 7, 2**31 - 1, -(2**31)])
def test_model_headers_that_lie(run: Run, tiny_models, tmp_path: Path, field: int, value: int) -> None:
    tiny = tiny_models.random()
    lying = bytearray(tiny.path.read_bytes())
    lying[4 * field : 4 * field + 4] = struct.pack("<i", value)
    (tmp_path / "lying.bin").write_bytes(lying)
    assert_one_line(run(tmp_path / "lying.bin", "-z", tiny.tokenizer), "lying.bin")


def test_tokenizers_that_lie(run: Run, tiny_models, tmp_path: Path) -> None:
    tiny = tiny_models.random()
    whole = tiny.tokenizer.read_bytes()
    bad = {"empty": b"", "cut": whole[:-1], "header": whole[:4], "half": whole[:1500], "more": whole + whole[4:]}
    for name, length in [("negative", -1), ("huge", 2**31 - 1), ("long", 1000)]:
        bad[name] = whole[:8] + struct.pack("<i", length) + whole[12:]
    for name, content in bad.items():
        path = tmp_path / f"{name}.bin"
        path.write_bytes(content)
        assert_one_line(run(tiny.path, "-z", path), name)


@pytest.mark.parametrize("tensor", ["embedding", "query", "down", "ffn_norm"])
def test_weights_that_are_not_numbers(run: Run, tiny_models, tensor: str) -> None:
    tiny = tiny_models.random(5)
    tensors = {**tiny.tensors, tensor: np.full_like(tiny.tensors[tensor], np.nan)}
    broken = tiny_models.write("nan", tiny.shape, tensors, tied=True)
    for temperature in (0, 1):
        assert_one_line(run(broken.path, "-z", broken.tokenizer, "-t", temperature), "finite")


def test_full_disk(engine_build: Path, alphabet) -> None:
    with open("/dev/full", "wb") as full:
        command = [engine_build / "run", alphabet.path, "-z", alphabet.tokenizer, "-t", "0"]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, timeout=60)
    assert done.returncode == 2 and done.stderr.decode() == "run: writing the text to stdout: No space left on device\n"


def test_closed_stdout(engine_build: Path, alphabet) -> None:
    command = f"'{engine_build}/run' '{alphabet.path}' -z '{alphabet.tokenizer}' -t 0 >&-"
    done = subprocess.run(["sh", "-c", command], stderr=subprocess.PIPE, timeout=60)
    assert done.returncode == 2 and done.stderr.startswith(b"run: writing the text") and done.stderr.count(b"\n") == 1


def test_nobody_reads(engine_build: Path, endless) -> None:
    command = [engine_build / "run", endless.path, "-z", endless.tokenizer, "-t", "0", "-n", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as program:
        assert program.stdout and program.stderr
        program.stdout.read(3)
        program.stdout.close()
        stopped, speed = program.stderr.read().decode().splitlines()
    assert program.returncode == 141 and stopped.startswith("stopped: stdout is closed") and SPEED_LINE.fullmatch(speed)


def test_control_c(engine_build: Path, endless) -> None:
    command = [engine_build / "run", endless.path, "-z", endless.tokenizer, "-t", "0", "-n", "0", "-j", "1"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as program:
        assert program.stdout and program.stderr
        program.stdout.read(3)
        program.send_signal(signal.SIGINT)
        text, status = program.communicate(timeout=30)
    stopped, speed = status.decode().splitlines()
    assert program.returncode == 130 and stopped.startswith("stopped by Ctrl-C") and SPEED_LINE.fullmatch(speed)
    assert text.endswith(b"\n") and text.decode()

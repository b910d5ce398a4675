"""One program with the model inside: the same bytes as `run`, and one line for whatever is wrong."""

from __future__ import annotations

import os
import select
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import llamita
from llamita.cli import main
from llamita.convert import program
from llamita.engine.model import PACKAGED_MODEL
from llamita.errors import ConfigError

sys.path.insert(0, str(Path(__file__).resolve().parents[3] / "engine" / "scripts"))

from build_programs import ZIG_TARGETS

PROMPTS = ("Once upon a time", "", "小诗 né 🦙")


def run(*words: object, **options: Any) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run([*map(str, words)], capture_output=True, timeout=120, **options)


@pytest.fixture
def built(engine_build: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The program of this checkout, which the export takes."""
    monkeypatch.setattr(program, "program_path", lambda target: engine_build / "run")
    return engine_build / "run"


@pytest.fixture
def packaged(built: Path, tmp_path: Path) -> Path:
    path = tmp_path / "小 诗" / "我的 程序"
    path.parent.mkdir()
    main(["export", str(PACKAGED_MODEL), str(path), "--as", "program"])
    return path


def test_the_same_bytes_as_run(packaged: Path, built: Path, tmp_path: Path) -> None:
    """From another folder too; a second export replaces the first; a positional argument is the prompt."""
    for _ in range(2):
        for prompt in PROMPTS:
            for seed in range(3):
                flags = ("-s", seed, "-n", 30)
                here = run(built, PACKAGED_MODEL, "-i", prompt, *flags)
                assert here.returncode == 0
                assert run(packaged, "-i", prompt, *flags, cwd=tmp_path).stdout == here.stdout
                assert run(packaged, prompt, *flags).stdout == here.stdout
        main(["export", str(PACKAGED_MODEL), str(packaged), "--as", "program"])
    assert os.access(packaged, os.X_OK)
    assert [path.name for path in packaged.parent.iterdir()] == [packaged.name]


def test_the_model_is_aligned_and_opens_as_a_model_file(packaged: Path) -> None:
    data, model = packaged.read_bytes(), PACKAGED_MODEL.read_bytes()
    magic, offset, num_bytes = struct.unpack("<16sQQ", data[-32:])
    assert (magic, offset % 65536, data[offset : offset + num_bytes]) == (b"llamita-program\n", 0, model)
    with llamita.load(packaged) as inside, llamita.load(PACKAGED_MODEL) as alone:
        assert inside.info.num_parameters == alone.info.num_parameters


@pytest.mark.parametrize("kept", [0.5, 0.999999])
def test_a_program_that_was_cut(kept: float, packaged: Path) -> None:
    data = packaged.read_bytes()
    packaged.write_bytes(data[: int(kept * len(data))])
    done = run(packaged)
    assert (done.returncode, done.stdout) == (2, b"")
    line = f"run: the model in this program is cut off; copy or download it again: {packaged}\n"
    assert done.stderr.decode() == line


def test_wrong_numbers_in_the_trailer(packaged: Path) -> None:
    data = packaged.read_bytes()
    for offset, num_bytes in ((0, 0), (2**64 - 1, 1), (65536, len(data)), (len(data), 2**64 - 32)):
        packaged.write_bytes(data[:-16] + struct.pack("<QQ", offset, num_bytes))
        done = run(packaged)
        assert done.returncode == 2
        assert done.stderr.decode().endswith("the program around the model is damaged\n")


def type_lines(path: Path, words: list[str], lines: list[bytes], wait_for: bytes) -> tuple[bytes, int]:
    """What the program shows on a terminal where these lines are typed, each after wait_for; its exit code."""
    pty = pytest.importorskip("pty")
    process, terminal = pty.fork()
    if process == 0:
        os.execv(path, [str(path), *words])
    shown, seen, deadline = b"", 0, time.monotonic() + 60
    while time.monotonic() < deadline:
        if not select.select([terminal], [], [], 0.1)[0]:
            continue
        try:
            shown += os.read(terminal, 1 << 16)
        except OSError:
            break
        if (at := shown.find(wait_for, seen)) >= 0 and lines:
            seen = at + len(wait_for)
            os.write(terminal, lines.pop(0))
    return shown, os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def test_asks_how_the_text_begins_again_and_again(packaged: Path, built: Path) -> None:
    """Each text has the next seed."""
    lines = [b"Once upon a time\n", b"The cat\n", b"\x04"]
    shown, code = type_lines(packaged, ["-s", "5", "-n", "12"], lines, b"(Ctrl-D ends) > ")
    assert code == 0
    for seed, prompt in ((5, "Once upon a time"), (6, "The cat")):
        text = run(built, PACKAGED_MODEL, "-s", seed, "-n", 12, "-i", prompt).stdout
        assert text.replace(b"\n", b"\r\n") in shown


def test_a_chat_model_chats(make_chat_model: Callable[..., Any], built: Path, tmp_path: Path) -> None:
    chat = make_chat_model("chatml")
    program.write_program(chat.path, tmp_path / "chat")
    questions = "你好\nhello\n".encode()
    expected = run(built, chat.path, "-m", "chat", "-s", 1, "-n", 8, input=questions)
    done = run(tmp_path / "chat", "-s", 1, "-n", 8, input=questions)
    assert (done.returncode, done.stdout) == (0, expected.stdout)
    assert done.stdout.count(b"\n") >= 2


def test_a_checkpoint(make_checkpoint: Callable[..., Path], built: Path, tmp_path: Path) -> None:
    checkpoint = make_checkpoint(tmp_path / "checkpoint")
    main(["export", str(checkpoint), str(tmp_path / "one"), "--as", "program", "--type", "q8_0"])
    main(["export", str(checkpoint), str(tmp_path / "one.gguf"), "--type", "q8_0"])
    flags = ("-i", "ab", "-s", 1, "-n", 10)
    assert run(tmp_path / "one", *flags).stdout == run(built, tmp_path / "one.gguf", *flags).stdout


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("windwos-x86", r"perhaps you meant windows-x86_64"),
        ("linux-aarch64", r"perhaps you meant linux-"),
        ("mac-arm64", r"perhaps you meant macos-arm64"),
    ],
)
def test_targets_that_there_are_not(target: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        program.program_path(target)


def test_programs_are_built_for_these_targets() -> None:
    assert tuple(ZIG_TARGETS) == program.TARGETS


def test_of_a_package_the_program_that_runs_everywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """That of its own engine needs this machine's C library; it comes first only in a checkout, which builds it."""
    suffix = ".exe" if sys.platform == "win32" else ""
    target, package = program.this_target(), tmp_path / "src" / "llamita"
    installed, portable = package / "_engine" / f"run{suffix}", package / "programs" / f"{target}{suffix}"
    for path in (installed, portable):
        path.parent.mkdir(parents=True)
        path.touch()
    monkeypatch.setattr(llamita, "__path__", [str(package)])
    monkeypatch.setattr(program, "__file__", str(package / "convert" / "program.py"))
    assert program.program_path(target) == portable
    (tmp_path / "engine").mkdir()
    (tmp_path / "engine" / "CMakeLists.txt").touch()
    assert program.program_path(target) == installed
    (tmp_path / "engine" / "CMakeLists.txt").unlink()
    portable.unlink()
    assert program.program_path(target) == installed


def test_a_target_whose_program_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(llamita, "__path__", [str(tmp_path)])
    other = "windows-arm64" if sys.platform != "win32" else "linux-arm64"
    with pytest.raises(ConfigError, match=r"expected its program there, found none; .*: make programs"):
        program.program_path(other)


def test_what_is_no_model(built: Path, tmp_path: Path) -> None:
    (tmp_path / "model.gguf").write_bytes(b"not a model")
    with pytest.raises(ConfigError, match=r"expected a \.gguf, found another format"):
        program.write_program(tmp_path / "model.gguf", tmp_path / "out")
    assert not (tmp_path / "out").exists()

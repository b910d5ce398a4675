"""The engine built for other systems by zig's C compiler: it compiles without a warning everywhere, and where wine,
qemu or node can run it, it writes the bytes that it writes here."""

from __future__ import annotations

import concurrent.futures
import contextlib
import functools
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from llamita.convert import program
from llamita.engine.model import PACKAGED_MODEL

pytestmark = pytest.mark.cross

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "engine" / "scripts"))

import build_programs  # noqa: E402
from build_programs import find_zig  # noqa: E402

NODE_HOST = Path(__file__).parent / "wasi_host.mjs"
BUILT_ONLY = ("aarch64-linux-gnu.2.17", "aarch64-windows-gnu", "x86_64-macos.11.0", "aarch64-macos.11.0")
# The command before the program; "" is nothing.
RUNNERS = {
    "x86_64-linux-gnu.2.17": "",
    "x86_64-linux-musl": "",
    "aarch64-linux-musl": "qemu-aarch64-static",
    "x86_64-windows-gnu": "wine",
    "wasm32-wasi": "node",
}
# Those that finish in seconds under an emulator. WASI has one thread, and no files of its own.
C_TESTS = (
    "test_platform", "test_kernels", "test_session", "test_generate", "test_gguf", "test_llama2c", "test_lora",
    "test_tokenizer", "test_quantize", "test_tensor_type", "test_chat_template",
)  # fmt: skip


@functools.cache
def build(target: str, *names: str) -> Path:
    """build/cross/TARGET with these programs."""
    if not find_zig():
        pytest.skip("zig is not installed (pip install ziglang)")
    try:
        return build_programs.build(target, *names, LLAMITA_TESTS="ON")
    except subprocess.CalledProcessError as error:
        pytest.fail(error.stdout[-8000:])


def command(target: str, name: str, folder: Path) -> list[str]:
    """What runs this program of a target; skips the test if that is not installed."""
    runner = RUNNERS[target]
    if runner and shutil.which(runner) is None:
        pytest.skip(f"{runner} is not on PATH (Debian: wine wine64, qemu-user-static, nodejs)")
    program = build(target, name) / (f"{name}.exe" if "windows" in target else name)
    if runner == "node":
        return ["node", "--no-warnings", str(NODE_HOST), str(folder), str(program)]
    return [*([runner] if runner else []), str(program)]


def run(words: list[str], folder: Path, **options: object) -> subprocess.CompletedProcess[bytes]:
    environment = dict(os.environ, WINEDEBUG="-all")
    return subprocess.run(words, capture_output=True, timeout=300, cwd=folder, env=environment, **options)  # type: ignore[call-overload]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder whose name and files most code pages cannot spell: the packaged model is 模型 é.gguf there."""
    path = tmp_path / "小 诗"
    path.mkdir()
    shutil.copy(PACKAGED_MODEL, path / "模型 é.gguf")
    return path


@pytest.mark.parametrize("target", BUILT_ONLY)
def test_builds_without_a_warning(target: str) -> None:
    build(target, "run", "llamita")


def check_texts(cases: list[Any], words: list[str], folder: Path) -> None:
    """A command generates the texts of these cases. Two at a time: emulators take longer to start than to generate."""
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        for case, done in zip(cases, pool.map(lambda case: run([*words, *case.flags], folder), cases), strict=True):
            assert done.returncode == 0, (case, done.stderr)
            assert done.stdout == case.output, case


@pytest.mark.parametrize("target", RUNNERS)
def test_the_same_text_as_here(target: str, text_cases: list[Any], folder: Path) -> None:
    """All cases where they take milliseconds, under wine and qemu each prompt once. test_browser_engine.py runs all in
    WebAssembly, without starting node for each."""
    num_cases = {"": len(text_cases), "node": 20}.get(RUNNERS[target], 100)
    check_texts(text_cases[:num_cases], [*command(target, "run", folder), "模型 é.gguf"], folder)


@pytest.mark.parametrize("target", RUNNERS)
def test_errors_in_utf8(target: str, folder: Path) -> None:
    done = run([*command(target, "run", folder), "没有 x.gguf"], folder)
    assert (done.returncode, done.stdout) == (2, b"")
    assert done.stderr.decode() == "run: cannot open model 没有 x.gguf: No such file or directory\n"


@pytest.mark.parametrize("target", [target for target in RUNNERS if target != "wasm32-wasi"])
def test_c_tests(target: str, tmp_path: Path) -> None:
    build(target, *C_TESTS)
    for name in C_TESTS:
        done = run(command(target, name, tmp_path), tmp_path)
        assert done.returncode == 0, f"{name}: {(done.stdout + done.stderr).decode(errors='replace')[-2000:]}"


@pytest.mark.parametrize("target", ["x86_64-linux-musl", "x86_64-windows-gnu"])
def test_the_fastest_kernels_are_found(target: str, engine_build: Path, tmp_path: Path) -> None:
    """Under musl a compiler's own check says that the processor has nothing."""
    expected = run([str(engine_build / "run"), "-V"], tmp_path)
    assert run([*command(target, "run", tmp_path), "-V"], tmp_path).stdout == expected.stdout


def test_chat_on_windows(make_chat_model: Callable[..., object], engine_build: Path, folder: Path) -> None:
    """Questions from a pipe, with Windows' line ends, have the answers that they have here."""
    chat = make_chat_model("chatml")
    shutil.copy(chat.path, folder / "聊天.gguf")  # type: ignore[attr-defined]
    words = ["聊天.gguf", "-m", "chat", "-s", "1", "-n", "8"]
    program = command("x86_64-windows-gnu", "run", folder)
    here = run([str(engine_build / "run"), *words], folder, input="你好\nhello\n".encode())
    there = run([*program, *words], folder, input="你好\r\nhello\r\n".encode())
    assert (there.returncode, there.stdout) == (0, here.stdout)
    assert here.stdout.count(b"\n") >= 2


def test_ctrl_c_on_windows(tiny_models: Any, tmp_path: Path) -> None:
    """In a console, which wine makes of a terminal. A program that the system ends has another code."""
    pty = pytest.importorskip("pty")
    ids = [tiny_models.byte_id(byte) for byte in "日🦙".encode()]
    endless = tiny_models.successor("endless", dict(pairwise([1, *ids, ids[0]])), context=20000)
    words = [str(endless.path), "-z", str(endless.tokenizer), "-t", "0", "-n", "0"]
    program = command("x86_64-windows-gnu", "run", tmp_path)
    process, terminal = pty.fork()
    if process == 0:
        os.execvpe(program[0], [*program, *words], dict(os.environ, WINEDEBUG="-all", TERM="xterm"))
    deadline, shown = time.monotonic() + 120, b""
    while time.monotonic() < deadline and len(shown) < 1000:
        shown += os.read(terminal, 1 << 16)
    os.write(terminal, b"\x03")
    with contextlib.suppress(OSError):  # the end of a terminal
        while time.monotonic() < deadline and os.read(terminal, 1 << 16):
            pass
    assert os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == 130


@pytest.mark.parametrize(
    ("target", "name"),
    [
        ("x86_64-windows-gnu", "windows-x86_64"),
        ("aarch64-linux-musl", "linux-arm64"),
        ("x86_64-linux-musl", "linux-x86_64"),
    ],
)
def test_a_program_with_the_model_inside(
    target: str, name: str, text_cases: list[Any], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It finds its model by a name most code pages cannot spell, and generates the bytes of `run`; cut, it says so."""
    runner = command(target, "run", folder)[:-1]
    built = build(target, "run") / ("run.exe" if "windows" in target else "run")
    monkeypatch.setattr(program, "program_path", lambda target: built)
    path = folder / ("故事 é.exe" if "windows" in target else "故事 é")
    program.write_program(PACKAGED_MODEL, path, name)
    check_texts(text_cases if not runner else text_cases[100:130], [*runner, str(path)], folder)
    path.write_bytes(path.read_bytes()[:-5000])
    done = run([*runner, str(path)], folder)
    assert done.returncode == 2
    assert done.stderr.decode().startswith("run: the model in this program is cut off; copy or download it again: ")

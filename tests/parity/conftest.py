"""Fixtures of the parity tests."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from llamita.engine.model import PACKAGED_MODEL

ROOT = Path(__file__).resolve().parents[2]

# Also what a shell, or Windows' command lines, could change.
BEGINNINGS = (
    "", " ", "\n", "a\tb\n\nc", "Once upon a time", "Once upon a time ", "The little llama", "One day, a boy named Tim",
    "Lily and Ben went to the park.", "\"No!\" said Mom. \"", "It was a dark and stormy", "the", "T", "123 + 456 =",
    "\\", "C:\\dir\\", "a\\\\\"b\\\" c", "it's 'so'", "%PATH% $HOME ~ *", "--help", "<s>", "</s>", "<|im_start|>user",
    "从前", "从前有一只小羊驼，", "小诗 né 🦙", "🦙🦙🦙", "👩\u200d👩\u200d👧 and 🇫🇷", "日本語の鬱", "مرحبا",
    "e\u0301 n\u0303", "\ufeffBOM",
)  # fmt: skip


class TextCase(NamedTuple):
    """What the packaged model generates here."""

    prompt: str
    seed: int
    temperature: float
    output: bytes

    @property
    def flags(self) -> list[str]:
        return text_flags(self.prompt, self.seed, self.temperature)


NUM_TEXT_TOKENS = 24


def text_flags(prompt: str, seed: int, temperature: float) -> list[str]:
    return ["-i", prompt, "-s", str(seed), "-t", str(temperature), "-n", str(NUM_TEXT_TOKENS)]


@pytest.fixture(scope="session")
def text_cases(engine_build: Path, random_texts: list[str]) -> list[TextCase]:
    """100 prompts, each with four seeds and temperatures; the first 100 have all prompts."""
    others = [text for text in random_texts if "\0" not in text and text not in BEGINNINGS]
    prompts = [*BEGINNINGS, *others[: 100 - len(BEGINNINGS)]]
    cases = []
    for turn in range(4):
        for i, prompt in enumerate(prompts):
            seed = (2**53 - 1) // (i + 1) if turn == 3 else 100 * turn + i
            temperature = (1, 0, 0.6, 1.5)[(i + turn) % 4]
            words = [str(engine_build / "run"), str(PACKAGED_MODEL), *text_flags(prompt, seed, temperature)]
            done = subprocess.run(words, capture_output=True, timeout=60)
            assert done.returncode == 0, (words, done.stderr)
            cases.append(TextCase(prompt, seed, temperature, done.stdout))
    assert len({case.output for case in cases}) > 300  # greedy ones repeat
    return cases


@pytest.fixture(autouse=True)
def one_torch_thread() -> Iterator[None]:
    """Models this small are slower on several threads, and a hundred times slower on a busy
    machine."""
    try:
        import torch
    except ModuleNotFoundError:
        yield
        return
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def workers(launcher: int) -> list[int]:
    """The processes that a torchrun started."""
    return [int(word) for word in Path(f"/proc/{launcher}/task/{launcher}/children").read_text().split()]


@pytest.fixture
def kill_launch() -> Callable[[subprocess.Popen[Any]], None]:
    """kill_launch(process): kill -9 a torchrun and its processes, each of which is its own
    session."""
    if not Path("/proc/self/task").is_dir():
        pytest.skip("needs /proc to find a process's children")

    def kill(process: subprocess.Popen[Any]) -> None:
        children = workers(process.pid)
        process.kill()
        process.wait()
        for worker in children:
            with contextlib.suppress(ProcessLookupError):
                os.kill(worker, signal.SIGKILL)
        process.communicate()  # returns when all have ended

    return kill


@pytest.fixture
def kill_worker() -> Callable[[subprocess.Popen[Any]], None]:
    """kill_worker(process): kill -9 the last process that a torchrun started."""
    if not Path("/proc/self/task").is_dir():
        pytest.skip("needs /proc to find a process's children")
    return lambda process: os.kill(workers(process.pid)[-1], signal.SIGKILL)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Chromium, with logs of its requests and errors."""
    webdriver = pytest.importorskip("selenium.webdriver")
    program, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if program is None or driver is None:
        pytest.skip("chromium and chromedriver are not installed")
    options = webdriver.ChromeOptions()
    options.binary_location = program
    for flag in ("--headless=new", "--no-sandbox", "--disable-gpu", "--window-size=900,800", "--lang=en"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"performance": "ALL", "browser": "ALL"})
    with webdriver.Chrome(options=options, service=webdriver.ChromeService(driver)) as opened:
        yield opened


@pytest.fixture(scope="module")
def engine_for_browsers() -> None:
    if importlib.util.find_spec("ziglang") is None:
        pytest.skip("zig is not installed (pip install ziglang)")
    subprocess.run([sys.executable, str(ROOT / "js" / "build.py")], check=True, capture_output=True)


@pytest.fixture(scope="session")
def listening() -> Callable[[Any], contextlib.AbstractContextManager[str]]:
    """listening(app): the address of an application that is served in a thread."""
    uvicorn = pytest.importorskip("uvicorn")

    @contextlib.contextmanager
    def serve(app: Any) -> Iterator[str]:
        with socket.socket() as at:
            at.bind(("127.0.0.1", 0))
            program = uvicorn.Server(
                uvicorn.Config(app, lifespan="on", log_config=None, http="h11", timeout_graceful_shutdown=1)
            )
            thread = threading.Thread(target=program.run, kwargs={"sockets": [at]})
            thread.start()
            try:
                end = time.monotonic() + 60
                while not program.started:
                    assert thread.is_alive() and time.monotonic() < end
                    time.sleep(0.01)
                yield f"http://127.0.0.1:{at.getsockname()[1]}"
            finally:
                program.should_exit = True
                thread.join(30)
                assert not thread.is_alive()

    return serve

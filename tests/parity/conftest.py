"""Fixtures of the parity tests."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest


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

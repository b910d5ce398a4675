"""Shared by tests of `llamita run` and the engine's program `run`."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from llamita.cli import main


@pytest.fixture(params=["python", "program"])
def run_both(
    request: pytest.FixtureRequest, engine_build: Path, capfdbinary: pytest.CaptureFixture[bytes]
) -> Callable[..., Any]:
    """run_both(model, *words): runs a TinyModel in `llamita run` or, in a second test, in the
    program. Returns an object with returncode, and stdout and stderr in bytes."""

    def run(model: Any, *words: object) -> Any:
        options = [str(model.path), "-z", str(model.tokenizer), *map(str, words)]
        if request.param == "program":
            return subprocess.run([str(engine_build / "run"), *options], capture_output=True, timeout=60, check=False)
        code = main(["run", *options])
        printed = capfdbinary.readouterr()
        return SimpleNamespace(returncode=code or 0, stdout=printed.out, stderr=printed.err)

    return run

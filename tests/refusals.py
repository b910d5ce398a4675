"""A pytest plugin: every error that a test provokes must be one clean, short line for a person.

It looks at the errors of this process, and at what commands print that tests run as processes.
"""

from __future__ import annotations

import re
import subprocess
import traceback
from collections.abc import Iterator
from typing import Any

import pytest

from llamita.errors import MAX_LINE_CHARS, LlamitaError

INTERNALS = re.compile(
    r"Traceback \(most recent|<class '|<function |object at 0x|\b(?:Key|Type|Value|Attribute|Index|Overflow|Recursion"
    r"|Unicode\w*|OS|Runtime|Assertion)Error\b|\bPosixPath\(|\bNone of None\b|\bBaseException\b"
)
MAX_NAMES_CHARS = 4 * 300  # of paths and values in a message, which only str() shortens


def problems(message: str) -> list[str]:
    """What is wrong with a message."""
    found = []
    if not message.strip():
        found.append("it is empty")
    if len(message) > MAX_LINE_CHARS:
        found.append(f"it has {len(message)} characters, more than {MAX_LINE_CHARS}")
    if re.search("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]", message):
        found.append("it has control characters, or more than one line")
    if match := INTERNALS.search(message):
        found.append(f"it shows internals: {match[0]}")
    return found


class Recorder:
    """The errors of a test."""

    def __init__(self) -> None:
        self.raised: list[tuple[LlamitaError, str]] = []
        self.printed: list[str] = []

    def check(self) -> list[str]:
        lines = []
        for error, where in self.raised:
            raw = " ".join(map(str, error.args))
            wrong = problems(str(error))
            if len(raw) > MAX_LINE_CHARS + MAX_NAMES_CHARS:
                wrong.append(f"it quotes {len(raw)} characters and only str() shortens it")
            lines += [f"{type(error).__name__}: {str(error)!r}: {each}; raised at {where}" for each in wrong]
        for text in self.printed:
            last = text.strip("\n").rpartition("\n")[2]
            lines += [f"printed: {last!r}: {each}" for each in problems(last)]
            if "Traceback (most recent" in text:
                lines.append(f"printed a traceback: {text[-600:]!r}")
        return lines


@pytest.fixture(autouse=True)
def refusals_are_clean_lines(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Fail a test in which a refusal was not one clean line."""
    recorder = Recorder()
    construct, run = LlamitaError.__init__, subprocess.run

    def record(self: LlamitaError, *args: Any) -> None:
        construct(self, *args)
        frame = traceback.extract_stack(limit=3)[0]
        recorder.raised.append((self, f"{frame.filename}:{frame.lineno}"))

    def run_and_record(*args: Any, **kwargs: Any) -> subprocess.CompletedProcess[Any]:
        done = run(*args, **kwargs)
        words = args[0] if args and isinstance(args[0], (list, tuple)) else []
        if done.returncode == 2 and done.stderr and "llamita" in map(str, words):
            text = done.stderr if isinstance(done.stderr, str) else done.stderr.decode("utf-8", "replace")
            recorder.printed.append(text)
        return done

    monkeypatch.setattr(LlamitaError, "__init__", record)
    monkeypatch.setattr(subprocess, "run", run_and_record)
    yield
    wrong = recorder.check()
    if wrong:
        pytest.fail("\n".join(["a refusal is not one clean line:", *wrong[:5]]), pytrace=False)

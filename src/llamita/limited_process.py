"""Runs a Python program of ours that does something risky: it answers lines of JSON, each within a
time limit, and may crash."""

from __future__ import annotations

import contextlib
import json
import math
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

_PRECISION_SECONDS: Final = 0.1  # by which an answer may exceed its limit
_START_SECONDS: Final = 30.0
# A busy machine gives a program little of each second. Where a program can limit its own processor time, this many
# times its limit may pass.
_WAITING_FACTOR: Final = 4 if hasattr(signal, "setitimer") else 1


class LimitedProcess:
    """The program while it runs. It gets sys.path as JSON in its first argument, and answers the
    first line when it is ready. Not thread-safe."""

    def __init__(self, program: Path, first: Mapping[str, Any]) -> None:
        """first: the first line. `is_running` is False if the program does not answer it."""
        command = [sys.executable, "-I", "-S", str(program), json.dumps([path or "." for path in sys.path])]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, encoding="ascii"
        )
        self._deadline = math.inf
        self._finalizer = weakref.finalize(self, _end, self._process)
        # One thread watches all answers: starting a thread takes longer than most of them.
        threading.Thread(target=_watch, args=(weakref.ref(self), self._process), daemon=True).start()
        self.is_running = True
        self.ask(first, _START_SECONDS)

    def ask(self, request: Mapping[str, Any], seconds: float) -> dict[str, Any] | None:
        """Send one line and read one; None if the program exited or hit the time limit. seconds: of
        processor time; the program gets it in the line, and sets its timer."""
        process = self._process
        assert process.stdin is not None and process.stdout is not None
        self._deadline = time.monotonic() + seconds * _WAITING_FACTOR
        try:
            process.stdin.write(json.dumps({**request, "seconds": seconds}) + "\n")
            process.stdin.flush()
            line = process.stdout.readline()
        except OSError:
            line = ""
        finally:
            self._deadline = math.inf
        if not line.endswith("\n"):
            self.close()
            return None
        reply: dict[str, Any] = json.loads(line)
        return reply

    def close(self) -> None:
        """Stop the program."""
        self.is_running = False
        self._finalizer()


def _watch(watched: weakref.ref[LimitedProcess], process: subprocess.Popen[str]) -> None:
    while process.poll() is None:
        limited = watched()
        if limited is not None and time.monotonic() > limited._deadline:
            process.kill()
        del limited
        time.sleep(_PRECISION_SECONDS)


def _end(process: subprocess.Popen[str]) -> None:
    process.kill()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            with contextlib.suppress(OSError):  # buffered data for a process that has exited
                pipe.close()
    process.wait()

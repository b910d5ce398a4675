"""Sides that can be measured to the costs of interleaved rounds: A B A B, a warm-up round first, nobody disturbing.

A side is an Entry: a group ("ours", "llama.cpp"), a setting of it, and a function that measures once. The warm-up round
finds each group's promising settings; only they go on, so that a side with many settings does not take all the time.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

PROMISING = 1.15  # settings up to so much slower than the group's best in the warm-up round are measured further
SETTLE_SECONDS = 0.1  # before a measurement: what ran before it has gone to sleep
IDLE_SHARE = 0.05  # a process that uses more of a processor than this while another is measured is stopped meanwhile
IDLE_SECONDS = 0.03  # ... and more than this: threads may take a moment to fall asleep, and clocks count hundredths
ANSWER_SECONDS = 300  # a process that takes longer for one answer is ended


class SideError(Exception):
    """A side cannot do what it was asked; one line."""


class Process:
    """A program that answers each line with a line, and whose processor time is watched while others are measured."""

    def __init__(self, name: str, command: Sequence[str | Path], environment: Mapping[str, str] | None = None) -> None:
        self.name, self.is_spinning = name, False
        self._process = subprocess.Popen(
            [str(word) for word in command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env={**os.environ, **(environment or {})},
        )

    def ask(self, line: str) -> str:
        """The answer. Raises SideError if the process has ended, or does so because ANSWER_SECONDS are over."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # then the answer is missing
            self._process.stdin.write(line + "\n")
            self._process.stdin.flush()
        return self.read_answer()

    def read_answer(self) -> str:
        assert self._process.stdout is not None
        watch = threading.Timer(ANSWER_SECONDS, self._process.kill)
        watch.start()
        try:
            found = self._process.stdout.readline()
        finally:
            watch.cancel()
        if not found:
            self._process.wait(timeout=10)
            raise SideError(f"{self.name}: its process ended with code {self._process.returncode}")
        return found.strip()

    def cpu_seconds(self) -> float:
        """Processor time used so far, of all its threads; 0 once it has ended."""
        try:
            fields = Path(f"/proc/{self._process.pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            return 0.0
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def pause(self) -> None:
        """Stop it where it spins although nobody asks it anything."""
        if self.is_spinning and self._process.poll() is None:
            self._process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        if self.is_spinning and self._process.poll() is None:
            self._process.send_signal(signal.SIGCONT)

    def close(self) -> None:
        self.resume()
        assert self._process.stdin is not None and self._process.stdout is not None
        try:
            self._process.stdin.close()
            self._process.wait(timeout=20)
        except (subprocess.TimeoutExpired, OSError):
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()


class Worker(Process):
    """A bench_worker.py: a side alone with its model."""

    def __init__(self, side: str) -> None:
        # NumPy's OpenBLAS starts threads that spin for a tenth of a second: what a fresh worker does first would be
        # measured beside them. Neither side multiplies with NumPy.
        command = [sys.executable, Path(__file__).with_name("bench_worker.py"), side]
        super().__init__(side, command, {"OPENBLAS_NUM_THREADS": "1"})
        self.described: dict[str, Any] = {}
        self._checked(self.read_answer())

    def do(self, command: str, **arguments: Any) -> dict[str, Any]:
        return self._checked(self.ask(json.dumps({"do": command, **arguments})))

    def cost(self, command: str, **arguments: Any) -> float:
        return float(self.do(command, **arguments)["cost"])

    def load(self, path: Path) -> Worker:
        self.described = self.do("load", path=str(path))
        return self

    def _checked(self, line: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(line)
        if "error" in found:
            raise SideError(f"{self.name}: {found['error']}")
        return found


@dataclasses.dataclass(frozen=True)
class Entry:
    """One setting of one side. measure: one measurement's cost (seconds or bytes: less is better). process: the one
    that it runs in, if it stays there between measurements."""

    group: str
    setting: str
    measure: Callable[[], float]
    process: Process | None = None


Costs = dict[str, dict[str, list[float]]]  # group → setting → a cost a round


def compare(entries: Sequence[Entry], rounds: int, note: Callable[[str], None]) -> Costs:
    """Costs of each setting that went beyond the warm-up round. A group that cannot be measured is left out, and the
    note says why."""
    failed: set[str] = set()

    def attempt(entry: Entry, into: dict[str, dict[str, list[float]]]) -> None:
        if entry.group in failed:
            return
        try:
            cost = measure_alone(entry, entries, note)
            into.setdefault(entry.group, {}).setdefault(entry.setting, []).append(cost)
        except SideError as error:
            failed.add(entry.group)
            note(str(error))

    warm: Costs = {}
    for entry in entries:
        attempt(entry, warm)
    going = [entry for entry in entries if entry.group not in failed and is_promising(entry, warm)]
    costs: Costs = {}
    for _ in range(rounds):
        for entry in going:
            attempt(entry, costs)
    return {group: settings for group, settings in costs.items() if group not in failed}


def is_promising(entry: Entry, warm: Costs) -> bool:
    """Whether the setting was near its group's best in the warm-up round."""
    settings = {setting: min(costs) for setting, costs in warm[entry.group].items()}
    return settings[entry.setting] <= PROMISING * min(settings.values())


def measure_alone(entry: Entry, entries: Iterable[Entry], note: Callable[[str], None]) -> float:
    """One measurement, while the other processes are idle: one that was not is stopped meanwhile from now on."""
    others = {id(e.process): e.process for e in entries if e.process is not None and e.process is not entry.process}
    time.sleep(SETTLE_SECONDS)
    before = {key: process.cpu_seconds() for key, process in others.items()}
    if entry.process is not None:
        entry.process.resume()
    start = time.perf_counter()
    try:
        return entry.measure()
    finally:
        limit = max(IDLE_SECONDS, IDLE_SHARE * (time.perf_counter() - start))
        for key, process in others.items():
            used = process.cpu_seconds() - before[key]
            if used > limit and not process.is_spinning:
                note(f"{process.name} used {used:.2f} s of processor time while idle: stopped from now on when idle")
                process.is_spinning = True
                process.pause()
        if entry.process is not None:
            entry.process.pause()


def best_setting(settings: Mapping[str, Sequence[float]]) -> tuple[str, list[float]]:
    """The setting with the least median, and its costs."""
    name = min(settings, key=lambda key: statistics.median(settings[key]))
    return name, list(settings[name])

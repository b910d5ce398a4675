"""Fair timing: worker processes, interleaved rounds, medians, and the rows of results/*.csv."""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import datetime
import json
import os
import platform
import signal
import statistics
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

COLUMNS = ("date", "script", "what", "ours", "unit", "peer", "peer_value", "ratio", "rounds", "spread", "processor")
RESULTS = Path(__file__).with_name("results")
# settings slower than this, relative to the best in the warm-up round, are dropped
MAX_SLOWDOWN = 1.15
SETTLE_SECONDS = 0.1  # pause before each measurement
REPLY_TIMEOUT_SECONDS = 300


class BenchmarkError(Exception):
    """A measurement failed; the message is one line."""


# ---------------------------------------------------------------- worker processes


class Worker:
    """A child process that answers each JSON line with a JSON line.

    It is stopped (SIGSTOP) except while it answers, so that threads that spin while idle do not
    slow others down.
    """

    def __init__(
        self,
        name: str,
        command: Sequence[str | Path],
        environment: Mapping[str, str] | None = None,
        *,
        quiet: bool = False,
    ) -> None:
        """quiet: discard what the worker prints to stderr."""
        self.name = name
        self._process = subprocess.Popen(
            [str(argument) for argument in command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL if quiet else None,
            text=True,
            env={**os.environ, **(environment or {})},
        )
        try:
            self.info = self._read_reply()  # the first line says that the worker is ready
        except BenchmarkError:
            self.close()
            raise

    def ask(self, **request: Any) -> dict[str, Any]:
        """Sends a request and returns the reply. Raises BenchmarkError if the worker reports an
        error or ends."""
        assert self._process.stdin is not None
        self._process.send_signal(signal.SIGCONT)
        with contextlib.suppress(BrokenPipeError):  # _read_reply reports that the process has ended
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
        return self._read_reply()

    def _read_reply(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        timer = threading.Timer(REPLY_TIMEOUT_SECONDS, self._process.kill)
        timer.start()
        try:
            line = self._process.stdout.readline()
        finally:
            timer.cancel()
        if not line:
            self._process.wait(timeout=10)
            raise BenchmarkError(f"{self.name}: the worker ended with code {self._process.returncode}")
        self._process.send_signal(signal.SIGSTOP)
        reply: dict[str, Any] = json.loads(line)
        if "error" in reply:
            raise BenchmarkError(f"{self.name}: {reply['error']}")
        return reply

    def close(self) -> None:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.send_signal(signal.SIGCONT)
        try:
            self._process.stdin.close()
            self._process.wait(timeout=20)
        except (subprocess.TimeoutExpired, OSError):
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()


def open_replies() -> Callable[[dict[str, Any]], None]:
    """For the worker: a function that writes one reply. Everything else that is printed goes to
    stderr."""
    file = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    return lambda reply: print(json.dumps(reply), file=file, flush=True)


def peak_memory_bytes() -> int:
    """Largest resident set of this process so far."""
    return status_bytes("VmHWM")


def status_bytes(field: str) -> int:
    """A field of /proc/self/status, such as VmRSS."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise OSError(f"/proc/self/status has no {field}: this benchmark needs Linux")


# ---------------------------------------------------------------- rounds


@dataclasses.dataclass(frozen=True)
class Side:
    """One setting of one competitor. measure() returns a cost: seconds or bytes, less is better."""

    name: str
    setting: str
    measure: Callable[[], float]


Costs = dict[str, dict[str, list[float]]]  # name → setting → one cost per round


def interleave(sides: Sequence[Side], rounds: int, warn: Callable[[str], None]) -> Costs:
    """Measures A B A B ... after a warm-up round, which also drops settings that are clearly slow.

    A competitor that fails is left out; warn() gets the reason.
    """
    failed: set[str] = set()

    def run_round(some: Sequence[Side], costs: Costs) -> None:
        for side in some:
            if side.name in failed:
                continue
            time.sleep(SETTLE_SECONDS)
            try:
                cost = side.measure()
            except BenchmarkError as error:
                failed.add(side.name)
                warn(str(error))
            else:
                costs.setdefault(side.name, {}).setdefault(side.setting, []).append(cost)

    warm: Costs = {}
    run_round(sides, warm)
    fast = [side for side in sides if side.name not in failed and _is_fast(side, warm)]
    costs: Costs = {}
    for _ in range(rounds):
        run_round(fast, costs)
    return {name: settings for name, settings in costs.items() if name not in failed}


def _is_fast(side: Side, warm: Costs) -> bool:
    settings = {setting: costs[0] for setting, costs in warm[side.name].items()}
    return settings[side.setting] <= MAX_SLOWDOWN * min(settings.values())


def best_setting(settings: Mapping[str, Sequence[float]]) -> tuple[str, list[float]]:
    """The setting with the lowest median cost, and its costs."""
    name = min(settings, key=lambda key: statistics.median(settings[key]))
    return name, list(settings[name])


# ---------------------------------------------------------------- records


def results_path() -> Path:
    """The results file for machines like this one."""
    return RESULTS / f"{platform.machine()}-{os.cpu_count()}cores.csv"


def processor_name() -> str:
    """The model name and the instruction sets that matter here."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = (line.partition(":")[2].strip() for line in lines if line.startswith(("model name", "Model")))
    flags = next((line.split() for line in lines if line.startswith(("flags", "Features"))), [])
    known = [flag for flag in ("avx2", "avx_vnni", "avx512f", "asimddp", "i8mm") if flag in flags]
    return f"{next(names, platform.machine())} ({' '.join(known)})"


def append_rows(path: Path, script: str, rows: Sequence[Sequence[str]]) -> None:
    """Appends rows of COLUMNS[2:-1]; the date, the script and the processor are added here."""
    path.parent.mkdir(parents=True, exist_ok=True)
    is_new = not path.exists()
    with path.open("a", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        if is_new:
            writer.writerow(COLUMNS)
        today = datetime.date.today().isoformat()
        writer.writerows([today, script, *row, processor_name()] for row in rows)

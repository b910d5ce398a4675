"""Turns measurements into lines of metrics.jsonl, cut back to the checkpoint's line when a run is resumed."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from llamita.errors import OutputError, TrainingError

NAME = "metrics.jsonl"

Line = Mapping[str, Any]


class MetricsLog:
    """Appends to a run's metrics.jsonl, and tells the trackers; `num_bytes` is what a checkpoint remembers."""

    def __init__(
        self, run: Path, num_bytes: int = 0, track: Sequence[str] = (), say: Callable[[str], None] | None = None
    ) -> None:
        """track: --track's names; say: takes what a tracker's failure is told with, once.

        Raises OutputError if it cannot be written, TrainingError if it is shorter than the checkpoint remembers.
        """
        self.path = Path(run) / NAME
        try:
            self.path.touch()
            found = self.path.stat().st_size
            if found < num_bytes:
                raise TrainingError(
                    f"cannot resume: {self.path}: expected at least {num_bytes} bytes, found {found}; put the file back"
                )
            lines = read_metrics(run) if track else []
            os.truncate(self.path, num_bytes)
        except OSError as error:
            raise OutputError(f"cannot write {self.path}: {error.strerror or error}") from error
        self.num_bytes = num_bytes
        self.trackers = None
        if track:
            from llamita.training.sinks import Trackers

            kept = read_metrics(run)
            self.trackers = Trackers(track, Path(run), kept, lines[len(kept) :], say or (lambda text: None))

    def append(self, values: Mapping[str, Any]) -> None:
        """One line. Raises OutputError."""
        line = (json.dumps(values, ensure_ascii=False) + "\n").encode()
        try:
            with open(self.path, "ab") as file:
                file.write(line)
        except OSError as error:
            raise OutputError(f"cannot write {self.path}: {error.strerror or error}") from error
        self.num_bytes += len(line)
        if self.trackers is not None:
            self.trackers.write(values)

    def close(self) -> None:
        """Let the trackers finish; the file needs nothing."""
        if self.trackers is not None:
            self.trackers.close()


def read_metrics(run: Path) -> list[dict[str, Any]]:
    """All lines of a run's metrics.jsonl; an unfinished last line (the run was killed) is left out.

    Raises OSError, and TrainingError naming the line that is no line of metrics.
    """
    path = Path(run) / NAME
    data = path.read_bytes()
    lines = []
    for number, text in enumerate(data[: data.rfind(b"\n") + 1].split(b"\n")[:-1], 1):
        try:
            line = json.loads(text)
        except ValueError:
            line = None
        if not (isinstance(line, dict) and isinstance(line.get("kind"), str) and isinstance(line.get("step"), int)):
            shown = text[:40].decode("utf-8", errors="replace")
            raise TrainingError(
                f"cannot read {path}: line {number}: expected an object with kind and step, found {shown!r}; "
                "the file is damaged"
            )
        lines.append(line)
    return lines


def numbers(line: Line, prefix: str = "") -> dict[str, float]:
    """The finite numbers of a line; those of an object in it as object.key."""
    found: dict[str, float] = {}
    for key, value in line.items():
        if isinstance(value, Mapping):
            found.update(numbers(value, f"{prefix}{key}."))
        elif isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value):
            found[prefix + key] = value
    return found

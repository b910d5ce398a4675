"""Turns measurements into lines of metrics.jsonl, cut back to the checkpoint's line when a run is resumed."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llamita.errors import OutputError, TrainingError

NAME = "metrics.jsonl"


class MetricsLog:
    """Appends to a run's metrics.jsonl; `num_bytes` is what a checkpoint remembers."""

    def __init__(self, run: Path, num_bytes: int = 0) -> None:
        """Raises OutputError if it cannot be written, TrainingError if it is shorter than the checkpoint remembers."""
        self.path = Path(run) / NAME
        try:
            self.path.touch()
            found = self.path.stat().st_size
            if found < num_bytes:
                raise TrainingError(
                    f"cannot resume: {self.path}: expected at least {num_bytes} bytes, found {found}; put the file back"
                )
            os.truncate(self.path, num_bytes)
        except OSError as error:
            raise OutputError(f"cannot write {self.path}: {error.strerror or error}") from error
        self.num_bytes = num_bytes

    def append(self, values: Mapping[str, Any]) -> None:
        """One line. Raises OutputError."""
        line = (json.dumps(values, ensure_ascii=False) + "\n").encode()
        try:
            with open(self.path, "ab") as file:
                file.write(line)
        except OSError as error:
            raise OutputError(f"cannot write {self.path}: {error.strerror or error}") from error
        self.num_bytes += len(line)


def read_metrics(run: Path) -> list[dict[str, Any]]:
    """All lines of a run's metrics.jsonl; an unfinished last line (the run was killed) is left out."""
    text = (Path(run) / NAME).read_bytes()
    return [json.loads(line) for line in text[: text.rfind(b"\n") + 1].splitlines()]

"""Writes metrics.jsonl, and sends its lines to tensorboard, wandb or trackio.

The trainer makes the lines: `Trainer._log` and `Trainer._evaluate`. The report draws every number.

A metric is named by kind and key of its line: train/loss, train/bpb, train/lr, train/grad_norm,
train/tok_s, train/mfu, val/loss, val/bpb. The x axis is the step; tokens and seconds are logged
too. A failing tracker never stops training.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import json
import os
import sys
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from llamita.atomic import atomic_write_bytes, sync
from llamita.errors import ConfigError, OutputError, TrainingError
from llamita.json_file import Key, Schema, read_json_object
from llamita.run_directory import METRICS, NAME, RUN, read_metrics, scalars

Line = Mapping[str, Any]

TRACKING = "tracking.json"  # in the run directory: the id of the run in trackers, and their names
KNOWN: Schema = {
    "id": Key("string", default="", null=False),
    "trackers": Key("list", default=[], null=False, items=Key("string", required=True)),
}
PROJECT = "llamita"
AXES = ("step", "tokens", "seconds")
PREFIXES = {"eval": "val"}
SHORT_NAMES = {"learning_rate": "lr", "gradient_norm": "grad_norm", "tokens_per_second": "tok_s"}


def check_trackers(names: Sequence[str]) -> None:
    """Raise ConfigError if a tracker's package is not installed."""
    for name in names:
        if name not in sys.modules and importlib.util.find_spec(name) is None:
            raise ConfigError(f"cannot track with {name}: the package is not installed; run pip install {name}")


class Tracker(Protocol):
    """Where metrics are sent. If a method raises, the tracker is dropped and training continues."""

    def write(
        self, step: int, axes: Mapping[str, float], values: Mapping[str, float], texts: Mapping[str, str]
    ) -> None:
        """Log the numbers and texts of a line, by name."""

    def go_back(self, step: int) -> None:
        """Training rolled back to this step: later lines are discarded."""

    def close(self) -> None:
        """Finish: no more lines follow."""


class TensorBoard:
    """Writes RUN/tensorboard. Steps that a resumed run computes again replace the earlier ones."""

    def __init__(self, run: Path, identity: str, config: Mapping[str, Any], kept_step: int | None) -> None:
        self.folder = str(run / "tensorboard")
        self._open(kept_step)
        rows = "\n".join(f"| {name} | {value} |" for name, value in config.items())
        self.writer.add_text("config", f"| flag | value |\n|---|---|\n{rows}", kept_step or 0)

    def _open(self, kept_step: int | None) -> None:
        from torch.utils.tensorboard import SummaryWriter

        purge_step = None if kept_step is None else kept_step + 1
        self.writer: Any = SummaryWriter(self.folder, purge_step=purge_step)

    def write(
        self, step: int, axes: Mapping[str, float], values: Mapping[str, float], texts: Mapping[str, str]
    ) -> None:
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)
        for name, text in texts.items():
            self.writer.add_text(name, text, step)
        for name in ("tokens", "seconds"):
            if name in axes:
                self.writer.add_scalar(f"progress/{name}", axes[name], step)
        self.writer.flush()

    def go_back(self, step: int) -> None:
        self.writer.close()
        self._open(step)

    def close(self) -> None:
        self.writer.close()


class Wandb:
    """A run of wandb's project llamita; resumed under the same id."""

    def __init__(self, run: Path, identity: str, config: Mapping[str, Any], kept_step: int | None) -> None:
        wandb: Any = importlib.import_module("wandb")
        self.run = wandb.init(
            project=PROJECT, name=run.resolve().name, id=identity, resume="allow", dir=str(run), config=dict(config),
            settings=wandb.Settings(console="off"),
        )  # fmt: skip
        self.run.define_metric("step")
        self.run.define_metric("*", step_metric="step")

    def write(
        self, step: int, axes: Mapping[str, float], values: Mapping[str, float], texts: Mapping[str, str]
    ) -> None:
        self.run.log({**axes, **values, **texts})

    def go_back(self, step: int) -> None:
        """Cannot delete: the curve continues from the earlier step."""

    def close(self) -> None:
        self.run.finish()


class Trackio:
    """A run of trackio's project llamita; resumed under the same name."""

    def __init__(self, run: Path, identity: str, config: Mapping[str, Any], kept_step: int | None) -> None:
        self.trackio: Any = importlib.import_module("trackio")
        name = f"{run.resolve().name}-{identity[:6]}"
        with contextlib.redirect_stdout(sys.stderr):  # its greeting
            self.trackio.init(project=PROJECT, name=name, config=dict(config), resume="allow")

    def write(
        self, step: int, axes: Mapping[str, float], values: Mapping[str, float], texts: Mapping[str, str]
    ) -> None:
        self.trackio.log({**axes, **values, **texts}, step=step)

    def go_back(self, step: int) -> None:
        """Cannot delete: the curve continues from the earlier step."""

    def close(self) -> None:
        with contextlib.redirect_stdout(sys.stderr):
            self.trackio.finish()


TRACKERS: dict[str, Callable[[Path, str, Mapping[str, Any], int | None], Tracker]] = {
    "tensorboard": TensorBoard,
    "wandb": Wandb,
    "trackio": Trackio,
}


class Trackers:
    """The trackers of a run. One that fails is reported once and dropped."""

    def __init__(
        self, names: Sequence[str], run: Path, kept: Sequence[Line], cut: Sequence[Line], say: Callable[[str], None]
    ) -> None:
        """kept: lines before the checkpoint to resume from; cut: later ones, computed again now."""
        self.say = say
        self.trackers: dict[str, Tracker] = {}
        known = _read_known(run)
        identity = known.get("id") or uuid.uuid4().hex[:12]
        before = [name for name in known.get("trackers", ()) if name in TRACKERS]
        config = _read_config(run)
        self.sent: dict[str, set[tuple[str, int]]] = {}  # lines that must not be sent again
        last = max((line["step"] for line in kept), default=0)
        for name in dict.fromkeys(names):
            with self._guard(name):
                tracker = TRACKERS[name](run, identity, config, last if name in before else None)
                self.trackers[name] = tracker
                has_them = name in before and name != "tensorboard"
                self.sent[name] = {(line["kind"], line["step"]) for line in cut} if has_them else set()
        for name in [name for name in self.trackers if name not in before]:
            for line in kept:  # a tracker added on --resume gets the whole history
                self._write_to(name, line)
        trackers = [*before, *(name for name in self.trackers if name not in before)]
        text = json.dumps({"id": identity, "trackers": trackers})
        atomic_write_bytes(run / TRACKING, f"{text}\n".encode())

    def write(self, line: Line) -> None:
        """Send a line of metrics.jsonl to every tracker."""
        for name in list(self.trackers):
            if (line["kind"], line["step"]) not in self.sent[name]:
                self._write_to(name, line)

    def _write_to(self, name: str, line: Line) -> None:
        tracker = self.trackers.get(name)
        if tracker is None:
            return
        prefix = PREFIXES.get(line["kind"], line["kind"])
        axes = {key: line[key] for key in AXES if key in line}
        values = {
            f"{prefix}/{SHORT_NAMES.get(key, key)}": value for key, value in scalars(line).items() if key not in AXES
        }
        texts = {f"{prefix}/{key}": value for key, value in line.items() if isinstance(value, str) and key != "kind"}
        with self._guard(name):
            tracker.write(line["step"], axes, values, texts)
            if line["kind"] == "rollback":
                tracker.go_back(line["to_step"])

    def close(self) -> None:
        """Wait until each has sent everything."""
        for name in list(self.trackers):
            with self._guard(name):
                self.trackers[name].close()
        self.trackers.clear()

    @contextlib.contextmanager
    def _guard(self, name: str) -> Any:
        """Report an exception of a tracker in one line, and drop the tracker."""
        try:
            yield
        except Exception as error:
            self.trackers.pop(name, None)
            what = " ".join(str(error).split()) or type(error).__name__
            self.say(f"{name} failed, training continues without it: {what[:200]}")


def _read_known(run: Path) -> dict[str, Any]:
    if not (run / TRACKING).is_file():
        return {}
    return read_json_object(run / TRACKING, TrainingError, KNOWN)


def _read_config(run: Path) -> dict[str, Any]:
    if not (run / NAME).is_file():
        return {}
    return dict(read_json_object(run / NAME, TrainingError, RUN)["config"])


class MetricsLog:
    """Appends lines to metrics.jsonl and sends them to trackers.

    A checkpoint records `num_bytes`: a resumed run cuts the file there.
    """

    def __init__(
        self, run: Path, num_bytes: int = 0, track: Sequence[str] = (), say: Callable[[str], None] | None = None
    ) -> None:
        """track: names of trackers; say: called with a message when a tracker fails.

        Raises OutputError if the file cannot be written, TrainingError if it is shorter than the
        checkpoint recorded.
        """
        self.path = Path(run) / METRICS
        try:
            self.path.touch()
            found = self.path.stat().st_size
            if found < num_bytes:
                raise TrainingError(
                    f"cannot resume: {self.path}: expected at least {num_bytes} bytes, found {found}; restore the file"
                )
            lines = read_metrics(run) if track else []
            os.truncate(self.path, num_bytes)
        except OSError as error:
            raise OutputError(f"cannot write {self.path}: {error.strerror or error}") from error
        self.num_bytes = num_bytes
        self.trackers = None
        if track:
            kept = read_metrics(run)
            self.trackers = Trackers(track, Path(run), kept, lines[len(kept) :], say or (lambda text: None))

    def append(self, values: Mapping[str, Any]) -> None:
        """Append a line. Raises OutputError."""
        line = (json.dumps(values, ensure_ascii=False) + "\n").encode()
        try:
            with open(self.path, "ab") as file:
                file.write(line)
        except OSError as error:
            raise OutputError(f"cannot write {self.path}: {error.strerror or error}") from error
        self.num_bytes += len(line)
        if self.trackers is not None:
            self.trackers.write(values)

    def sync(self) -> None:
        """Flush the lines so far to disk. Raises OutputError."""
        try:
            sync(self.path)
        except OSError as error:
            raise OutputError(f"cannot write {self.path}: {error.strerror or error}") from error

    def close(self) -> None:
        """Close the trackers; the file is not kept open."""
        if self.trackers is not None:
            self.trackers.close()

"""Reads a run directory for the report: settings, series of metrics, samples, rollbacks."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeGuard

from llamita.errors import TrainingError
from llamita.json_file import read_json_object
from llamita.run_directory import METRICS, NAME, RESULT, RUN, SUMMARY, is_number, read_metrics, scalars

Points = tuple[list[float], list[float]]  # xs, ys


@dataclasses.dataclass(frozen=True)
class History:
    """A run.

    lines: metrics in order of steps, without those that a rollback discarded; discarded: those, a
    list for each rollback; rollbacks: their own lines; summary: empty until the run ends.
    """

    name: str
    path: Path
    description: dict[str, Any]
    lines: list[dict[str, Any]]
    discarded: list[list[dict[str, Any]]]
    rollbacks: list[dict[str, Any]]
    summary: dict[str, Any]

    @property
    def config(self) -> dict[str, Any]:
        """The configuration, with every default filled in."""
        return dict(self.description["config"])

    @property
    def command(self) -> str:
        """The command of the run: train or finetune."""
        return "finetune" if "checkpoint" in self.config else "train"

    @property
    def targets(self) -> str:
        """The unit of its token counts: tokens, target tokens or pairs."""
        return str(self.description.get("targets", "tokens"))

    @property
    def evaluations(self) -> list[dict[str, Any]]:
        return [line for line in self.lines if line["kind"] == "eval"]

    @property
    def generations(self) -> list[dict[str, Any]]:
        """The lines with which later generations began."""
        return [line for line in self.lines if line["kind"] == "generation"]

    def keys(self, kind: str) -> list[str]:
        """Names of all numbers in the lines of a kind, in order of appearance."""
        return self._keys.get(kind, [])

    def all_keys(self) -> list[str]:
        """Names of all numbers in training and evaluation lines."""
        return [*self.keys("train"), *self.keys("eval")]

    def sampled_evaluations(self) -> list[dict[str, Any]]:
        """Evaluations with a sample, in order of steps."""
        return [line for line in self.evaluations if isinstance(line.get("sample"), str)]

    @functools.cached_property
    def _keys(self) -> dict[str, list[str]]:
        found: dict[str, dict[str, None]] = {}
        for line in self.lines:
            found.setdefault(line["kind"], {}).update(dict.fromkeys(scalars(line)))
        return {kind: list(keys) for kind, keys in found.items()}

    def series(self, kind: str, key: str, axis: str) -> Points:
        """`key` over `axis` (tokens, seconds or step), from the lines of a kind that have both."""
        return _points(self.lines, kind, key, axis)

    def rolled_back(self, kind: str, key: str, axis: str) -> list[Points]:
        """The same for discarded lines, one series for each rollback."""
        pieces = [_points(lines, kind, key, axis) for lines in self.discarded]
        return [piece for piece in pieces if piece[0]]

    def last(self, kind: str, key: str) -> float | None:
        """The last number `key` in the lines of a kind."""
        found = (_number(line, key) for line in reversed(self.lines) if line["kind"] == kind)
        return next((value for value in found if value is not None), None)


def _points(lines: Sequence[dict[str, Any]], kind: str, key: str, axis: str) -> Points:
    xs, ys = [], []
    for line in lines:
        if line["kind"] == kind:
            x, y = _number(line, axis), _number(line, key)
            if x is not None and y is not None:
                xs.append(x)
                ys.append(y)
    return xs, ys


def _number(line: Mapping[str, Any], key: str) -> float | None:
    """scalars(line).get(key), faster for keys at the top level."""
    value = line.get(key)
    if value is None and "." in key:
        value = scalars(line).get(key)
    return value if is_number(value) else None


def is_positive(value: object) -> TypeGuard[float]:
    """Whether a metric of a run can have this value. Other people's files may hold anything."""
    return is_number(value) and 1e-15 < value < 1e18


def read_history(run: Path) -> History:
    """Read a run directory. Raises TrainingError if it is not one, or damaged."""
    run = Path(run)
    if not (run / NAME).is_file():
        what = "no such folder" if not run.exists() else "expected a run directory, found no run.json in it"
        inside = (run.parent / NAME).is_file()
        hint = f"; give {run.parent}" if inside else "; give the --out of `llamita train`"
        raise TrainingError(f"cannot report on {run}: {what}{hint}")
    description = read_json_object(run / NAME, TrainingError, RUN)
    try:
        lines = read_metrics(run)
    except FileNotFoundError:
        lines = []  # stopped before its first line
    except OSError as error:
        raise TrainingError(f"cannot read {run / METRICS}: {error.strerror or error}") from error
    summary = read_json_object(run / SUMMARY, TrainingError, RESULT) if (run / SUMMARY).is_file() else {}
    steps = [line["step"] for line in lines if line["kind"] != "rollback"]
    if steps and summary.get("steps", 0) < steps[-1]:
        summary = {}  # written before the run was resumed
    kept, discarded, rollbacks = _split_at_rollbacks(lines)
    return History(run.resolve().name, run, description, kept, discarded, rollbacks, summary)


def _split_at_rollbacks(
    lines: Sequence[dict[str, Any]],
) -> tuple[list[dict[str, Any]], list[list[dict[str, Any]]], list[dict[str, Any]]]:
    """The lines that count, those that each rollback discarded, and the rollbacks, with tokens and
    seconds of the line before."""
    kept: list[dict[str, Any]] = []
    discarded, rollbacks = [], []
    for line in lines:
        if line["kind"] != "rollback":
            kept.append(line)
            continue
        to_step = line.get("to_step", 0)
        before: dict[str, Any] = kept[-1] if kept else {}
        place: dict[str, Any] = {key: before[key] for key in ("tokens", "seconds") if key in before}
        rollbacks.append({**place, **line})
        discarded.append([other for other in kept if other["step"] > to_step])
        kept = [other for other in kept if other["step"] <= to_step]
    return kept, discarded, rollbacks


def distinct_names(histories: Sequence[History]) -> list[History]:
    """The runs, each named by as many trailing folders of its path as make all names different."""
    parts = [history.path.resolve().parts for history in histories]
    depth = 1
    while len({part[-depth:] for part in parts}) < len({part for part in parts}):
        depth += 1
    names = ["/".join(part[-depth:]) for part in parts]
    return [dataclasses.replace(history, name=name) for history, name in zip(histories, names, strict=True)]


# ---------------------------------------------------------------- several runs


def objective(histories: Sequence[History]) -> str:
    """The metric that all runs have: bits per byte, else the loss."""
    return "bpb" if all("bpb" in history.all_keys() for history in histories) else "loss"


def objective_unit(key: str, targets: str) -> str:
    """The unit of an `objective`. targets: History.targets."""
    if key == "bpb":
        return "bits per byte"
    # IPO's loss is a square, not nats
    return "loss per pair" if targets == "pairs" else "nats per target"


def common_targets(histories: Sequence[History]) -> str:
    """The unit of token counts if all runs have the same, else "targets"."""
    found = {history.targets for history in histories}
    return found.pop() if len(found) == 1 else "targets"


def are_comparable(histories: Sequence[History]) -> bool:
    """Whether losses and counts are of the same kind: those of pairs are not those of tokens."""
    return len({history.targets == "pairs" for history in histories}) == 1

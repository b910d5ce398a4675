"""The run directory: creates it, checks that --resume continues the same run, reads metrics."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from llamita.atomic import atomic_write_bytes, make_folders
from llamita.checkpoint import point_link, prune_checkpoints, step_directory
from llamita.config import ModelConfig, RunConfig, fields_by_resume, flag
from llamita.environment import describe_environment
from llamita.errors import CheckpointError, ConfigError, OutputError, TrainingError
from llamita.file_lock import acquire_lock, lock_holder

NAME = "run.json"
METRICS = "metrics.jsonl"
LOCK = "run.lock"  # held by the process that trains


def describe_run(
    config: RunConfig,
    model: ModelConfig,
    rows_per_step: int,
    data: dict[str, Any],
    launch: str = "",
    *,
    targets: str = "tokens",
) -> dict[str, Any]:
    """The content of run.json. launch: Ranks.launch; targets: Task.targets."""
    return {
        "config": {name: _json_value(value) for name, value in dataclasses.asdict(config).items()},
        "rows_per_step": rows_per_step,
        "targets": targets,
        "model": dataclasses.asdict(model),
        "data": data,
        "environment": describe_environment(config.device),
        "launch": launch,
    }


def _json_value(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value)
    return list(value) if isinstance(value, tuple) else value


def resumes_run(config: RunConfig, launch: str, *, restarted: bool = False) -> bool:
    """True if config.out holds the run to continue, False if a new run starts there.

    restarted: torchrun restarted this process after one died. A run that the same torchrun (launch)
    started then continues without --resume. Raises OutputError if a new run finds the folder in
    use, CheckpointError if there is no run to resume, ConfigError if it is a run of another command
    or kind.
    """
    run = config.out
    is_run = (run / NAME).is_file()
    if config.resume and not is_run:
        raise CheckpointError(f"cannot resume {run}: it holds no run (no {NAME}); train without --resume first")
    if config.resume or (restarted and is_run and _read(run).get("launch") == launch != ""):
        _check_same_kind(config)
        return True
    if is_run:
        raise OutputError(f"cannot train into {run}: it holds a run; --resume it, or choose another --out")
    if run.exists() and (not run.is_dir() or any(map(_is_content, run.iterdir()))):
        raise OutputError(f"cannot train into {run}: it exists and is not a run; choose another --out")
    return False


def _is_content(entry: Path) -> bool:
    """False for what a process leaves that is killed before the run begins."""
    return entry.name != LOCK and not (entry.name.startswith(f".{NAME}.") and entry.name.endswith(".partial"))


@contextlib.contextmanager
def lock_run(run: Path) -> Iterator[None]:
    """Keep other processes from training in the folder, which is created if it is missing.

    The lock of a killed process does not count. Raises OutputError that names the process that
    trains there.
    """
    is_new = not run.exists()
    try:
        make_folders(run)
        lock = acquire_lock(run / LOCK)
    except OSError as error:
        raise OutputError(f"cannot write {run}: {error.strerror or error}") from error
    if lock is None:
        raise OutputError(
            f"cannot train in {run}: {lock_holder(run / LOCK)} is training there; wait for it or stop it, or choose "
            "another --out"
        )
    try:
        yield
    finally:
        lock.release()
        if is_new:
            with contextlib.suppress(OSError):
                run.rmdir()  # only if it is empty: nothing began


def _check_same_kind(config: RunConfig) -> None:
    """Raise ConfigError if the command, --lora or --preference are not those of the run."""
    run, now = config.out, dataclasses.asdict(config)
    before = _read(run)["config"]
    commands = ["finetune" if "checkpoint" in values else "train" for values in (before, now)]
    if commands[0] != commands[1]:
        raise ConfigError(
            f"cannot resume {run}: expected a run of llamita {commands[1]}, found one of llamita {commands[0]}; "
            f"use llamita {commands[0]} --resume, or choose another --out"
        )
    for name in ("lora", "preference"):
        if name in now and before.get(name) != now[name]:
            raise _differs(run, flag(name), before.get(name), now[name])


def open_run(config: RunConfig, description: dict[str, Any], *, restarted: bool = False) -> bool:
    """Create the run directory, or check that the existing one fits; True if it has a checkpoint to
    resume from.

    Raises what resumes_run raises, ConfigError naming the flag that differs, OutputError if the
    folder cannot be written.
    """
    run = config.out
    if not resumes_run(config, description["launch"], restarted=restarted):
        try:
            run.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(f"cannot write {run}: {error.strerror or error}") from error
        _write(run, description)
        return False
    check_same_run(config, _read(run), description)
    if not (run / "latest").is_symlink():  # killed before its first checkpoint
        return False
    if not (run / "latest" / "training").is_dir():
        raise CheckpointError(f"cannot resume {run}: its latest checkpoint, {os.readlink(run / 'latest')}, is missing")
    prune_checkpoints(run)  # an interrupted save may have left one behind
    return True


def remembered_run(run: Path) -> tuple[dict[str, Any], int] | None:
    """The configuration that run.json records, with every default filled in, and its rows per step;
    None if there is no run."""
    if not (run / NAME).is_file():
        return None
    values = _read(run)
    return values["config"], values["rows_per_step"]


def finished_summary(run: Path) -> dict[str, Any]:
    """summary.json if the run finished and its latest checkpoint is the last one; else {}."""
    path = run / "summary.json"
    try:
        summary: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        is_end = summary["finished"] and step_directory(run, summary["steps"]).name == os.readlink(run / "latest")
    except (OSError, ValueError, KeyError, TypeError):  # no end was written
        return {}
    return summary if is_end else {}


def finished_message(config: RunConfig, summary: dict[str, Any]) -> str:
    """The message when --resume finds a finished run. config: with every default filled in."""
    limit = next(name for name in ("minutes", "steps", "epochs") if getattr(config, name) is not None)
    return (
        f"{config.out} finished after {summary['steps']:,} steps: nothing to resume, nothing changed; "
        f"to train longer, start a new run with a larger {flag(limit)} and another --out"
    )


def check_same_run(config: RunConfig, before: dict[str, Any], now: dict[str, Any]) -> None:
    """Raise ConfigError naming the first flag or property of the data that differs from run.json.

    Flags that only move or watch the run may change: see config.Option.resume. --micro-batch-size
    and --grad-accum-steps are compared as rows per step, so the number of processes may change.
    """
    run, may_change = config.out, fields_by_resume(type(config), "may change")
    if before["rows_per_step"] != now["rows_per_step"]:
        what = "rows per step (--micro-batch-size × --grad-accum-steps × processes)"
        raise _differs(run, what, before["rows_per_step"], now["rows_per_step"])
    for name, value in now["config"].items():
        old = before["config"].get(name)
        if name not in may_change and old != value:
            raise _differs(run, flag(name), old, value)
    for name, value in now["data"].items():
        old = before["data"].get(name)
        if old != value:
            raise _differs(run, f"{name} of the data", old, value)


def _differs(run: Path, what: str, before: object, now: object) -> ConfigError:
    return ConfigError(f"cannot resume {run}: {what}: expected {before}, as in {NAME}, found {now}; give the same")


def mark_best(run: Path, checkpoint: Path) -> None:
    """Point the link `best` at a checkpoint, if it still exists."""
    if checkpoint.is_dir():
        point_link(run, "best", checkpoint)


def _write(run: Path, description: dict[str, Any]) -> None:
    atomic_write_bytes(run / NAME, (json.dumps(description, indent=2, ensure_ascii=False) + "\n").encode())


def _read(run: Path) -> dict[str, Any]:
    try:
        values = json.loads((run / NAME).read_text(encoding="utf-8"))
        if not (isinstance(values, dict) and {"config", "rows_per_step", "data"} <= values.keys()):
            raise ValueError("expected the keys config, rows_per_step, data")
        return values
    except (OSError, ValueError) as error:
        raise CheckpointError(f"cannot read {run / NAME}: {error}") from error


def read_metrics(run: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl, without an unfinished last line of a killed run.

    Raises OSError, and TrainingError naming a damaged line.
    """
    path = Path(run) / METRICS
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


def scalars(line: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    """The finite numbers of a line; a number in a nested object is named object.key."""
    found: dict[str, float] = {}
    for key, value in line.items():
        if isinstance(value, Mapping):
            found.update(scalars(value, f"{prefix}{key}."))
        elif isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value):
            found[prefix + key] = value
    return found

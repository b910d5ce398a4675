"""Turns --out and --resume into an open run directory: a new one, or one whose configuration is still the same."""

from __future__ import annotations

import dataclasses
import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llamita.atomic import atomic_write_bytes
from llamita.checkpoint import point_link, prune_checkpoints, step_directory
from llamita.config import ModelConfig, RunConfig, flag
from llamita.environment import describe_environment
from llamita.errors import CheckpointError, ConfigError, OutputError, TrainingError

NAME = "run.json"
METRICS = "metrics.jsonl"
# These may differ when a run is resumed: they move or watch the run but do not change what it learns.
# (--micro-batch-size and --grad-accum-steps are compared together, as rows_per_step, so that the number
# of processes may change.)
MAY_CHANGE = frozenset(
    (
        "data", "out", "resume", "save_minutes", "prompt", "device", "threads", "compile", "micro_batch_size",
        "grad_accum_steps",
        "fsdp", "activation_checkpointing", "track", "checkpoint", "val", "general_text", "preview",
        # what the last ones hold is among the data's facts
    )
)  # fmt: skip


def describe_run(
    config: RunConfig,
    model: ModelConfig,
    rows_per_step: int,
    data: dict[str, Any],
    launch: str = "",
    *,
    targets: str = "tokens",
) -> dict[str, Any]:
    """What run.json holds. launch: Ranks.launch; targets: Task.targets."""
    fields = dataclasses.asdict(config).items()
    values = {name: str(value) if isinstance(value, Path) else value for name, value in fields}
    values = {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}  # as JSON
    return {
        "config": values,
        "rows_per_step": rows_per_step,
        "targets": targets,
        "model": dataclasses.asdict(model),
        "data": data,
        "environment": describe_environment(config.device),
        "launch": launch,
    }


def is_begun(config: RunConfig, launch: str, *, restarted: bool = False) -> bool:
    """Whether config.out holds the run that is to go on; False: a new one is to begin there.

    restarted: by torchrun, after a process died: a run that the same torchrun (launch) began goes on without --resume.
    Raises OutputError if a new run finds the folder in use, CheckpointError if there is no run to resume, ConfigError
    if it is one of another kind.
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
    if run.exists() and (not run.is_dir() or any(run.iterdir())):
        raise OutputError(f"cannot train into {run}: it exists and is no run; choose another --out")
    return False


def _check_same_kind(config: RunConfig) -> None:
    """Raise ConfigError if the run is another command's or learns something else."""
    run, now = config.out, dataclasses.asdict(config)
    before = _read(run)["config"]
    commands = ["finetune" if "checkpoint" in values else "train" for values in (before, now)]
    if commands[0] != commands[1]:
        raise ConfigError(
            f"cannot resume {run}: it is a run of llamita {commands[0]}, found llamita {commands[1]}; resume it with "
            "that, or choose another --out"
        )
    for name in ("lora", "preference"):
        if name in now and before.get(name) != now[name]:
            raise _differs(run, flag(name), before.get(name), now[name])


def open_run(config: RunConfig, description: dict[str, Any], *, restarted: bool = False) -> bool:
    """Make the run directory, or check that the one there fits; True if there is a checkpoint to resume from.

    Raises what is_begun raises, ConfigError naming the flag that differs, OutputError if the folder cannot be written.
    """
    run = config.out
    if not is_begun(config, description["launch"], restarted=restarted):
        try:
            run.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(f"cannot write {run}: {error.strerror or error}") from error
        _write(run, description)
        return False
    check_same_run(run, _read(run), description)
    if not (run / "latest").is_symlink():  # killed before its first checkpoint: the beginning is where it stands
        return False
    if not (run / "latest" / "training").is_dir():
        raise CheckpointError(f"cannot resume {run}: its latest checkpoint, {os.readlink(run / 'latest')}, is missing")
    prune_checkpoints(run)  # what an interrupted save left behind
    return True


def remembered_run(run: Path) -> tuple[dict[str, Any], int] | None:
    """The configuration that a run was started with, defaults and choices filled in, and its rows a step; None if
    there is no run."""
    if not (run / NAME).is_file():
        return None
    values = _read(run)
    return values["config"], values["rows_per_step"]


def finished_summary(run: Path) -> dict[str, Any]:
    """summary.json, if it says that the run came to its end, at its latest checkpoint; else nothing."""
    path = run / "summary.json"
    try:
        summary: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        is_end = summary["finished"] and step_directory(run, summary["steps"]).name == os.readlink(run / "latest")
    except (OSError, ValueError, KeyError, TypeError):  # no end was written: the checkpoint tells where it stands
        return {}
    return summary if is_end else {}


def finished_message(config: RunConfig, summary: dict[str, Any]) -> str:
    """What --resume has to say of a finished run: config's, every default filled in."""
    limit = next(name for name in ("minutes", "steps", "epochs") if getattr(config, name) is not None)
    return (
        f"{config.out} is finished, after {summary['steps']:,} steps: nothing to resume, nothing was changed; "
        f"more {flag(limit)} make another run, with an --out of its own"
    )


def check_same_run(run: Path, before: dict[str, Any], now: dict[str, Any]) -> None:
    """Raise ConfigError naming the first flag or datum in which a resumed run would differ from itself."""
    if before["rows_per_step"] != now["rows_per_step"]:
        what = "rows a step (--micro-batch-size × --grad-accum-steps × processes)"
        raise _differs(run, what, before["rows_per_step"], now["rows_per_step"])
    for name, value in now["config"].items():
        old = before["config"].get(name)
        if name not in MAY_CHANGE and old != value:
            raise _differs(run, flag(name), old, value)
    for name, value in now["data"].items():
        old = before["data"].get(name)
        if old != value:
            raise ConfigError(f"cannot resume {run}: {name} of the data: the run was started with {old}, found {value}")


def _differs(run: Path, what: str, before: object, now: object) -> ConfigError:
    return ConfigError(f"cannot resume {run}: {what}: the run was started with {before}, found {now}; give the same")


def mark_best(run: Path, checkpoint: Path) -> None:
    """Point `best` at a checkpoint that is still there."""
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
    """All lines of a run's metrics.jsonl; an unfinished last line (the run was killed) is left out.

    Raises OSError, and TrainingError naming the line that is no line of metrics.
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


def numbers(line: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    """The finite numbers of a line; those of an object in it as object.key."""
    found: dict[str, float] = {}
    for key, value in line.items():
        if isinstance(value, Mapping):
            found.update(numbers(value, f"{prefix}{key}."))
        elif isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value):
            found[prefix + key] = value
    return found

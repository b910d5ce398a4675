"""The run directory: creates it, checks that --resume continues the same run, reads metrics."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import os
import types
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, TypeGuard, TypeVar

from llamita.atomic import atomic_write_bytes, lock_folder, remove_leftovers_in
from llamita.checkpoint import STEP_NAME, point_link, prune_checkpoints, step_directory
from llamita.config import MAX_VALUES, ModelConfig, RunConfig, fields_by_resume, flag
from llamita.data.mixture import parse_store
from llamita.environment import describe_environment
from llamita.errors import CheckpointError, ConfigError, OutputError, TrainingError
from llamita.json_file import ABSENT, Key, Schema, check_object, parse_json_object, read_json_object, shortened

NAME = "run.json"
SUMMARY = "summary.json"
METRICS = "metrics.jsonl"
LOCK = "run.lock"  # held by the process that trains
ROWS = ("micro_batch_size", "grad_accum_steps")  # compared as rows per step
SAYS_NOTHING = (None, "", ())  # values with which Python code leaves an option as the resumed run has it
PATHS = (
    "data",
    "replay_data",
    "from_",
    "checkpoint",
    "val",
    "general_text",
    "teacher",
    "chat_template",
)  # options that name files

_COUNT = Key("integer", minimum=0, maximum=2**53)
_NUMBER = Key("number")
_NEEDED_COUNT = dataclasses.replace(_COUNT, required=True)
_NEEDED_NUMBER = dataclasses.replace(_NUMBER, required=True)

_LIMITS: Schema = {name: Key("number", default=ABSENT) for name in ("minutes", "steps", "epochs")}

RUN: Schema = {
    "config": Key("object", required=True, keys=_LIMITS),
    **{name: Key("object", default={}, null=False) for name in ("model", "data", "environment")},
    "targets": Key("string", default="tokens", null=False),
}
RESUMABLE: Schema = {  # what --resume needs besides
    **RUN,
    "config": Key("object", required=True, keys={
        **_LIMITS, **{name: Key("integer", minimum=1, maximum=MAX_VALUES[name]) for name in ROWS}
    }),
    "rows_per_step": Key("integer", required=True, minimum=1, maximum=2**53),
    "data": Key("object", required=True),
    "launch": Key("string", default="", null=False),
    "directory": Key("string", default="", null=False),
    "extended_at": Key("integer", default=-1, null=False, minimum=-1, maximum=2**53),
}  # fmt: skip

_COPIES: Schema = {"length_tokens": _NEEDED_COUNT, "median_tokens": _NEEDED_NUMBER}
RESULT: Schema = {  # summary.json
    "finished": Key("boolean", default=True, null=False),
    "steps": dataclasses.replace(_COUNT, default=0, null=False),
    "num_parameters": _COUNT,
    **{name: _NUMBER for name in ("seconds", "tokens_per_second", "mfu")},
    "samples": Key("object", default={}, null=False, keys={
        "num_samples": _NEEDED_COUNT,
        **{
            name: _NEEDED_NUMBER
            for name in ("mean_tokens", "stop_rate", "distinct_1", "distinct_2", "distinct_3", "repetition")
        },
        "overlap": Key("object", keys={
            **_COPIES,
            "val": Key("object", required=True, keys=_COPIES),
            "memorizes": Key("boolean", required=True),
            "val_known": _NEEDED_NUMBER,
            "text": Key("string", required=True),
        }),
    }),
}  # fmt: skip

LINE: Schema = {"kind": Key("string", required=True), "step": _NEEDED_COUNT}  # of metrics.jsonl
EVENTS: dict[str, Schema] = {  # more keys, by kind
    "rollback": {"to_step": _NEEDED_COUNT, "learning_rate_factor": dataclasses.replace(_NUMBER, default=1.0)},
    "generation": {"generation": _NEEDED_COUNT, "tokens": _NEEDED_COUNT, "seconds": _NEEDED_NUMBER},
}

C = TypeVar("C", bound=RunConfig)


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
        "config": json_values(config),
        "rows_per_step": rows_per_step,
        "targets": targets,
        "model": json_values(model),
        "data": data,
        "environment": describe_environment(config.device),
        "launch": launch,
        "directory": _start_directory(config.out),
    }


def _start_directory(run: Path) -> str:
    """The working directory as seen from the run directory, so that both may be moved together; ""
    if it was deleted, or JSON cannot hold its name."""
    try:
        path = os.path.relpath(os.path.realpath(os.curdir), os.path.realpath(run))
        path.encode()
    except (OSError, ValueError):  # ValueError: also for two drives
        return ""
    return path


def json_values(config: RunConfig | ModelConfig) -> dict[str, Any]:
    """The fields as JSON gives them back."""
    return {name: _json_value(value) for name, value in dataclasses.asdict(config).items()}


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
    with lock_folder(
        run,
        LOCK,
        lambda holder: (
            f"cannot train in {run}: {holder} is training there; wait for it or stop it, or choose another --out"
        ),
    ):
        remove_leftovers_in(run)
        yield


def recorded_options(command: type[RunConfig], run: Path) -> dict[str, Any]:
    """The options that run.json records, as values of the fields of `command`.

    Raises CheckpointError if there is no run to resume or its run.json is damaged, ConfigError if
    it is a run of another command.
    """
    if not (run / NAME).is_file():
        raise CheckpointError(f"cannot resume {run}: it holds no run (no {NAME}); train without --resume first")
    recorded = _read(run)["config"]
    found = "finetune" if "checkpoint" in recorded else "train"
    if found != command.command:
        raise ConfigError(
            f"cannot resume {run}: expected a run of llamita {command.command}, found one of llamita {found}; "
            f"use llamita {found} --resume, or choose another --out"
        )
    hints, values = typing.get_type_hints(command), {}
    directory = _read(run)["directory"]
    for field in dataclasses.fields(command):
        if field.name in recorded:
            value, hint = recorded[field.name], hints[field.name]
            if isinstance(value, str) and typing.get_origin(hint) is tuple:
                value = [value]  # a run that Python code started has one store
            if not _is_of(hint, value):
                raise CheckpointError(
                    f"cannot read {run / NAME}: {field.name}: expected a value of {flag(field.name)}, found "
                    f"{json.dumps(value)[:80]}; the file is damaged"
                )
            values[field.name] = _from_json(hint, value)
            if field.name in PATHS:
                values[field.name] = _from_start(values[field.name], run, directory)
    return values


def _from_start(value: Any, run: Path, directory: str) -> Any:
    """A recorded path as it is to be read here; as recorded in the working directory of the start."""
    start = Path(os.path.normpath(Path(os.path.realpath(run)) / directory))
    if value is None or directory == "" or directory == _start_directory(run):
        return value
    if isinstance(value, tuple):
        return tuple(str(start / each) if parse_store(str(start / each))[0].exists() else each for each in value)
    return type(value)(start / value) if (start / value).exists() else value


def _check_paths(command: type[RunConfig], run: Path, values: Mapping[str, Any]) -> None:
    """Raise ConfigError for a recorded path that is neither here nor where the run was started."""
    for name in set(PATHS) & values.keys() - {"chat_template"}:  # a template's name is no path
        value = values[name]
        paths = [parse_store(each)[0] for each in value] if isinstance(value, tuple) else [value]
        lost = next((path for path in paths if path is not None and not Path(path).exists()), None)
        if lost is not None:
            can_change = name in fields_by_resume(command, "may change")
            advice = "put it back, or give its new place" if can_change else "put it back"
            raise ConfigError(
                f"cannot resume {run}: {name}: expected {shortened(str(lost))}, as in {NAME}, found no such file where "
                f"the run was started, nor here; {advice}"
            )


def options_to_continue(command: type[RunConfig], given: Mapping[str, Any]) -> dict[str, Any]:
    """What --resume adds to the options of a command line: those of the run in given["out"].

    Raises what recorded_options raises, and ConfigError for a given option that the run cannot
    take.
    """
    run = given["out"]
    recorded = recorded_options(command, run)
    _check_given(command, run, given, recorded)
    added = {name: value for name, value in recorded.items() if name not in (*given, *ROWS, "out", "resume")}
    _check_paths(command, run, added)
    return added


def continued(config: C, world_size: int) -> C:
    """The configuration with the options of the run in config.out, as --resume continues it.

    Options that differ from their defaults stay, and so do those that may change, unless they are
    among SAYS_NOTHING. A step keeps its rows: without --micro-batch-size they are divided among the
    processes.
    """
    command, run = type(config), config.out
    recorded = recorded_options(command, run)
    defaults = {field.name: field.default for field in dataclasses.fields(command)}
    given = {name: value for name, default in defaults.items() if (value := getattr(config, name)) != default}
    _check_given(command, run, given, recorded)
    may_change = fields_by_resume(command, "may change")
    kept = {*given, *(name for name in may_change if getattr(config, name) not in SAYS_NOTHING)}
    values = {name: value for name, value in recorded.items() if name not in kept}
    own_rows = _read(run)["rows_per_step"] // world_size
    rows, passes = (given.get(name) for name in ROWS)
    if rows is None and passes is None:
        rows = recorded.get("micro_batch_size") or own_rows
        passes = recorded.get("grad_accum_steps") or 1
        if rows * passes != own_rows:  # the number of processes changed
            rows = max(each for each in range(1, max(1, min(rows, own_rows)) + 1) if own_rows % each == 0)
    rows = rows or max(1, own_rows // passes)
    values |= {"micro_batch_size": rows, "grad_accum_steps": max(1, own_rows // rows), "resume": True}
    return dataclasses.replace(config, **values)


def _check_given(command: type[RunConfig], run: Path, given: Mapping[str, Any], recorded: Mapping[str, Any]) -> None:
    """Raise ConfigError for a given option that differs from the recorded one and may not."""
    may_change, limits = (fields_by_resume(command, rule) for rule in ("may change", "may grow"))
    limit = next((name for name in limits if recorded.get(name) is not None), "")
    for name, value in given.items():
        if name in limits and name != limit and limit and value is not None:
            raise ConfigError(
                f"cannot resume {run}: its length is given by {flag(limit)} {recorded[limit]:g}; give a larger "
                f"{flag(limit)} instead of {flag(name)}"
            )
        if name not in may_change and name in recorded:
            _check_option(run, name, recorded[name], value, may_grow=name in limits)


def _check_option(run: Path, name: str, before: Any, now: Any, *, may_grow: bool) -> None:
    if may_grow and None not in (before, now):
        if now < before:
            raise ConfigError(
                f"cannot resume {run}: {flag(name)}: expected at least {before:g}, as in {NAME}, found {now:g}; a run "
                "can only get longer"
            )
    elif before != now and not (name in PATHS and None not in (before, now) and _is_same_path(before, now)):
        raise _differs(run, flag(name), before, now)


def _is_same_path(one: str | Path, other: str | Path) -> bool:
    return os.path.realpath(one) == os.path.realpath(other)


def _is_of(hint: Any, value: Any) -> bool:
    """Whether a JSON value is one of a field with this type."""
    kind, arguments = typing.get_origin(hint), typing.get_args(hint)
    if kind in (typing.Union, types.UnionType):
        return any(_is_of(each, value) for each in arguments)
    if kind is Literal:
        return isinstance(value, str) and value in arguments
    if kind is tuple:
        return isinstance(value, list) and all(_is_of(arguments[0], each) for each in value)
    if hint is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    return type(value) is (str if hint is Path else hint)


def _from_json(hint: Any, value: Any) -> Any:
    """The field's value of a JSON value."""
    if isinstance(value, str) and Path in (hint, *typing.get_args(hint)):
        return Path(value)
    return tuple(value) if isinstance(value, list) else value


def _check_same_kind(config: RunConfig) -> None:
    """Raise ConfigError if the command, --lora or --preference are not those of the run."""
    run, now = config.out, dataclasses.asdict(config)
    before = recorded_options(type(config), run)
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
    before = _read(run)
    check_same_run(config, before, description)
    # False: killed before its first checkpoint
    has_checkpoint = (run / "latest").is_symlink() or _link_first_checkpoint(run)
    if has_checkpoint and not (run / "latest" / "training").is_dir():
        raise CheckpointError(f"cannot resume {run}: its latest checkpoint, {os.readlink(run / 'latest')}, is missing")
    _extend(config, before)
    if has_checkpoint:
        prune_checkpoints(run)  # an interrupted save may have left one behind
    return has_checkpoint


def _link_first_checkpoint(run: Path) -> bool:
    """Point `latest` at a first checkpoint that a killed process wrote whole, but did not link; False if
    there is none."""
    checkpoints = sorted(path for path in run.iterdir() if STEP_NAME.fullmatch(path.name))
    if checkpoints:
        point_link(run, "latest", checkpoints[-1])
    return bool(checkpoints)


def _extend(config: RunConfig, before: dict[str, Any]) -> None:
    """Record a larger --minutes, --steps or --epochs in run.json, and the step where it begins."""
    run = config.out
    longer = {
        name: value
        for name in fields_by_resume(type(config), "may grow")
        if (value := getattr(config, name)) is not None and value != before["config"].get(name)
    }
    if not longer:
        return
    (run / "summary.json").unlink(missing_ok=True)  # the run is not finished any more
    before["config"].update(longer)
    if (run / "latest").is_symlink():
        found = STEP_NAME.fullmatch(Path(os.readlink(run / "latest")).name)
        before["extended_at"] = int(found[1]) if found else -1
    _write(run, before)


def extended_at(run: Path) -> int:
    """The step at which the run got a larger limit the last time; -1 if it never did."""
    step: int = _read(run)["extended_at"]
    return step


def remembered_run(run: Path) -> dict[str, Any] | None:
    """run.json, whose configuration has every default filled in; None if there is no run."""
    return _read(run) if (run / NAME).is_file() else None


def finished_summary(run: Path) -> dict[str, Any]:
    """summary.json if the run finished and its latest checkpoint is the last one; else {}.

    Raises CheckpointError if it is damaged.
    """
    if not (run / SUMMARY).is_file():
        return {}  # no end was written
    summary = read_json_object(run / SUMMARY, CheckpointError)
    checked = check_object(summary, RESULT, str(run / SUMMARY), CheckpointError)
    try:
        latest = os.readlink(run / "latest")
    except OSError:
        return {}
    is_end = checked["finished"] and step_directory(run, checked["steps"]).name == latest
    return summary if is_end else {}


def finished_message(config: RunConfig, summary: dict[str, Any]) -> str:
    """The message when --resume finds a finished run. config: with every default filled in."""
    limit = next(name for name in ("minutes", "steps", "epochs") if getattr(config, name) is not None)
    return (
        f"{config.out} finished after {summary['steps']:,} steps: nothing to resume, nothing changed; "
        f"to train longer, resume it with a larger {flag(limit)}, such as {flag(limit)} {2 * getattr(config, limit):g}"
    )


def check_same_run(config: RunConfig, before: dict[str, Any], now: dict[str, Any]) -> None:
    """Raise ConfigError naming the first flag or property of the data that differs from run.json.

    Flags that only move or watch the run may change: see config.Option.resume. --micro-batch-size
    and --grad-accum-steps are compared as rows per step, so the number of processes may change.
    """
    run = config.out
    may_change, limits = (fields_by_resume(type(config), rule) for rule in ("may change", "may grow"))
    config_before = before["config"] | {
        name: _from_start(value, run, before["directory"])
        for name, value in before["config"].items()
        if name in PATHS and isinstance(value, str)
    }
    if before["rows_per_step"] != now["rows_per_step"]:
        what = "rows per step (--micro-batch-size × --grad-accum-steps × processes)"
        raise _differs(run, what, before["rows_per_step"], now["rows_per_step"])
    for name, value in now["config"].items():
        old = config_before.get(name)
        if name not in may_change:
            _check_option(run, name, old, value, may_grow=name in limits)
    for name, value in now["data"].items():
        old = before["data"].get(name)
        if old != value:
            raise _differs(run, f"{name} of the data", old, value)


def _differs(run: Path, what: str, before: object, now: object) -> ConfigError:
    return ConfigError(
        f"cannot resume {run}: {what}: expected {shortened(str(before))}, as in {NAME}, found {shortened(str(now))}; "
        "leave it out or give the same"
    )


def mark_best(run: Path, checkpoint: Path) -> None:
    """Point the link `best` at a checkpoint, if it still exists."""
    if checkpoint.is_dir():
        point_link(run, "best", checkpoint)


def _write(run: Path, description: dict[str, Any]) -> None:
    atomic_write_bytes(
        run / NAME, (json.dumps(description, indent=2, ensure_ascii=False) + "\n").encode("utf-8", "surrogateescape")
    )


def _read(run: Path) -> dict[str, Any]:
    return read_json_object(run / NAME, CheckpointError, RESUMABLE)


def read_metrics(run: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl, without an unfinished last line of a killed run.

    Raises OSError, and TrainingError naming a damaged line.
    """
    path = Path(run) / METRICS
    data = path.read_bytes()
    lines = []
    for number, text in enumerate(data[: data.rfind(b"\n") + 1].split(b"\n")[:-1], 1):
        where = f"{path}: line {number}"
        line = parse_json_object(text, where, TrainingError, LINE)
        event = EVENTS.get(line["kind"])
        lines.append(line if event is None else check_object(line, event, where, TrainingError))
    return lines


def scalars(line: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    """The finite numbers of a line; a number in a nested object is named object.key."""
    found: dict[str, float] = {}
    for key, value in line.items():
        if isinstance(value, Mapping):
            found.update(scalars(value, f"{prefix}{key}."))
        elif is_number(value):
            found[prefix + key] = value
    return found


def is_number(value: object) -> TypeGuard[float]:
    """Whether a value of JSON is a finite number."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)

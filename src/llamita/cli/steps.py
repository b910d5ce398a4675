"""The folder of `llamita new`: what was begun there, and which of its steps are done."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from typing import Final

from llamita.atomic import atomic_write_bytes, lock_folder
from llamita.cli.next_command import without_next
from llamita.commands import command_line
from llamita.config import MAX_VALUES
from llamita.data.documents import SourceFile
from llamita.errors import ConfigError, LlamitaError, OutputError, TrainingError, clean_line
from llamita.json_file import Key, Schema, read_json_object
from llamita.run_directory import lock_run

STATE: Final = "new.json"
LOCK: Final = "new.lock"
FORMAT: Final = 1

_FORMAT: Schema = {"format": Key("integer", required=True)}
_OPTIONS: Schema = {name: Key("string", required=True) for name in ("--split-on", "--text-key")}
_STATE: Schema = {
    "llamita": Key("string", required=True),
    "source": Key("string", required=True),
    "minutes": Key("number", required=True, positive=True, maximum=MAX_VALUES["minutes"]),
    "options": Key("object", required=True, items=Key("string", null=False), keys=_OPTIONS),
    "num_questions": Key("integer", required=True, minimum=0),
    "num_pairs": Key("integer", required=True, minimum=0),
    "files": Key("object", required=True, items=Key("list", null=False, items=Key("integer"))),
    "done": Key("list", required=True, items=Key("string", null=False)),
}


@dataclasses.dataclass(frozen=True)
class State:
    """What `llamita new` decided when it began.

    llamita: the version. source: absolute. options: --text-key, --encoding, --split-on. files: bytes and
    time of change of each file that was there. done: names of steps.
    """

    llamita: str
    source: str
    minutes: float
    options: Mapping[str, str]
    num_questions: int
    num_pairs: int
    files: Mapping[str, Sequence[int]]
    done: Sequence[str] = ()

    def save(self, folder: Path) -> None:
        """Raises OutputError."""
        values = {"format": FORMAT, **dataclasses.asdict(self)}
        atomic_write_bytes(folder / STATE, (json.dumps(values, indent=1, ensure_ascii=False) + "\n").encode())


def readable(path: Path) -> str:
    """The absolute path as text: a name may be any bytes."""
    return os.fsencode(os.path.realpath(path)).decode("utf-8", "backslashreplace")


def read_state(folder: Path) -> State | None:
    """None if nothing was begun in the folder. Raises ConfigError."""
    path = folder / STATE
    if not path.is_file():
        return None
    try:
        found = read_json_object(path, ConfigError, _FORMAT)["format"]
        if found != FORMAT:
            raise ConfigError(f"{path}: expected format {FORMAT}, found {found}: it is of another version of llamita")
        values = read_json_object(path, ConfigError, _STATE)
    except ConfigError as error:
        raise ConfigError(f"cannot go on in {folder}: {error}; begin anew with --overwrite") from None
    return State(**{field.name: values[field.name] for field in dataclasses.fields(State)})


def list_files(files: Sequence[SourceFile]) -> dict[str, list[int]]:
    """For State.files."""
    return {file.name: [file.num_bytes, file.modified_ns] for file in files}


def describe_changes(before: Mapping[str, Sequence[int]], now: Mapping[str, Sequence[int]]) -> str:
    """Such as "2 files new, 1 changed"; "" if nothing changed."""
    counts = {
        "new": len(now.keys() - before.keys()),
        "gone": len(before.keys() - now.keys()),
        "changed": sum(list(before[name]) != list(now[name]) for name in before.keys() & now.keys()),
    }
    return ", ".join(f"{count:,} {what}" for what, count in counts.items() if count)


def is_free(folder: Path) -> bool:
    """Whether the folder does not exist, or holds nothing but what a killed process leaves."""
    if not os.path.lexists(folder):
        return True
    return folder.is_dir() and all(name == LOCK or name.startswith(f".{STATE}.") for name in os.listdir(folder))


def lock_new(folder: Path) -> AbstractContextManager[None]:
    """Keep a second `llamita new` out of the folder, which is made. Raises OutputError."""
    return lock_folder(
        folder,
        LOCK,
        lambda holder: f"cannot go on in {folder}: {holder} works there; wait for it, or choose another --out",
    )


def start_over(folder: Path, names: Sequence[str]) -> None:
    """Remove all that an earlier `llamita new` made. Raises OutputError, also if one of its runs is being
    trained."""
    with suppress(ConfigError):  # a damaged state has no steps
        state = read_state(folder)
        if state is not None and state.done:
            dataclasses.replace(state, done=()).save(folder)  # if this is killed, no step counts as done
    remove(folder, names)


def remove(folder: Path, names: Sequence[str]) -> None:
    """Remove results in the folder. Raises OutputError."""
    try:
        for path in (folder / name for name in names):
            if (path / "run.json").is_file():
                with lock_run(path):
                    pass  # nobody trains there
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
    except OSError as error:
        raise OutputError(f"cannot begin anew in {folder}: {error.strerror or error}; choose another --out") from error


@dataclasses.dataclass(frozen=True)
class Step:
    """words: of its command, computed when its turn comes."""

    name: str
    title: str
    words: Callable[[], list[str]]


def say(line: str = "") -> None:
    """Print a line on stderr, after what is on stdout."""
    sys.stdout.flush()
    print(clean_line(line, 100_000), file=sys.stderr, flush=True)


def run_steps(steps: Sequence[Step], state: State, folder: Path, again: str) -> int:
    """Run the steps that are not done, and remember each. Returns the code of the first that fails.

    again: the command that goes on after an interruption or an error.
    """
    from llamita.cli import run_command

    for number, step in enumerate(steps, start=1):
        if step.name in state.done:
            continue
        try:
            words = step.words()
            say()
            say(f"step {number} of {len(steps)}: {step.title}")
            say(f"  {command_line(*words)}")
            with without_next():
                code = run_command(words)
        except (LlamitaError, KeyboardInterrupt) as error:
            more = "; a larger --minutes gives all of them more time" if isinstance(error, TrainingError) else ""
            say(f"step {number} is not done; this goes on with it{more}: {again}")
            raise
        if code:
            say(f"step {number} is not done; this goes on with it: {again}")
            return code
        state = dataclasses.replace(state, done=(*state.done, step.name))
        state.save(folder)
    return 0

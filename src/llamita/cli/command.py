"""Shared by all commands: parse the command line, print errors and hints."""

from __future__ import annotations

import contextlib
import itertools
import shlex
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from llamita.cli.help import has_color, help_columns, help_text
from llamita.cli.parser import Flags, UsageError, parse_arguments
from llamita.errors import ConfigError, clean_line

# --verify to the library's argument; None: the library decides by the size of the model.
VERIFY: dict[str, bool | None] = {"auto": None, "yes": True, "no": False}


def parse(flags: type[Flags], argv: Sequence[str], prog: str) -> Flags:
    """Parse argv into the dataclass `flags`; --help prints the help and exits. Raises
    ConfigError."""
    if {"-h", "--help"} & set(itertools.takewhile(lambda word: word != "--", argv)):
        print(help_text(flags, prog, help_columns(), is_bold=has_color(sys.stdout)), flush=True)
        raise SystemExit(0)
    try:
        return parse_arguments(flags, argv)
    except UsageError as error:
        raise ConfigError(f"{error} (see {prog} --help)") from None


def check_is_file(model: Path, command: str) -> None:
    """Raise ConfigError if the path is a folder, such as a checkpoint, and not a model file."""
    if model.is_dir():
        raise ConfigError(
            f"cannot {command} {model}: expected a model file, found a folder; write one with: llamita export "
            f"{model} {model.name}.gguf"
        )


def print_resume(command: str, argv: Sequence[str], steps: int) -> None:
    """Print how to resume a run that was interrupted."""
    words = shlex.join([word for word in argv if word != "--resume"])
    print(f"interrupted at step {steps}; a checkpoint is saved. To resume:", file=sys.stderr)
    print(f"  llamita {command} {words} --resume", file=sys.stderr)


def fail(message: str, code: int = 2) -> int:
    """Print one line on stderr and return the exit code; 2 is a user's error."""
    with contextlib.suppress(BrokenPipeError):  # nobody reads it
        print(f"llamita: {clean_line(message)}", file=sys.stderr, flush=True)
    return code


def print_note(message: str) -> None:
    """Print one line on stderr."""
    print(f"note: {clean_line(message)}", file=sys.stderr)


@contextlib.contextmanager
def requires_extra(extra: str) -> Iterator[None]:
    """Turn a missing package, in the imports of a command, into one line that says how to install
    it."""
    try:
        yield
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] == "llamita":
            raise  # a bug, not a missing extra
        raise ConfigError(f"this command needs the package {error.name}: pip install 'llamita[{extra}]'") from error

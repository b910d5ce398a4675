"""Command-line words to a frozen dataclass of flags, and every user's error to one line and exit code 2."""

from __future__ import annotations

import contextlib
import io
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TypeVar

import tyro

from llamita.errors import ConfigError

Flags = TypeVar("Flags")

# What --verify says → what the library is asked for; None: the library decides by the model's size.
VERIFY: dict[str, bool | None] = {"auto": None, "yes": True, "no": False}


def parse(flags: type[Flags], argv: Sequence[str], prog: str) -> Flags:
    """Parse argv into the dataclass `flags`; --help prints and exits with 0.

    Raises ConfigError with one line (what is wrong, and the nearest flag where one is close) for anything else.
    """
    captured = io.StringIO()
    try:
        with contextlib.redirect_stderr(captured):
            return tyro.cli(flags, args=list(argv), prog=prog)
    except SystemExit as exit_:
        if exit_.code in (0, None):
            raise
        raise ConfigError(f"{_one_line(captured.getvalue())} (see {prog} --help)") from None


def _one_line(box: str) -> str:
    """The first and second paragraphs of tyro's message box, without its frame (lines or plain ASCII)."""
    paragraphs: list[list[str]] = [[]]
    for line in box.splitlines():
        text = line.strip().strip("│╭╮╰╯").strip()
        if not text.strip("─- ") or text.startswith("──"):
            paragraphs.append([])
        elif not line.startswith(("╭", "╰")):
            paragraphs[-1].append(text)
    kept = [" ".join(p) for p in paragraphs if p and not p[0].startswith("For full helptext")]
    kept = kept if "╭" in box else kept[1:]  # the title of an ASCII box
    nearest = [word for word in kept[1].split() if word.startswith("--")] if len(kept) > 1 else []
    message = kept[0] if kept else "the command's words cannot be read"
    if len(kept) > 1 and kept[1].startswith("Perhaps you meant") and nearest:
        message += f"; perhaps you meant {nearest[0]}"
    return message[0].lower() + message[1:]


def check_is_file(model: Path, command: str) -> None:
    """Raise ConfigError where a checkpoint stands and a model file is wanted."""
    if model.is_dir():
        raise ConfigError(
            f"cannot {command} {model}: expected a model file, found a folder; make one of it: llamita export "
            f"{model} {model.name}.gguf"
        )


def fail(message: str) -> int:
    """Print one line on stderr and return the exit code of a user's error."""
    print(f"llamita: {message}", file=sys.stderr)
    return 2


@contextlib.contextmanager
def requires_extra(extra: str) -> Iterator[None]:
    """Around the imports of a command: a missing package becomes one line that says how to get it."""
    try:
        yield
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] == "llamita":
            raise  # a bug, not a missing extra
        raise ConfigError(f"this command needs the package {error.name}: pip install 'llamita[{extra}]'") from error

"""Command lines of this program, quoted for a shell, that messages and reports print."""

from __future__ import annotations

import itertools
import os
import re
import shlex
from collections.abc import Sequence
from pathlib import Path

from llamita.errors import UNSAFE


def command_line(*words: object) -> str:
    """`llamita` and these words. It stays as it is in clean_line.

    What clean_line replaces is written as bash and zsh read it, and sh since POSIX 2024: $'caf\\xe9'.
    On Windows words are quoted for cmd and PowerShell.
    """
    return " ".join(["llamita", *(_shell_word(str(word)) for word in words)])


def _shell_word(word: str, *, is_windows: bool = os.name == "nt") -> str:
    if is_windows:
        return _windows_word(word)
    if not UNSAFE.search(word):
        return shlex.quote(word)
    escaped = UNSAFE.sub(_hexadecimal, word.replace("\\", "\\\\").replace("'", "\\'"))
    return f"$'{escaped}'"


def _windows_word(word: str) -> str:
    """As cmd and PowerShell, and then the program, read it. Names of files there have no double quotes,
    and in PowerShell a comma or an @ would divide a word."""
    if re.fullmatch(r"[\w+./\\:=-]+", word):
        return word
    escaped = re.sub(r'(\\*)"', r'\1\1\\"', word)
    trailing = len(escaped) - len(escaped.rstrip("\\"))
    return f'"{escaped}{trailing * chr(92)}"'


def _hexadecimal(found: re.Match[str]) -> str:
    is_byte = "\udc80" <= found[0] <= "\udcff"  # of a name that is not UTF-8
    raw = found[0].encode("utf-8", "surrogateescape" if is_byte else "surrogatepass")
    return "".join(f"\\x{byte:02x}" for byte in raw)


def train_commands(stores: Sequence[object], name: str, minutes: float = 10.0) -> tuple[str, ...]:
    """For a token store. The run's folder is a new one: train refuses a folder that holds a run."""
    runs = itertools.chain([f"runs/{name}"], (f"runs/{name}-{number}" for number in itertools.count(2)))
    run = next(run for run in runs if not os.path.lexists(run))
    return (command_line("train", *stores, "--out", run, "--minutes", f"{minutes:g}"),)


def export_commands(checkpoint: Path, *, can_chat: bool = False) -> tuple[str, ...]:
    """For a checkpoint or a run directory."""
    model = Path(f"{Path(os.path.abspath(checkpoint)).name}.gguf")
    return command_line("export", checkpoint, model), *use_commands(model, can_chat=can_chat)


def use_commands(model: Path, *, can_chat: bool = False, tokenizer: Path | None = None) -> tuple[str, ...]:
    """For a model file."""
    more = () if tokenizer is None else ("--tokenizer", tokenizer)
    return (command_line("chat" if can_chat else "run", model, *more),)

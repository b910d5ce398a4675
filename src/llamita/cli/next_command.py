"""The last line of a command: the command that usually comes next, ready to be copied."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from llamita.errors import clean_line

_is_silent = False


@contextlib.contextmanager
def without_next() -> Iterator[None]:
    """In this block nothing is printed about what comes next: the caller runs it."""
    global _is_silent
    before, _is_silent = _is_silent, True
    try:
        yield
    finally:
        _is_silent = before


def print_next(*commands: str, file: TextIO | None = None) -> None:
    """Print what comes next, on stderr unless the command prints its report elsewhere."""
    if _is_silent:
        return
    print(clean_line(f"next: {' && '.join(commands)}", 4000), file=file or sys.stderr)


def has_template(model: Path) -> bool:
    """Whether a checkpoint or a .gguf has a chat template."""
    if model.is_dir():
        from llamita.tokenizer import load_tokenizer

        return load_tokenizer(model).chat_template is not None
    from llamita.formats.gguf import read_keys

    return model.suffix == ".gguf" and bool(read_keys(model, ("tokenizer.chat_template",)))

"""The last line of a command: the command that usually comes next, ready to be copied."""

from __future__ import annotations

import itertools
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TextIO

from llamita.errors import clean_line, shell_command


def print_next(*commands: str, file: TextIO | None = None) -> None:
    """Print what comes next, on stderr unless the command prints its report elsewhere."""
    print(clean_line(f"next: {' && '.join(commands)}", 4000), file=file or sys.stderr)


def train_commands(stores: Sequence[object], name: str, minutes: float = 10.0) -> tuple[str, ...]:
    """For a token store. The run's folder is a new one: train refuses a folder that holds a run."""
    runs = itertools.chain([f"runs/{name}"], (f"runs/{name}-{number}" for number in itertools.count(2)))
    run = next(run for run in runs if not os.path.lexists(run))
    return (shell_command("train", *stores, "--out", run, "--minutes", f"{minutes:g}"),)


def export_commands(checkpoint: Path, *, can_chat: bool = False) -> tuple[str, ...]:
    """For a checkpoint or a run directory."""
    model = Path(f"{Path(os.path.abspath(checkpoint)).name}.gguf")
    return shell_command("export", checkpoint, model), *use_commands(model, can_chat=can_chat)


def use_commands(model: Path, *, can_chat: bool = False, tokenizer: Path | None = None) -> tuple[str, ...]:
    """For a model file."""
    more = () if tokenizer is None else ("--tokenizer", tokenizer)
    return (shell_command("chat" if can_chat else "run", model, *more),)


def has_template(model: Path) -> bool:
    """Whether a checkpoint or a .gguf has a chat template."""
    if model.is_dir():
        from llamita.tokenizer import load_tokenizer

        return load_tokenizer(model).chat_template is not None
    from llamita.formats.gguf import read_keys

    return model.suffix == ".gguf" and bool(read_keys(model, ("tokenizer.chat_template",)))

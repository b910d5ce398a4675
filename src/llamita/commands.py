"""Command lines of this program, quoted for a shell, that messages and reports print."""

from __future__ import annotations

import itertools
import os
import shlex
from collections.abc import Sequence
from pathlib import Path


def command_line(*words: object) -> str:
    """`llamita` and these words."""
    return shlex.join(["llamita", *map(str, words)])


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

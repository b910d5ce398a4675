"""`llamita inspect PATH`: shows what a model file, a checkpoint, a tokenizer or a token store
contains."""

from __future__ import annotations

import dataclasses
import sys
import typing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from llamita.cli.command import parse, requires_extra
from llamita.cli.next_command import print_next
from llamita.commands import export_commands, train_commands, use_commands
from llamita.config import Architecture, Option
from llamita.console import print_table
from llamita.errors import clean_line

if TYPE_CHECKING:
    from llamita.convert.inspect import Inspection


@dataclasses.dataclass(frozen=True)
class InspectFlags:
    """Show what a GGUF, a llama2.c file, a checkpoint, a .safetensors, a tokenizer or a token store
    contains."""

    examples = ("llamita inspect my.gguf", "llamita inspect runs/my --tensors")

    path: Annotated[Path, Option(positional=True)]
    """File or folder."""
    tensors: bool = False
    """List every tensor with its type, shape and size in bytes."""


def main(argv: list[str]) -> None:
    flags = parse(InspectFlags, argv, "llamita inspect")
    from llamita.convert.inspect import inspect

    with requires_extra("train"):  # for folders and tokenizers
        found = inspect(flags.path)
    print(clean_line(f"{found.path}: {found.kind}, {found.num_bytes:,} bytes"))
    print_table(found.properties, sys.stdout)
    if found.tensors:
        _print_tensors(found, flags.tensors)
    if commands := _next_commands(found):
        print_next(*commands, file=sys.stdout)


def _next_commands(found: Inspection) -> tuple[str, ...]:
    if found.kind == "token store":
        return train_commands([found.path], found.path.resolve().name)
    if found.kind == "checkpoint":
        return export_commands(found.path)
    known = dict(found.properties)
    tokenizer = found.path.with_name("tokenizer.bin")
    if found.kind.startswith("llama2.c model") and tokenizer.is_file():
        return use_commands(found.path, tokenizer=tokenizer)
    if known.get("general.architecture") in typing.get_args(Architecture):
        is_adapter = known.get("general.type") == "adapter"
        return () if is_adapter else use_commands(found.path, can_chat="tokenizer.chat_template" in known)
    return ()


def _print_tensors(found: Inspection, each: bool) -> None:
    from llamita.convert.inspect import type_counts

    print(f"{len(found.tensors):,} tensors, {found.num_parameters:,} elements")
    if each:
        rows = [(t.name, t.type, " × ".join(f"{n:,}" for n in t.shape), f"{t.num_bytes:,}") for t in found.tensors]
    else:
        rows = [
            (name, f"{count:,} tensors", f"{size:,} bytes", f"{8 * size / numbers:.2f} bits per element")
            for name, count, size, numbers in type_counts(found.tensors)
        ]
    print_table(rows, sys.stdout)

"""`llamita inspect PATH`: shows what a model file, a checkpoint, a tokenizer or a token store
contains."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Annotated

from llamita.cli.command import parse, requires_extra
from llamita.config import Option
from llamita.console import print_table
from llamita.errors import clean_line


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
    from llamita.convert.inspect import inspect, type_counts

    with requires_extra("train"):  # for folders and tokenizers
        found = inspect(flags.path)
    print(clean_line(f"{found.path}: {found.kind}, {found.num_bytes:,} bytes"))
    print_table(found.properties, sys.stdout)
    if not found.tensors:
        return
    print(f"{len(found.tensors):,} tensors, {found.num_parameters:,} elements")
    if flags.tensors:
        rows = [(t.name, t.type, " × ".join(f"{n:,}" for n in t.shape), f"{t.num_bytes:,}") for t in found.tensors]
    else:
        rows = [
            (name, f"{count:,} tensors", f"{size:,} bytes", f"{8 * size / numbers:.2f} bits per element")
            for name, count, size, numbers in type_counts(found.tensors)
        ]
    print_table(rows, sys.stdout)

"""`llamita export CHECKPOINT OUT`: a checkpoint to one model file."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Annotated

import tyro

from llamita.cli.command import parse, requires_extra
from llamita.cli.table import print_table


@dataclasses.dataclass(frozen=True)
class ExportFlags:
    """Write a checkpoint as one file that runs anywhere: NAME.gguf (our engine, llama.cpp, Ollama, LM Studio) with its
    tokenizer inside, or NAME.bin (llama2.c version 0, float32) with tokenizer.bin beside it."""

    checkpoint: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="CHECKPOINT")]
    """A checkpoint (a Hugging Face folder) or a run directory, of which the best checkpoint is taken."""
    out: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="OUT")]
    """The file to write; it ends in .gguf or .bin. An existing one is replaced."""
    type: Annotated[str | None, tyro.conf.arg(aliases=["-t"], metavar="{f32,f16,q8_0,q4_0}")] = None
    """How matrices are stored: f32 exact, f16 half the bytes, q8_0 a quarter (.gguf's default), q4_0 an eighth."""


def main(argv: list[str]) -> None:
    flags = parse(ExportFlags, argv, "llamita export")
    with requires_extra("train"):
        from llamita.formats.export import export

        report = export(flags.checkpoint, flags.out, flags.type)
    kinds = ", ".join(f"{count} {name}" for name, count in report.num_tensors_by_type.items())
    worst = "none" if report.worst_tensor is None else f"{report.largest_error:.3%} of {report.worst_tensor}"
    rows = [
        ("wrote", f"{report.path}, {report.num_bytes:,} bytes"),
        ("weights", f"{report.num_parameters:,}, {report.bits_per_weight:.2f} bits each"),
        ("tensors", kinds),
        ("largest rounding error", worst),
    ]
    if report.tokenizer_path is not None:
        rows.append(("tokenizer", str(report.tokenizer_path)))
    rows += [("note", remark) for remark in report.remarks]
    print_table(rows, sys.stderr)

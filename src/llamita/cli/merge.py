"""`llamita merge CHECKPOINT ADAPTER --out CHECKPOINT`: a checkpoint and its adapter to a plain checkpoint."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Annotated

import tyro

from llamita.cli.adapters import other_base_rows
from llamita.cli.byte_progress import byte_progress
from llamita.cli.command import parse, requires_extra
from llamita.console import print_table


@dataclasses.dataclass(frozen=True)
class MergeFlags:
    """Add an adapter's updates (LoRA, PEFT's files: ours or anyone's) to the weights of the checkpoint that it was made
    for. The result is a plain checkpoint, to chat with, train on and export. One tensor is in memory at a time."""

    checkpoint: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="CHECKPOINT")]
    """The checkpoint that the adapter was made for, or a run directory, of which the best checkpoint is taken."""
    adapter: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="ADAPTER")]
    """A folder with adapter_config.json and adapter_model.safetensors."""
    out: Annotated[Path, tyro.conf.arg(aliases=["-o"])]
    """The checkpoint folder to make."""
    strength: float = 1.0
    """What the updates are multiplied by: 0.5 goes half the way."""
    dtype: Annotated[str | None, tyro.conf.arg(metavar="{float32,bfloat16,float16}")] = None
    """The type of the weights (default: the checkpoint's)."""


def main(argv: list[str]) -> None:
    flags = parse(MergeFlags, argv, "llamita merge")
    with requires_extra("train"):
        from llamita.finetune.merge_lora import merge_adapter

        with byte_progress("merging", sys.stderr) as progress:
            report = merge_adapter(
                flags.checkpoint, flags.adapter, flags.out,
                strength=flags.strength, dtype=flags.dtype, progress=progress,
            )  # fmt: skip
    rows = [
        ("wrote", f"{report.path}, {report.config.num_parameters:,} weights, {report.num_bytes:,} bytes"),
        ("updated", f"{report.num_layers} layers, most of all {report.most_changed}: by {report.largest_change:.2%}"),
        ("tokenizer", str(report.tokenizer_from)),
    ]
    rows += other_base_rows(report.other_base)
    print_table(rows, sys.stderr)

"""`llamita merge CHECKPOINT ADAPTER --out CHECKPOINT`: merges an adapter into its base
checkpoint."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Annotated

from llamita.cli.adapters import other_base_rows
from llamita.cli.command import parse, requires_extra
from llamita.cli.next_command import has_template, print_next
from llamita.cli.progress import progress_bars
from llamita.commands import export_commands
from llamita.config import Option
from llamita.console import print_table


@dataclasses.dataclass(frozen=True)
class MergeFlags:
    """Merge an adapter (LoRA, in PEFT's format) into the weights of its base checkpoint.

    The result is an ordinary checkpoint. Memory holds one tensor at a time.
    """

    examples = (
        "llamita merge smollm2 runs/lora -o merged",
        "llamita merge smollm2 runs/lora -o half --strength 0.5",
    )

    checkpoint: Annotated[Path, Option(positional=True)]
    """Base checkpoint of the adapter, or a run directory for its best checkpoint."""
    adapter: Annotated[Path, Option(positional=True)]
    """Folder with adapter_config.json and adapter_model.safetensors."""
    out: Annotated[Path, Option(short="o")]
    """Checkpoint folder to create."""
    strength: float = 1.0
    """Factor for the updates; 0.5 applies half of each."""
    dtype: Annotated[str | None, Option("{float32,bfloat16,float16}")] = None
    """Type of the weights. Default: the checkpoint's."""


def main(argv: list[str]) -> None:
    flags = parse(MergeFlags, argv, "llamita merge")
    with requires_extra("train"):
        from llamita.finetune.merge_lora import merge_adapter

        with progress_bars(in_bytes=True) as progress:
            report = merge_adapter(
                flags.checkpoint, flags.adapter, flags.out,
                strength=flags.strength, dtype=flags.dtype, progress=progress,
            )  # fmt: skip
    rows = [
        ("wrote", f"{report.path}, {report.config.num_parameters:,} weights, {report.num_bytes:,} bytes"),
        ("tokenizer", str(report.tokenizer_from)),
    ]
    if report.num_layers:
        most = f"the most changed, {report.most_changed}, by {report.largest_change:.2%}"
        rows.insert(1, ("updated", f"{report.num_layers} layers; {most}"))
    if report.replaced:
        more = f"; {report.num_new_tokens:,} tokens more" if report.num_new_tokens else ""
        more += "; lm_head is a tensor of its own now" if report.untied else ""
        shown = ", ".join(report.replaced[:6]) + (", …" if len(report.replaced) > 6 else "")
        rows.insert(1, ("trained", f"{shown}{more}"))
    rows += other_base_rows(report.other_base)
    print_table(rows, sys.stderr)
    print_next(*export_commands(report.path, can_chat=has_template(report.path)))

"""`llamita import SOURCE --out CHECKPOINT`: a model of llama2.c to a checkpoint."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Annotated

import tyro

from llamita.cli.command import parse, requires_extra
from llamita.cli.table import print_table


@dataclasses.dataclass(frozen=True)
class ImportFlags:
    """Turn a model of llama2.c (a .bin of version 0, 1 or 2, or a training checkpoint .pt) into a checkpoint."""

    source: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="SOURCE")]
    """The .bin or .pt file."""
    out: Annotated[Path, tyro.conf.arg(aliases=["-o"])]
    """The checkpoint folder to make."""
    tokenizer: Annotated[Path | None, tyro.conf.arg(aliases=["-z"])] = None
    """Its tokenizer.model or tokenizer.bin (default: the one that lies beside the source)."""


def main(argv: list[str]) -> None:
    flags = parse(ImportFlags, argv, "llamita import")
    with requires_extra("train"):
        from llamita.formats.importing import import_model

        report = import_model(flags.source, flags.out, flags.tokenizer)
    config = report.config
    rows = [
        ("wrote", f"{report.path}, {config.num_parameters:,} weights"),
        ("from", f"llama2.c {report.version}: {flags.source}"),
        ("tokenizer", f"{report.tokenizer_path}, {config.vocab_size:,} tokens"),
        (
            "shape",
            f"{config.num_hidden_layers} layers, hidden {config.hidden_size}, {config.num_attention_heads} heads, "
            f"{config.num_key_value_heads} kv heads, ffn {config.intermediate_size}, "
            f"context {config.max_position_embeddings}",
        ),
    ]
    print_table(rows, sys.stderr)

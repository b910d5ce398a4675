"""`llamita import SOURCE --out CHECKPOINT`: a model in any published form to a checkpoint."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Annotated, Literal

import tyro

from llamita.cli.byte_progress import byte_progress
from llamita.cli.command import VERIFY, parse, requires_extra
from llamita.console import print_table


@dataclasses.dataclass(frozen=True)
class ImportFlags:
    """Turn a Llama that somebody published into a checkpoint: a folder of Meta's (params.json, consolidated.NN.pth), a
    Hugging Face folder or hub id (OWNER/NAME), a GGUF file of any type that can be dequantized, or a model of llama2.c
    (a .bin of version 0, 1 or 2, or a training checkpoint .pt). What it is, is found by looking; a source that is not
    exactly one whole plain Llama is refused. Nothing in it is executed. One tensor is in memory at a time."""

    source: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="SOURCE")]
    """The file, folder or hub id."""
    out: Annotated[Path, tyro.conf.arg(aliases=["-o"])]
    """The checkpoint folder to make."""
    tokenizer: Annotated[Path | None, tyro.conf.arg(aliases=["-z"])] = None
    """Its tokenizer.json, tokenizer.model or tokenizer.bin (default: the one in or beside the source)."""
    dtype: Annotated[str | None, tyro.conf.arg(metavar="{float32,bfloat16,float16}")] = None
    """The type of the weights (default: the source's own; float32 for what was quantized)."""
    chat_template: Annotated[str | None, tyro.conf.arg(metavar="{llama2,llama3,chatml,zephyr,none}")] = None
    """How a chat is written (default: the source's own; for Meta's folders by their name)."""
    context_tokens: Annotated[int | None, tyro.conf.arg(metavar="N")] = None
    """The longest text (default: what the source says; Meta's say nothing, the report says what was taken)."""
    verify: Literal["auto", "yes", "no"] = "auto"
    """Compare logits of what was written with the source's; auto: for models of up to 200M weights."""


def main(argv: list[str]) -> None:
    flags = parse(ImportFlags, argv, "llamita import")
    with requires_extra("train"):
        from llamita.convert.import_model import import_model

        with byte_progress("importing", sys.stderr) as progress:
            report = import_model(
                flags.source,
                flags.out,
                flags.tokenizer,
                dtype=flags.dtype,
                chat_template=flags.chat_template,
                context_tokens=flags.context_tokens,
                verify=VERIFY[flags.verify],
                progress=progress,
            )
    config = report.config
    kinds = ", ".join(f"{count} {name}" for name, count in report.num_tensors_by_type.items())
    rows = [
        ("wrote", f"{report.path}, {config.num_parameters:,} weights, {report.num_bytes:,} bytes"),
        ("from", f"{report.kind}: {flags.source}"),
        ("tokenizer", f"{report.tokenizer_path}, {config.vocab_size:,} rows"),
        (
            "shape",
            f"{config.num_hidden_layers} layers, hidden {config.hidden_size}, {config.num_attention_heads} heads, "
            f"{config.num_key_value_heads} kv heads, ffn {config.intermediate_size}, "
            f"context {config.max_position_embeddings}",
        ),
        ("tensors", kinds),
        ("took", f"{report.seconds:.1f} s, {report.num_bytes / max(report.seconds, 1e-9) / 1e6:,.0f} MB/s"),
        ("verified", "no (--verify yes)" if report.verification is None else report.verification.line()),
    ]
    rows += [("note", note) for note in report.notes]
    print_table(rows, sys.stderr)

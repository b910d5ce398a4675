"""`llamita import SOURCE --out CHECKPOINT`: converts a published model into a checkpoint."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Annotated, Literal

from llamita.cli.command import VERIFY, parse, requires_extra
from llamita.cli.next_command import has_template, print_next
from llamita.cli.progress import progress_bars
from llamita.commands import export_commands
from llamita.config import Option, check, check_at_most
from llamita.console import print_table
from llamita.sampling import MAX_TOKENS


@dataclasses.dataclass(frozen=True)
class ImportFlags:
    """Convert a published Llama, Qwen2, Qwen3 or SmolLM3 model into a checkpoint.

    Meta folders (params.json, consolidated.NN.pth), Hugging Face folders or hub ids (OWNER/NAME),
    GGUF files, and llama2.c models (.bin, .pt) are recognized by their content. Incomplete and
    other models are rejected. No code from the source is executed. Memory holds one tensor at a
    time.
    """

    examples = (
        "llamita import model.gguf -o checkpoint",
        "llamita import HuggingFaceTB/SmolLM2-135M -o smollm2",
    )

    source: Annotated[Path, Option(positional=True)]
    """File, folder or hub id."""
    out: Annotated[Path, Option(short="o")]
    """Checkpoint folder to create."""
    tokenizer: Annotated[Path | None, Option(short="z")] = None
    """tokenizer.json, tokenizer.model or tokenizer.bin. Default: the one in or beside the
    source."""
    pre: Annotated[str | None, Option("NAME")] = None
    """How the tokenizer of a GGUF splits text, if its tokenizer.ggml.pre is missing or wrong:
    llama-bpe (Llama 3), qwen2, gpt-2, smollm, gpt-4o, tekken, dbrx, default."""
    dtype: Annotated[str | None, Option("{float32,bfloat16,float16}")] = None
    """Type of the weights. Default: the source's; float32 for quantized sources."""
    chat_template: Annotated[str | None, Option("{llama2,llama3,chatml,zephyr,none}")] = None
    """Chat template. Default: the source's; for Meta folders, chosen by name."""
    context: Annotated[int | None, Option("TOKENS")] = None
    """Context length. Default: the source's; Meta folders do not name one, and the report prints
    the choice."""
    verify: Literal["auto", "yes", "no"] = "auto"
    """Compare logits and ids of texts with the source's. Default: up to 200M weights."""

    def __post_init__(self) -> None:
        check(
            self.context is None or self.context > 0,
            f"import: --context: expected a positive number, found {self.context}",
        )
        check_at_most("import: --context", self.context, MAX_TOKENS)


def main(argv: list[str]) -> None:
    flags = parse(ImportFlags, argv, "llamita import")
    with requires_extra("train"):
        from llamita.convert.import_model import import_model

        with progress_bars(in_bytes=True) as progress:
            report = import_model(
                flags.source,
                flags.out,
                flags.tokenizer,
                pre=flags.pre,
                dtype=flags.dtype,
                chat_template=flags.chat_template,
                context_tokens=flags.context,
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
            f"{config.architecture}, {config.num_hidden_layers} layers, hidden {config.hidden_size}, "
            f"{config.num_attention_heads} heads, "
            f"{config.num_key_value_heads} kv heads, ffn {config.intermediate_size}, "
            f"context {config.max_position_embeddings}",
        ),
        ("tensors", kinds),
        ("took", f"{report.seconds:.1f} s, {report.num_bytes / max(report.seconds, 1e-9) / 1e6:,.0f} MB/s"),
        ("verified", "no (--verify yes)" if report.verification is None else report.verification.line()),
    ]
    rows += [("note", note) for note in report.notes]
    print_table(rows, sys.stderr)
    print_next(*export_commands(report.path, can_chat=has_template(report.path)))

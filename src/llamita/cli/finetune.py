"""`llamita finetune CHECKPOINT DATA --out DIR`: trains a checkpoint on conversations or text, or an
adapter for it."""

from __future__ import annotations

import dataclasses
import shlex
import sys
import time
from pathlib import Path
from typing import Annotated

from llamita.cli.command import parse, requires_extra
from llamita.config import FinetuneConfig, Option
from llamita.console import print_table

STARTED = time.monotonic()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Finetune(FinetuneConfig):
    """Fine-tune a checkpoint on conversations, preference pairs or plain text.

    In conversations only the assistant's answers are learned. Ctrl-C saves a checkpoint; --resume
    continues from it. For several processes, start it with torchrun.
    """

    examples = (
        "llamita finetune runs/my qa.jsonl -o runs/chat",
        "llamita finetune smollm2 qa.jsonl -o runs/lora --lora",
    )

    checkpoint: Annotated[Path, Option(positional=True)]
    data: Annotated[Path, Option(positional=True)]
    out: Annotated[Path, Option(short="o")]
    """Run directory: checkpoints or adapters, metrics.jsonl, report."""


def main(argv: list[str]) -> int:
    config = parse(Finetune, argv, "llamita finetune")
    with requires_extra("train"):
        from llamita.finetune.run import finetune, show_preview
    from rich.console import Console

    from llamita.report.summary import summary_rows
    from llamita.run_directory import read_metrics

    if config.preview:
        show_preview(config, Console())
        return 0
    result = finetune(config, started=STARTED)
    if not result.is_first or result.was_finished:
        return 0
    if result.interrupted:
        words = shlex.join([word for word in argv if word != "--resume"])
        print(f"interrupted at step {result.summary['steps']}, and saved. To go on:", file=sys.stderr)
        print(f"  llamita finetune {words} --resume", file=sys.stderr)
        return 130
    print_table(summary_rows(result.summary), sys.stderr)
    judged = [line for line in read_metrics(config.out) if line["kind"] == "eval"]
    rows = []
    for name, what in (
        ("loss", "validation loss" if config.preference else "validation loss, nats per target"),
        ("accuracy", "preference accuracy"), ("margin", "reward margin"), ("bpb", "validation bits per byte"),
        ("exact", "short answers, exact match"), ("contains", "short answers, contained"),
        ("general_bpb", "general text, bits per byte"),
    ):  # fmt: skip
        told = [(line["step"], line[name]) for line in judged if name in line]
        best = [value for step, value in told if step == result.summary["best_step"]]  # what is exported
        if best:
            rows.append((what, f"{told[0][1]:.4f} before, {best[-1]:.4f} after"))
    if result.summary["best_step"] == 0 and result.summary["steps"] > 0:
        rows.append((
            "note", f"no step improved on {config.checkpoint}: {config.out}/best is the unchanged checkpoint, "
            f"{config.out}/latest the last step; more examples or a lower --learning-rate may help",
        ))  # fmt: skip
    print_table([*rows, *next_steps(config)], sys.stderr)
    return 0


def next_steps(config: FinetuneConfig) -> list[tuple[str, str]]:
    """The commands for what comes next, as rows of a table."""
    from llamita.finetune.dataset import is_text

    run, base = shlex.quote(str(config.out)), shlex.quote(str(config.checkpoint))
    model = shlex.quote(f"{config.out.name}.gguf")
    command = "run" if is_text(config.data) else "chat"
    rows = [("next", f"llamita export {run} {model} --type q8_0; llamita {command} {model}")]
    if config.lora:
        rows.append(("merge", f"llamita merge {base} {run} --out CHECKPOINT"))
        rows.append(("adapter alone", f"llamita export {base} ADAPTER.gguf --adapter {run}"))
    return rows

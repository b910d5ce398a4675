"""`llamita finetune CHECKPOINT DATA --out DIR`: trains a checkpoint on conversations or text, or an
adapter for it."""

from __future__ import annotations

import dataclasses
import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from llamita.cli.command import parse_run, print_resume, requires_extra
from llamita.cli.next_command import print_next
from llamita.commands import command_line, export_commands
from llamita.config import FinetuneConfig, Option
from llamita.console import print_table


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
    started = time.monotonic()
    config = parse_run(Finetune, argv, "llamita finetune")
    with requires_extra("train"):
        from llamita.finetune.run import finetune, show_preview
    from rich.console import Console

    from llamita.report.summary import summary_rows

    if config.preview:
        show_preview(config, Console())
        return 0
    result = finetune(config, started=started)
    if not result.is_first or result.was_finished:
        return 0
    if result.interrupted:
        print_resume("finetune", config.out, result.summary["steps"])
        return 130
    print_table(summary_rows(result.summary), sys.stderr)
    print_table([*_before_and_after(config, result.summary), *adapter_rows(config)], sys.stderr)
    print_next(*next_commands(config))
    return 0


def _before_and_after(config: FinetuneConfig, summary: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The metrics before the first step and at the best one, as rows of a table."""
    from llamita.run_directory import read_metrics

    evaluations = [line for line in read_metrics(config.out) if line["kind"] == "eval"]
    rows = []
    for name, title in (
        ("loss", "validation loss" if config.preference else "validation loss, nats per target"),
        ("accuracy", "preference accuracy"), ("margin", "reward margin"), ("bpb", "validation bits per byte"),
        ("exact", "short answers, exact match"), ("contains", "short answers, contained"),
        ("general_bpb", "general text, bits per byte"),
    ):  # fmt: skip
        values = [(line["step"], line[name]) for line in evaluations if name in line]
        best = [value for step, value in values if step == summary["best_step"]]  # what is exported
        if best:
            rows.append((title, f"{values[0][1]:.4f} before, {best[-1]:.4f} after"))
    if summary["best_step"] == 0 and summary["steps"] > 0:
        rows.append((
            "note", f"no step improved on {config.checkpoint}: {config.out}/best is the unchanged checkpoint, "
            f"{config.out}/latest the last step; more examples or a lower --learning-rate may help",
        ))  # fmt: skip
    return rows


def next_commands(config: FinetuneConfig) -> tuple[str, ...]:
    """Export the run and use it."""
    from llamita.finetune.dataset import is_text

    return export_commands(config.out, can_chat=not is_text(config.data))


def adapter_rows(config: FinetuneConfig) -> list[tuple[str, str]]:
    """What else can be done with an adapter, as rows of a table."""
    if not config.lora:
        return []
    model = f"{Path(os.path.abspath(config.out)).name}-adapter.gguf"
    return [
        ("merge", command_line("merge", config.checkpoint, config.out, "--out", f"{config.out}-merged")),
        ("adapter alone", command_line("export", config.checkpoint, model, "--adapter", config.out)),
    ]

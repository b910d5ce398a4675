"""`llamita finetune CHECKPOINT DATA --out DIR`: a checkpoint and examples or texts → a checkpoint or an adapter."""

from __future__ import annotations

import dataclasses
import shlex
import sys
import time
from pathlib import Path
from typing import Annotated

import tyro

from llamita.cli.command import parse, requires_extra
from llamita.config import FinetuneConfig
from llamita.console import print_table

STARTED = time.monotonic()


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Positionals:
    """What stands last among the bases comes first on the command line."""

    checkpoint: Path
    data: Path


@dataclasses.dataclass(frozen=True, kw_only=True)
class Finetune(FinetuneConfig, _Positionals):
    """Teach a checkpoint to answer as conversations do, or go on teaching it from plain text. Only the assistant's
    answers are learned. Ctrl-C saves, --resume goes on there. Under torchrun: in several processes."""

    checkpoint: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="CHECKPOINT")]
    """The checkpoint to begin with, ours or imported, or a run directory, of which the best checkpoint is taken."""
    data: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="DATA")]
    """Conversations (.jsonl, .json, .csv, .parquet: messages, prompt and completion, question and answer, …), with
    --preference pairs of answers, or plain texts (.txt, .md, or a token store of the checkpoint's tokenizer): a file or
    a folder."""
    out: Annotated[Path, tyro.conf.arg(aliases=["-o"])]
    """Run directory: checkpoints or adapters, metrics.jsonl, report."""


def main(argv: list[str]) -> int:
    config = parse(Finetune, argv, "llamita finetune")
    with requires_extra("train"):
        from llamita.finetune.run import finetune, show_preview
    from rich.console import Console

    from llamita.report.summary import summary_table
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
    Console(stderr=True, highlight=False).print(summary_table(result.summary))
    judged = [line for line in read_metrics(config.out) if line["kind"] == "eval"]
    rows = []
    for name, what in (
        ("loss", "loss of held-out pairs" if config.preference else "nats a held-out target"),
        ("accuracy", "held-out pairs ranked rightly"), ("margin", "their margin of rewards"),
        ("bpb", "held-out bits per byte"), ("exact", "short answers exact"), ("contains", "short answers contained"),
        ("general_bpb", "general text, bits per byte"),
    ):  # fmt: skip
        told = [(line["step"], line[name]) for line in judged if name in line]
        best = [value for step, value in told if step == result.summary["best_step"]]  # what is exported
        if best:
            rows.append((what, f"{told[0][1]:.4f} before, {best[-1]:.4f} after"))
    if result.summary["best_step"] == 0 and result.summary["steps"] > 0:
        rows.append((
            "note", f"nothing better than {config.checkpoint} was found: best is as it was before the first step, "
            f"{config.out}/latest has what was learned; more examples, or a lower --learning-rate, may help",
        ))  # fmt: skip
    print_table([*rows, *next_steps(config)], sys.stderr)
    return 0


def next_steps(config: FinetuneConfig) -> list[tuple[str, str]]:
    """What to do with the result, as rows of a table."""
    from llamita.finetune.dataset import is_text

    run, base = shlex.quote(str(config.out)), shlex.quote(str(config.checkpoint))
    model = shlex.quote(f"{config.out.name}.gguf")
    command = "run" if is_text(config.data) else "chat"
    rows = [("next", f"llamita export {run} {model} --type q8_0; llamita {command} {model}")]
    if config.lora:
        rows.append(("merge", f"llamita merge {base} {run} --out CHECKPOINT"))
        rows.append(("adapter alone", f"llamita export {base} ADAPTER.gguf --adapter {run}"))
    return rows

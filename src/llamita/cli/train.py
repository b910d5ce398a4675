"""`llamita train`: token store → checkpoint."""

from __future__ import annotations

import dataclasses
import shlex
import sys
import time
from pathlib import Path
from typing import Annotated

import tyro

from llamita.cli.command import parse, requires_extra
from llamita.config import TrainConfig

STARTED = time.monotonic()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Train(TrainConfig):
    """Train a Llama on token stores. Ctrl-C saves, --resume goes on there. Under torchrun: in several processes."""

    data: tyro.conf.Positional[Annotated[tuple[str, ...], tyro.conf.arg(metavar="STORE[:WEIGHT]...")]]
    """Token stores, as `llamita prepare` writes them, made with one tokenizer. Weight 2: an epoch sees the store's
    documents twice; 0.5: another half of them each epoch. Default: 1."""
    out: Annotated[Path, tyro.conf.arg(aliases=["-o"])]
    """Run directory: checkpoints, metrics.jsonl, report."""


def main(argv: list[str]) -> int:
    config = parse(Train, argv, "llamita train")
    with requires_extra("train"):
        from llamita.training.pretraining import train
    from rich.console import Console

    from llamita.training.report import summary_table

    result = train(config, started=STARTED)
    if not result.is_first:
        return 0
    console = Console(stderr=True, highlight=False)
    if result.interrupted:
        words = shlex.join([word for word in argv if word != "--resume"])
        print(f"interrupted at step {result.summary['steps']}, and saved. To go on:", file=sys.stderr)
        print(f"  llamita train {words} --resume", file=sys.stderr)
        return 130
    console.print(summary_table(result.summary))
    return 0

"""`llamita train STORE... --out DIR`: trains a checkpoint, and checks whether it memorizes its
text."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path
from typing import Annotated

from llamita.cli.command import parse_run, print_resume, requires_extra
from llamita.cli.next_command import print_next
from llamita.commands import export_commands
from llamita.config import Option, TrainConfig
from llamita.console import print_table


@dataclasses.dataclass(frozen=True, kw_only=True)
class Train(TrainConfig):
    """Train a Llama on token stores.

    Ctrl-C saves a checkpoint; --resume continues from it. For several processes, start it with
    torchrun.
    """

    examples = (
        "llamita train tokens -o runs/my --minutes 10",
        "llamita train -o runs/my --resume",
        "llamita train -o runs/my --resume --minutes 20",
        "llamita train new-tokens --from runs/my -o runs/my-update",
    )

    data: Annotated[tuple[str, ...], Option("STORE[:WEIGHT]...", positional=True)]
    """Token stores from `llamita prepare`, all with the same tokenizer. In one epoch, documents of
    weight 2 are seen twice, of weight 0.5 half of them. Default weight: 1."""
    out: Annotated[Path, Option(short="o")]


def main(argv: list[str]) -> int:
    started = time.monotonic()
    config = parse_run(Train, argv, "llamita train")
    with requires_extra("train"):
        from llamita.training.final_samples import add_final_samples, reserved_seconds
        from llamita.training.pretraining import train
    from rich.console import Console

    from llamita.report.gains import find_gains
    from llamita.report.summary import summary_rows
    from llamita.run_directory import read_metrics

    result = train(config, started=started, reserved_seconds=reserved_seconds)
    if not result.is_first or result.was_finished:
        return 0
    if result.interrupted:
        print_resume("train", config.out, result.summary["steps"])
        return 130
    console = Console(stderr=True, highlight=False)
    with console.status("checking samples for copies of the training text"):
        summary, note = add_final_samples(result, config.data)
    print_table(summary_rows(summary), console)
    if config.from_ is not None and (gains := find_gains(read_metrics(config.out))):
        print_table(gains.rows(), console)
    if note:
        console.print(note, style="yellow", markup=False, soft_wrap=True)
    print_next(*export_commands(config.out))
    return 0

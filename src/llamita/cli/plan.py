"""`llamita plan DATA`: shows what `llamita train DATA --minutes M` would choose on this machine."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Annotated

from llamita.cli.command import parse, requires_extra
from llamita.cli.next_command import print_next
from llamita.commands import train_commands
from llamita.config import MAX_VALUES, Option, TrainConfig, check, check_at_most
from llamita.console import print_table


@dataclasses.dataclass(frozen=True)
class PlanFlags:
    """Measure this machine for a few seconds; print the shape, batch and learning rates that train
    would choose."""

    examples = ("llamita plan tokens", "llamita plan tokens --minutes 60")

    data: Annotated[tuple[str, ...], Option("STORE[:WEIGHT]...", positional=True)]
    """Token stores, as for `llamita train`."""
    minutes: Annotated[float, Option("M", short="m")] = 10.0
    """How long training may take, including startup and evaluations."""
    context: Annotated[int | None, Option("TOKENS")] = None
    """Context length: tokens that the model sees at once. Default: by the length of the
    documents."""
    tie_embeddings: bool = True
    """Plan for a separate classifier instead of sharing the embedding matrix."""
    device: Annotated[str, Option("DEVICE")] = "auto"
    """auto, cpu, cuda, cuda:N or mps."""
    threads: int | None = None
    """CPU threads. Default: one per core."""

    def __post_init__(self) -> None:
        for name in ("minutes", "context", "threads"):
            value = getattr(self, name)
            check(value is None or value > 0, f"plan: --{name}: expected a positive number, found {value}")
            check_at_most(f"plan: --{name}", value, MAX_VALUES[name])


def main(argv: list[str]) -> None:
    flags = parse(PlanFlags, argv, "llamita plan")
    with requires_extra("train"):
        from llamita.training.planner import describe_plan, plan_store

    config = TrainConfig(
        data=flags.data, out=Path("run"), minutes=flags.minutes, context=flags.context,
        tie_embeddings=flags.tie_embeddings,
        device=flags.device, threads=flags.threads,
    )  # fmt: skip
    chosen, weighed = describe_plan(plan_store(config))
    print_table(chosen, sys.stdout)
    print()
    print_table(weighed, sys.stdout)
    name = Path(flags.data[0].rpartition(":")[0] or flags.data[0]).resolve().name
    print_next(*train_commands(flags.data, name, flags.minutes), file=sys.stdout)

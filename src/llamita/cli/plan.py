"""`llamita plan DATA`: what `llamita train DATA --minutes M` would choose here, beside the rules of thumb."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Annotated

import tyro

from llamita.cli.command import parse, requires_extra
from llamita.config import TrainConfig
from llamita.console import print_table


@dataclasses.dataclass(frozen=True)
class PlanFlags:
    """Measure this machine for some seconds; print the shape, batch and learning rates for the minutes there are."""

    data: tyro.conf.Positional[Annotated[tuple[str, ...], tyro.conf.arg(metavar="STORE[:WEIGHT]...")]]
    """Token stores, as `llamita train` takes them."""
    minutes: Annotated[float, tyro.conf.arg(aliases=["-m"])] = 10.0
    """How long the training may take, start and evaluations included."""
    context: int | None = None
    """Tokens that the model sees at once (default: by the documents)."""
    untied: bool = False
    """Plan for a classifier of its own instead of the embeddings' transpose."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    threads: int | None = None
    """CPU threads (default: one a core)."""


def main(argv: list[str]) -> None:
    flags = parse(PlanFlags, argv, "llamita plan")
    with requires_extra("train"):
        from llamita.training.planner import describe_plan, plan_store

    config = TrainConfig(
        data=flags.data, out=Path("run"), minutes=flags.minutes, context=flags.context, untied=flags.untied,
        device=flags.device, threads=flags.threads,
    )  # fmt: skip
    chosen, weighed = describe_plan(plan_store(config))
    print_table(chosen, sys.stdout)
    print()
    print_table(weighed, sys.stdout)

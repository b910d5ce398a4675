"""`llamita plan`: shows what `llamita train STORE --minutes M` would choose on this machine, and what
more time or more text would change, also for a run."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from llamita.cli.command import parse, requires_extra
from llamita.cli.next_command import print_next
from llamita.commands import train_commands
from llamita.config import MAX_VALUES, Option, TrainConfig, check, check_at_most
from llamita.console import print_table
from llamita.errors import clean_line

if TYPE_CHECKING:
    from llamita.report.outlook import Outlook


@dataclasses.dataclass(frozen=True)
class PlanFlags:
    """Measure this machine for a few seconds; print the shape, batch and learning rates that train
    would choose, and how many bits per byte more time or more text would save.

    Of a run directory: what more time or text would change, by the run's own evaluations.
    """

    examples = ("llamita plan tokens", "llamita plan tokens --minutes 60", "llamita plan runs/my")

    data: Annotated[tuple[str, ...], Option("STORE[:WEIGHT]...", positional=True)]
    """Token stores, as for `llamita train`; or one run directory, which may still be running."""
    minutes: Annotated[float | None, Option("M", short="m")] = None
    """How long training may take, including startup and evaluations. Default: 10."""
    context: Annotated[int | None, Option("TOKENS")] = None
    """Context length: tokens that the model sees at once. Default: by the length of the
    documents."""
    tie_embeddings: bool = True
    """Plan for a separate classifier instead of sharing the embedding matrix."""
    device: Annotated[str, Option("DEVICE")] = "auto"
    """auto, cpu, cuda, cuda:N or mps."""
    threads: int | None = None
    """CPU threads. Default: one per core."""
    json: bool = False
    """Print the plan and the predictions as one line of JSON."""

    def __post_init__(self) -> None:
        for name in ("minutes", "context", "threads"):
            value = getattr(self, name)
            check(value is None or value > 0, f"plan: --{name}: expected a positive number, found {value}")
            check_at_most(f"plan: --{name}", value, MAX_VALUES[name])


def main(argv: list[str]) -> None:
    flags = parse(PlanFlags, argv, "llamita plan")
    run = Path(flags.data[0]) if flags.data else Path()
    if (run / "run.json").is_file():
        _show_run(flags, run)
        return
    with requires_extra("train"):
        from llamita.data.mixture import parse_store
        from llamita.training.planner import describe_plan, plan_store, plan_values

    config = TrainConfig(
        data=flags.data, out=Path("run"), minutes=flags.minutes, context=flags.context,
        tie_embeddings=flags.tie_embeddings,
        device=flags.device, threads=flags.threads,
    )  # fmt: skip
    plan = plan_store(config)
    if flags.json:
        print(json.dumps(plan_values(plan)))
        return
    chosen, weighed = describe_plan(plan)
    print_table(chosen, sys.stdout)
    print()
    print_table(weighed, sys.stdout)
    _print_outlook(plan.outlook)
    name = parse_store(flags.data[0])[0].resolve().name
    print_next(*train_commands(flags.data, name, plan.filled.minutes or 0.0), file=sys.stdout)


def _show_run(flags: PlanFlags, run: Path) -> None:
    """What more time or text would change in a run."""
    from llamita.report.history import read_history
    from llamita.report.outlook import run_outlook

    check(len(flags.data) == 1, f"plan: expected token stores, or one run; {run} is a run")
    for name in ("minutes", "context", "tie_embeddings", "device", "threads"):
        is_default = getattr(flags, name) == getattr(PlanFlags, name)
        given = "--no-tie-embeddings" if name == "tie_embeddings" else f"--{name}"
        check(is_default, f"plan: {given}: {run} is a run, which has its own; leave it out")
    outlook = run_outlook(read_history(run))
    if flags.json:
        values: dict[str, Any] = {"run": str(run), "outlook": outlook.values()}
        print(json.dumps(values))
        return
    _print_outlook(outlook)


def _print_outlook(outlook: Outlook) -> None:
    from llamita.report.outlook import outlook_chart, outlook_rows

    print()
    for line in outlook_chart(outlook):
        print(line)
    print()
    print_table(outlook_rows(outlook), sys.stdout)
    print(clean_line(f"from {outlook.basis}"))

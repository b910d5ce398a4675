"""`llamita report RUN...`: writes an HTML page with the curves, samples and settings of runs."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated

from llamita.cli.command import parse
from llamita.cli.next_command import print_next
from llamita.commands import export_commands
from llamita.config import Option, check
from llamita.errors import clean_line

COMPARISON = Path("comparison.html")


@dataclasses.dataclass(frozen=True)
class ReportFlags:
    """Write a self-contained HTML page with the curves, samples and settings of one run, or compare
    several."""

    examples = ("llamita report runs/my", "llamita report runs/a runs/b -o comparison.html")

    runs: Annotated[tuple[Path, ...], Option("RUN...", positional=True)]
    """Run directories (--out of `llamita train` and `llamita finetune`); they may still be
    running."""
    out: Annotated[Path | None, Option(short="o")] = None
    """Page to write. Default: RUN/report.html; comparison.html for several runs."""

    def __post_init__(self) -> None:
        check(len(self.runs) > 0, "report: no RUN given: expected run directories")
        places = [run.resolve() for run in self.runs]
        twice = [str(run) for run, place in zip(self.runs, places, strict=True) if places.count(place) > 1]
        check(not twice, f"report: {', '.join(twice)}: expected each run once; give it once")
        if self.out is not None:
            is_page = self.out.suffix.lower() in (".html", ".htm")
            check(is_page, f"report: --out: expected a name that ends with .html, found {self.out}")


def main(argv: list[str]) -> None:
    flags = parse(ReportFlags, argv, "llamita report")
    from llamita.report.summary import write_page

    out = flags.out or (None if len(flags.runs) == 1 else COMPARISON)
    print(clean_line(str(write_page(flags.runs, out))))
    print_next(*export_commands(flags.runs[0]))

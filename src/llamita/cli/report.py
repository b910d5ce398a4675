"""`llamita report RUN [RUN …]`: run directories → one page with their curves, samples and settings."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated

import tyro

from llamita.cli.command import parse
from llamita.config import check

COMPARISON = Path("comparison.html")


@dataclasses.dataclass(frozen=True)
class ReportFlags:
    """Write a page that shows a run, or several beside each other: curves, samples, settings. It stands alone."""

    runs: Annotated[tyro.conf.Positional[tuple[Path, ...]], tyro.conf.arg(metavar="RUN [RUN …]")]
    """Run directories: what `llamita train` and `llamita finetune` were given as --out; they may be under way."""
    out: Annotated[Path | None, tyro.conf.arg(aliases=["-o"])] = None
    """The page (default: RUN/report.html; comparison.html for several runs)."""

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
    print(write_page(flags.runs, out))

"""Costs of a work's sides to ratios, goals reached or not, a table on the terminal and rows of results/<machine>.csv.

A ratio is the other's median cost over ours: how many times faster (or smaller) ours is; beside reading memory it is
the share of the bandwidth that decoding uses.
"""

from __future__ import annotations

import csv
import dataclasses
import datetime
import os
import platform
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

from bench_protocol import Costs, best_setting
from bench_works import ALONE, KINDS, LLAMA_CPP, OURS, READING, REFERENCE, Goal, Work
from rich.table import Table

COLUMNS = ("date", "script", "what", "ours", "unit", "peer", "peer_value", "ratio", "rounds", "spread", "processor")
SCRIPT = "bench.py"


@dataclasses.dataclass(frozen=True)
class Side:
    """A group at its best setting: costs in seconds or bytes, one a round."""

    setting: str
    costs: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.costs)


@dataclasses.dataclass(frozen=True)
class Result:
    """A work's sides, OURS among them. amount: what a measurement does, in the kind's terms (tokens, multiply-adds);
    bytes_read: of weights in a measurement, for decoding; peer_name: as "llama.cpp 0.3.36"."""

    work: Work
    sides: Mapping[str, Side]
    amount: float
    bytes_read: float = 0.0
    peer_name: str = LLAMA_CPP

    def value(self, group: str) -> float:
        """The median in the kind's unit."""
        return KINDS[self.work.kind].value(self.sides[group].median, self.amount)

    def ratio(self, group: str) -> float:
        """How many times better ours is."""
        return self.sides[group].median / self.sides[OURS].median

    def range(self, group: str) -> tuple[float, float]:
        """Least and most in the kind's unit."""
        values = [KINDS[self.work.kind].value(cost, self.amount) for cost in self.sides[group].costs]
        return min(values), max(values)

    def gigabytes_per_second(self, group: str) -> float:
        return self.bytes_read * 1e-9 / self.sides[group].median


def make_result(work: Work, costs: Costs, amount: float, bytes_read: float, peer_name: str) -> Result:
    """Each group at the setting with the least median."""
    best = {group: best_setting(settings) for group, settings in costs.items()}
    sides = {group: Side(setting, tuple(values)) for group, (setting, values) in best.items()}
    return Result(work, sides, amount, bytes_read, peer_name)


# ---------------------------------------------------------------- goals


def goal_text(goal: Goal, unit: str) -> str:
    """As "≥ 1.5×, ≥ 90 % of read"."""
    shown = {LLAMA_CPP: "≥ {:g}×", READING: "≥ {:.0%} of read", REFERENCE: "≥ {:g}× run.c", ALONE: "≥ {:g}× one"}
    parts = [shown[group].format(ratio) for group, ratio in goal.ratios.items()]
    if goal.at_most is not None:
        parts.append(f"≤ {goal.at_most:g} {unit}")
    return ", ".join(parts)


def reached(result: Result) -> bool | None:
    """Whether every part of the goal is reached; None without a goal, or if what is known is reached but some of it
    could not be measured."""
    goal = result.work.goal
    known = [result.ratio(group) >= ratio for group, ratio in goal.ratios.items() if group in result.sides]
    if goal.at_most is not None:
        known.append(result.value(OURS) <= goal.at_most)
    if not all(known):
        return False
    is_whole = all(group in result.sides for group in goal.ratios)
    return True if known and is_whole else None


# ---------------------------------------------------------------- the table


def make_table(results: Sequence[Result]) -> Table:
    """The results beside their goals, a work a line."""
    table = Table(title="ours beside llama.cpp: medians of interleaved runs, ratios of medians", title_justify="left")
    table.add_column("work", no_wrap=True)
    for heading in ("ours", "GB/s", "of reading", "llama.cpp"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("its best setting")
    table.add_column("ratio", justify="right")
    table.add_column("also", justify="right")
    table.add_column("goal")
    table.add_column("reached", justify="center")
    for result in results:
        table.add_row(*table_cells(result))
    return table


def table_cells(result: Result) -> list[str]:
    """One line of the table."""
    unit, mark = KINDS[result.work.kind].unit, {True: "yes", False: "no", None: ""}[reached(result)]
    has_peer, has_reading = LLAMA_CPP in result.sides, READING in result.sides
    also = [f"{result.ratio(REFERENCE):.2f}× run.c"] if REFERENCE in result.sides else []
    also += [f"{result.ratio(ALONE):.2f}× one by one"] if ALONE in result.sides else []
    return [
        result.work.name,
        f"{short(result.value(OURS))} {unit}",
        f"{result.gigabytes_per_second(OURS):.1f}" if result.bytes_read else "",
        f"{result.ratio(READING):.0%} of {result.gigabytes_per_second(READING):.1f}" if has_reading else "",
        f"{short(result.value(LLAMA_CPP))}" if has_peer else "",
        result.sides[LLAMA_CPP].setting if has_peer else "",
        f"{result.ratio(LLAMA_CPP):.2f}" if has_peer else "",
        ", ".join(also),
        goal_text(result.work.goal, unit),
        mark,
    ]


def short(value: float) -> str:
    """Four digits or so."""
    return f"{value:.0f}" if value >= 1000 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


# ---------------------------------------------------------------- the file


def csv_rows(result: Result, date: datetime.date) -> list[list[str]]:
    """A row for each side that ours was compared with, or one with ours alone. Reading is told in GB/s."""
    others = [group for group in result.sides if group != OURS]
    return [_csv_row(result, group, date) for group in others] or [_csv_row(result, None, date)]


def _csv_row(result: Result, group: str | None, date: datetime.date) -> list[str]:
    unit = "GB/s" if group == READING else KINDS[result.work.kind].unit
    ours = result.sides[OURS]
    what = f"{result.work.name}, {ours.setting}" if ours.setting else result.work.name
    row = [date.isoformat(), SCRIPT, what, _told(result, OURS, unit), unit]
    if group is None:
        return [*row, "", "", "", str(len(ours.costs)), _spread(result, OURS, unit)]
    name = result.peer_name if group == LLAMA_CPP else group
    peer = f"{name}, {result.sides[group].setting}" if result.sides[group].setting else name
    spread = f"{_spread(result, OURS, unit)}; {_spread(result, group, unit)}"
    return [*row, peer, _told(result, group, unit), f"{result.ratio(group):.3f}", str(len(ours.costs)), spread]


def _told(result: Result, group: str, unit: str) -> str:
    value = result.gigabytes_per_second(group) if unit == "GB/s" else result.value(group)
    return f"{value:.4g}" if value < 1000 else f"{value:.0f}"


def _spread(result: Result, group: str, unit: str) -> str:
    """As "63.0-66.7", least to most."""
    least, most = result.range(group)
    scale = result.gigabytes_per_second(group) / result.value(group) if unit == "GB/s" else 1.0
    return f"{least * scale:.4g}-{most * scale:.4g}"


def results_path() -> Path:
    """The file for machines like this one."""
    return Path(__file__).with_name("results") / f"{platform.machine()}-{os.cpu_count()}cores.csv"


def processor_name() -> str:
    """As the system says it, and which of the instructions that matter here it has."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = (line.partition(":")[2].strip() for line in lines if line.startswith(("model name", "Model")))
    flags = next((line.split() for line in lines if line.startswith(("flags", "Features"))), [])
    known = [flag for flag in ("avx2", "avx_vnni", "avx512f", "asimddp") if flag in flags]
    return f"{next(names, platform.machine())} ({' '.join(known)})"


def append_rows(path: Path, rows: Sequence[Sequence[str]]) -> None:
    """Rows, each with this processor at its end, to the end of the file, which begins with the names of the columns."""
    path.parent.mkdir(parents=True, exist_ok=True)
    is_new = not path.exists()
    with path.open("a", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        if is_new:
            writer.writerow(COLUMNS)
        writer.writerows([*row, processor_name()] for row in rows)

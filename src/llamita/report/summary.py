"""Writes summary.json and report.html into a run directory, and makes the table that ends a run."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.table import Table

from llamita.atomic import atomic_write_bytes
from llamita.console import format_count, format_seconds, format_speed
from llamita.report.history import distinct_names, objective_unit, read_history
from llamita.report.html import build_page
from llamita.report.samples import copies_text

PAGE = "report.html"


def write_report(run: Path, summary: Mapping[str, Any]) -> None:
    """Write summary.json and report.html into the run directory. Raises OutputError."""
    text = json.dumps(summary, indent=2, ensure_ascii=False) + "\n"
    atomic_write_bytes(run / "summary.json", text.encode())
    write_page([run])


def write_page(runs: Sequence[Path], out: Path | None = None) -> Path:
    """Write the page of one run, or a comparison of several; returns its path. Default: report.html
    of the first run.

    Raises TrainingError if a path is not a run directory, OutputError.
    """
    histories = distinct_names([read_history(run) for run in runs])
    out = Path(runs[0]) / PAGE if out is None else out
    atomic_write_bytes(out, build_page(histories).encode())
    return out


def summary_table(summary: Mapping[str, Any]) -> Table:
    """The result of a run, for the terminal."""
    table = Table(box=box.SIMPLE, show_header=False, pad_edge=False)
    table.add_column(style="dim")
    table.add_column()
    model, val, best = summary["model"], summary["val"], summary["best"]
    targets = summary["targets"]
    unit = objective_unit(summary["objective"], targets)
    layers, hidden = model["num_hidden_layers"], model["hidden_size"]
    parameters = format_count(summary["num_parameters"])
    if val is not None:
        note = "" if best == val else f" (best {best:.4f} at step {summary['best_step']:,})"
        table.add_row("held-out", f"[bold]{val:.4f}[/bold] {unit}{note}")
    table.add_row("model", f"{parameters} weights: {layers} layers of {hidden}, vocabulary {model['vocab_size']:,}")
    table.add_row(
        "trained",
        f"{summary['steps']:,} steps of {summary['tokens_per_step']:,} tokens: "
        f"{format_count(summary['tokens'])} {targets}, {summary['epochs']:.2f} epochs",
    )
    mfu = "" if summary["mfu"] is None else f", MFU {100 * summary['mfu']:.0f} %"
    speed = format_speed(summary["tokens_per_second"], targets)
    table.add_row("time", f"{format_seconds(summary['seconds'])}, {speed}{mfu}")
    if overlap := summary.get("samples", {}).get("overlap"):
        table.add_row("copies", copies_text(overlap))
    table.add_row("files", f"{summary['run']}: best, latest, metrics.jsonl, summary.json, {PAGE}")
    return table

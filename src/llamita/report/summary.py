"""Writes summary.json and report.html into a run directory, and describes the result in a table."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from llamita.atomic import atomic_write_bytes
from llamita.console import Rows, format_count, format_seconds, format_speed
from llamita.report.history import distinct_names, objective_unit, read_history
from llamita.report.html import build_page
from llamita.report.samples import copies_text

PAGE = "report.html"


def write_report(run: Path, summary: Mapping[str, Any]) -> None:
    """Write summary.json and report.html into the run directory. Raises OutputError."""
    text = json.dumps(summary, indent=2, ensure_ascii=False) + "\n"
    atomic_write_bytes(run / "summary.json", text.encode("utf-8", "surrogateescape"))
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


def summary_rows(summary: Mapping[str, Any]) -> Rows:
    """The result of a run, as a table for the terminal."""
    model, val, best = summary["model"], summary["val"], summary["best"]
    targets = summary["targets"]
    unit = objective_unit(summary["objective"], targets)
    layers, hidden = model["num_hidden_layers"], model["hidden_size"]
    mfu = "" if summary["mfu"] is None else f", MFU {100 * summary['mfu']:.0f} %"
    speed = format_speed(summary["tokens_per_second"], targets)
    rows: Rows = []
    if val is not None:
        note = "" if best == val else f" (best {best:.4f} at step {summary['best_step']:,})"
        rows.append(("held-out", f"{val:.4f} {unit}{note}"))
    weights = format_count(summary["num_parameters"])
    rows.append(("model", f"{weights} weights: {layers} layers of {hidden}, vocabulary {model['vocab_size']:,}"))
    steps = f"{summary['steps']:,} steps of {summary['tokens_per_step']:,} tokens"
    rows.append(("trained", f"{steps}: {format_count(summary['tokens'])} {targets}, {summary['epochs']:.2f} epochs"))
    rows.append(("time", f"{format_seconds(summary['seconds'])}, {speed}{mfu}"))
    if overlap := summary.get("samples", {}).get("overlap"):
        rows.append(("copies", copies_text(overlap)))
    rows.append(("files", f"{summary['run']}: best, latest, metrics.jsonl, summary.json, {PAGE}"))
    return rows

"""Turns a run's metrics into what is shown at its end: summary.json, the curve as loss.png, and a table."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.table import Table

from llamita.atomic import atomic_file, atomic_write_bytes
from llamita.training.metrics import read_metrics
from llamita.training.progress import format_count, format_seconds

TRAIN_COLOR, HELD_OUT_COLOR, INK, GRID = "#7a9cc6", "#d1495b", "#333333", "#e4e4e4"


def write_report(run: Path, summary: Mapping[str, Any]) -> None:
    """Write summary.json and loss.png into the run directory. Raises OutputError."""
    text = json.dumps(summary, indent=2, ensure_ascii=False) + "\n"
    atomic_write_bytes(run / "summary.json", text.encode())
    lines = read_metrics(run)
    if any(line["kind"] == "train" for line in lines):
        with atomic_file(run / "loss.png") as temporary:
            draw_curve(lines, temporary, title=run.resolve().name)


def draw_curve(lines: Sequence[Mapping[str, Any]], path: Path, title: str) -> None:
    """Bits per byte (nats a target where there are none) over tokens: of the training batches (and their smooth mean),
    and of the held-out split."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    train = [line for line in lines if line["kind"] == "train"]
    held_out = [line for line in lines if line["kind"] == "eval"]
    figure = Figure(figsize=(8, 4.8), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    tokens = [line["tokens"] / 1e6 for line in train]
    name = "bpb" if "bpb" in train[0] else "loss"
    bits = [line[name] for line in train]
    axes.plot(tokens, bits, color=TRAIN_COLOR, alpha=0.35, linewidth=1)
    axes.plot(tokens, _centered_means(bits), color=TRAIN_COLOR, linewidth=1.8, label="training batches")
    if held_out:
        axes.plot(
            [line["tokens"] / 1e6 for line in held_out], [line[name] for line in held_out],
            color=HELD_OUT_COLOR, marker="o", markersize=5, linewidth=1.8, label="held-out split",
        )  # fmt: skip
        last = held_out[-1]
        axes.annotate(
            f"{last[name]:.4f}", (last["tokens"] / 1e6, last["bpb"]), xytext=(0, 10), textcoords="offset points",
            ha="right", color=HELD_OUT_COLOR, fontweight="bold",
        )  # fmt: skip
    _set_limits(axes, train, held_out, name)
    axes.set_xlim(0, 1.02 * tokens[-1])
    axes.set_xlabel("training tokens, millions", color=INK)
    axes.set_ylabel("bits per byte" if name == "bpb" else "nats a target", color=INK)
    axes.set_title(title, loc="left", color=INK, fontweight="bold")
    axes.grid(color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    axes.legend(frameon=False, labelcolor=INK)
    figure.savefig(path, format="png")


def _set_limits(
    axes: Any, train: Sequence[Mapping[str, Any]], held_out: Sequence[Mapping[str, Any]], name: str
) -> None:
    """Leave the steep beginning out of the picture, so that the end can be told apart."""
    values = sorted(line[name] for line in [*train, *held_out])
    lowest = values[0]
    later = [line[name] for line in train if line["tokens"] >= 0.1 * train[-1]["tokens"]]
    highest = max([*later, *(line[name] for line in held_out)])
    margin = 0.06 * (highest - lowest) or 0.05 * lowest
    axes.set_ylim(lowest - margin, highest + margin)


def _centered_means(values: Sequence[float]) -> list[float]:
    """The mean of each value and its neighbours, a sixtieth of all on either side: smooth, and not late."""
    reach = len(values) // 60
    sums = [0.0, *itertools.accumulate(values)]
    bounds = [(max(0, i - reach), min(len(values), i + reach + 1)) for i in range(len(values))]
    return [(sums[end] - sums[start]) / (end - start) for start, end in bounds]


def summary_table(summary: Mapping[str, Any]) -> Table:
    """The end of a run as a table for the terminal."""
    table = Table(box=box.SIMPLE, show_header=False, pad_edge=False)
    table.add_column(style="dim")
    table.add_column()
    model, held_out, best = summary["model"], summary["held_out"], summary["best"]
    unit = "bits per byte" if summary["objective"] == "bpb" else "nats a target"
    layers, hidden = model["num_hidden_layers"], model["hidden_size"]
    parameters = format_count(summary["num_parameters"])
    if held_out is not None:
        note = "" if best == held_out else f" (best {best:.4f} at step {summary['best_step']})"
        table.add_row("held-out", f"[bold]{held_out:.4f}[/bold] {unit}{note}")
    table.add_row("model", f"{parameters} weights: {layers} layers of {hidden}, vocabulary {model['vocab_size']}")
    table.add_row(
        "trained",
        f"{summary['steps']} steps of {summary['tokens_per_step']} tokens: {format_count(summary['tokens'])} tokens, "
        f"{summary['epochs']:.2f} epochs",
    )
    mfu = "" if summary["mfu"] is None else f", MFU {100 * summary['mfu']:.0f} %"
    speed = f"{format_count(summary['tokens_per_second'])} tok/s{mfu}"
    table.add_row("time", f"{format_seconds(summary['seconds'])}, {speed}")
    table.add_row("files", f"{summary['run']}: best, latest, metrics.jsonl, summary.json, loss.png")
    return table

"""The charts of the report: which numbers of metrics.jsonl are drawn, over which axis, and how."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from html import escape

from llamita.report.history import History, are_comparable, common_targets, objective
from llamita.report.svg_chart import Curve, Note, Plot, draw

# The first charts, in this order: key → (title, value format, logarithmic, from zero). Every other
# number in metrics.jsonl follows under its own name.
CHARTS: dict[str, tuple[str, str, bool, bool]] = {
    "learning_rate": ("Learning rate", "number", False, True),
    "gradient_norm": ("Gradient norm, maximum per log line", "number", True, False),
    "tokens_per_second": ("Tokens per second", "count", False, True),
    "mfu": ("MFU, share of peak FLOP/s", "percent", False, True),
}
TITLES = {"bpb": "Bits per byte", "loss": "Loss, nats per target"}
NOT_DRAWN = ("step", "tokens", "seconds", "epoch", "evaluation_seconds")
AXES = {"tokens": ("training", "count"), "step": ("step", "count"), "seconds": ("time", "seconds")}
COLORS = 8
WIDE, NARROW = (1040, 400), (400, 300)  # width and height of the main chart, on phones
LATE = 0.1  # share of the run after which every point is inside the main chart


def build_charts(histories: Sequence[History]) -> str:
    """All charts of one run, or of several in the same axes."""
    axes = _axes(histories)
    return "\n".join(filter(None, (_main_chart(histories, axes), _small_charts(histories, axes))))


def color_key(index: int) -> str:
    """The short line that marks the color of a run."""
    return f'<i class="key c{index % COLORS}"></i>'


def axis_switch(histories: Sequence[History]) -> str:
    """Radio buttons that choose the x axis of all charts, without a script."""
    axes = _axes(histories)
    if len(axes) < 2:
        return ""
    buttons = "".join(
        f'<input class="axis" type="radio" name="axis" id="axis-{index}"{" checked" if index == 0 else ""}>'
        for index in range(len(axes))
    )
    names = [_axis(histories, axis)[0] for axis in axes]
    labels = "".join(f'<label for="axis-{index}">over {name}</label>' for index, name in enumerate(names))
    return f'{buttons}<div class="axes">{labels}</div>'


def _axes(histories: Sequence[History]) -> list[str]:
    """One or two names of AXES that all runs have: progress, and time."""
    having = [axis for axis in AXES if all(axis in history.keys("train") for history in histories if history.lines)]
    first = "tokens" if "tokens" in having else "step"
    return [first, "seconds"] if "seconds" in having else [first]


def _axis(histories: Sequence[History], axis: str) -> tuple[str, str]:
    """The label of an axis, and the format of its values."""
    label, x_format = AXES[axis]
    return (f"{label} {common_targets(histories)}" if axis == "tokens" else label), x_format


# ---------------------------------------------------------------- the main chart


def _main_chart(histories: Sequence[History], axes: Sequence[str]) -> str:
    key, alone = objective(histories), len(histories) == 1
    is_pairs = key == "loss" and common_targets(histories) == "pairs"
    title = "Loss per pair" if is_pairs else TITLES[key] if are_comparable(histories) else "Loss of each kind"
    names = ["training", "held-out"] if alone else [history.name for history in histories]
    legend = "".join(f"<span>{color_key(index)}{escape(name)}</span>" for index, name in enumerate(names))
    hint = "" if alone else "<span>bold: held-out, thin: training</span>"
    plots = []
    for axis in axes:
        curves = [
            curve
            for index, history in enumerate(histories)
            for curve in _objective_curves(history, key, axis, index, alone=alone)
        ]
        label, x_format = _axis(histories, axis)
        plots.append(
            Plot(title, curves, label, x_format, width=WIDE[0], height=WIDE[1],
                 y_limits=_late_limits(curves), notes=_events(histories, axis))
        )  # fmt: skip
    return _figure(title, plots, "wide", f'<div class="legend">{legend}{hint}</div>')


def _objective_curves(history: History, key: str, axis: str, index: int, *, alone: bool) -> list[Curve]:
    """The training metric, raw and smoothed, and the held-out metric."""
    color, val_color = (0, 1) if alone else (index % COLORS,) * 2
    xs, ys = history.series("train", key, axis)
    name = "" if alone else f"{history.name}, "
    curves = [Curve(xs, ys, f"c{color} faint")] if alone else []
    val = history.series("eval", key, axis)
    style = "thin" if val[0] and not alone else ""
    curves.append(Curve(xs, centered_means(ys), f"c{color} {style}".strip(), f"{name}training"))
    curves += _rolled_back(history, "train", key, axis, color)
    curves.append(Curve(*val, f"c{val_color} bold", f"{name}held-out", dots=True))
    return curves


def _late_limits(curves: Sequence[Curve]) -> tuple[float, float] | None:
    """Limits of y without the steep start of training, so that differences at the end are visible.

    Evaluations always stay inside.
    """
    curves = [curve for curve in curves if len(curve.xs) > 0 and "rolled_back" not in curve.style]
    if not curves:
        return None
    lowest = min(min(curve.ys) for curve in curves)
    highest = max(
        y for curve in curves for x, y in zip(curve.xs, curve.ys, strict=True) if x >= LATE * curve.xs[-1] or curve.dots
    )
    margin = 0.06 * (highest - lowest) or 0.05 * abs(lowest) or 1.0
    return lowest - margin, highest + margin


def centered_means(values: Sequence[float]) -> list[float]:
    """A moving average over a thirtieth of the values, centered, so that it does not lag."""
    reach = len(values) // 60
    sums = [0.0, *itertools.accumulate(values)]
    bounds = [(max(0, i - reach), min(len(values), i + reach + 1)) for i in range(len(values))]
    return [(sums[end] - sums[start]) / (end - start) for start, end in bounds]


# ---------------------------------------------------------------- the small charts


def _small_charts(histories: Sequence[History], axes: Sequence[str]) -> str:
    """One chart for each other number."""
    main = objective(histories)
    found = dict.fromkeys(key for history in histories for key in history.all_keys())
    hidden = {*NOT_DRAWN, *CHARTS, main}
    if main == "bpb":
        hidden.add("loss")  # the same curve in another unit
    keys = [*(key for key in CHARTS if key in found), *(key for key in found if key not in hidden)]
    drawn = "".join(_small_chart(histories, key, axes) for key in keys)
    return f'<div class="charts">{drawn}</div>' if drawn else ""


def _small_chart(histories: Sequence[History], key: str, axes: Sequence[str]) -> str:
    own_title = TITLES.get(key, key.replace("_", " ").replace(".", ": ").capitalize())
    title, y_format, is_log, from_zero = CHARTS.get(key, (own_title, "number", False, False))
    if key == "tokens_per_second":
        title = title.replace("Tokens", common_targets(histories).capitalize())
    plots = []
    for axis in axes:
        label, x_format = _axis(histories, axis)
        curves = [
            curve
            for index, history in enumerate(histories)
            for curve in _curves(history, key, axis, index, alone=len(histories) == 1)
        ]
        notes = [Note(note.x, "") for note in _events(histories, axis)]
        plots.append(
            Plot(title, curves, label, x_format, y_format, is_log=is_log, from_zero=from_zero, notes=notes)
        )  # fmt: skip
    return _figure(title, plots, "", "")


def _curves(history: History, key: str, axis: str, index: int, *, alone: bool) -> list[Curve]:
    color, val_color = (0, 1) if alone else (index % COLORS,) * 2
    name = history.name if not alone else ""
    return [
        Curve(*history.series("train", key, axis), f"c{color}", name or "training"),
        *_rolled_back(history, "train", key, axis, color),
        Curve(*history.series("eval", key, axis), f"c{val_color}", f"{name}, held-out" if name else "held-out", True),
    ]


# ---------------------------------------------------------------- both


def _rolled_back(history: History, kind: str, key: str, axis: str, color: int) -> list[Curve]:
    return [Curve(xs, ys, f"c{color} rolled_back") for xs, ys in history.rolled_back(kind, key, axis)]


def _events(histories: Sequence[History], axis: str) -> list[Note]:
    """Divergences and new generations."""
    found = []
    for history in histories:
        name = f"{history.name}: " if len(histories) > 1 else ""
        found += [Note(line[axis], f"{name}diverged") for line in history.rollbacks if axis in line]
        found += [Note(line[axis], f"{name}generation {line['generation']}") for line in history.generations]
    return found


def _figure(title: str, plots: Sequence[Plot], style: str, legend: str) -> str:
    """A chart, drawn once for each axis; the page shows one of them at a time.

    A wide chart is drawn again for phones, where its labels would be too small.
    """
    charts = ""
    for index, plot in enumerate(plots):
        narrow = dataclasses.replace(plot, width=NARROW[0], height=NARROW[1])
        for_phones = f'<div class="narrow">{draw(narrow)}</div>' if style == "wide" else ""
        charts += f'<div class="axis-{index}">{draw(plot)}{for_phones}</div>'
    return f'<figure class="{style}"><h3>{escape(title)}</h3>{legend}{charts}</figure>'

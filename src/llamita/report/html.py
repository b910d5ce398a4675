"""Turns the histories of one run or several into report.html: one page that needs nothing but itself."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from html import escape
from importlib.resources import files
from typing import Any

from llamita import __version__
from llamita.console import format_count, format_rate, format_seconds, speed_unit
from llamita.report.history import History
from llamita.report.run_settings import changed_from_default, differing, flat, store_facts
from llamita.report.svg_chart import FORMATS, Curve, Note, Plot, draw

# What is drawn, in this order: key → (title, how its values are written, logarithmic, from zero). Any other number in
# the lines of metrics.jsonl follows under its own name.
CHARTS: dict[str, tuple[str, str, bool, bool]] = {
    "learning_rate": ("Learning rate", "number", False, True),
    "gradient_norm": ("Gradient norm, largest of each line", "number", True, False),
    "tokens_per_second": ("Tokens per second", "count", False, True),
    "mfu": ("MFU: share of the device's peak", "percent", False, True),
}
TITLES = {"bpb": "Bits per byte", "loss": "Loss, nats per target"}
NOT_DRAWN = ("step", "tokens", "seconds", "epoch", "evaluation_seconds")
AXES = {"tokens": ("training", "count"), "step": ("step", "count"), "seconds": ("time", "seconds")}
COLORS = 8


def build_page(histories: Sequence[History]) -> str:
    """The whole page: of one run, or of several beside each other."""
    axes = _axes(histories)
    alone = histories[0] if len(histories) == 1 else None
    title = alone.name if alone else f"{len(histories)} runs"
    body = [
        f"<h1>{escape(title)}</h1>",
        _status(alone) if alone else f'<p class="soft">{escape(", ".join(history.name for history in histories))}</p>',
        _tiles(alone) if alone else _final_numbers(histories),
        _axis_switch(histories, axes),
        "<main>",
        _main_chart(histories, axes),
        _charts(histories, axes),
        *(
            [_rollbacks(alone), _copies(alone), _samples(alone), _facts(alone)]
            if alone
            else [_sides(histories), _differences(histories)]
        ),
        "</main>",
        f"<footer>written by llamita {__version__}; to write it again: <code>llamita report "
        f"{escape(' '.join(str(history.path) for history in histories))}</code></footer>",
    ]
    style, script = (_asset(name) for name in ("page.css", "page.js"))
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)} · llamita</title>\n<style>\n{style}</style>\n</head>\n<body>\n"
        + "\n".join(part for part in body if part)
        + f"\n<script>\n{script}</script>\n</body>\n</html>\n"
    )


def _asset(name: str) -> str:
    return files("llamita.report").joinpath(name).read_text(encoding="utf-8")


# ---------------------------------------------------------------- the head


def objective(histories: Sequence[History]) -> str:
    """What all runs have: bits per byte, or else the loss."""
    return "bpb" if all("bpb" in _keys(history) for history in histories) else "loss"


def objective_unit(key: str, targets: str) -> str:
    """Of what `objective` names. targets: History.targets."""
    if key == "bpb":
        return "bits per byte"
    return "loss per pair" if targets == "pairs" else "nats per target"  # IPO's is a square, not nats


def _targets(histories: Sequence[History]) -> str:
    """What the tokens of all these runs are."""
    found = {history.targets for history in histories}
    return found.pop() if len(found) == 1 else "targets"


def _axis(histories: Sequence[History], axis: str) -> tuple[str, str]:
    """An axis's name, and how its values are written."""
    label, x_format = AXES[axis]
    return (f"{label} {_targets(histories)}" if axis == "tokens" else label), x_format


def _title(histories: Sequence[History], key: str) -> str:
    """What is above the objective's chart."""
    return "Loss per pair" if key == "loss" and _targets(histories) == "pairs" else TITLES[key]


def _keys(history: History) -> list[str]:
    return [*history.keys("train"), *history.keys("eval")]


def _status(history: History) -> str:
    lines = history.lines
    state = "ended" if history.summary else "under way"
    where = f" at step {lines[-1]['step']:,}" if lines else ""
    started = history.description.get("environment", {}).get("started")
    begun = f", begun {started}" if started else ""
    return f'<p class="soft">{escape(str(history.path))} · {state}{where}{escape(begun)}</p>'


def _tiles(history: History) -> str:
    key, summary = objective([history]), history.summary
    unit = objective_unit(key, history.targets)
    val = history.series("eval", key, "step")
    tiles: list[tuple[str, str]] = []
    if val[1]:
        best, step = min(zip(val[1], val[0], strict=True))
        note = "" if best == val[1][-1] else f" (best {best:.4f} at step {step:,.0f})"
        tiles.append((f"{val[1][-1]:.4f}", f"{unit}, held out{note}"))
    elif (train := history.last("train", key)) is not None:
        tiles.append((f"{train:.4f}", f"{unit}, training"))
    if weights := summary.get("num_parameters"):
        tiles.append((format_count(weights), "weights"))
    if (tokens := history.last("train", "tokens")) is not None:
        epoch = history.last("train", "epoch")
        epochs = "" if epoch is None else f", {epoch:.2f} epochs"
        tiles.append((format_count(tokens), f"{history.targets}{epochs}"))
    if (seconds := history.last("train", "seconds")) is not None:
        tiles.append((format_seconds(summary.get("seconds", seconds)), "time"))
    if (speed := summary.get("tokens_per_second") or history.last("train", "tokens_per_second")) is not None:
        tiles.append((format_rate(speed), f"{history.targets} per second"))
    if (mfu := summary.get("mfu") or history.last("train", "mfu")) is not None:
        tiles.append((f"{100 * mfu:.0f} %", "MFU"))
    shown = "".join(
        f'<div class="tile"><b>{escape(value)}</b><span>{escape(what)}</span></div>' for value, what in tiles
    )
    return f'<div class="tiles">{shown}</div>' if tiles else ""


def _axes(histories: Sequence[History]) -> list[str]:
    """One or two names of AXES that the lines of all runs have: what was learned from, and time."""
    having = [axis for axis in AXES if all(axis in history.keys("train") for history in histories if history.lines)]
    first = "tokens" if "tokens" in having else "step"
    return [first, "seconds"] if "seconds" in having else [first]


def _axis_switch(histories: Sequence[History], axes: Sequence[str]) -> str:
    if len(axes) < 2:
        return ""
    buttons = "".join(
        f'<input class="axis" type="radio" name="axis" id="axis-{index}"{" checked" if index == 0 else ""}>'
        for index in range(len(axes))
    )
    names = [_axis(histories, axis)[0] for axis in axes]
    labels = "".join(f'<label for="axis-{index}">over {name}</label>' for index, name in enumerate(names))
    return f'{buttons}<div class="axes">{labels}</div>'


# ---------------------------------------------------------------- charts


def _main_chart(histories: Sequence[History], axes: Sequence[str]) -> str:
    key = objective(histories)
    if len(histories) == 1:
        legend = _legend([("training batches", 0), ("held out", 1)])
    else:
        legend = _legend([(history.name, index % COLORS) for index, history in enumerate(histories)])
    drawn = []
    for axis in axes:
        curves = [curve for index, history in enumerate(histories) for curve in _objective_curves(
            history, key, axis, index, alone=len(histories) == 1)]  # fmt: skip
        label, x_format = _axis(histories, axis)
        drawn.append(Plot(
            _title(histories, key), curves, label, x_format, width=1040, height=400,
            y_limits=_late_limits(curves), notes=_notes(histories, axis),
        ))  # fmt: skip
    hint = "" if len(histories) == 1 else "<span>bold: held out, thin: training batches</span>"
    return _figure(_title(histories, key), drawn, "wide", f'<div class="legend">{legend}{hint}</div>')


def _objective_curves(history: History, key: str, axis: str, index: int, *, alone: bool) -> list[Curve]:
    """Training batches, as they were and as their smooth mean, and what was held out."""
    color, held_color = (0, 1) if alone else (index % COLORS,) * 2
    xs, ys = history.series("train", key, axis)
    name = "" if alone else f"{history.name}, "
    curves = [Curve(xs, ys, f"c{color} faint")] if alone else []
    val = history.series("eval", key, axis)
    style = "thin" if val[0] and not alone else ""
    curves.append(Curve(xs, centered_means(ys), f"c{color} {style}".strip(), f"{name}training"))
    curves += _rolled_back(history, "train", key, axis, color)
    curves.append(Curve(*val, f"c{held_color} bold", f"{name}held out", dots=True))
    return curves


def _rolled_back(history: History, kind: str, key: str, axis: str, color: int) -> list[Curve]:
    return [Curve(xs, ys, f"c{color} rolled_back") for xs, ys in history.rolled_back(kind, key, axis)]


def _late_limits(curves: Sequence[Curve]) -> tuple[float, float] | None:
    """Leave the steep beginning out of the picture, so that the end can be told apart; what was held out stays."""
    curves = [curve for curve in curves if len(curve.xs) > 0 and "rolled_back" not in curve.style]
    if not curves:
        return None
    lowest = min(min(curve.ys) for curve in curves)
    from_x = [0.1 * curve.xs[-1] for curve in curves]
    later = [y for curve, start in zip(curves, from_x, strict=True) for x, y in zip(curve.xs, curve.ys, strict=True)
             if x >= start or curve.dots]  # fmt: skip
    highest = max(later)
    margin = 0.06 * (highest - lowest) or 0.05 * abs(lowest) or 1.0
    return lowest - margin, highest + margin


def _notes(histories: Sequence[History], axis: str) -> list[Note]:
    """Where a run diverged."""
    several = len(histories) > 1
    return [
        Note(rollback[axis], f"{history.name}: diverged" if several else "diverged")
        for history in histories for rollback in history.rollbacks if axis in rollback
    ]  # fmt: skip


def _charts(histories: Sequence[History], axes: Sequence[str]) -> str:
    """Everything else that was measured, a small chart each."""
    main = objective(histories)
    found = dict.fromkeys(key for history in histories for key in _keys(history))
    redundant = {"loss"} if main == "bpb" else set()  # the same curve in another unit
    others = [
        key for key in found if key not in CHARTS and key not in NOT_DRAWN and key != main and key not in redundant
    ]
    drawn = []
    for key in [*(key for key in CHARTS if key in found), *others]:
        title, y_format, is_log, from_zero = CHARTS.get(
            key, (TITLES.get(key, key.replace("_", " ").replace(".", ": ").capitalize()), "number", False, False)
        )
        if key == "tokens_per_second":
            title = title.replace("Tokens", _targets(histories).capitalize())
        plots = []
        for axis in axes:
            label, x_format = _axis(histories, axis)
            curves = [curve for index, history in enumerate(histories)
                      for curve in _curves(history, key, axis, index, alone=len(histories) == 1)]  # fmt: skip
            plots.append(Plot(title, curves, label, x_format, y_format, is_log=is_log, from_zero=from_zero,
                              notes=[Note(note.x, "") for note in _notes(histories, axis)]))  # fmt: skip
        drawn.append(_figure(title, plots, "", ""))
    return f'<div class="charts">{"".join(drawn)}</div>' if drawn else ""


def _curves(history: History, key: str, axis: str, index: int, *, alone: bool) -> list[Curve]:
    color, held_color = (0, 1) if alone else (index % COLORS,) * 2
    name = history.name if not alone else ""
    return [
        Curve(*history.series("train", key, axis), f"c{color}", name or "training"),
        *_rolled_back(history, "train", key, axis, color),
        Curve(*history.series("eval", key, axis), f"c{held_color}", f"{name}, held out" if name else "held out", True),
    ]


def _figure(title: str, plots: Sequence[Plot], style: str, legend: str) -> str:
    """A chart, once for each axis; the page shows one of them."""
    charts = "".join(f'<div class="axis-{index}">{draw(plot)}</div>' for index, plot in enumerate(plots))
    return f'<figure class="{style}"><h3>{escape(title)}</h3>{legend}{charts}</figure>'


def _legend(names: Sequence[tuple[str, int]]) -> str:
    return "".join(f'<span><i class="key c{color}"></i>{escape(name)}</span>' for name, color in names)


def centered_means(values: Sequence[float]) -> list[float]:
    """The mean of each value and its neighbors, a sixtieth of all on either side: smooth, and not late."""
    reach = len(values) // 60
    sums = [0.0, *itertools.accumulate(values)]
    bounds = [(max(0, i - reach), min(len(values), i + reach + 1)) for i in range(len(values))]
    return [(sums[end] - sums[start]) / (end - start) for start, end in bounds]


# ---------------------------------------------------------------- one run: rollbacks, copies, samples, facts


def _rollbacks(history: History) -> str:
    if not history.rollbacks:
        return ""
    told = "".join(
        f"<li>{escape(str(line.get('found', '')))}; back to step {line.get('to_step', 0):,}, "
        f"with {line.get('learning_rate_share', 1):g} of the learning rates</li>"
        for line in history.rollbacks
    )
    times = "once" if len(history.rollbacks) == 1 else f"{len(history.rollbacks)} times"
    return f'<h2 class="warn">DivergenceError {times}</h2><ul>{told}</ul>'


def copies_text(overlap: Mapping[str, Any]) -> str:
    """How long the copies of the training text are, in the words of a line."""
    val = overlap["val"]
    return (
        f"{overlap['length_tokens']:,} tokens at most, median {overlap['median_tokens']:g} a text; "
        f"held-out text: {val['length_tokens']:,}, median {val['median_tokens']:g}"
    )


def _copies(history: History) -> str:
    """What summary.json says of the texts that the best checkpoint told in the end."""
    told = history.summary.get("samples", {})
    if not (overlap := told.get("overlap")):
        return ""
    title = '<h2 class="warn">It memorizes</h2>' if overlap["memorizes"] else "<h2>What it copies</h2>"
    verdict = "The copies are clearly longer than those in held-out text: more text or fewer epochs would help. "
    if overlap["val_known"] > 0.5:
        verdict = "What that means cannot be said: the held-out text is in the training text. "
    elif not overlap["memorizes"]:
        verdict = "That is much like held-out text: no sign of learning by heart. "
    numbers = (
        f"{told['num_samples']} texts of the best checkpoint, {told['mean_tokens']:.0f} tokens on average: "
        f"{told['stop_rate']:.0%} ended by themselves; distinct-1, -2, -3 {told['distinct_1']:.3f}, "
        f"{told['distinct_2']:.3f}, {told['distinct_3']:.3f}; repetition (seq-rep-4) {told['repetition']:.1%}."
    )
    return (
        f"{title}<p>Word for word in the training text: {escape(copies_text(overlap))}. {verdict}The longest:</p>"
        f'<div class="told">{escape(overlap["text"])}</div><p class="soft">{escape(numbers)}</p>'
    )


def _samples(history: History) -> str:
    evaluations = [line for line in history.evaluations if isinstance(line.get("sample"), str)]
    if not evaluations:
        return ""
    prompt = escape(str(history.config.get("prompt") or ""))
    if "checkpoint" in history.config and any(str(line["sample"]).startswith("> ") for line in evaluations):
        title = "What it answered over time"
        how = f"The most probable answers to {f'“{prompt}”' if prompt else 'held-out questions'}."
    else:
        title = "What it told over time"
        asked = f"beginning with “{prompt}”" if prompt else "from an empty page"
        how = f"Temperature 0.8, {asked}, at each evaluation."
    told = "".join(_sample(line, history.targets, is_open=line is evaluations[-1]) for line in evaluations)
    return f'<h2>{title}</h2><p class="soft">{how}</p>{told}'


def _sample(line: Mapping[str, Any], targets: str, *, is_open: bool) -> str:
    text = str(line["sample"])
    start = escape(" ".join(text.split())[:160])
    return (
        f'<details{" open" if is_open else ""}><summary><span class="when">{_when(line, targets)}</span>'
        f'<span class="start">{start}</span></summary><div class="told">{escape(text)}</div></details>'
    )


def _when(line: Mapping[str, Any], targets: str) -> str:
    score = next((f"<b>{line[key]:.4f}</b> · " for key in ("bpb", "loss") if key in line), "")
    tokens = f", {format_count(line['tokens'])} {targets}" if "tokens" in line else ""
    return f"{score}step {line['step']:,}{tokens}"


def _facts(history: History) -> str:
    description, changed = history.description, changed_from_default(history.config)
    rows = [(name, value, "" if name in changed else "default") for name, value in flat(history.config).items()]
    tables = [("Configuration", rows)]
    data = {**description.get("data", {}), **store_facts(description)}
    for title, values in (
        ("Model", description.get("model", {})),
        ("Data", data),
        ("Environment", description.get("environment", {})),
        ("Summary", {name: value for name, value in history.summary.items() if name not in ("model", "samples")}),
    ):
        if values:
            tables.append((title, [(name, value, "") for name, value in flat(values).items()]))
    left, right = _fact_table(*tables[0]), "".join(_fact_table(*table) for table in tables[1:])
    return f'<div class="columns"><div>{left}</div><div>{right}</div></div>'


def _fact_table(title: str, rows: Sequence[tuple[str, str, str]]) -> str:
    cells = "".join(
        f'<tr><th>{escape(name)}</th><td class="{style}">{escape(value)}</td></tr>' for name, value, style in rows
    )
    note = '<p class="soft">Grey: the default.</p>' if any(style for _, _, style in rows) else ""
    return f'<h2>{escape(title)}</h2>{note}<table class="facts">{cells}</table>'


# ---------------------------------------------------------------- several runs


def _final_numbers(histories: Sequence[History]) -> str:
    """A row for each run; the best of what can be better in bold."""
    key = objective(histories)
    targets = _targets(histories)
    unit = objective_unit(key, targets)
    columns = [
        (f"held out, {unit}", lambda h: h.last("eval", key), "{:.4f}".format, min),
        ("best", lambda h: min(h.series("eval", key, "step")[1], default=None), "{:.4f}".format, min),
        ("training", lambda h: h.last("train", key), "{:.4f}".format, None),
        ("steps", lambda h: h.last("train", "step"), "{:,.0f}".format, None),
        (targets, lambda h: h.last("train", "tokens"), format_count, None),
        ("epochs", lambda h: h.last("train", "epoch"), "{:.2f}".format, None),
        ("time", lambda h: h.summary.get("seconds") or h.last("train", "seconds"), format_seconds, None),
        (
            speed_unit(targets),
            lambda h: h.summary.get("tokens_per_second") or h.last("train", "tokens_per_second"),
            format_rate,
            max,
        ),
        ("MFU", lambda h: h.summary.get("mfu") or h.last("train", "mfu"), FORMATS["percent"], max),
        ("weights", lambda h: h.summary.get("num_parameters"), format_count, None),
        ("divergences", lambda h: len(h.rollbacks) or None, "{:.0f}".format, None),
    ]  # type: list[tuple[str, Any, Any, Any]]
    found = [(name, [get(history) for history in histories], show, better) for name, get, show, better in columns]
    found = [column for column in found if any(value is not None for value in column[1])]
    head = "".join(f"<th>{escape(name)}</th>" for name, *_ in found)
    rows = []
    for index, history in enumerate(histories):
        cells = [f'<td><i class="key c{index % COLORS}"></i>{escape(history.name)}</td>']
        for _, values, show, better in found:
            value = values[index]
            is_best = better and value is not None and value == better(v for v in values if v is not None)
            cells.append(f'<td class="{"best" if is_best else ""}">{"" if value is None else escape(show(value))}</td>')
        rows.append(f"<tr>{''.join(cells)}</tr>")
    table = f'<table class="numbers"><thead><tr><th>run</th>{head}</tr></thead>{"".join(rows)}</table>'
    return f'<div class="scroll">{table}</div>'


def _differences(histories: Sequence[History]) -> str:
    """The configuration, model, data and environment, as far as they are not the same in all runs."""
    head = "".join(f"<th>{escape(history.name)}</th>" for history in histories)
    parts = []
    for title in ("config", "model", "data", "environment"):
        values = [flat(history.description.get(title, {})) for history in histories]
        rows = differing(values)
        if rows:
            cells = "".join(
                f"<tr><th>{escape(name)}</th>{''.join(f'<td>{escape(value)}</td>' for value in row)}</tr>"
                for name, row in rows
            )
            parts.append(f'<tbody><tr><th class="part" colspan="{1 + len(histories)}">{title}</th></tr>{cells}</tbody>')
    if not parts:
        return '<h2>What differs</h2><p class="soft">Nothing but the folder.</p>'
    table = f"<table><thead><tr><th></th>{head}</tr></thead>{''.join(parts)}</table>"
    return f'<h2>What differs</h2><div class="scroll">{table}</div>'


def _sides(histories: Sequence[History]) -> str:
    """The last samples side by side, the earlier ones behind them."""
    sides = []
    for index, history in enumerate(histories):
        evaluations = [line for line in history.evaluations if isinstance(line.get("sample"), str)]
        told = "".join(
            _sample(line, history.targets, is_open=line is evaluations[-1]) for line in reversed(evaluations)
        )
        sides.append(f'<div><h3><i class="key c{index % COLORS}"></i>{escape(history.name)}</h3>{told}</div>')
    return f'<h2>What they told, last first</h2><div class="sides">{"".join(sides)}</div>'

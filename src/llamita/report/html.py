"""report.html: one self-contained page about a run, or a comparison of several."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any

from llamita.commands import command_line
from llamita.console import format_count, format_rate, format_seconds, speed_unit
from llamita.errors import TrainingError
from llamita.report.charts import axis_switch, build_charts, color_key
from llamita.report.history import History, are_comparable, common_targets, objective, objective_unit
from llamita.report.outlook import outlook_section, run_outlook
from llamita.report.page import page, tiles
from llamita.report.samples import earlier_samples, memorization, newest_sample, samples_side_by_side
from llamita.report.settings import differences_table, folded_settings
from llamita.report.svg_chart import FORMATS
from llamita.report.verdict import verdict


def build_page(histories: Sequence[History]) -> str:
    """The whole page."""
    if len(histories) == 1:
        (run,) = histories
        title, head = run.name, [_status(run), verdict(run), _tiles(run), newest_sample(run)]
        sections = [_rollbacks(run), _outlook(run), memorization(run), earlier_samples(run), folded_settings(run)]
    else:
        names = ", ".join(history.name for history in histories)
        title = f"{len(histories)} runs"
        head = [f'<p class="soft">{escape(names)}</p>', _final_numbers(histories)]
        sections = [samples_side_by_side(histories), differences_table(histories)]
    body = [
        *head,
        axis_switch(histories),
        "<main>",
        build_charts(histories),
        *sections,
        "</main>",
    ]
    return page(title, body, command_line("report", *(history.path for history in histories)))


# ---------------------------------------------------------------- one run


def _status(history: History) -> str:
    state = "in progress"
    if history.summary:
        state = "finished" if history.summary.get("finished", True) else "interrupted"
    step = f" at step {history.lines[-1]['step']:,}" if history.lines else ""
    started = history.description.get("environment", {}).get("started")
    parts = [str(history.path), f"{state}{step}", *([f"started {started}"] if started else [])]
    return f'<p class="soft">{escape(" · ".join(parts))}</p>'


def _tiles(history: History) -> str:
    key, summary = objective([history]), history.summary
    unit = objective_unit(key, history.targets)
    val = history.series("eval", key, "step")
    found: list[tuple[str, str]] = []
    if val[1]:
        best, step = min(zip(val[1], val[0], strict=True))
        note = "" if best == val[1][-1] else f" (best {best:.4f} at step {step:,.0f})"
        found.append((f"{val[1][-1]:.4f}", f"{unit}, held-out{note}"))
    elif (train := history.last("train", key)) is not None:
        found.append((f"{train:.4f}", f"{unit}, training"))
    if weights := summary.get("num_parameters"):
        found.append((format_count(weights), "weights"))
    if (tokens := history.last("train", "tokens")) is not None:
        epoch = history.last("train", "epoch")
        epochs = "" if epoch is None else f", {epoch:.2f} epochs"
        found.append((format_count(tokens), f"{history.targets}{epochs}"))
    if (seconds := history.last("train", "seconds")) is not None:
        found.append((format_seconds(summary.get("seconds") or seconds), "time"))
    if (speed := summary.get("tokens_per_second") or history.last("train", "tokens_per_second")) is not None:
        found.append((format_rate(speed), f"{history.targets} per second"))
    if (mfu := summary.get("mfu") or history.last("train", "mfu")) is not None:
        found.append((f"{100 * mfu:.0f} %", "MFU"))
    return tiles(found)


def _rollbacks(history: History) -> str:
    if not history.rollbacks:
        return ""
    items = "".join(
        f"<li>{escape(str(line.get('reason', '')))}; rolled back to step {line.get('to_step', 0):,}, "
        f"learning rates × {line.get('learning_rate_factor', 1):g}</li>"
        for line in history.rollbacks
    )
    times = "once" if len(history.rollbacks) == 1 else f"{len(history.rollbacks)} times"
    return f'<h2 class="warn">Diverged {times}</h2><ul>{items}</ul>'


def _outlook(history: History) -> str:
    try:
        return outlook_section(run_outlook(history))
    except TrainingError:  # nothing to continue: the verdict says why
        return ""


# ---------------------------------------------------------------- several runs


def _final_numbers(histories: Sequence[History]) -> str:
    """A row for each run, the best value of a column in bold."""
    key = objective(histories)
    targets = common_targets(histories)
    is_comparable = are_comparable(histories)
    unit = objective_unit(key, targets) if is_comparable else "loss of each kind"
    least, most = (min, max) if is_comparable else (None, None)
    columns: list[tuple[str, Any, Any, Any]] = [
        (f"held-out, {unit}", lambda h: h.last("eval", key), "{:.4f}".format, least),
        ("best", lambda h: min(h.series("eval", key, "step")[1], default=None), "{:.4f}".format, least),
        ("training", lambda h: h.last("train", key), "{:.4f}".format, None),
        ("steps", lambda h: h.last("train", "step"), "{:,.0f}".format, None),
        (targets, lambda h: h.last("train", "tokens"), format_count, None),
        ("epochs", lambda h: h.last("train", "epoch"), "{:.2f}".format, None),
        ("time", lambda h: h.summary.get("seconds") or h.last("train", "seconds"), format_seconds, None),
        (
            speed_unit(targets),
            lambda h: h.summary.get("tokens_per_second") or h.last("train", "tokens_per_second"),
            format_rate,
            most,
        ),
        ("MFU", lambda h: h.summary.get("mfu") or h.last("train", "mfu"), FORMATS["percent"], max),
        ("weights", lambda h: h.summary.get("num_parameters"), format_count, None),
        ("divergences", lambda h: len(h.rollbacks) or None, "{:.0f}".format, None),
    ]
    found = [(name, [get(history) for history in histories], show, better) for name, get, show, better in columns]
    found = [column for column in found if any(value is not None for value in column[1])]
    head = "".join(f"<th>{escape(name)}</th>" for name, *_ in found)
    rows = []
    for index, history in enumerate(histories):
        cells = [f"<td>{color_key(index)}{escape(history.name)}</td>"]
        for _, values, show, better in found:
            value = values[index]
            is_best = better and value is not None and value == better(v for v in values if v is not None)
            cells.append(f'<td class="{"best" if is_best else ""}">{"" if value is None else escape(show(value))}</td>')
        rows.append(f"<tr>{''.join(cells)}</tr>")
    table = f'<table class="numbers"><thead><tr><th>run</th>{head}</tr></thead>{"".join(rows)}</table>'
    return f'<div class="scroll">{table}</div>'

"""What more time or more text would change: predicted bits per byte, for the terminal and the page."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from html import escape
from typing import Any

from llamita.config import ModelConfig
from llamita.console import Rows, format_count
from llamita.errors import ConfigError, TrainingError
from llamita.report.charts import LATE, NARROW, WIDE, color_key
from llamita.report.history import History, is_positive
from llamita.report.svg_chart import Curve, Plot, draw
from llamita.report.verdict import CLEARLY_WORSE
from llamita.scaling_law import SCALING_LAW, Evaluation, Forecast, RunCurve

FACTORS = (0.5, 1.0, 2.0, 4.0)
NAMES = ("x 1/2", "x 1", "x 2", "x 4")
MUCH_TEXT = FACTORS[-1]
OCTAVE_COLUMNS, CHART_ROWS = 20, 10  # of the chart in the terminal, for an octave of time
_CURVE_TIMES = tuple(0.5 * 2 ** (column / OCTAVE_COLUMNS) for column in range(3 * OCTAVE_COLUMNS + 1))


@dataclasses.dataclass(frozen=True)
class Outlook:
    """Forecasts for shares of a run's length and of its text.

    minutes: of the run, if it is counted in minutes; tokens: that it trains on; unique_tokens: of
    its text; cells: a row for each of FACTORS of the text, a column for each of FACTORS of the
    length; curves: over _CURVE_TIMES, for the text and for MUCH_TEXT times as much; evaluations: of
    the run, none if it is only planned.
    """

    minutes: float | None
    tokens: float
    unique_tokens: float
    cells: tuple[tuple[Forecast, ...], ...]
    curves: tuple[tuple[Forecast, ...], tuple[Forecast, ...]]
    evaluations: tuple[Evaluation, ...] = ()

    @property
    def basis(self) -> str:
        """What the forecasts come from."""
        if self.evaluations:
            return "the run's own held-out evaluations, and the scaling law"
        scatter = f"{100 * SCALING_LAW.scatter:.2g} %"
        return (
            f"the scaling law, fitted to TinyStories (runs scatter by {scatter}): other text has another level; "
            "`llamita plan RUN` fits a run of yours"
        )

    def lengths(self) -> list[str]:
        """The lengths of FACTORS, in minutes or tokens."""
        if self.minutes is not None:
            return [f"{factor * self.minutes:g} min" for factor in FACTORS]
        return [f"{format_count(factor * self.tokens)} tokens" for factor in FACTORS]

    def values(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "minutes": self.minutes, "tokens": round(self.tokens), "unique_tokens": round(self.unique_tokens),
            "from_run": bool(self.evaluations),
            "forecasts": [
                {"time_factor": time, "text_factor": text, "bits_per_byte": cell.bits, "low": cell.low,
                 "high": cell.high}
                for text, row in zip(FACTORS, self.cells, strict=True)
                for time, cell in zip(FACTORS, row, strict=True)
            ],
        }  # fmt: skip


def make_outlook(
    predict: Callable[[float, float], Forecast],
    minutes: float | None,
    tokens: float,
    unique_tokens: float,
    evaluations: Sequence[Evaluation] = (),
) -> Outlook:
    """predict: the forecast for factors of the length and of the text."""
    return Outlook(
        minutes, tokens, unique_tokens,
        tuple(tuple(predict(time, text) for time in FACTORS) for text in FACTORS),
        (tuple(predict(time, 1.0) for time in _CURVE_TIMES), tuple(predict(time, MUCH_TEXT) for time in _CURVE_TIMES)),
        tuple(evaluations),
    )  # fmt: skip


def run_outlook(history: History) -> Outlook:
    """From the evaluations of a run; if it still trains, for the length that it will have.

    Raises TrainingError if they cannot be continued.
    """

    def error(what: str) -> TrainingError:
        return TrainingError(f"cannot predict from {history.path}: {what}")

    config = history.config
    if history.command != "train" or config.get("from_") or config.get("teacher"):
        raise error("expected a run of llamita train on text alone, without --from and --teacher")
    if config.get("generations", 1) != 1:
        raise error("expected a run of one model, found several generations; train with --generations 1")
    size = _num_parameters(history)
    evaluations = _evaluations(history)
    if not evaluations:
        raise error("it has no evaluation yet; wait for the first")
    if not size:
        raise error("model in run.json: expected its shape, found another value; the file is damaged")
    best = min(evaluations, key=lambda each: each.bits)
    if evaluations[-1].bits > best.bits * (1 + CLEARLY_WORSE):
        raise error(
            f"it overfits: held-out text is best after {format_count(best.tokens)} tokens and gets worse; prepare more "
            "text, or train for less time"
        )
    last = next(line for line in reversed(history.lines) if line["kind"] == "train" and _counts(line))
    unique_tokens, tokens = last["tokens"] / last["epoch"], evaluations[-1].tokens
    if not history.summary.get("finished", bool(history.summary)):
        done = {
            "minutes": (last.get("seconds"), 60.0),
            "steps": (last.get("step"), 1.0),
            "epochs": (last["epoch"], 1.0),
        }
        shares = [
            value / unit / config[name]
            for name, (value, unit) in done.items()
            if is_positive(value) and is_positive(config.get(name))
        ]
        tokens = last["tokens"] / min(1.0, shares[0]) if shares else tokens
    curve = RunCurve(evaluations, size, unique_tokens)
    return make_outlook(
        lambda time, text: curve.forecast(time * tokens, text * unique_tokens),
        config["minutes"] if is_positive(config.get("minutes")) else None, tokens, unique_tokens, evaluations,
    )  # fmt: skip


def _num_parameters(history: History) -> int | None:
    if is_positive(found := history.summary.get("num_parameters")):
        return int(found)
    fields: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in history.description.get("model", {}).items()
    }
    try:
        return ModelConfig(**fields).num_parameters
    except (TypeError, ConfigError):  # a damaged run.json
        return None


def _evaluations(history: History) -> list[Evaluation]:
    """Evaluations of bits per byte after the start of the run, with the rate of the step before."""
    peak, rate, is_known, found = history.config.get("learning_rate"), 1.0, False, []
    last = history.last("train", "tokens") or 0.0
    for line in history.lines:
        if line["kind"] == "train":
            is_known = _counts(line)
            now = line.get("learning_rate")
            rate = min(1.0, now / peak) if is_positive(peak) and (now == 0 or is_positive(now)) else 1.0
        elif is_known and all(is_positive(line.get(name)) for name in ("tokens", "bpb")):
            found.append(Evaluation(line["tokens"], line["bpb"], rate))
    return [each for each in found if each.tokens > LATE * last]


def _counts(line: dict[str, Any]) -> bool:
    """Whether a line of metrics says how much was seen."""
    return all(is_positive(line.get(name)) for name in ("tokens", "epoch"))


# ---------------------------------------------------------------- the terminal


def outlook_rows(outlook: Outlook) -> Rows:
    """A table of at most 80 columns."""
    head = [f"{name}: {length}" for name, length in zip(NAMES, outlook.lengths(), strict=True)]
    if outlook.minutes is None:
        head = [f"{name}: {format_count(factor * outlook.tokens)}" for name, factor in zip(NAMES, FACTORS, strict=True)]
    rows: Rows = [("text \\ time", *head)]
    for name, factor, row in zip(NAMES, FACTORS, outlook.cells, strict=True):
        rows.append((f"{name}: {format_count(factor * outlook.unique_tokens)}", *map(_cell, row)))
    return rows


def _cell(cell: Forecast) -> str:
    return f"{cell.bits:.3f} +-{100 * (cell.high / cell.bits - 1):.2g} %"


def outlook_chart(outlook: Outlook) -> list[str]:
    """The curves in ASCII, at most 80 columns wide, over a logarithmic axis of time."""
    own, more = outlook.curves
    measured = [
        (each.tokens / outlook.tokens, each.bits)
        for each in outlook.evaluations
        if _CURVE_TIMES[0] <= each.tokens / outlook.tokens <= _CURVE_TIMES[-1]
    ]
    low = min([each.low for each in own] + [each.bits for each in more] + [bits for _, bits in measured])
    high = max([each.high for each in own] + [bits for _, bits in measured])
    grid = [[" "] * len(_CURVE_TIMES) for _ in range(CHART_ROWS)]

    def row_of(bits: float) -> int:
        return min(CHART_ROWS - 1, max(0, round((high - bits) / (high - low) * (CHART_ROWS - 1))))

    for column, (one, other) in enumerate(zip(own, more, strict=True)):
        for row in range(row_of(one.high), row_of(one.low) + 1):
            grid[row][column] = ":"
        grid[row_of(other.bits)][column] = "+"
        grid[row_of(one.bits)][column] = "*"
    for factor, bits in measured:
        column = min(range(len(_CURVE_TIMES)), key=lambda index: abs(_CURVE_TIMES[index] - factor))
        grid[row_of(bits)][column] = "o"
    labels = {0: f"{high:.3f}", CHART_ROWS - 1: f"{low:.3f}"}
    lines = [f"{labels.get(index, ''):>9} |{''.join(row)}".rstrip() for index, row in enumerate(grid)]
    axis = " " * 10 + "+" + ("-" * (OCTAVE_COLUMNS - 1) + "+") * 3
    under = "".join(f"{length:<{OCTAVE_COLUMNS}}" for length in outlook.lengths()).rstrip()
    legend = [
        "bits per byte", "* this text", ": nine runs in ten", f"+ {MUCH_TEXT:g} times the text",
        *(["o measured"] if measured else []),
    ]  # fmt: skip
    return [", ".join(legend), *lines, axis, " " * 10 + under]


# ---------------------------------------------------------------- the page


def outlook_section(outlook: Outlook) -> str:
    """The chart and the table of a run's page."""
    own, more = outlook.curves
    tokens = [time * outlook.tokens for time in _CURVE_TIMES]
    measured = [each for each in outlook.evaluations if each.tokens >= tokens[0] / 2]
    curves = [
        Curve(tokens, [each.low for each in own], "c0 faint", "low"),
        Curve(tokens, [each.high for each in own], "c0 faint", "high"),
        Curve(tokens, [each.bits for each in own], "c0", "predicted"),
        Curve(tokens, [each.bits for each in more], "c2", f"{MUCH_TEXT:g} times the text"),
        Curve([each.tokens for each in measured], [each.bits for each in measured], "c1", "held-out", dots=True),
    ]
    title = "Bits per byte at the end of a shorter or longer run"
    plot = Plot(title, curves, "training tokens", width=WIDE[0], height=300)
    narrow = dataclasses.replace(plot, width=NARROW[0], height=NARROW[1])
    legend = "".join(
        f"<span>{color_key(color)}{name}</span>"
        for color, name in (
            (0, "predicted, and nine runs in ten"),
            (2, f"{MUCH_TEXT:g} times the text"),
            (1, "held-out"),
        )
    )
    head = "".join(f"<th>{escape(cell)}</th>" for cell in ("text", *outlook.lengths()))
    rows = "".join(
        f"<tr><td>× {factor:g}: {format_count(factor * outlook.unique_tokens)} tokens</td>"
        + "".join(f"<td>{cell.bits:.3f} ({cell.low:.3f} to {cell.high:.3f})</td>" for cell in row)
        + "</tr>"
        for factor, row in zip(FACTORS, outlook.cells, strict=True)
    )
    return (
        "<h2>What more training or more text would change</h2>"
        f'<p class="soft">Predicted from {escape(outlook.basis)}.</p>'
        f'<figure class="wide"><h3>{escape(title)}</h3><div class="legend">{legend}</div>'
        f'<div class="axis-all">{draw(plot)}<div class="narrow">{draw(narrow)}</div></div></figure>'
        f'<div class="scroll"><table class="numbers"><thead><tr>{head}</tr></thead>{rows}</table></div>'
    )

"""Draws line charts as SVG. Colors come from the style sheet of the page around them."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from html import escape

from llamita.console import format_count, format_seconds

MAX_POINTS = 700  # of a curve; a screen shows no more
LEFT, RIGHT, TOP, BOTTOM = 58, 14, 14, 40  # margins around the plotting area
SECOND_STEPS = (1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14400, 21600, 43200, 86400)


@dataclasses.dataclass(frozen=True)
class Curve:
    """A line through points, sorted by x.

    style: classes of the style sheet; name: page.js shows the values of named curves under the
    pointer.
    """

    xs: Sequence[float]
    ys: Sequence[float]
    style: str
    name: str = ""
    dots: bool = False


@dataclasses.dataclass(frozen=True)
class Note:
    """A vertical line at an x, with a label."""

    x: float
    text: str


@dataclasses.dataclass(frozen=True)
class Plot:
    """A chart. x_format and y_format: keys of FORMATS; y_limits: visible range, default all."""

    title: str
    curves: Sequence[Curve]
    x_label: str
    x_format: str = "count"
    y_format: str = "number"
    width: int = 460
    height: int = 230
    is_log: bool = False
    from_zero: bool = False
    y_limits: tuple[float, float] | None = None
    notes: Sequence[Note] = ()


def _number(value: float) -> str:
    return f"{value:.4g}" if value == 0 or 1e-3 <= abs(value) < 1e5 else f"{value:.2g}"


def _count(value: float) -> str:
    return format_count(value).replace(".0", "") if value >= 10 else f"{value:.2g}"


FORMATS: dict[str, Callable[[float], str]] = {
    "number": _number,
    "count": _count,
    "seconds": format_seconds,
    "percent": lambda value: f"{100 * value:.3g} %",
}


class _Scale:
    """Maps values to pixels, linearly or logarithmically."""

    def __init__(self, low: float, high: float, start: float, end: float, is_log: bool) -> None:
        self.low, self.high, self.start, self.end, self.is_log = low, high, start, end, is_log

    def __call__(self, value: float) -> float:
        low, high = self.low, self.high
        if self.is_log:
            value, low, high = math.log(max(value, 1e-300)), math.log(low), math.log(high)
        return self.start + (value - low) / (high - low) * (self.end - self.start)

    @property
    def attributes(self) -> str:
        """What page.js needs to map pixels back to values."""
        return f"{self.low!r} {self.high!r} {self.start} {self.end} {int(self.is_log)}"


def draw(plot: Plot) -> str:
    """The chart as an <svg> element, or a sentence if there is nothing to draw."""
    curves = [curve for curve in plot.curves if len(curve.xs) > 0]
    if not curves:
        return '<p class="nothing">no values yet</p>'
    is_log = plot.is_log and all(y > 0 for curve in curves for y in curve.ys)
    low, high = plot.y_limits or _limits(curves, is_log, plot.from_zero)
    x_low = min(0.0, min(min(curve.xs) for curve in curves))
    x_high = max(max(curve.xs) for curve in curves) or 1.0
    x = _Scale(x_low, x_high, LEFT, plot.width - RIGHT, False)
    y = _Scale(low, high, plot.height - BOTTOM, TOP, is_log)
    inner = f"{LEFT} {TOP - 4} {plot.width - LEFT - RIGHT + 4} {plot.height - TOP - BOTTOM + 4}"
    left, top, width, height = inner.split()
    parts = [
        f'<svg class="plot" viewBox="0 0 {plot.width} {plot.height}" role="img" aria-label="{escape(plot.title)}" '
        f'data-x="{x.attributes}" data-y="{y.attributes}" data-formats="{plot.x_format} {plot.y_format}">',
        *_axes(plot, x, y),
        f'<svg x="{left}" y="{top}" width="{width}" height="{height}" viewBox="{inner}">',  # clips
        *(_note(note, x, plot.height) for note in plot.notes),
        *(_curve(curve, x, y) for curve in curves),
        "</svg></svg>",
    ]
    return "".join(parts)


def _limits(curves: Sequence[Curve], is_log: bool, from_zero: bool) -> tuple[float, float]:
    values = [value for curve in curves for value in curve.ys]
    low, high = min(values), max(values)
    if is_log:
        return (low / 1.15, high * 1.15)
    margin = 0.06 * (high - low) or 0.05 * abs(high) or 1.0
    return (0.0 if from_zero and low >= 0 else low - margin), high + margin


def _axes(plot: Plot, x: _Scale, y: _Scale) -> list[str]:
    bottom, right, parts = plot.height - BOTTOM, plot.width - RIGHT, []
    y_ticks = log_ticks(y.low, y.high) if y.is_log else ticks(y.low, y.high, max(4, plot.height // 60))
    for value in y_ticks:
        at = y(value)
        parts.append(f'<path class="grid" d="M{LEFT} {at:.1f}H{right}"/>')
        label = escape(FORMATS[plot.y_format](value))
        parts.append(f'<text class="tick" x="{LEFT - 8}" y="{at + 4:.1f}" text-anchor="end">{label}</text>')
    count = max(4, plot.width // 110)
    x_ticks = second_ticks(x.high, count) if plot.x_format == "seconds" else ticks(x.low, x.high, count)
    for value in x_ticks:
        at, label = x(value), escape(FORMATS[plot.x_format](value))
        parts.append(f'<path class="grid" d="M{at:.1f} {bottom}v4"/>')
        anchor = "end" if at > right - 12 else "middle"
        parts.append(f'<text class="tick" x="{at:.1f}" y="{bottom + 17}" text-anchor="{anchor}">{label}</text>')
    parts.append(f'<path class="axis" d="M{LEFT} {bottom}H{right}"/>')
    parts.append(
        f'<text class="label" x="{(LEFT + right) / 2}" y="{plot.height - 6}" text-anchor="middle">'
        f"{escape(plot.x_label)}</text>"
    )
    return parts


def _note(note: Note, x: _Scale, height: int) -> str:
    at = x(note.x)
    side, shift = ("end", -5) if at > (x.start + x.end) / 2 else ("start", 5)
    return (
        f'<path class="note" d="M{at:.1f} {TOP}V{height - BOTTOM}"/>'
        f'<text class="note" x="{at + shift:.1f}" y="{TOP + 10}" text-anchor="{side}">{escape(note.text)}</text>'
    )


def _curve(curve: Curve, x: _Scale, y: _Scale) -> str:
    xs, ys = thin(curve.xs, curve.ys)
    pairs = [(x(a), y(b)) for a, b in zip(xs, ys, strict=True)]
    points = " ".join(f"{a:.1f},{b:.2f}" for a, b in pairs)
    name = f' data-name="{escape(curve.name)}"' if curve.name else ""
    drawn = f'<polyline class="{curve.style}"{name} points="{points}"/>'
    if curve.dots or len(pairs) == 1:
        drawn += "".join(f'<circle class="{curve.style}" cx="{a:.1f}" cy="{b:.2f}" r="3.2"/>' for a, b in pairs)
    return drawn


def thin(xs: Sequence[float], ys: Sequence[float]) -> tuple[Sequence[float], Sequence[float]]:
    """At most MAX_POINTS points that keep every peak: the lowest and highest of each bucket."""
    if len(xs) <= MAX_POINTS:
        return xs, ys
    buckets, kept = MAX_POINTS // 2 - 1, [0]
    for bucket in range(buckets):
        first, last = len(xs) * bucket // buckets, len(xs) * (bucket + 1) // buckets
        inside = range(first, last)
        kept += sorted({min(inside, key=ys.__getitem__), max(inside, key=ys.__getitem__)} - {0, len(xs) - 1})
    kept.append(len(xs) - 1)
    return [xs[index] for index in kept], [ys[index] for index in kept]


def ticks(low: float, high: float, count: int) -> list[float]:
    """About `count` round values from low to high, 1, 2 or 5 times a power of ten apart."""
    rough = (high - low) / count
    power: float = 10.0 ** math.floor(math.log10(rough))
    step = min((power * factor for factor in (1, 2, 5, 10)), key=lambda step: abs(math.log(step / rough)))
    return [index * step for index in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


def second_ticks(high: float, count: int) -> list[float]:
    """About `count` values from 0 to high that are round as h:mm:ss."""
    fitting = [step for step in SECOND_STEPS if high / step <= count + 1]
    step = fitting[0] if fitting else 86400 * math.ceil(high / 86400 / count)
    if high < 1:
        return [0.0]
    return [float(index * step) for index in range(math.floor(high / step + 1e-9) + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """Powers of ten from low to high, with multiples until there are at least three values."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for factors in ((1,), (1, 2, 5), (1, 2, 3, 5, 7), (1, 2, 3, 4, 5, 6, 7, 8, 9)):
        found = [factor * 10.0**power for power in decades for factor in factors if low <= factor * 10.0**power <= high]
        if len(found) >= 3:
            return found
    return found or [low, high]

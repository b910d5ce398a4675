"""Writes docs/images/training.svg, the curve that README shows, from a run directory.

    python docs/write_training_chart.py runs/mine "Ten minutes on two CPU cores"

It is the chart of report.html with its own colors, so that it reads well on light and dark pages.
"""

from __future__ import annotations

import argparse
from html import escape
from pathlib import Path

from llamita.report.history import read_history
from llamita.report.svg_chart import Curve, Plot, draw

PICTURE = Path(__file__).with_name("images") / "training.svg"
WIDTH, HEIGHT, TITLE_HEIGHT = 720, 260, 34
STYLE = """
text { font: 12px system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; fill: #667085; }
text.title { font-size: 14px; font-weight: 600; }
.grid, .axis { stroke: #98a2b3; stroke-opacity: .35; fill: none; }
.axis { stroke-opacity: .8; }
polyline { fill: none; stroke-width: 2; stroke-linejoin: round; }
polyline.train { stroke: #2f7fd0; stroke-opacity: .75; }
polyline.val { stroke: #d9573f; stroke-width: 2.5; }
circle.val { fill: #d9573f; }
text.train { fill: #2f7fd0; } tspan.val { fill: #d9573f; }
@media (prefers-color-scheme: dark) {
  text { fill: #a7b0be; }
  polyline.train { stroke: #6aaaf0; } text.train { fill: #6aaaf0; }
  polyline.val { stroke: #f2836f; } circle.val, tspan.val { fill: #f2836f; }
}
"""


def picture(run: Path, title: str) -> str:
    """The SVG: bits per byte of training and held-out text over the tokens seen."""
    history = read_history(run)
    train, val = history.series("train", "bpb", "tokens"), history.series("eval", "bpb", "tokens")
    curves = [Curve(*train, "train"), Curve(*val, "val", dots=True)]
    chart = draw(Plot(title, curves, "tokens seen", width=WIDTH, height=HEIGHT))
    placed = chart.replace("<svg ", f'<svg y="{TITLE_HEIGHT}" width="{WIDTH}" height="{HEIGHT}" ', 1)
    last = f"{val[1][-1]:.3f}" if val[1] else ""
    trained = "training, half from the teacher" if history.config.get("teacher") else "training"
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{HEIGHT + TITLE_HEIGHT}" '
        f'viewBox="0 0 {WIDTH} {HEIGHT + TITLE_HEIGHT}"><style>{STYLE}</style>'
        f'<text class="title" x="58" y="20">{escape(title)}</text>'
        f'<text class="train" x="{WIDTH - 14}" y="20" text-anchor="end">'
        f'{trained}<tspan class="val" dx="14">held-out: {last} bits per byte</tspan></text>'
        f"{placed}</svg>\n"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description="Write docs/images/training.svg from a run directory.")
    parser.add_argument("run", type=Path, help="run directory of llamita train")
    parser.add_argument("title", help="title of the picture")
    parser.add_argument("--out", type=Path, default=PICTURE)
    arguments = parser.parse_args()
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(picture(arguments.run, arguments.title), encoding="utf-8")


if __name__ == "__main__":
    main()

"""The grid around the planner's choice: its widths, and flags that `llamita train` accepts."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from llamita.cli.command import parse
from llamita.config import TrainConfig
from llamita.training.planner import WIDTHS

ROOT = Path(__file__).resolve().parents[3]
sys.path.insert(0, str(ROOT / "benchmarks"))

from planner_grid import neighbors, train_flags  # noqa: E402


@pytest.mark.parametrize(
    ("width", "around"),
    [(WIDTHS[0], WIDTHS[:3]), (WIDTHS[4], WIDTHS[3:6]), (WIDTHS[-1], WIDTHS[-3:])],
)
def test_three_widths_of_the_ladder(width: int, around: tuple[int, ...]) -> None:
    assert neighbors(width) == list(around)


def test_flags_of_train() -> None:
    flags = train_flags(160, 256, 4096)
    config = parse(TrainConfig, ["--data", "store", "--out", "run", *flags], "llamita train")
    assert (config.layers, config.hidden, config.heads, config.context, config.micro_batch_size) == (4, 160, 5, 256, 16)

"""benchmarks/recipe.py: paired runs, their table, and going on after an interruption."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[3]
sys.path.insert(0, str(ROOT / "benchmarks"))

import recipe  # noqa: E402


@pytest.mark.parametrize(
    ("differences", "expected"),
    # two degrees of freedom: 1 - t / sqrt(t^2 + 2); one: 1 - 2 atan(t) / pi
    [
        ([1.0, 2.0, 3.0], 0.07418),
        ([-1.0, -2.0, -3.0], 0.07418),
        ([1.0, 3.0], 0.29517),
        ([-1.0, 1.0], 1.0),
        ([2.0, 2.0], 0.0),
    ],
)
def test_the_p_value_is_students(differences: list[float], expected: float) -> None:
    assert recipe.t_test(differences) == pytest.approx(expected, abs=1e-4)


def test_missing_runs_are_made_and_compared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    made: list[tuple[str, int]] = []

    def run(store: Path, options: str, seed: int) -> dict[str, Any]:
        if len(made) == 3 and not (tmp_path / "again").exists():
            raise KeyboardInterrupt
        made.append((options, seed))
        better = 0.98 + 0.001 * seed if "noise" in options else 1.0
        return {"bits_per_byte": (2.0 + seed) * better}

    monkeypatch.setattr(recipe, "run", run)
    arguments = [
        "recipe.py",
        str(tmp_path / "out"),
        "--store",
        "a",
        "--train",
        "--steps 5",
        "--candidate",
        "n=--noise 1",
    ]
    monkeypatch.setattr("sys.argv", [*arguments, "--seeds", "0,1,2"])
    with pytest.raises(KeyboardInterrupt):
        recipe.main()
    (tmp_path / "again").touch()
    assert recipe.main() == 0
    assert sorted(made) == sorted(
        (options, seed) for options in ("--steps 5", "--steps 5 --noise 1") for seed in range(3)
    )
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if line.startswith("a ")] == [
        f"{'a':16} {'baseline':20} 3 seeds  3.0000",
        f"{'a':16} {'n':20} 3 seeds  2.9437  -1.90 % ± 0.06  p = 0.001",
    ]

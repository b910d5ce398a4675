"""Grades of generated answers, and the progress of an evaluation in phases."""

from __future__ import annotations

from llamita.finetune.evaluate import grade
from llamita.progress import split_progress


def test_grades() -> None:
    assert grade("Paris.", "paris") == (True, True)
    assert grade("It is  Paris, of course", "Paris") == (False, True)
    assert grade("Oui !", "oui!") == (True, True) and grade("Why …", "…") == (False, False)
    assert grade("Parisian", "Paris") == (False, False) and grade("", "42") == (False, False)


def test_phases_share_the_progress_by_their_costs() -> None:
    seen: list[tuple[str, int, int]] = []
    first, second, nothing = split_progress(lambda *call: seen.append(call), (30, 10, 0))
    first("evaluating", 1, 4)
    first("evaluating", 4, 4)
    second("evaluating", 1, 2)
    second("evaluating", 2, 2)
    nothing("evaluating", 1, 1)
    assert seen == [("evaluating", done, 40) for done in (8, 30, 35, 40, 40)]

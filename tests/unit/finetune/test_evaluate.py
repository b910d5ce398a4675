"""Grades of generated answers."""

from __future__ import annotations

from llamita.finetune.evaluate import grade


def test_grades() -> None:
    assert grade("Paris.", "paris") == (True, True)
    assert grade("It is  Paris, of course", "Paris") == (False, True)
    assert grade("Parisian", "Paris") == (False, False) and grade("", "42") == (False, False)

"""Learning-rate schedules."""

from __future__ import annotations

import math

from llamita.training.schedule import Schedule


def test_wsd_rises_stays_and_falls_in_straight_lines() -> None:
    schedule = Schedule("wsd", warmup_fraction=0.1, decay_fraction=0.4, final_lr_fraction=0.1)
    expected = {0.0: 0.0, 0.05: 0.5, 0.1: 1.0, 0.6: 1.0, 0.8: 0.55, 1.0: 0.1, 1.5: 0.1}
    assert all(math.isclose(schedule.factor(at), value, abs_tol=1e-12) for at, value in expected.items())


def test_cosine_is_half_a_wave() -> None:
    schedule = Schedule("cosine", warmup_fraction=0.2, decay_fraction=0.4, final_lr_fraction=0.0)
    expected = {0.1: 0.5, 0.2: 1.0, 0.6: 0.5, 1.0: 0.0}
    assert all(math.isclose(schedule.factor(at), value, abs_tol=1e-12) for at, value in expected.items())


def test_linear_falls_from_the_end_of_the_warmup() -> None:
    schedule = Schedule("linear", warmup_fraction=0.2, decay_fraction=0.65, final_lr_fraction=0.5)
    expected = {0.1: 0.5, 0.2: 1.0, 0.6: 0.75, 1.0: 0.5}
    assert all(math.isclose(schedule.factor(at), value, abs_tol=1e-12) for at, value in expected.items())


def test_without_warmup_and_cooldown_the_peak_holds() -> None:
    assert [Schedule("wsd", 0.0, 0.0, 0.0).factor(at) for at in (0.0, 0.5, 1.0)] == [1.0, 1.0, 1.0]

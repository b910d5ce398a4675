"""Budgets of steps, epochs and minutes: when a run ends and when it is evaluated."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from llamita.config import TrainConfig
from llamita.training.budget import Budget, Progress


def make_config(**changes: Any) -> TrainConfig:
    return TrainConfig(data=Path("store"), out=Path("run"), **changes)


def test_steps_end_the_run_and_the_learning_rate_is_never_zero() -> None:
    budget = Budget(make_config(steps=4), tokens_per_step=10, epoch_tokens=1000, val_tokens=10)
    middles = [budget.midpoint(Progress(step=step)) for step in range(4)]
    assert middles == [0.125, 0.375, 0.625, 0.875]
    assert not budget.is_over(Progress(step=3)) and budget.is_over(Progress(step=4))


def test_epochs_are_counted_in_tokens() -> None:
    budget = Budget(make_config(epochs=1.5), tokens_per_step=10, epoch_tokens=100, val_tokens=10)
    assert not budget.is_over(Progress(step=9, tokens=149)) and budget.is_over(Progress(step=9, tokens=150))


def test_time_is_reserved_for_the_last_evaluation() -> None:
    budget = Budget(make_config(minutes=10), tokens_per_step=10, epoch_tokens=100, val_tokens=10)
    budget.plan_evaluations(20.0, Progress())
    budget.step_seconds = 2.0
    assert budget.training_seconds == 600 - 20 - 2 and budget.evaluations == 2
    assert not budget.is_over(Progress(step=1, seconds=576.9)) and budget.is_over(Progress(step=1, seconds=577.1))
    assert math.isclose(budget.progress(Progress(seconds=289)), 0.5)


def test_a_last_evaluation_that_takes_longer_than_others() -> None:
    budget = Budget(make_config(minutes=10), 10, epoch_tokens=100, val_tokens=10, last_evaluations=3.5)
    budget.plan_evaluations(20.0, Progress())
    assert budget.training_seconds == 600 - 70 - 2


def test_an_estimate_on_a_busy_machine_is_repeated() -> None:
    budget = Budget(make_config(minutes=10), tokens_per_step=10, epoch_tokens=100, val_tokens=10)
    assert budget.wants_probe(Progress(step=1, seconds=1))
    budget.plan_evaluations(500.0, Progress(step=1, seconds=1))
    assert not budget.wants_probe(Progress(step=2, seconds=5)) and budget.wants_probe(Progress(step=3, seconds=45))
    budget.plan_evaluations(20.0, Progress(step=3, seconds=45))
    assert math.isclose(budget.progress(Progress(seconds=289)), 0.5)
    budget.note_evaluation(18.0, 1)
    assert not budget.wants_probe(Progress(seconds=570))


def test_more_time_is_reserved_for_the_last_evaluation_when_steps_become_slower() -> None:
    """Timed alone it took 20 s; then four other processes came."""
    budget = Budget(make_config(minutes=10), tokens_per_step=10, epoch_tokens=100, val_tokens=10)
    for seconds in [1.0] * 20:
        budget.note_step(seconds)
    budget.note_evaluation(20.0, 1)
    assert budget.training_seconds == 578
    for seconds in [5.0, 1.0, 1.0]:
        budget.note_step(seconds)
    assert budget.training_seconds == 578, "single slow steps do not count"
    for seconds in [4.0] * 15:
        budget.note_step(seconds)
    assert budget.training_seconds == 600 - 80 - 2
    for seconds in [100.0] * 15:
        budget.note_step(seconds)
    assert budget.training_seconds == 600 - 200 - 2, "at most a third"
    for seconds in [0.5] * 15:
        budget.note_step(seconds)
    assert budget.training_seconds == 578
    budget.note_evaluation(12.0, 2)
    for seconds in [1.0] * 15:
        budget.note_step(seconds)
    assert budget.training_seconds == 600 - 24 - 2, "compared with the pace before the last one"


def test_an_evaluation_before_the_first_step_is_compared_with_the_steps_after_it() -> None:
    budget = Budget(make_config(minutes=10), tokens_per_step=10, epoch_tokens=100, val_tokens=10)
    budget.plan_evaluations(30.0, Progress())
    for seconds in [9.0, *[2.0] * 14]:
        budget.note_step(seconds)
    assert budget.training_seconds == 568
    for seconds in [6.0] * 15:
        budget.note_step(seconds)
    assert budget.training_seconds == 600 - 90 - 2


def test_time_is_reserved_when_text_is_repeated() -> None:
    budget = Budget(make_config(minutes=10), 10, epoch_tokens=1000, val_tokens=10, reserved_seconds=8.0)
    assert budget.training_seconds == 598
    budget.update_forecast(Progress(step=1, tokens=1000, seconds=3.0))
    assert budget.training_seconds == 598, "too early to predict"
    budget.update_forecast(Progress(step=2, tokens=160, seconds=59.8))
    assert budget.training_seconds == 590, "1.6 epochs at this pace"
    budget.update_forecast(Progress(step=3, tokens=700, seconds=295.0))
    assert budget.training_seconds == 598, "1.4 epochs at this pace"
    budget.update_forecast(Progress(step=4, tokens=1500, seconds=650.0))
    assert budget.training_seconds == 590, "1.5 epochs are done"


def test_evaluations_cost_a_twentieth_of_the_run() -> None:
    budget = Budget(make_config(steps=100), tokens_per_step=1000, epoch_tokens=100, val_tokens=7500)
    assert budget.evaluations == 3  # 100,000 tokens trained, 2,500 an evaluation: 2 of them are 5 %
    due = [step for step in range(100) if budget.wants_evaluation(Progress(step=step), done=1 if step > 40 else 0)]
    assert due[0] == 34 and 67 in due and 66 not in due


def test_an_interval_of_steps_is_kept() -> None:
    budget = Budget(make_config(steps=100, eval_interval=7), tokens_per_step=1, epoch_tokens=1, val_tokens=1)
    assert [step for step in range(20) if budget.wants_evaluation(Progress(step=step), 0)] == [7, 14]

"""Decides from --minutes, --steps or --epochs when a run ends and when it is evaluated."""

from __future__ import annotations

import dataclasses
import math
from collections import deque
from statistics import median

from llamita.config import RunConfig
from llamita.training.generations import WHOLE, Stretch

MAX_EVALUATIONS = 10
EVALUATION_SHARE = 0.05  # of the training time, for the evaluations before the last one
FORWARD_SHARE = 1 / 3  # of the cost of a token in training
MIN_SAMPLE_SECONDS = 1.0  # for a sample, however late it is
MIN_CLOSING_SECONDS = 2.0  # for the last checkpoint and the report
REPEATED_EPOCHS = 1.5  # a run of this length or longer may memorize its text
FORECAST_SHARE = 0.05  # of the run: later the number of its epochs can be predicted
PROBE_SHARE = 0.1  # of the run between two estimates of an evaluation's time, before the first one
MAX_EVALUATION_SHARE = 0.1  # of --minutes, for one evaluation: the first and the last may take it
MEASURE_SHARE = 0.02  # of --minutes, to measure how long an evaluation takes
MAX_ESTIMATE_SHARE = 1 / 3  # of --minutes, reserved for an estimated evaluation
MAX_VAL_TOKENS = 10_000_000  # evaluated at a time: more would not change the first three digits
PACE_STEPS = 15  # the pace is their median


@dataclasses.dataclass
class Progress:
    """How far a run is, earlier runs that it resumes included.

    seconds: since the command began, pauses included. training_seconds: without pauses. first_step,
    first_tokens, first_second: where the schedule begins. They change only when a run is trained
    longer.
    """

    step: int = 0
    tokens: int = 0
    seconds: float = 0.0
    first_second: float = 0.0
    training_seconds: float = 0.0
    first_step: int = 0
    first_tokens: int = 0


class Budget:
    """Measures the progress of a generation in [0, 1]: in time with --minutes, else in steps, else in
    tokens. Most runs have one generation, which takes all of it.

    reserved_seconds: the part of --minutes reserved for what follows REPEATED_EPOCHS or more.
    last_evaluations: how many times as long the last evaluation takes.
    """

    def __init__(
        self,
        config: RunConfig,
        tokens_per_step: int,
        epoch_tokens: int,
        val_tokens: int,
        reserved_seconds: float = 0.0,
        last_evaluations: float = 1.0,
    ) -> None:
        self.minutes, self.steps, self.tokens_per_step = config.minutes, config.steps, tokens_per_step
        self.tokens = None if config.epochs is None else max(1, round(config.epochs * epoch_tokens))
        self.eval_interval = config.eval_interval
        self.repeated_tokens = REPEATED_EPOCHS * epoch_tokens
        self.reserved_seconds, self.reserves_time = reserved_seconds, False
        self.last_evaluations = last_evaluations
        self.evaluation_seconds = 0.0
        self.saving_seconds = 0.0  # of the last checkpoint; only the end of a run waits for it
        self.step_seconds = 0.0
        self._steps: deque[float] = deque(maxlen=PACE_STEPS)  # seconds
        self._pace = 0.0  # seconds per step when an evaluation was timed; 0: not known yet
        self.next_probe = 0.0  # progress; infinite after a whole evaluation
        self.evaluations, self.val_tokens = 1, val_tokens
        self.begin(Progress())

    def begin(self, at: Progress, stretch: Stretch = WHOLE) -> None:
        """Begin a generation, whose schedule begins at `at`.first_step, and choose the number of its
        evaluations."""
        self.stretch = stretch
        if self.minutes is not None:
            if self.evaluation_seconds > 0:
                self.evaluations = self._affordable_evaluations(self.evaluation_seconds)
            return
        _, length, _ = self._lengths(at)  # in tokens costs are the same on every machine
        tokens = length if self.steps is None else length * self.tokens_per_step
        self.evaluations = affordable_evaluations(tokens / max(1.0, self.val_tokens * FORWARD_SHARE))

    def _affordable_evaluations(self, seconds: float) -> int:
        """With --minutes: the evaluations of the generation, if each takes so long."""
        assert self.minutes is not None
        return affordable_evaluations(self.stretch.of_run * self.minutes * 60 / max(seconds, 1e-3))

    def _lengths(self, at: Progress) -> tuple[float, float, float]:
        """How much of the schedule is done, how long it is, and how long the next step is: in
        seconds with --minutes, else in steps, else in tokens."""
        share = self.stretch.of_rest
        if self.minutes is not None:
            length = share * (self.training_seconds - at.first_second)
            return at.seconds - at.first_second, max(1e-3, length), self.step_seconds
        if self.steps is not None:
            return at.step - at.first_step, max(1, round(share * (self.steps - at.first_step))), 1
        assert self.tokens is not None
        return at.tokens - at.first_tokens, max(1, round(share * (self.tokens - at.first_tokens))), self.tokens_per_step

    @property
    def is_timed(self) -> bool:
        return self.minutes is not None

    @property
    def training_seconds(self) -> float:
        """--minutes without the time reserved for what follows the last step."""
        assert self.minutes is not None
        whole = self.minutes * 60
        return max(0.1 * whole, whole - self._reserved_evaluation_seconds - self._closing_seconds)

    @property
    def _reserved_evaluation_seconds(self) -> float:
        """The time of the last evaluation, if steps are slower now than when one was timed."""
        assert self.minutes is not None
        seconds = self.last_evaluations * self.evaluation_seconds
        if not self._pace or seconds == 0.0:
            return seconds
        slower = max(1.0, median(self._steps) / self._pace)
        return min(max(seconds, MAX_ESTIMATE_SHARE * self.minutes * 60), slower * seconds)

    @property
    def _closing_seconds(self) -> float:
        """Reserved for what follows the last evaluation."""
        return MIN_CLOSING_SECONDS + self.saving_seconds + (self.reserved_seconds if self.reserves_time else 0.0)

    def note_step(self, seconds: float) -> None:
        """Note how long a step took. All processes must pass the same time."""
        self.step_seconds = seconds
        self._steps.append(seconds)
        if not self._pace and len(self._steps) == PACE_STEPS:
            self._pace = median(self._steps)

    def sample_deadline(self, seconds: float) -> float:
        """When a sample that starts at `seconds` must end.

        With --minutes it may take EVALUATION_SHARE of them. A deadline, not a number of tokens:
        a busy machine can suddenly generate much more slowly.
        """
        if self.minutes is None:
            return math.inf
        whole = self.minutes * 60
        return max(seconds + MIN_SAMPLE_SECONDS, min(seconds + EVALUATION_SHARE * whole, whole - self._closing_seconds))

    def update_forecast(self, at: Progress) -> None:
        """Predict whether the run will see its text repeatedly.

        All processes must pass the same time, so that they predict the same.
        """
        if self.minutes is not None and (done := self.progress(at)) >= FORECAST_SHARE:
            expected = at.first_tokens + (at.tokens - at.first_tokens) / min(done, 1.0)
            self.reserves_time = expected >= self.repeated_tokens

    def wants_probe(self, at: Progress) -> bool:
        """Whether to estimate an evaluation's time, or estimate again: the machine may be busy."""
        return self.is_timed and self.progress(at) >= self.next_probe

    def plan_evaluations(self, evaluation_seconds: float, at: Progress) -> None:
        """With --minutes, choose the number of evaluations from an estimate of their time."""
        self.evaluation_seconds = evaluation_seconds
        if self.minutes is not None:
            self.evaluation_seconds = min(evaluation_seconds, MAX_ESTIMATE_SHARE * self.minutes * 60)
            self.evaluations = self._affordable_evaluations(evaluation_seconds)
            self.next_probe = self.progress(at) + PROBE_SHARE
        self._restart_pace()

    def note_evaluation(self, seconds: float, done: int) -> None:
        """Replace estimates by the time of a whole evaluation, its sample and checkpoint included.

        done: evaluations so far.
        """
        self.evaluation_seconds, self.next_probe = seconds, math.inf
        self._restart_pace()
        if self.minutes is not None:
            self.evaluations = max(done + 1, min(self.evaluations, self._affordable_evaluations(seconds)))

    def _restart_pace(self) -> None:
        """An evaluation was timed: the pace is that of the steps before it, or else after it."""
        self._pace = median(self._steps) if len(self._steps) == PACE_STEPS else 0.0

    def progress(self, at: Progress) -> float:
        """The share of the schedule that is done; 1 or more at its end."""
        done, length, _ = self._lengths(at)
        return done / length

    def run_progress(self, at: Progress) -> float:
        """The same of the run."""
        return self.stretch.run_progress(self.progress(at))

    def midpoint(self, at: Progress) -> float:
        """The progress in the middle of the next step, where the learning rate is never 0."""
        done, length, step = self._lengths(at)
        return done / length + 0.5 * step / length

    def is_over(self, at: Progress) -> bool:
        """Whether the generation ends here. With --minutes: half of the next step would be too late."""
        return at.step > at.first_step and (self.midpoint(at) if self.is_timed else self.progress(at)) >= 1

    def wants_evaluation(self, at: Progress, done: int) -> bool:
        """Whether an evaluation is due, besides the one at the end. done: evaluations so far."""
        if at.step == at.first_step:
            return False
        if self.eval_interval is not None:
            return at.step % self.eval_interval == 0
        return self.progress(at) >= (done + 1) / self.evaluations

    def seconds_left(self, at: Progress) -> float:
        """The estimated time until the last step of the run ends."""
        if self.minutes is not None:
            return max(0.0, self.training_seconds - at.seconds)
        done = self.progress(at)
        return (at.seconds - at.first_second) * (1.0 / self.stretch.of_rest - done) / done if done > 0 else 0.0

    def describe_schedule(self, at: Progress) -> str:
        """The stretch that the schedule covers, such as "steps 400 to 800"."""
        if self.minutes is not None:
            return f"minutes {at.seconds / 60:.3g} to {self.minutes:g}"
        if self.steps is not None:
            return f"steps {at.first_step:,} to {self.steps:,}"
        assert self.tokens is not None
        return f"{at.first_tokens:,} to {self.tokens:,} tokens"


def affordable_evaluations(run_cost: float) -> int:
    """The last evaluation, and as many as EVALUATION_SHARE of the run pays for.

    run_cost: of the run, in evaluations.
    """
    return min(MAX_EVALUATIONS, 1 + int(EVALUATION_SHARE * run_cost))

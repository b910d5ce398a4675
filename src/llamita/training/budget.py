"""Turns minutes, steps or epochs into how far a run is, when it ends, and when it pauses to be evaluated."""

from __future__ import annotations

import dataclasses
import math

from llamita.config import RunConfig

MAX_EVALUATIONS = 10
EVALUATION_SHARE = 0.05  # of the training time, for the evaluations before the last one
FORWARD_SHARE = 1 / 3  # of what a token costs in training
SAMPLE_SECONDS = 1.0  # a sample may take so long, however late it is
CLOSING_SECONDS = 2.0  # the last save and report, at least
REPEATED_EPOCHS = 1.5  # from here on a run has seen much of its text more than once, and may know it by heart
PACE_SHARE = 0.05  # of the run, after which its pace says how many epochs it will see
PROBE_SHARE = 0.1  # of the run between two guesses at what an evaluation takes, until there has been one
GUESS_SHARE = 1 / 3  # of the minutes that a guess at what an evaluation takes may keep: it must not end the run


@dataclasses.dataclass
class Progress:
    """Where a run stands, over all resumptions. seconds: since the command began, pauses included; first_second: when
    the first step began; training_seconds: without pauses."""

    step: int = 0
    tokens: int = 0
    seconds: float = 0.0
    first_second: float = 0.0
    training_seconds: float = 0.0


class Budget:
    """Says how far a run is in [0, 1]: by time if it was given minutes, else by steps, else by tokens of epochs.

    reserved_seconds: to be kept of the minutes for what follows a run of REPEATED_EPOCHS or more.
    """

    def __init__(
        self,
        config: RunConfig,
        tokens_per_step: int,
        epoch_tokens: int,
        val_tokens: int,
        reserved_seconds: float = 0.0,
    ) -> None:
        self.minutes, self.steps, self.tokens_per_step = config.minutes, config.steps, tokens_per_step
        self.tokens = None if config.epochs is None else max(1, round(config.epochs * epoch_tokens))
        self.eval_interval = config.eval_interval
        self.repeated_tokens = REPEATED_EPOCHS * epoch_tokens
        self.reserved_seconds, self.reserves_time = reserved_seconds, False
        self.evaluation_seconds = 0.0
        self.saving_seconds = 0.0  # that writing the last checkpoint took: training does not wait for it, its end does
        self.step_seconds = 0.0
        self.next_probe = 0.0  # progress; infinite once an evaluation was timed
        self.evaluations = 1
        if self.minutes is None:  # counted in tokens, not seconds, so that the run is the same everywhere
            whole = self.tokens or (self.steps or 0) * tokens_per_step
            self.evaluations = _affordable(whole / max(1.0, val_tokens * FORWARD_SHARE))

    @property
    def is_timed(self) -> bool:
        return self.minutes is not None

    @property
    def training_seconds(self) -> float:
        """The minutes less what must follow the last step."""
        assert self.minutes is not None
        whole = self.minutes * 60
        return max(0.1 * whole, whole - self.evaluation_seconds - self._closing_seconds)

    @property
    def _closing_seconds(self) -> float:
        """For what follows the last evaluation."""
        return CLOSING_SECONDS + self.saving_seconds + (self.reserved_seconds if self.reserves_time else 0.0)

    def sample_deadline(self, seconds: float) -> float:
        """The second of the run by which a sample, begun at `seconds`, is to end: with minutes it may take
        EVALUATION_SHARE of them, and what the end needs is kept. A busy machine tells token by token so slowly that
        what it took before says little."""
        if self.minutes is None:
            return math.inf
        whole = self.minutes * 60
        return max(seconds + SAMPLE_SECONDS, min(seconds + EVALUATION_SHARE * whole, whole - self._closing_seconds))

    def update_forecast(self, at: Progress) -> None:
        """Guess by the pace so far whether the run will see its text more than once. With several processes: at a
        time that they agree on, so that all guess the same."""
        if self.minutes is not None and (done := self.progress(at)) >= PACE_SHARE:
            self.reserves_time = at.tokens >= self.repeated_tokens * min(done, 1.0)

    def wants_probe(self, at: Progress) -> bool:
        """Whether to guess (again: a busy machine may have misled the first guess) what an evaluation takes."""
        return self.is_timed and self.progress(at) >= self.next_probe

    def plan_evaluations(self, evaluation_seconds: float, at: Progress) -> None:
        """With minutes: as many evaluations as they allow when one takes so long, by a probe at this position."""
        self.evaluation_seconds = evaluation_seconds
        if self.minutes is not None:
            self.evaluation_seconds = min(evaluation_seconds, GUESS_SHARE * self.minutes * 60)
            self.evaluations = _affordable(self.minutes * 60 / max(evaluation_seconds, 1e-3))
            self.next_probe = self.progress(at) + PROBE_SHARE

    def note_evaluation(self, seconds: float, done: int) -> None:
        """An evaluation, the `done`-th, took so long, its sample and checkpoint included: no more guessing."""
        self.evaluation_seconds, self.next_probe = seconds, math.inf
        if self.minutes is not None:
            self.evaluations = max(done + 1, min(self.evaluations, _affordable(self.minutes * 60 / max(seconds, 1e-3))))

    def progress(self, at: Progress) -> float:
        """The share of the run that is done."""
        if self.minutes is not None:
            return (at.seconds - at.first_second) / max(self.training_seconds - at.first_second, 1e-3)
        if self.steps is not None:
            return at.step / self.steps
        assert self.tokens is not None
        return at.tokens / self.tokens

    def midpoint(self, at: Progress) -> float:
        """The progress in the middle of the coming step: the learning rate's, so that it is never 0 at either end."""
        if self.minutes is not None:
            half = 0.5 * self.step_seconds / max(self.training_seconds - at.first_second, 1e-3)
        elif self.steps is not None:
            half = 0.5 / self.steps
        else:
            assert self.tokens is not None
            half = 0.5 * self.tokens_per_step / self.tokens
        return self.progress(at) + half

    def is_over(self, at: Progress) -> bool:
        """Whether another step would go too far: with minutes, by more than half of itself."""
        if self.minutes is not None:
            return at.step > 0 and at.seconds + 0.5 * self.step_seconds >= self.training_seconds
        return self.progress(at) >= 1.0

    def wants_evaluation(self, at: Progress, done: int) -> bool:
        """Whether the run, `done` evaluations old, is to be evaluated here (beside at its end)."""
        if at.step == 0:
            return False
        if self.eval_interval is not None:
            return at.step % self.eval_interval == 0
        return self.progress(at) >= (done + 1) / self.evaluations

    def seconds_left(self, at: Progress) -> float:
        """Until the end of the last step."""
        if self.minutes is not None:
            return max(0.0, self.training_seconds - at.seconds)
        done = self.progress(at)
        return at.seconds * (1.0 - done) / done if done > 0 else 0.0


def _affordable(whole: float) -> int:
    """Evaluations in a run that costs as much as `whole` of them: EVALUATION_SHARE of it, and the last one."""
    return min(MAX_EVALUATIONS, 1 + int(EVALUATION_SHARE * whole))

"""Measures training: tokens per second, model FLOPs utilization (MFU), time of an evaluation."""

from __future__ import annotations

import time
from collections import deque

import torch

from llamita.model.device import Event, record_event, synchronize
from llamita.training.budget import MAX_EVALUATION_SHARE, MAX_VAL_TOKENS, MEASURE_SHARE
from llamita.training.distributed import Ranks
from llamita.training.task import Task

MIN_TIMED_TOKENS = 2048  # of the smallest part of the held-out data that is timed
MAX_QUEUED_STEPS = 2  # on a GPU: enough to keep it busy, few enough for correct timings


class SpeedMeter:
    """Measures from the last mark on."""

    def __init__(self, flops_per_token: float, peak_flops: float | None) -> None:
        """peak_flops: of all processes together, per second; None if unknown."""
        self.flops_per_token, self.peak_flops = flops_per_token, peak_flops
        self.mark(0)

    def mark(self, tokens: int) -> None:
        """Start a new interval. tokens: trained on so far."""
        self.start, self.tokens = time.monotonic(), tokens

    def skip(self, seconds: float) -> None:
        """Exclude a pause within the interval."""
        self.start += seconds

    def elapsed(self) -> float:
        """Seconds since the mark, without pauses."""
        return time.monotonic() - self.start

    def tokens_per_second(self, tokens: int) -> float:
        """The mean since the mark. tokens: trained on so far."""
        return (tokens - self.tokens) / max(self.elapsed(), 1e-9)

    def mfu(self, tokens_per_second: float) -> float | None:
        """The fraction of peak_flops that this speed makes use of."""
        return None if self.peak_flops is None else tokens_per_second * self.flops_per_token / self.peak_flops


class StepQueue:
    """Limits the steps that a GPU has queued.

    Otherwise the clock would measure how fast steps are queued, and --minutes would run over.
    """

    def __init__(self) -> None:
        self._steps: deque[Event] = deque()

    def add(self, device: torch.device) -> None:
        """Note that a step was queued; wait until at most MAX_QUEUED_STEPS are left to do."""
        self._steps.append(record_event(device))
        if len(self._steps) > MAX_QUEUED_STEPS:
            self._steps.popleft().synchronize()


def max_val_share(task: Task) -> float:
    """The share of the held-out data that is evaluated where there is time for all of it."""
    return min(1.0, MAX_VAL_TOKENS / max(1, task.val_tokens))


def affordable_val_share(task: Task, ranks: Ranks, minutes: float) -> tuple[float, float]:
    """The share of the held-out data, up to max_val_share, whose evaluation fits into
    MAX_EVALUATION_SHARE of the minutes, and the seconds that it takes.

    A small part is evaluated, then larger ones, until the time can be trusted. Leaves the task
    limited to the last part.
    """
    share, allowed = min(1 / 64, MIN_TIMED_TOKENS / task.val_tokens), MAX_EVALUATION_SHARE * 60 * minutes
    most = max_val_share(task)
    if ranks.device.type != "cpu":  # warm up: load kernels, allocate memory, and finish queued steps
        task.limit_evaluation(share)
        task.evaluate()
        synchronize(ranks.device)
    while True:
        share = task.limit_evaluation(share)
        start = time.monotonic()
        task.evaluate()
        (seconds,) = ranks.broadcast_from_first(time.monotonic() - start)
        if most * seconds / share <= allowed:
            return most, most * seconds / share
        if seconds >= MEASURE_SHARE * 60 * minutes or share >= most:
            return share * allowed / seconds, allowed
        growth = MEASURE_SHARE * 60 * minutes / max(seconds, 1e-3)
        share = min(most, share * min(8.0, max(2.0, growth)))


def time_evaluation(task: Task, ranks: Ranks) -> float:
    """Estimate the seconds of an evaluation from a few batches of held-out data."""
    shares, num_batches = [1.0], 2 * ranks.world_size

    def note(stage: str, done: int, total: int) -> None:
        shares.append(done / total)

    if ranks.device.type != "cpu" and task.val_tokens > 0:
        # warm up: load kernels, allocate memory, and finish queued steps
        task.evaluate(num_batches=num_batches)
        synchronize(ranks.device)
    start = time.monotonic()
    if task.val_tokens > 0:
        task.evaluate(num_batches=num_batches, progress=note)
    return (time.monotonic() - start) / shares[-1]

"""THE loop: turns a task and a configuration into a run directory of checkpoints, metrics and a report.

A run directory:
    RUN/step-NNNNNNNN/   checkpoints (Hugging Face folders; adapters): the ones that the links mean
    RUN/latest, best     links: the last one, and the one that did best on what is held out
    RUN/run.json         the configuration, every default filled in, and what it was trained on
    RUN/metrics.jsonl    a line for every --log-interval steps, and one for each evaluation
    RUN/report.html      all of it as a page, written anew at each evaluation
    RUN/summary.json
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from llamita.checkpoint import (
    TrainingState,
    load_training_state,
    point_link,
    prune_checkpoints,
    step_directory,
)
from llamita.config import RunConfig, TrainConfig
from llamita.console import format_count, shorten
from llamita.errors import CheckpointError, TrainingError
from llamita.model.generate import bounded_seed
from llamita.report.summary import write_page, write_report
from llamita.run_directory import (
    describe_run,
    finished_message,
    finished_summary,
    mark_best,
    open_run,
    resumes_run,
)
from llamita.training.activation_checkpointing import checkpoint_activations
from llamita.training.budget import Budget, Progress
from llamita.training.checkpointer import Checkpointer
from llamita.training.distributed import Ranks, compute_type, full_tensor, start_ranks
from llamita.training.flops import peak_flops
from llamita.training.metrics import MetricsLog, check_trackers
from llamita.training.optimizer import build_optimizer, optimizer_tensors, restore_optimizer
from llamita.training.progress import TrainingDisplay
from llamita.training.schedule import Schedule
from llamita.training.signals import StopSignal
from llamita.training.task import Task

MAX_ROLLBACKS = 3  # a run that diverges again after so many is told what to change
ROLLBACK_LR_FACTOR = 0.5  # of the learning rates, from a rollback on
STEPS_AHEAD = 2  # that a GPU may have in its queue: enough to keep it busy, few enough for the clock to tell the truth
# What is said where memory is short: the CPU's allocator, CUDA's (pinned memory, NCCL), cuBLAS
MEMORY_ERRORS = ("can't allocate memory", "out of memory", "ALLOC_FAILED")


class DivergenceError(Exception):
    """A step went where no later one comes back from. The message: what was found, and where."""


@dataclasses.dataclass(frozen=True)
class TrainResult:
    """How a run ended. is_first: whether this process is the one that reports; summary: what summary.json holds;
    config: with every default filled in; was_finished: it had ended before, and nothing was done."""

    run: Path
    is_first: bool
    interrupted: bool
    summary: dict[str, Any]
    config: RunConfig
    was_finished: bool = False


@dataclasses.dataclass
class MetricsAccumulator:
    """What has been measured since the last line of metrics.jsonl."""

    nats: Tensor  # float64 scalar on the device: this process's share
    largest_norm: Tensor  # float32 scalar on the device
    tokens: int = 0  # of all processes
    steps: int = 0

    @classmethod
    def empty(cls, device: torch.device) -> MetricsAccumulator:
        return cls(torch.zeros((), dtype=torch.float64, device=device), torch.zeros((), device=device))


@contextlib.contextmanager
def memory_errors_named() -> Iterator[None]:
    """Turn the framework's "out of memory" into a TrainingError that says what to change."""
    try:
        yield
    except RuntimeError as error:
        if not isinstance(error, torch.OutOfMemoryError) and not any(words in str(error) for words in MEMORY_ERRORS):
            raise
        raise TrainingError(
            f"training failed: the memory is too small: {str(error).strip().splitlines()[0]}; "
            "lower --micro-batch-size and raise --grad-accum-steps, or use --activation-checkpointing, "
            "a shorter --context or a smaller model"
        ) from error


def run_task(
    config: RunConfig,
    make_task: Callable[[Ranks, Callable[[str], None]], Task],
    started: float,
    reserved_seconds: Callable[[Task], float] = lambda task: 0.0,
) -> TrainResult:
    """Train what make_task(ranks, how to say a line) builds in this process; if config.resume, go on with config.out.

    started: time.monotonic() when the command began, for --minutes; reserved_seconds: how much of them is for what the
    caller does after a run that saw its text more than once. SIGINT and SIGTERM save a checkpoint and return with
    `interrupted`. A run that is finished is left as it is. Raises what make_task raises, ConfigError, TrainingError,
    CheckpointError, OutputError.
    """
    check_trackers(config.track)
    with (
        start_ranks(config.device, config.threads) as ranks,
        memory_errors_named(),
        TrainingDisplay(enabled=ranks.is_first) as display,
    ):
        if ranks.is_first:  # told before minutes go into planning and compiling
            resumes_run(config, ranks.launch, restarted=ranks.restarts > 0)
        task = make_task(ranks, display.say)
        resuming, finished = _open(task, ranks)
        if finished:
            display.say(finished_message(task.config, finished))
            return TrainResult(config.out, ranks.is_first, False, finished, task.config, was_finished=True)
        trainer = Trainer(task, ranks, display, started, reserved_seconds(task), resuming=resuming)
        with trainer.checkpointer, StopSignal() as stop:
            interrupted = trainer.run(stop)
        return TrainResult(config.out, ranks.is_first, interrupted, trainer.close(interrupted), task.config)


def _open(task: Task, ranks: Ranks) -> tuple[bool, dict[str, Any]]:
    """Open the run directory: whether there is a checkpoint to resume from; its summary if it is finished, else {}."""
    config, found = task.config, (False, False)
    _check_alike(task, ranks)
    if ranks.is_first:
        rows_per_step = task.micro_batch_size * config.grad_accum_steps * ranks.world_size
        description = describe_run(
            config, task.model_config, rows_per_step, task.data_fingerprint(), ranks.launch, targets=task.targets
        )
        resuming = open_run(config, description, restarted=ranks.restarts > 0)
        found = resuming, resuming and bool(finished_summary(config.out))
    is_resumed, is_finished = ranks.broadcast_from_first(*found)
    return bool(is_resumed), finished_summary(config.out) if is_finished else {}


def _check_alike(task: Task, ranks: Ranks) -> None:
    """Raise TrainingError if the processes would compute different steps: gradients would be wrong, and nothing say
    so."""
    rows, is_wide = (
        task.micro_batch_size * task.config.grad_accum_steps,
        float(compute_type(task.config.dtype) == torch.float32),
    )
    least_rows, minus_most_rows, all_wide, minus_some_wide = ranks.min(rows, -rows, is_wide, -is_wide)
    if least_rows != -minus_most_rows:
        raise TrainingError(
            f"training in {ranks.world_size} processes failed: expected as many rows a step of each, found "
            f"{least_rows:g} to {-minus_most_rows:g}; say --micro-batch-size"
        )
    if all_wide != -minus_some_wide:
        raise TrainingError(
            f"training in {ranks.world_size} processes failed: expected one type of numbers, found bfloat16 and "
            "float32 (not every GPU has bfloat16); say --dtype"
        )


class Trainer:
    """A run: a task, and where it stands."""

    def __init__(
        self,
        task: Task,
        ranks: Ranks,
        display: TrainingDisplay,
        started: float,
        reserved_seconds: float,
        *,
        resuming: bool,
    ) -> None:
        self.task, self.ranks, self.display, self.started = task, ranks, display, started
        self.config = config = task.config
        self.model, self.batches = task.model, task.batches
        self.rows_per_step = task.micro_batch_size * config.grad_accum_steps * ranks.world_size
        tokens_per_step = round(self.rows_per_step * task.tokens_per_row)
        self._announce_task()
        task.initialize()
        task.prepare(display.evaluating)
        self.wants_fsdp = isinstance(config, TrainConfig) and config.fsdp
        self.sharded = self.wants_fsdp and ranks.world_size > 1
        self.parallel_loss = self._distribute()
        self.optimizer = build_optimizer(self.model, config, ranks)
        self.checkpointer = Checkpointer(ranks, sharded=self.sharded)
        self.schedule = Schedule(
            config.schedule, config.warmup_fraction, config.decay_fraction, config.final_lr_fraction
        )
        self.budget = Budget(config, tokens_per_step, task.epoch_tokens, task.val_tokens, reserved_seconds)
        self.position, self.pending = Progress(), MetricsAccumulator.empty(ranks.device)
        self.evaluations, self.evaluated_step, self.saved_step = 0, -1, -1
        self.val: float | None = None
        self.best: tuple[float, int] | None = None  # the objective on what is held out, step
        self.num_worse, self.is_late = 0, False  # evaluations since the best one; minutes over before the first step
        self.rollbacks, self.has_learned, self.is_ending = 0, False, False
        metrics_bytes = self._restore() if resuming else 0
        self.earlier_seconds = self.position.seconds
        self.queued_steps: deque[torch.cuda.Event] = deque()
        self.metrics = MetricsLog(config.out, metrics_bytes, config.track, display.say) if ranks.is_first else None
        self.peak_flops = peak_flops(ranks.device, compute_type(config.dtype))
        self.last_save = time.monotonic()
        self._mark_speed()
        self._announce_run()

    def _distribute(self) -> nn.Module:
        """The loss as all processes compute it together: each with the whole network, or with a shard of it."""
        if self.config.activation_checkpointing:
            checkpoint_activations(self.model)
        if not self.sharded:
            return self.ranks.parallel(self.task.loss)
        from llamita.training.fsdp import shard  # a second to load, for a few

        compute = compute_type(self.config.dtype)
        return shard(self.task.loss, self.model, self.ranks.device, compute)

    def _announce_task(self) -> None:
        self.display.table(self.task.plan_table())
        for line in self.task.describe():
            self.display.say(line)

    def _announce_run(self) -> None:
        task, config, say = self.task, self.config, self.display.say
        rows = f"{task.micro_batch_size} rows of {task.context}"
        if config.grad_accum_steps > 1:
            rows += f" × {config.grad_accum_steps} passes"
        if self.ranks.world_size > 1:
            rows += f" × {self.ranks.world_size} processes"
        tokens = self.rows_per_step * task.context
        others = "" if config.embedding_lr is None else f", of embeddings {config.embedding_lr:.2g}"
        say(f"tokens per step: {tokens} ({rows}); peak learning rate {config.learning_rate:.2g}{others}")
        if self.position.step > 0:
            say(f"resuming at step {self.position.step}")
        if self.wants_fsdp and not self.sharded:
            say("--fsdp: one process has nothing to share out", style="yellow")
        if task.val_tokens == 0:
            say("no held-out documents: nothing will be evaluated", style="yellow")

    # ---------------------------------------------------------------- the run

    def run(self, stop: StopSignal) -> bool:
        """Train to the end of the budget; True if it was interrupted (and saved) before."""
        while True:
            try:
                stopped = self._advance(stop)
            except DivergenceError as error:
                self._roll_back(error)
                continue
            if stopped is not None:
                return stopped

    def _advance(self, stop: StopSignal) -> bool | None:
        """What is due at this position, and then a step; at the end of the run: whether it was interrupted."""
        over, evaluate, save, stopped = self._decide(stop)
        if over and self.pending.steps > 0:
            self._log()
        if evaluate and not stopped:
            stopped = not self._evaluate(stop)
            if not stopped:
                return None  # it took time, and may have been the last one
        if save or stopped or over:
            self._save()
        if stopped or over:
            self.checkpointer.wait()
            return stopped
        self._step()
        if self.pending.steps >= self.config.log_interval:
            self._log()
        return None

    def _decide(self, stop: StopSignal) -> tuple[bool, bool, bool, bool]:
        """Whether the run is over, and whether to evaluate, to save, to stop: the first process decides for all."""
        self.checkpointer.check()
        at = self.position
        at.seconds, self.budget.saving_seconds, save, stopped = self.ranks.broadcast_from_first(
            self._seconds(),
            self.checkpointer.writing_seconds,
            time.monotonic() - self.last_save >= self.config.save_minutes * 60,
            stop.is_set,
        )
        if at.step == 0:
            at.first_second = at.seconds
            self._warn_if_late()
        self.budget.update_forecast(at)
        # once: the last evaluation may be over sooner than was kept for it, but the rates have fallen to nothing
        over = self.is_ending = (
            self.is_ending or self.budget.is_over(at) or 0 < self.config.early_stopping_patience <= self.num_worse
        )
        wanted = (
            over or self.budget.wants_evaluation(at, self.evaluations) or (at.step == 0 and self.task.evaluate_at_start)
        )
        evaluate = wanted and self.evaluated_step != at.step and self.task.val_tokens > 0
        return over, evaluate, bool(save), bool(stopped)

    def _warn_if_late(self) -> None:
        """Say that the minutes are over before the first step, where they are: a machine too busy, or too few."""
        if self.budget.is_timed and self.position.seconds >= self.budget.training_seconds and not self.is_late:
            self.is_late = True
            self.display.say(
                f"the start alone took {self.position.seconds:.0f} s: nothing is left of the {self.config.minutes:g} "
                "minutes to train in; give more", style="yellow",
            )  # fmt: skip

    def _step(self) -> None:
        """One step of the optimizer on rows_per_step rows."""
        config, at, start = self.config, self.position, time.monotonic()
        assert config.learning_rate is not None
        probe = self.budget.wants_probe(at)  # by the time that all processes agreed on
        progress = self.budget.midpoint(at)
        share = self.schedule.factor(progress) * ROLLBACK_LR_FACTOR**self.rollbacks
        self.learning_rate = config.learning_rate * share
        self.optimizer.scale_learning_rates(share)
        # dropout is a function of (seed, step, rank), so there is no random state to save
        torch.manual_seed(bounded_seed((config.seed * 1_000_003 + at.step) * 1_009 + self.ranks.rank))
        batches = [next(self.batches) for _ in range(config.grad_accum_steps)]
        num_targets = sum(batch.num_targets for batch in batches)
        for index, batch in enumerate(batches):
            self._backward(batch, num_targets, is_last=index == len(batches) - 1)
        norm = full_tensor(torch.nn.utils.clip_grad_norm_(self.model.parameters(), config.grad_clip or math.inf))
        self.pending.largest_norm = torch.maximum(self.pending.largest_norm, norm)
        at.step += 1
        if self.ranks.device.type == "cpu":  # elsewhere, looking at a number would make the device wait
            self._check_finite()
        self.optimizer.step()
        self.optimizer.zero_grad()
        at.tokens += num_targets
        self.pending.tokens += num_targets
        self.pending.steps += 1
        if self.ranks.device.type == "cpu":
            self._show()
        else:
            self._wait_for_earlier_steps()
        self.budget.step_seconds = (
            self.ranks.broadcast_from_first(time.monotonic() - start)[0] if self.budget.is_timed else 0.0
        )
        if probe:
            self._plan_evaluations()

    def _wait_for_earlier_steps(self) -> None:
        """Go on when all but the last STEPS_AHEAD steps are done: else the clock measures how fast a GPU is told what
        to do, and minutes run over by what is in its queue."""
        done = torch.cuda.Event()  # type: ignore[no-untyped-call]
        done.record()
        self.queued_steps.append(done)
        if len(self.queued_steps) > STEPS_AHEAD:
            self.queued_steps.popleft().synchronize()

    def _backward(self, batch: Any, num_targets: int, is_last: bool) -> None:
        """Add a pass's gradient of the mean loss over all num_targets of the step."""
        arrays = [self._to_device(array) for name, array in batch._asdict().items() if name != "num_targets"]
        with contextlib.nullcontext() if is_last else self.ranks.local_gradients(self.parallel_loss):
            nats = self.parallel_loss(*arrays)
            (nats * (self.ranks.world_size / num_targets)).backward()  # DDP takes the mean: back to the sum
        self.pending.nats += nats.detach()

    def _to_device(self, array: npt.NDArray[np.int64]) -> Tensor:
        tensor = torch.from_numpy(array)
        if self.ranks.device.type == "cuda":
            return tensor.pin_memory().to(self.ranks.device, non_blocking=True)
        return tensor

    # ---------------------------------------------------------------- divergence

    def _check_finite(self) -> None:
        """Raise DivergenceError if a gradient since the last line was not a number (then no process's was)."""
        norm = self.pending.largest_norm.item()
        if not math.isfinite(norm):
            raise DivergenceError(f"step {self.position.step}: expected a finite gradient, found {norm}")

    def _check_loss(self, loss: float) -> None:
        """Raise DivergenceError if a network that has learned is now a nat above the uniform baseline."""
        blind = math.log(self.task.model_config.vocab_size)
        if self.has_learned and loss > blind + 1:
            raise DivergenceError(
                f"step {self.position.step}: expected a loss below that of guessing blindly, {blind:.2f}, "
                f"found {loss:.2f}"
            )
        self.has_learned = self.has_learned or loss < blind

    def _roll_back(self, found: DivergenceError) -> None:
        """Back to the last good state, at half the learning rates, past the rows that led rolled_back.

        Raises TrainingError, which names what to change, after MAX_ROLLBACKS of them.
        """
        has_saved = self.saved_step >= 0
        if self.rollbacks == MAX_ROLLBACKS:
            saved = f"{self.config.out}/latest" if has_saved else "none yet"
            raise TrainingError(
                f"training diverged: {found}, after going back {self.rollbacks} times; start again with a "
                f"--learning-rate below {self.learning_rate:.2g} or a longer --warmup-fraction "
                f"(last checkpoint: {saved})"
            )
        rollbacks, rows, failed_step = self.rollbacks + 1, self.batches.state_dict(), self.position.step
        self.optimizer.clear()
        if has_saved:
            self._restore()
        else:
            self.task.initialize()
            self.position = Progress(seconds=self.position.seconds, first_second=self.position.first_second)
            self.pending, self.has_learned = MetricsAccumulator.empty(self.ranks.device), False
        self.rollbacks, self.is_ending = rollbacks, False
        self.batches.load_state_dict(rows)
        step, share = self.position.step, ROLLBACK_LR_FACTOR**rollbacks
        self.display.say(
            f"diverged at {found}; going back to step {step}, with {share:g} of the learning rate", style="yellow"
        )
        if self.metrics is not None:
            self.metrics.append({"kind": "rollback", "step": failed_step, "to_step": step, "reason": str(found),
                                 "learning_rate_factor": share})  # fmt: skip
        self._mark_speed()

    # ---------------------------------------------------------------- measuring

    def _seconds(self) -> float:
        """Since the command began, over all resumptions."""
        return self.earlier_seconds + time.monotonic() - self.started

    def _mark_speed(self) -> None:
        """Measure the speed from here on."""
        self.speed_start, self.speed_tokens = time.monotonic(), self.position.tokens

    def _speed(self) -> float:
        """Tokens a second since the last mark."""
        return (self.position.tokens - self.speed_tokens) / max(time.monotonic() - self.speed_start, 1e-9)

    def _end_interval(self) -> None:
        """Add the time since the last mark to the training time: a line of metrics, or a pause, follows."""
        self.position.training_seconds += time.monotonic() - self.speed_start
        self._mark_speed()

    def _mfu(self, speed: float) -> float | None:
        if self.peak_flops is None:
            return None
        return speed * self.task.flops_per_token / (self.peak_flops * self.ranks.world_size)

    def _show(self) -> None:
        """The bar; on several processes its loss is this one's share."""
        loss = self.pending.nats.item() * self.ranks.world_size / max(self.pending.tokens, 1)
        speed = self._speed()
        at = self.position
        at.seconds = self._seconds()
        self.display.update(
            min(1.0, self.budget.progress(at)),
            step=at.step,
            loss=loss,
            bits_per_byte=self.task.metrics(loss).get("bpb"),
            val=self.val,
            tokens_per_second=speed,
            targets=self.task.targets,
            mfu=self._mfu(speed),
            seconds_left=self.budget.seconds_left(at),
        )

    def _log(self) -> None:
        """Write what is pending as a line of metrics.jsonl."""
        self._check_finite()
        at, pending = self.position, self.pending
        loss = self.ranks.sum(pending.nats).item() / pending.tokens
        self._check_loss(loss)
        speed = self._speed()
        if self.ranks.device.type != "cpu":
            pending.nats.fill_(loss * pending.tokens / self.ranks.world_size)
            self._show()
        self._end_interval()
        if self.metrics is not None:
            self.metrics.append({
                "kind": "train",
                "step": at.step,
                "tokens": at.tokens,
                "epoch": at.tokens / self.task.epoch_tokens,
                "loss": loss,
                **self.task.metrics(loss),
                "learning_rate": self.learning_rate,
                "gradient_norm": pending.largest_norm.item(),
                "tokens_per_second": speed,
                "mfu": self._mfu(speed),
                "seconds": at.seconds,
            })  # fmt: skip
        self.pending = MetricsAccumulator.empty(self.ranks.device)

    # ---------------------------------------------------------------- evaluation

    def _plan_evaluations(self) -> None:
        """Time a few passes over held-out rows, and plan how many whole evaluations the minutes allow."""
        began, shares = time.monotonic(), [1.0]

        def note(share: float) -> bool:
            shares.append(share)
            return True

        num_batches = 2 * self.ranks.world_size
        if self.ranks.device.type == "cuda" and self.task.val_tokens > 0:
            self.task.evaluate(num_batches=num_batches)  # loads kernels, grows the allocator, ends what is queued
            torch.cuda.synchronize(self.ranks.device)
        start = time.monotonic()
        if self.task.val_tokens > 0:
            self.task.evaluate(num_batches=num_batches, advance=note)
        seconds = time.monotonic() - start
        self.speed_start += time.monotonic() - began  # no time of training
        self.budget.plan_evaluations(self.ranks.broadcast_from_first(seconds / shares[-1])[0], self.position)

    def _evaluate(self, stop: StopSignal) -> bool:
        """Judge all that is held out, tell a sample, save; False if a signal came between."""
        self._check_finite()
        self._end_interval()
        start, alone = time.monotonic(), self.ranks.world_size == 1

        def advance(share: float) -> bool:
            self.display.evaluating(share)
            return not (alone and stop.is_set)

        found = self.task.evaluate(advance=advance)
        if found is None:
            self._mark_speed()
            return False
        at = self.position
        self.val, self.evaluated_step = found.objective, at.step
        self.evaluations += at.step > 0
        seconds = time.monotonic() - start
        sample = self._sample()
        if self.metrics is not None:
            line = {"kind": "eval", "step": at.step, "tokens": at.tokens, **found.metrics}
            self.metrics.append({**line, "sample": sample, "evaluation_seconds": seconds, "seconds": at.seconds})
            self.display.say(f"step {at.step}: {found.summary}, {format_count(at.tokens)} {self.task.targets} seen")
            self.display.say(f"  {shorten(sample)}", style="dim")
            write_page([self.config.out])
        self._note_best(found.objective)
        self._save()
        whole_seconds = self.ranks.broadcast_from_first(time.monotonic() - start)[0]
        if at.step == 0:  # a whole evaluation tells more than a probe would
            self.budget.plan_evaluations(whole_seconds, at)
        self.budget.note_evaluation(whole_seconds, self.evaluations)
        self._mark_speed()
        return True

    def _sample(self) -> str:
        """What the task tells, in the first process; a sharded network tells it in all of them together."""
        until = self.budget.sample_deadline(self._seconds())
        if self.sharded:
            from llamita.training.fsdp import unsharded

            with unsharded(self.parallel_loss):
                return self.task.sample(lambda: self.ranks.broadcast_from_first(self._seconds())[0] < until)
        return self.task.sample(lambda: self._seconds() < until) if self.ranks.is_first else ""

    def _note_best(self, objective: float) -> None:
        """Keep in mind the best evaluation, and how many worse ones came after it."""
        if self.best is None or objective < self.best[0]:
            self.best, self.num_worse = (objective, self.position.step), 0
            return
        self.num_worse += 1
        repeats = self.position.tokens > self.task.epoch_tokens
        self.display.say(
            f"held-out was better at step {self.best[1]}: {self.best[0]:.4f}, kept as best"
            + ("; the model begins to memorize" if repeats else "")
            + ("; stopping early" if self.num_worse == self.config.early_stopping_patience else ""), style="yellow",
        )  # fmt: skip

    # ---------------------------------------------------------------- saving and resuming

    def _save(self) -> None:
        """Have a checkpoint of this step written, and the links pointed at it, while training goes on; nothing if it is
        saved already."""
        self.last_save = time.monotonic()
        if self.saved_step == self.position.step:
            return
        self._check_finite()
        self._end_interval()
        nats = self.ranks.sum(self.pending.nats.clone()).item()
        self.saved_step = self.position.step
        run, best = self.config.out, self.best
        checkpoint = step_directory(run, self.saved_step)

        def write(weights: Mapping[str, Tensor], state: TrainingState) -> None:
            if not checkpoint.is_dir():
                self.task.save(checkpoint, weights, state)
            point_link(run, "latest", checkpoint)
            if best is not None:
                mark_best(run, step_directory(run, best[1]))
            prune_checkpoints(run)

        weights = {name: weight for name, weight in self.model.named_parameters() if weight.requires_grad}
        values = self._state_values(nats, 0 if self.metrics is None else self.metrics.num_bytes)
        self.checkpointer.save(checkpoint, weights, optimizer_tensors(self.optimizer, self.model), values, write)
        self.last_save = time.monotonic()
        self._mark_speed()

    def _state_values(self, pending_nats: float, metrics_bytes: int) -> dict[str, Any]:
        at = self.position
        at.seconds = self._seconds()
        return {
            "position": dataclasses.asdict(at),
            "batches": self.batches.state_dict(),
            "pending": {
                "nats": pending_nats,
                "largest_norm": self.pending.largest_norm.item(),
                "tokens": self.pending.tokens,
                "steps": self.pending.steps,
            },
            "evaluations": self.evaluations,
            "evaluated_step": self.evaluated_step,
            "val": self.val,
            "best": self.best,
            "num_worse": self.num_worse,
            "rollbacks": self.rollbacks,
            "has_learned": self.has_learned,
            "metrics_bytes": metrics_bytes,
        }

    def _restore(self) -> int:
        """Take up the latest checkpoint's weights and state; returns the length of metrics.jsonl at that time."""
        run, device = self.config.out, self.ranks.device
        self.checkpointer.wait()
        self.ranks.wait()  # the checkpoint is there, for all processes
        self.task.load_weights(run)
        state = load_training_state(run)
        tensors = state.tensors
        if self.sharded or state.shards is not None:
            from llamita.training.fsdp import reshard_optimizer_state

            tensors = reshard_optimizer_state(state, self.model)
        restore_optimizer(self.optimizer, self.model, tensors)
        try:
            values, pending = state.values, state.values["pending"]
            self.position = Progress(**values["position"])
            self.batches.load_state_dict(values["batches"])
            nats = pending["nats"] if self.ranks.is_first else 0.0
            self.pending = MetricsAccumulator(
                torch.tensor(nats, dtype=torch.float64, device=device),
                torch.tensor(pending["largest_norm"], device=device),
                pending["tokens"],
                pending["steps"],
            )
            self.evaluations, self.evaluated_step = values["evaluations"], values["evaluated_step"]
            self.val, self.num_worse = values["val"], values["num_worse"]
            self.rollbacks, self.has_learned = values["rollbacks"], values["has_learned"]
            self.best = None if values["best"] is None else (values["best"][0], values["best"][1])
            metrics_bytes = int(values["metrics_bytes"])
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(f"cannot resume {run}: training/state.json is damaged: {error!r}") from error
        self.saved_step = self.position.step
        if self.best is not None and self.ranks.is_first:
            mark_best(run, step_directory(run, self.best[1]))
        return metrics_bytes

    # ---------------------------------------------------------------- the end

    def close(self, interrupted: bool) -> dict[str, Any]:
        """Write the report; returns the summary."""
        at, config = self.position, self.config
        at.seconds = self._seconds()
        speed = at.tokens / max(at.training_seconds, 1e-9)
        summary = {
            "run": str(config.out),
            "finished": not interrupted,
            "steps": at.step,
            "tokens": at.tokens,
            "epochs": at.tokens / self.task.epoch_tokens,
            "tokens_per_step": self.rows_per_step * self.task.context,
            "seconds": at.seconds,
            "objective": self.task.objective,
            "targets": self.task.targets,
            "val": self.val,
            "best": None if self.best is None else self.best[0],
            "best_step": None if self.best is None else self.best[1],
            "tokens_per_second": speed,
            "saving_seconds": self.checkpointer.stalled_seconds,  # training stood still
            "mfu": self._mfu(speed),
            "num_parameters": self.task.model_config.num_parameters,
            "model": dataclasses.asdict(self.task.model_config),
            "threads": torch.get_num_threads(),
            "processes": self.ranks.world_size,
        }
        if self.ranks.is_first:
            write_report(config.out, summary)
        if self.metrics is not None:
            self.metrics.close()
        return summary

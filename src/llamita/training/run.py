"""Runs a task from start to end in a run directory.

A run directory:
    RUN/step-NNNNNNNN/   checkpoints (Hugging Face folders or adapters) that a link points at
    RUN/latest, best     links: the last checkpoint, and the best one on held-out data
    RUN/teacher          a link to the checkpoint that teaches a later generation
    RUN/run.json         the configuration with all defaults filled in, and a fingerprint of the data
    RUN/metrics.jsonl    a line every --log-interval steps, and one per evaluation
    RUN/report.html      all of it as a page, updated at each evaluation
    RUN/summary.json     the result
    RUN/run.lock         names the process that trains; it ends with that process
"""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from llamita.config import RunConfig
from llamita.errors import TrainingError
from llamita.run_directory import (
    continued,
    describe_run,
    extended_at,
    finished_message,
    finished_summary,
    lock_run,
    open_run,
    resumes_run,
)
from llamita.tokenizer.gguf import gguf_obstacle
from llamita.training.budget import MIN_CLOSING_SECONDS
from llamita.training.distributed import Ranks, compute_type, start_ranks
from llamita.training.memory import is_out_of_memory
from llamita.training.metrics_log import check_trackers
from llamita.training.progress import TrainingDisplay
from llamita.training.signals import StopSignal
from llamita.training.task import Task
from llamita.training.trainer import Trainer

# From gloo's messages; NCCL's errors are DistErrors.
LOST_PROCESS_ERRORS = ("gloo/transport", "Connection closed by peer", "Connection reset by peer")

MIN_TRAINING_SHARE = 0.2  # of --minutes

C = TypeVar("C", bound=RunConfig)


@dataclasses.dataclass(frozen=True)
class TrainResult:
    """The end of a run.

    is_first: this process reports and saves. summary: the content of summary.json. config: with
    all defaults filled in. was_finished: the run had ended before, and nothing was done.
    """

    run: Path
    is_first: bool
    interrupted: bool
    summary: dict[str, Any]
    config: RunConfig
    was_finished: bool = False


def run_task(
    config: C,
    make_task: Callable[[C, Ranks, Callable[[str], None]], Task],
    started: float | None,
    reserved_seconds: Callable[[Task], float] = lambda task: 0.0,
) -> TrainResult:
    """Train make_task(config, ranks, say), where say prints a line; continue config.out if
    config.resume.

    A continued run gets options from run.json (run_directory.continued); a larger limit trains it
    longer. started: time.monotonic() when the command began, for --minutes; a new run whose minutes
    are over before it has begun is refused. Without it the minutes begin now.
    reserved_seconds: the part of --minutes that the caller needs after a run that saw its text
    repeatedly. SIGINT and SIGTERM save a checkpoint and return with `interrupted`. A finished run
    is not changed. Raises what make_task raises, ConfigError, TrainingError, CheckpointError, OutputError.
    """
    check_trackers(config.track)
    begun = time.monotonic()
    with (
        start_ranks(config.device, config.threads) as ranks,
        explain_lost_process(),
        explain_out_of_memory(),
        TrainingDisplay(enabled=ranks.is_first) as display,
        contextlib.ExitStack() as stack,
    ):
        # fail before minutes go into planning and compiling
        continues = ranks.is_first and resumes_run(config, ranks.launch, restarted=ranks.restarts > 0)
        if ranks.is_first:
            stack.enter_context(lock_run(config.out))
        if ranks.broadcast_from_first(continues)[0]:
            config = continued(config, ranks.world_size)
            if config.threads is not None:
                torch.set_num_threads(config.threads)  # start_ranks takes that back
        task = make_task(config, ranks, display.say)
        if started is None:
            started = begun
        elif not config.resume:
            _check_minutes(task.config.minutes, ranks.broadcast_from_first(time.monotonic() - started)[0])
        resuming, extended, finished = _open(task, ranks)
        if finished:
            display.say(finished_message(task.config, finished))
            return TrainResult(config.out, ranks.is_first, False, finished, task.config, was_finished=True)
        display.table(task.plan_table())
        for line in task.describe():
            display.say(line)
        trainer = Trainer(
            task, ranks, display, started, reserved_seconds(task), resuming=resuming, extended_at=extended
        )
        _announce(trainer)
        with trainer.checkpointer, contextlib.closing(trainer.batches), freeze_garbage(), StopSignal() as stop:
            interrupted = trainer.run(stop)
        return TrainResult(config.out, ranks.is_first, interrupted, trainer.close(interrupted), task.config)


@contextlib.contextmanager
def freeze_garbage() -> Iterator[None]:
    """Exclude all objects that exist from garbage collection: PyTorch's modules make a full one take
    up to half a second, in the middle of a step."""
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def _check_minutes(minutes: float | None, startup_seconds: float) -> None:
    """Raise TrainingError if the start leaves less than MIN_TRAINING_SHARE of the minutes."""
    if minutes is not None and startup_seconds >= (1 - MIN_TRAINING_SHARE) * 60 * minutes - MIN_CLOSING_SECONDS:
        needed = math.ceil(10 * 2 * (startup_seconds + MIN_CLOSING_SECONDS) / 60) / 10
        raise TrainingError(
            f"cannot train: --minutes {minutes:g}: the start alone took {startup_seconds:.0f} s, and the end takes "
            f"{MIN_CLOSING_SECONDS:.0f} s; give at least --minutes {needed:g}"
        )


@contextlib.contextmanager
def explain_out_of_memory() -> Iterator[None]:
    """Turn PyTorch's out-of-memory errors into a TrainingError that says what to change."""
    try:
        yield
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        raise TrainingError(
            f"training failed: out of memory: {str(error).strip().splitlines()[0]}; lower --micro-batch-size and "
            "raise --grad-accum-steps, or use --activation-checkpointing, a shorter --context or a smaller model"
        ) from error


@contextlib.contextmanager
def explain_lost_process() -> Iterator[None]:
    """Turn PyTorch's errors about a process that is gone into a TrainingError."""
    try:
        yield
    except RuntimeError as error:
        if not isinstance(error, dist.DistError) and not any(text in str(error) for text in LOST_PROCESS_ERRORS):
            raise
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise TrainingError(
            "training stopped: lost the connection to another process of this run; see that process's messages. "
            f"torchrun --max-restarts starts all of them again, or do so with --resume ({reason[:200]})"
        ) from error


def _open(task: Task, ranks: Ranks) -> tuple[bool, int, dict[str, Any]]:
    """Open the run directory.

    Returns whether to resume from a checkpoint, `extended_at`, and the summary of a finished run,
    else {}.
    """
    config, found = task.config, (False, -1, False)
    _check_same_step(task, ranks)
    if ranks.is_first:
        rows_per_step = task.micro_batch_size * config.grad_accum_steps * ranks.world_size
        description = describe_run(
            config, task.model_config, rows_per_step, task.data_fingerprint(), ranks.launch, targets=task.targets
        )
        resuming = open_run(config, description, restarted=ranks.restarts > 0)
        found = resuming, extended_at(config.out), resuming and bool(finished_summary(config.out))
    is_resumed, extended, is_finished = ranks.broadcast_from_first(*found)
    return bool(is_resumed), round(extended), finished_summary(config.out) if is_finished else {}


def _announce(trainer: Trainer) -> None:
    task, config, say = trainer.task, trainer.config, trainer.display.say
    rows = f"{task.micro_batch_size} row{'s' * (task.micro_batch_size != 1)} of {task.context}"
    if config.grad_accum_steps > 1:
        rows += f" × {config.grad_accum_steps} passes"
    if trainer.ranks.world_size > 1:
        rows += f" × {trainer.ranks.world_size} processes"
    tokens = trainer.rows_per_step * task.context
    others = "" if config.embedding_lr is None else f", of embeddings {config.embedding_lr:.2g}"
    say(f"tokens per step: {tokens:,} ({rows}); peak learning rate {config.learning_rate:.2g}{others}")
    at = trainer.state.progress
    if at.step > 0:
        say(f"resuming at step {at.step}")
    if at.step == at.first_step > 0:
        change = trainer.schedule.describe(trainer.state.first_factor)
        say(f"the schedule is laid anew over {trainer.budget.describe_schedule(at)}: the learning rate {change}")
    if config.fsdp and not trainer.sharded:
        say("--fsdp has no effect in a single process", style="yellow")
    if obstacle := gguf_obstacle(task.tokenizer):
        say(f"a model with this tokenizer cannot be exported as .gguf: {obstacle}", style="yellow")
    if task.val_tokens == 0:
        say("no held-out documents: nothing will be evaluated", style="yellow")


def _check_same_step(task: Task, ranks: Ranks) -> None:
    """Raise TrainingError if the processes' steps differ, which would make the gradients wrong."""
    rows = task.micro_batch_size * task.config.grad_accum_steps
    is_float32 = float(compute_type(task.config.dtype) == torch.float32)
    min_rows, minus_max_rows, all_float32, minus_any_float32 = ranks.min(rows, -rows, is_float32, -is_float32)
    if min_rows != -minus_max_rows:
        raise TrainingError(
            f"training in {ranks.world_size} processes failed: expected the same number of rows per step in each, "
            f"found {min_rows:g} to {-minus_max_rows:g}; set --micro-batch-size"
        )
    if all_float32 != -minus_any_float32:
        raise TrainingError(
            f"training in {ranks.world_size} processes failed: expected the same data type in each, found bfloat16 "
            "and float32 (not every GPU supports bfloat16); set --dtype"
        )

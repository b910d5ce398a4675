"""Trains a task: steps, evaluations, checkpoints, and rollbacks when training diverges."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
import time
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from llamita.checkpoint import (
    TrainingState,
    load_training_state,
    point_link,
    prune_checkpoints,
    step_directory,
)
from llamita.console import format_count, format_seconds
from llamita.errors import CheckpointError
from llamita.json_file import check_object
from llamita.model.generate import bounded_seed
from llamita.progress import Cancelled
from llamita.progress import Progress as ReportedProgress
from llamita.report.summary import write_page, write_report
from llamita.run_directory import json_values, mark_best
from llamita.training.activation_checkpointing import checkpoint_activations
from llamita.training.budget import Budget, Progress
from llamita.training.checkpointer import Checkpointer
from llamita.training.distributed import Ranks, compute_type, full_tensor, reshard_all
from llamita.training.divergence import (
    DivergenceError,
    check_gradient,
    check_loss,
    check_rollbacks,
    learning_rate_factor,
)
from llamita.training.flops import peak_flops
from llamita.training.generations import stretch_of
from llamita.training.metrics_log import MetricsLog
from llamita.training.optimizer import build_optimizer, optimizer_tensors, restore_optimizer
from llamita.training.prefetch import StepStream
from llamita.training.progress import TrainingDisplay
from llamita.training.schedule import AVERAGED_FINAL_RATE, Schedule
from llamita.training.signals import StopSignal
from llamita.training.speed import SpeedMeter, StepQueue, affordable_val_share, max_val_share, time_evaluation
from llamita.training.task import Task
from llamita.training.trainer_state import STATE, MetricsAccumulator, TrainerState
from llamita.training.weight_rounding import START as ROUNDING_START
from llamita.training.weight_rounding import WeightRounding


@dataclasses.dataclass(frozen=True)
class Decision:
    """What to do before the next step. The same in all processes."""

    end: bool  # the budget is used up, or early stopping: evaluate, save and return
    evaluate: bool
    save: bool  # --save-minutes have passed
    stop: bool  # a signal came: save and return


class Trainer:
    """Trains a task. All processes call the same methods in the same order."""

    def __init__(
        self,
        task: Task,
        ranks: Ranks,
        display: TrainingDisplay,
        started: float,
        reserved_seconds: float,
        *,
        resuming: bool,
        extended_at: int = -1,
    ) -> None:
        """started, reserved_seconds: see `run_task`. resuming: from the latest checkpoint.
        extended_at: the step at which the run got its length, -1 for the first one."""
        self.task, self.ranks, self.display, self.started = task, ranks, display, started
        self.config = config = task.config
        task.initialize()
        for line in task.prepare(display.show_stage):
            display.say(line, style="yellow")
        self.model = task.model
        # a CPU has no idle time in which batches could be made
        self.batches = StepStream(task.batches, config.grad_accum_steps, ranks.device, ahead=ranks.device.type != "cpu")
        self.rows_per_step = task.micro_batch_size * config.grad_accum_steps * ranks.world_size
        tokens_per_step = round(self.rows_per_step * task.tokens_per_row)
        self.sharded = config.fsdp and ranks.world_size > 1
        self.parallel_loss = self._distribute()
        self.rounding = None if config.qat is None else WeightRounding(self.model, task.model_config, config.qat)
        self.optimizer = build_optimizer(self.model, config, ranks)
        self.checkpointer = Checkpointer(ranks, sharded=self.sharded)
        self.averaged_fraction = config.averaged_fraction or 0.0
        final_rate = AVERAGED_FINAL_RATE if self.averaged_fraction else 0.0
        self.schedule = Schedule(
            config.schedule, config.warmup_fraction, config.decay_fraction,
            final_rate if config.final_lr_fraction is None else config.final_lr_fraction,
        )  # fmt: skip
        val_tokens = round(max_val_share(task) * task.val_tokens)
        self.budget = Budget(
            config, tokens_per_step, task.epoch_tokens, val_tokens, reserved_seconds, task.last_evaluations
        )
        self.state = TrainerState(MetricsAccumulator.empty(ranks.device))
        self._begin_budget()
        if not resuming and not self.budget.is_timed:
            self._limit_evaluation_tokens()
        self.is_ending = False  # Decision.end was true once: it stays true until a rollback
        self.has_warned = False  # that --minutes were over before the first step
        self.step_queue = StepQueue()
        self.extended_at = extended_at
        if resuming:
            self._restore()
        elif (begun := task.optimizer_state()) is not None:
            self._restore_optimizer(begun)
        self.earlier_seconds = self.state.progress.seconds
        self.metrics = None
        if ranks.is_first:
            self.metrics = MetricsLog(config.out, self.state.metrics_bytes, config.track, display.say)
        peak = peak_flops(ranks.device, compute_type(config.dtype))
        self.speed = SpeedMeter(task.flops_per_token, None if peak is None else peak * ranks.world_size)
        self.last_save = time.monotonic()
        self._mark_speed()

    def _distribute(self) -> nn.Module:
        """The loss as all processes compute it together, each with the whole model or a shard."""
        if self.config.activation_checkpointing:
            checkpoint_activations(self.model)
        if not self.sharded:
            return self.ranks.parallel(self.task.loss)
        from llamita.training.fsdp import gathered, shard  # takes a second to load

        self.task.gathered = functools.partial(gathered, self.task.loss, self.model)
        return shard(self.task.loss, self.model, self.ranks.device, compute_type(self.config.dtype))

    # ---------------------------------------------------------------- the run

    def run(self, stop: StopSignal) -> bool:
        """Train until the budget is used up; True if a signal interrupted the run before."""
        if self.task.evaluate_at_start and self._must_limit():
            self._limit_evaluation()
        while True:
            try:
                interrupted = self._advance(stop)
            except DivergenceError as error:
                self._roll_back(error)
                continue
            if interrupted is not None:
                return interrupted

    def _advance(self, stop: StopSignal) -> bool | None:
        """Do what is due, then a step. At the end of the run: whether it was interrupted."""
        due = self._decide(stop)
        if due.end and self.state.pending.steps > 0:
            self._log()
        interrupted = due.stop
        if due.evaluate and not interrupted:
            if self._evaluate_finished(stop) if due.end else self._evaluate(stop):
                return None  # decide again: that took time
            interrupted = True
        if due.end and not interrupted and self.task.val_tokens == 0:
            self._finish_without_evaluation()
        if due.save or due.end or interrupted:
            self._save()
        if due.end and not interrupted and self.state.generation + 1 < self.task.generations:
            self._begin_generation()
            return None
        if due.end or interrupted:
            self.checkpointer.wait()
            return interrupted
        self._step()
        if self.state.pending.steps >= self.config.log_interval:
            self._log()
        return None

    def _decide(self, stop: StopSignal) -> Decision:
        """Clocks and signals differ between processes: the first process's count."""
        self.checkpointer.check()
        state, at = self.state, self.state.progress
        at.seconds, self.budget.saving_seconds, save, stopped = self.ranks.broadcast_from_first(
            self._seconds(),
            self.checkpointer.writing_seconds,
            time.monotonic() - self.last_save >= self.config.save_minutes * 60,
            stop.is_set,
        )
        if at.step == at.first_step:
            self._start_clock()
        self.budget.update_forecast(at)
        # The last evaluation may take less time than was reserved for it, but training does not
        # go on after it: the learning rate has fallen to its end.
        stops_early = 0 < self.config.early_stopping_patience <= state.num_worse  # then the best checkpoint stays
        self.is_ending = self.is_ending or self.budget.is_over(at) or stops_early
        wanted = (
            self.is_ending
            or self.budget.wants_evaluation(at, state.evaluations)
            or (at.step == 0 and self.task.evaluate_at_start)
        )
        is_new = state.evaluated_step != at.step or (self.is_ending and not (state.is_finished or stops_early))
        evaluate = wanted and is_new and self.task.val_tokens > 0
        return Decision(self.is_ending, evaluate, bool(save), bool(stopped))

    def _start_clock(self) -> None:
        """Before the first step: note the time, and warn once if --minutes are over already."""
        at, budget = self.state.progress, self.budget
        at.first_second = at.seconds
        if budget.is_timed and at.seconds >= budget.training_seconds and not self.has_warned:
            self.has_warned = True
            self.display.say(
                f"startup took {at.seconds:.0f} s, which leaves nothing of --minutes {self.config.minutes:g} for "
                "training; allow more minutes", style="yellow",
            )  # fmt: skip

    # ---------------------------------------------------------------- generations

    def _begin_generation(self) -> None:
        """Go on with a new model, whose teacher is the best checkpoint so far."""
        state, run = self.state, self.config.out
        self.checkpointer.wait()
        taught = state.progress.step if state.best is None else state.best.step
        if self.ranks.is_first:
            point_link(run, "teacher", step_directory(run, taught))
        self.ranks.wait()
        state.begin_generation()
        self._learn_from_teacher()
        self.task.initialize()
        self.optimizer.clear()
        self.is_ending = False
        self._begin_budget()
        number, of = state.generation + 1, self.task.generations
        self.display.say(f"generation {number} of {of}: a new model, which learns from that of step {taught}")
        if self.metrics is not None:
            at = state.progress
            line = {"kind": "generation", "step": at.step, "tokens": at.tokens, "seconds": at.seconds}
            self.metrics.append({**line, "generation": number, "teacher_step": taught})
        self._mark_speed()

    def _learn_from_teacher(self) -> None:
        self.task.begin_generation(self.state.generation, self.config.out / "teacher")

    def _begin_budget(self) -> None:
        stretch = stretch_of(self.state.generation, self.task.generations, is_timed=self.budget.is_timed)
        self.budget.begin(self.state.progress, stretch)

    # ---------------------------------------------------------------- a step

    def _step(self) -> None:
        """One step of the optimizer on rows_per_step rows."""
        config, state, at, start = self.config, self.state, self.state.progress, time.monotonic()
        assert config.learning_rate is not None
        probe = self.budget.wants_probe(at)  # uses the time that _decide broadcast
        progress = self.budget.midpoint(at)
        factor = self.schedule.factor(progress, state.first_factor)
        factor *= learning_rate_factor(state.rollbacks)
        state.learning_rate = config.learning_rate * factor
        self.optimizer.scale_learning_rates(factor)
        # dropout depends only on (seed, step, rank): no random state to save
        torch.manual_seed(bounded_seed((config.seed * 1_000_003 + at.step) * 1_009 + self.ranks.rank))
        passes, num_targets = next(self.batches)
        with self._rounded_weights():
            for index, tensors in enumerate(passes):
                self._backward(tensors, num_targets, is_last=index == len(passes) - 1)
        norm = full_tensor(torch.nn.utils.clip_grad_norm_(self.model.parameters(), config.grad_clip or math.inf))
        state.pending.largest_norm = torch.maximum(state.pending.largest_norm, norm)
        at.step += 1
        if self.ranks.device.type == "cpu":  # a GPU would have to wait for the number
            self._check_gradient()
        self.optimizer.step()
        self.optimizer.zero_grad()
        if progress > 1.0 - self.averaged_fraction:
            state.averaged_steps += 1
            self.optimizer.average(1 / state.averaged_steps)
        at.tokens += num_targets
        state.pending.tokens += num_targets
        state.pending.steps += 1
        if self.ranks.device.type == "cpu":
            self._show()
        else:
            self.step_queue.add(self.ranks.device)
        if self.budget.is_timed:
            self.budget.note_step(self.ranks.broadcast_from_first(time.monotonic() - start)[0])
        if probe:
            if self._must_limit():
                self._limit_evaluation()
            else:
                self._plan_evaluations()

    def _backward(self, tensors: tuple[Tensor, ...], num_targets: int, is_last: bool) -> None:
        """Add a pass's gradient of the mean loss over all num_targets of the step."""
        arrays = [tensor.to(self.ranks.device, non_blocking=True) for tensor in tensors]
        with contextlib.nullcontext() if is_last else self.ranks.local_gradients(self.parallel_loss):
            nats = self.parallel_loss(*arrays)
            (nats * (self.ranks.world_size / num_targets)).backward()  # DDP divides by world_size
        self.state.pending.nats += nats.detach()

    def _rounded_weights(self) -> contextlib.AbstractContextManager[None]:
        """With --qat, near the end of the run: weights as the model file will hold them."""
        at = self.state.progress
        is_last = self.state.generation + 1 == self.task.generations
        if self.rounding is None or not is_last or self.budget.midpoint(at) < ROUNDING_START:
            return contextlib.nullcontext()
        return self.rounding.applied(at.step)

    # ---------------------------------------------------------------- divergence

    def _check_gradient(self) -> None:
        """Raise DivergenceError if a gradient since the last line of metrics was not finite."""
        check_gradient(self.state.pending.largest_norm.item(), self.state.progress.step)

    def _check_loss(self, loss: float) -> None:
        """Raise DivergenceError if the model had learned and is now worse than guessing."""
        state, uniform_loss = self.state, math.log(self.task.model_config.vocab_size)
        if state.has_learned:
            check_loss(loss, state.progress.step, uniform_loss)
        state.has_learned = state.has_learned or loss < uniform_loss

    def _roll_back(self, error: DivergenceError) -> None:
        """Return to the last checkpoint, or to the beginning, with lower learning rates.

        The batches go on, so that the rows that led to divergence are not seen again. Raises
        TrainingError after MAX_ROLLBACKS rollbacks.
        """
        failed, rows = self.state, self.batches.state_dict()
        has_checkpoint = failed.saved_step >= 0
        latest = self.config.out / "latest" if has_checkpoint else None
        check_rollbacks(failed.rollbacks, error, failed.learning_rate, latest)
        self.optimizer.clear()
        if has_checkpoint:
            self._restore()
        else:
            self.task.initialize()
            start = Progress(seconds=failed.progress.seconds, first_second=failed.progress.first_second)
            self.state = TrainerState(MetricsAccumulator.empty(self.ranks.device), start)
            if (begun := self.task.optimizer_state()) is not None:
                self._restore_optimizer(begun)
        self.state.rollbacks, self.is_ending = failed.rollbacks + 1, False
        self.state.val_share = failed.val_share  # the task is still limited to it
        self.batches.load_state_dict(rows)
        step, factor = self.state.progress.step, learning_rate_factor(self.state.rollbacks)
        self.display.say(
            f"diverged at {error}; rolling back to step {step}, with {factor:g} of the learning rate", style="yellow"
        )
        if self.metrics is not None:
            self.metrics.append({
                "kind": "rollback",
                "step": failed.progress.step,
                "to_step": step,
                "reason": str(error),
                "learning_rate_factor": factor,
            })  # fmt: skip
        self._mark_speed()

    # ---------------------------------------------------------------- metrics

    def _seconds(self) -> float:
        """Since the command began, earlier runs that this one resumes included."""
        return self.earlier_seconds + time.monotonic() - self.started

    def _mark_speed(self) -> None:
        self.speed.mark(self.state.progress.tokens)

    def _end_interval(self) -> None:
        """Add the interval to the training time: a line of metrics, or a pause, follows."""
        self.state.progress.training_seconds += self.speed.elapsed()
        self._mark_speed()

    def _show(self) -> None:
        """Update the progress bar; with several processes the loss is this process's."""
        state, at = self.state, self.state.progress
        loss = state.pending.nats.item() * self.ranks.world_size / max(state.pending.tokens, 1)
        speed = self.speed.tokens_per_second(at.tokens)
        at.seconds = self._seconds()
        self.display.update(
            min(1.0, self.budget.run_progress(at)),
            step=at.step,
            loss=loss,
            bits_per_byte=self.task.metrics(loss).get("bpb"),
            val=state.val,
            tokens_per_second=speed,
            targets=self.task.targets,
            mfu=self.speed.mfu(speed),
            seconds_left=self.budget.seconds_left(at),
        )

    def _log(self) -> None:
        """Write the pending metrics as a line of metrics.jsonl."""
        self._check_gradient()
        state, at, pending = self.state, self.state.progress, self.state.pending
        loss = self.ranks.sum(pending.nats).item() / pending.tokens
        self._check_loss(loss)
        speed = self.speed.tokens_per_second(at.tokens)
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
                "learning_rate": state.learning_rate,
                "gradient_norm": pending.largest_norm.item(),
                "tokens_per_second": speed,
                "mfu": self.speed.mfu(speed),
                "seconds": at.seconds,
            })  # fmt: skip
        state.pending = MetricsAccumulator.empty(self.ranks.device)

    # ---------------------------------------------------------------- evaluation

    def _must_limit(self) -> bool:
        """Whether the time of an evaluation is unknown and matters."""
        is_first = self.state.evaluated_step < 0 and self.state.val_share == 1.0 and self.budget.next_probe == 0.0
        return self.budget.is_timed and is_first and self.task.val_tokens > 0

    def _limit_evaluation_tokens(self) -> None:
        """Without --minutes, evaluate at most MAX_VAL_TOKENS at a time."""
        share = max_val_share(self.task)
        if share < 1.0:
            self.state.val_share = self.task.limit_evaluation(share)
            self._say_limit("enough for three digits")

    def _say_limit(self, why: str) -> None:
        percent = f"{100 * self.state.val_share:.2g} %"
        self.display.say(f"evaluation: on {percent} of the held-out data, {why}", style="yellow")

    def _limit_evaluation(self) -> None:
        """With --minutes, choose the share of the held-out data that an evaluation has time for."""
        start, minutes = time.monotonic(), self.config.minutes
        assert minutes is not None
        share, seconds = affordable_val_share(self.task, self.ranks, minutes)
        self.state.val_share = share = self.task.limit_evaluation(share)
        if share < 1.0:
            self._say_limit(f"which takes {format_seconds(seconds)} of --minutes {minutes:g}")
        self.budget.plan_evaluations(seconds, self.state.progress)
        self.speed.skip(time.monotonic() - start)

    def _plan_evaluations(self) -> None:
        """Time a few batches of held-out data, and plan how many evaluations the minutes allow."""
        start = time.monotonic()
        seconds = time_evaluation(self.task, self.ranks)
        self.speed.skip(time.monotonic() - start)
        self.budget.plan_evaluations(self.ranks.broadcast_from_first(seconds)[0], self.state.progress)

    def _evaluate_finished(self, stop: StopSignal) -> bool:
        """The last evaluation, of the averaged weights and as the task leaves them."""
        self._check_gradient()
        self._end_interval()
        state, at = self.state, self.state.progress
        changes = contextlib.ExitStack()  # of the weights; close() takes them back
        if state.averaged_steps > 0:
            self._swap_averages()
            changes.callback(self._swap_averages)
        try:
            take_back = self.task.finish(self._cancelling(stop))
        except Cancelled:
            changes.close()
            self._mark_speed()
            return False
        self._mark_speed()
        best, step = state.best, at.step
        state.is_finished = True  # the evaluation saves it
        if take_back is not None:
            changes.callback(take_back)
            state.best = None
        elif state.averaged_steps == 0:
            state.is_finished = state.evaluated_step == step or self._evaluate(stop)
            return state.is_finished
        self._leave_checkpoint()
        if self._evaluate(stop):
            return True
        changes.close()
        state.best, at.step, state.is_finished = best, step, False
        return False

    def _finish_without_evaluation(self) -> None:
        """Without held-out data: leave the averaged weights to be saved."""
        if self.state.averaged_steps > 0 and not self.state.is_finished:
            self._swap_averages()
            self.state.is_finished = True
            self._leave_checkpoint()

    def _leave_checkpoint(self) -> None:
        """After a change of the weights: if the run was interrupted here before, the checkpoint of this
        step has the weights before the change, so the changed ones get a step of their own."""
        if self.state.saved_step == self.state.progress.step:
            self.state.progress.step += 1

    def _swap_averages(self) -> None:
        """Exchange the weights and their averages."""
        reshard_all(self.parallel_loss)
        self.optimizer.swap_averages()

    def _cancelling(self, stop: StopSignal) -> ReportedProgress:
        """Shows a stage; raises Cancelled after a signal. Several processes could not agree on that."""
        alone = self.ranks.world_size == 1

        def progress(stage: str, done: int, total: int) -> None:
            self.display.show_stage(stage, done, total)
            if alone and stop.is_set:
                raise Cancelled

        return progress

    def _evaluate(self, stop: StopSignal) -> bool:
        """Evaluate on all held-out data, sample, save; False if a signal interrupted it."""
        self._check_gradient()
        self._end_interval()
        start = time.monotonic()
        try:
            with self._rounded_weights():
                found = self.task.evaluate(progress=self._cancelling(stop))
        except Cancelled:
            self._mark_speed()
            return False
        seconds, at = time.monotonic() - start, self.state.progress
        # while the rate of a run that is trained longer is high again, held-out loss is worse than before
        counts = self.state.first_factor == 0 or self.budget.midpoint(at) > self.schedule.decay_start
        is_best = self.state.note_evaluation(found.objective, counts)
        sample = self._sample()
        if self.metrics is not None:
            line = {"kind": "eval", "step": at.step, "tokens": at.tokens, **found.metrics}
            self.metrics.append({**line, "sample": sample, "evaluation_seconds": seconds, "seconds": at.seconds})
            self.display.say(f"step {at.step}: {found.summary}, {format_count(at.tokens)} {self.task.targets} seen")
            self.display.show_sample(sample)
            write_page([self.config.out])
        if not is_best and self.state.num_worse > 0:
            self._warn_of_no_improvement()
        self._save()
        whole_seconds = self.ranks.broadcast_from_first(time.monotonic() - start)[0]
        if at.step == 0:  # more exact than a probe
            self.budget.plan_evaluations(whole_seconds, at)
        self.budget.note_evaluation(whole_seconds, self.state.evaluations)
        self._mark_speed()
        return True

    def _sample(self) -> str:
        """The task's sample, generated by rank 0, or with FSDP by all ranks together."""
        until = self.budget.sample_deadline(self._seconds())
        if self.sharded:
            from llamita.training.fsdp import unsharded

            with unsharded(self.parallel_loss):
                return self.task.sample(lambda: self.ranks.broadcast_from_first(self._seconds())[0] < until)
        return self.task.sample(lambda: self._seconds() < until) if self.ranks.is_first else ""

    def _warn_of_no_improvement(self) -> None:
        best, repeats = self.state.best, self.state.progress.tokens > self.task.epoch_tokens
        assert best is not None
        self.display.say(
            f"no improvement on held-out data since step {best.step}, the best with {best.objective:.4f}"
            + ("; the model begins to overfit" if repeats else "")
            + ("; stopping early" if self.state.num_worse == self.config.early_stopping_patience else ""),
            style="yellow",
        )

    # ---------------------------------------------------------------- checkpoints

    def _save(self) -> None:
        """Start writing a checkpoint in the background, unless this step has one."""
        self.last_save = time.monotonic()
        state, at = self.state, self.state.progress
        if state.saved_step == at.step:
            return
        self._check_gradient()
        self._end_interval()
        state.saved_step, at.seconds = at.step, self._seconds()
        state.metrics_bytes = 0 if self.metrics is None else self.metrics.num_bytes
        run, best, checkpoint = self.config.out, state.best, step_directory(self.config.out, at.step)

        def write(weights: Mapping[str, Tensor], training: TrainingState) -> None:
            if self.metrics is not None:
                self.metrics.sync()  # the checkpoint counts on its bytes
            if not checkpoint.is_dir():
                self.task.save(checkpoint, weights, training)
            point_link(run, "latest", checkpoint)
            if best is not None:
                mark_best(run, step_directory(run, best.step))
            prune_checkpoints(run)

        weights = {name: weight for name, weight in self.model.named_parameters() if weight.requires_grad}
        values = {"trainer": state.state_dict(self.ranks), "batches": self.batches.state_dict()}
        self.checkpointer.save(checkpoint, weights, optimizer_tensors(self.optimizer, self.model), values, write)
        self.last_save = time.monotonic()
        self._mark_speed()

    def _restore(self) -> None:
        """Load the latest checkpoint."""
        run = self.config.out
        self.checkpointer.wait()
        self.ranks.wait()  # until rank 0 has written it
        self.task.load_weights(run)
        training = load_training_state(run)
        where = str(run / "latest" / "training" / "state.json")
        values = check_object(training.values, STATE, where, CheckpointError)
        try:
            self.state = TrainerState.from_state_dict(values["trainer"], self.ranks)
            self.batches.load_state_dict(values["batches"])
        except ValueError as error:
            raise CheckpointError(f"cannot read {where}: {error}") from error
        state, peak = self.state, self.config.learning_rate
        assert peak is not None
        self._restore_optimizer(training)
        if state.progress.step == self.extended_at != state.progress.first_step:
            state.begin_schedule(state.learning_rate / peak / learning_rate_factor(state.rollbacks))
        if state.generation > 0:
            self._learn_from_teacher()
        self._begin_budget()
        if state.val_share < 1.0:
            self.task.limit_evaluation(state.val_share)
        if self.state.best is not None and self.ranks.is_first:
            mark_best(run, step_directory(run, self.state.best.step))

    def _restore_optimizer(self, training: TrainingState) -> None:
        tensors = training.tensors
        if self.sharded or training.shards is not None:
            from llamita.training.fsdp import reshard_optimizer_state

            tensors = reshard_optimizer_state(training, self.model)
        restore_optimizer(self.optimizer, self.model, tensors, is_averaged=self.state.averaged_steps > 0)

    # ---------------------------------------------------------------- the end

    def close(self, interrupted: bool) -> dict[str, Any]:
        """Write the report; returns the summary."""
        task, config, best, at = self.task, self.config, self.state.best, self.state.progress
        at.seconds = self._seconds()
        speed = at.tokens / max(at.training_seconds, 1e-9)
        summary = {
            "run": str(config.out),
            "finished": not interrupted,
            "steps": at.step,
            "tokens": at.tokens,
            "epochs": at.tokens / task.epoch_tokens,
            "tokens_per_step": self.rows_per_step * task.context,
            "seconds": at.seconds,
            "objective": task.objective,
            "targets": task.targets,
            "val": self.state.val,
            "best": None if best is None else best.objective,
            "best_step": None if best is None else best.step,
            "generations": task.generations,
            "tokens_per_second": speed,
            "saving_seconds": self.checkpointer.stalled_seconds,  # training stood still
            "mfu": self.speed.mfu(speed),
            "num_parameters": task.model_config.num_parameters,
            "model": json_values(task.model_config),
            "threads": torch.get_num_threads(),
            "processes": self.ranks.world_size,
        }
        if self.ranks.is_first:
            write_report(config.out, summary)
        if self.metrics is not None:
            self.metrics.close()
        return summary

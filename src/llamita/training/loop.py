"""THE loop: turns a token store and a configuration into a run directory of checkpoints, metrics and a report.

A run directory:
    RUN/step-NNNNNNNN/   checkpoints (Hugging Face folders): the ones that the links mean
    RUN/latest, best     links: the last one, and the one with the lowest held-out bits per byte
    RUN/run.json         the configuration, every default filled in, and what it was trained on
    RUN/metrics.jsonl    a line for every --log-interval steps, and one for each evaluation
    RUN/summary.json, loss.png
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from llamita.checkpoint import (
    TrainingState,
    check_tensors,
    load_tensors,
    load_training_state,
    point_link,
    prune_checkpoints,
    resolve_checkpoint,
    save_checkpoint,
    step_directory,
)
from llamita.config import TrainConfig
from llamita.data.batches import Batch, Batches
from llamita.data.shards import TokenStore
from llamita.errors import CheckpointError, TrainingError
from llamita.model.generate import generate
from llamita.model.llama import Llama
from llamita.tokenizer import Tokenizer, load_tokenizer
from llamita.training.budget import Budget, Position
from llamita.training.defaults import fill_defaults, model_config
from llamita.training.distributed import Ranks, start_ranks
from llamita.training.evaluate import bits_per_byte
from llamita.training.loss import SummedLoss
from llamita.training.metrics import MetricsLog
from llamita.training.optimizer import build_optimizer, optimizer_tensors, restore_optimizer
from llamita.training.progress import TrainingDisplay, format_count
from llamita.training.report import write_report
from llamita.training.rundir import describe_run, mark_best, open_run
from llamita.training.schedule import Schedule
from llamita.training.signals import StopSignal
from llamita.training.throughput import flops_per_token, peak_flops

SAMPLE_TOKENS = 160
MOST_RETREATS = 3  # a run that diverges again after so many is told what to change
RETREAT_SHARE = 0.5  # of the learning rates, from a retreat on


class Diverged(Exception):
    """A step went where no later one comes back from. The message: what was found, and where."""


@dataclasses.dataclass(frozen=True)
class TrainResult:
    """How a run ended. is_first: whether this process is the one that reports; summary: what summary.json holds."""

    run: Path
    is_first: bool
    interrupted: bool
    summary: dict[str, Any]


@dataclasses.dataclass
class Pending:
    """What has been measured since the last line of metrics.jsonl."""

    nats: Tensor  # float64 scalar on the device: this process's share
    largest_norm: Tensor  # float32 scalar on the device
    tokens: int = 0  # of all processes
    steps: int = 0

    @classmethod
    def empty(cls, device: torch.device) -> Pending:
        return cls(torch.zeros((), dtype=torch.float64, device=device), torch.zeros((), device=device))


def train(config: TrainConfig, *, started: float | None = None) -> TrainResult:
    """Train from fresh weights, or go on with the run in config.out if config.resume.

    started: time.monotonic() when the command began, for --minutes. Raises ConfigError, TrainingError, StoreError,
    CheckpointError, OutputError. SIGINT and SIGTERM save a checkpoint and return with `interrupted`.
    """
    started = time.monotonic() if started is None else started
    with start_ranks(config.device, config.threads) as ranks, TrainingDisplay(enabled=ranks.is_first) as display:
        trainer = Trainer(config, ranks, display, started)
        with StopSignal() as stop:
            interrupted = trainer.run(stop)
        return TrainResult(config.out, ranks.is_first, interrupted, trainer.close())


class Trainer:
    """A run: the network, what it learns from, and where it stands."""

    def __init__(self, config: TrainConfig, ranks: Ranks, display: TrainingDisplay, started: float) -> None:
        self.ranks, self.display, self.started = ranks, display, started
        self.config = config = fill_defaults(config, ranks.device, ranks.world_size)
        assert config.context and config.batch_rows
        self.rows_per_step = config.batch_rows * config.accumulate * ranks.world_size
        self.tokens_per_step = self.rows_per_step * config.context
        self._open_data()
        self.model_config = model_config(config, self.tokenizer)
        resuming = self._open_run()
        self._build()
        self.budget = Budget(config, self.tokens_per_step, self.train_split.num_tokens, self.val_split.num_tokens)
        self.position, self.pending = Position(), Pending.empty(ranks.device)
        self.evaluations, self.evaluated_step, self.saved_step = 0, -1, -1
        self.held_out: float | None = None
        self.best: tuple[float, int] | None = None  # held-out bits per byte, step
        self.retreats, self.has_learned = 0, False
        metrics_bytes = self._restore() if resuming else 0
        self.earlier_seconds = self.position.seconds
        self.metrics = MetricsLog(config.out, metrics_bytes) if ranks.is_first else None
        self.peak_flops = peak_flops(ranks.device, self.compute)
        self.flops_per_token = flops_per_token(self.model_config, config.context)
        self.bytes_per_token = self.train_split.text_bytes / self.train_split.num_tokens
        self.last_save = time.monotonic()
        self._mark_speed()
        self._announce()

    def _open_data(self) -> None:
        data = self.config.data
        store = TokenStore(data)
        self.tokenizer: Tokenizer = load_tokenizer(data)
        self.bos_id = store.bos_id
        self.train_split, self.val_split = store.split("train"), store.split("val")
        if self.train_split.num_documents == 0:
            raise TrainingError(f"cannot train on {data}: its train split is empty; prepare more text")

    def _open_run(self) -> bool:
        """Open the run directory; whether there is a checkpoint to resume from."""
        data = {
            "tokenizer": self.tokenizer.fingerprint,
            "documents": self.train_split.num_documents,
            "tokens": self.train_split.num_tokens,
        }
        resuming = False
        if self.ranks.is_first:
            description = describe_run(self.config, self.model_config, self.rows_per_step, data)
            resuming = open_run(self.config.out, description, resume=self.config.resume)
        return bool(self.ranks.agree(resuming)[0])

    def _build(self) -> None:
        config, ranks = self.config, self.ranks
        assert config.context and config.batch_rows
        self.model = Llama(self.model_config, config.dropout).to(ranks.device)
        self._initialize()
        self.compute = torch.bfloat16 if config.dtype == "bfloat16" else torch.float32
        self.loss = SummedLoss(self.model, self.compute, compiled=config.compile)
        self.parallel_loss = ranks.parallel(self.loss)
        self.optimizer = build_optimizer(self.model, config)
        self.schedule = Schedule(config.schedule, config.warmup, config.cooldown, config.final_lr)
        self.batches = Batches(
            self.train_split, self.bos_id, config.context, config.batch_rows, config.seed, ranks.rank, ranks.world_size
        )

    def _initialize(self) -> None:
        """Fresh weights, a function of the seed: drawn on the CPU, so that they are the same on every device."""
        fresh = Llama(self.model_config).initialize(torch.Generator().manual_seed(self.config.seed))
        self.model.load_state_dict(fresh.state_dict())

    def _announce(self) -> None:
        config, say = self.config, self.display.say
        rows = f"{config.batch_rows} rows of {config.context}"
        if config.accumulate > 1:
            rows += f" × {config.accumulate} passes"
        if self.ranks.world_size > 1:
            rows += f" × {self.ranks.world_size} processes"
        say(
            f"model: {format_count(self.model_config.num_parameters)} weights, "
            f"{config.layers} layers of {config.hidden}, ffn {config.ffn}, "
            f"{config.heads} heads, {config.kv_heads} kv heads, vocabulary {self.model_config.vocab_size}"
        )
        say(
            f"data: {format_count(self.train_split.num_tokens)} tokens of {self.train_split.num_documents} documents, "
            f"{format_count(self.val_split.num_tokens)} held out"
        )
        say(f"tokens per step: {self.tokens_per_step} ({rows}); peak learning rate {config.learning_rate:.2g}")
        if self.position.step > 0:
            say(f"resuming at step {self.position.step}")
        if self.val_split.num_documents == 0:
            say("no held-out documents: nothing will be evaluated", style="yellow")

    # ---------------------------------------------------------------- the run

    def run(self, stop: StopSignal) -> bool:
        """Train to the end of the budget; True if it was interrupted (and saved) before."""
        while True:
            try:
                stopped = self._advance(stop)
            except Diverged as error:
                self._retreat(error)
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
        if save or stopped or over:
            self._save()
        if stopped or over:
            return stopped
        self._step()
        if self.pending.steps >= self.config.log_interval:
            self._log()
        return None

    def _decide(self, stop: StopSignal) -> tuple[bool, bool, bool, bool]:
        """Whether the run is over, and whether to evaluate, to save, to stop: the first process decides for all."""
        at = self.position
        at.seconds, save, stopped = self.ranks.agree(
            self.earlier_seconds + time.monotonic() - self.started,
            time.monotonic() - self.last_save >= self.config.save_minutes * 60,
            stop.is_set,
        )
        if at.step == 0:
            at.first_second = at.seconds
        over = self.budget.is_over(at)
        wanted = over or self.budget.wants_evaluation(at, self.evaluations)
        evaluate = wanted and self.evaluated_step != at.step and self.val_split.num_documents > 0
        return over, evaluate, bool(save), bool(stopped)

    def _step(self) -> None:
        """One step of the optimizer on rows_per_step rows."""
        config, at, start = self.config, self.position, time.monotonic()
        assert config.learning_rate is not None
        probe = self.budget.wants_probe(at)  # by the time that all processes agreed on
        progress = self.budget.midpoint(at)
        share = self.schedule.factor(progress) * RETREAT_SHARE**self.retreats
        self.learning_rate = config.learning_rate * share
        self.optimizer.set_share(share)
        if config.dropout > 0:  # randomness is a function of (seed, step, rank), so there is no state of it to save
            torch.manual_seed((config.seed * 1_000_003 + at.step) * 1_009 + self.ranks.rank)
        batches = [next(self.batches) for _ in range(config.accumulate)]
        num_targets = sum(batch.num_targets for batch in batches)
        for index, batch in enumerate(batches):
            self._backward(batch, num_targets, is_last=index == len(batches) - 1)
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), config.clip or math.inf)
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
        self.budget.step_seconds = self.ranks.agree(time.monotonic() - start)[0] if self.budget.is_timed else 0.0
        if probe:
            self._plan_evaluations()

    def _backward(self, batch: Batch, num_targets: int, is_last: bool) -> None:
        """Add a pass's gradient of the mean loss over all num_targets of the step."""
        inputs, targets = self._to_device(batch.inputs), self._to_device(batch.targets)
        with contextlib.nullcontext() if is_last else self.ranks.local_gradients(self.parallel_loss):
            nats = self.parallel_loss(inputs, targets)
            (nats * (self.ranks.world_size / num_targets)).backward()  # DDP takes the mean: back to the sum
        self.pending.nats += nats.detach()

    def _to_device(self, array: npt.NDArray[np.int64]) -> Tensor:
        tensor = torch.from_numpy(array)
        if self.ranks.device.type == "cuda":
            return tensor.pin_memory().to(self.ranks.device, non_blocking=True)
        return tensor

    # ---------------------------------------------------------------- divergence

    def _check_finite(self) -> None:
        """Raise Diverged if a gradient since the last line was not a number (then no process's was)."""
        norm = self.pending.largest_norm.item()
        if not math.isfinite(norm):
            raise Diverged(f"step {self.position.step}: expected a finite gradient, found {norm}")

    def _check_loss(self, loss: float) -> None:
        """Raise Diverged if a network that has learned something now does worse than guessing blindly, by a nat."""
        blind = math.log(self.model_config.vocab_size)
        if self.has_learned and loss > blind + 1:
            raise Diverged(
                f"step {self.position.step}: expected a loss below that of guessing blindly, {blind:.2f}, "
                f"found {loss:.2f}"
            )
        self.has_learned = self.has_learned or loss < blind

    def _retreat(self, found: Diverged) -> None:
        """Back to the last good state, at half the learning rates, past the rows that led astray.

        Raises TrainingError, which names what to change, after MOST_RETREATS of them.
        """
        has_saved = self.saved_step >= 0
        if self.retreats == MOST_RETREATS:
            saved = f"{self.config.out}/latest" if has_saved else "none yet"
            raise TrainingError(
                f"training diverged: {found}, after going back {self.retreats} times; start again with a "
                f"--learning-rate below {self.learning_rate:.2g} or a longer --warmup (last checkpoint: {saved})"
            )
        retreats, rows, failed_step = self.retreats + 1, self.batches.state_dict(), self.position.step
        self.optimizer.clear()
        if has_saved:
            self._restore()
        else:
            self._initialize()
            self.position = Position(seconds=self.position.seconds, first_second=self.position.first_second)
            self.pending, self.has_learned = Pending.empty(self.ranks.device), False
        self.retreats = retreats
        self.batches.load_state_dict(rows)
        step, share = self.position.step, RETREAT_SHARE**retreats
        self.display.say(
            f"diverged at {found}; going back to step {step}, with {share:g} of the learning rate", style="yellow"
        )
        if self.metrics is not None:
            self.metrics.append({"kind": "retreat", "step": failed_step, "to_step": step, "found": str(found),
                                 "learning_rate_share": share})  # fmt: skip
        self._mark_speed()

    # ---------------------------------------------------------------- measuring

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
        return speed * self.flops_per_token / (self.peak_flops * self.ranks.world_size)

    def _bits_per_byte(self, nats_per_token: float) -> float:
        return nats_per_token / (math.log(2) * self.bytes_per_token)

    def _show(self) -> None:
        """The bar; on several processes its loss is this one's share."""
        loss = self.pending.nats.item() * self.ranks.world_size / max(self.pending.tokens, 1)
        speed = self._speed()
        at = self.position
        at.seconds = self.earlier_seconds + time.monotonic() - self.started
        self.display.update(
            min(1.0, self.budget.progress(at)),
            step=at.step,
            loss=loss,
            bits_per_byte=self._bits_per_byte(loss),
            held_out=self.held_out,
            tokens_per_second=speed,
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
                "epoch": at.tokens / self.train_split.num_tokens,
                "loss": loss,
                "bpb": self._bits_per_byte(loss),
                "learning_rate": self.learning_rate,
                "gradient_norm": pending.largest_norm.item(),
                "tokens_per_second": speed,
                "mfu": self._mfu(speed),
                "seconds": at.seconds,
            })  # fmt: skip
        self.pending = Pending.empty(self.ranks.device)

    # ---------------------------------------------------------------- evaluation

    def _plan_evaluations(self) -> None:
        """Time a few passes over held-out rows, and plan how many whole evaluations the minutes allow."""
        start, shares = time.monotonic(), [1.0]

        def note(share: float) -> bool:
            shares.append(share)
            return True

        if self.val_split.num_documents > 0:
            bits_per_byte(
                self.loss, self.val_split, self.bos_id, self.ranks,
                num_batches=2 * self.ranks.world_size, advance=note,
            )  # fmt: skip
        self.budget.plan_evaluations(self.ranks.agree((time.monotonic() - start) / shares[-1])[0], self.position)

    def _evaluate(self, stop: StopSignal) -> bool:
        """Score the whole held-out split, tell a sample, save; False if a signal came between."""
        self._check_finite()
        self._end_interval()
        start, alone = time.monotonic(), self.ranks.world_size == 1

        def advance(share: float) -> bool:
            self.display.evaluating(share)
            return not (alone and stop.is_set)

        score = bits_per_byte(self.loss, self.val_split, self.bos_id, self.ranks, advance=advance)
        if score is None:
            self._mark_speed()
            return False
        at, bits = self.position, score.bits_per_byte
        self.held_out, self.evaluated_step = bits, at.step
        self.evaluations += 1
        if self.best is None or bits < self.best[0]:
            self.best = (bits, at.step)
        seconds = time.monotonic() - start
        if self.metrics is not None:
            sample = self.tell_sample()
            line = {"kind": "eval", "step": at.step, "tokens": at.tokens, "loss": score.nats_per_token, "bpb": bits}
            self.metrics.append({**line, "sample": sample, "evaluation_seconds": seconds, "seconds": at.seconds})
            seen = format_count(at.tokens)
            self.display.say(f"step {at.step}: held-out {bits:.4f} bits per byte, {seen} tokens seen")
            self.display.say(f"  {shorten(sample)}", style="dim")
        self._save()
        self.budget.note_evaluation(self.ranks.agree(time.monotonic() - start)[0])
        self._mark_speed()
        return True

    def tell_sample(self) -> str:
        """A text that begins with --prompt, told at temperature 0.8; the same for the same weights."""
        ids = [self.bos_id, *self.tokenizer.encode(self.config.prompt)]
        ids = ids[: self.model_config.max_position_embeddings // 2]
        new = generate(
            self.model, ids, SAMPLE_TOKENS, temperature=0.8, top_p=0.95, seed=self.config.seed,
            end_ids=self.tokenizer.end_ids,
        )  # fmt: skip
        text = self.tokenizer.decode([*ids[1:], *new]).decode("utf-8", errors="replace")
        self.model.train()
        return text

    # ---------------------------------------------------------------- saving and resuming

    def _save(self) -> None:
        """Write a checkpoint of this step and point the links at it; nothing if it is saved already."""
        self.last_save = time.monotonic()
        if self.saved_step == self.position.step:
            return
        self._check_finite()
        self._end_interval()
        nats = self.ranks.sum(self.pending.nats.clone()).item()
        self.saved_step = self.position.step
        if self.metrics is not None:
            run, at = self.config.out, self.position
            checkpoint = step_directory(run, at.step)
            if not checkpoint.is_dir():
                tensors = optimizer_tensors(self.optimizer, self.model)
                state = TrainingState(self._state_values(nats, self.metrics.num_bytes), tensors)
                save_checkpoint(checkpoint, self.model_config, self.model.state_dict(), self.config.data, state)
            point_link(run, "latest", checkpoint)
            if self.best is not None:
                mark_best(run, step_directory(run, self.best[1]))
            prune_checkpoints(run)
        self.ranks.wait()
        self.last_save = time.monotonic()
        self._mark_speed()

    def _state_values(self, pending_nats: float, metrics_bytes: int) -> dict[str, Any]:
        at = self.position
        at.seconds = self.earlier_seconds + time.monotonic() - self.started
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
            "held_out": self.held_out,
            "best": self.best,
            "retreats": self.retreats,
            "has_learned": self.has_learned,
            "metrics_bytes": metrics_bytes,
        }

    def _restore(self) -> int:
        """Take up the latest checkpoint's weights and state; returns the length of metrics.jsonl at that time."""
        run, device = self.config.out, self.ranks.device
        tensors = load_tensors(resolve_checkpoint(run, prefer="latest"))
        state = load_training_state(run)
        check_tensors(tensors, self.model_config, run)
        self.model.load_state_dict(tensors)
        restore_optimizer(self.optimizer, self.model, state.tensors)
        try:
            values, pending = state.values, state.values["pending"]
            self.position = Position(**values["position"])
            self.batches.load_state_dict(values["batches"])
            nats = pending["nats"] if self.ranks.is_first else 0.0
            self.pending = Pending(
                torch.tensor(nats, dtype=torch.float64, device=device),
                torch.tensor(pending["largest_norm"], device=device),
                pending["tokens"],
                pending["steps"],
            )
            self.evaluations, self.evaluated_step = values["evaluations"], values["evaluated_step"]
            self.held_out = values["held_out"]
            self.retreats, self.has_learned = values["retreats"], values["has_learned"]
            self.best = None if values["best"] is None else (values["best"][0], values["best"][1])
            metrics_bytes = int(values["metrics_bytes"])
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(f"cannot resume {run}: training/state.json is damaged: {error!r}") from error
        self.saved_step = self.position.step
        if self.best is not None and self.ranks.is_first:
            mark_best(run, step_directory(run, self.best[1]))
        return metrics_bytes

    # ---------------------------------------------------------------- the end

    def close(self) -> dict[str, Any]:
        """Write the report; returns the summary."""
        at, config = self.position, self.config
        at.seconds = self.earlier_seconds + time.monotonic() - self.started
        speed = at.tokens / max(at.training_seconds, 1e-9)
        summary = {
            "run": str(config.out),
            "steps": at.step,
            "tokens": at.tokens,
            "epochs": at.tokens / self.train_split.num_tokens,
            "tokens_per_step": self.tokens_per_step,
            "seconds": at.seconds,
            "held_out_bits_per_byte": self.held_out,
            "best_bits_per_byte": None if self.best is None else self.best[0],
            "best_step": None if self.best is None else self.best[1],
            "tokens_per_second": speed,
            "mfu": self._mfu(speed),
            "num_parameters": self.model_config.num_parameters,
            "model": dataclasses.asdict(self.model_config),
            "threads": torch.get_num_threads(),
            "processes": self.ranks.world_size,
        }
        if self.ranks.is_first:
            write_report(config.out, summary)
        return summary


def shorten(text: str, limit: int = 240) -> str:
    """The beginning of a text on one line."""
    line = " ".join(text.split())
    return line if len(line) <= limit else line[:limit].rsplit(" ", 1)[0] + " …"

"""Pretraining: the task of training a new Llama on the documents of token stores, and of training an
earlier one on new documents."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from llamita.checkpoint import (
    TrainingState,
    check_tensors,
    copy_tokenizer,
    load_tensors,
    load_training_state,
    resolve_checkpoint,
    save_checkpoint,
)
from llamita.config import ModelConfig, TrainConfig
from llamita.console import Rows, format_count
from llamita.data.batches import Batches
from llamita.data.mixture import TrainingData, open_documents
from llamita.data.replay import ReplayedData, open_replayed
from llamita.errors import TrainingError
from llamita.eval.bits_per_byte import bits_per_byte
from llamita.model.generate import bounded_seed
from llamita.model.llama import Llama
from llamita.model_card import ModelCard, load_card
from llamita.progress import Progress, no_progress, split_progress
from llamita.report.gains import find_gains
from llamita.run_directory import read_metrics
from llamita.tokenizer import load_tokenizer
from llamita.training.compile import resolve_compile
from llamita.training.continued import MAX_FORGETTING, REPLAY_SHARE, Base, fill_from, old_stores, open_base
from llamita.training.defaults import fill_defaults, model_config
from llamita.training.distillation import DistillationLoss, distillation_loss, load_teacher
from llamita.training.distributed import Ranks, compute_type, reshard_all
from llamita.training.flops import flops_per_token
from llamita.training.loss import SummedLoss
from llamita.training.memory import free_bytes
from llamita.training.planner import resolve_plan
from llamita.training.run import TrainResult, run_task
from llamita.training.task import Evaluation, Task
from llamita.training.weight_interpolation import MAX_TRIES, largest_share

SEED_STEP = 1_000_003  # between the initial weights of two generations
MAX_OLD_VAL_TOKENS = 1 << 16  # evaluated up to eight times: an update of little text should take a minute


def train(
    config: TrainConfig,
    *,
    started: float | None = None,
    reserved_seconds: Callable[[Task], float] = lambda task: 0.0,
) -> TrainResult:
    """Train a new model, or that of config.from_; or continue the run in config.out if config.resume.

    started, reserved_seconds: see `run_task`. SIGINT and SIGTERM save a checkpoint and return with
    `interrupted`. Raises ConfigError, TrainingError, StoreError, CheckpointError, OutputError.
    """
    return run_task(config, _make_task, started, reserved_seconds)


def _make_task(config: TrainConfig, ranks: Ranks, say: Callable[[str], None]) -> Task:
    return (Pretraining if config.from_ is None else ContinuedPretraining)(config, ranks, say)


class Pretraining(Task):
    """Trains on documents packed into rows; evaluates by bits per byte."""

    objective: ClassVar[str] = "bpb"
    loss: SummedLoss | DistillationLoss
    _generation = 0

    def __init__(self, config: TrainConfig, ranks: Ranks, say: Callable[[str], None]) -> None:
        self.ranks = ranks
        config, self.data = self._open(config)
        self.tokenizer, self.bos_id = load_tokenizer(self.data.tokenizer_path), self.data.bos_id
        self.train_split, self.val_split = self.data.train, self.data.val
        if self.train_split.num_documents == 0:
            raise TrainingError(f"cannot train on {self.data.names}: no training documents; prepare more text")
        self.epoch_tokens, self.val_tokens = self.train_split.num_tokens, self.val_split.num_tokens
        self.bytes_per_token = self.train_split.text_bytes / self.train_split.num_tokens
        (free,) = ranks.min(free_bytes(ranks.device))
        config, self._plan = resolve_plan(
            config, vocab_size=self.data.vocab_size, lengths=self.data.train.lengths, ranks=ranks, say=say, free=free
        )
        self.config: TrainConfig = fill_defaults(
            config, ranks.device, ranks.world_size, epoch_tokens=self.epoch_tokens, free=free
        )
        config = self.config
        assert config.context and config.micro_batch_size
        self.context, self.micro_batch_size = config.context, config.micro_batch_size
        self.model_config = self._model_config(config)
        self.flops_per_token = flops_per_token(self.model_config, config.context)
        self.model = Llama(self.model_config, config.dropout).to(ranks.device)
        tokens_per_pass = config.micro_batch_size * config.context * ranks.world_size
        passes = (config.steps or 0) * config.grad_accum_steps + (
            config.epochs or 0.0
        ) * self.epoch_tokens / tokens_per_pass
        self.config, self._compilation = resolve_compile(config, self.model, ranks, passes)
        compiled = self.config.compile == "on"
        compute = compute_type(config.dtype)
        assert config.generations is not None
        self.generations = config.generations
        self.loss = (
            SummedLoss(self.model, compute, compiled=compiled)
            if config.teacher is None and config.generations == 1
            else distillation_loss(config, self.model, self.tokenizer, self.context, compute, compiled=compiled)
        )
        self.batches = Batches(
            self.train_split,
            self.bos_id,
            self.context,
            self.micro_batch_size,
            config.seed,
            ranks.rank,
            ranks.world_size,
            token_noise=config.token_noise or 0.0,
        )

    def _open(self, config: TrainConfig) -> tuple[TrainConfig, TrainingData]:
        """The configuration, with what the data decides, and the data."""
        return config, open_documents(config.data)

    def _model_config(self, config: TrainConfig) -> ModelConfig:
        """The network of a filled configuration."""
        return model_config(config, self.tokenizer)

    @property
    def tokens_per_row(self) -> float:
        return self.context

    def data_fingerprint(self) -> dict[str, Any]:
        return self.data.fingerprint

    def describe(self) -> list[str]:
        shape = self.model_config
        teacher = "" if isinstance(self.loss, SummedLoss) else self.loss.describe()
        return [
            f"model: {format_count(shape.num_parameters)} weights, {shape.num_hidden_layers} layers of "
            f"{shape.hidden_size}, ffn {shape.intermediate_size}, {shape.num_attention_heads} heads, "
            f"{shape.num_key_value_heads} kv heads, vocabulary {shape.vocab_size}",
            f"data: {format_count(self.train_split.num_tokens)} tokens of {self.train_split.num_documents} documents, "
            f"{format_count(self.val_split.num_tokens)} held out" + self._stores_line(),
            *([teacher] if teacher else []),
            *([self._compilation] if self._compilation else []),
        ]

    def plan_table(self) -> Rows:
        return self._plan

    def _stores_line(self) -> str:
        """The weight of each store of a mixture in an epoch; empty for a single store."""
        if "stores" not in self.data.fingerprint:
            return ""
        return "; an epoch: " + ", ".join(f"{path} × {weight:g}" for path, weight in self.data.stores)

    def initialize(self) -> None:
        """Initialize the weights from the seed, in each generation others.

        They are drawn on the CPU, to be the same on every device, and one tensor at a time, so
        that the processes of a machine do not each need memory for the whole model.
        """
        generator = torch.Generator().manual_seed(bounded_seed(self.config.seed + SEED_STEP * self._generation))
        for name, parameter in self.model.named_parameters():
            fresh = self.model.fresh_weight(name, parameter.shape, generator)
            self.model.load_state_dict({name: fresh}, strict=False)  # it shards them if needed

    def begin_generation(self, generation: int, teacher: Path) -> None:
        assert isinstance(self.loss, DistillationLoss)
        self._generation = generation
        device, compute = self.ranks.device, self.loss.compute
        self.loss.learn_from(load_teacher(teacher, self.tokenizer, self.model_config, self.context, device, compute))

    def metrics(self, nats_per_target: float) -> dict[str, float]:
        return {"bpb": nats_per_target / (math.log(2) * self.bytes_per_token)}

    def evaluate(self, *, num_batches: int | None = None, progress: Progress = no_progress) -> Evaluation:
        score = bits_per_byte(
            self.loss, self.val_split, self.bos_id, self.ranks, num_batches=num_batches, share=self.val_share,
            progress=progress,
        )  # fmt: skip
        bits = score.bits_per_byte
        return Evaluation(bits, {"loss": score.nats_per_token, "bpb": bits}, f"held-out {bits:.4f} bits per byte")

    def save(self, checkpoint: Path, weights: Mapping[str, Tensor], training: TrainingState) -> None:
        def write_companions(folder: Path) -> None:
            copy_tokenizer(self.data.tokenizer_path, folder)
            self.card().save(folder)

        save_checkpoint(checkpoint, self.model_config, weights, write_companions, training)

    def load_weights(self, run: Path) -> None:
        tensors = load_tensors(resolve_checkpoint(run, prefer="latest"))
        check_tensors(tensors, self.model_config, run)
        self.model.load_state_dict(tensors)


class ContinuedPretraining(Pretraining):
    """Trains the model of config.from_ on new documents, with old ones among them. At the end its
    weights move towards the base's until the old text loses no more than it may."""

    evaluate_at_start: ClassVar[bool] = True
    trained_share: float | None = None  # of the way from the base to the trained weights, when it is chosen
    base: Base
    replayed: ReplayedData
    old_share: float  # of the old held-out text that is evaluated

    def __init__(self, config: TrainConfig, ranks: Ranks, say: Callable[[str], None]) -> None:
        super().__init__(config, ranks, say)
        old_tokens = self.replayed.old_val.num_tokens
        self.old_share = min(1.0, MAX_OLD_VAL_TOKENS / max(1, old_tokens))
        if self.val_tokens > 0:
            evaluated = round(self.old_share * old_tokens)
            self.val_tokens += evaluated
            if self.config.max_forgetting is not None:
                self.last_evaluations = 1 + (2 + MAX_TRIES) * evaluated / self.val_tokens

    def _open(self, config: TrainConfig) -> tuple[TrainConfig, TrainingData]:
        assert config.from_ is not None
        self.base = open_base(config.from_)
        config = fill_from(config, self.base, self.ranks)
        old = old_stores(config, self.base)
        share = (REPLAY_SHARE if config.replay is None else config.replay) if old else 0.0
        self.replayed = open_replayed(config.data, old, share, self.base.checkpoint)
        limit = MAX_FORGETTING if config.max_forgetting is None and share > 0 else config.max_forgetting
        return dataclasses.replace(config, replay=share, replay_data=old, max_forgetting=limit), self.replayed.data

    def _model_config(self, config: TrainConfig) -> ModelConfig:
        return self.base.model

    def data_fingerprint(self) -> dict[str, Any]:
        return {**super().data_fingerprint(), "base": self.base.fingerprint}

    def describe(self) -> list[str]:
        lines = [f"from: {self.base.checkpoint}, in {self.config.dtype}", *super().describe()]
        known = self.replayed.known
        if count := sum(known.values()):
            lines.append(
                f"left out: {count:,} of the new documents, which are among the old ones ({known['val']:,} of them "
                "new held-out ones)"
            )
        if not self.replayed.old_val.num_tokens:
            lines.append("no old held-out text: what the model forgets is not measured")
        elif self.old_share < 1:
            lines.append(f"evaluation: on {100 * self.old_share:.2g} % of the old held-out text, enough to compare")
        return lines

    def initialize(self) -> None:
        """Load the weights of the base, one tensor at a time into the network."""
        tensors = load_tensors(self.base.checkpoint)
        check_tensors(tensors, self.model_config, self.base.checkpoint)
        for name, tensor in tensors.items():
            self.model.load_state_dict({name: tensor.float()}, strict=False)  # it shards them if needed

    def optimizer_state(self) -> TrainingState | None:
        """The base's, if it was kept: the old text loses less (docs/experiments.md)."""
        is_kept = (self.base.checkpoint / "training").is_dir()
        if not is_kept or self.base.options.get("optimizer") != self.config.optimizer:
            return None
        return load_training_state(self.base.checkpoint)

    def evaluate(self, *, num_batches: int | None = None, progress: Progress = no_progress) -> Evaluation:
        old = self.replayed.old_val
        costs = self.val_split.num_tokens, round(self.old_share * old.num_tokens)
        of_new, of_old = split_progress(progress, costs)
        found = super().evaluate(num_batches=num_batches, progress=of_new)
        if num_batches is not None or not old.num_tokens:
            return found
        bits = self._old_bits(of_old)
        metrics, summary = found.metrics | {"old_bpb": bits}, f"{found.summary}, old text {bits:.4f}"
        if self.trained_share is not None:
            metrics["trained_share"] = self.trained_share
            summary += f", {100 * self.trained_share:.3g} % of the way from the old weights"
        return dataclasses.replace(found, metrics=metrics, summary=summary)

    def _old_bits(self, progress: Progress) -> float:
        share = self.val_share * self.old_share
        old = self.replayed.old_val
        return bits_per_byte(self.loss, old, self.bos_id, self.ranks, share=share, progress=progress).bits_per_byte

    def finish(self, progress: Progress = no_progress) -> Callable[[], None] | None:
        """Move the weights towards the base's until the old text loses at most --max-forgetting."""
        if self.config.max_forgetting is None or not self.replayed.old_val.num_tokens or not self.val_tokens:
            return None
        max_rise = self.config.max_forgetting / 100
        reshard_all(self.loss)
        weights = dict(self.model.named_parameters())
        trained = {name: weight.detach().clone() for name, weight in weights.items()}
        self.initialize()
        base = {name: weight.detach().clone() for name, weight in weights.items()}

        @torch.no_grad()
        def move(share: float) -> None:
            reshard_all(self.loss)
            for name, weight in weights.items():
                weight.copy_(torch.lerp(base[name], trained[name], share))

        def loss_at(share: float) -> float:
            move(share)
            return self._old_bits(progress)

        def take_back() -> None:
            self.trained_share = None
            move(1.0)

        try:
            self.trained_share = largest_share(loss_at, max_rise)
            move(self.trained_share)
        except BaseException:
            take_back()
            raise
        return take_back

    def card(self) -> ModelCard:
        """The base's card; the description says what the run changed."""
        inherited = dataclasses.replace(load_card(self.base.checkpoint), name=None, description=None)
        given, gains = super().card(), find_gains(read_metrics(self.config.out))
        described = f"{given.description} " if given.description else ""
        if gains is not None:
            described += f"Trained further on new documents. {gains.sentence()}"
        return inherited.updated(dataclasses.replace(given, description=described or None))

"""The interface of what the trainer trains: a task has the model, the data and the evaluation.

Tasks: training/pretraining.py, and finetune/. The trainer does steps, schedules and timing.
"""

from __future__ import annotations

import contextlib
import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor, nn

from llamita.checkpoint import TrainingState
from llamita.config import ModelConfig, RunConfig
from llamita.console import Rows
from llamita.model.generate import generate, take_while
from llamita.model.llama import Llama
from llamita.model_card import ModelCard
from llamita.progress import Progress, no_progress
from llamita.tokenizer import Tokenizer

SAMPLE_TOKENS = 160


class BatchStream(Protocol):
    """An endless iterator of batches.

    A batch is a named tuple: int64 arrays [B, T] for this process, and `num_targets` of all
    processes. A step has the same rows for any number of processes.
    """

    @property
    def epoch(self) -> int:
        """The epoch of the next row, from 0."""
        ...

    def __next__(self) -> Any: ...

    def state_dict(self) -> dict[str, int]: ...

    def load_state_dict(self, state: dict[str, int]) -> None: ...


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """The result of an evaluation on held-out data.

    objective: lower is better; the best checkpoint has the lowest. metrics: for metrics.jsonl, the
    objective included. summary: for the terminal.
    """

    objective: float
    metrics: dict[str, float]
    summary: str


class Task(ABC):
    """A task in one process of a run. `config` has all defaults filled in."""

    objective: ClassVar[str]  # the name of Evaluation.objective in metrics.jsonl
    targets: ClassVar[str] = "tokens"  # the unit of what is trained on, for messages
    evaluate_at_start: ClassVar[bool] = False  # evaluate before the first step

    config: RunConfig
    tokenizer: Tokenizer
    model_config: ModelConfig
    model: Llama  # on the device; parameters without requires_grad are frozen
    loss: nn.Module  # contains the model; forward(*arrays) is the sum over targets, in nats
    batches: BatchStream
    micro_batch_size: int  # rows per pass of this process
    context: int
    epoch_tokens: int  # targets per epoch
    val_tokens: int  # 0: nothing will be evaluated
    flops_per_token: float
    compute: torch.dtype | None = None  # the data type for samples; None: that of the weights
    gathered: Callable[[], AbstractContextManager[None]] = contextlib.nullcontext  # see fsdp.gathered
    val_share: float = 1.0  # of the held-out data that is evaluated; see limit_evaluation
    last_evaluations: float = 1.0  # the time of `finish` and the last evaluation, in evaluations
    generations: int = 1  # models that are trained one after the other; see generations.py

    @property
    @abstractmethod
    def tokens_per_row(self) -> float:
        """The mean number of targets per row."""

    @abstractmethod
    def data_fingerprint(self) -> dict[str, Any]:
        """Identifies the data in run.json; a resumed run's must be equal."""

    @abstractmethod
    def describe(self) -> list[str]:
        """Lines about the model and the data, printed at the start."""

    def plan_table(self) -> Rows:
        """The planner's choices and reasons, printed at the start; [] without a plan."""
        return []

    def card(self) -> ModelCard:
        """What the options say about the model."""
        config = self.config
        return ModelCard(
            name=config.name, license=config.license, description=config.description, language=config.language
        )

    @abstractmethod
    def initialize(self) -> None:
        """Set the initial weights."""

    def begin_generation(self, generation: int, teacher: Path) -> None:
        """From now on train the model of a later generation with a checkpoint as its teacher; its
        weights are set by `initialize` or `load_weights`. Tasks of one generation need not have it.
        """
        raise NotImplementedError

    def optimizer_state(self) -> TrainingState | None:
        """The state that the optimizer begins with; None: empty."""
        return None

    def prepare(self, progress: Progress = no_progress) -> list[str]:
        """Compute what depends on the initial weights, after `initialize`. Returns lines to print.

        May change what is trained on: read `batches`, `epoch_tokens` and `val_tokens` afterwards.
        """
        return []

    @abstractmethod
    def metrics(self, nats_per_target: float) -> dict[str, float]:
        """More metrics that follow from the mean training loss, for metrics.jsonl."""

    @abstractmethod
    def evaluate(self, *, num_batches: int | None = None, progress: Progress = no_progress) -> Evaluation:
        """Evaluate on the held-out data, all processes together.

        num_batches: evaluate only this many batches, for timing. progress: called after each
        pass; what it raises, such as Cancelled, ends the evaluation.
        """

    def finish(self, progress: Progress = no_progress) -> Callable[[], None] | None:
        """Change the weights after the last step, before the last evaluation; they are then the best.
        Returns what takes the change back; None: nothing changes. progress: as in `evaluate`."""
        return None

    def limit_evaluation(self, share: float) -> float:
        """Evaluate on about this share of the held-out data only, always the same part of it.
        Returns the exact share."""
        self.val_share = share
        return share

    @abstractmethod
    def save(self, checkpoint: Path, weights: Mapping[str, Tensor], training: TrainingState) -> None:
        """Write a checkpoint atomically. weights: trained parameters by name, on any device."""

    @abstractmethod
    def load_weights(self, run: Path) -> None:
        """Load the weights of a run's latest checkpoint. Raises CheckpointError."""

    def sample(self, go_on: Callable[[], bool] = lambda: True) -> str:
        """A sample for --prompt at temperature 0.8; it ends early when go_on() returns False."""
        bos = [] if self.tokenizer.bos_id is None else [self.tokenizer.bos_id]
        ids = [*bos, *self.tokenizer.encode(self.config.prompt)]
        return self.continue_ids(ids or [self.model_config.eos_token_ids[0]], shown=ids[len(bos) :], go_on=go_on)

    def continue_ids(self, ids: list[int], shown: list[int], go_on: Callable[[], bool] = lambda: True) -> str:
        """Sample from the model after `ids`. Returns the text of `shown` and of the new tokens."""
        was_training = self.model.training
        ids = ids[: self.model_config.max_position_embeddings // 2]
        tokens = generate(
            self.model, ids, SAMPLE_TOKENS, temperature=0.8, top_p=0.95, seed=self.config.seed,
            end_ids=self.tokenizer.end_ids, compute=self.compute,
        )  # fmt: skip
        new = take_while(tokens, go_on)
        self.model.train(was_training)
        return self.tokenizer.decode([*shown, *new]).decode("utf-8", errors="replace")

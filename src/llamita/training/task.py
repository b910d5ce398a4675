"""What the loop trains: a task brings the network, what it learns from and how it is judged; the loop brings the rest.

Pretraining is one (training/pretraining.py), fine-tuning another (finetune/). A task never steps, schedules or times.
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor, nn

from llamita.checkpoint import TrainingState
from llamita.config import ModelConfig, RunConfig
from llamita.console import Rows
from llamita.model.generate import generate, take_while
from llamita.model.llama import Llama
from llamita.tokenizer import Tokenizer

SAMPLE_TOKENS = 160


class BatchStream(Protocol):
    """An endless iterator of batches: named tuples of int64 arrays [B, T] of this process, and `num_targets`, how many
    targets count, over all processes. The same rows in the same steps, however many processes share them."""

    @property
    def epoch(self) -> int:
        """The epoch that the next row belongs to, counted from 0."""
        ...

    def __next__(self) -> Any: ...

    def state_dict(self) -> dict[str, int]: ...

    def load_state_dict(self, state: dict[str, int]) -> None: ...


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """A judgment of what is held out. metrics: the objective, by which the best checkpoint is chosen (less is better),
    and whatever else metrics.jsonl is to hold; summary: the same for the terminal."""

    objective: float
    metrics: dict[str, float]
    summary: str


class Task(ABC):
    """Built for one process (its Ranks) from a configuration; `config` has every default filled in."""

    objective: ClassVar[str]  # the name of Evaluation.objective in metrics.jsonl
    targets: ClassVar[str] = "tokens"  # what is learned and counted, in words
    evaluate_at_start: ClassVar[bool] = False  # whether what it begins with is worth an evaluation

    config: RunConfig
    tokenizer: Tokenizer
    model_config: ModelConfig
    model: Llama  # on the device; what requires no gradient is not trained
    loss: nn.Module  # holds the network: a batch's arrays, in their order → Σ nats over the targets that count
    batches: BatchStream
    micro_batch_size: int  # of one pass of this process
    context: int
    epoch_tokens: int  # targets that an epoch has
    val_tokens: int  # 0: nothing will be evaluated
    flops_per_token: float
    compute: torch.dtype | None = None  # the type that samples are computed in; None: the weights'

    @property
    @abstractmethod
    def tokens_per_row(self) -> float:
        """Targets that a row has, about."""

    @abstractmethod
    def data_fingerprint(self) -> dict[str, Any]:
        """What it learns from, for run.json: a resumed run's must be equal."""

    @abstractmethod
    def describe(self) -> list[str]:
        """What it is, to be said as it begins."""

    def plan_table(self) -> Rows:
        """What was chosen for it, and why, to be shown as it begins: rows of cells."""
        return []

    @abstractmethod
    def initialize(self) -> None:
        """Give the network the weights that the run begins with."""

    def prepare(self, advance: Callable[[float], None]) -> None:  # noqa: B027  # most need nothing
        """Compute what must be known of the network as the run begins, after `initialize`; advance(share done) tells
        how far it is."""

    @abstractmethod
    def metrics(self, nats_per_target: float) -> dict[str, float]:
        """What else a mean training loss tells (bits per byte), by its name in metrics.jsonl."""

    @abstractmethod
    def evaluate(
        self, *, num_batches: int | None = None, advance: Callable[[float], bool] = lambda share: True
    ) -> Evaluation | None:
        """Judge what is held out, all processes together; num_batches: only the first few, for timing.

        advance(share done) is called after each pass and stops the evaluation with None when it returns False.
        """

    @abstractmethod
    def save(self, checkpoint: Path, weights: Mapping[str, Tensor], training: TrainingState) -> None:
        """Write a checkpoint, whole or not at all. weights: of the parameters that learn, by name, on any device."""

    @abstractmethod
    def load_weights(self, run: Path) -> None:
        """Take up the weights of a run's latest checkpoint. Raises CheckpointError."""

    def sample(self, go_on: Callable[[], bool] = lambda: True) -> str:
        """A text that begins with --prompt, told at temperature 0.8; the same for the same weights, but that it ends
        at the first token after which go_on() is false."""
        bos = [] if self.tokenizer.bos_id is None else [self.tokenizer.bos_id]
        ids = [*bos, *self.tokenizer.encode(self.config.prompt)]
        return self.continue_ids(ids or [self.model_config.eos_token_ids[0]], shown=ids[len(bos) :], go_on=go_on)

    def continue_ids(self, ids: list[int], shown: list[int], go_on: Callable[[], bool] = lambda: True) -> str:
        """What the network makes of `ids`, after the text of `shown`."""
        was_training = self.model.training
        ids = ids[: self.model_config.max_position_embeddings // 2]
        told = generate(
            self.model, ids, SAMPLE_TOKENS, temperature=0.8, top_p=0.95, seed=self.config.seed,
            end_ids=self.tokenizer.end_ids, compute=self.compute,
        )  # fmt: skip
        new = take_while(told, go_on)
        self.model.train(was_training)
        return self.tokenizer.decode([*shown, *new]).decode("utf-8", errors="replace")

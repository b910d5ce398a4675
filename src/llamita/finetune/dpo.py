"""A checkpoint and pairs of answers to a task of the training loop: learn to prefer the better ones (DPO, IPO).

The reference is the network as the run begins: what it gives each answer is computed before the first step and kept in
the run directory, so training needs no second network, and a resumed run has the very same numbers.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, Final

import numpy as np
import torch
from rich.console import Console
from torch import Tensor

from llamita.config import FinetuneConfig
from llamita.data.batches import pack_rows
from llamita.errors import ConfigError, TrainingError
from llamita.finetune.answers import MAX_ASKED, Question, find_questions
from llamita.finetune.base_model import BaseModel
from llamita.finetune.dataset import LONGEST, asked_question, own_marks
from llamita.finetune.dpo_evaluate import answer_log_probabilities, score_pairs
from llamita.finetune.dpo_loss import DpoLoss
from llamita.finetune.dpo_packing import (
    DpoBatches,
    Pair,
    PairCounts,
    Pairs,
    pair_count_lines,
    pair_loss_lines,
    render_pairs,
)
from llamita.finetune.dpo_reference import Reference, load_reference, save_reference
from llamita.finetune.preferences import Preference, read_preferences
from llamita.finetune.preview import preview_examples
from llamita.finetune.rendering import Renderer
from llamita.finetune.sft import FinetuneTask, fill_defaults, learning_rate_for, row_length
from llamita.finetune.splits import MAX_HELD_OUT, hold_out
from llamita.training.distributed import Ranks
from llamita.training.task import Evaluation

DEFAULT_BETA: Final = 0.1
RATE_SHARE: Final = 0.1  # of fine-tuning's learning rates


@dataclasses.dataclass(frozen=True)
class DpoDataset:
    """Pairs to learn from and pairs held out, rendered with the base's tokenizer and template; what became of the rest.

    context: tokens that a conversation may have. asked: questions for samples. held_counts: of what was to be held out.
    """

    base: BaseModel
    context: int
    pairs: list[Pair]
    val: list[Pair]
    asked: list[Question]
    counts: PairCounts
    held_counts: PairCounts


def open_dpo_dataset(config: FinetuneConfig, device: str) -> DpoDataset:
    """Read and render the data. device: "cpu" or "cuda". Raises CheckpointError, TokenizerError, ChatError, SourceError
    (naming the example), ConfigError, TrainingError (nothing to prefer)."""
    if config.columns is not None:
        raise ConfigError(
            "finetune: --columns names questions and answers; with --preference the keys are prompt, chosen, rejected"
        )
    base = BaseModel(config.checkpoint)
    context = base.context(config.context, LONGEST[device])
    template = base.use_template(config.chat_template)
    learn, held = _preferences(config)
    with Renderer(base.tokenizer, base.config, context, template) as renderer:
        pairs, counts = render_pairs(learn, renderer)
        val, held_counts = render_pairs(held, renderer, "judge by")
        asked = find_questions([each.chosen for each in held], renderer, MAX_ASKED)
        if config.prompt:
            asked = [asked_question(config, renderer)]
        ids = [example.ids for pair in (*pairs, *val) for example in pair]
        if config.lora:
            used = set[int]().union(*map(renderer.controls_in, ids))
            base.check_marks(used, own_marks(base, learn[0].chosen, renderer))
    base.add_ends({int(each[-1]) for each in ids})
    return DpoDataset(base, context, pairs, val, asked, counts, held_counts)


def _preferences(config: FinetuneConfig) -> tuple[list[Preference], list[Preference]]:
    """Those to learn from and those held out: all pairs of one prompt are on one side."""

    def read(path: Path) -> list[Preference]:
        return list(read_preferences(path, system=config.system))

    if config.val is not None:
        return read(config.data), read(config.val)
    found = read(config.data)
    keys = [json.dumps([(turn.role, turn.text) for turn in each.chosen.turns[:-1]]) for each in found]
    val = hold_out(keys, config.val_fraction, MAX_HELD_OUT).tolist()
    sides = list(zip(found, val, strict=True))
    return [each for each, held in sides if not held], [each for each, held in sides if held]


def show_pairs(config: FinetuneConfig, device: str, console: Console) -> None:
    """Print the first config.preview pairs, the better answer and the worse one, and what became of all."""
    dataset = open_dpo_dataset(config, device)
    shown = [example for pair in dataset.pairs[: config.preview] for example in pair]
    preview_examples(shown, dataset.base.tokenizer, len(shown), console)
    for name, line in pair_count_lines(dataset.counts):
        console.print(f"{name}: {line}", highlight=False, markup=False)


class DpoTask(FinetuneTask):
    """Learns which of two answers is the better one; judged by the loss on held-out pairs."""

    objective: ClassVar[str] = "loss"
    targets: ClassVar[str] = "pairs"
    loss: DpoLoss

    def __init__(self, config: FinetuneConfig, ranks: Ranks) -> None:
        assert config.preference is not None
        dataset = self.dataset = open_dpo_dataset(config, ranks.device.type)
        self.pairs, self.val = Pairs(dataset.pairs), Pairs(dataset.val)
        self.context = row_length(self.pairs.lengths, dataset.context)
        if config.learning_rate is None:
            rate = RATE_SHARE * learning_rate_for(dataset.base.config.hidden_size, config.lora)
            config = dataclasses.replace(config, learning_rate=rate)
        if config.beta is None:
            config = dataclasses.replace(config, beta=DEFAULT_BETA)
        config = fill_defaults(config, dataset.base, ranks, dataset.context, 2 * self.context, self.pairs.num_tokens)
        assert config.micro_batch_size and config.beta and config.preference
        self.micro_batch_size = config.micro_batch_size
        self._build(config, dataset.base, ranks)
        self.loss = DpoLoss(self.model, config.preference, config.beta, config.label_smoothing or 0.0, self.compute)
        self.batches = DpoBatches(
            self.pairs, self.context, self.micro_batch_size, config.seed, ranks.rank, ranks.world_size
        )
        self.num_rows = len(
            pack_rows(np.arange(self.pairs.num_documents), self.pairs.lengths, self.context, split=False)
        )
        self.epoch_tokens, self.val_tokens = self.pairs.num_documents, self.val.num_documents
        self.flops_per_token *= self.pairs.num_tokens / self.pairs.num_documents  # a target is a pair

    @property
    def tokens_per_row(self) -> float:
        """Pairs."""
        return self.epoch_tokens / self.num_rows

    def facts(self) -> dict[str, Any]:
        return {
            **super().facts(),
            "pairs": self.pairs.num_documents,
            "sha256": self.pairs.fingerprint,
            "val": self.val.num_documents,
            "val_sha256": self.val.fingerprint,
        }

    def _data_lines(self) -> list[str]:
        lines = [f"{name}: {line}" for name, line in pair_count_lines(self.dataset.counts)]
        return [
            *lines,
            f"rows: {self.num_rows:,} of {self.context} tokens for the better answers, and as many for the worse ones",
            f"held out: {self.val.num_documents:,} pairs",
            *(f"held out, {name}: {line}" for name, line in pair_loss_lines(self.dataset.held_counts)),
        ]

    def prepare(self, advance: Callable[[float], None]) -> None:
        """Read the reference, what the network says as the run begins, or compute it, all processes together."""
        run, parts = self.config.out, (self.pairs, self.val)
        sizes = (parts[0].num_documents, parts[1].num_documents)
        known = hashlib.sha256(json.dumps(self.facts(), sort_keys=True).encode()).hexdigest()
        found = load_reference(run, known, sizes) if self.ranks.is_first else None
        if self.ranks.broadcast_from_first(found is not None)[0]:
            arrays = [torch.from_numpy(each) for each in found or (np.zeros((2, size)) for size in sizes)]
            arrays = [self.ranks.sum(each.to(self.ranks.device)).cpu() for each in arrays]
        else:
            share = self.pairs.num_tokens / (self.pairs.num_tokens + self.val.num_tokens)
            arrays = [
                self._say(self.pairs, lambda done: advance(done * share)),
                self._say(self.val, lambda done: advance(share + done * (1 - share))),
            ]
        reference = Reference(*(each.numpy() for each in arrays))
        if self.ranks.is_first and found is None:
            save_reference(run, reference, known)
        self.pairs.reference, self.val.reference = reference

    def _say(self, pairs: Pairs, advance: Callable[[float], None]) -> Tensor:
        """What the network gives each answer. Raises TrainingError if that is no number."""

        def go_on(share: float) -> bool:
            advance(share)
            return True

        said = answer_log_probabilities(self.loss, pairs, self.ranks, advance=go_on)
        assert said is not None, "nothing stops it"
        if not said.isfinite().all():
            raise TrainingError(
                f"cannot train {self.base.directory}: expected finite log-probabilities of the answers, found others; "
                "its weights are damaged"
            )
        return said

    def numbers(self, nats_per_target: float) -> dict[str, float]:
        return {}

    def evaluate(
        self, *, num_batches: int | None = None, advance: Callable[[float], bool] = lambda share: True
    ) -> Evaluation | None:
        """The held-out pairs' loss, how many are ranked rightly, rewards and their margin; bits per byte of general
        text. With num_batches the numbers mean nothing."""
        general = 0 if self.general is None else self.general.num_tokens
        share = self.val.num_tokens / (self.val.num_tokens + general)
        said = answer_log_probabilities(
            self.loss, self.val, self.ranks, num_batches=num_batches, advance=lambda done: advance(done * share)
        )
        if said is None:
            return None
        score = score_pairs(self.loss, self.val, said)
        numbers = score._asdict()
        words = f"held-out pairs: loss {score.loss:.4f}, {score.accuracy:.1%} right, margin {score.margin:.4f}"
        if num_batches is not None:
            return Evaluation(score.loss, numbers, words)
        forgotten = self._evaluate_general_text(lambda done: advance(share + done * (1 - share)))
        if forgotten is None:
            return None
        words += "".join(f", general text {bits:.4f} bits per byte" for bits in forgotten.values())
        return Evaluation(score.loss, numbers | forgotten, words)

    def sample(self, go_on: Callable[[], bool] = lambda: True) -> str:
        """The questions and the network's most probable answers."""
        return self._tell(self.dataset.asked, go_on)

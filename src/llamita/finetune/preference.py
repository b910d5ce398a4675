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
from llamita.finetune.answers import MOST_ASKED, Question, find_questions
from llamita.finetune.base import Base
from llamita.finetune.lesson import LONGEST, asked_question, own_marks
from llamita.finetune.preference_loss import PreferenceLoss
from llamita.finetune.preference_packing import (
    Pair,
    PairCounts,
    Pairs,
    PreferenceBatches,
    pair_count_lines,
    pair_loss_lines,
    render_pairs,
)
from llamita.finetune.preference_reference import Reference, load_reference, save_reference
from llamita.finetune.preference_rows import Preference, read_preferences
from llamita.finetune.preference_scoring import answer_log_probabilities, score_pairs
from llamita.finetune.preview import preview_examples
from llamita.finetune.rendering import Renderer
from llamita.finetune.sources import MOST_HELD_OUT, hold_out
from llamita.finetune.task import FineTuning, fill_defaults, learning_rate_for, row_length
from llamita.training.distributed import Ranks
from llamita.training.task import Evaluation

DEFAULT_BETA: Final = 0.1
RATE_SHARE: Final = 0.1  # of fine-tuning's learning rates


@dataclasses.dataclass(frozen=True)
class PreferenceLesson:
    """Pairs to learn from and pairs held out, rendered with the base's tokenizer and template; what became of the rest.

    context: tokens that a conversation may have. asked: questions for samples. held_counts: of what was to be held out.
    """

    base: Base
    context: int
    pairs: list[Pair]
    held_out: list[Pair]
    asked: list[Question]
    counts: PairCounts
    held_counts: PairCounts


def open_preference_lesson(config: FinetuneConfig, device: str) -> PreferenceLesson:
    """Read and render the data. device: "cpu" or "cuda". Raises CheckpointError, TokenizerError, ChatError, SourceError
    (naming the example), ConfigError, TrainingError (nothing to prefer)."""
    if config.columns is not None:
        raise ConfigError(
            "finetune: --columns names questions and answers; with --preference the keys are prompt, chosen, rejected"
        )
    base = Base(config.checkpoint)
    context = base.context(config.context, LONGEST[device])
    template = base.use_template(config.chat_template)
    learn, held = _preferences(config)
    with Renderer(base.tokenizer, base.config, context, template) as renderer:
        pairs, counts = render_pairs(learn, renderer)
        held_out, held_counts = render_pairs(held, renderer, "judge by")
        asked = find_questions([each.chosen for each in held], renderer, MOST_ASKED)
        if config.prompt:
            asked = [asked_question(config, renderer)]
        ids = [example.ids for pair in (*pairs, *held_out) for example in pair]
        if config.lora:
            used = set[int]().union(*map(renderer.controls_in, ids))
            base.check_marks(used, own_marks(base, learn[0].chosen, renderer))
    base.add_ends({int(each[-1]) for each in ids})
    return PreferenceLesson(base, context, pairs, held_out, asked, counts, held_counts)


def _preferences(config: FinetuneConfig) -> tuple[list[Preference], list[Preference]]:
    """Those to learn from and those held out: all pairs of one prompt are on one side."""

    def read(path: Path) -> list[Preference]:
        return list(read_preferences(path, system=config.system))

    if config.val is not None:
        return read(config.data), read(config.val)
    found = read(config.data)
    keys = [json.dumps([(turn.role, turn.text) for turn in each.chosen.turns[:-1]]) for each in found]
    held_out = hold_out(keys, config.val_fraction, MOST_HELD_OUT).tolist()
    sides = list(zip(found, held_out, strict=True))
    return [each for each, held in sides if not held], [each for each, held in sides if held]


def show_pairs(config: FinetuneConfig, device: str, console: Console) -> None:
    """Print the first config.preview pairs, the better answer and the worse one, and what became of all."""
    lesson = open_preference_lesson(config, device)
    shown = [example for pair in lesson.pairs[: config.preview] for example in pair]
    preview_examples(shown, lesson.base.tokenizer, len(shown), console)
    for name, line in pair_count_lines(lesson.counts):
        console.print(f"{name}: {line}", highlight=False, markup=False)


class PreferenceTuning(FineTuning):
    """Learns which of two answers is the better one; judged by the loss on held-out pairs."""

    objective: ClassVar[str] = "loss"
    targets: ClassVar[str] = "pairs"
    loss: PreferenceLoss

    def __init__(self, config: FinetuneConfig, ranks: Ranks) -> None:
        assert config.preference is not None
        lesson = self.lesson = open_preference_lesson(config, ranks.device.type)
        self.pairs, self.held_out = Pairs(lesson.pairs), Pairs(lesson.held_out)
        self.context = row_length(self.pairs.lengths, lesson.context)
        if config.learning_rate is None:
            rate = RATE_SHARE * learning_rate_for(lesson.base.config.hidden_size, config.lora)
            config = dataclasses.replace(config, learning_rate=rate)
        if config.beta is None:
            config = dataclasses.replace(config, beta=DEFAULT_BETA)
        config = fill_defaults(config, lesson.base, ranks, lesson.context, 2 * self.context, self.pairs.num_tokens)
        assert config.batch_rows and config.beta and config.preference
        self.batch_rows = config.batch_rows
        self._build(config, lesson.base, ranks)
        self.loss = PreferenceLoss(
            self.model, config.preference, config.beta, config.label_smoothing or 0.0, self.compute
        )
        self.batches = PreferenceBatches(
            self.pairs, self.context, self.batch_rows, config.seed, ranks.rank, ranks.world_size
        )
        self.num_rows = len(
            pack_rows(np.arange(self.pairs.num_documents), self.pairs.lengths, self.context, split=False)
        )
        self.epoch_tokens, self.held_out_tokens = self.pairs.num_documents, self.held_out.num_documents
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
            "held_out": self.held_out.num_documents,
            "held_out_sha256": self.held_out.fingerprint,
        }

    def _data_lines(self) -> list[str]:
        lines = [f"{name}: {line}" for name, line in pair_count_lines(self.lesson.counts)]
        return [
            *lines,
            f"rows: {self.num_rows:,} of {self.context} tokens for the better answers, and as many for the worse ones",
            f"held out: {self.held_out.num_documents:,} pairs",
            *(f"held out, {name}: {line}" for name, line in pair_loss_lines(self.lesson.held_counts)),
        ]

    def prepare(self, advance: Callable[[float], None]) -> None:
        """Read the reference, what the network says as the run begins, or compute it, all processes together."""
        run, parts = self.config.out, (self.pairs, self.held_out)
        sizes = (parts[0].num_documents, parts[1].num_documents)
        known = hashlib.sha256(json.dumps(self.facts(), sort_keys=True).encode()).hexdigest()
        found = load_reference(run, known, sizes) if self.ranks.is_first else None
        if self.ranks.agree(found is not None)[0]:
            arrays = [torch.from_numpy(each) for each in found or (np.zeros((2, size)) for size in sizes)]
            arrays = [self.ranks.sum(each.to(self.ranks.device)).cpu() for each in arrays]
        else:
            share = self.pairs.num_tokens / (self.pairs.num_tokens + self.held_out.num_tokens)
            arrays = [
                self._say(self.pairs, lambda done: advance(done * share)),
                self._say(self.held_out, lambda done: advance(share + done * (1 - share))),
            ]
        reference = Reference(*(each.numpy() for each in arrays))
        if self.ranks.is_first and found is None:
            save_reference(run, reference, known)
        self.pairs.reference, self.held_out.reference = reference

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
        share = self.held_out.num_tokens / (self.held_out.num_tokens + general)
        said = answer_log_probabilities(
            self.loss, self.held_out, self.ranks, num_batches=num_batches, advance=lambda done: advance(done * share)
        )
        if said is None:
            return None
        score = score_pairs(self.loss, self.held_out, said)
        numbers = score._asdict()
        words = f"held-out pairs: loss {score.loss:.4f}, {score.accuracy:.1%} right, margin {score.margin:.4f}"
        if num_batches is not None:
            return Evaluation(score.loss, numbers, words)
        forgotten = self._judge_general(lambda done: advance(share + done * (1 - share)))
        if forgotten is None:
            return None
        words += "".join(f", general text {bits:.4f} bits per byte" for bits in forgotten.values())
        return Evaluation(score.loss, numbers | forgotten, words)

    def sample(self, go_on: Callable[[], bool] = lambda: True) -> str:
        """The questions and the network's most probable answers."""
        return self._tell(self.lesson.asked, go_on)

"""Preference optimization (DPO, IPO): trains a checkpoint to prefer the chosen of two answers.

The reference is the network as the run begins. Its log-probabilities are computed before the first
step and kept in the run directory, so training needs no second network, and a resumed run uses the
same numbers.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable
from typing import Any, ClassVar, Final

import numpy as np
import torch
from torch import Tensor

from llamita.config import FinetuneConfig
from llamita.errors import TrainingError
from llamita.eval.scoring import evenly_spaced
from llamita.finetune.defaults import fill_defaults, learning_rate_for, row_length
from llamita.finetune.dpo_data import DpoBatches, Pairs, open_dpo_dataset
from llamita.finetune.dpo_evaluate import (
    Reference,
    affordable_share,
    answer_log_probabilities,
    load_reference,
    save_reference,
    score_pairs,
)
from llamita.finetune.dpo_loss import DpoLoss
from llamita.finetune.finetune_task import FinetuneTask
from llamita.finetune.packing import count_rows
from llamita.progress import Progress, no_progress, split_progress
from llamita.training.distributed import Ranks
from llamita.training.task import Evaluation

DEFAULT_BETA: Final = 0.1
REFERENCE_SHARE: Final = 0.2  # of --minutes
LEARNING_RATE_FACTOR: Final = 0.1  # of the rates of supervised fine-tuning


class DpoTask(FinetuneTask):
    """Trains on pairs of answers; evaluates by the loss of held-out pairs."""

    objective: ClassVar[str] = "loss"
    targets: ClassVar[str] = "pairs"
    loss: DpoLoss

    def __init__(self, config: FinetuneConfig, ranks: Ranks) -> None:
        dataset = self.dataset = open_dpo_dataset(config, ranks.device.type)
        self.pairs, self.val = Pairs(dataset.train), Pairs(dataset.val)
        self.all_val = self.val  # val may be a part of it, see limit_evaluation
        self.context = row_length(self.pairs.lengths, dataset.context)
        if config.learning_rate is None:
            rate = LEARNING_RATE_FACTOR * learning_rate_for(dataset.base.config.hidden_size, config.lora)
            config = dataclasses.replace(config, learning_rate=rate)
        if config.beta is None:
            config = dataclasses.replace(config, beta=DEFAULT_BETA)
        config = fill_defaults(config, dataset.base, ranks, dataset.context, 2 * self.context, self.pairs.num_tokens)
        assert config.beta and config.preference
        self._build_model(config, dataset.base, ranks)
        self.loss = DpoLoss(self.model, config.preference, config.beta, config.label_smoothing or 0.0, self.compute)
        self._open_batches()
        self.flops_per_token *= self.pairs.num_tokens / self.pairs.num_documents  # a target is a pair
        self.asked = [dataset.prompt] if dataset.prompt else dataset.questions

    def _open_batches(self) -> None:
        self.batches = DpoBatches(
            self.pairs, self.context, self.micro_batch_size, self.config.seed, self.ranks.rank, self.ranks.world_size
        )
        self.num_rows = count_rows(self.pairs, self.context)
        self.epoch_tokens, self.val_tokens = self.pairs.num_documents, self.val.num_documents

    @property
    def tokens_per_row(self) -> float:
        """Pairs."""
        return self.epoch_tokens / self.num_rows

    def data_fingerprint(self) -> dict[str, Any]:
        return {**super().data_fingerprint(), **self.dataset.fingerprint()}

    def _describe_data(self) -> list[str]:
        return [
            *self.dataset.counts.describe(),
            f"rows: {self.num_rows:,} of {self.context} tokens an epoch for the chosen answers, and as many for the "
            f"rejected ones{self._describe_attention()}",
            f"held out: {self.val.num_documents:,} pairs",
            *(f"held out, {line}" for line in self.dataset.val_counts.describe_unused()),
        ]

    def prepare(self, progress: Progress = no_progress) -> list[str]:
        """Read the reference, or compute it, all processes together.

        With --minutes it takes at most REFERENCE_SHARE of them, and only the pairs that it is
        computed of are used. Training sees no more pairs in the rest of the minutes, since a step
        takes three times as long.
        """
        sizes = (self.pairs.num_documents, self.val.num_documents)
        fingerprint = hashlib.sha256(json.dumps(self.data_fingerprint(), sort_keys=True).encode()).hexdigest()
        found = load_reference(self.config.out, fingerprint, sizes) if self.ranks.is_first else None
        if self.ranks.broadcast_from_first(found is not None)[0]:
            counts = [each.shape[1] for each in found] if found is not None else [0, 0]
            counts = [round(count) for count in self.ranks.broadcast_from_first(*counts)]
            arrays = [torch.from_numpy(each) for each in found or (np.zeros((2, count)) for count in counts)]
            arrays = [self.ranks.sum(each) for each in arrays]  # on the CPU: Apple's GPUs have no float64
            self._keep(*(count / max(1, size) for count, size in zip(counts, sizes, strict=True)))
        else:
            if self.config.minutes is not None:
                allowed = REFERENCE_SHARE * 60 * self.config.minutes
                share = affordable_share(self.loss, (self.pairs, self.val), self.ranks, allowed)
                self._keep(share, share)
            parts = (self.pairs, self.val)
            callbacks = split_progress(progress, [part.num_tokens for part in parts])
            arrays = [self._log_probabilities(*each) for each in zip(parts, callbacks, strict=True)]
        reference = Reference(*(each.numpy() for each in arrays))
        if self.ranks.is_first and found is None:
            save_reference(self.config.out, reference, fingerprint, sizes)
        self.pairs.reference, self.all_val.reference = reference
        if self.pairs.num_documents == sizes[0]:
            return []
        return [
            f"--minutes {self.config.minutes:g}: training on {self.pairs.num_documents:,} of {sizes[0]:,} pairs, "
            f"evaluating {self.val.num_documents:,} of {sizes[1]:,}: the reference takes "
            f"{100 * REFERENCE_SHARE:.0f} % of the time"
        ]

    def _keep(self, share: float, val_share: float) -> None:
        """Use these shares of the pairs only."""
        if min(share, val_share) < 1.0:
            self.pairs = Pairs(evenly_spaced(self.pairs.pairs, share))
            self.val = self.all_val = Pairs(evenly_spaced(self.val.pairs, val_share))
            self._open_batches()

    def limit_evaluation(self, share: float) -> float:
        super().limit_evaluation(share)
        chosen, reference = evenly_spaced(range(self.all_val.num_documents), share), self.all_val.reference
        self.val = Pairs([self.all_val.pairs[i] for i in chosen], None if reference is None else reference[:, chosen])
        return len(chosen) / max(1, self.all_val.num_documents)

    def _log_probabilities(self, pairs: Pairs, progress: Progress) -> Tensor:
        """Raises TrainingError if some are not finite."""
        found = answer_log_probabilities(self.loss, pairs, self.ranks, progress=progress)
        if not found.isfinite().all():
            raise TrainingError(
                f"cannot train {self.base.directory}: expected finite log-probabilities of the answers, found others; "
                "the weights are damaged"
            )
        return found

    @property
    def _val_cost(self) -> int:
        return self.val.num_tokens

    def _evaluate_val(self, num_batches: int | None, progress: Progress) -> Evaluation:
        """Loss, preference accuracy, rewards and reward margin; meaningless with num_batches."""
        found = answer_log_probabilities(self.loss, self.val, self.ranks, num_batches=num_batches, progress=progress)
        score = score_pairs(self.loss, self.val, found)
        summary = f"held-out loss {score.loss:.4f}, preference accuracy {score.accuracy:.1%}, "
        summary += f"reward margin {score.margin:.4f}"
        return Evaluation(score.loss, score._asdict(), summary)

    def sample(self, go_on: Callable[[], bool] = lambda: True) -> str:
        return self._sample_answers(self.asked, go_on)

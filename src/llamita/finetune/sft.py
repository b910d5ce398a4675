"""Supervised fine-tuning: on the assistant's answers in conversations, or on plain text."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, ClassVar

from llamita.config import FinetuneConfig, flag
from llamita.console import format_count
from llamita.data.batches import Batches
from llamita.data.utf8_files import Conversions
from llamita.errors import ConfigError
from llamita.eval.bits_per_byte import bits_per_byte
from llamita.eval.scoring import evenly_spaced
from llamita.finetune.base_model import BaseModel
from llamita.finetune.dataset import MAX_CONTEXT, digest_ids, open_sft_dataset, open_texts
from llamita.finetune.defaults import fill_defaults, row_length
from llamita.finetune.evaluate import (
    MAX_ASKED,
    MAX_GRADED,
    SHORT_TOKENS,
    count_matches,
    target_nats,
)
from llamita.finetune.finetune_task import FinetuneTask
from llamita.finetune.loss import ConversationLoss
from llamita.finetune.packing import ConversationBatches, Examples, count_rows
from llamita.progress import Progress, split_progress
from llamita.training.distributed import Ranks
from llamita.training.task import Evaluation


class SftTask(FinetuneTask):
    """Trains on the assistant's answers; evaluates by the mean loss of the answers in held-out
    conversations."""

    objective: ClassVar[str] = "loss"
    targets: ClassVar[str] = "target tokens"

    def __init__(self, config: FinetuneConfig, ranks: Ranks) -> None:
        dataset = self.dataset = open_sft_dataset(config, ranks.device.type)
        examples = Examples(dataset.train)
        self.context = row_length(examples.lengths, dataset.context)
        config = fill_defaults(config, dataset.base, ranks, dataset.context, self.context, examples.num_tokens)
        self._build_model(config, dataset.base, ranks)
        self.answer_loss = ConversationLoss(self.model, self.compute)
        self.loss = self.answer_loss if config.teacher is None else self._distillation_loss()
        self.batches = ConversationBatches(
            examples, self.context, self.micro_batch_size, config.seed, ranks.rank, ranks.world_size
        )
        self.num_rows = count_rows(examples, self.context)
        self.epoch_tokens = int(examples.num_targets.sum())
        self.flops_per_token *= examples.num_tokens / self.epoch_tokens  # masked tokens are computed too
        self.val_tokens = sum(example.num_targets for example in dataset.val)
        self.asked = [dataset.prompt] if dataset.prompt else dataset.questions[:MAX_ASKED]
        self.limit_evaluation(1.0)

    def limit_evaluation(self, share: float) -> float:
        super().limit_evaluation(share)
        self.val = evenly_spaced(self.dataset.val, share)
        short = [each for each in self.dataset.questions if each.num_tokens <= SHORT_TOKENS][:MAX_GRADED]
        self.graded = evenly_spaced(short, share)
        self.val_inputs = sum(example.length for example in self.val)
        # a token generated alone costs about as much as 8 in a batch
        self.answer_cost = sum(len(question.ids) + 8 * question.num_tokens for question in self.graded)
        return len(self.val) / max(1, len(self.dataset.val))

    @property
    def tokens_per_row(self) -> float:
        return self.epoch_tokens / self.num_rows

    def data_fingerprint(self) -> dict[str, Any]:
        return {**super().data_fingerprint(), **self.dataset.fingerprint()}

    def _describe_data(self) -> list[str]:
        graded = f", {len(self.graded)} with short answers to compare" if self.graded else ""
        return [
            *self.dataset.counts.describe(),
            f"rows: {self.num_rows:,} of {self.context} tokens an epoch; no conversation is split"
            f"{self._describe_attention()}",
            f"held out: {len(self.dataset.val):,} conversations{graded}",
            *(f"held out, {line}" for line in self.dataset.val_counts.describe_unused()),
        ]

    @property
    def _val_cost(self) -> int:
        return self.val_inputs + self.answer_cost

    def _evaluate_val(self, num_batches: int | None, progress: Progress) -> Evaluation:
        """The mean loss of a target, and how many short answers match the reference."""
        of_loss, of_answers = split_progress(progress, (self.val_inputs, self.answer_cost))
        found = target_nats(self.answer_loss, self.val, self.ranks, num_batches, of_loss)
        loss = found[0] / found[1]
        metrics, summary = {"loss": loss}, f"held-out loss {loss:.4f} nats a target"
        if num_batches is not None or not self.graded:
            return Evaluation(loss, metrics, summary)
        exact, contains = count_matches(self.answer_loss, self.tokenizer, self.graded, self.ranks, of_answers)
        metrics |= {"exact": exact / len(self.graded), "contains": contains / len(self.graded)}
        summary += f", {len(self.graded)} short answers: {exact} exact, {contains} contained"
        return Evaluation(loss, metrics, summary)

    def sample(self, go_on: Callable[[], bool] = lambda: True) -> str:
        return self._sample_answers(self.asked, go_on)


class TextTask(FinetuneTask):
    """Continues pretraining on plain text; evaluates by bits per byte of held-out documents."""

    objective: ClassVar[str] = "bpb"

    def __init__(self, config: FinetuneConfig, ranks: Ranks) -> None:
        for name in ("chat_template", "columns", "system"):
            if getattr(config, name) is not None:
                raise ConfigError(
                    f"finetune: {flag(name)} is for conversations, and {config.data} is plain text; remove it"
                )
        base = BaseModel(config.checkpoint)
        base.begin_texts_with_bos()
        self.conversions = Conversions(config.encoding)
        self.train_split, self.val_split = open_texts(
            config.data, config.val, config.val_fraction, base.tokenizer, base.eos_id, self.conversions,
            half_width=config.half_width,
        )  # fmt: skip
        self.context = base.context(config.context, MAX_CONTEXT[ranks.device.type])
        self.epoch_tokens, self.val_tokens = self.train_split.num_tokens, self.val_split.num_tokens
        config = fill_defaults(config, base, ranks, self.context, self.context, self.epoch_tokens)
        self._build_model(config, base, ranks)
        self.loss = self.text_loss if config.teacher is None else self._distillation_loss()
        self.batches = Batches(
            self.train_split, base.bos_or_eos_id, self.context, self.micro_batch_size, config.seed,
            ranks.rank, ranks.world_size,
        )  # fmt: skip
        self.bytes_per_token = self.train_split.text_bytes / self.train_split.num_tokens

    @property
    def tokens_per_row(self) -> float:
        return self.context

    def data_fingerprint(self) -> dict[str, Any]:
        return {
            **super().data_fingerprint(),
            "documents": self.train_split.num_documents,
            "tokens": self.train_split.num_tokens,
            "text_bytes": self.train_split.text_bytes,
            "val_sha256": digest_ids([self.val_split.document(i) for i in range(self.val_split.num_documents)]),
        }

    def _describe_data(self) -> list[str]:
        return [
            f"data: {format_count(self.train_split.num_tokens)} tokens of {self.train_split.num_documents} documents, "
            f"{format_count(self.val_split.num_tokens)} held out",
            *self.conversions.describe(),
        ]

    def metrics(self, nats_per_target: float) -> dict[str, float]:
        return {"bpb": nats_per_target / (math.log(2) * self.bytes_per_token)}

    @property
    def _val_cost(self) -> int:
        return self.val_tokens

    def _evaluate_val(self, num_batches: int | None, progress: Progress) -> Evaluation:
        score = bits_per_byte(
            self.text_loss, self.val_split, self.base.bos_or_eos_id, self.ranks, num_batches=num_batches,
            share=self.val_share, progress=progress,
        )  # fmt: skip
        bits = score.bits_per_byte
        metrics = {"loss": score.nats_per_token, "bpb": bits}
        return Evaluation(bits, metrics, f"held-out {bits:.4f} bits per byte")

"""A checkpoint and data to a task of the training loop: all weights learn, or low-rank updates do; then to a run."""

from __future__ import annotations

import dataclasses
import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from llamita.checkpoint import (
    TrainingState,
    check_tensors,
    load_tensors,
    resolve_checkpoint,
    save_checkpoint,
)
from llamita.config import FinetuneConfig, ModelConfig, flag
from llamita.console import format_count, shorten
from llamita.data.batches import Batches, pack_rows
from llamita.errors import ConfigError
from llamita.eval.bits_per_byte import bits_per_byte
from llamita.eval.scoring import EncodedTexts
from llamita.finetune.adapter import load_adapter, resolve_adapter, save_adapter
from llamita.finetune.answers import MAX_ASKED, MAX_GRADED, SAMPLE_TOKENS, SHORT_TOKENS, Question, answer
from llamita.finetune.base_model import BaseModel
from llamita.finetune.dataset import LONGEST, open_sft_dataset
from llamita.finetune.evaluate import Advance, right_answers, target_nats
from llamita.finetune.lora import LINEAR_LAYERS, LoraConfig, add_lora, initialize_updates, lora_layers, updates_of
from llamita.finetune.loss import ConversationLoss
from llamita.finetune.packing import ConversationBatches, Examples
from llamita.finetune.preview import count_lines, loss_lines
from llamita.finetune.splits import digest_ids, open_general_text, open_texts
from llamita.training.defaults import TOKENS_PER_PASS
from llamita.training.distillation import DistillationLoss, distillation_loss
from llamita.training.distributed import Ranks, compute_type
from llamita.training.flops import flops_per_token
from llamita.training.loss import SummedLoss
from llamita.training.optimizer import beta2_for
from llamita.training.task import Evaluation, Task

DEFAULT_EPOCHS = 3.0
DEFAULT_RANK = 8
STEPS_PER_EPOCH = 32  # at least, where there is little data
ROW_MULTIPLE = 64
LORA_FLOPS = 4 / 6  # of a step's: frozen weights need no gradients


class FinetuneTask(Task):
    """What all fine-tuning shares: a network that begins with a checkpoint's weights, and what is saved of it."""

    evaluate_at_start: ClassVar[bool] = True

    config: FinetuneConfig
    base: BaseModel
    lora: LoraConfig | None
    general: EncodedTexts | None

    def _build(self, config: FinetuneConfig, base: BaseModel, ranks: Ranks) -> None:
        """The network, on the device. config: filled."""
        self.config, self.base, self.ranks = config, base, ranks
        self.teacher_lines: list[str] = []
        self.tokenizer, self.model_config = base.tokenizer, base.config
        self.compute = compute_type(config.dtype)
        if config.lora:
            assert config.rank is not None
            layers = LINEAR_LAYERS if config.targets is None else tuple(config.targets)
            self.lora = LoraConfig(config.rank, config.alpha, config.dropout, config.rslora, layers)
            self.model = base.build(0.0, ranks.device, self.compute)
            base.fill(self.model)
            add_lora(self.model, self.lora)
        else:
            self.lora = None
            self.model = base.build(config.dropout, ranks.device)
        self.text_loss = SummedLoss(self.model, self.compute)
        self.general = None
        if config.general_text is not None:
            self.general = open_general_text(config.general_text, base.tokenizer, base.eos_id)
        share = 1.0 if self.lora is None else LORA_FLOPS
        self.flops_per_token = share * flops_per_token(base.config, self.context)

    def _taught(self) -> DistillationLoss:
        """The loss beside --teacher's."""
        loss = distillation_loss(self.config, self.model, self.tokenizer, self.context, self.compute)
        self.teacher_lines = [loss.line()]
        return loss

    def initialize(self) -> None:
        if self.lora is None:
            self.base.fill(self.model)
        else:
            initialize_updates(self.model, torch.Generator().manual_seed(self.config.seed))

    def lines(self) -> list[str]:
        shape = self.model_config
        learning = sum(weight.numel() for weight in self.model.parameters() if weight.requires_grad)
        what = "all weights learn"
        if self.lora is not None:
            what = f"{format_count(learning)} weights of updates learn (LoRA, rank {self.lora.rank}"
            what += f", scale {self.lora.scale:g}, {len(self.lora.layers)} of {len(LINEAR_LAYERS)} linear layers)"
        return [
            f"base: {self.base.directory}: {format_count(shape.num_parameters)} weights, {shape.num_hidden_layers} "
            f"layers of {shape.hidden_size}, vocabulary {shape.vocab_size}; {what}",
            *self.teacher_lines,
            *self._data_lines(),
        ]

    def _data_lines(self) -> list[str]:
        raise NotImplementedError

    def facts(self) -> dict[str, Any]:
        template = self.tokenizer.chat_template or ""
        facts: dict[str, Any] = {
            "base": self.base.fingerprint(),
            "tokenizer": self.tokenizer.fingerprint,
            "chat_template": hashlib.sha256(template.encode()).hexdigest(),
        }
        if self.general is not None:
            documents = [self.general.document(i) for i in range(self.general.num_documents)]
            facts["general_text"] = digest_ids(documents)
        return facts

    def save(self, checkpoint: Path, weights: Mapping[str, Tensor], training: TrainingState) -> None:
        if self.lora is None:
            save_checkpoint(checkpoint, self.model_config, weights, self.base.write_tokenizer, training)
            return
        base = str(self.base.directory)
        save_adapter(checkpoint, updates_of(self.model), self.lora, base, self.base.write_tokenizer, training)

    def load_weights(self, run: Path) -> None:
        if self.lora is None:
            tensors = load_tensors(resolve_checkpoint(run, prefer="latest"))
            check_tensors(tensors, self.model_config, run)
            self.model.load_state_dict(tensors)
            return
        updates = load_adapter(resolve_adapter(run, prefer="latest"), self.model_config).updates
        with torch.no_grad():
            for name, layer in lora_layers(self.model):
                layer.lora_A.weight.copy_(updates[name].a)
                layer.lora_B.weight.copy_(updates[name].b)

    def _evaluate_general_text(self, advance: Advance) -> dict[str, float] | None:
        """Bits per byte of the general text, which tells what is forgotten; nothing without one."""
        if self.general is None:
            return {}
        score = bits_per_byte(self.text_loss, self.general, self.base.bos_or_eos_id, self.ranks, advance=advance)
        return None if score is None else {"general_bpb": score.bits_per_byte}

    def _tell(self, asked: Sequence[Question], go_on: Callable[[], bool]) -> str:
        """Questions and the network's most probable answers, while go_on(): the first one at least."""
        told: list[str] = []
        for question in asked:
            if told and not go_on():
                break
            with torch.autocast(self.ranks.device.type, self.compute, enabled=self.compute != torch.float32):
                said = answer(self.model, self.tokenizer, question, SAMPLE_TOKENS, go_on)
            told.append(f"> {shorten(question.text)}\n{said}")
        return "\n\n".join(told)


class SftTask(FinetuneTask):
    """Learns the assistant's answers of conversations; judged by the mean nats of held-out answers' tokens."""

    objective: ClassVar[str] = "loss"
    targets: ClassVar[str] = "learned tokens"

    def __init__(self, config: FinetuneConfig, ranks: Ranks) -> None:
        device = ranks.device.type
        dataset = self.dataset = open_sft_dataset(config, device)
        examples = Examples(dataset.examples)
        self.context = row_length(examples.lengths, dataset.context)
        config = fill_defaults(config, dataset.base, ranks, dataset.context, self.context, examples.num_tokens)
        assert config.micro_batch_size
        self.micro_batch_size = config.micro_batch_size
        self._build(config, dataset.base, ranks)
        self.answer_loss = ConversationLoss(self.model, self.compute)
        self.loss = self.answer_loss if config.teacher is None else self._taught()
        self.batches = ConversationBatches(
            examples, self.context, self.micro_batch_size, config.seed, ranks.rank, ranks.world_size
        )
        self.num_rows = len(pack_rows(np.arange(len(examples.lengths)), examples.lengths, self.context, split=False))
        self.epoch_tokens = int(examples.num_learned.sum())
        self.flops_per_token *= examples.num_tokens / self.epoch_tokens  # what is masked is computed too
        self.val_pairs = sum(example.num_pairs for example in dataset.val)
        self.val_tokens = sum(int(example.learned[1:].sum()) for example in dataset.val)
        self.asked = [dataset.prompt] if dataset.prompt else dataset.questions[:MAX_ASKED]
        self.graded = [each for each in dataset.questions if each.num_tokens <= SHORT_TOKENS][:MAX_GRADED]

    @property
    def tokens_per_row(self) -> float:
        return self.epoch_tokens / self.num_rows

    def facts(self) -> dict[str, Any]:
        return {**super().facts(), **self.dataset.facts()}

    def _data_lines(self) -> list[str]:
        lines = [f"{name}: {line}" for name, line in count_lines(self.dataset.counts)]
        lines.append(f"rows: {self.num_rows:,} of {self.context} tokens hold an epoch, each conversation whole")
        graded = f", {len(self.graded)} of them with short answers to compare" if self.graded else ""
        lines.append(f"held out: {len(self.dataset.val):,} conversations{graded}")
        return [*lines, *(f"held out, {name}: {line}" for name, line in loss_lines(self.dataset.held_counts))]

    def numbers(self, nats_per_target: float) -> dict[str, float]:
        return {}

    def evaluate(
        self, *, num_batches: int | None = None, advance: Callable[[float], bool] = lambda share: True
    ) -> Evaluation | None:
        """Nats a held-out target; where there are short answers, how many are right; bits per byte of general text."""
        general = 0 if self.general is None else self.general.num_tokens
        answers = sum(len(each.ids) + 8 * each.num_tokens for each in self.graded)  # a token alone costs as much as 8
        whole = self.val_pairs + general + answers

        def part(before: int, size: int) -> Advance:
            return lambda share: advance((before + share * size) / whole)

        val = part(0, self.val_pairs)
        found = target_nats(self.answer_loss, self.dataset.val, self.ranks, num_batches, val)
        if found is None:
            return None
        loss = found[0] / found[1]
        numbers, words = {"loss": loss}, f"held-out {loss:.4f} nats a target"
        if num_batches is not None:
            return Evaluation(loss, numbers, words)
        if self.graded:
            right = right_answers(
                self.answer_loss, self.tokenizer, self.graded, self.ranks, part(self.val_pairs, answers)
            )
            if right is None:
                return None
            numbers |= {"exact": right[0] / len(self.graded), "contains": right[1] / len(self.graded)}
            words += f", of {len(self.graded)} short answers {right[0]} exact, {right[1]} contained"
        forgotten = self._evaluate_general_text(part(self.val_pairs + answers, general))
        if forgotten is None:
            return None
        words += "".join(f", general text {bits:.4f} bits per byte" for bits in forgotten.values())
        return Evaluation(loss, numbers | forgotten, words)

    def sample(self, go_on: Callable[[], bool] = lambda: True) -> str:
        return self._tell(self.asked, go_on)


class TextTask(FinetuneTask):
    """Goes on learning from plain text, as pretraining does; judged by bits per byte of held-out documents."""

    objective: ClassVar[str] = "bpb"

    def __init__(self, config: FinetuneConfig, ranks: Ranks) -> None:
        for name in ("chat_template", "columns", "system"):
            if getattr(config, name) is not None:
                raise ConfigError(f"finetune: {flag(name)}: {config.data} is plain text; leave it out")
        base = BaseModel(config.checkpoint)
        self.train_split, self.val_split = open_texts(
            config.data, config.val, config.val_fraction, base.tokenizer, base.eos_id
        )
        self.context = base.context(config.context, LONGEST[ranks.device.type])
        self.epoch_tokens, self.val_tokens = self.train_split.num_tokens, self.val_split.num_tokens
        config = fill_defaults(config, base, ranks, self.context, self.context, self.epoch_tokens)
        assert config.micro_batch_size
        self.micro_batch_size = config.micro_batch_size
        self._build(config, base, ranks)
        self.loss = self.text_loss if config.teacher is None else self._taught()
        self.batches = Batches(
            self.train_split, base.bos_or_eos_id, self.context, self.micro_batch_size, config.seed,
            ranks.rank, ranks.world_size,
        )  # fmt: skip
        self.bytes_per_token = self.train_split.text_bytes / self.train_split.num_tokens

    @property
    def tokens_per_row(self) -> float:
        return self.context

    def facts(self) -> dict[str, Any]:
        return {
            **super().facts(),
            "documents": self.train_split.num_documents,
            "tokens": self.train_split.num_tokens,
            "text_bytes": self.train_split.text_bytes,
        }

    def _data_lines(self) -> list[str]:
        return [
            f"data: {format_count(self.train_split.num_tokens)} tokens of {self.train_split.num_documents} documents, "
            f"{format_count(self.val_split.num_tokens)} held out"
        ]

    def numbers(self, nats_per_target: float) -> dict[str, float]:
        return {"bpb": nats_per_target / (math.log(2) * self.bytes_per_token)}

    def evaluate(
        self, *, num_batches: int | None = None, advance: Callable[[float], bool] = lambda share: True
    ) -> Evaluation | None:
        general = 0 if self.general is None else self.general.num_tokens
        whole = self.val_tokens + general
        score = bits_per_byte(
            self.text_loss, self.val_split, self.base.bos_or_eos_id, self.ranks, num_batches=num_batches,
            advance=lambda share: advance(share * self.val_tokens / whole),
        )  # fmt: skip
        if score is None:
            return None
        bits = score.bits_per_byte
        numbers, words = {"loss": score.nats_per_token, "bpb": bits}, f"held-out {bits:.4f} bits per byte"
        if num_batches is not None:
            return Evaluation(bits, numbers, words)
        forgotten = self._evaluate_general_text(lambda share: advance((self.val_tokens + share * general) / whole))
        if forgotten is None:
            return None
        words += "".join(f", general text {each:.4f}" for each in forgotten.values())
        return Evaluation(bits, numbers | forgotten, words)

    def sample(self, go_on: Callable[[], bool] = lambda: True) -> str:
        with torch.autocast(self.ranks.device.type, self.compute, enabled=self.compute != torch.float32):
            return super().sample(go_on)


# ---------------------------------------------------------------- defaults


def learning_rate_for(hidden_size: int, lora: bool) -> float:
    """AdamW's peak: 1e-4 at width 576, in proportion to 1/width; ten times as much for updates (see J. Schulman,
    "LoRA Without Regret", 2025, whose best rates differ by about that factor)."""
    return 1e-4 * 576 / max(hidden_size, 128) * (10 if lora else 1)


def row_length(lengths: Any, limit: int) -> int:
    """Pairs of a row that holds the longest example, and four of the mean size where there is room: shorter rows waste
    less attention, longer ones pack better."""
    wanted = max(int(lengths.max()), math.ceil(4 * float(lengths.mean())))
    return min(limit, math.ceil(wanted / ROW_MULTIPLE) * ROW_MULTIPLE)


def tokens_that_fit(free_bytes: int, config: ModelConfig, *, lora: bool) -> int:
    """Tokens of a pass on a GPU: what it keeps for its backward pass, some 12 D + 4 F numbers of 2 bytes a layer and
    token, may take half of what the weights leave: 2 bytes each if frozen, else 16 (gradient, AdamW's moments)."""
    left = free_bytes - config.num_parameters * (2 if lora else 16)
    per_token = 2 * config.num_hidden_layers * (12 * config.hidden_size + 4 * config.intermediate_size)
    return max(0, left) // (2 * per_token)


def fill_defaults(
    config: FinetuneConfig, base: BaseModel, ranks: Ranks, context: int, row_tokens: int, epoch_tokens: int
) -> FinetuneConfig:
    """Every None that has a default gets it. context: the flag's value; row_tokens, epoch_tokens: with what is masked.

    Raises ConfigError.
    """
    if config.minutes is None and config.steps is None and config.epochs is None:
        config = dataclasses.replace(config, epochs=DEFAULT_EPOCHS)
    on_cpu = ranks.device.type == "cpu"
    tokens = TOKENS_PER_PASS[ranks.device.type] // (ranks.world_size if on_cpu else 1)
    if not on_cpu and not config.activation_checkpointing:
        tokens = min(tokens, tokens_that_fit(torch.cuda.mem_get_info(ranks.device)[0], base.config, lora=config.lora))
    tokens = min(tokens, epoch_tokens // (STEPS_PER_EPOCH * ranks.world_size))
    rows = config.micro_batch_size or max(1, tokens // row_tokens)
    dtype = config.dtype
    if dtype == "auto":
        dtype = "bfloat16" if not on_cpu and torch.cuda.is_bf16_supported() else "float32"
    if dtype == "bfloat16" and on_cpu:
        raise ConfigError("finetune: --dtype bfloat16 needs CUDA; CPUs compute in float32")
    if config.rank is not None and config.rank > base.config.hidden_size:
        raise ConfigError(
            f"finetune: --rank: expected at most {base.config.hidden_size}, the width of {base.directory}, found "
            f"{config.rank}; an update of a higher rank is no smaller than the weights"
        )
    tokens_per_step = rows * row_tokens * config.grad_accum_steps * ranks.world_size
    return dataclasses.replace(
        config,
        context=context,
        micro_batch_size=rows,
        dtype=dtype,
        rank=(config.rank or DEFAULT_RANK) if config.lora else None,
        learning_rate=config.learning_rate or learning_rate_for(base.config.hidden_size, config.lora),
        beta2=beta2_for(tokens_per_step) if config.beta2 is None else config.beta2,
    )

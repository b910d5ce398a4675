"""The base class of fine-tuning tasks, which train all weights of a checkpoint or a LoRA adapter."""

from __future__ import annotations

import hashlib
import textwrap
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from llamita.checkpoint import (
    TrainingState,
    check_tensors,
    load_tensors,
    resolve_checkpoint,
    save_checkpoint,
)
from llamita.config import FinetuneConfig
from llamita.console import format_count, shorten
from llamita.eval.bits_per_byte import bits_per_byte
from llamita.eval.scoring import EncodedTexts
from llamita.finetune.adapter import load_adapter, resolve_adapter, save_adapter
from llamita.finetune.base_model import BaseModel
from llamita.finetune.dataset import digest_ids, open_general_text
from llamita.finetune.defaults import frozen_bytes
from llamita.finetune.evaluate import SAMPLE_TOKENS, Question, generate_answer
from llamita.finetune.lora import (
    LINEAR_LAYERS,
    LoraConfig,
    LoraUpdate,
    add_lora,
    initialize_updates,
    load_update,
    lora_layers,
)
from llamita.model_card import ModelCard
from llamita.progress import Progress, no_progress, split_progress
from llamita.training.distillation import DistillationLoss, distillation_loss
from llamita.training.distributed import Ranks, compute_type
from llamita.training.flops import flops_per_token
from llamita.training.loss import SummedLoss, uses_varlen
from llamita.training.task import Evaluation, Task

LORA_FLOPS = 4 / 6  # of a full step's: frozen weights need no gradients


class FinetuneTask(Task):
    """A subclass's constructor opens the data, sets `context`, fills the configuration's defaults,
    calls `_build_model`, and sets `loss` and `batches`."""

    evaluate_at_start: ClassVar[bool] = True

    config: FinetuneConfig
    base: BaseModel
    lora: LoraConfig | None
    compute: torch.dtype
    general: EncodedTexts | None

    def _build_model(self, config: FinetuneConfig, base: BaseModel, ranks: Ranks) -> None:
        """Create the network on the device. config: with its defaults filled in."""
        assert config.micro_batch_size
        self.config, self.base, self.ranks = config, base, ranks
        self.micro_batch_size = config.micro_batch_size
        self.teacher_lines: list[str] = []
        self.tokenizer, self.model_config = base.tokenizer, base.config
        self.compute = compute_type(config.dtype)
        if config.lora:
            assert config.rank is not None
            layers = LINEAR_LAYERS if config.targets is None else tuple(config.targets)
            self.lora = LoraConfig(config.rank, config.alpha, config.dropout, config.rslora, layers)
            self.model = base.build(0.0, ranks.device, self.compute, in_4bit=config.load_in_4bit)
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

    def _distillation_loss(self) -> DistillationLoss:
        """The loss with --teacher."""
        loss = distillation_loss(self.config, self.model, self.tokenizer, self.context, self.compute)
        self.teacher_lines = [loss.describe()]
        return loss

    def initialize(self) -> None:
        if self.lora is None:
            self.base.fill(self.model)
        else:
            initialize_updates(self.model, torch.Generator().manual_seed(self.config.seed))

    # ---------------------------------------------------------------- descriptions

    def describe(self) -> list[str]:
        shape = self.model_config
        what = "all weights are trained"
        if self.lora is not None:
            trained = sum(weight.numel() for weight in self.model.parameters() if weight.requires_grad)
            what = (
                f"{format_count(trained)} LoRA weights are trained (rank {self.lora.rank}, scale {self.lora.scale:g}, "
            )
            what += f"{len(self.lora.layers)} of {len(LINEAR_LAYERS)} linear layers)"
        in_4bit: list[str] = []
        if self.config.load_in_4bit:
            num_bytes = frozen_bytes(shape, self.compute.itemsize, in_4bit=True)
            in_4bit = [f"frozen weights: {num_bytes / 1e6:,.0f} MB, the layers' matrices in 4 bits (NF4)"]
        return [
            f"base: {self.base.directory}: {format_count(shape.num_parameters)} weights, {shape.num_hidden_layers} "
            f"layers of {shape.hidden_size}, vocabulary {shape.vocab_size}; {what}, in {self.config.dtype}",
            *in_4bit,
            *self.teacher_lines,
            *self._describe_data(),
        ]

    def _describe_attention(self) -> str:
        """How conversations in a row are kept apart, where that is a choice."""
        if self.ranks.device.type != "cuda":
            return ""
        is_packed = uses_varlen(self.model, self.compute, self.ranks.device)
        return f"; attention: {'varlen_attn' if is_packed else 'scaled_dot_product_attention with a mask'}"

    @abstractmethod
    def _describe_data(self) -> list[str]:
        """What the task trains on and evaluates on."""

    def data_fingerprint(self) -> dict[str, Any]:
        template = self.tokenizer.chat_template or ""
        fingerprint: dict[str, Any] = {
            "base": self.base.fingerprint(),
            "tokenizer": self.tokenizer.fingerprint,
            "chat_template": hashlib.sha256(template.encode()).hexdigest(),
        }
        if self.general is not None:
            documents = [self.general.document(i) for i in range(self.general.num_documents)]
            fingerprint["general_text"] = digest_ids(documents)
        return fingerprint

    def metrics(self, nats_per_target: float) -> dict[str, float]:
        return {}

    # ---------------------------------------------------------------- checkpoints

    def save(self, checkpoint: Path, weights: Mapping[str, Tensor], training: TrainingState) -> None:
        def write_companions(folder: Path) -> None:
            self.base.write_tokenizer(folder)
            self.card().save(folder)

        if self.lora is None:
            save_checkpoint(checkpoint, self.model_config, weights, write_companions, training)
            return
        base = str(self.base.directory)
        # of the copies: the network itself is trained while they are written
        updates = {
            name: LoraUpdate(weights[f"{name}.lora_A.weight"], weights[f"{name}.lora_B.weight"], layer.scale)
            for name, layer in lora_layers(self.model)
        }
        save_adapter(checkpoint, updates, self.lora, base, write_companions, training)

    def card(self) -> ModelCard:
        """The base model's license, languages, system prompt and sampling defaults, and the options."""
        inherited = replace(self.base.card, name=None, description=None)
        return inherited.updated(replace(super().card(), system=self.config.system))

    def load_weights(self, run: Path) -> None:
        if self.lora is None:
            tensors = load_tensors(resolve_checkpoint(run, prefer="latest"))
            check_tensors(tensors, self.model_config, run)
            self.model.load_state_dict(tensors)
            return
        updates = load_adapter(resolve_adapter(run, prefer="latest"), self.model_config).updates
        for name, _ in lora_layers(self.model):
            load_update(self.model, name, updates[name].a, updates[name].b)

    # ---------------------------------------------------------------- evaluation

    def evaluate(self, *, num_batches: int | None = None, progress: Progress = no_progress) -> Evaluation:
        """Evaluate on held-out data, then on general text, whose bits per byte show forgetting."""
        with self.gathered():  # processes generate answers of other lengths
            return self._evaluate(num_batches, progress)

    def _evaluate(self, num_batches: int | None, progress: Progress) -> Evaluation:
        general_cost = 0 if self.general is None else self.general.num_tokens
        of_val, of_general = split_progress(progress, (self._val_cost, general_cost))
        found = self._evaluate_val(num_batches, of_val)
        if num_batches is not None or self.general is None:
            return found
        score = bits_per_byte(
            self.text_loss, self.general, self.base.bos_or_eos_id, self.ranks, share=self.val_share,
            progress=of_general,
        )  # fmt: skip
        bits = score.bits_per_byte
        summary = f"{found.summary}, general text {bits:.4f} bits per byte"
        return replace(found, metrics=found.metrics | {"general_bpb": bits}, summary=summary)

    @property
    @abstractmethod
    def _val_cost(self) -> int:
        """The cost of `_evaluate_val`, in tokens."""

    @abstractmethod
    def _evaluate_val(self, num_batches: int | None, progress: Progress) -> Evaluation:
        """Evaluate on the held-out data; see Task.evaluate."""

    def _sample_answers(self, questions: Sequence[Question], go_on: Callable[[], bool]) -> str:
        """Questions and greedy answers: at least the first, more while go_on() is true."""
        samples: list[str] = []
        for question in questions:
            if samples and not go_on():
                break
            answer = generate_answer(self.model, self.tokenizer, question, SAMPLE_TOKENS, go_on, self.compute)
            asked = textwrap.indent(shorten(question.text), "> ", lambda line: True)
            samples.append(f"{asked}\n{answer}")
        return "\n\n".join(samples)

"""A configuration to a dataset: examples rendered by the base's tokenizer and template, to learn and to be held out.

No weights are read here, so that a preview takes seconds whatever the model's size.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

from llamita.config import FinetuneConfig
from llamita.errors import ChatError
from llamita.finetune.answers import Question, find_questions
from llamita.finetune.base_model import BaseModel
from llamita.finetune.conversations import Conversation, Turn, read_conversations
from llamita.finetune.rendering import Example, RenderCounts, Renderer, render_examples
from llamita.finetune.splits import digest_ids, split_conversations

LONGEST = {"cpu": 1024, "cuda": 4096}  # tokens of a conversation; attention of a row grows with the square
MAX_QUESTIONS = 256


@dataclasses.dataclass(frozen=True)
class SftDataset:
    """What is learned and what is held out, as examples; questions of what is held out; what became of the rest.

    context: tokens that an example may have. prompt: the question of --prompt, where there is one. held_counts: of what
    was to be held out."""

    base: BaseModel
    context: int
    examples: list[Example]
    val: list[Example]
    questions: list[Question]
    prompt: Question | None
    counts: RenderCounts
    held_counts: RenderCounts

    def facts(self) -> dict[str, Any]:
        """What a resumed run must find again."""
        return {
            "examples": len(self.examples),
            "learned_tokens": self.counts.learned_tokens,
            "sha256": digest_ids([array for each in self.examples for array in (each.ids, each.learned)]),
            "val": len(self.val),
            "val_sha256": digest_ids([array for each in self.val for array in (each.ids, each.learned)]),
        }


def open_sft_dataset(config: FinetuneConfig, device: str) -> SftDataset:
    """Read and render the data. device: "cpu" or "cuda". Raises CheckpointError, TokenizerError, ChatError, SourceError
    (naming the example), ConfigError, TrainingError (nothing to learn)."""
    base = BaseModel(config.checkpoint)
    context = base.context(config.context, LONGEST[device])
    template = base.use_template(config.chat_template)
    train, held = _conversations(config)
    with Renderer(base.tokenizer, base.config, context, template) as renderer:
        examples, counts = render_examples(train, renderer)
        val, held_counts = render_examples(held, renderer, "judge by")
        questions = find_questions(held, renderer, MAX_QUESTIONS)
        prompt = asked_question(config, renderer) if config.prompt else None
        used = set[int]().union(*(renderer.controls_in(each.ids) for each in (*examples, *val)))
        ends = {int(each.ids[-1]) for each in examples}
        if config.lora:
            base.check_marks(used, own_marks(base, train[0], renderer))
    base.add_ends(ends)
    return SftDataset(base, context, examples, val, questions, prompt, counts, held_counts)


def _conversations(config: FinetuneConfig) -> tuple[list[Conversation], list[Conversation]]:
    """Those to learn from and those held out."""

    def read(path: Path) -> list[Conversation]:
        return list(read_conversations(path, config.columns, config.system))

    if config.val is not None:
        return read(config.data), read(config.val)
    return split_conversations(read(config.data), config.val_fraction)


def asked_question(config: FinetuneConfig, renderer: Renderer) -> Question:
    """--prompt, with --system, as it is asked."""
    turns = [Turn("user", config.prompt)] if config.system is None else [
        Turn("system", config.system), Turn("user", config.prompt),
    ]  # fmt: skip
    ids = renderer.prompt(Conversation(tuple(turns), "--prompt"), len(turns))
    return Question(config.prompt, tuple(ids), "", 0)


def own_marks(base: BaseModel, conversation: Conversation, chosen: Renderer) -> set[int]:
    """The control tokens that the checkpoint's own chat template writes: it has learned them."""
    if base.own_template is None:
        return set()
    if base.own_template == chosen.template:
        return set(range(base.num_learned_rows))
    try:
        with Renderer(base.tokenizer, base.config, chosen.context_tokens, base.own_template) as renderer:
            ids = [*renderer.prompt(conversation, 1), *renderer.prompt(conversation, len(conversation.turns))]
            return renderer.controls_in(np.array(ids, dtype=np.int64))
    except ChatError:
        return set()

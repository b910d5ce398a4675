"""Renders conversations with a chat template: token ids, and a mask of the tokens to train on.

The ids are those of the whole rendered text, as apply_chat_template of transformers gives them.
Targets are the assistant's answers, each with its end token. An answer's ids must begin exactly
where those of the prompt for it end, so that training sees what the model will see in a chat; a
template or text that breaks this is an error that names the example.
"""

from __future__ import annotations

import dataclasses
import re
from collections import Counter
from collections.abc import Sequence
from types import TracebackType
from typing import Final

import numpy as np
import numpy.typing as npt

from llamita.chat_template import ChatTemplate
from llamita.config import ModelConfig
from llamita.data.batches import IGNORED
from llamita.errors import ChatError, SourceError, TokenizerError, TrainingError
from llamita.finetune.conversations import Conversation
from llamita.tokenizer import Tokenizer
from llamita.tokenizer.chat_templates import CHAT_TEMPLATES
from llamita.tokenizer.sentencepiece import CONTROL

MAX_KEYS: Final = 8  # unused keys that are named


@dataclasses.dataclass(frozen=True)
class Example:
    """ids: int64 [N], ending with the last end token that fits. loss_mask: bool [N], True for the
    tokens to train on. removed_turns: how many turns at the end did not fit."""

    ids: npt.NDArray[np.int64]
    loss_mask: npt.NDArray[np.bool_]
    where: str
    removed_turns: int = 0

    @property
    def length(self) -> int:
        """Positions it takes in a row: its inputs."""
        return len(self.ids) - 1

    @property
    def inputs(self) -> npt.NDArray[np.int64]:
        return self.ids[:-1]

    @property
    def targets(self) -> npt.NDArray[np.int64]:
        """The next token of each input, or IGNORED."""
        return np.where(self.loss_mask[1:], self.ids[1:], IGNORED)

    @property
    def num_targets(self) -> int:
        return int(self.loss_mask[1:].sum())

    @property
    def examples(self) -> tuple[Example, ...]:
        """Itself; a pair has two."""
        return (self,)


@dataclasses.dataclass
class RenderCounts:
    """How many conversations, or pairs of them, are kept and left out. tokens: the inputs of those
    kept; target_tokens: those of them with a loss. unused_keys: how many rows have each."""

    unit: str = "conversations"
    total: int = 0
    kept: int = 0
    truncated: int = 0
    removed_turns: int = 0
    too_long: int = 0
    ties: int = 0
    unanswered: int = 0
    tokens: int = 0
    target_tokens: int = 0
    first_too_long: str | None = None
    unused_keys: Counter[str] = dataclasses.field(default_factory=Counter)

    def keep(self, *examples: Example) -> None:
        """Count a conversation, or both of a pair."""
        self.kept += 1
        self.tokens += sum(example.length for example in examples)
        self.target_tokens += sum(example.num_targets for example in examples)

    def leave_out(self, where: str) -> None:
        """Count one that is too long."""
        self.too_long += 1
        self.first_too_long = self.first_too_long or where

    def describe(self) -> list[str]:
        return [
            f"{self.unit}: {self.total:,}, {self.kept:,} kept",
            f"tokens: {self.tokens:,}, {self.target_tokens:,} of them trained on",
            *self.describe_unused(),
        ]

    def describe_unused(self) -> list[str]:
        """What is left out, and why."""
        lines = []
        if self.truncated:
            lines.append(f"truncated: {self.truncated:,} conversations, {self.removed_turns:,} turns removed")
        if self.too_long:
            lines.append(f"too long: {self.too_long:,} {self.unit} left out, the first: {self.first_too_long}")
        if self.ties:
            lines.append(f"ties: {self.ties:,} pairs of identical answers left out")
        if self.unanswered:
            lines.append(f"unanswered: {self.unanswered:,} final questions without an answer removed")
        if self.unused_keys:
            first = self.unused_keys.most_common(MAX_KEYS)
            more = len(self.unused_keys) - len(first)
            names = [f"{key[:40]!r} in {count:,} rows" for key, count in first] + ([f"{more:,} more"] if more else [])
            lines.append(f"keys not used: {', '.join(names)}")
        return lines


class Renderer:
    """Renders with a checkpoint's tokenizer and chat template. Not thread-safe."""

    def __init__(
        self, tokenizer: Tokenizer, config: ModelConfig, context_tokens: int | None = None, template: str | None = None
    ) -> None:
        """context_tokens: the longest example; default: the model's context. template: a Jinja
        template; default: the tokenizer's, or ChatML if its vocabulary has ChatML's control tokens.

        Raises TokenizerError if the tokenizer does not fit the model, ChatError if there is no
        template.
        """
        if tokenizer.vocab_size > config.vocab_size:
            raise TokenizerError(
                f"the tokenizer does not fit the model: expected at most {config.vocab_size:,} tokens, found "
                f"{tokenizer.vocab_size:,}; use the checkpoint's own"
            )
        pieces, types = tokenizer.pieces(), tokenizer.types()
        self.tokenizer, self.context_tokens = tokenizer, context_tokens or config.max_position_embeddings
        self.template = template or tokenizer.chat_template or default_template(pieces)
        self.end_ids = frozenset((*config.eos_token_ids, *tokenizer.end_ids))
        self._pieces, self._max_context = pieces, config.max_position_embeddings
        self._is_control = np.array([kind == CONTROL for kind in types])
        written = sorted(
            (re.escape(p) for p, k in zip(pieces, types, strict=True) if k == CONTROL), key=len, reverse=True
        )
        self._control_text = re.compile("|".join(written) or r"(?!)")
        bos, eos = ("" if i is None else pieces[i] for i in (tokenizer.bos_id, tokenizer.eos_id))
        self._chat = ChatTemplate(self.template, bos_token=bos, eos_token=eos)

    def context_hint(self) -> str:
        """What to do about conversations that do not fit, for a message."""
        if self.context_tokens < self._max_context:
            return f"raise --context (this checkpoint allows {self._max_context:,}) or shorten them"
        return "shorten them, or start from a checkpoint with a longer context: this one has no more"

    def render(self, conversation: Conversation) -> Example | None:
        """The example, without final turns that do not fit; None if not even the first target
        answer fits.

        Raises ChatError or SourceError naming the example.
        """
        where = conversation.where
        self._check_texts(conversation)
        text = self._text(conversation, len(conversation.turns), False)
        ids = np.array(self.tokenizer.encode(text, parse_special=True), dtype=np.int64)
        controls = np.flatnonzero(self._is_control[ids])
        loss_mask = np.zeros(len(ids), dtype=np.bool_)
        length, num_turns = 0, 0  # of what fits
        for number, turn in enumerate(conversation.turns):
            if turn.role != "assistant":
                continue
            start = self._start(conversation, number, text, ids)
            ends = controls[controls >= start]
            end = int(ends[0]) if ends.size else -1
            self._check_end(end, ids, self._text(conversation, number + 1, False), text, where)
            if end > self.context_tokens:
                break
            loss_mask[start : end + 1] = turn.is_target
            length, num_turns = end + 1, number + 1
        if not loss_mask[1:length].any():
            return None
        return Example(ids[:length], loss_mask[:length], where, len(conversation.turns) - num_turns)

    def prompt(self, conversation: Conversation, num_turns: int) -> list[int]:
        """The ids of the first turns and the prompt for an answer. Raises ChatError."""
        return self.tokenizer.encode(self._text(conversation, num_turns, True), parse_special=True)

    def controls_in(self, ids: npt.NDArray[np.int64]) -> set[int]:
        """The control tokens among these ids."""
        return set(ids[self._is_control[ids]].tolist())

    def close(self) -> None:
        """End the template's process."""
        self._chat.close()

    def __enter__(self) -> Renderer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _text(self, conversation: Conversation, num_turns: int, prompt: bool) -> str:
        try:
            return self._chat.render(conversation.messages(num_turns), add_generation_prompt=prompt)
        except ChatError as error:
            raise ChatError(f"cannot use {conversation.where}: {error}") from error

    def _check_texts(self, conversation: Conversation) -> None:
        for number, turn in enumerate(conversation.turns, start=1):
            found = self._control_text.search(turn.text)
            if found is not None:
                raise SourceError(
                    f"cannot use {conversation.where}: message {number}: its text holds the control token "
                    f"{found[0]!r}; remove it: only the chat template may write control tokens"
                )

    def _start(self, conversation: Conversation, number: int, text: str, ids: npt.NDArray[np.int64]) -> int:
        """The index of an answer's first token."""
        before = self._text(conversation, number, True)
        if not text.startswith(before):
            raise ChatError(
                f"cannot use {conversation.where}: the chat template is not prefix-stable: it renders the messages "
                f"before message {number + 1} differently once that answer is present, so training would not match "
                "inference; choose another --chat-template"
            )
        known = self.tokenizer.encode(before, parse_special=True)
        if ids[: len(known)].tolist() != known:
            raise ChatError(
                f"cannot use {conversation.where}: the tokenizer merges the beginning of message {number + 1} with the "
                "template's text before it, so training would not match inference; choose another --chat-template"
            )
        return len(known)

    def _check_end(self, end: int, ids: npt.NDArray[np.int64], closed: str, text: str, where: str) -> None:
        if not text.startswith(closed):
            raise ChatError(
                f"cannot use {where}: the chat template is not prefix-stable: it renders an answer differently when "
                "more messages follow; choose another --chat-template"
            )
        if end < 0 or end >= len(self.tokenizer.encode(closed, parse_special=True)):
            raise ChatError(
                f"cannot use {where}: the chat template writes no end token after the answer, so the model would never "
                "learn to stop; choose another --chat-template"
            )
        if int(ids[end]) not in self.end_ids:
            known = ", ".join(sorted(repr(self._pieces[i]) for i in self.end_ids if i < len(self._pieces))) or "none"
            raise ChatError(
                f"cannot use {where}: the chat template ends an answer with {self._pieces[ids[end]]!r}, which is no "
                f"end token of this model (those are: {known}), so the model would not stop; choose another "
                "--chat-template"
            )


def render_examples(
    conversations: Sequence[Conversation], renderer: Renderer, purpose: str = "train on"
) -> tuple[list[Example], RenderCounts]:
    """Render every conversation that fits. Raises TrainingError if none does, ChatError or
    SourceError naming the example."""
    counts, examples = RenderCounts(), []
    for conversation in conversations:
        counts.total += 1
        counts.unanswered += conversation.unanswered
        counts.unused_keys.update(conversation.unused_keys)
        example = renderer.render(conversation)
        if example is None:
            counts.leave_out(conversation.where)
            continue
        counts.keep(example)
        counts.truncated += example.removed_turns > 0
        counts.removed_turns += example.removed_turns
        examples.append(example)
    if conversations and not examples:
        raise TrainingError(
            f"nothing to {purpose}: none of {counts.total:,} conversations fits into {renderer.context_tokens:,} "
            f"tokens with its first answer (the first: {counts.first_too_long}); {renderer.context_hint()}"
        )
    return examples, counts


def default_template(pieces: list[str]) -> str:
    """ChatML's template, if the vocabulary has its control tokens. Raises ChatError."""
    if "<|im_start|>" in pieces and "<|im_end|>" in pieces:
        return CHAT_TEMPLATES["chatml"]
    raise ChatError(
        "the tokenizer has no chat template, and no <|im_start|> and <|im_end|> for ChatML; choose one with "
        f"--chat-template ({', '.join(CHAT_TEMPLATES)})"
    )

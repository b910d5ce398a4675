"""Conversations to token ids and which of them are learned: the assistant's answers, each with its end token.

The text is the chat template's, the ids are those of the whole text, as transformers' apply_chat_template gives them.
An answer's ids begin where the ids of the text before it, with the prompt for an answer, end: what is learned is
exactly what the model will have to say after what it will be given. Where that cannot be so, the example is refused
by name.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from types import TracebackType

import numpy as np
import numpy.typing as npt

from llamita.chat_template import ChatTemplate
from llamita.config import ModelConfig
from llamita.errors import ChatError, SourceError, TokenizerError, TrainingError
from llamita.finetune.conversations import Conversation
from llamita.tokenizer import Tokenizer
from llamita.tokenizer.chat_templates import CHAT_TEMPLATES
from llamita.tokenizer.sentencepiece import CONTROL


@dataclasses.dataclass(frozen=True)
class Example:
    """ids: int64 [N], up to and with the last end token; learned: bool [N], which of them are targets that count.
    cut_turns: how many turns did not fit."""

    ids: npt.NDArray[np.int64]
    learned: npt.NDArray[np.bool_]
    where: str
    cut_turns: int = 0

    @property
    def num_pairs(self) -> int:
        """Pairs of input and target: what it takes of a row."""
        return len(self.ids) - 1


@dataclasses.dataclass
class RenderCounts:
    """What became of the conversations. tokens: pairs of those kept; learned_tokens: targets that count."""

    conversations: int = 0
    kept: int = 0
    cut: int = 0
    cut_turns: int = 0
    too_long: int = 0
    unanswered: int = 0
    tokens: int = 0
    learned_tokens: int = 0
    first_too_long: str | None = None


class Renderer:
    """A checkpoint's tokenizer and chat template, ready to render. Not for several threads at once."""

    def __init__(
        self, tokenizer: Tokenizer, config: ModelConfig, context_tokens: int | None = None, template: str | None = None
    ) -> None:
        """context_tokens: the longest example (None: the model's context). template: Jinja, instead of the tokenizer's;
        a tokenizer that has none but knows ChatML's marks gets ChatML.

        Raises TokenizerError if the tokenizer does not fit the model, ChatError if there is no template.
        """
        if tokenizer.vocab_size > config.vocab_size:
            raise TokenizerError(
                f"the tokenizer does not fit the model: expected at most {config.vocab_size:,} tokens, found "
                f"{tokenizer.vocab_size:,}; bring the checkpoint's own"
            )
        pieces, types = tokenizer.pieces(), tokenizer.types()
        self.tokenizer, self.context_tokens = tokenizer, context_tokens or config.max_position_embeddings
        self.template = template or tokenizer.chat_template or default_template(pieces)
        self.end_ids = frozenset((*config.eos_token_ids, *tokenizer.end_ids))
        self._pieces = pieces
        self._is_control = np.array([kind == CONTROL for kind in types])
        written = sorted(
            (re.escape(p) for p, k in zip(pieces, types, strict=True) if k == CONTROL), key=len, reverse=True
        )
        self._control_text = re.compile("|".join(written) or r"(?!)")
        bos, eos = ("" if i is None else pieces[i] for i in (tokenizer.bos_id, tokenizer.eos_id))
        self._chat = ChatTemplate(self.template, bos_token=bos, eos_token=eos)

    def render(self, conversation: Conversation) -> Example | None:
        """Its ids and mask; turns that do not fit are left out, from the end; None if not even the first answer that is
        learned fits. Raises ChatError or SourceError naming the example."""
        where = conversation.where
        self._check_texts(conversation)
        text = self._text(conversation, len(conversation.turns), False)
        ids = np.array(self.tokenizer.encode(text, parse_special=True), dtype=np.int64)
        controls = np.flatnonzero(self._is_control[ids])
        learned = np.zeros(len(ids), dtype=np.bool_)
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
            learned[start : end + 1] = turn.learned
            length, num_turns = end + 1, number + 1
        if not learned[1:length].any():
            return None
        return Example(ids[:length], learned[:length], where, len(conversation.turns) - num_turns)

    def prompt(self, conversation: Conversation, num_turns: int) -> list[int]:
        """The ids of the first turns and of what asks for an answer. Raises ChatError."""
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
                    f"{found[0]!r}; take it out: the chat template writes those"
                )

    def _start(self, conversation: Conversation, number: int, text: str, ids: npt.NDArray[np.int64]) -> int:
        """Where the ids of an answer begin."""
        before = self._text(conversation, number, True)
        if not text.startswith(before):
            raise ChatError(
                f"cannot use {conversation.where}: the chat template is not prefix-stable: with the answer in message "
                f"{number + 1} it writes the messages before otherwise than it did to ask for it, so what is "
                "learned would not be what is asked; choose another --chat-template"
            )
        known = self.tokenizer.encode(before, parse_special=True)
        if ids[: len(known)].tolist() != known:
            raise ChatError(
                f"cannot use {conversation.where}: the tokenizer joins the beginning of message {number + 1} with the "
                "template's text before it, so what is learned would not be what is asked; choose another "
                "--chat-template"
            )
        return len(known)

    def _check_end(self, end: int, ids: npt.NDArray[np.int64], closed: str, text: str, where: str) -> None:
        if not text.startswith(closed):
            raise ChatError(
                f"cannot use {where}: the chat template is not prefix-stable: it writes an answer otherwise when more "
                "follows; choose another --chat-template"
            )
        if end < 0 or end >= len(self.tokenizer.encode(closed, parse_special=True)):
            raise ChatError(
                f"cannot use {where}: the chat template writes no end token after the answer, so the model would never "
                "learn to stop; choose another --chat-template"
            )
        if int(ids[end]) not in self.end_ids:
            known = ", ".join(sorted(repr(self._pieces[i]) for i in self.end_ids if i < len(self._pieces))) or "none"
            raise ChatError(
                f"cannot use {where}: after the answer the chat template writes {self._pieces[ids[end]]!r}, which ends "
                f"no text of this model's (those that do: {known}), so the model would not stop; choose another "
                "--chat-template"
            )


def render_examples(
    conversations: Sequence[Conversation], renderer: Renderer, aim: str = "learn"
) -> tuple[list[Example], RenderCounts]:
    """Every conversation that fits, and what became of all. Raises TrainingError if there are some and none fits; aim:
    what there is nothing to do then."""
    counts, examples = RenderCounts(), []
    for conversation in conversations:
        counts.conversations += 1
        counts.unanswered += conversation.unanswered
        example = renderer.render(conversation)
        if example is None:
            counts.too_long += 1
            counts.first_too_long = counts.first_too_long or conversation.where
            continue
        counts.kept += 1
        counts.cut += example.cut_turns > 0
        counts.cut_turns += example.cut_turns
        counts.tokens += example.num_pairs
        counts.learned_tokens += int(example.learned[1:].sum())
        examples.append(example)
    if conversations and not examples:
        raise TrainingError(
            f"nothing to {aim}: all answers of the {counts.conversations:,} conversations were cut off (the first: "
            f"{counts.first_too_long}): none fits into {renderer.context_tokens:,} tokens with its question; raise "
            "--context or shorten them"
        )
    return examples, counts


def default_template(pieces: list[str]) -> str:
    """ChatML's, for a tokenizer that knows its marks. Raises ChatError."""
    if "<|im_start|>" in pieces and "<|im_end|>" in pieces:
        return CHAT_TEMPLATES["chatml"]
    raise ChatError(
        "the tokenizer has no chat template, and not ChatML's marks <|im_start|> and <|im_end|>; name one with "
        f"--chat-template ({', '.join(CHAT_TEMPLATES)})"
    )

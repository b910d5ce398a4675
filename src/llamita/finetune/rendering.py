"""Renders conversations with a chat template: token ids, and a mask of the tokens to train on.

The ids are those of the whole rendered text, as apply_chat_template of transformers gives them.
Targets are the assistant's answers, each with its end token. An answer's ids must begin exactly
where those of the prompt for it end, so that training sees what the model will see in a chat.

Some templates do not render a conversation as the beginning of a longer one: they drop thoughts
from earlier answers (Qwen3, SmolLM3), or open an answer with <think> in the prompt and never write
it again (R1). There each answer is an example of its own: the prompt for it, as a chat renders it,
and what the model shall write after it, thoughts included. A template that changes more than
thoughts is an error that names the example; so is one that leaves out anything of a row.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from llamita.chat_template import ChatTemplate
from llamita.config import ModelConfig
from llamita.data.batches import IGNORED
from llamita.data.file_formats import BadRows
from llamita.errors import ChatError, SourceError, TokenizerError, TrainingError
from llamita.finetune.conversations import THOUGHT_KEYS, Conversation, Turn
from llamita.tokenizer import Tokenizer
from llamita.tokenizer.chat_templates import CHAT_TEMPLATES
from llamita.tokenizer.sentencepiece import CONTROL

MAX_KEYS: Final = 8  # unused keys that are named
_OPEN, _CLOSE = "<think>", "</think>"
_OPENED: Final = re.compile(r"<think>\s*\Z")  # at the end of a prompt
_THOUGHT: Final = re.compile(r"\s*<think>(.*?)</think>\s*", re.DOTALL)  # at the beginning of an answer


class _Rewritten(ChatError):
    """The template renders the beginning of a conversation differently when it goes on."""


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
    line_ends: int = 0  # CRLF and CR that became LF
    split: int = 0  # conversations whose answers are examples of their own
    files: list[str] = dataclasses.field(default_factory=list)  # how they were encoded, if not UTF-8
    skipped: list[str] = dataclasses.field(default_factory=list)  # bad rows, what is wrong with each

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
        lines = list(self.files)
        if self.truncated:
            lines.append(f"truncated: {self.truncated:,} conversations, {self.removed_turns:,} turns removed")
        if self.too_long:
            lines.append(
                f"too long: {self.too_long:,} {self.unit} left out, the first: {self.first_too_long}; a larger "
                "--context keeps them, here and when the base model is trained"
            )
        if self.ties:
            lines.append(f"ties: {self.ties:,} pairs of identical answers left out")
        if self.unanswered:
            lines.append(f"unanswered: {self.unanswered:,} final questions without an answer removed")
        if self.split:
            lines.append(
                f"answers apart: of {self.split:,} conversations each answer is an example of its own, because the "
                "chat template renders earlier answers differently"
            )
        if self.line_ends:
            lines.append(f"line ends: {self.line_ends:,} CRLF or CR became LF")
        if self.skipped:
            lines += [f"skipped: {len(self.skipped):,} bad rows", *(f"  {error}" for error in self.skipped)]
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

    def render(self, conversation: Conversation) -> list[Example]:
        """The conversation as one example, without final turns that do not fit; or, if the template
        drops earlier thoughts, each target answer that fits as one. Empty if not even the first
        target answer fits.

        Raises ChatError or SourceError naming the example.
        """
        self._check_texts(conversation)
        try:
            example = self._render_whole(conversation)
        except _Rewritten as error:
            return self._render_answers(conversation, error)
        return [] if example is None else [example]

    def _render_whole(self, conversation: Conversation) -> Example | None:
        where = conversation.where
        text = self._text(conversation, len(conversation.turns), False)
        ids = np.array(self.tokenizer.encode(text, parse_special=True), dtype=np.int64)
        controls = np.flatnonzero(self._is_control[ids])
        loss_mask = np.zeros(len(ids), dtype=np.bool_)
        length, num_turns = 0, 0  # of what fits
        for number, turn in enumerate(conversation.turns):
            if turn.role != "assistant":
                continue
            start = self._start(conversation, number, text, ids)
            num_closed = len(ids)
            if number + 1 < len(conversation.turns):
                closed = self._text(conversation, number + 1, False)
                if not text.startswith(closed):
                    raise _Rewritten(
                        f"cannot use {where}: the chat template is not prefix-stable: it renders an answer "
                        "differently when more messages follow; choose another --chat-template"
                    )
                num_closed = len(self.tokenizer.encode(closed, parse_special=True))
            end = self._end(start, ids, num_closed, controls, where)
            if end > self.context_tokens:
                break
            loss_mask[start : end + 1] = turn.is_target
            length, num_turns = end + 1, number + 1
        self._check_written(conversation, text)
        if not loss_mask[1:length].any():
            return None
        return Example(ids[:length], loss_mask[:length], where, len(conversation.turns) - num_turns)

    def _render_answers(self, conversation: Conversation, error: _Rewritten) -> list[Example]:
        """Each target answer after the prompt that a chat renders for it."""
        where, found, num_turns, left_out = conversation.where, list[Example](), 0, 0
        for number, turn in enumerate(conversation.turns):
            if not turn.is_target:
                continue
            prompt = self._text(conversation, number, True)
            answer = self._answer(conversation, number, prompt)
            if answer is None:
                raise ChatError(str(error)) from None
            self._check_written(conversation, prompt, number, error)
            self._check_answer(turn, answer, number, where)
            known = self.tokenizer.encode(prompt, parse_special=True)
            ids = np.array(self.tokenizer.encode(prompt + answer, parse_special=True), dtype=np.int64)
            self._check_joint(known, ids, number, where)
            end = self._end(len(known), ids, len(ids), np.flatnonzero(self._is_control[ids]), where)
            if end > self.context_tokens:
                left_out += 1
                continue
            loss_mask = np.zeros(end + 1, dtype=np.bool_)
            loss_mask[len(known) :] = True
            found.append(Example(ids[: end + 1], loss_mask, where))
            num_turns, left_out = number + 1, 0
        if found and left_out:
            found[-1] = dataclasses.replace(found[-1], removed_turns=len(conversation.turns) - num_turns)
        return found

    def _answer(self, conversation: Conversation, number: int, prompt: str) -> str | None:
        """What the model shall write after the prompt for a turn, and what the template writes after
        it; None if the prompt is not the beginning of the conversation with the answer."""
        closed = self._text(conversation, number + 1, False)
        if closed.startswith(prompt):
            return closed[len(prompt) :]
        opened = _OPENED.search(prompt)
        if opened is None:
            return None
        turn = conversation.turns[number]
        thought, text = split_thought(turn)
        more = {key: value for key, value in turn.more.items() if value != turn.thought}
        bare = dataclasses.replace(turn, text=text, more=more)
        turns = (*conversation.turns[:number], bare)
        closed = self._text(dataclasses.replace(conversation, turns=turns), number + 1, False)
        rest = closed[opened.start() :]
        if not closed.startswith(prompt[: opened.start()]) or _OPEN in rest:
            return None
        line_end = "" if opened.group().endswith("\n") else "\n"
        return f"{line_end}{thought}\n{_CLOSE}\n\n{rest.lstrip(chr(10))}"

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
            messages = conversation.messages(num_turns)
            return self._chat.render(messages, add_generation_prompt=prompt, tools=conversation.tools)
        except ChatError as error:
            raise ChatError(f"cannot use {conversation.where}: {error}") from error

    def _check_texts(self, conversation: Conversation) -> None:
        for number, turn in enumerate(conversation.turns, start=1):
            thought, text = split_thought(turn)
            more = json.dumps(turn.calls, ensure_ascii=False) if turn.calls else ""
            found = self._control_text.search("\n".join((thought, text, more)))
            if found is not None:
                raise SourceError(
                    f"cannot use {conversation.where}: message {number}: its text holds the control token "
                    f"{found[0]!r}; remove it: only the chat template may write control tokens"
                )

    def _check_written(
        self, conversation: Conversation, text: str, num_turns: int | None = None, error: _Rewritten | None = None
    ) -> None:
        """Raise SourceError if the template leaves out something of the first turns other than the
        thoughts before earlier answers; `error` if it is an earlier answer.

        What is written is found by marks, for a short text may stand elsewhere too. A conversation
        of user and assistant alone is looked for as it is, which is faster.
        """
        where, turns = conversation.where, conversation.turns[:num_turns]
        advice = "which does not write it; remove the example, or choose another --chat-template"
        is_plain = not conversation.tools and all(
            turn.role in ("user", "assistant") and not turn.more and turn.text for turn in turns
        )
        shown = None if is_plain else self._text(_marked(conversation), num_turns or len(turns), error is not None)
        if shown is not None and any(_mark(_TOOL, number) not in shown for number in range(len(conversation.tools))):
            raise SourceError(
                f"cannot use {where}: training with 'tools' is not supported by the chat template, {advice}"
            )
        for number, turn in enumerate(turns):
            place = f"cannot use {where}: message {number + 1}"
            if turn.text and not (
                _is_written(split_thought(turn)[1], text) if shown is None else _mark(_CONTENT, number) in shown
            ):
                if error is not None and turn.role not in ("developer", "tool"):
                    raise ChatError(str(error)) from None
                raise SourceError(
                    f"{place}: a message of the {turn.role} is not supported by the chat template, {advice}"
                )
            if shown is not None and turn.calls and _mark(_CALL, number) not in shown:
                raise SourceError(f"{place}: training on tool calls is not supported by the chat template, {advice}")
            thought = split_thought(turn)[0]
            if thought and error is None and turn.is_target:
                is_marked = shown is not None and bool(turn.thought)
                is_written = _mark(_THINKS, number) in (shown or "") if is_marked else _is_written(thought, text)
                self._check_thought(turn, is_written, place)

    def _check_answer(self, turn: Turn, answer: str, number: int, where: str) -> None:
        """Raise SourceError if an answer lacks what its turn says."""
        place = f"cannot use {where}: message {number + 1}"
        thought, text = split_thought(turn)
        names = [call["function"]["name"] for call in turn.calls]
        if not all(_is_written(each, answer) for each in (text, *names)):
            raise SourceError(
                f"{place}: the chat template does not write the whole answer; choose another --chat-template"
            )
        self._check_thought(turn, _is_written(thought, answer), place)

    def _check_thought(self, turn: Turn, is_written: bool, place: str) -> None:
        if not is_written:
            key = next((key for key in THOUGHT_KEYS if key in turn.more), "<think>")
            raise SourceError(
                f"{place}: training on {key!r} is not supported by the chat template, which does not write it; remove "
                "the key, to learn the answer alone, or the example"
            )

    def _start(self, conversation: Conversation, number: int, text: str, ids: npt.NDArray[np.int64]) -> int:
        """The index of an answer's first token."""
        before = self._text(conversation, number, True)
        if not text.startswith(before):
            raise _Rewritten(
                f"cannot use {conversation.where}: the chat template is not prefix-stable: it renders the messages "
                f"before message {number + 1} differently once that answer is present, so training would not match "
                "inference; choose another --chat-template"
            )
        known = self.tokenizer.encode(before, parse_special=True)
        self._check_joint(known, ids, number, conversation.where)
        return len(known)

    def _check_joint(self, known: list[int], ids: npt.NDArray[np.int64], number: int, where: str) -> None:
        if ids[: len(known)].tolist() != known:
            raise ChatError(
                f"cannot use {where}: the tokenizer merges the beginning of message {number + 1} with the "
                "template's text before it, so training would not match inference; choose another --chat-template"
            )

    def _end(
        self, start: int, ids: npt.NDArray[np.int64], closed: int, controls: npt.NDArray[np.int64], where: str
    ) -> int:
        """The index of the end token of an answer that begins at `start`. closed: the number of ids up
        to the next message. controls: the indexes of control tokens."""
        inside = [int(each) for each in controls[(controls >= start) & (controls < closed)]]
        if not inside:
            raise ChatError(
                f"cannot use {where}: the chat template writes no end token after the answer, so the model would never "
                "learn to stop; choose another --chat-template"
            )
        for end in inside:  # marks of tool calls and thoughts may come before
            if int(ids[end]) in self.end_ids:
                return end
        known = ", ".join(sorted(repr(self._pieces[i]) for i in self.end_ids if i < len(self._pieces))) or "none"
        raise ChatError(
            f"cannot use {where}: the chat template ends an answer with {self._pieces[ids[inside[0]]]!r}, which is no "
            f"end token of this model (those are: {known}), so the model would not stop; choose another "
            "--chat-template"
        )


# Marks are private-use characters, one for each kind of content and message.
_CONTENT, _CALL, _THINKS, _TOOL = range(0xF0000, 0xF4000, 0x1000)


def _mark(kind: int, number: int) -> str:
    return chr(kind + number % 0x1000)


def _marked(conversation: Conversation) -> Conversation:
    """The conversation with a mark in every content, thought, and name of a call or tool."""
    turns = []
    for number, turn in enumerate(conversation.turns):
        more = {
            **turn.more,
            **{key: turn.more[key] + _mark(_THINKS, number) for key in THOUGHT_KEYS if key in turn.more},
        }
        if turn.calls:
            more["tool_calls"] = [_renamed(call, _mark(_CALL, number)) for call in turn.calls]
        text = turn.text + _mark(_CONTENT, number) if turn.text else ""
        turns.append(dataclasses.replace(turn, text=text, more=more))
    tools = [_renamed(tool, _mark(_TOOL, number)) for number, tool in enumerate(conversation.tools)]
    return dataclasses.replace(conversation, turns=tuple(turns), tools=tools)


def _renamed(tool: Mapping[str, Any], mark: str) -> dict[str, Any]:
    """A tool or a call with a mark at the end of its name."""
    if isinstance(tool.get("function"), dict):
        return {**tool, "function": {**tool["function"], "name": tool["function"]["name"] + mark}}
    return {**tool, "name": tool["name"] + mark}


def split_thought(turn: Turn) -> tuple[str, str]:
    """What the model thinks before an answer, and the answer. A thought may be in the text, between
    <think> and </think>."""
    if turn.role != "assistant" or turn.thought:
        return turn.thought, turn.text
    found = _THOUGHT.match(turn.text)
    return ("", turn.text) if found is None else (found[1].strip(), turn.text[found.end() :])


def _is_written(content: str, text: str) -> bool:
    """Whether a text has some content, as it is or as JSON."""
    content = content.strip()
    return content in text or any(
        json.dumps(content, ensure_ascii=as_ascii)[1:-1] in text for as_ascii in (False, True)
    )


def render_examples(
    conversations: Sequence[Conversation],
    renderer: Renderer,
    purpose: str = "train on",
    bad: BadRows | None = None,
) -> tuple[list[Example], RenderCounts]:
    """Render every conversation that fits. bad: takes those that cannot be rendered.

    Raises TrainingError if none fits, ChatError or SourceError naming the example."""
    counts, examples = RenderCounts(), []
    bad = bad or BadRows()
    for conversation in conversations:
        counts.total += 1
        try:
            found = renderer.render(conversation)
        except (ChatError, SourceError) as error:
            bad.skip(error)
            continue
        counts.unanswered += conversation.unanswered
        counts.unused_keys.update(conversation.unused_keys)
        counts.line_ends += conversation.line_ends
        if not found:
            counts.leave_out(conversation.where)
            continue
        counts.keep(*found)
        counts.split += len(found) > 1
        counts.truncated += found[-1].removed_turns > 0
        counts.removed_turns += found[-1].removed_turns
        examples += found
    if conversations and not examples:
        if not counts.too_long:
            raise TrainingError(f"nothing to {purpose}: all {counts.total:,} conversations are bad: {bad.skipped[-1]}")
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

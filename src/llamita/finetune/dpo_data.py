"""Preference data: reads and renders pairs of a chosen and a rejected answer, and packs batches.

{"prompt": …, "chosen": …, "rejected": …}                 TRL: texts, or lists of messages
{"chosen": [messages], "rejected": [messages]}             TRL: whole conversations, with or without "prompt"
{"conversations": […], "chosen": {…}, "rejected": {…}}     LLaMA-Factory; also "messages"; optional "system"
{"question": …, "chosen": …, "rejected": …}
{"instruction": …, "input": …, "chosen": …, "rejected": …} "input" may be missing or empty
{"chosen": "\\n\\nHuman: …\\n\\nAssistant: …", "rejected": …}   hh-rlhf: a conversation as one text

"history" and unused keys are treated as in conversations.

A batch has the chosen conversations in the first half of its rows and the rejected ones in the
second. A pair takes the same place in both halves, as long as its longer conversation, so best fit
packs pairs as it packs conversations, and both answers are always in the same batch of the same
process.

Shape letters: B rows (an even number), T time, P pairs of a batch.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from llamita.config import FinetuneConfig
from llamita.data.batches import IGNORED, Piece, RowStream
from llamita.data.file_formats import BadRows, Row, json_name, list_keys, read_files
from llamita.errors import ChatError, ConfigError, SourceError, TrainingError
from llamita.finetune.conversations import (
    Conversation,
    check_meaning,
    clean_row,
    messages_of,
    read_conversation,
    role_of,
    turns_key,
    unused_keys,
)
from llamita.finetune.dataset import Dataset, open_dataset
from llamita.finetune.evaluate import MAX_ASKED
from llamita.finetune.packing import document_starts
from llamita.finetune.rendering import Example, RenderCounts, Renderer

ANSWERS: Final = ("chosen", "rejected")
_ASKED: Final = ("conversations", "messages", "prompt", "question", "instruction")
PAIR_FORMS: Final = "chosen and rejected with prompt, conversations, messages, question or instruction"


@dataclasses.dataclass(frozen=True)
class Preference:
    """Two conversations that differ in their last answer, which is the only target of each."""

    chosen: Conversation
    rejected: Conversation
    where: str
    unused_keys: tuple[str, ...] = ()
    line_ends: int = 0  # CRLF and CR that became LF

    @property
    def is_tie(self) -> bool:
        """Whether both answers are the same."""
        return self.chosen.turns[-1] == self.rejected.turns[-1]

    @property
    def conversation(self) -> Conversation:
        return self.chosen

    @property
    def split_key(self) -> str:
        """The prompt: all pairs of one prompt are on the same side of the split."""
        return turns_key(self.chosen.turns[:-1])


def read_preferences(
    data: Path | Sequence[Path],
    columns: tuple[str, str, str] | None = None,
    system: str | None = None,
    bad: BadRows | None = None,
) -> Iterator[Preference]:
    """Every pair in files or folders, in order.

    columns: the keys of the prompt, the chosen and the rejected answer. system: a system prompt for
    conversations without one. bad: takes rows that cannot be used. Raises SourceError naming file
    and line, also if there is no pair.
    """
    return read_files(data, "preferences", lambda row: read_preference(row, columns, system), bad)


def read_preference(row: Row, columns: tuple[str, str, str] | None = None, system: str | None = None) -> Preference:
    """The pair in one row. Raises SourceError."""
    values, line_ends = clean_row(row.values)
    row = row._replace(values=values)
    where = row.where
    prompt, *answers = columns or (None, *ANSWERS)
    missing = [name for name in (prompt, *answers) if name is not None and values.get(name) is None]
    if missing:
        advice = "choose existing columns" if columns else f"expected {PAIR_FORMS}"
        raise SourceError(f"cannot use {where}: it has no {missing[0]!r}, found {list_keys(values)}; {advice}")
    check_meaning(values, where)
    asked = prompt or next((key for key in _ASKED if values.get(key) is not None), None)
    chosen, rejected = (_conversation(row, name, asked, system) for name in answers)
    for number, (one, other) in enumerate(zip(chosen.turns[:-1], rejected.turns[:-1], strict=False), start=1):
        if one != other:
            raise SourceError(
                f"cannot use {where}: message {number} differs between {answers[0]} and {answers[1]}: expected two "
                "conversations that differ only in their last answer"
            )
    if len(chosen.turns) != len(rejected.turns):
        raise SourceError(
            f"cannot use {where}: {answers[0]} has {len(chosen.turns)} messages, {answers[1]} {len(rejected.turns)}: "
            "expected two conversations that differ only in their last answer"
        )
    used = [
        *answers,
        "system",
        "history",
        "tools",
        *([asked] if asked else []),
        *(["input"] if asked == "instruction" else []),
    ]
    return Preference(chosen, rejected, where, unused_keys(values, used), line_ends)


def _conversation(row: Row, name: str, asked: str | None, system: str | None) -> Conversation:
    """The conversation that ends with the answer under the key `name`, its only target."""
    values, answer = row.values, messages_of(row.values[name])
    before = None if asked is None else messages_of(values[asked])
    where = f"{row.where} ({name})"
    if isinstance(answer, dict):
        answer = [answer]
    if not isinstance(answer, (str, list)):
        raise SourceError(f"cannot use {where}: expected a string or messages, found {json_name(answer)}")
    if isinstance(answer, str) and asked is None and _DIALOGUE.match(answer):
        answer = _dialogue(answer)
    whole: dict[str, Any] = {key: values.get(key) for key in ("system", "history", "tools")}
    if isinstance(answer, list) and _is_whole(answer):
        _check_prompt(before, asked, answer, where)
        whole["messages"] = answer
    elif asked is None:
        raise SourceError(f"cannot use {where}: no prompt; expected {PAIR_FORMS}")
    elif asked == "instruction" and isinstance(answer, str):
        whole |= {"instruction": values[asked], "input": values.get("input"), "output": answer}
    elif isinstance(before, str) and isinstance(answer, str):
        whole |= {"prompt": before, "completion": answer}
    else:
        before = [{"role": "user", "content": before}] if isinstance(before, str) else before
        if not isinstance(before, list):
            raise SourceError(
                f"cannot use {row.where}: {asked}: expected a string or messages, found {json_name(before)}"
            )
        whole["messages"] = before + ([{"role": "assistant", "content": answer}] if isinstance(answer, str) else answer)
        if isinstance(answer, list) and answer and role_of(answer[0]) != "assistant":
            speaker = role_of(answer[0]) or "message of another role"
            raise SourceError(
                f"cannot use {where}: message {len(before) + 1}: expected the assistant, found the {speaker}"
            )
    found = read_conversation(Row(where, whole), system=system)
    if found.unanswered:
        raise SourceError(f"cannot use {where}: expected an assistant message at its end, found a user message")
    if len(found.turns) > 1 and found.turns[-2].role == "assistant":
        raise SourceError(
            f"cannot use {where}: message {len(found.turns)}: expected the user, found the assistant: the prompt ends "
            "with an answer"
        )
    turns = (*(dataclasses.replace(turn, is_target=False) for turn in found.turns[:-1]), found.turns[-1])
    if not turns[-1].is_target:
        raise SourceError(f"cannot use {where}: its answer has weight 0; remove the weight, or the example")
    return dataclasses.replace(found, turns=turns, where=where)


# Anthropic's hh-rlhf writes a whole conversation as one text.
_DIALOGUE: Final = re.compile(r"\s*Human:")
_SPEAKER: Final = re.compile(r"(?:^|\n\n)\s*(Human|Assistant):")


def _dialogue(text: str) -> list[dict[str, str]]:
    """The messages in "\\n\\nHuman: … \\n\\nAssistant: …"."""
    _, *parts = _SPEAKER.split(text)
    roles = {"Human": "user", "Assistant": "assistant"}
    return [{"role": roles[name], "content": said} for name, said in zip(parts[::2], parts[1::2], strict=True)]


def _is_whole(messages: list[Any]) -> bool:
    """Whether the messages are a whole conversation, prompt included."""
    return len(messages) > 1 and role_of(messages[0]) != "assistant"


def _check_prompt(prompt: Any, asked: str | None, answer: list[Any], where: str) -> None:
    """A prompt next to whole conversations must be part of them, or it would be ambiguous."""
    texts = [each.get("content", each.get("value")) for each in answer if isinstance(each, dict)]
    if isinstance(prompt, str) and prompt.strip() not in [text.strip() for text in texts if isinstance(text, str)]:
        raise SourceError(
            f"cannot use {where}: it is a whole conversation that lacks the {asked} next to it; expected only an "
            f"answer, or the {asked} among its messages"
        )
    if isinstance(prompt, list) and prompt and answer[: len(prompt)] != prompt:
        raise SourceError(
            f"cannot use {where}: it is a whole conversation that does not begin with {asked}; expected only an "
            f"answer, or a conversation that begins with {asked}"
        )


# ---------------------------------------------------------------- rendered pairs


class Pair(NamedTuple):
    """A rendered preference. The targets are the last answer and its end token."""

    chosen: Example
    rejected: Example

    @property
    def examples(self) -> tuple[Example, ...]:
        return (self.chosen, self.rejected)

    @property
    def length(self) -> int:
        """Positions it takes in a row of each half."""
        return max(self.chosen.length, self.rejected.length)


DpoDataset = Dataset[Pair]


def open_dpo_dataset(config: FinetuneConfig, device: str) -> DpoDataset:
    """Read and render pairs. device: "cpu", "cuda" or "mps". Raises what open_dataset raises."""
    if config.columns is not None:
        raise ConfigError(
            "finetune: --columns names questions and answers; with --preference the keys are prompt, chosen, rejected"
        )

    def read(path: Path, bad: BadRows) -> Iterable[Preference]:
        return read_preferences(path, system=config.system, bad=bad)

    return open_dataset(config, device, read, render_pairs, MAX_ASKED)


def render_pairs(
    preferences: Sequence[Preference],
    renderer: Renderer,
    purpose: str = "train on",
    bad: BadRows | None = None,
) -> tuple[list[Pair], RenderCounts]:
    """Render every pair that is not a tie and of which both conversations fit. bad: takes those that
    cannot be rendered.

    Raises TrainingError if none is left, ChatError or SourceError naming the example.
    """
    counts, pairs = RenderCounts("pairs"), []
    bad = bad or BadRows()
    for preference in preferences:
        counts.total += 1
        counts.unused_keys.update(preference.unused_keys)
        counts.line_ends += preference.line_ends
        if preference.is_tie:
            counts.ties += 1
            continue
        try:
            found = [*renderer.render(preference.chosen), *renderer.render(preference.rejected)]
        except (ChatError, SourceError) as error:
            bad.skip(error)
            continue
        if len(found) < 2:  # each has one target
            counts.leave_out(preference.where)
            continue
        chosen, rejected = found
        counts.keep(chosen, rejected)
        pairs.append(Pair(chosen, rejected))
    if preferences and not pairs and not (counts.ties or counts.too_long):
        raise TrainingError(f"nothing to {purpose}: all {counts.total:,} pairs are bad: {bad.skipped[-1]}")
    if preferences and not pairs:
        too_long = (
            f" and {counts.too_long:,} do not fit into {renderer.context_tokens:,} tokens (the first: "
            f"{counts.first_too_long}); {renderer.context_hint()}"
        )
        raise TrainingError(
            f"nothing to {purpose}: of {counts.total:,} pairs {counts.ties:,} have identical answers"
            + (too_long if counts.too_long else "; expected chosen and rejected to differ")
        )
    return pairs, counts


# ---------------------------------------------------------------- batches


class DpoBatch(NamedTuple):
    """inputs, targets, segments: int64 [B, T] of this process; row b has the chosen conversations
    of the pairs whose rejected ones are in row b + B/2. segments: the pair that a position belongs
    to, P for padding; attention must stay within each. reference: float64 [2, P], the
    log-probability of each chosen and rejected answer under the reference. num_targets: pairs, over
    all processes. positions, cu_seqlens: see PackedBatch."""

    inputs: npt.NDArray[np.int64]
    targets: npt.NDArray[np.int64]
    num_targets: int
    segments: npt.NDArray[np.int64]
    reference: npt.NDArray[np.float64]
    positions: npt.NDArray[np.int64]
    cu_seqlens: npt.NDArray[np.int32]


class Pairs:
    """Rendered pairs as data.batches.Documents."""

    def __init__(self, pairs: Sequence[Pair], reference: npt.NDArray[np.float64] | None = None) -> None:
        """reference: float64 [2, number of pairs], see DpoBatch; may be set later, before the first
        batch."""
        assert all(example.num_targets for pair in pairs for example in pair)
        self.pairs, self.reference = list(pairs), reference
        self.lengths = np.array([pair.length for pair in pairs], dtype=np.int64)
        answer_tokens = [[example.num_targets for example in pair] for pair in pairs]
        self.answer_tokens = np.array(answer_tokens, dtype=np.int64).reshape(-1, 2).T  # [2, pairs]

    @property
    def num_documents(self) -> int:
        return len(self.pairs)

    @property
    def num_tokens(self) -> int:
        return sum(example.length for pair in self.pairs for example in pair)

    def document(self, index: int, /) -> npt.NDArray[np.int64]:
        """The targets of the chosen conversation, masked ones included."""
        return self.pairs[index].chosen.ids[1:]

    def batch(self, rows: Sequence[Sequence[Piece]], context: int, num_targets: int) -> DpoBatch:
        """The batch of these rows of packed pairs; its reference is zeros if there is none."""
        shape = (2 * len(rows), context)
        documents = [piece.document for row in rows for piece in row]
        inputs, targets = np.zeros(shape, dtype=np.int64), np.full(shape, IGNORED, dtype=np.int64)
        segments = np.full(shape, len(documents), dtype=np.int64)
        number = 0
        for index, row in enumerate(rows):
            start = 0
            for piece in row:
                for half, example in enumerate(self.pairs[piece.document]):
                    b, end = index + half * len(rows), start + example.length
                    inputs[b, start:end], targets[b, start:end] = example.inputs, example.targets
                    segments[b, start:end] = number
                start += piece.length
                number += 1
        reference = np.zeros((2, number)) if self.reference is None else self.reference[:, documents]
        reference, positions = np.ascontiguousarray(reference), np.flatnonzero(targets != IGNORED)
        return DpoBatch(inputs, targets, num_targets, segments, reference, positions, document_starts(segments))


class DpoBatches(RowStream):
    """An endless iterator of batches, packed by best fit without splitting a pair.

    num_targets counts the pairs in the rows of all processes, so that a loss divided by it is the
    mean over the step. batch_size: rows of each half, so a batch has twice as many.
    """

    splits_documents = False

    def __init__(
        self, pairs: Pairs, context: int, batch_size: int, seed: int, rank: int = 0, world_size: int = 1
    ) -> None:
        super().__init__(pairs, context, batch_size, seed, rank, world_size)
        self.pairs = pairs

    def __iter__(self) -> Iterator[DpoBatch]:
        return self

    def __next__(self) -> DpoBatch:
        assert self.pairs.reference is not None, "the reference must be set first"
        own, rows = self._step_rows()
        return self.pairs.batch(own, self.context, sum(map(len, rows)))

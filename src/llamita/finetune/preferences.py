"""Rows of preferences to pairs of conversations that differ in their last answer alone: the better and the worse.

{"prompt": …, "chosen": …, "rejected": …}                 TRL's: texts, or lists of messages
{"chosen": [messages], "rejected": [messages]}             TRL's whole conversations, "prompt" beside them or not
{"conversations": […], "chosen": {…}, "rejected": {…}}     LLaMA-Factory's; "messages" too; with "system" beside it
{"question": …, "chosen": …, "rejected": …}
{"instruction": …, "input": …, "chosen": …, "rejected": …} "input" may be missing or empty
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

from llamita.data.readers import json_name
from llamita.data.records import Row, list_example_files, read_rows
from llamita.errors import SourceError
from llamita.finetune.conversations import Conversation, read_conversation

ANSWERS: Final = ("chosen", "rejected")
_ASKED: Final = ("conversations", "messages", "prompt", "question", "instruction")
FORMS: Final = "chosen and rejected with prompt, conversations, messages, question or instruction"


@dataclasses.dataclass(frozen=True)
class Preference:
    """Two conversations with the same beginning; the last answer of each, and no other, is what is preferred or not."""

    chosen: Conversation
    rejected: Conversation
    where: str

    @property
    def is_tie(self) -> bool:
        """Whether both answers are the same, so that there is nothing to prefer."""
        return self.chosen.turns[-1].text == self.rejected.turns[-1].text


def read_preferences(
    data: Path | Sequence[Path], columns: tuple[str, str, str] | None = None, system: str | None = None
) -> Iterator[Preference]:
    """Every pair of files or folders, in order.

    columns: the keys of the prompt, the better and the worse answer, where they have other names. system: a system
    prompt for conversations that have none. Raises SourceError naming file, line and what is wrong, also if there is
    no pair at all.
    """
    paths = [data] if isinstance(data, (str, Path)) else list(data)
    found = 0
    for path in paths:
        for file in list_example_files(Path(path)):
            for row in read_rows(file):
                found += 1
                yield read_preference(row, columns, system)
    if not found:
        raise SourceError(f"no preferences in {', '.join(map(str, paths))}: the files are empty")


def read_preference(row: Row, columns: tuple[str, str, str] | None = None, system: str | None = None) -> Preference:
    """One row's pair. Raises SourceError."""
    values, where = row.values, row.where
    prompt, *answers = columns or (None, *ANSWERS)
    missing = [name for name in (prompt, *answers) if name is not None and values.get(name) is None]
    if missing:
        found = ", ".join(map(repr, list(values)[:12])) or "nothing"
        advice = "name columns it has" if columns else f"expected {FORMS}"
        raise SourceError(f"cannot use {where}: no {missing[0]!r} in it, found {found}; {advice}")
    chosen, rejected = (_conversation(row, name, prompt, system) for name in answers)
    for number, (one, other) in enumerate(zip(chosen.turns[:-1], rejected.turns[:-1], strict=False), start=1):
        if one != other:
            raise SourceError(
                f"cannot use {where}: message {number} differs between {answers[0]} and {answers[1]}: expected two "
                "conversations that differ in their last answer alone"
            )
    if len(chosen.turns) != len(rejected.turns):
        raise SourceError(
            f"cannot use {where}: {answers[0]} has {len(chosen.turns)} messages, {answers[1]} {len(rejected.turns)}: "
            "expected two conversations that differ in their last answer alone"
        )
    return Preference(chosen, rejected, where)


def _conversation(row: Row, name: str, prompt: str | None, system: str | None) -> Conversation:
    """The conversation that ends in the answer of that name; nothing before is learned."""
    values, answer = row.values, row.values[name]
    asked = prompt or next((key for key in _ASKED if values.get(key) is not None), None)
    where = f"{row.where} ({name})"
    if isinstance(answer, dict):
        answer = [answer]
    if not isinstance(answer, (str, list)):
        raise SourceError(f"cannot use {where}: expected a text or messages, found {json_name(answer)}")
    whole: dict[str, Any] = {"system": values.get("system")}
    if isinstance(answer, list) and _begins(answer):
        _check_prompt(row, asked, answer, where)
        whole["messages"] = answer
    elif asked is None:
        raise SourceError(f"cannot use {where}: it has no prompt; expected {FORMS}")
    elif asked == "instruction" and isinstance(answer, str):
        whole |= {"instruction": values[asked], "input": values.get("input"), "output": answer}
    elif isinstance(values[asked], str) and isinstance(answer, str):
        whole |= {"prompt": values[asked], "completion": answer}
    else:
        before = values[asked]
        before = [{"role": "user", "content": before}] if isinstance(before, str) else before
        if not isinstance(before, list):
            raise SourceError(
                f"cannot use {row.where}: {asked}: expected a text or messages, found {json_name(before)}"
            )
        whole["messages"] = before + ([{"role": "assistant", "content": answer}] if isinstance(answer, str) else answer)
    said = read_conversation(Row(where, whole), system=system)
    if said.unanswered:
        raise SourceError(f"cannot use {where}: expected the assistant's answer at its end, found the user's text")
    turns = (*(dataclasses.replace(turn, learned=False) for turn in said.turns[:-1]), said.turns[-1])
    if not turns[-1].learned:
        raise SourceError(f"cannot use {where}: its answer has weight 0, so there is nothing to prefer")
    return Conversation(turns, where)


def _begins(messages: list[Any]) -> bool:
    """Whether the messages begin a conversation, so that the prompt is among them."""
    first = messages[0] if messages and isinstance(messages[0], dict) else {}
    return len(messages) > 1 and first.get("role", first.get("from")) not in ("assistant", "gpt", "model")


def _check_prompt(row: Row, asked: str | None, answer: list[Any], where: str) -> None:
    """A prompt beside whole conversations must be one that they hold: else it is not known what was asked."""
    prompt = None if asked is None else row.values[asked]
    texts = [each.get("content", each.get("value")) for each in answer if isinstance(each, dict)]
    if isinstance(prompt, str) and prompt.strip() not in [text.strip() for text in texts if isinstance(text, str)]:
        raise SourceError(
            f"cannot use {where}: it is a whole conversation without the {asked} beside it; expected answers alone, or "
            f"the {asked} among its messages"
        )
    if isinstance(prompt, list) and prompt and answer[: len(prompt)] != prompt:
        raise SourceError(
            f"cannot use {where}: it begins a conversation of its own beside {asked}; expected answers alone, or a "
            f"conversation that begins with {asked}"
        )

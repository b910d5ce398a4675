"""Reads conversations from files of examples, in the forms that published datasets use.

{"messages": [{"role": …, "content": …}, …]}          OpenAI; "weight": 0 masks an answer
{"conversations": [{"from": …, "value": …}, …]}       ShareGPT; optional "system"
{"prompt": …, "completion": …}                        texts, or lists of messages
{"question": …, "answer": …}
{"instruction": …, "input": …, "output": …}           Alpaca; "input" may be missing or empty
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Literal

from llamita.data.records import Row, json_name, list_keys, read_files
from llamita.errors import SourceError

Role = Literal["system", "user", "assistant"]
# Names of roles in published datasets.
_ROLES: Final[dict[str, Role]] = {
    "system": "system", "user": "user", "human": "user", "prompter": "user",
    "assistant": "assistant", "gpt": "assistant", "model": "assistant", "bot": "assistant", "chatgpt": "assistant",
}  # fmt: skip
_PAIRS: Final = (("prompt", "completion"), ("question", "answer"), ("instruction", "output"))
FORMS: Final = "messages, conversations, prompt and completion, question and answer, or instruction and output"


@dataclasses.dataclass(frozen=True)
class Turn:
    """is_target: whether the model is trained to produce it, as only an assistant's turn can be."""

    role: Role
    text: str
    is_target: bool = False


@dataclasses.dataclass(frozen=True)
class Conversation:
    """An optional system prompt, then user and assistant in turns, ending with an answer.

    where: the file and line, item or row. unanswered: a final question without an answer was
    removed."""

    turns: tuple[Turn, ...]
    where: str
    unanswered: bool = False

    def messages(self, num_turns: int | None = None) -> list[dict[str, str]]:
        """The first turns in the form that chat templates take."""
        return [{"role": turn.role, "content": turn.text} for turn in self.turns[:num_turns]]

    @property
    def conversation(self) -> Conversation:
        """Itself; a preference has one too."""
        return self

    @property
    def split_key(self) -> str:
        """Equal conversations are on the same side of the split."""
        return turns_key(self.turns)


def turns_key(turns: Sequence[Turn]) -> str:
    return json.dumps([(turn.role, turn.text) for turn in turns])


def read_conversations(
    data: Path | Sequence[Path], columns: tuple[str, str] | None = None, system: str | None = None
) -> Iterator[Conversation]:
    """Every conversation in files or folders, in order.

    columns: the keys of question and answer, for rows of no known form. system: a system prompt for
    conversations without one. Raises SourceError naming file and line, also if there is none.
    """
    for row in read_files(data, "examples"):
        yield read_conversation(row, columns, system)


def read_conversation(row: Row, columns: tuple[str, str] | None = None, system: str | None = None) -> Conversation:
    """The conversation in one row. Raises SourceError."""
    values, where = row.values, row.where
    if columns is not None:
        missing = [name for name in columns if name not in values]
        if missing:
            raise SourceError(
                f"cannot use {where}: it has no {missing[0]!r}, found {list_keys(values)}; choose existing columns"
            )
        turns = _pair(values, columns, where)
    elif values.get("messages") is not None:
        turns = _turns(values["messages"], "messages", where)
    elif values.get("conversations") is not None:
        turns = _turns(values["conversations"], "conversations", where)
    else:
        pair = next((pair for pair in _PAIRS if all(name in values for name in pair)), None)
        if pair is None:
            raise SourceError(f"cannot use {where}: expected {FORMS}, found {list_keys(values)}; or set --columns")
        turns = _pair(values, pair, where)
    own = values.get("system") or None
    if own is not None and turns and turns[0].role != "system":
        turns.insert(0, Turn("system", _text(own, "system", where)))
    elif system is not None and turns and turns[0].role != "system":
        turns.insert(0, Turn("system", system))
    return _checked(turns, where)


def _pair(values: Mapping[str, Any], names: tuple[str, str], where: str) -> list[Turn]:
    asked, answered = (values[name] for name in names)
    if isinstance(asked, list) or isinstance(answered, list):  # TRL's conversational form
        before = (
            _turns(asked, names[0], where) if isinstance(asked, list) else [Turn("user", _text(asked, names[0], where))]
        )
        before = [dataclasses.replace(turn, is_target=False) for turn in before]
        if isinstance(answered, list):
            return before + _turns(answered, names[1], where)
        return [*before, Turn("assistant", _text(answered, names[1], where), True)]
    question = _text(asked, names[0], where)
    more = values.get("input") if names[0] == "instruction" else None
    if more is not None and _text(more, "input", where).strip():
        question = f"{question.strip()}\n\n{more.strip()}"
    return [Turn("user", question), Turn("assistant", _text(answered, names[1], where), True)]


def _turns(messages: Any, key: str, where: str) -> list[Turn]:
    if not isinstance(messages, list) or not messages:
        what = "an empty array" if messages == [] else json_name(messages)
        raise SourceError(f"cannot use {where}: {key}: expected an array of messages, found {what}")
    return [_turn(message, f"{key}[{number}]", where) for number, message in enumerate(messages)]


def _turn(message: Any, place: str, where: str) -> Turn:
    if not isinstance(message, dict):
        raise SourceError(f"cannot use {where}: {place}: expected an object, found {json_name(message)}")
    keys = ("role", "content") if "role" in message else ("from", "value")
    missing = [key for key in keys if key not in message]
    if missing:
        raise SourceError(
            f"cannot use {where}: {place}: expected role and content (or from and value), found {list_keys(message)}"
        )
    named = message[keys[0]]
    role = _ROLES.get(named.lower()) if isinstance(named, str) else None
    if role is None:
        raise SourceError(
            f"cannot use {where}: {place}: {keys[0]}: expected system, user or assistant, found {str(named)[:40]!r}; "
            "training on tools and other roles is not supported; remove the example"
        )
    if message.get("tool_calls"):
        raise SourceError(f"cannot use {where}: {place}: training on tool calls is not supported; remove the example")
    weight = message.get("weight")
    if weight not in (None, 0, 1) or (weight is not None and role != "assistant"):
        raise SourceError(
            f"cannot use {where}: {place}: weight: expected 0 or 1, on an assistant's message, found {weight!r}"
        )
    text = _text(message[keys[1]], f"{place}.{keys[1]}", where)
    return Turn(role, text, role == "assistant" and weight != 0)


def _text(value: Any, place: str, where: str) -> str:
    """A text, or OpenAI's list of text parts."""
    if (
        isinstance(value, list)
        and value
        and all(isinstance(part, dict) and part.get("type") == "text" for part in value)
    ):
        value = "".join(str(part.get("text", "")) for part in value)
    if not isinstance(value, str):
        raise SourceError(f"cannot use {where}: {place}: expected a string, found {json_name(value)}")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        raise SourceError(
            f"cannot use {where}: {place}: the text has an unpaired UTF-16 surrogate (\\ud800 to \\udfff); remove it"
        ) from None
    return value


def _checked(turns: list[Turn], where: str) -> Conversation:
    """Strip texts, check that roles alternate, remove a final question without an answer."""
    turns = [dataclasses.replace(turn, text=turn.text.strip()) for turn in turns]
    first = 1 if turns and turns[0].role == "system" else 0
    for number, turn in enumerate(turns):
        wanted: Role = "system" if number < first else ("user", "assistant")[(number - first) % 2]
        if turn.role != wanted:
            raise SourceError(
                f"cannot use {where}: message {number + 1}: expected the {wanted}, found the {turn.role}; user and "
                "assistant must alternate, after at most one system prompt"
            )
        if not turn.text and turn.role != "system":
            raise SourceError(
                f"cannot use {where}: message {number + 1}: the {turn.role}'s text is empty; remove the example"
            )
    unanswered = bool(turns) and turns[-1].role != "assistant"
    kept = turns[:-1] if unanswered else turns
    if not any(turn.is_target for turn in kept):
        raise SourceError(
            f"cannot use {where}: nothing to train on: expected an assistant message (whose weight is not 0), found "
            "none; remove the example"
        )
    return Conversation(tuple(kept), where, unanswered)

"""Reads conversations from files of examples, in the forms that published datasets use.

{"messages": [{"role": …, "content": …}, …]}          OpenAI; "weight": 0 masks an answer
{"conversations": [{"from": …, "value": …}, …]}       ShareGPT; optional "system"
{"prompt": …, "completion": …}                        texts, or lists of messages
{"question": …, "answer": …}
{"instruction": …, "input": …, "output": …}           Alpaca; "input" may be missing or empty

"history": [[question, answer], …] beside a question and its answer holds the turns before them.
Keys that change what a row means and are not used are errors; other unused keys are counted.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Literal

from llamita.data.file_formats import BadRows, Row, json_name, list_keys, read_files
from llamita.errors import SourceError

Role = Literal["system", "user", "assistant"]
# Names of roles in published datasets.
_ROLES: Final[dict[str, Role]] = {
    "system": "system", "user": "user", "human": "user", "prompter": "user",
    "assistant": "assistant", "gpt": "assistant", "model": "assistant", "bot": "assistant", "chatgpt": "assistant",
}  # fmt: skip
_PAIRS: Final = (("prompt", "completion"), ("question", "answer"), ("instruction", "output"))
# Keys of a row that change what the model sees.
_REFUSED_KEYS: Final = (
    "tools", "functions", "images", "videos", "audios", "chat_template_kwargs", "reasoning_content",
)  # fmt: skip
_LABELS: Final = ("label", "kto_tag")  # KTO: false marks a bad answer
# Keys of a message: what the model should also write, and marks of answers not to learn.
_TOOL_KEYS: Final = ("tool_calls", "function_call")
_THOUGHT_KEYS: Final = ("reasoning_content", "reasoning", "thinking")
_LEARN_KEYS: Final = ("train", "training", "loss")
_MESSAGE_KEYS: Final = frozenset(("role", "content", "from", "value", "weight", *_LEARN_KEYS))
# Keys that describe a row.
_HARMLESS: Final = re.compile(
    r".*score.*|(.*_)?(id|idx|index|uuid|hash|url|model)|sources?|dataset|category|categories|topic|subject|domain|"
    r"lang|language|licen[cs]e|title|author|date|created(_at)?|timestamp|split|type|task|difficulty|level|tags?|meta|"
    r"metadata|num_turns|num_tokens|quality|rating",
    re.IGNORECASE,
)
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
    removed. unused_keys: the row's keys with content that are not used."""

    turns: tuple[Turn, ...]
    where: str
    unanswered: bool = False
    unused_keys: tuple[str, ...] = ()

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
    data: Path | Sequence[Path],
    columns: tuple[str, str] | None = None,
    system: str | None = None,
    bad: BadRows | None = None,
) -> Iterator[Conversation]:
    """Every conversation in files or folders, in order.

    columns: the keys of question and answer, for rows of no known form. system: a system prompt for
    conversations without one. bad: takes rows that cannot be used. Raises SourceError naming file
    and line, also if there is none.
    """
    return read_files(data, "examples", lambda row: read_conversation(row, columns, system), bad)


def read_conversation(row: Row, columns: tuple[str, str] | None = None, system: str | None = None) -> Conversation:
    """The conversation in one row. Raises SourceError."""
    values, where = row.values, row.where
    check_meaning(values, where)
    names: tuple[str, ...]
    if columns is not None:
        missing = [name for name in columns if name not in values]
        if missing:
            raise SourceError(
                f"cannot use {where}: it has no {missing[0]!r}, found {list_keys(values)}; choose existing columns"
            )
        names, turns = columns, _pair(values, columns, where)
    elif (key := next((key for key in ("messages", "conversations") if values.get(key) is not None), None)) is not None:
        names, turns = (key,), _turns(values[key], key, where)
        _refuse_history(values, where)
    else:
        pair = next((pair for pair in _PAIRS if all(name in values for name in pair)), None)
        if pair is None:
            raise SourceError(f"cannot use {where}: expected {FORMS}, found {list_keys(values)}; or set --columns")
        names, turns = pair, _pair(values, pair, where)
    own = values.get("system") or None
    if own is not None and turns and turns[0].role != "system":
        turns.insert(0, Turn("system", _text(own, "system", where)))
    elif system is not None and turns and turns[0].role != "system":
        turns.insert(0, Turn("system", system))
    unused = unused_keys(values, (*names, "system", "history", *(["input"] if names[0] == "instruction" else [])))
    return dataclasses.replace(_checked(turns, where), unused_keys=unused)


def check_meaning(values: Mapping[str, Any], where: str) -> None:
    """Reject a row with a key that changes its meaning and is not supported. Raises SourceError."""
    for key in _REFUSED_KEYS:
        if _has_content(values.get(key)):
            raise SourceError(f"cannot use {where}: training with {key!r} is not supported; remove the example")
    for key in _LABELS:
        if str(values.get(key)).strip().lower() == "false":
            raise SourceError(
                f"cannot use {where}: {key}: expected true, found false: it marks a bad answer, which would be "
                "learned; remove the example"
            )


def unused_keys(values: Mapping[str, Any], used: Sequence[str]) -> tuple[str, ...]:
    """The keys of a row and of its messages that have content, are not used and may matter."""
    ignored = {*used, *(key for key in _LABELS if str(values.get(key)).strip().lower() == "true")}
    found = [key for key, value in values.items() if key not in ignored and _may_matter(key, value)]
    for name in used:
        messages = values.get(name)
        for message in messages if isinstance(messages, list) else [messages]:
            if isinstance(message, dict):
                found += [
                    f"{name}[].{key}"
                    for key, value in message.items()
                    if key not in _MESSAGE_KEYS and _may_matter(key, value)
                ]
    return tuple(dict.fromkeys(found))


def _may_matter(key: str, value: Any) -> bool:
    return _has_content(value) and _HARMLESS.fullmatch(key) is None


def _has_content(value: Any) -> bool:
    """Whether a value is more than an empty cell; in CSV files everything is text."""
    if isinstance(value, str):
        return value.strip() not in ("", "[]", "{}", "null")
    return value is not None and value is not False and value != [] and value != {}


def _refuse_history(values: Mapping[str, Any], where: str) -> None:
    if _has_content(values.get("history")):
        raise SourceError(
            f"cannot use {where}: history: expected nothing beside a list of messages; put the earlier turns into the "
            "list"
        )


def _history(values: Mapping[str, Any], where: str) -> list[Turn]:
    """The earlier turns of an Alpaca row, whose answers are learned too, as LLaMA-Factory does."""
    history, turns = values.get("history"), list[Turn]()
    if not _has_content(history):
        return turns
    if not isinstance(history, list):
        raise SourceError(
            f"cannot use {where}: history: expected an array of [question, answer], found {json_name(history)}"
        )
    for number, pair in enumerate(history):
        if not isinstance(pair, list) or len(pair) != 2:
            found = f"{len(pair)} items" if isinstance(pair, list) else json_name(pair)
            raise SourceError(f"cannot use {where}: history[{number}]: expected [question, answer], found {found}")
        asked, answered = (_text(text, f"history[{number}][{i}]", where) for i, text in enumerate(pair))
        turns += [Turn("user", asked), Turn("assistant", answered, True)]
    return turns


def _pair(values: Mapping[str, Any], names: tuple[str, str], where: str) -> list[Turn]:
    asked, answered = (values[name] for name in names)
    if isinstance(asked, list) or isinstance(answered, list):  # TRL's conversational form
        _refuse_history(values, where)
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
    return [*_history(values, where), Turn("user", question), Turn("assistant", _text(answered, names[1], where), True)]


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
    if any(_has_content(message.get(key)) for key in _TOOL_KEYS):
        raise SourceError(f"cannot use {where}: {place}: training on tool calls is not supported; remove the example")
    for key in _THOUGHT_KEYS:
        if _has_content(message.get(key)):
            raise SourceError(
                f"cannot use {where}: {place}: training on {key!r} is not supported; remove the key, to learn the "
                "answer alone, or the example"
            )
    for key in _LEARN_KEYS:
        is_answer = role == "assistant"
        if message.get(key) not in (None, is_answer):
            raise SourceError(
                f"cannot use {where}: {place}: {key}: expected {json.dumps(is_answer)}, found "
                f'{str(message[key])[:40]!r}; only answers are learned, and "weight": 0 masks one'
            )
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

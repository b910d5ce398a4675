"""Reads conversations from files of examples, in the forms that published datasets use.

{"messages": [{"role": …, "content": …}, …]}          OpenAI; "weight": 0 masks an answer
[{"role": …, "content": …}, …]                        the messages alone
{"conversations": [{"from": …, "value": …}, …]}       ShareGPT; optional "system"
{"prompt": …, "completion": …}                        texts, or lists of messages; also "response"
{"question": …, "answer": …}, {"query": …, "response": …}, {"input": …, "output": …}
{"instruction": …, "input": …, "output": …}           Alpaca; "input" may be missing or empty

Messages may be JSON text, as in a column of a CSV file. "tools" holds what the model may call.
"history": [[question, answer], …] beside a question and its answer holds the turns before them.
Keys that change what a row means and are not used are errors; other unused keys are counted.
Whether a chat template knows tools, thoughts and roles is the business of rendering.py.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Literal

from llamita.data.file_formats import PAIR_KEYS, BadRows, Row, json_name, list_keys, read_files
from llamita.errors import SourceError
from llamita.finetune.tool_calls import parse_calls, parse_json, parse_tools

Role = Literal["system", "developer", "user", "assistant", "tool"]
# Names of roles in published datasets.
_ROLES: Final[dict[str, Role]] = {
    "system": "system", "developer": "developer", "user": "user", "human": "user", "prompter": "user",
    "assistant": "assistant", "gpt": "assistant", "model": "assistant", "bot": "assistant", "chatgpt": "assistant",
    "tool": "tool", "observation": "tool", "ipython": "tool", "function": "tool", "function_response": "tool",
}  # fmt: skip
_JSON_MESSAGES: Final = re.compile(r"\s*\[\s*\{")
_CALL_ROLES: Final = ("function_call", "tool_call")  # ShareGPT: an assistant's message that is a call
# Keys of a row that change what the model sees.
_REFUSED_KEYS: Final = (
    "functions", "images", "videos", "audios", "chat_template_kwargs",
)  # fmt: skip
_LABELS: Final = ("label", "kto_tag")  # KTO: false marks a bad answer
# Keys of a message: what the model should also write, and marks of answers not to learn.
_TOOL_KEYS: Final = ("tool_calls", "function_call")
THOUGHT_KEYS: Final = ("reasoning_content", "reasoning", "thinking")
_LEARN_KEYS: Final = ("train", "training", "loss")
_ANSWER_KEYS: Final = ("name", "tool_call_id")  # of a tool's message
_MESSAGE_KEYS: Final = frozenset(
    ("role", "content", "from", "value", "weight", *_LEARN_KEYS, *_TOOL_KEYS, *THOUGHT_KEYS, "tool_call_id")
)
# Keys that describe a row.
_HARMLESS: Final = re.compile(
    r".*score.*|(.*_)?(id|idx|index|uuid|hash|url|model)|sources?|dataset|category|categories|topic|subject|domain|"
    r"lang|language|licen[cs]e|title|author|date|created(_at)?|timestamp|split|type|task|difficulty|level|tags?|meta|"
    r"metadata|num_turns|num_tokens|quality|rating",
    re.IGNORECASE,
)
FORMS: Final = (
    "messages, conversations, prompt and completion (or response), question and answer, query and response, "
    "instruction and output, or input and output"
)


@dataclasses.dataclass(frozen=True)
class Turn:
    """is_target: whether the model is trained to produce it, as only an assistant's turn can be.
    more: further keys of the message, as templates take them: tool_calls, a thought under one of
    THOUGHT_KEYS, and in a tool's message name and tool_call_id."""

    role: Role
    text: str
    is_target: bool = False
    more: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def message(self) -> dict[str, Any]:
        """In the form that chat templates take."""
        return {"role": self.role, "content": self.text, **self.more}

    @property
    def calls(self) -> list[dict[str, Any]]:
        return list(self.more.get("tool_calls", ()))

    @property
    def thought(self) -> str:
        """What the model thinks before the answer, if the row has it apart from the text."""
        return next((self.more[key] for key in THOUGHT_KEYS if key in self.more), "")


@dataclasses.dataclass(frozen=True)
class Conversation:
    """System prompts, then turns of user, assistant and tools, ending with the assistant's.

    where: the file and line, item or row. unanswered: a final question without an answer was
    removed. unused_keys: the row's keys with content that are not used. tools: what the model may
    call, as templates take it. line_ends: CRLF and CR that became LF."""

    turns: tuple[Turn, ...]
    where: str
    unanswered: bool = False
    unused_keys: tuple[str, ...] = ()
    tools: Sequence[Mapping[str, Any]] = ()
    line_ends: int = 0

    def messages(self, num_turns: int | None = None) -> list[dict[str, Any]]:
        """The first turns in the form that chat templates take."""
        return [turn.message for turn in self.turns[:num_turns]]

    @property
    def conversation(self) -> Conversation:
        """Itself; a preference has one too."""
        return self

    @property
    def split_key(self) -> str:
        """Equal conversations are on the same side of the split."""
        return turns_key(self.turns)


def turns_key(turns: Sequence[Turn]) -> str:
    return json.dumps([(turn.role, turn.text, *([turn.more] if turn.more else [])) for turn in turns])


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
    values, line_ends = clean_row(row.values)
    where = row.where
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
        pair = next((pair for pair in PAIR_KEYS if all(name in values for name in pair)), None)
        if pair is None:
            is_pair = values.get("chosen") is not None and values.get("rejected") is not None
            advice = "this is a pair for --preference dpo" if is_pair else "or set --columns"
            raise SourceError(f"cannot use {where}: expected {FORMS}, found {list_keys(values)}; {advice}")
        names, turns = pair, _pair(values, pair, where)
    thought = values.get("reasoning_content")
    if _has_content(thought):
        if len(names) != 2 or not turns or turns[-1].role != "assistant" or turns[-1].thought:
            raise SourceError(
                f"cannot use {where}: reasoning_content: expected it in the message of the answer, found it beside the "
                "messages; move it there"
            )
        more = {**turns[-1].more, "reasoning_content": _text(thought, "reasoning_content", where).strip()}
        turns[-1] = dataclasses.replace(turns[-1], more=more)
    own = _text(values["system"], "system", where) if values.get("system") else None
    first = own if own is not None else system
    if first is not None and turns and turns[0].role != "system":
        turns.insert(0, Turn("system", first))
    elif own is not None and turns and turns[0].text.strip() != own.strip():
        raise SourceError(
            f"cannot use {where}: system: expected one system prompt, found another one in the messages; remove one"
        )
    used = (*names, "system", "history", "tools", "reasoning_content", *(["input"] if "instruction" in names else []))
    tools = parse_tools(values["tools"], where) if _has_content(values.get("tools")) else []
    return dataclasses.replace(
        _checked(turns, where), unused_keys=unused_keys(values, used), tools=tools, line_ends=line_ends
    )


def clean_row(values: Mapping[str, Any]) -> tuple[dict[str, Any], int]:
    """The row with LF at every line end and without byte order marks, and how many line ends were
    changed."""
    changed = 0

    def clean(value: Any) -> Any:
        nonlocal changed
        if isinstance(value, str):
            if "\r" in value:
                changed += value.count("\r")
                value = value.replace("\r\n", "\n").replace("\r", "\n")
            return value.replace("\ufeff", "")
        if isinstance(value, list):
            return [clean(each) for each in value]
        return {key: clean(each) for key, each in value.items()} if isinstance(value, dict) else value

    return clean(dict(values)), changed


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
                    if key not in _MESSAGE_KEYS
                    and _may_matter(key, value)
                    and not (key == "name" and _is_tool(message))
                ]
    return tuple(dict.fromkeys(found))


def _is_tool(message: Mapping[str, Any]) -> bool:
    return role_of(message) == "tool"


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


def messages_of(value: Any) -> Any:
    """The messages that a cell of a table holds as JSON; any other value as it is."""
    if isinstance(value, str) and _JSON_MESSAGES.match(value):
        with contextlib.suppress(ValueError, RecursionError):
            found = json.loads(value)
            if all(isinstance(each, dict) and ("role" in each or "from" in each) for each in found):
                return found
    return value


def role_of(message: Any) -> Role | None:
    """Who speaks, in our names; None: nobody that we know."""
    named = message.get("role", message.get("from")) if isinstance(message, dict) else None
    if not isinstance(named, str):
        return None
    return "assistant" if named.lower() in _CALL_ROLES else _ROLES.get(named.lower())


def _pair(values: Mapping[str, Any], names: tuple[str, str], where: str) -> list[Turn]:
    asked, answered = (messages_of(values[name]) for name in names)
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
    if isinstance(messages, str) and messages.lstrip().startswith("["):
        messages = parse_json(messages, f"cannot use {where}: {key}")
    if not isinstance(messages, list) or not messages:
        what = "an empty array" if messages == [] else json_name(messages)
        raise SourceError(f"cannot use {where}: {key}: expected an array of messages, found {what}")
    return [_turn(message, f"{key}[{number}]", where) for number, message in enumerate(messages)]


def _turn(message: Any, place: str, where: str) -> Turn:
    if not isinstance(message, dict):
        raise SourceError(f"cannot use {where}: {place}: expected an object, found {json_name(message)}")
    keys = ("role", "content") if "role" in message else ("from", "value")
    named = message.get(keys[0])
    calls = next((message[key] for key in _TOOL_KEYS if _has_content(message.get(key))), None)
    if keys[0] not in message or (keys[1] not in message and calls is None):
        raise SourceError(
            f"cannot use {where}: {place}: expected role and content (or from and value), found {list_keys(message)}"
        )
    content = message.get(keys[1])
    if isinstance(named, str) and named.lower() in _CALL_ROLES and calls is None:
        named, calls, content = "assistant", content, ""
    role = _ROLES.get(named.lower()) if isinstance(named, str) else None
    if role is None:
        raise SourceError(
            f"cannot use {where}: {place}: {keys[0]}: expected system, developer, user, assistant or tool, found "
            f"{str(named)[:40]!r}; remove the example"
        )
    more: dict[str, Any] = {key: message[key] for key in _ANSWER_KEYS if role == "tool" and message.get(key)}
    for key in THOUGHT_KEYS:
        if _has_content(message.get(key)):
            more[key] = _text(message[key], f"{place}.{key}", where).strip()
    if isinstance(content, list):  # parts, some of which are thoughts or calls
        for kind in ("reasoning", "thinking"):
            if thoughts := [part for part in content if isinstance(part, dict) and part.get("type") == kind]:
                more["reasoning_content"] = "\n".join(_part_text(part, f"{place}.{kind}", where) for part in thoughts)
        called = [part for part in content if isinstance(part, dict) and part.get("type") == "tool_call"]
        if called:
            texts = (part.get("value", part.get("tool_call")) for part in called)
            calls = [parse_json(text, f"cannot use {where}: {place}") for text in texts]
        rest = [part for part in content if not (isinstance(part, dict) and part.get("type") in _SPECIAL_PARTS)]
        content = rest or (content if not called else "")
    if calls is not None:
        more["tool_calls"] = parse_calls(calls, f"cannot use {where}: {place}: tool call")
        content = "" if content is None else content
    if role != "assistant" and (calls is not None or len(more) > sum(key in more for key in _ANSWER_KEYS)):
        raise SourceError(f"cannot use {where}: {place}: expected thoughts and tool calls of the assistant, not {role}")
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
    text = _text(content, f"{place}.{keys[1]}", where)
    return Turn(role, text, role == "assistant" and weight != 0, more)


_SPECIAL_PARTS: Final = ("reasoning", "thinking", "tool_call")


def _part_text(part: Mapping[str, Any], place: str, where: str) -> str:
    """The text of a part of a message: OpenAI's under "text", LLaMA-Factory's under "value"."""
    text = next((part[key] for key in ("text", "value", "thinking", "reasoning") if key in part), None)
    if not isinstance(text, str):
        raise SourceError(f"cannot use {where}: {place}: expected a text in each part, found {json_name(text)}")
    return text


def _text(value: Any, place: str, where: str) -> str:
    """A text, or OpenAI's list of text parts."""
    if (
        isinstance(value, list)
        and value
        and all(isinstance(part, dict) and part.get("type") == "text" for part in value)
    ):
        value = "".join(_part_text(part, place, where) for part in value)
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
    """Strip texts, check the order of roles, remove final messages without an answer."""
    turns = [dataclasses.replace(turn, text=turn.text.strip()) for turn in turns]
    first = 0  # turn that is no system prompt
    while first < len(turns) and turns[first].role in (("system", "developer") if first == 0 else ("developer",)):
        first += 1
    for number, turn in enumerate(turns):
        before = turns[number - 1].role if number > first else None
        if number >= first and turn.role in ("system", "developer"):
            raise SourceError(
                f"cannot use {where}: message {number + 1}: expected the user, the assistant or a tool, found the "
                f"{turn.role}; a system prompt, and after it a developer's, come first"
            )
        if number == first and turn.role != "user":
            raise SourceError(
                f"cannot use {where}: message {number + 1}: expected the user, found the {turn.role}; a conversation "
                "begins with the user, after the system prompt"
            )
        if turn.role == "tool" and before not in ("assistant", "tool"):
            raise SourceError(
                f"cannot use {where}: message {number + 1}: expected a tool's answer after the assistant's call, found "
                f"it after the {before}"
            )
        if not turn.text and turn.role in ("user", "assistant") and not turn.calls:
            raise SourceError(
                f"cannot use {where}: message {number + 1}: the {turn.role}'s text is empty; remove the example"
            )
    kept = list(turns)
    while kept and kept[-1].role != "assistant":
        kept.pop()
    if not any(turn.is_target for turn in kept):
        raise SourceError(
            f"cannot use {where}: nothing to train on: expected an assistant message (whose weight is not 0), found "
            "none; remove the example"
        )
    return Conversation(tuple(kept), where, len(kept) < len(turns))

"""Reads the fields of a request's JSON: types, ranges, and what this server does not do. Unknown
fields are ignored."""

from __future__ import annotations

import dataclasses
import json
import math
import secrets
from collections.abc import Callable, Sequence
from typing import Any, Final

from llamita.engine import AdapterUses, Grammar, GrammarState, Message, Request
from llamita.sampling import MAX_TOKENS, MAX_TOP_K, SamplingParams
from llamita.server.errors import ApiError

MAX_CHOICES: Final = 128
MAX_STOPS: Final = 16
MAX_STOP_CHARS: Final = 1024
MAX_BIASES: Final = 4096
MAX_MESSAGES: Final = 10_000
DEFAULT_COMPLETION_TOKENS: Final = 16  # as in OpenAI's API
_ROLES: Final = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}

# The field that limits texts, and a call that compiles its grammar, which may take a tenth of a second, and raises
# EngineError.
NamedGrammar = tuple[str, Callable[[], Grammar]]

_STRUCTURED_OUTPUTS: Final[dict[str, tuple[tuple[type, ...], Callable[[Any, str], Grammar]]]] = {
    "json": ((dict, bool, str), Grammar.json_schema),
    "regex": ((str,), Grammar.regex),
    "choice": ((list,), Grammar.choices),
    "grammar": ((str,), Grammar.of_text),
}
_EXPECTED: Final = {"json": "a JSON Schema", "regex": "a string", "choice": "a list of strings", "grammar": "a string"}
# Fields of other servers that must not be ignored: the answer would be any text.
_OTHER_GRAMMARS: Final = {
    "grammar": "structured_outputs.grammar",
    "json_schema": "response_format",
    "guided_json": "structured_outputs.json",
    "guided_regex": "structured_outputs.regex",
    "guided_choice": "structured_outputs.choice",
    "guided_grammar": "structured_outputs.grammar",
}


@dataclasses.dataclass(frozen=True)
class TextParams:
    """What the texts of a request have in common. max_new_tokens: None fills the context.
    prompt_field: the field of the request that holds the prompt."""

    sampling: SamplingParams
    seed: int
    max_new_tokens: int | None
    num_choices: int = 1
    stops: tuple[str, ...] = ()
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: dict[int, float] = dataclasses.field(default_factory=dict)
    top_logprobs: int | None = None
    stream: bool = False
    include_usage: bool = False
    echo: bool = False
    prompt_field: str = "messages"

    def request(
        self,
        ids: list[int],
        choice: int,
        context_tokens: int,
        adapters: AdapterUses = (),
        grammar: GrammarState | None = None,
    ) -> Request:
        """The engine's request for one of the choices: it has its own seed. Raises ApiError if the
        prompt leaves no room in the context."""
        most = context_tokens if self.max_new_tokens == 0 else context_tokens - 1
        if len(ids) > most:
            raise too_long(len(ids), context_tokens, self.prompt_field)
        return Request(
            ids,
            context_tokens if self.max_new_tokens is None else self.max_new_tokens,
            dataclasses.replace(self.sampling, seed=(self.seed + choice) % 2**63),
            self.presence_penalty,
            self.frequency_penalty,
            self.logit_bias,
            self.top_logprobs,
            self.echo and self.top_logprobs is not None,
            adapters,
            grammar,
        )


def too_long(num_tokens: int, context_tokens: int, name: str) -> ApiError:
    """The error for a text that the context does not hold, in the words that clients look for."""
    return ApiError(
        400,
        f"This model's maximum context length is {context_tokens} tokens. However, your {name} resulted in "
        f"{num_tokens} tokens. Please reduce the length of the {name}.",
        param=name,
        code="context_length_exceeded",
    )


def read_json(raw: bytes) -> dict[str, Any]:
    """The object in a request's body. Raises ApiError."""
    try:
        body = json.loads(raw.decode("utf-8"), parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise ApiError(400, f"the body: expected a JSON object, found broken JSON ({error})") from None
    if not isinstance(body, dict):
        raise ApiError(400, f"the body: expected a JSON object, found {kind_of(body)}")
    return body


def text_params(body: dict[str, Any], defaults: SamplingParams, vocab_size: int, *, is_chat: bool) -> TextParams:
    """The parameters that chats and completions share. Raises ApiError."""
    _refuse_unsupported(body, is_chat)
    sampling = dataclasses.replace(
        sampling_fields(body, defaults),
        top_k=whole_field(body, "top_k", 0, MAX_TOP_K, defaults.top_k),
        min_p=number_field(body, "min_p", 0, 1, defaults.min_p),
        repetition_penalty=number_field(body, "repetition_penalty", 0.01, 100, defaults.repetition_penalty),
    )
    seed = seed_field(body)
    num_choices = whole_field(body, "n", 1, MAX_CHOICES, 1)
    if body.get("best_of") not in (None, num_choices):
        raise ApiError(400, "best_of: expected the value of n: other texts are not ranked", param="best_of")
    options = object_field(body, "stream_options")
    max_name = "max_completion_tokens" if body.get("max_completion_tokens") is not None else "max_tokens"
    most: int | None = whole_field(
        body, max_name, 1 if is_chat else 0, MAX_TOKENS, None if is_chat else DEFAULT_COMPLETION_TOKENS
    )
    params = TextParams(
        sampling,
        seed,
        most,
        num_choices,
        stop_strings(body.get("stop")),
        number_field(body, "presence_penalty", -2, 2, 0.0),
        number_field(body, "frequency_penalty", -2, 2, 0.0),
        _logit_bias(body.get("logit_bias"), vocab_size),
        chat_logprobs(body) if is_chat else whole_field(body, "logprobs", 0, 20, None),
        flag_field(body, "stream"),
        flag_field(options, "include_usage"),
        not is_chat and flag_field(body, "echo"),
        "messages" if is_chat else "prompt",
    )
    if params.stream and params.echo and params.top_logprobs is not None:
        raise ApiError(400, "echo: expected no logprobs in a stream: its tokens are not sent one by one", param="echo")
    return params


def grammar_of(body: dict[str, Any]) -> NamedGrammar | None:
    """What limits the texts of a request: response_format, or vLLM's structured_outputs. None:
    nothing. Raises ApiError."""
    form, limits = body.get("response_format"), body.get("structured_outputs")
    if form is not None and not isinstance(form, dict):
        raise ApiError(400, f"response_format: expected an object, found {kind_of(form)}", param="response_format")
    kind = "text" if form is None else form.get("type")
    if kind not in ("text", "json_object", "json_schema"):
        raise ApiError(400, "response_format.type: expected text, json_object or json_schema", param="response_format")
    if limits is not None:
        if kind != "text":
            raise ApiError(400, "structured_outputs: expected no response_format beside it", param="structured_outputs")
        return "structured_outputs", _structured_outputs(limits)
    if kind == "text":
        return None
    if kind == "json_object":
        return "response_format", Grammar.json_object
    where = "response_format.json_schema.schema"
    holder = form.get("json_schema") if form is not None else None
    schema = holder.get("schema") if isinstance(holder, dict) else None
    if not isinstance(schema, dict | bool):
        raise ApiError(400, f"{where}: expected a JSON Schema, found {kind_of(schema)}", param="response_format")
    return "response_format", lambda: Grammar.json_schema(schema, where)


def _structured_outputs(limits: Any) -> Callable[[], Grammar]:
    if not isinstance(limits, dict):
        raise ApiError(
            400, f"structured_outputs: expected an object, found {kind_of(limits)}", param="structured_outputs"
        )
    given = {name: value for name, value in limits.items() if value is not None}
    if len(given) != 1 or not given.keys() <= _STRUCTURED_OUTPUTS.keys():
        raise ApiError(
            400, f"structured_outputs: expected one of {', '.join(_STRUCTURED_OUTPUTS)}", param="structured_outputs"
        )
    [(name, value)] = given.items()
    where = f"structured_outputs.{name}"
    types, read = _STRUCTURED_OUTPUTS[name]
    if not isinstance(value, types) or (isinstance(value, list) and not all(isinstance(each, str) for each in value)):
        raise ApiError(400, f"{where}: expected {_EXPECTED[name]}, found {kind_of(value)}", param="structured_outputs")
    return lambda: read(value, where)


def chat_messages(body: dict[str, Any], system: str | None) -> list[Message]:
    """The messages of a chat. system: put first, if they have no system message of their own.
    Raises ApiError."""
    return with_system(message_list(body.get("messages"), "messages"), system)


def message_list(given: Any, name: str, part_types: Sequence[str] = ("text",)) -> list[Message]:
    """Messages as the field `name` has them. part_types: of the parts of a content that is a list.
    Raises ApiError."""
    if not isinstance(given, list) or not given:
        raise ApiError(400, f"{name}: expected a list of messages, found {kind_of(given)}", param=name)
    if len(given) > MAX_MESSAGES:
        raise ApiError(400, f"{name}: expected at most {MAX_MESSAGES:,} messages, found {len(given):,}", param=name)
    return [_message(f"{name}[{number}]", each, name, part_types) for number, each in enumerate(given)]


def with_system(messages: list[Message], system: str | None) -> list[Message]:
    """The messages behind this system message, if they have none of their own."""
    if system is None or any(each.role == "system" for each in messages):
        return messages
    return [Message("system", system.encode("utf-8", "replace")), *messages]


def content_text(content: Any, where: str, name: str, part_types: Sequence[str] = ("text",)) -> str:
    """The text of a content: a string, or a list of parts. Raises ApiError."""
    if isinstance(content, list):
        texts: list[str] = []
        for part in content:
            kind = part.get("type") if isinstance(part, dict) else None
            if kind not in part_types or not isinstance(part.get("text"), str):
                found = f"found {kind[:40]!r}" if isinstance(kind, str) else "others are not supported"
                raise ApiError(
                    400, f"{where}: expected parts of type {' or '.join(part_types)} with a text; {found}", param=name
                )
            texts.append(part["text"])
        content = "".join(texts)
    if not isinstance(content, str):
        raise ApiError(400, f"{where}: expected a string, found {kind_of(content)}", param=name)
    return content


def prompts_of(
    body: dict[str, Any], vocab_size: int, name: str = "prompt", most: int = MAX_CHOICES
) -> list[str | list[int]]:
    """The prompts of a completion, or the input of embeddings: texts or token ids. Raises
    ApiError."""
    given = body.get(name, "")
    if isinstance(given, str):
        return [given]
    wrong = ApiError(
        400,
        f"{name}: expected a string, a list of strings, a list of token ids, or a list of such lists",
        param=name,
    )
    if not isinstance(given, list) or not given:
        raise wrong
    lists: list[Any] = [given] if all(_is_whole(each) for each in given) else given
    if len(lists) > most:
        raise ApiError(400, f"{name}: expected at most {most:,} texts, found {len(lists):,}", param=name)
    for each in lists:
        if isinstance(each, str):
            continue
        if not isinstance(each, list) or not each or not all(_is_whole(token_id) for token_id in each):
            raise wrong
        if not all(0 <= token_id < vocab_size for token_id in each):
            raise ApiError(400, f"{name}: expected token ids from 0 to {vocab_size - 1}", param=name)
    return lists


def text_field(body: dict[str, Any], name: str) -> str:
    """A required string. Raises ApiError."""
    value = body.get(name)
    if not isinstance(value, str):
        raise ApiError(400, f"{name}: expected a string, found {kind_of(value)}", param=name)
    return value


def flag_field(body: dict[str, Any], name: str, default: bool = False) -> bool:
    """An optional boolean. Raises ApiError."""
    value = body.get(name)
    if value is not None and not isinstance(value, bool):
        raise ApiError(400, f"{name}: expected a boolean, found {kind_of(value)}", param=name)
    return default if value is None else value


def sampling_fields(body: dict[str, Any], defaults: SamplingParams) -> SamplingParams:
    """The defaults with the temperature and top_p that every API has. Raises ApiError."""
    return dataclasses.replace(
        defaults,
        temperature=number_field(body, "temperature", 0, 100, defaults.temperature),
        top_p=max(number_field(body, "top_p", 0, 1, defaults.top_p), 1e-9),  # 0 keeps the first token
    )


def seed_field(body: dict[str, Any]) -> int:
    """The seed, or else a random one. Raises ApiError."""
    seed: int | None = whole_field(body, "seed", -(2**63), 2**63 - 1, None)
    return secrets.randbits(62) if seed is None else seed % 2**63


# ---- single fields


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON number")


def kind_of(value: Any) -> str:
    """What a JSON value is, for error messages."""
    names = {type(None): "nothing", bool: "a boolean", int: "a number", float: "a number", str: "a string"}
    return names.get(
        type(value), "an empty list" if value == [] else "a list" if isinstance(value, list) else "an object"
    )


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def number_field(body: dict[str, Any], name: str, low: float, high: float, default: float) -> float:
    """An optional number. Raises ApiError."""
    value = body.get(name)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ApiError(400, f"{name}: expected a number, found {kind_of(value)}", param=name)
    if not low <= value <= high:
        raise ApiError(400, f"{name}: expected {low} to {high}, found {str(value)[:40]}", param=name)
    return float(value)


def whole_field(body: dict[str, Any], name: str, low: int, high: int, default: Any) -> Any:
    """An optional whole number. Raises ApiError."""
    value = body.get(name)
    if value is None:
        return default
    if isinstance(value, float) and math.isfinite(value) and value == int(value):
        value = int(value)  # some clients write 16.0
    if not _is_whole(value):
        raise ApiError(400, f"{name}: expected a whole number, found {kind_of(value)}", param=name)
    if not low <= value <= high:
        raise ApiError(400, f"{name}: expected {low} to {high}, found {str(value)[:40]}", param=name)
    return value


def stop_strings(given: Any, name: str = "stop") -> tuple[str, ...]:
    """The value of the field `name`. Raises ApiError."""
    listed = [] if given is None else [given] if isinstance(given, str) else given
    if not isinstance(listed, list) or not all(isinstance(each, str) and each for each in listed):
        raise ApiError(400, f"{name}: expected a string, or a list of strings that are not empty", param=name)
    if len(listed) > MAX_STOPS or any(len(each) > MAX_STOP_CHARS for each in listed):
        raise ApiError(
            400, f"{name}: expected at most {MAX_STOPS} strings of at most {MAX_STOP_CHARS} characters", param=name
        )
    return tuple(listed)


def _logit_bias(given: Any, vocab_size: int) -> dict[int, float]:
    if given is None:
        return {}
    if not isinstance(given, dict) or len(given) > MAX_BIASES:
        raise ApiError(400, f"logit_bias: expected an object of at most {MAX_BIASES} token ids", param="logit_bias")
    biases: dict[int, float] = {}
    for key in given:
        if not (key.isascii() and key.isdecimal() and len(key) < 10 and int(key) < vocab_size):
            raise ApiError(
                400,
                f"logit_bias: expected token ids from 0 to {vocab_size - 1}, found {key[:40]!r}",
                param="logit_bias",
            )
        bias = given[key]
        if isinstance(bias, bool) or not isinstance(bias, int | float) or not -100 <= bias <= 100:
            raise ApiError(
                400, f"logit_bias: expected numbers from -100 to 100, found {str(bias)[:40]}", param="logit_bias"
            )
        biases[int(key)] = float(bias)
    return biases


def chat_logprobs(body: dict[str, Any]) -> int | None:
    """How many top log-probabilities a chat asks for; None: it asks for none. Raises ApiError."""
    num_top: int = whole_field(body, "top_logprobs", 0, 20, 0)
    if flag_field(body, "logprobs"):
        return num_top
    if num_top:
        raise ApiError(400, "top_logprobs: expected logprobs to be true", param="top_logprobs")
    return None


def _message(where: str, given: Any, name: str, part_types: Sequence[str]) -> Message:
    if not isinstance(given, dict):
        raise ApiError(400, f"{where}: expected an object, found {kind_of(given)}", param=name)
    role = given.get("role")
    if not isinstance(role, str) or role not in _ROLES:
        raise ApiError(400, f"{where}.role: expected one of {', '.join(_ROLES)}", param=name)
    text = content_text(given.get("content"), f"{where}.content", name, part_types)
    return Message(_ROLES[role], text.encode("utf-8", "replace"))


def refuse_other_grammars(body: dict[str, Any], instead: str, *more: str) -> None:
    """Raise ApiError for a field that limits the text on other routes or servers: ignored, it would
    let any text pass. instead: the field of this route; more: further fields to refuse."""
    for name in (*_OTHER_GRAMMARS, "response_format", "structured_outputs", *more):
        if body.get(name) is not None:
            raise ApiError(400, f"{name}: not supported here; use {instead}", param=name)


def object_field(body: dict[str, Any], name: str) -> dict[str, Any]:
    """An optional object; {}: it is not given. Raises ApiError."""
    value = body.get(name)
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise ApiError(400, f"{name}: expected an object, found {kind_of(value)}", param=name)
    return value


def _refuse_unsupported(body: dict[str, Any], is_chat: bool) -> None:
    """Raise ApiError for fields that change the answer and that this server does not honor."""
    for name, instead in _OTHER_GRAMMARS.items():
        if body.get(name) is not None:
            raise ApiError(400, f"{name}: not supported; use {instead}", param=name)
    for name in ("tools", "functions") if is_chat else ("suffix",):
        if body.get(name) and body.get("tool_choice") != "none":
            raise ApiError(400, f"{name}: not supported by this server", param=name)

"""OpenAI's Responses API: its requests and its answers. Nothing is stored."""

from __future__ import annotations

import secrets
import time
from typing import Any, Final

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from llamita.engine import Event, Grammar, Message, Model
from llamita.sampling import MAX_TOKENS, SamplingParams
from llamita.server.answers import Answer, Piece, named_sse
from llamita.server.errors import ApiError
from llamita.server.host import Host
from llamita.server.parameters import (
    NamedGrammar,
    TextParams,
    flag_field,
    kind_of,
    message_list,
    object_field,
    refuse_other_grammars,
    sampling_fields,
    seed_field,
    text_field,
    whole_field,
    with_system,
)
from llamita.server.worker import Group

_PART_TYPES: Final = ("input_text", "output_text", "text")
_WITH_LOGPROBS: Final = "message.output_text.logprobs"  # in the field `include`
_REFUSED: Final = {
    "tools": "not supported by this server",
    "previous_response_id": "not supported: this server stores nothing; send the whole conversation as input",
    "conversation": "not supported: this server stores nothing; send the whole conversation as input",
    "prompt": "not supported: this server stores nothing; send instructions and input",
    "background": "not supported by this server",
}
# Fields of a response that repeat the request, and their defaults.
_ECHOED: Final[dict[str, Any]] = {
    "instructions": None, "max_output_tokens": None, "metadata": {}, "text": {"format": {"type": "text"}}, "user": None
}  # fmt: skip


class ResponsesRoutes:
    """The route /v1/responses."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self.routes = [Route("/v1/responses", self._create, methods=["POST"])]

    async def _create(self, request: Request) -> Response:
        body = await self._host.read_body(request)
        serving = self._host.find(body)
        params = responses_params(body, serving.sampling)
        ids, end_ids = await serving.encode_messages(_conversation(body, serving.model.system_prompt), "input")
        grammar = await serving.start_grammar(request, _format_of(body), end_ids)
        group = serving.submit(params, [ids], grammar)
        return self._host.respond(ResponsesAnswer(body, serving.name, serving.model, group, params, end_ids))


class ResponsesAnswer(Answer):
    """The answer to /v1/responses: one message with one text."""

    media_type = "text/event-stream; charset=utf-8"

    def __init__(
        self,
        body: dict[str, Any],
        model_name: str,
        model: Model,
        group: Group,
        params: TextParams,
        end_ids: frozenset[int],
    ) -> None:
        """body: of the request; the answer repeats some of its fields."""
        super().__init__(model, group, params, end_ids)
        self._id, self._message_id = f"resp_{secrets.token_hex(12)}", f"msg_{secrets.token_hex(12)}"
        sampling = params.sampling
        self._head = {
            "id": self._id, "object": "response", "created_at": int(time.time()), "model": model_name,
            **{name: default if body.get(name) is None else body[name] for name, default in _ECHOED.items()},
            "temperature": sampling.temperature, "top_p": sampling.top_p, "top_logprobs": params.top_logprobs or 0,
            "parallel_tool_calls": False, "tool_choice": "none", "tools": [], "previous_response_id": None,
            "store": False, "background": False, "reasoning": {"effort": None, "summary": None},
            "truncation": "disabled",
        }  # fmt: skip
        self._num_events = 0
        self._text = ""
        self._logprobs: list[tuple[Event, int]] = []

    async def whole(self) -> dict[str, Any]:
        """The answer as one object. Raises ApiError."""
        [self._text], [self._logprobs] = await self._collect()
        return self._ended()

    def first_chunks(self) -> bytes:
        """The response without a message, and the starts of its message and text."""
        started = {"response": self._response("in_progress", [])}
        return (
            self._event("response.created", started)
            + self._event("response.in_progress", started)
            + self._event("response.output_item.added", {"output_index": 0, "item": self._item("in_progress", [])})
            + self._event("response.content_part.added", {**self._place(), "part": self._part()})
        )

    def chunk(self, piece: Piece) -> bytes:
        """The new text."""
        self._text += piece.text
        self._logprobs += piece.logprobs
        if not piece.text and not piece.logprobs:
            return b""
        news = {"delta": piece.text, "logprobs": self._shown(piece.logprobs)}
        return self._event("response.output_text.delta", {**self._place(), **news})

    def last_chunks(self) -> bytes:
        """The ends of the text, of the message and of the response, each with all that is in it."""
        response, part = self._ended(), self._part()
        done = {"text": self._text, "logprobs": part["logprobs"]}
        return (
            self._event("response.output_text.done", {**self._place(), **done})
            + self._event("response.content_part.done", {**self._place(), "part": part})
            + self._event("response.output_item.done", {"output_index": 0, "item": response["output"][0]})
            + self._event(f"response.{response['status']}", {"response": response})
        )

    def error_chunks(self, error: ApiError) -> bytes:
        """The error as an event, and the response that failed."""
        code = "rate_limit_exceeded" if error.status == 429 else "server_error"
        found = {"code": code, "message": error.body()["error"]["message"]}
        response = {**self._response("failed", []), "error": found}
        return self._event("error", {**found, "param": None}) + self._event("response.failed", {"response": response})

    def _ended(self) -> dict[str, Any]:
        """The response at its end."""
        is_whole = self.choices[0].finish == "stop"
        status = "completed" if is_whole else "incomplete"
        new, prompt = self.num_new_tokens, self.num_prompt_tokens
        return {
            **self._response(status, [self._item(status, [self._part()])]),
            "incomplete_details": None if is_whole else {"reason": "max_output_tokens"},
            "usage": {
                "input_tokens": prompt, "input_tokens_details": {"cached_tokens": self.num_shared_tokens},
                "output_tokens": new, "output_tokens_details": {"reasoning_tokens": 0},
                "total_tokens": prompt + new,
            },
        }  # fmt: skip

    def _response(self, status: str, output: list[dict[str, Any]]) -> dict[str, Any]:
        more = {"error": None, "incomplete_details": None, "usage": None}
        return {**self._head, "status": status, "output": output, **more}

    def _item(self, status: str, content: list[dict[str, Any]]) -> dict[str, Any]:
        return {"id": self._message_id, "type": "message", "status": status, "role": "assistant", "content": content}

    def _part(self) -> dict[str, Any]:
        """The text so far."""
        return {"type": "output_text", "text": self._text, "annotations": [], "logprobs": self._shown(self._logprobs)}

    def _shown(self, logprobs: list[tuple[Event, int]]) -> list[dict[str, Any]]:
        return [] if self.params.top_logprobs is None else self._tokens(logprobs)

    def _place(self) -> dict[str, Any]:
        return {"item_id": self._message_id, "output_index": 0, "content_index": 0}

    def _event(self, kind: str, fields: dict[str, Any]) -> bytes:
        number, self._num_events = self._num_events, self._num_events + 1
        return named_sse({"type": kind, "sequence_number": number, **fields})


# ---- requests


def responses_params(body: dict[str, Any], defaults: SamplingParams) -> TextParams:
    """The parameters of a request. Raises ApiError."""
    for name, why in _REFUSED.items():
        if body.get(name) and not (name == "tools" and body.get("tool_choice") == "none"):
            raise ApiError(400, f"{name}: {why}", param=name)
    refuse_other_grammars(body, "text.format")
    included = body.get("include") or []
    if not isinstance(included, list):
        raise ApiError(400, f"include: expected a list, found {kind_of(included)}", param="include")
    num_top = whole_field(body, "top_logprobs", 0, 20, 0)
    return TextParams(
        sampling_fields(body, defaults),
        seed=seed_field(body),
        max_new_tokens=whole_field(body, "max_output_tokens", 1, MAX_TOKENS, None),
        top_logprobs=num_top if num_top or _WITH_LOGPROBS in included else None,
        stream=flag_field(body, "stream"),
        prompt_field="input",
    )


def _conversation(body: dict[str, Any], system: str | None) -> list[Message]:
    """The messages behind the instructions, or behind the model's system prompt. Raises ApiError."""
    given = body.get("input")
    if isinstance(given, str):
        messages = [Message("user", given.encode("utf-8", "replace"))]
    elif isinstance(given, list):
        for number, item in enumerate(given):
            kind = item.get("type", "message") if isinstance(item, dict) else "message"
            if kind != "message":
                raise ApiError(400, f"input[{number}].type: expected message, found {str(kind)[:40]!r}", param="input")
        messages = message_list(given, "input", _PART_TYPES)
    else:
        raise ApiError(400, f"input: expected a string or a list of messages, found {kind_of(given)}", param="input")
    if body.get("instructions") is not None:
        return [Message("system", text_field(body, "instructions").encode("utf-8", "replace")), *messages]
    return with_system(messages, system)


def _format_of(body: dict[str, Any]) -> NamedGrammar | None:
    """What limits the text: text.format. None: nothing. Raises ApiError."""
    name = "text.format"
    form = object_field(body, "text").get("format")
    if form is None:
        return None
    kind = form.get("type") if isinstance(form, dict) else None
    if kind == "text":
        return None
    if kind == "json_object":
        return name, Grammar.json_object
    if kind != "json_schema":
        raise ApiError(400, f"{name}.type: expected text, json_object or json_schema", param=name)
    schema = form.get("schema")
    if not isinstance(schema, dict | bool):
        raise ApiError(400, f"{name}.schema: expected a JSON Schema, found {kind_of(schema)}", param=name)
    return name, lambda: Grammar.json_schema(schema, f"{name}.schema")

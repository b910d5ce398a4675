"""Anthropic's Messages API: its requests and its answers."""

from __future__ import annotations

import dataclasses
import secrets
from typing import Any, Final

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from llamita.engine import Grammar, Message, Model
from llamita.sampling import MAX_TOKENS, MAX_TOP_K, SamplingParams
from llamita.server.answers import Answer, Choice, Piece, named_sse
from llamita.server.errors import ApiError
from llamita.server.host import Host
from llamita.server.parameters import (
    NamedGrammar,
    TextParams,
    content_text,
    flag_field,
    message_list,
    object_field,
    refuse_other_grammars,
    sampling_fields,
    stop_strings,
    whole_field,
    with_system,
)
from llamita.server.sending import json_response
from llamita.server.serving import Serving
from llamita.server.worker import Group

_PATH: Final = "/v1/messages"
_REFUSED: Final = ("tools", "mcp_servers", "container")


class MessagesRoutes:
    """The routes under /v1/messages."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self.routes = [
            Route(_PATH, self._create, methods=["POST"]),
            Route(f"{_PATH}/count_tokens", self._count_tokens, methods=["POST"]),
        ]

    async def _create(self, request: Request) -> Response:
        body = await self._host.read_body(request)
        serving = self._host.find(body)
        params = messages_params(body, serving.sampling)
        ids, end_ids = await serving.encode_messages(_conversation(body, serving))
        grammar = await serving.start_grammar(request, _format_of(body), end_ids)
        group = serving.submit(params, [ids], grammar)
        return self._host.respond(MessagesAnswer(serving.name, serving.model, group, params, end_ids))

    async def _count_tokens(self, request: Request) -> Response:
        body = await self._host.read_body(request)
        serving = self._host.find(body)
        _refuse_unsupported(body)
        ids, _ = await serving.encode_messages(_conversation(body, serving))
        return json_response({"input_tokens": len(ids)})


class MessagesAnswer(Answer):
    """The answer to /v1/messages."""

    media_type = "text/event-stream; charset=utf-8"

    def __init__(
        self, model_name: str, model: Model, group: Group, params: TextParams, end_ids: frozenset[int]
    ) -> None:
        super().__init__(model, group, params, end_ids)
        self._name, self._id = model_name, f"msg_{secrets.token_hex(12)}"

    async def whole(self) -> dict[str, Any]:
        """The answer as one object. Raises ApiError."""
        [text], _ = await self._collect()
        return self._message([{"type": "text", "text": text}], _reason(self.choices[0]))

    def first_chunks(self) -> bytes:
        """The message without content, and the start of its only block."""
        return (
            named_sse({"type": "message_start", "message": self._message([], _NO_REASON)})
            + named_sse({"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}})
            + named_sse({"type": "ping"})
        )

    def chunk(self, piece: Piece) -> bytes:
        """The new text."""
        if not piece.text:
            return b""
        delta = {"type": "text_delta", "text": piece.text}
        return named_sse({"type": "content_block_delta", "index": 0, "delta": delta})

    def last_chunks(self) -> bytes:
        """The ends of the block and of the message."""
        end = {"delta": _reason(self.choices[0]), "usage": self._usage()}
        return (
            named_sse({"type": "content_block_stop", "index": 0})
            + named_sse({"type": "message_delta", **end})
            + named_sse({"type": "message_stop"})
        )

    def error_chunks(self, error: ApiError) -> bytes:
        """The error as an event."""
        return named_sse(error.body(_PATH))

    def _message(self, content: list[dict[str, Any]], reason: dict[str, str | None]) -> dict[str, Any]:
        return {"id": self._id, "type": "message", "role": "assistant", "model": self._name, "content": content,
                **reason, "usage": self._usage()}  # fmt: skip

    def _usage(self) -> dict[str, int]:
        """As in Anthropic's API, input_tokens are those that were computed. At a stream's start
        nothing is known of the cache; its end corrects that."""
        cached = self.num_shared_tokens
        return {"input_tokens": self.num_prompt_tokens - cached, "cache_creation_input_tokens": 0,
                "cache_read_input_tokens": cached, "output_tokens": self.num_new_tokens}  # fmt: skip


_NO_REASON: Final[dict[str, str | None]] = {"stop_reason": None, "stop_sequence": None}


def _reason(choice: Choice) -> dict[str, str | None]:
    if choice.stop is not None:
        return {"stop_reason": "stop_sequence", "stop_sequence": choice.stop}
    return {"stop_reason": "end_turn" if choice.finish == "stop" else "max_tokens", "stop_sequence": None}


# ---- requests


def messages_params(body: dict[str, Any], defaults: SamplingParams) -> TextParams:
    """The parameters of a request. Raises ApiError."""
    _refuse_unsupported(body)
    if body.get("max_tokens") is None:
        raise ApiError(400, "max_tokens: expected a whole number, found nothing", param="max_tokens")
    top_k = whole_field(body, "top_k", 0, MAX_TOP_K, defaults.top_k)
    return TextParams(
        dataclasses.replace(sampling_fields(body, defaults), top_k=top_k),
        seed=secrets.randbits(62),
        max_new_tokens=whole_field(body, "max_tokens", 1, MAX_TOKENS, None),
        stops=stop_strings(body.get("stop_sequences"), "stop_sequences"),
        stream=flag_field(body, "stream"),
    )


def _refuse_unsupported(body: dict[str, Any]) -> None:
    refuse_other_grammars(body, "output_config.format", "output_format")
    for name in _REFUSED:
        if body.get(name) and not (name == "tools" and body.get("tool_choice") == {"type": "none"}):
            raise ApiError(400, f"{name}: not supported by this server", param=name)
    thinking = body.get("thinking")
    if thinking is not None and (not isinstance(thinking, dict) or thinking.get("type") != "disabled"):
        raise ApiError(400, 'thinking: expected {"type": "disabled"}: not supported by this server', param="thinking")


def _conversation(body: dict[str, Any], serving: Serving) -> list[Message]:
    """The messages behind the system prompt. Raises ApiError."""
    messages = message_list(body.get("messages"), "messages")
    if any(each.role == "system" for each in messages):
        raise ApiError(400, "messages: expected roles user and assistant; system is a field", param="messages")
    if messages[-1].role != "user":
        raise ApiError(400, "messages: expected the last one to be the user's", param="messages")
    system = body.get("system")
    return with_system(
        messages, serving.model.system_prompt if system is None else content_text(system, "system", "system")
    )


def _format_of(body: dict[str, Any]) -> NamedGrammar | None:
    """What limits the text: output_config.format. None: nothing. Raises ApiError."""
    name = "output_config.format"
    form = object_field(body, "output_config").get("format")
    if form is None:
        return None
    schema = form.get("schema") if isinstance(form, dict) and form.get("type") == "json_schema" else None
    if not isinstance(schema, dict):
        raise ApiError(400, f'{name}: expected {{"type": "json_schema", "schema": SCHEMA}}', param=name)
    return name, lambda: Grammar.json_schema(schema, f"{name}.schema")

"""OpenAI's API: chats, completions, embeddings and models; their requests and answers."""

from __future__ import annotations

import dataclasses
import secrets
import time
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from llamita.engine import Event, Model, version
from llamita.server.answers import Answer, Choice, Piece, sse
from llamita.server.embeddings import embedding_inputs, embeddings_body, encoding_of
from llamita.server.errors import ApiError
from llamita.server.host import Host
from llamita.server.parameters import TextParams, grammar_of, prompts_of, text_params
from llamita.server.sending import json_response
from llamita.server.serving import API_SAMPLING, Serving
from llamita.server.token_text import TokenText
from llamita.server.worker import Group

DONE = b"data: [DONE]\n\n"


class OpenAiRoutes:
    """The routes of chats, completions, embeddings and models."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self.routes = [
            Route("/v1/chat/completions", self._chat, methods=["POST"]),
            Route("/v1/completions", self._completions, methods=["POST"]),
            Route("/v1/embeddings", self._embeddings, methods=["POST"]),
            Route("/v1/models", self._models, methods=["GET"]),
            Route("/v1/models/{name:path}", self._model, methods=["GET"]),
        ]

    async def _chat(self, request: Request) -> Response:
        body = await self._host.read_body(request)
        serving = self._host.find(body)
        params = text_params(body, serving.sampling, serving.model.info.vocab_size, is_chat=True)
        ids, end_ids = await serving.encode_chat(body)
        grammar = await serving.start_grammar(request, grammar_of(body), end_ids)
        group = serving.submit(params, [ids], grammar)
        return self._host.respond(OpenAiAnswer(serving.name, serving.model, group, params, end_ids, is_chat=True))

    async def _completions(self, request: Request) -> Response:
        body = await self._host.read_body(request)
        serving = self._host.find(body)
        info = serving.model.info
        params = text_params(body, serving.sampling, info.vocab_size, is_chat=False)
        prompts = await serving.encode_prompts(prompts_of(body, info.vocab_size))
        grammar = await serving.start_grammar(request, grammar_of(body), frozenset())
        group = serving.submit(params, prompts, grammar)
        return self._host.respond(OpenAiAnswer(serving.name, serving.model, group, params, frozenset(), is_chat=False))

    async def _embeddings(self, request: Request) -> Response:
        body = await self._host.read_body(request)
        serving = self._host.find(body)
        encode = encoding_of(body)
        inputs = await serving.encode(lambda: embedding_inputs(body, serving.model, serving.worker.context_tokens))
        num_tokens = sum(map(len, inputs))

        async def work() -> bytes:
            return embeddings_body(serving.name, await serving.embedder.embed(inputs, encode), num_tokens)

        return self._host.compute(work, num_tokens)

    async def _models(self, request: Request) -> Response:
        return json_response({"object": "list", "data": [*map(self._model_object, self._host.models.values())]})

    async def _model(self, request: Request) -> Response:
        return json_response(self._model_object(self._host.find({"model": request.path_params["name"]})))

    def _model_object(self, serving: Serving) -> dict[str, Any]:
        info = serving.model.info
        defaults = dataclasses.asdict(API_SAMPLING)
        sampling = {name: value for name, value in vars(serving.sampling).items() if value != defaults[name]}
        return {
            "id": serving.name,
            "object": "model",
            "created": serving.created,
            "owned_by": "llamita",
            "context_length": serving.worker.context_tokens,
            "num_parameters": info.num_parameters,
            "chat": serving.model.chat_template is not None,
            "sampling": sampling,
            "trace": self._host.can_trace,
        }


class OpenAiAnswer(Answer):
    """The answer to a chat or a completion. created, id: as OpenAI's objects have them."""

    media_type = "text/event-stream; charset=utf-8"

    def __init__(
        self,
        model_name: str,
        model: Model,
        group: Group,
        params: TextParams,
        end_ids: frozenset[int],
        *,
        is_chat: bool,
    ) -> None:
        super().__init__(model, group, params, end_ids)
        self.id = f"{'chatcmpl' if is_chat else 'cmpl'}-{secrets.token_hex(12)}"
        self.created = int(time.time())
        self._fingerprint = f"llamita-{version()}"
        self._name, self._is_chat = model_name, is_chat

    def usage(self) -> dict[str, Any]:
        """The numbers of tokens."""
        prompt, new = self.num_prompt_tokens, self.num_new_tokens
        details = {"cached_tokens": self.num_shared_tokens}
        return {"prompt_tokens": prompt, "completion_tokens": new, "total_tokens": prompt + new,
                "prompt_tokens_details": details}  # fmt: skip

    async def whole(self) -> dict[str, Any]:
        """The answer as one object. Raises ApiError."""
        texts, logprobs = await self._collect()
        choices = []
        for choice, text, events in zip(self.choices, texts, logprobs, strict=True):
            if self._is_chat:
                said: dict[str, Any] = {"message": {"role": "assistant", "content": text, "refusal": None}}
                shown = self._chat_logprobs(events)
            else:
                start = self._prompt_text(choice) if self.params.echo else ""
                said, shown = {"text": start + text}, self._completion_logprobs(choice, events, len(start))
            choices.append({"index": choice.index, **said, "logprobs": shown, "finish_reason": choice.finish})
        return {**self._head("chat.completion" if self._is_chat else "text_completion"), "choices": choices,
                "usage": self.usage()}  # fmt: skip

    # ---- streams

    def first_chunks(self) -> bytes:
        """What a stream begins with: the roles of a chat, or the prompts that are echoed."""
        if self._is_chat:
            return b"".join(
                self._chunk([{"index": c.index, "delta": {"role": "assistant", "content": ""}, "logprobs": None,
                              "finish_reason": None}])
                for c in self.choices
            )  # fmt: skip
        if not self.params.echo:
            return b""
        return b"".join(
            self._chunk([{"index": c.index, "text": self._prompt_text(c), "logprobs": None, "finish_reason": None}])
            for c in self.choices
        )

    def chunk(self, piece: Piece) -> bytes:
        """A piece as events of the stream; in a chat the end has an event of its own."""
        if not self._is_chat:
            shown = self._completion_logprobs(None, piece.logprobs, 0)
            return self._chunk([{"index": piece.index, "text": piece.text, "logprobs": shown,
                                 "finish_reason": piece.finish}])  # fmt: skip
        out = b""
        if piece.text or piece.logprobs:
            shown = self._chat_logprobs(piece.logprobs)
            out = self._chunk([{"index": piece.index, "delta": {"content": piece.text}, "logprobs": shown,
                                "finish_reason": None}])  # fmt: skip
        if piece.finish is not None:
            out += self._chunk([{"index": piece.index, "delta": {}, "logprobs": None, "finish_reason": piece.finish}])
        return out

    def last_chunks(self) -> bytes:
        """The usage, if it is wanted, and the end of the stream."""
        return (self._chunk([], self.usage()) if self.params.include_usage else b"") + DONE

    def error_chunks(self, error: ApiError) -> bytes:
        """The error as an event, and the end of the stream."""
        return sse(error.body()) + DONE

    def _chunk(self, choices: list[dict[str, Any]], usage: dict[str, int] | None = None) -> bytes:
        body = {**self._head("chat.completion.chunk" if self._is_chat else "text_completion"), "choices": choices}
        if self.params.include_usage:
            body["usage"] = usage
        return sse(body)

    def _head(self, kind: str) -> dict[str, Any]:
        return {"id": self.id, "object": kind, "created": self.created, "model": self._name,
                "system_fingerprint": self._fingerprint}  # fmt: skip

    # ---- log-probabilities

    def _chat_logprobs(self, events: list[tuple[Event, int]]) -> dict[str, Any] | None:
        if self.params.top_logprobs is None:
            return None
        return {"content": self._tokens(events), "refusal": None}

    def _completion_logprobs(
        self, choice: Choice | None, events: list[tuple[Event, int]], start: int
    ) -> dict[str, Any] | None:
        """choice: with its prompt, if that is echoed."""
        if self.params.top_logprobs is None:
            return None
        tokens: list[str] = []
        logprobs: list[float | None] = []
        top: list[dict[str, float] | None] = []
        offsets: list[int] = []

        def add(event: Event, offset: int) -> None:
            tokens.append(self._token(event.id, 0)["token"])
            logprobs.append(event.logprob)
            top.append({self._token(token_id, 0)["token"]: logprob for token_id, logprob in reversed(event.top)})
            offsets.append(offset)

        if choice is not None and self.params.echo:
            ids = [int(each) for each in choice.running.request.ids]
            tokens.append(self._token(ids[0], 0)["token"])
            logprobs.append(None)
            top.append(None)
            offsets.append(0)
            text = TokenText(self._model, previous_id=-1)
            for token_id, event in zip(ids, choice.prompt_events, strict=False):
                text.add(token_id)
                add(event, text.num_chars)
        for event, offset in events:
            add(event, start + offset)
        return {"tokens": tokens, "token_logprobs": logprobs, "top_logprobs": top, "text_offset": offsets}

    def _prompt_text(self, choice: Choice) -> str:
        return self._model.decode(choice.running.request.ids).decode("utf-8", "replace")

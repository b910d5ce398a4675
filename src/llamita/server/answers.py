"""Follows the texts of one request."""

from __future__ import annotations

import dataclasses
import json
import time
from abc import ABC, abstractmethod
from typing import Any, ClassVar, Final

from llamita.engine import Event, Model
from llamita.server.errors import ApiError
from llamita.server.parameters import TextParams
from llamita.server.token_text import TokenText
from llamita.server.worker import Group, Running


@dataclasses.dataclass
class Piece:
    """News of one choice: new text, its tokens with log-probabilities, and why it ended."""

    index: int
    text: str
    logprobs: list[tuple[Event, int]]  # with the place of each token in the text
    finish: str | None


class Choice:
    """One text of a request while it is generated."""

    def __init__(self, index: int, model: Model, running: Running, end_ids: frozenset[int], params: TextParams) -> None:
        self.index, self.running = index, running
        self.ids: list[int] = []
        self.num_shared_tokens = 0
        self.finish: str | None = None
        self.is_ended_by_token = False
        ids = list(running.request.ids)
        self._text = TokenText(model, int(ids[-1]), params.stops)
        self._end_ids = end_ids
        self._waiting: list[tuple[Event, int]] = []
        self._with_logprobs = params.top_logprobs is not None
        self.prompt_events: list[Event] = []

    def read(self) -> Piece | None:
        """What has come since the last call; None: nothing that can be sent. Raises ApiError."""
        text = ""
        for event in self.running.take():
            if self.finish is not None:
                break
            self.num_shared_tokens = event.num_shared_tokens
            if event.kind == "prompt":
                self.prompt_events.append(event)
            elif event.kind == "end":
                self._end(event.finish)
                self.is_ended_by_token = event.finish == "stop"
            elif event.id in self._end_ids:
                self._end("stop")
                self.is_ended_by_token = True
            else:
                self.ids.append(event.id)
                if self._with_logprobs:
                    self._waiting.append((event, self._text.num_chars))
                text += self._text.add(event.id)
                if self._text.is_stopped:
                    self._end("stop")
        if self.finish is not None:
            text += self._text.finish()
        sent = self._text.num_sent
        stopped = self._text.is_stopped
        out = [each for each in self._waiting if each[1] < sent or (self.finish is not None and not stopped)]
        self._waiting = [] if self.finish is not None else self._waiting[len(out) :]
        return Piece(self.index, text, out, self.finish) if text or out or self.finish is not None else None

    @property
    def stop(self) -> str | None:
        """The stop string that ended the text."""
        return self._text.stop

    def _end(self, finish: str) -> None:
        self.finish = finish
        self.running.group.cancel_one(self.running)


class Answer(ABC):
    """All choices of a request while they are generated. Its subclasses write them in the form of
    one API."""

    media_type: ClassVar[str]  # of a stream

    def __init__(self, model: Model, group: Group, params: TextParams, end_ids: frozenset[int]) -> None:
        self.group = group
        self.first_token_seconds: float | None = None
        self._start = time.perf_counter()
        self._model, self.params = model, params
        self.choices = [Choice(index, model, running, end_ids, params) for index, running in enumerate(group.running)]

    @property
    def is_done(self) -> bool:
        return all(choice.finish is not None for choice in self.choices)

    @property
    def num_prompt_tokens(self) -> int:
        """Of all prompts, each counted once."""
        return sum(len(each.running.request.ids) for each in self.choices[:: self.params.num_choices])

    @property
    def num_shared_tokens(self) -> int:
        """Of the prompt tokens, those that were not computed again; 0 until the first news."""
        return sum(each.num_shared_tokens for each in self.choices[:: self.params.num_choices])

    @property
    def num_new_tokens(self) -> int:
        return sum(len(choice.ids) for choice in self.choices)

    async def pieces(self) -> list[Piece]:
        """Wait for news, and return it."""
        await self.group.ready.wait()
        self.group.ready.clear()
        found = [piece for choice in self.choices if choice.finish is None and (piece := choice.read()) is not None]
        if found and self.first_token_seconds is None:
            self.first_token_seconds = time.perf_counter() - self._start
        return found

    async def _collect(self) -> tuple[list[str], list[list[tuple[Event, int]]]]:
        """Wait for all texts; returns them and their log-probabilities. Raises ApiError."""
        texts = [""] * len(self.choices)
        logprobs: list[list[tuple[Event, int]]] = [[] for _ in self.choices]
        while not self.is_done:
            for piece in await self.pieces():
                texts[piece.index] += piece.text
                logprobs[piece.index] += piece.logprobs
        return texts, logprobs

    def _tokens(self, events: list[tuple[Event, int]]) -> list[dict[str, Any]]:
        """The log-probabilities of new tokens, as in chats."""
        content = []
        for event, _ in events:
            top = [self._token(token_id, logprob) for token_id, logprob in event.top]
            content.append({**self._token(event.id, event.logprob), "top_logprobs": top})
        return content

    def _token(self, token_id: int, logprob: float) -> dict[str, Any]:
        raw = self._model.decode_token(token_id, token_id)
        text = raw.decode("utf-8", "replace") if raw else self._model.token_text(token_id) or ""
        return {"token": text, "logprob": logprob, "bytes": list(raw)}

    @abstractmethod
    async def whole(self) -> dict[str, Any]:
        """The answer as one object. Raises ApiError."""

    @abstractmethod
    def first_chunks(self) -> bytes:
        """What a stream begins with."""

    @abstractmethod
    def chunk(self, piece: Piece) -> bytes:
        """A piece as a part of the stream."""

    @abstractmethod
    def last_chunks(self) -> bytes:
        """What a stream ends with."""

    @abstractmethod
    def error_chunks(self, error: ApiError) -> bytes:
        """What a stream ends with after an error."""


def sse(body: dict[str, Any]) -> bytes:
    """A server-sent event."""
    return b"data: " + json_bytes(body) + b"\n\n"


def named_sse(body: dict[str, Any]) -> bytes:
    """A server-sent event that is named by its type."""
    return b"event: " + body["type"].encode() + b"\n" + sse(body)


_encode_json: Final = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode  # dumps makes one a call


def json_bytes(body: Any) -> bytes:
    """Compact JSON in UTF-8."""
    return _encode_json(body).encode("utf-8", "replace")

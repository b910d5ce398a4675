"""Responses that are computed while they are sent, and end when the client leaves."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Mapping
from typing import Any

import anyio
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from llamita.server.answers import Answer, json_bytes
from llamita.server.errors import ApiError
from llamita.server.metrics import Metrics


class Generating(Response):
    """An answer while it is generated. Ends its requests when the client leaves."""

    def __init__(self, answer: Answer, seconds: float, metrics: Metrics) -> None:
        self._answer, self._seconds, self._metrics = answer, seconds, metrics
        self._start = time.perf_counter()
        self.background = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        answer = self._answer
        sending = self._stream(send) if answer.params.stream else self._whole(scope, receive, send)
        cancelled = True
        try:
            cancelled = not await _while_connected(sending, receive)
        finally:
            answer.group.cancel()
            seconds = time.perf_counter() - self._start
            numbers = answer.num_prompt_tokens, answer.num_new_tokens
            self._metrics.count_text(*numbers, answer.first_token_seconds, seconds, cancelled=cancelled)
            scope["llamita.note"] = f"{numbers[0]}+{numbers[1]} tokens" + (", client left" if cancelled else "")

    async def _whole(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def work() -> bytes:
            return json_bytes(await self._answer.whole())

        response = await _body_within(self._seconds, work(), scope)
        self._answer.group.cancel()  # sending may take as long as the client likes
        await response(scope, receive, send)

    async def _stream(self, send: Send) -> None:
        answer = self._answer
        headers = [(b"content-type", answer.media_type.encode()), (b"cache-control", b"no-cache"),
                   (b"x-accel-buffering", b"no")]  # fmt: skip
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        first = answer.first_chunks()
        try:
            with anyio.fail_after(self._seconds):
                if first:
                    await send({"type": "http.response.body", "body": first, "more_body": True})
                while not answer.is_done:
                    chunks = b"".join(map(answer.chunk, await answer.pieces()))
                    if chunks:
                        await send({"type": "http.response.body", "body": chunks, "more_body": True})
            last = answer.last_chunks()
        except TimeoutError:
            last = answer.error_chunks(_too_slow(self._seconds))
        except ApiError as error:
            last = answer.error_chunks(error)
        answer.group.cancel()  # sending may take as long as the client likes
        await send({"type": "http.response.body", "body": last, "more_body": False})


class Computing(Response):
    """A body while it is computed, in one piece."""

    def __init__(
        self, work: Callable[[], Coroutine[Any, Any, bytes]], num_tokens: int, seconds: float, metrics: Metrics
    ) -> None:
        self._work, self._num_tokens, self._seconds, self._metrics = work, num_tokens, seconds, metrics
        self._start = time.perf_counter()
        self.background = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        cancelled = True
        try:
            cancelled = not await _while_connected(self._send(scope, receive, send), receive)
        finally:
            seconds = time.perf_counter() - self._start
            self._metrics.count_text(self._num_tokens, 0, None, seconds, cancelled=cancelled)
            notes = [f"{self._num_tokens} tokens"] if self._num_tokens else []
            scope["llamita.note"] = ", ".join([*notes, "client left"] if cancelled else notes)

    async def _send(self, scope: Scope, receive: Receive, send: Send) -> None:
        await (await _body_within(self._seconds, self._work(), scope))(scope, receive, send)


async def _body_within(seconds: float, work: Coroutine[Any, Any, bytes], scope: Scope) -> Response:
    """The response with the JSON that the work gives, or with an error."""
    try:
        with anyio.fail_after(seconds):
            return Response(await work, media_type="application/json")
    except TimeoutError:
        return error_response(_too_slow(seconds), route_path(scope))
    except ApiError as error:
        return error_response(error, route_path(scope))


def _too_slow(seconds: float) -> ApiError:
    return ApiError(503, f"the answer took more than {seconds:g} s", code="timeout")


def route_path(scope: Scope) -> str:
    """The path without the prefix of a proxy."""
    return str(scope["path"]).removeprefix(scope.get("root_path", ""))


async def _while_connected(sending: Coroutine[Any, Any, None], receive: Receive) -> bool:
    """Send a response; stop when the client leaves. Returns whether it stayed."""
    tasks = asyncio.ensure_future(sending), asyncio.ensure_future(_disconnected(receive))
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        if not tasks[0].done():
            return False
        await tasks[0]
    except (OSError, ClientDisconnect):
        return False
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    return True


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def json_response(body: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """The object as JSON."""
    return Response(json_bytes(body), status, headers, "application/json")


def error_response(error: ApiError, path: str) -> Response:
    """The error in the form of the path's API."""
    return json_response(error.body(path), error.status, error.headers)

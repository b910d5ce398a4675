"""The HTTP application: routes, keys, limits and log lines around the workers."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import hashlib
import hmac
import logging
import re
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

import anyio
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from llamita.errors import EngineError
from llamita.sampling import DEFAULT_COMPUTE, ComputeOptions
from llamita.server.answers import Answer
from llamita.server.choose import ChooseRoutes
from llamita.server.errors import ApiError
from llamita.server.messages import MessagesRoutes
from llamita.server.metrics import CONTENT_TYPE, Metrics
from llamita.server.ollama import LATEST, OllamaRoutes
from llamita.server.openai import OpenAiRoutes
from llamita.server.page import show_page
from llamita.server.parameters import flag_field, prompts_of, read_json, text_field
from llamita.server.responses import ResponsesRoutes
from llamita.server.sending import Computing, Generating, error_response, json_response, route_path
from llamita.server.serving import DEFAULT_LIMITS, ServedModel, ServerLimits, Serving
from llamita.server.tracing import TraceRoutes
from llamita.server.watch import watch
from llamita.server.worker import total_stats

if TYPE_CHECKING:
    from llamita.data.store_index import StoreIndex

log = logging.getLogger(__name__)
OPEN_ROUTES: Final = ("/", "/health")  # need no key


class Server:
    """The routes. `app` is the ASGI application; its lifespan opens and closes the workers."""

    def __init__(
        self,
        models: Sequence[ServedModel],
        runtime: ComputeOptions = DEFAULT_COMPUTE,
        limits: ServerLimits = DEFAULT_LIMITS,
        *,
        api_keys: Sequence[str] = (),
        cors_origins: Sequence[str] = (),
        host_names: Sequence[str] = (),
        index: StoreIndex | None = None,
    ) -> None:
        """The first model answers requests that name none. api_keys: one of them is needed; (): no
        key is. host_names: by which clients may address the server; (): by any. A web site whose name
        is made to point to this machine (DNS rebinding) is none of them. index: of the documents in
        which texts are traced."""
        self._served, self._runtime, self._limits = models, runtime, limits
        self.can_trace = index is not None
        self._serving: dict[str, Serving] = {}
        self._host_names = {name.lower() for name in host_names}
        self._key_digests = [hashlib.sha256(key.encode()).digest() for key in api_keys]
        self._metrics = Metrics(lambda: total_stats([each.worker for each in self._serving.values()]))
        post, get = ["POST"], ["GET"]
        routes = [
            Route("/", show_page, methods=get),
            Route("/tokenize", self._tokenize, methods=post),
            Route("/detokenize", self._detokenize, methods=post),
            Route("/health", self._health, methods=get),
            Route("/metrics", self._show_metrics, methods=get),
            *OpenAiRoutes(self).routes,
            *ResponsesRoutes(self).routes,
            *MessagesRoutes(self).routes,
            *OllamaRoutes(self).routes,
            *ChooseRoutes(self).routes,
            *TraceRoutes(self, index, limits.max_queue).routes,
        ]
        middleware = [Middleware(_Guard, server=self)]
        if cors_origins:
            cors = Middleware(
                CORSMiddleware, allow_origins=list(cors_origins), allow_methods=["*"], allow_headers=["*"]
            )
            middleware.insert(0, cors)
        self.app = Starlette(
            routes=routes,
            middleware=middleware,
            lifespan=self._lifespan,
            exception_handlers={ApiError: _api_error, HTTPException: _http_error, Exception: _bug},
        )

    @contextlib.asynccontextmanager
    async def _lifespan(self, app: Starlette) -> AsyncIterator[None]:
        watching: list[asyncio.Future[None]] = []
        try:
            for served in self._served:
                self._serving[served.name] = Serving(served, self._runtime, self._limits)
            for serving in self._serving.values():
                await serving.warm_up()
                if serving.served.watched is not None:
                    reload = functools.partial(self._reload, serving.name)
                    watching.append(asyncio.ensure_future(watch(serving.served.watched, reload)))
            yield
        finally:
            for task in watching:
                task.cancel()
            await asyncio.gather(*watching, return_exceptions=True)
            for serving in self._serving.values():
                serving.close()
            self._serving = {}

    async def _reload(self, name: str) -> None:
        """Serve the model of a changed file; if it cannot be used, the one before goes on."""
        before = self._serving[name]
        served = before.served
        assert served.watched is not None and served.reopen is not None
        try:
            opened = await asyncio.to_thread(served.reopen)
            try:
                serving = await asyncio.to_thread(Serving, opened, self._runtime, self._limits)
            except BaseException:
                if opened.close is not None:
                    opened.close()
                raise
            try:
                await serving.warm_up()
            except BaseException:
                await asyncio.to_thread(serving.close)
                raise
        except Exception as error:  # whatever is wrong with the file, the server goes on
            log.warning("%s: the changed file cannot be used, and the model before goes on: %s", name, error)
            return
        self._serving[name] = serving
        log.info("%s: new requests get the model of the changed file", name)
        try:
            await before.drain()
        finally:
            await asyncio.to_thread(before.close)

    def is_allowed(self, header: str) -> bool:
        """Whether an Authorization header has one of the keys; all are compared, in constant
        time."""
        scheme, _, key = header.partition(" ")
        digest = hashlib.sha256(key.strip().encode("utf-8", "surrogateescape")).digest()
        matches = [hmac.compare_digest(digest, each) for each in self._key_digests]
        return not self._key_digests or (scheme.lower() == "bearer" and any(matches))

    def is_addressed(self, header: str) -> bool:
        """Whether a Host header has one of the server's names; programs may send none."""
        name = re.sub(r":[0-9]*$", "", header.strip().lower())
        return not self._host_names or name in self._host_names or not name

    def count_request(self, route: str, status: int) -> None:
        """Count a request for /metrics."""
        self._metrics.count_request(route, status)

    # ---- answers

    def compute(self, work: Callable[[], Coroutine[Any, Any, bytes]], num_tokens: int) -> Response:
        """The response of a request that reads this many tokens. The work gives its JSON, and is
        cancelled when the client leaves."""
        return Computing(work, num_tokens, self._limits.answer_seconds, self._metrics)

    def respond(self, answer: Answer) -> Response:
        """The response of a request whose texts were submitted."""
        return Generating(answer, self._limits.answer_seconds, self._metrics)

    # ---- the other routes

    async def _tokenize(self, request: Request) -> Response:
        body = await self.read_body(request)
        serving = self.find(body)
        model = serving.model
        name = "prompt" if "prompt" in body and "content" not in body else "content"
        text = text_field(body, name).encode("utf-8", "replace")
        encode = functools.partial(model.encode, text, bos=flag_field(body, "add_special", False))
        try:
            ids = await serving.encode(encode, len(text))
        except EngineError as error:
            raise ApiError(400, str(error)) from None
        return json_response({"tokens": ids, "count": len(ids)})

    async def _detokenize(self, request: Request) -> Response:
        body = await self.read_body(request)
        serving = self.find(body)
        model = serving.model
        (ids, *others) = prompts_of(body, model.info.vocab_size, "tokens")
        if others or isinstance(ids, str):
            raise ApiError(400, "tokens: expected a list of token ids", param="tokens")
        try:
            text = (await serving.encode(functools.partial(model.decode, ids), len(ids))).decode("utf-8", "replace")
        except EngineError as error:
            raise ApiError(400, str(error)) from None
        return json_response({"content": text, "prompt": text})

    async def _health(self, request: Request) -> Response:
        return json_response({"status": "ok"})

    async def _show_metrics(self, request: Request) -> Response:
        return Response(self._metrics.text(), media_type=CONTENT_TYPE)

    # ---- requests

    @property
    def models(self) -> Mapping[str, Serving]:
        """All models by name, while the server runs."""
        return self._serving

    def find(self, body: Mapping[str, Any]) -> Serving:
        """The model that a request names; ":latest" after the name means nothing. Raises
        ApiError."""
        name = body.get("model")
        if name is None:
            return self._use(next(iter(self._serving)))
        if not isinstance(name, str):
            raise ApiError(400, "model: expected a string", param="model")
        name = name if name in self._serving else name.removesuffix(LATEST)
        if name not in self._serving:
            known = ", ".join(self._serving)
            raise ApiError(
                404, f"model: expected one of {known}, found {name[:100]!r}", param="model", code="model_not_found"
            )
        return self._use(name)

    def _use(self, name: str) -> Serving:
        """A model that stays open until the current request has ended."""
        serving = self._serving[name]
        task = asyncio.current_task()
        assert task is not None
        serving.users.add(task)
        return serving

    async def read_body(self, request: Request) -> dict[str, Any]:
        """The JSON object of a request. Raises ApiError."""
        raw = bytearray()
        most = self._limits.max_body_bytes
        try:
            with anyio.fail_after(self._limits.body_seconds):
                async for part in request.stream():
                    raw += part
                    if len(raw) > most:
                        raise ApiError(413, f"the body: expected at most {most:,} bytes, found more")
        except TimeoutError:
            raise ApiError(408, f"the body: expected it within {self._limits.body_seconds:g} s") from None
        return read_json(bytes(raw))


class _Guard:
    """Checks the key, and writes a log line for each request: no texts."""

    def __init__(self, app: ASGIApp, server: Server) -> None:
        self._app, self._server = app, server

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        start, status = time.perf_counter(), 0

        async def counted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            headers = dict(scope["headers"])
            given = headers.get(b"authorization", b""), b"Bearer " + headers.get(b"x-api-key", b"")  # some send both
            allowed = [self._server.is_allowed(each.decode("latin-1")) for each in given]
            host = headers.get(b"host", b"").decode("latin-1")
            if not self._server.is_addressed(host):
                wrong = ApiError(
                    403,
                    f"Host: expected localhost or 127.0.0.1, found {host[:100]!r}; behind a proxy, let it send one of "
                    "these, or ask for keys with --api-key-file",
                    code="wrong_host",
                )
                await error_response(wrong, route_path(scope))(scope, receive, counted)
            elif route_path(scope) not in OPEN_ROUTES and not any(allowed):
                wrong = ApiError(401, "the API key is missing or wrong: expected Authorization: Bearer KEY, or "
                                 "x-api-key: KEY", code="invalid_api_key")  # fmt: skip
                await error_response(wrong, route_path(scope))(scope, receive, counted)
            else:
                await self._app(scope, receive, counted)
        except ClientDisconnect:  # while it sent its body
            status = 499
        except Exception:  # a bug, which _bug answers
            status = status or 500
            raise
        finally:
            status = status or 499  # the client left before the answer
            route = scope.get("route")
            path = getattr(route, "path", "other")
            self._server.count_request(path, status)
            milliseconds = (time.perf_counter() - start) * 1e3
            note = scope.get("llamita.note", "")
            log.info("%s %s %d %.1f ms %s", scope["method"], path, status, milliseconds, note)


async def _api_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    return error_response(error, route_path(request.scope))


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    what = f"{request.method} {request.url.path[:100]}: {error.detail}"
    return error_response(ApiError(error.status_code, what, headers=error.headers), route_path(request.scope))


async def _bug(request: Request, error: Exception) -> Response:
    """Starlette raises the exception again after this, so that the log has it."""
    return error_response(ApiError(500, "a bug of the server; its log has more"), route_path(request.scope))

"""The HTTP application: routes, keys, limits and log lines around the workers."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import dataclasses
import functools
import hashlib
import hmac
import logging
import time
import weakref
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from typing import Any, Final

import anyio
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from llamita.chat import ChatEncoder
from llamita.engine import AdapterUses, Grammar, GrammarState, Model, encode_prompt
from llamita.engine import Message as ChatMessage
from llamita.engine import Request as EngineRequest
from llamita.errors import ChatError, EngineError
from llamita.sampling import DEFAULT_COMPUTE, ComputeOptions, SamplingParams
from llamita.server.answers import Answer, OpenAiAnswer, json_bytes
from llamita.server.embeddings import Embedder, embedding_inputs, embeddings_body, encoding_of
from llamita.server.errors import ApiError
from llamita.server.messages import MessagesRoutes
from llamita.server.metrics import CONTENT_TYPE, Metrics
from llamita.server.ollama import LATEST, OllamaRoutes
from llamita.server.page import show_page
from llamita.server.parameters import (
    NamedGrammar,
    TextParams,
    chat_messages,
    flag_field,
    grammar_of,
    prompts_of,
    read_json,
    text_field,
    text_params,
)
from llamita.server.responses import ResponsesRoutes
from llamita.server.watch import Watched, watch
from llamita.server.worker import Group, Worker, total_stats

log = logging.getLogger(__name__)
API_SAMPLING: Final = SamplingParams(temperature=1.0, top_p=1.0)  # OpenAI's defaults
MAX_GRAMMARS: Final = 16  # of each model, kept compiled
MAX_CHARS_AT_ONCE: Final = 20_000  # longer texts are encoded in a thread, so that others need not wait
OPEN_ROUTES: Final = ("/", "/health")  # need no key


@dataclasses.dataclass(frozen=True)
class ServerLimits:
    """What one client may use. num_parallel: texts at once, for each model; max_queue: texts that
    wait besides."""

    num_parallel: int = 16
    max_queue: int = 64
    max_body_bytes: int = 4 << 20
    body_seconds: float = 30.0
    answer_seconds: float = 600.0


@dataclasses.dataclass(frozen=True)
class ServedModel:
    """A model by its name in the API, its sampling defaults, and adapters that all its texts use.

    watched: when its files change, `reopen` opens them anew, new requests get the new model, and
    this one is closed with `close` after its last request.
    """

    name: str
    model: Model
    sampling: SamplingParams = API_SAMPLING
    adapters: AdapterUses = ()
    watched: Watched | None = None
    reopen: Callable[[], ServedModel] | None = None
    close: Callable[[], None] | None = None


class Serving:
    """A model while it is served."""

    def __init__(self, served: ServedModel, runtime: ComputeOptions, limits: ServerLimits) -> None:
        self.served = served
        self.users: weakref.WeakSet[asyncio.Task[Any]] = weakref.WeakSet()  # requests that may still need it
        self.name, self.model, self.sampling = served.name, served.model, served.sampling
        self.adapters = served.adapters
        self.created = int(time.time())
        self.worker = Worker(served.model, runtime, num_parallel=limits.num_parallel, max_queue=limits.max_queue)
        self.embedder = Embedder(served.model, runtime, served.adapters, limits.num_parallel + limits.max_queue)
        self._grammars: dict[tuple[str, frozenset[int]], GrammarState] = {}  # by their source
        # A thread of their own: grammars that take long must not take the threads of other work.
        self._grammar_thread = concurrent.futures.ThreadPoolExecutor(1, "llamita-grammar")
        self._encoder: ChatEncoder | None = None
        self._encoding = asyncio.Lock()

    async def encode_chat(self, body: dict[str, Any]) -> tuple[list[int], frozenset[int]]:
        """The ids of a conversation, and the ids that end its answer besides the file's. Raises
        ApiError."""
        return await self.encode_messages(chat_messages(body, self.model.system_prompt))

    async def encode_messages(self, messages: list[ChatMessage]) -> tuple[list[int], frozenset[int]]:
        """The same, of messages that are read already."""
        async with self._encoding:  # one template process, for one thread at a time
            try:
                return await asyncio.to_thread(self._encode, messages)
            except (ChatError, EngineError) as error:
                raise ApiError(400, str(error), param="messages") from None

    async def encode_prompts(self, prompts: list[str | list[int]]) -> list[list[int]]:
        """The ids of the prompts of completions. Raises ApiError."""

        def encode() -> list[list[int]]:
            return [
                encode_prompt(self.model, each.encode("utf-8", "replace")) if isinstance(each, str) else each
                for each in prompts
            ]

        is_long = sum(map(len, prompts)) > MAX_CHARS_AT_ONCE
        try:
            return await asyncio.to_thread(encode) if is_long else encode()
        except EngineError as error:
            raise ApiError(400, str(error), param="prompt") from None

    def _encode(self, messages: list[ChatMessage]) -> tuple[list[int], frozenset[int]]:
        if self._encoder is None:
            self._encoder = ChatEncoder(self.model)
        return self._encoder.encode(messages), self._encoder.end_ids

    async def start_grammar(self, limit: NamedGrammar | None, end_ids: frozenset[int]) -> GrammarState | None:
        """The state before the first token of texts that a request limits; None: it does not.
        Raises ApiError."""
        if limit is None:
            return None
        name, compile_grammar = limit
        loop = asyncio.get_running_loop()
        try:
            return await loop.run_in_executor(self._grammar_thread, self._start_grammar, compile_grammar, end_ids)
        except EngineError as error:
            raise ApiError(400, str(error), param=name) from None

    def _start_grammar(self, compile_grammar: Callable[[], Grammar], end_ids: frozenset[int]) -> GrammarState:
        grammar = compile_grammar()
        key = grammar.source, end_ids
        state = self._grammars.get(key)
        if state is None:
            state = grammar.start(self.model, end_ids)
            if len(self._grammars) >= MAX_GRAMMARS:
                self._grammars.clear()
            self._grammars[key] = state
        return state

    def submit(self, params: TextParams, prompts: Sequence[list[int]], grammar: GrammarState | None) -> Group:
        """Start the texts of a request. Raises ApiError."""
        self.worker.check_count(len(prompts) * params.num_choices)
        return self.worker.submit(
            [
                params.request(ids, choice, self.worker.context_tokens, self.adapters, grammar)
                for ids in prompts
                for choice in range(params.num_choices)
            ]
        )

    async def warm_up(self) -> None:
        """Compute one token, so that the first client need not wait for memory and threads."""
        group = self.worker.submit([EngineRequest([max(self.model.info.bos_id, 0)], 1)])
        await group.ready.wait()
        group.running[0].take()

    async def drain(self) -> None:
        """Wait for the last request that was given this model."""
        while any(not task.done() for task in self.users):
            await asyncio.sleep(0.05)

    def close(self) -> None:
        self.worker.close()
        self.embedder.close()
        self._grammar_thread.shutdown(cancel_futures=True)
        if self._encoder is not None:
            self._encoder.close()
        if self.served.close is not None:
            self.served.close()


class Server:
    """The routes. `app` is the ASGI application; its lifespan opens and closes the workers."""

    def __init__(
        self,
        models: Sequence[ServedModel],
        runtime: ComputeOptions = DEFAULT_COMPUTE,
        limits: ServerLimits = ServerLimits(),
        *,
        api_keys: Sequence[str] = (),
        cors_origins: Sequence[str] = (),
    ) -> None:
        """The first model answers requests that name none. api_keys: one of them is needed; (): no
        key is."""
        self._served, self._runtime, self._limits = models, runtime, limits
        self._serving: dict[str, Serving] = {}
        self._key_digests = [hashlib.sha256(key.encode()).digest() for key in api_keys]
        self._metrics = Metrics(lambda: total_stats([each.worker for each in self._serving.values()]))
        post, get = ["POST"], ["GET"]
        routes = [
            Route("/", show_page, methods=get),
            Route("/v1/chat/completions", self._chat, methods=post),
            Route("/v1/completions", self._completions, methods=post),
            Route("/v1/embeddings", self._embeddings, methods=post),
            Route("/v1/models", self._models, methods=get),
            Route("/v1/models/{name:path}", self._model, methods=get),
            Route("/tokenize", self._tokenize, methods=post),
            Route("/detokenize", self._detokenize, methods=post),
            Route("/health", self._health, methods=get),
            Route("/metrics", self._show_metrics, methods=get),
            *ResponsesRoutes(self).routes,
            *MessagesRoutes(self).routes,
            *OllamaRoutes(self).routes,
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

    def count_request(self, route: str, status: int) -> None:
        """Count a request for /metrics."""
        self._metrics.count_request(route, status)

    # ---- texts

    async def _chat(self, request: Request) -> Response:
        body = await self.read_body(request)
        serving = self.find(body)
        params = text_params(body, serving.sampling, serving.model.info.vocab_size, is_chat=True)
        ids, end_ids = await serving.encode_chat(body)
        grammar = await serving.start_grammar(grammar_of(body), end_ids)
        group = serving.submit(params, [ids], grammar)
        return self.respond(OpenAiAnswer(serving.name, serving.model, group, params, end_ids, is_chat=True))

    async def _completions(self, request: Request) -> Response:
        body = await self.read_body(request)
        serving = self.find(body)
        info = serving.model.info
        params = text_params(body, serving.sampling, info.vocab_size, is_chat=False)
        prompts = await serving.encode_prompts(prompts_of(body, info.vocab_size))
        grammar = await serving.start_grammar(grammar_of(body), frozenset())
        group = serving.submit(params, prompts, grammar)
        return self.respond(OpenAiAnswer(serving.name, serving.model, group, params, frozenset(), is_chat=False))

    async def _embeddings(self, request: Request) -> Response:
        body = await self.read_body(request)
        serving = self.find(body)
        encode = encoding_of(body)
        inputs = await asyncio.to_thread(embedding_inputs, body, serving.model, serving.worker.context_tokens)

        num_tokens = sum(map(len, inputs))

        async def work() -> bytes:
            return embeddings_body(serving.name, await serving.embedder.embed(inputs, encode), num_tokens)

        return self.compute(work, num_tokens)

    def compute(self, work: Callable[[], Coroutine[Any, Any, bytes]], num_tokens: int) -> Response:
        """The response of a request that reads this many tokens. The work gives its JSON, and is
        cancelled when the client leaves."""
        return _Computing(work, num_tokens, self._limits.answer_seconds, self._metrics)

    def respond(self, answer: Answer) -> Response:
        """The response of a request whose texts were submitted."""
        return _Generating(answer, self._limits.answer_seconds, self._metrics)

    # ---- the other routes

    async def _models(self, request: Request) -> Response:
        return _json({"object": "list", "data": [_model_object(each) for each in self._serving.values()]})

    async def _model(self, request: Request) -> Response:
        return _json(_model_object(self.find({"model": request.path_params["name"]})))

    async def _tokenize(self, request: Request) -> Response:
        body = await self.read_body(request)
        model = self.find(body).model
        name = "prompt" if "prompt" in body and "content" not in body else "content"
        text = text_field(body, name).encode("utf-8", "replace")
        encode = functools.partial(model.encode, text, bos=flag_field(body, "add_special", False))
        try:
            ids = await asyncio.to_thread(encode) if len(text) > MAX_CHARS_AT_ONCE else encode()
        except EngineError as error:
            raise ApiError(400, str(error)) from None
        return _json({"tokens": ids, "count": len(ids)})

    async def _detokenize(self, request: Request) -> Response:
        body = await self.read_body(request)
        model = self.find(body).model
        ids = prompts_of({"prompt": body.get("tokens")}, model.info.vocab_size)
        if len(ids) != 1 or isinstance(ids[0], str):
            raise ApiError(400, "tokens: expected a list of token ids", param="tokens")
        try:
            text = model.decode(ids[0]).decode("utf-8", "replace")
        except EngineError as error:
            raise ApiError(400, str(error)) from None
        return _json({"content": text, "prompt": text})

    async def _health(self, request: Request) -> Response:
        return _json({"status": "ok"})

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


class _Generating(Response):
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


class _Computing(Response):
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
            scope["llamita.note"] = f"{self._num_tokens} tokens" + (", client left" if cancelled else "")

    async def _send(self, scope: Scope, receive: Receive, send: Send) -> None:
        await (await _body_within(self._seconds, self._work(), scope))(scope, receive, send)


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
            if _route_path(scope) not in OPEN_ROUTES and not any(allowed):
                wrong = ApiError(401, "the API key is missing or wrong: expected Authorization: Bearer KEY, or "
                                 "x-api-key: KEY", code="invalid_api_key")  # fmt: skip
                await _error_response(wrong, _route_path(scope))(scope, receive, counted)
            else:
                await self._app(scope, receive, counted)
        except ClientDisconnect:  # while it sent its body
            status = 499
        finally:
            status = status or 499  # the client left before the answer
            route = scope.get("route")
            path = getattr(route, "path", "other")
            self._server.count_request(path, status)
            milliseconds = (time.perf_counter() - start) * 1e3
            note = scope.get("llamita.note", "")
            log.info("%s %s %d %.1f ms %s", scope["method"], path, status, milliseconds, note)


async def _body_within(seconds: float, work: Coroutine[Any, Any, bytes], scope: Scope) -> Response:
    """The response with the JSON that the work gives, or with an error."""
    try:
        with anyio.fail_after(seconds):
            return Response(await work, media_type="application/json")
    except TimeoutError:
        return _error_response(_too_slow(seconds), _route_path(scope))
    except ApiError as error:
        return _error_response(error, _route_path(scope))


def _too_slow(seconds: float) -> ApiError:
    return ApiError(503, f"the answer took more than {seconds:g} s", code="timeout")


def _route_path(scope: Scope) -> str:
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


def _json(body: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    return Response(json_bytes(body), status, headers, "application/json")


def _error_response(error: ApiError, path: str) -> Response:
    return _json(error.body(path), error.status, error.headers)


async def _api_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    return _error_response(error, _route_path(request.scope))


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    what = f"{request.method} {request.url.path[:100]}: {error.detail}"
    return _error_response(ApiError(error.status_code, what, headers=error.headers), _route_path(request.scope))


async def _bug(request: Request, error: Exception) -> Response:
    """Starlette raises the exception again after this, so that the log has it."""
    return _error_response(ApiError(500, "a bug of the server; its log has more"), _route_path(request.scope))


def _model_object(serving: Serving) -> dict[str, Any]:
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
    }

"""A model while it is served: its worker, its chat template, and its grammars."""

from __future__ import annotations

import asyncio
import collections
import concurrent.futures
import contextlib
import dataclasses
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final, TypeVar

from starlette.requests import ClientDisconnect
from starlette.requests import Request as HttpRequest

from llamita.chat import ChatEncoder
from llamita.engine import AdapterUses, Grammar, GrammarState, Message, Model, Request, encode_prompt
from llamita.errors import ChatError, EngineError
from llamita.sampling import ComputeOptions, SamplingParams
from llamita.server.embeddings import Embedder
from llamita.server.errors import ApiError
from llamita.server.parameters import NamedGrammar, TextParams, chat_messages
from llamita.server.watch import Watched
from llamita.server.worker import Group, Worker, queue_full

API_SAMPLING: Final = SamplingParams(temperature=1.0, top_p=1.0)  # OpenAI's defaults
MAX_GRAMMARS: Final = 16  # of each model, kept compiled
MAX_CHARS_AT_ONCE: Final = 20_000  # of texts that the event loop's thread encodes
LEFT_SECONDS: Final = 0.1  # between two looks whether a client that waits for its grammar has left

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class ServerLimits:
    """What one client may use. num_parallel: texts at once, for each model; max_queue: texts that
    wait besides."""

    num_parallel: int = 16
    max_queue: int = 64
    max_body_bytes: int = 4 << 20
    body_seconds: float = 30.0
    answer_seconds: float = 600.0


DEFAULT_LIMITS: Final = ServerLimits()


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
        self._max_requests = limits.num_parallel + limits.max_queue
        self.embedder = Embedder(served.model, runtime, served.adapters, self.worker, self._max_requests)
        self._num_in_stage: collections.Counter[str] = collections.Counter()
        self._grammars: dict[tuple[str, frozenset[int]], GrammarState] = {}  # by their source
        # A thread of their own: grammars that take long must not take the threads of other work.
        self._grammar_thread = concurrent.futures.ThreadPoolExecutor(1, "llamita-grammar")
        self._encoder: ChatEncoder | None = None
        self._encoding = asyncio.Lock()

    async def encode_chat(self, body: dict[str, Any]) -> tuple[list[int], frozenset[int]]:
        """The ids of a conversation, and the ids that end its answer besides the file's. Raises
        ApiError."""
        return await self.encode_messages(chat_messages(body, self.model.system_prompt))

    async def encode_messages(
        self, messages: list[Message], field: str = "messages"
    ) -> tuple[list[int], frozenset[int]]:
        """The same, of messages that were read from this field."""
        with self._stage("encoding"):
            async with self._encoding:  # one template process, for one thread at a time
                try:
                    return await asyncio.to_thread(self._encode, messages)
                except (ChatError, EngineError) as error:
                    raise ApiError(400, str(error), param=field) from None

    async def encode_prompts(self, prompts: list[str | list[int]]) -> list[list[int]]:
        """The ids of the prompts of completions. Raises ApiError."""

        def encode() -> list[list[int]]:
            return [
                encode_prompt(self.model, each.encode("utf-8", "replace")) if isinstance(each, str) else each
                for each in prompts
            ]

        try:
            return await self.encode(encode, sum(map(len, prompts)))
        except EngineError as error:
            raise ApiError(400, str(error), param="prompt") from None

    async def encode(self, encode: Callable[[], T], num_chars: int | None = None) -> T:
        """What the call returns that encodes texts: in a thread, so that others need not wait, unless
        they are known to be short. Raises ApiError if the queue is full."""
        if num_chars is not None and num_chars <= MAX_CHARS_AT_ONCE:
            return encode()
        with self._stage("encoding"):
            return await asyncio.to_thread(encode)

    @contextlib.contextmanager
    def _stage(self, name: str) -> Iterator[None]:
        """Count a request that is prepared. Those in the same stage, running and waiting are limited
        together: else a queue without an end would form before the queue. Raises ApiError."""
        num_others = self.worker.num_live + self._num_in_stage[name]
        if num_others >= self._max_requests:
            raise queue_full(num_others)
        self._num_in_stage[name] += 1
        try:
            yield
        finally:
            self._num_in_stage[name] -= 1

    def _encode(self, messages: list[Message]) -> tuple[list[int], frozenset[int]]:
        if self._encoder is None:
            self._encoder = ChatEncoder(self.model)
        return self._encoder.encode(messages), self._encoder.end_ids

    async def start_grammar(
        self, request: HttpRequest, limit: NamedGrammar | None, end_ids: frozenset[int]
    ) -> GrammarState | None:
        """The state before the first token of texts that a request limits; None: it does not. Raises
        ApiError, and ClientDisconnect if the client leaves before its grammar's turn."""
        if limit is None:
            return None
        name, compile_grammar = limit
        loop = asyncio.get_running_loop()
        with self._stage("grammars"):
            state = loop.run_in_executor(self._grammar_thread, self._start_grammar, compile_grammar, end_ids)
            try:
                while not (await asyncio.wait([state], timeout=LEFT_SECONDS))[0]:
                    if await request.is_disconnected():
                        raise ClientDisconnect
                return state.result()
            except EngineError as error:
                raise ApiError(400, str(error), param=name) from None
            finally:
                state.cancel()

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
        group = self.worker.submit([Request([max(self.model.info.bos_id, 0)], 1)])
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

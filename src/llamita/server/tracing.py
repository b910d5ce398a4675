"""POST /trace: where the words of a text stand in the documents of a token store."""

from __future__ import annotations

import asyncio
import concurrent.futures
from typing import TYPE_CHECKING

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from llamita.data.trace import (
    DEFAULT_MIN_BYTES,
    DEFAULT_SOURCES,
    MAX_SENTENCE_BYTES,
    MAX_SOURCES,
    MIN_BYTES,
    trace,
    trace_values,
)
from llamita.errors import LlamitaError
from llamita.server.answers import json_bytes
from llamita.server.errors import ApiError
from llamita.server.host import Host
from llamita.server.parameters import text_field, whole_field
from llamita.server.worker import queue_full

if TYPE_CHECKING:
    from llamita.data.store_index import StoreIndex

MAX_TRACED_CHARACTERS = 100_000


class TraceRoutes:
    """The route. One text is traced at a time, in a thread; those of clients that left are not."""

    def __init__(self, host: Host, index: StoreIndex | None, max_queue: int) -> None:
        self._host, self._index, self._max_queue = host, index, max_queue
        self._thread = concurrent.futures.ThreadPoolExecutor(1, "llamita-trace")
        self._num_live = 0
        self.routes = [Route("/trace", self._trace, methods=["POST"])]

    async def _trace(self, request: Request) -> Response:
        body = await self._host.read_body(request)
        if self._index is None:
            raise ApiError(404, "trace: this server has no index of documents; start it with --trace STORE")
        text = text_field(body, "text")
        if len(text) > MAX_TRACED_CHARACTERS:
            raise ApiError(
                400, f"text: expected at most {MAX_TRACED_CHARACTERS:,} characters, found {len(text):,}", param="text"
            )
        min_bytes = whole_field(body, "min_bytes", MIN_BYTES, MAX_SENTENCE_BYTES, DEFAULT_MIN_BYTES)
        max_sources = whole_field(body, "max_sources", 1, MAX_SOURCES, DEFAULT_SOURCES)
        index = self._index

        def search() -> bytes:
            found = trace(index, text, min_bytes=min_bytes, max_sources=max_sources)
            return json_bytes({"sentences": trace_values(found)})

        async def work() -> bytes:
            if self._num_live > self._max_queue:
                raise queue_full(self._num_live)
            self._num_live += 1
            try:
                return await asyncio.get_running_loop().run_in_executor(self._thread, search)
            except LlamitaError as error:
                raise ApiError(500, str(error)) from None
            finally:
                self._num_live -= 1

        return self._host.compute(work, 0)

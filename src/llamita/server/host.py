"""What the modules of single APIs use of the server: its models, and the ways to answer."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Mapping
from typing import Any, Protocol

from starlette.requests import Request
from starlette.responses import Response

from llamita.server.answers import Answer
from llamita.server.serving import Serving


class Host(Protocol):
    """The server."""

    can_trace: bool  # whether it has documents in which texts are traced

    @property
    def models(self) -> Mapping[str, Serving]: ...

    def find(self, body: Mapping[str, Any]) -> Serving: ...

    async def read_body(self, request: Request) -> dict[str, Any]: ...

    def respond(self, answer: Answer) -> Response: ...

    def compute(self, work: Callable[[], Coroutine[Any, Any, bytes]], num_tokens: int) -> Response: ...

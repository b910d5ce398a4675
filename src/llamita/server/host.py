"""What the modules of single APIs use of the server: its models, and the ways to answer."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any, Protocol

from starlette.requests import Request
from starlette.responses import Response

from llamita.engine import GrammarState, Message, Model
from llamita.sampling import SamplingParams
from llamita.server.answers import Answer
from llamita.server.embeddings import Embedder
from llamita.server.parameters import NamedGrammar, TextParams
from llamita.server.worker import Group, Worker


class Serving(Protocol):
    """A served model."""

    name: str
    model: Model
    sampling: SamplingParams
    created: int
    worker: Worker
    embedder: Embedder

    async def encode_chat(self, body: dict[str, Any]) -> tuple[list[int], frozenset[int]]: ...

    async def encode_messages(self, messages: list[Message]) -> tuple[list[int], frozenset[int]]: ...

    async def start_grammar(self, limit: NamedGrammar | None, end_ids: frozenset[int]) -> GrammarState | None: ...

    def submit(self, params: TextParams, prompts: Sequence[list[int]], grammar: GrammarState | None) -> Group: ...


class Host(Protocol):
    """The server."""

    @property
    def models(self) -> Mapping[str, Serving]: ...

    def find(self, body: Mapping[str, Any]) -> Serving: ...

    async def read_body(self, request: Request) -> dict[str, Any]: ...

    def respond(self, answer: Answer) -> Response: ...

    def compute(self, work: Callable[[], Coroutine[Any, Any, bytes]], num_tokens: int) -> Response: ...

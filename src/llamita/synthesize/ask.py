"""Asks an endpoint about all passages, several at once, and keeps the answers in a cache."""

from __future__ import annotations

import contextlib
import dataclasses
import queue
import threading
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final

from llamita.config import ModelKind, SynthesizeConfig
from llamita.errors import NetworkError
from llamita.progress import Progress
from llamita.synthesize.answers import find_items
from llamita.synthesize.cache import AnswerCache, request_key
from llamita.synthesize.endpoint import Answer, Endpoint, RequestFailed
from llamita.synthesize.passages import Passage
from llamita.synthesize.prompts import BUILT_IN, Prompts, fill, read_prompts

MODEL_KINDS: Final[tuple[ModelKind, ...]] = typing.get_args(ModelKind)
ATTEMPTS: Final = 2  # requests for what no item can be taken of
MAX_FAILED_IN_A_ROW: Final = 8
ANSWER_TOKENS: Final = 1024
BYTES_PER_TOKEN: Final = 4  # about, in English and Chinese alike


@dataclasses.dataclass(frozen=True)
class Request:
    """To ask about a passage for one kind of row."""

    passage: Passage
    kind: str  # one of MODEL_KINDS


@dataclasses.dataclass
class Estimate:
    """What will be asked for, and how much of it is in the cache already."""

    requests: int = 0
    cached: int = 0
    prompt_tokens: int = 0
    max_completion_tokens: int = 0


@dataclasses.dataclass
class AskCounts:
    """What was asked. usage_known: whether the endpoint counted all tokens; otherwise the numbers
    are estimates."""

    requests: int = 0
    cached: int = 0
    retries: int = 0
    failed: list[str] = dataclasses.field(default_factory=list)
    prompt_tokens: int = 0
    completion_tokens: int = 0
    usage_known: bool = True


class PromptFiles:
    """The prompts of each language, read when they are first used."""

    def __init__(self, config: SynthesizeConfig) -> None:
        self._folder = config.prompts or BUILT_IN
        self._language = config.language
        self._read: dict[str, Prompts] = {}

    def of(self, language: str) -> Prompts:
        name = language if self._language == "auto" else self._language
        if name not in self._read:
            self._read[name] = read_prompts(self._folder, name)
        return self._read[name]


class Bodies:
    """What is sent for each request."""

    def __init__(self, config: SynthesizeConfig, prompts: PromptFiles) -> None:
        self._config, self._prompts = config, prompts

    def body(self, request: Request) -> dict[str, Any]:
        config = self._config
        values = {
            "passage": request.passage.text, "title": request.passage.origin.title or "-",
            "count": str(config.questions), "turns": str(config.turns),
        }  # fmt: skip
        text = fill(self._prompts.of(request.passage.language).of_model[request.kind], values)
        body: dict[str, Any] = {
            "model": config.model,
            "messages": [{"role": "user", "content": text}],
            "max_tokens": ANSWER_TOKENS,
            "response_format": _response_format(request.kind, config),
            **config.body_fields(),
        }
        return {name: value for name, value in body.items() if value is not None}

    def key(self, request: Request, attempt: int) -> str:
        return request_key(self.body(request), attempt)


def _response_format(kind: str, config: SynthesizeConfig) -> dict[str, Any]:
    count = config.turns if kind == "conversation" else config.questions
    names = ("question",) if kind == "refusal" else ("question", "answer", "evidence")
    item = _object({name: {"type": "string"} for name in names})
    schema = _object({"items": {"type": "array", "items": item, "maxItems": count}})
    return {"type": "json_schema", "json_schema": {"name": "questions", "strict": True, "schema": schema}}


def _object(properties: Mapping[str, Any]) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}


def estimate(requests: Sequence[Request], bodies: Bodies, find: Callable[[str], Answer | None]) -> Estimate:
    found = Estimate(len(requests))
    for request in requests:
        body = bodies.body(request)
        if find(request_key(body, 0)) is not None:
            found.cached += 1
            continue
        found.prompt_tokens += _about_tokens(body["messages"][0]["content"])
        limit = next((body[name] for name in ("max_tokens", "max_completion_tokens") if name in body), ANSWER_TOKENS)
        found.max_completion_tokens += limit if isinstance(limit, int) else ANSWER_TOKENS
    return found


def ask_all(
    requests: Sequence[Request],
    bodies: Bodies,
    cache: AnswerCache,
    endpoint: Endpoint,
    concurrency: int,
    counts: AskCounts,
    progress: Progress,
) -> None:
    """Put the answers to all requests into the cache; a request without a usable answer is sent
    again, at most ATTEMPTS times in all. Raises NetworkError if the endpoint is gone."""
    threads = _AskingThreads(endpoint, min(concurrency, len(requests)))
    waiting = iter(range(len(requests)))
    pending: dict[str, tuple[int, int]] = {}  # key → request, attempt
    finished, failed_in_a_row = 0, 0

    def send(number: int, attempt: int) -> bool:
        """Whether there was something to send."""
        body = bodies.body(requests[number])
        unanswered = _unanswered_attempt(body, attempt, cache)
        counts.cached += attempt == 0 and unanswered != 0
        if unanswered is None or (key := request_key(body, unanswered)) in pending:
            return False  # pending: the same question twice, of which one answer is enough
        pending[key] = number, unanswered
        threads.send(key, body)
        return True

    progress("asking", 0, len(requests))
    try:
        while True:
            while len(pending) < threads.count and (number := next(waiting, None)) is not None:
                finished += not send(number, 0)
            progress("asking", finished, len(requests))
            if not pending:
                return
            key, answer = threads.receive()
            number, attempt = pending.pop(key)
            if isinstance(answer, RequestFailed):
                counts.failed.append(str(answer))
                failed_in_a_row += 1
                finished += 1
                if failed_in_a_row >= MAX_FAILED_IN_A_ROW:
                    raise NetworkError(
                        f"{answer}; {failed_in_a_row:,} requests in a row failed; answers so far are kept: the same "
                        "command goes on"
                    )
                continue
            if isinstance(answer, Exception):
                raise answer
            failed_in_a_row = 0
            cache.add(key, answer)
            _count(answer, bodies.body(requests[number]), counts)
            if find_items(answer.text) or not send(number, attempt + 1):
                finished += 1
    finally:
        counts.retries = endpoint.num_retries
        for key, answer in threads.stop():  # what arrived before an error or Ctrl-C
            if isinstance(answer, Answer):
                cache.add(key, answer)


def _unanswered_attempt(body: Mapping[str, Any], attempt: int, cache: AnswerCache) -> int | None:
    """The first attempt, from `attempt` on, without an answer in the cache; None if an answer
    before it is usable, or if no attempt is left."""
    for each in range(attempt, ATTEMPTS):
        answer = cache.find(request_key(body, each))
        if answer is None:
            return each
        if find_items(answer.text):
            return None
    return None


class _AskingThreads:
    """Threads that only ask. They are daemons: after Ctrl-C nobody waits for answers that are on
    their way."""

    def __init__(self, endpoint: Endpoint, count: int) -> None:
        self.count, self._endpoint = count, endpoint
        self._jobs: queue.SimpleQueue[tuple[str, dict[str, Any]] | None] = queue.SimpleQueue()
        self._done: queue.SimpleQueue[tuple[str, Answer | Exception]] = queue.SimpleQueue()
        for _ in range(count):
            threading.Thread(target=self._ask, daemon=True, name="synthesize").start()

    def _ask(self) -> None:
        """What a thread does, until there is nothing left to ask."""
        while (job := self._jobs.get()) is not None:
            key, body = job
            try:
                self._done.put((key, self._endpoint.ask(body)))
            except Exception as error:  # raised again in the main thread
                self._done.put((key, error))

    def send(self, key: str, body: dict[str, Any]) -> None:
        """Let a thread ask."""
        self._jobs.put((key, body))

    def receive(self) -> tuple[str, Answer | Exception]:
        """Wait for the next answer, or what was raised instead."""
        while True:
            with contextlib.suppress(queue.Empty):
                return self._done.get(timeout=0.5)  # Windows: Ctrl-C does not end a wait

    def stop(self) -> Iterator[tuple[str, Answer | Exception]]:
        """End the threads after what they were sent. Yields what arrived and was not received."""
        for _ in range(self.count):
            self._jobs.put(None)
        while not self._done.empty():
            yield self._done.get()


def _count(answer: Answer, body: Mapping[str, Any], counts: AskCounts) -> None:
    """Add the tokens of an answer, as the endpoint counts them or about as many."""
    read, written = answer.prompt_tokens, answer.completion_tokens
    counts.requests += 1
    counts.usage_known &= read is not None and written is not None
    counts.prompt_tokens += _about_tokens(body["messages"][0]["content"]) if read is None else read
    counts.completion_tokens += _about_tokens(answer.text) if written is None else written


def _about_tokens(text: str) -> int:
    return len(text.encode()) // BYTES_PER_TOKEN

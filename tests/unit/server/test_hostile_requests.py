"""Made-up requests of every route: none may crash the server, hang, or leave anything behind."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from starlette.routing import Route

from llamita.engine import Model
from llamita.sampling import RuntimeOptions
from llamita.server.app import Server
from llamita.server.serving import ServedModel, ServerLimits

MAX_SECONDS = 60.0  # for one request, on a busy machine
NUM_CLIENTS = 24
LIMITS = ServerLimits(num_parallel=8, max_queue=32, max_body_bytes=200_000, body_seconds=5.0, answer_seconds=20.0)

TEXTS = ("", "x", "Hi", "\x00", "\ud800", "\udfff", "🙂", "e\u0301", "\u2028", "a" * 10_000, "<|im_end|>", "{{ x }}",
         "data: [DONE]\n\n", "\r\nX: y", "../../etc/passwd", "%00", "((((", "[a-z",
         "(a{1000}){1000}", "\\", "null")  # fmt: skip
NUMBERS = (0, 1, 2, -1, 3.5, -0.0, 1e308, 5e-324, 2**31, 2**63 - 1, -(2**63), 2**64, 10**30, 10**4000, 16.0, 0.1)
FIELDS = (
    "model", "prompt", "messages", "max_tokens", "max_completion_tokens", "temperature", "top_p", "top_k", "min_p",
    "seed", "n", "best_of", "stop", "stream", "stream_options", "logit_bias", "logprobs", "top_logprobs", "echo",
    "suffix", "presence_penalty", "frequency_penalty", "repetition_penalty", "response_format", "structured_outputs",
    "tools", "tool_choice", "user", "content", "tokens", "add_special", "input", "instructions", "system", "text",
    "max_output_tokens", "stop_sequences", "options", "format", "template", "raw", "context", "keep_alive", "think",
    "encoding_format", "dimensions", "previous_response_id", "store", "metadata", "grammar", "json_schema",
)  # fmt: skip
KEYWORDS = ("type", "properties", "items", "enum", "pattern", "minimum", "maxLength", "required", "anyOf", "$ref",
            "not", "additionalProperties", "const", "format", "uniqueItems", "multipleOf", "$defs", "oneOf",
            "minItems")  # fmt: skip
TYPES = ("string", "number", "integer", "object", "array", "boolean", "null", "robot")
ROLES = ("system", "user", "assistant", "tool", "developer", "robot", 5, None)


class Requests:
    """Random requests: mostly right ones with a few wrong fields, and some that are not even JSON."""

    def __init__(self, seed: str, routes: list[tuple[str, str]]) -> None:
        self.chosen, self.routes = random.Random(seed), routes

    def value(self, depth: int = 0) -> Any:
        pick = self.chosen.random()
        if pick < 0.35:
            return self.chosen.choice(TEXTS)
        if pick < 0.65:
            return self.chosen.choice(NUMBERS)
        if pick < 0.8 or depth > 3:
            return self.chosen.choice((None, True, False))
        if pick < 0.9:
            return [self.value(depth + 1) for _ in range(self.chosen.randrange(4))]
        return {str(self.value(9))[:50]: self.value(depth + 1) for _ in range(self.chosen.randrange(4))}

    def schema(self, depth: int = 0) -> Any:
        if self.chosen.random() < 0.15 or depth > 4:
            return self.value(depth)
        schema: dict[str, Any] = {"type": self.chosen.choice(TYPES)}
        for keyword in self.chosen.sample(KEYWORDS, self.chosen.randrange(4)):
            inner = self.chosen.randrange(4)
            schema[keyword] = (
                self.value() if inner == 0 else self.schema(depth + 1) if inner == 1
                else [self.schema(depth + 1)] if inner == 2 else {"a": self.schema(depth + 1)}
            )  # fmt: skip
        return schema

    def message(self) -> Any:
        if self.chosen.random() < 0.1:
            return self.value()
        content = self.chosen.choice(
            ("Hi", "How are you?", self.value(), [{"type": "text", "text": "Hi"}], [self.value()])
        )
        return {"role": self.chosen.choice(("user", "user", "user", *ROLES)), "content": content}

    def field(self, name: str) -> Any:
        pick = self.chosen.random()
        if name in ("response_format", "format") and pick < 0.7:
            kind = self.chosen.choice(("json_schema", "json_object", "text", "xml"))
            return {"type": kind, "json_schema": {"name": "x", "schema": self.schema()}}
        if name == "structured_outputs" and pick < 0.8:
            kind = self.chosen.choice(("json", "regex", "choice", "grammar"))
            return {kind: self.schema() if kind == "json" else self.value()}
        if name == "messages" and pick < 0.8:
            return [self.message() for _ in range(self.chosen.randrange(1, 5))]
        if name in ("stream", "echo", "raw", "store") and pick < 0.8:
            return self.chosen.random() < 0.5
        if name in ("n", "logprobs", "top_logprobs", "best_of", "top_k") and pick < 0.6:
            return self.chosen.randrange(6)
        if name == "tokens" and pick < 0.6:
            return [self.chosen.randrange(300) for _ in range(self.chosen.randrange(20))]
        return self.value()

    def body(self) -> bytes:
        body: dict[str, Any] = {
            "prompt": "Hi", "content": "Hi", "tokens": [5, 6], "input": "Hi",
            "max_tokens": self.chosen.randrange(1, 12), "messages": [{"role": "user", "content": "Hi"}],
            "stream": self.chosen.random() < 0.4,
        }  # fmt: skip
        for name in self.chosen.sample(FIELDS, self.chosen.choice((0, 1, 1, 2, 3, 6))):
            body[name] = self.field(name)
        try:
            raw = bytearray(json.dumps(body).encode())
        except ValueError:  # integers of thousands of digits
            raw = bytearray(b'{"prompt": "x", "n": ' + b"9" * 5000 + b"}")
        pick = self.chosen.random()
        if pick < 0.05:
            raw = raw[: self.chosen.randrange(len(raw) + 1)]
        elif pick < 0.1:
            for _ in range(self.chosen.randrange(1, 5)):
                raw[self.chosen.randrange(len(raw))] = self.chosen.randrange(256)
        elif pick < 0.11:
            raw = bytearray(self.chosen.choice((b"[", b'{"a":', b"{")) * 5000)
        elif pick < 0.115:
            raw = bytearray(b" " * 250_000)
        return bytes(raw)

    def request(self) -> tuple[str, str, bytes]:
        method, path = self.chosen.choice(self.routes)
        path = path.replace("{name:path}", self.chosen.choice(("model", "x/y", "\ud800", "a" * 999)))
        if self.chosen.random() < 0.05:
            method = self.chosen.choice(("GET", "POST", "PUT", "HEAD", "OPTIONS", "DELETE", "Q"))
        if self.chosen.random() < 0.02:
            path = "/" + str(self.chosen.choice(TEXTS))
        return method, path, self.body()


async def send(app: Any, method: str, path: str, body: bytes, leave_after: float | None) -> tuple[int, bytes]:
    """One request in ASGI, whose client may leave: the status and the body of the answer."""
    parts, status, is_complete = [body], 0, False
    answer = bytearray()
    scope = {"type": "http", "method": method, "path": path, "raw_path": b"/", "query_string": b"",
             "headers": [(b"host", b"127.0.0.1")],
             "http_version": "1.1", "scheme": "http", "server": ("x", 1), "client": ("x", 2),
             "root_path": ""}  # fmt: skip

    async def receive() -> dict[str, Any]:
        if parts:
            return {"type": "http.request", "body": parts.pop(), "more_body": False}
        await asyncio.sleep(1e9 if leave_after is None else leave_after)
        return {"type": "http.disconnect"}

    async def reply(message: dict[str, Any]) -> None:
        nonlocal status, is_complete
        assert not is_complete
        status = message.get("status", status)
        answer.extend(message.get("body", b""))
        is_complete = message["type"] == "http.response.body" and not message.get("more_body", False)

    await asyncio.wait_for(app(scope, receive, reply), MAX_SECONDS)
    assert is_complete or leave_after is not None
    return status, bytes(answer)


def resident_bytes() -> int:
    line = next(each for each in Path("/proc/self/status").read_text().splitlines() if each.startswith("VmRSS"))
    return int(line.split()[1]) * 1024


async def hammer(model: Model, num_requests: int, seed: int) -> tuple[Counter[int], list[int]]:
    """Send random requests, many at once: how often each status came, and the memory on the way."""
    server = Server([ServedModel("model", model)], RuntimeOptions(num_threads=1), LIMITS)
    routes = [
        ("POST" if "POST" in (each.methods or ()) else "GET", each.path)
        for each in server.app.routes
        if isinstance(each, Route)
    ]
    routes += 3 * [each for each in routes if each[0] == "POST"]
    statuses: Counter[int] = Counter()
    memory: list[int] = []
    remaining = iter(range(num_requests))

    async def client() -> None:
        for number in remaining:
            if number % max(num_requests // 10, 1) == 0 and sys.platform == "linux":
                memory.append(resident_bytes())
            made_up = Requests(f"{seed} {number}", routes)
            request = made_up.request()
            leave_after = made_up.chosen.random() * 0.05 if made_up.chosen.random() < 0.1 else None
            try:
                status, answer = await send(server.app, *request, leave_after)
            except Exception as error:
                raise AssertionError(f"request {number} of seed {seed}: {request}") from error
            assert status < 500 or status == 503, (number, seed, request, answer)
            if status >= 400 and request[0] != "HEAD":
                assert json.loads(answer)["error"], (number, seed, request, answer)
            statuses[status] += 1

    async with server._lifespan(server.app):
        await asyncio.gather(*(client() for _ in range(NUM_CLIENTS)))
        worker = server._serving["model"].worker
        end = time.monotonic() + MAX_SECONDS
        while worker.num_live or worker.stats.num_running + worker.stats.num_waiting:
            assert time.monotonic() < end, worker.stats
            await asyncio.sleep(0.01)
    return statuses, memory


@pytest.fixture(scope="module")
def tiny_model(make_chat_model: Callable[..., Any], engine_build: Path) -> Any:
    with contextlib.closing(Model(make_chat_model("chatml").path)) as model:
        yield model


def test_made_up_requests(tiny_model: Model) -> None:
    statuses, _ = asyncio.run(hammer(tiny_model, 400, 1))
    assert statuses[200] > 40 and statuses[400] > 40, statuses


@pytest.mark.slow
def test_a_hundred_thousand_made_up_requests(tiny_model: Model) -> None:
    statuses, memory = asyncio.run(hammer(tiny_model, 100_000, 2))
    print(statuses, [f"{each / 2**20:.1f} MiB" for each in memory])
    assert statuses[200] > 10_000 and statuses[400] > 10_000, statuses
    assert not memory or memory[-1] < 1.05 * memory[len(memory) // 2], memory

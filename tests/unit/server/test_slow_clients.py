"""Clients that are too slow or speak no HTTP lose their connection; the others notice nothing."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import time
from typing import Any

import pytest

from llamita.engine import Model
from llamita.server import connection

Client = Any  # conftest.Client: the tests are not a package


def seconds_until_closed(client: Client, first: bytes, then: bytes, *, every: float = 0.05) -> float:
    """Send `then` again and again after `first`, until the server closes the connection."""
    start = time.monotonic()
    with socket.create_connection(("127.0.0.1", client.port)) as slow:
        slow.settimeout(every)
        slow.sendall(first)
        while time.monotonic() - start < 20:
            try:
                slow.sendall(then)
                if slow.recv(10_000) == b"":
                    break
            except TimeoutError:
                pass
            except OSError:
                break
    return time.monotonic() - start


@pytest.mark.parametrize(
    ("first", "then"),
    [
        (b"", b""),
        (b"GET /health HTTP/1.1\r\n", b"x-more: x\r\n"),
        (b"POST /v1/nothing HTTP/1.1\r\nHost: x\r\nContent-Length: 100000000\r\n\r\n", b"x"),
        (b"GET /health HTTP/1.1\r\nHost: x\r\n\r\nGET /hea", b"l"),
    ],
    ids=["silent", "headers", "body after the answer", "second request"],
)
def test_slow_requests(client: Client, first: bytes, then: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "HEAD_SECONDS", 0.4)
    seconds = seconds_until_closed(client, first, then)
    assert 0.3 < seconds < 10
    client.ok("/health")


def test_a_client_that_does_not_read(client: Client, stories: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "READ_SECONDS", 0.3)
    lost: list[int] = []
    connection_lost = connection.TimedProtocol.connection_lost

    def noted(self: Any, exc: Exception | None) -> None:
        lost.append(self.client[1])
        connection_lost(self, exc)

    monkeypatch.setattr(connection.TimedProtocol, "connection_lost", noted)
    body = json.dumps({"tokens": stories.encode("Once") * 700_000}).encode()
    with socket.socket() as lazy:
        lazy.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        lazy.connect(("127.0.0.1", client.port))
        head = b"POST /detokenize HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body)
        lazy.sendall(head + body)
        client.wait_until(lambda: lazy.getsockname()[1] in lost)
        found = 0
        try:
            while part := lazy.recv(1 << 20):
                found += len(part)
        except ConnectionResetError:
            pass
    assert found < 700_000 * 5
    client.ok("/health")


def test_long_texts_do_not_stop_others(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are encoded in a thread; short ones are not, which is faster."""
    threads: list[Any] = []
    to_thread = asyncio.to_thread

    async def counted(*args: Any) -> Any:
        threads.append(args[0])
        return await to_thread(*args)

    monkeypatch.setattr(asyncio, "to_thread", counted)
    client.ok("/tokenize", {"content": "One day"})
    client.ok("/v1/completions", {"prompt": "One day", "max_tokens": 1})
    assert threads == []
    assert client.ok("/tokenize", {"content": "One day " * 5000})["count"] > 5000
    assert client.refused("/v1/completions", {"prompt": "One day " * 5000})["code"] == "context_length_exceeded"
    assert len(threads) == 2


@pytest.mark.parametrize(
    ("raw", "status"),
    [
        (b"\x16\x03\x01\x02\x00\r\n\r\n", b"400"),
        (b"POST /v1/nothing HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\nzz\r\n", b"400"),
        (b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", b"400"),
        (b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n", b"400"),
        (b"GET /health HTTP/1.1\r\nHost: x\r\n" + b"a: b\r\n" * 200_000 + b"\r\n", b"400"),
        (b"GET http://other/health HTTP/1.1\r\nHost: x\r\n\r\n", b"404"),
    ],
    ids=["TLS", "broken body that nobody reads", "broken body", "two lengths", "many headers", "proxy"],
)
def test_broken_http(client: Client, raw: bytes, status: bytes, caplog: pytest.LogCaptureFixture) -> None:
    with (
        socket.create_connection(("127.0.0.1", client.port)) as connected,
        contextlib.suppress(ConnectionResetError, BrokenPipeError),  # the server has not read it all
    ):
        connected.sendall(raw)
        assert connected.recv(100).split()[1] == status
    client.ok("/health")
    assert not any(each.levelname == "ERROR" for each in caplog.records), caplog.text


def test_broken_body_after_the_answer(client: Client, caplog: pytest.LogCaptureFixture) -> None:
    with socket.create_connection(("127.0.0.1", client.port)) as connected:
        connected.sendall(b"POST /v1/nothing HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n")
        assert b" 404 " in connected.recv(1000)
        connected.sendall(b"zz\r\n")
        connected.settimeout(20)
        with contextlib.suppress(ConnectionResetError):
            while connected.recv(1000):
                pass
    client.ok("/health")
    assert not any(each.levelname == "ERROR" for each in caplog.records), caplog.text

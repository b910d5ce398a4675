"""The client of endpoints, against one that fails in every way."""

from __future__ import annotations

import datetime
import email.utils
import socket
import time
from typing import Any

import pytest

from llamita.errors import ConfigError, NetworkError
from llamita.synthesize.endpoint import Endpoint, RequestFailed, chat_url

Stub = Any  # conftest.Stub: the tests are not a package
BODY = {
    "model": "m",
    "messages": [{"role": "user", "content": "The Aaabach is a river of 9 kilometers, lies 5 meters"}],
}


def endpoint(stub: Stub, fault: str | int = "", **options: Any) -> Endpoint:
    seconds = 0.3 if fault in ("slow", "drip") else 20.0
    return Endpoint(stub.url, **{"first_wait_seconds": 0.01, "timeout_seconds": seconds, **options})


@pytest.mark.parametrize(
    "fault",
    [429, 500, 503, 408, "half", "half in chunks", "wrong JSON", "other JSON", "events", "close", "slow", "drip"],
)
def test_a_request_that_fails_is_sent_again(stub: Stub, fault: str | int) -> None:
    stub.fail(fault, fault)
    client = endpoint(stub, fault)
    answer = client.ask(BODY)
    assert "Aaabach" in answer.text and answer.finish == "stop"
    assert (answer.prompt_tokens, answer.completion_tokens) == (100, 20)
    assert stub.requests == [BODY] * 3 and client.num_retries == 2


@pytest.mark.parametrize(
    ("fault", "why"),
    [
        (500, "the endpoint answered 500: too much work"),
        ("half", "the connection ended 977 bytes before the answer's end"),
        ("half in chunks", "the connection ended before the answer's end"),
        ("wrong JSON", "expected a chat completion as JSON, found '<html>busy\\x1b[1m</html>'"),
        ("slow", "it took longer than --timeout"),
        ("drip", "it took longer than --timeout"),
        ("close", "Remote end closed connection without response"),
    ],
)
def test_a_request_that_always_fails(stub: Stub, fault: str | int, why: str) -> None:
    stub.fail(fault, fault, fault)
    with pytest.raises(RequestFailed) as failed:
        endpoint(stub, fault, attempts=2).ask(BODY)
    assert str(failed.value) == f"{stub.url}/chat/completions: {why}, 2 times" and len(stub.requests) == 2


@pytest.mark.parametrize("asked", ["0.4", "date"])
def test_retry_after_holds_all_requests_back(stub: Stub, asked: str) -> None:
    """Dates have whole seconds, so the wait for one may be short."""
    until = datetime.datetime.now(datetime.timezone.utc) + datetime.timedelta(seconds=1.3)
    stub.fail(429, Retry_After=asked if asked != "date" else email.utils.format_datetime(until, usegmt=True))
    client = endpoint(stub)
    client.ask(BODY)
    first, second = stub.times
    assert second - first >= (0.4 if asked != "date" else 0.2)


def test_an_endpoint_that_asks_for_hours(stub: Stub) -> None:
    stub.fail(429, Retry_After="7200")
    with pytest.raises(NetworkError, match="asks to wait 7,200 seconds; expected at most 900"):
        endpoint(stub).ask(BODY)
    assert len(stub.requests) == 1


@pytest.mark.parametrize("header", ["soon", "nan", "-5", ""])
def test_retry_after_without_sense(stub: Stub, header: str) -> None:
    stub.fail(429, Retry_After=header)
    assert "Aaabach" in endpoint(stub).ask(BODY).text


@pytest.mark.parametrize(
    ("status", "error", "advice"),
    [
        (401, NetworkError, "check --api-key-file"),
        (403, NetworkError, "check --api-key-file"),
        (404, NetworkError, "check --endpoint and --model"),
        (400, RequestFailed, "too much work"),
        (413, RequestFailed, "too much work"),
    ],
)
def test_a_status_that_another_attempt_does_not_change(stub: Stub, status: int, error: Any, advice: str) -> None:
    stub.fail(status)
    with pytest.raises(error) as failed:
        endpoint(stub).ask(BODY)
    assert advice in str(failed.value) and len(stub.requests) == 1


def test_an_endpoint_without_schemas(stub: Stub) -> None:
    said = b'{"error": {"message": "unknown field response_format"}}'
    stub.faults.append(lambda handler: handler.send_raw(400, said))
    with pytest.raises(RequestFailed, match=r"unknown field response_format; if it knows no .* --body '{.*: null}'$"):
        endpoint(stub).ask(BODY)


def test_a_redirect_does_not_take_the_key_elsewhere(stub: Stub) -> None:
    stub.fail(302, Location="http://127.0.0.1:9/v1/chat/completions")
    with pytest.raises(NetworkError, match="answered 302"):
        endpoint(stub, api_key="secret").ask(BODY)
    assert [each["Authorization"] for each in stub.headers] == ["Bearer secret"]


def test_nobody_listens() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/v1"
    start = time.monotonic()
    with pytest.raises(NetworkError, match=r"cannot reach http://127.*Connection refused; check --endpoint"):
        Endpoint(url).ask(BODY)
    assert time.monotonic() - start < 5


def test_an_endpoint_without_tls(stub: Stub) -> None:
    url = stub.url.replace("http:", "https:")
    with pytest.raises(NetworkError, match=r"cannot reach https://127.*; check --endpoint"):
        Endpoint(url, timeout_seconds=5).ask(BODY)


def test_usage_may_be_missing_or_wrong(stub: Stub) -> None:
    for stub.usage in (None, [], {"prompt_tokens": "9", "completion_tokens": -1}, {"prompt_tokens": True}):
        answer = endpoint(stub).ask(BODY)
        assert answer.prompt_tokens is None and answer.completion_tokens is None


def test_content_may_be_missing(stub: Stub) -> None:
    stub.faults.append(lambda handler: handler.send_raw(200, b'{"choices": [{"message": {"content": null}}]}'))
    answer = endpoint(stub).ask(BODY)
    assert (answer.text, answer.finish) == ("", "None")


@pytest.mark.parametrize(
    "url",
    ["127.0.0.1:8000", "ftp://x/v1", "http://", "http://[::1/v1", "http://u:p@host/v1", "http://h/v1?key=1",
     "http://h:99999/v1", "http://h/v 1", "http://h/\n", "", "x" * 5000],
)  # fmt: skip
def test_wrong_urls(url: str) -> None:
    with pytest.raises(ConfigError, match="--endpoint: expected a URL"):
        chat_url(url)


def test_urls() -> None:
    for url in ("http://h:1/v1", "http://h:1/v1/", "http://h:1/v1/chat/completions"):
        assert chat_url(url) == "http://h:1/v1/chat/completions"

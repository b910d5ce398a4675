"""Asks an OpenAI-compatible endpoint for chat answers, and tries again where that can help."""

from __future__ import annotations

import dataclasses
import datetime
import email.message
import email.utils
import http.client
import json
import random
import re
import socket
import ssl
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping
from typing import Any, Final

from llamita.errors import ConfigError, NetworkError
from llamita.network import NoRedirect, failure_reason

MAX_ANSWER_BYTES: Final = 16 << 20
MAX_WAIT_SECONDS: Final = 60.0  # between two attempts, unless the endpoint asks for more
MAX_ASKED_WAIT_SECONDS: Final = 900.0  # an endpoint that asks for more is as good as gone
_TRY_AGAIN: Final = (408, 409, 425, 429)
_WRONG_SETTINGS: Final = (401, 402, 403, 404, 405)
_USER_AGENT: Final = "llamita"


@dataclasses.dataclass(frozen=True)
class Answer:
    """What the model wrote. prompt_tokens, completion_tokens: as the endpoint counts them; None if
    it does not."""

    text: str
    finish: str
    prompt_tokens: int | None
    completion_tokens: int | None


class RequestFailed(Exception):
    """A request got no answer after all attempts; others may. Its text says why, in one line."""


class _Failed(Exception):
    """An attempt failed, and another may not. wait_seconds: what the endpoint asks for."""

    def __init__(self, why: str, wait_seconds: float | None = None) -> None:
        super().__init__(why)
        self.wait_seconds = wait_seconds


class Endpoint:
    """The chat of one endpoint. `ask` may be called by several threads at once."""

    def __init__(
        self,
        url: str,
        *,
        api_key: str | None = None,
        timeout_seconds: float = 120.0,
        attempts: int = 6,
        first_wait_seconds: float = 1.0,
    ) -> None:
        self.url = chat_url(url)
        self._headers = {"Content-Type": "application/json", "User-Agent": _USER_AGENT, "Accept-Encoding": "identity"}
        if api_key is not None:
            if not re.fullmatch("[!-~]+", api_key):
                raise ConfigError("the API key: expected ASCII letters, digits and marks without spaces, found others")
            self._headers["Authorization"] = f"Bearer {api_key}"
        self._timeout_seconds, self._attempts, self._first_wait_seconds = timeout_seconds, attempts, first_wait_seconds
        # Redirects are refused: they would send the key to another host, and a POST as a GET.
        self._opener = urllib.request.build_opener(NoRedirect)
        self._lock = threading.Lock()
        self._has_answered = False
        self._open_from = 0.0  # by time.monotonic: when the endpoint takes requests again
        self.num_retries = 0

    def ask(self, body: Mapping[str, Any]) -> Answer:
        """Send a request until it is answered. Raises RequestFailed, and NetworkError if all
        requests would fail alike."""
        raw = json.dumps(body).encode("ascii")
        why = ""
        for attempt in range(self._attempts):
            if attempt:
                with self._lock:
                    self.num_retries += 1
            self._wait()
            try:
                return self._ask_once(raw)
            except _Failed as error:
                why = str(error)
                if attempt + 1 < self._attempts or error.wait_seconds is not None:
                    self._plan_wait(attempt, error.wait_seconds)
        raise RequestFailed(f"{self.url}: {why}, {self._attempts} times")

    def _wait(self) -> None:
        """Wait while the endpoint takes no requests."""
        while (seconds := self._open_from - time.monotonic()) > 0:
            time.sleep(seconds)

    def _plan_wait(self, attempt: int, asked: float | None) -> None:
        """Let this thread wait; all of them, if the endpoint asks for it."""
        if asked is None:
            longest = min(MAX_WAIT_SECONDS, self._first_wait_seconds * 2**attempt)
            time.sleep(longest * random.uniform(0.5, 1.0))
            return
        if asked > MAX_ASKED_WAIT_SECONDS:
            raise NetworkError(
                f"{self.url}: the endpoint asks to wait {asked:,.0f} seconds; expected at most "
                f"{MAX_ASKED_WAIT_SECONDS:,.0f}; run the command again later"
            )
        with self._lock:
            self._open_from = max(self._open_from, time.monotonic() + asked)

    def _ask_once(self, raw: bytes) -> Answer:
        deadline = time.monotonic() + self._timeout_seconds
        request = urllib.request.Request(self.url, raw, self._headers, method="POST")
        try:
            with self._opener.open(request, timeout=self._timeout_seconds) as answer:
                found = _parse(_read(answer, deadline))
                self._has_answered = True
                return found
        except urllib.error.HTTPError as error:
            with error:
                raise self._status_error(error, deadline) from None
        except (OSError, http.client.HTTPException) as error:
            cause = getattr(error, "reason", error)
            is_wrong = isinstance(cause, (ConnectionRefusedError, socket.gaierror, ssl.SSLError))
            if is_wrong and not self._has_answered:
                raise NetworkError(f"cannot reach {self.url}: {_reason(error)}; check --endpoint") from None
            raise _Failed(_reason(error)) from None

    def _status_error(self, error: urllib.error.HTTPError, deadline: float) -> Exception:
        """What a status means: try again, fail, or stop."""
        said = _message(error, deadline)
        what = f"the endpoint answered {error.code}{said and f': {said}'}"
        if error.code in _TRY_AGAIN or error.code >= 500:
            return _Failed(what, _asked_wait(error.headers))
        if error.code in (401, 403):
            return NetworkError(f"{self.url}: {what}; check --api-key-file")
        if error.code in _WRONG_SETTINGS or 300 <= error.code < 400:
            return NetworkError(f"{self.url}: {what}; check --endpoint and --model")
        if re.search("response_format|schema|grammar", said):
            what += "; if it knows no response_format: --body '{\"response_format\": null}'"
        return RequestFailed(f"{self.url}: {what}")


def chat_url(url: str) -> str:
    """The address of the chat below an endpoint such as http://127.0.0.1:8000/v1. Raises
    ConfigError."""
    try:
        parts = urllib.parse.urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError:
        host, parts = None, urllib.parse.urlsplit("")
    if parts.scheme not in ("http", "https") or not host or not url.isascii() or not url.isprintable() or " " in url:
        raise ConfigError(f"--endpoint: expected a URL such as http://127.0.0.1:8000/v1, found {url[:100]!r}")
    if parts.username is not None or parts.query or parts.fragment:
        raise ConfigError("--endpoint: expected a URL without user, query and fragment; --api-key-file takes a key")
    path = parts.path.rstrip("/").removesuffix("/chat/completions")
    return f"{parts.scheme}://{parts.netloc}{path}/chat/completions"


def _read(answer: Any, deadline: float) -> bytes:
    """The body of an answer, whole and in time."""
    chunks, size = list[bytes](), 0
    while chunk := answer.read1(1 << 16):
        chunks.append(chunk)
        size += len(chunk)
        if size > MAX_ANSWER_BYTES:
            raise _Failed(f"the answer has more than {MAX_ANSWER_BYTES:,} bytes")
        if time.monotonic() > deadline:
            raise TimeoutError("timed out")
    if answer.length:  # of Content-Length; read1 does not mind
        raise _Failed(f"the connection ended {answer.length:,} bytes before the answer's end")
    return b"".join(chunks)


def _parse(raw: bytes) -> Answer:
    """The answer in the body of a response."""
    try:
        body = json.loads(raw)
        choice = body["choices"][0]
        text = choice["message"]["content"]
    except (ValueError, RecursionError, LookupError, TypeError):
        shown = " ".join(raw[:80].decode("utf-8", "replace").split())
        raise _Failed(f"expected a chat completion as JSON, found {shown!r}") from None
    if not isinstance(text, str):
        text = ""  # a refusal of the endpoint's, or only thoughts
    usage = body.get("usage")
    usage = usage if isinstance(usage, dict) else {}
    return Answer(
        text.encode("utf-8", "replace").decode(),
        str(choice.get("finish_reason"))[:40],
        _count(usage.get("prompt_tokens")),
        _count(usage.get("completion_tokens")),
    )


def _count(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 40 else None


def _message(error: urllib.error.HTTPError, deadline: float) -> str:
    """What the body of an error says, in one short line."""
    try:
        raw = _read(error, deadline)
    except (_Failed, OSError, http.client.HTTPException):
        return ""
    text = raw[:1000].decode("utf-8", "replace")
    try:
        found = json.loads(raw)
        found = found.get("error", found) if isinstance(found, dict) else found
        text = found["message"] if isinstance(found, dict) else text
    except (ValueError, RecursionError, LookupError):
        pass
    return " ".join(str(text).split())[:160]


def _asked_wait(headers: email.message.Message) -> float | None:
    """The seconds of Retry-After, which may also be a date."""
    value = (headers.get("Retry-After") or "").strip()
    if not value:
        return None
    try:
        seconds = float(value)
    except ValueError:
        try:
            until = email.utils.parsedate_to_datetime(value)
        except (ValueError, TypeError, OverflowError):
            return None
        now = datetime.datetime.now(until.tzinfo or datetime.timezone.utc)
        seconds = (until.replace(tzinfo=now.tzinfo) - now).total_seconds()
    return max(0.0, seconds) if seconds == seconds else None  # not NaN


def _reason(error: Exception) -> str:
    """Why a connection failed, in one short line."""
    if isinstance(error, TimeoutError) or isinstance(getattr(error, "reason", None), TimeoutError):
        return "it took longer than --timeout"
    if isinstance(error, http.client.IncompleteRead):
        return "the connection ended before the answer's end"
    return failure_reason(error)

"""An endpoint that answers as a test asks for, and documents to ask about."""

from __future__ import annotations

import http.server
import json
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

DOCUMENTS = 12


def river(number: int) -> tuple[str, str]:
    """The name and the text of a river: short, and all different."""
    name = "".join(chr(ord("a") + int(digit)) for digit in f"{number:03}").capitalize() + "bach"
    return name, (
        f"# The {name}\n\nThe {name} is a river of {100 + number} kilometers in Uplandia. "
        f"Its source lies {2000 + 3 * number} meters above the sea. Fishermen call it the blue sister."
    )


def good_answer(prompt: str) -> dict[str, Any]:
    """What a good model would write: by the kind of the prompt."""
    name = re.findall(r"The (\w+bach) is", prompt)[-1]
    length = re.findall(r"river of (\d+) kilometers", prompt)[-1]
    source = re.findall(r"lies (\d+) meters", prompt)[-1]
    pairs = [
        {"question": f"How long is the {name}?", "answer": f"The {name} is {length} kilometers long.",
         "evidence": f"The {name} is a river of {length} kilometers in Uplandia."},
        {"question": f"How high is the source of the {name}?", "answer": f"It lies {source} meters above the sea.",
         "evidence": f"Its source lies {source} meters above the sea."},
    ]  # fmt: skip
    if "does not answer" in prompt:
        return {"items": [{"question": f"Which bridge crosses the {name}?"}]}
    return {"items": pairs}


class Stub(http.server.ThreadingHTTPServer):
    """An OpenAI-compatible endpoint. faults: what the next requests get instead of an answer."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.faults: list[Callable[[_Handler], None]] = []
        self.good_answer = good_answer
        self.requests: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.times: list[float] = []
        self.answer: Callable[[str], Any] = good_answer
        self.usage: Any = {"prompt_tokens": 100, "completion_tokens": 20}
        self.at_once = self.most_at_once = 0
        self.seconds = 0.0
        self.lock = threading.Lock()

    def fail(self, *names: str | int, **headers: str) -> None:
        """What the next requests get: faults by their names, or statuses with these headers."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        for name in names:
            self.faults.append(FAULTS[name] if isinstance(name, str) else status_fault(name, named))

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"


class _Handler(http.server.BaseHTTPRequestHandler):
    server: Stub

    def log_message(self, *_: object) -> None:
        pass

    def do_POST(self) -> None:
        stub = self.server
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        assert self.path == "/v1/chat/completions"
        with stub.lock:
            stub.requests.append(body)
            stub.headers.append(dict(self.headers))
            stub.times.append(time.monotonic())
            stub.at_once += 1
            stub.most_at_once = max(stub.most_at_once, stub.at_once)
            fault = stub.faults.pop(0) if stub.faults else None
        time.sleep(stub.seconds)
        try:
            if fault is not None:
                fault(self)
            else:
                self.send_chat(stub.answer(body["messages"][0]["content"]))
        except OSError:
            pass  # the client is gone
        finally:
            with stub.lock:
                stub.at_once -= 1

    def send_chat(self, content: Any, finish: str = "stop") -> None:
        text = content if isinstance(content, str) else json.dumps(content)
        message = {"role": "assistant", "content": text}
        answer: dict[str, Any] = {"choices": [{"index": 0, "message": message, "finish_reason": finish}]}
        if self.server.usage is not None:
            answer["usage"] = self.server.usage
        self.send_raw(200, json.dumps(answer).encode())

    def send_raw(
        self, status: int, raw: bytes, headers: dict[str, str] | None = None, length: int | None = None
    ) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(raw) if length is None else length))
        self.end_headers()
        self.wfile.write(raw)


def status_fault(status: int, headers: dict[str, str]) -> Callable[[_Handler], None]:
    return lambda handler: handler.send_raw(status, b'{"error": {"message": "too much\\nwork"}}', headers)


def fault_half(handler: _Handler) -> None:
    """Half of what was announced."""
    handler.send_raw(200, b'{"choices": [{"message"', length=1000)


def fault_half_chunked(handler: _Handler) -> None:
    """Half a stream in chunks."""
    handler.protocol_version = "HTTP/1.1"
    handler.send_response(200)
    handler.send_header("Transfer-Encoding", "chunked")
    handler.end_headers()
    handler.wfile.write(b'10\r\n{"choices": [{"m\r\n')
    handler.close_connection = True


def fault_wrong_json(handler: _Handler) -> None:
    handler.send_raw(200, b"<html>busy\x1b[1m</html>")


def fault_other_json(handler: _Handler) -> None:
    handler.send_raw(200, b'{"choices": []}')


def fault_events(handler: _Handler) -> None:
    handler.send_raw(200, b'data: {"choices": [{"delta": {"content": "a"}}]}\n\ndata: [DONE]\n\n')


def fault_close(handler: _Handler) -> None:
    """No answer at all."""
    handler.connection.shutdown(socket.SHUT_RDWR)


def fault_slow(handler: _Handler) -> None:
    time.sleep(1.0)
    handler.send_chat("{}")


def fault_drip(handler: _Handler) -> None:
    """A byte now and then, forever."""
    handler.send_response(200)
    handler.end_headers()
    for _ in range(40):
        handler.wfile.write(b" ")
        time.sleep(0.05)


FAULTS: dict[str, Callable[[_Handler], None]] = {
    "half": fault_half, "half in chunks": fault_half_chunked, "wrong JSON": fault_wrong_json,
    "other JSON": fault_other_json, "events": fault_events, "close": fault_close, "slow": fault_slow,
    "drip": fault_drip,
}  # fmt: skip


@pytest.fixture
def stub() -> Iterator[Stub]:
    server = Stub()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join(5)


@pytest.fixture
def documents(tmp_path: Path) -> Path:
    folder = tmp_path / "rivers"
    folder.mkdir()
    for number in range(DOCUMENTS):
        name, text = river(number)
        (folder / f"{name}.md").write_text(text, encoding="utf-8")
    return folder

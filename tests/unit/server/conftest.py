"""A server on a port of its own, in a thread, and a client that reads exactly what it sends."""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("starlette")
pytest.importorskip("prometheus_client")
uvicorn = pytest.importorskip("uvicorn")

from llamita.engine import Model  # noqa: E402
from llamita.sampling import RuntimeOptions  # noqa: E402
from llamita.server.app import Server  # noqa: E402
from llamita.server.connection import TimedProtocol  # noqa: E402
from llamita.server.serving import DEFAULT_LIMITS, ServedModel, ServerLimits  # noqa: E402


class Client:
    """Requests to one server. Answers are (status, headers, parsed JSON or text)."""

    def __init__(self, port: int, server: Server) -> None:
        self.port, self.server = port, server

    def send(
        self, path: str, body: Any = None, *, method: str = "", headers: dict[str, str] | None = None
    ) -> tuple[int, dict[str, str], Any]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        raw = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
        connection.request(method or ("GET" if body is None else "POST"), path, raw, headers or {})
        response = connection.getresponse()
        text = response.read().decode()
        connection.close()
        found = {name.lower(): value for name, value in response.getheaders()}
        is_json = text != "" and found.get("content-type", "").startswith("application/json")
        return response.status, found, json.loads(text) if is_json else text

    def ok(self, path: str, body: Any = None) -> Any:
        status, _, answer = self.send(path, body)
        assert status == 200, answer
        return answer

    def refused(self, path: str, body: Any) -> dict[str, Any]:
        """The error, with its status; in OpenAI's form."""
        status, _, answer = self.send(path, body)
        assert set(answer) == {"error"} and set(answer["error"]) == {"message", "type", "param", "code"}, answer
        assert "\n" not in answer["error"]["message"]
        return {"status": status, **answer["error"]}

    def events(self, path: str, body: Any) -> list[Any]:
        """The objects of a stream, which must be in exactly the form that clients read."""
        status, headers, text = self.send(path, {**body, "stream": True})
        assert status == 200 and headers["content-type"].startswith("text/event-stream"), text
        assert text.endswith("data: [DONE]\n\n")
        events = text.removesuffix("\n\n").split("\n\n")
        assert all(event.startswith("data: ") and "\n" not in event for event in events)
        return [json.loads(event[6:]) for event in events[:-1]]

    @property
    def stats(self) -> Any:
        return next(iter(self.server._serving.values())).worker.stats

    def wait_until(self, condition: Callable[[], bool], seconds: float = 20.0) -> None:
        end = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < end, self.stats
            time.sleep(0.002)


@contextlib.contextmanager
def run_server(
    models: dict[str, Model] | list[ServedModel], limits: ServerLimits = DEFAULT_LIMITS, **options: Any
) -> Iterator[Client]:
    served = models if isinstance(models, list) else [ServedModel(*each) for each in models.items()]
    server = Server(served, RuntimeOptions(num_threads=1), limits, **options)
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        program = uvicorn.Server(uvicorn.Config(server.app, lifespan="on", log_config=None, http=TimedProtocol))
        thread = threading.Thread(target=program.run, kwargs={"sockets": [listening]})
        thread.start()
        client = Client(listening.getsockname()[1], server)
        try:
            end = time.monotonic() + 60
            while not program.started:
                assert thread.is_alive() and time.monotonic() < end
                time.sleep(0.01)
            yield client
        finally:
            program.should_exit = True
            thread.join(30)
            assert not thread.is_alive()


@pytest.fixture(scope="session")
def stories(engine_build: Path) -> Iterator[Model]:
    with Model(Path(__file__).parents[3] / "src" / "llamita" / "assets" / "stories.gguf") as model:
        yield model


@pytest.fixture(scope="session")
def client(stories: Model) -> Iterator[Client]:
    """The packaged model."""
    with run_server({"stories": stories}) as client:
        yield client


@pytest.fixture(scope="session")
def chat_client(make_chat_model: Callable[..., Any], engine_build: Path) -> Iterator[Client]:
    """Two models that chat: "chatml" and one whose template needs Jinja and refuses system
    messages."""
    refusing = (
        "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system messages') }}{% endif %}"
        "<|im_start|>{{ m.role }}:{{ m.content }}<|im_end|>{% endfor %}<|im_start|>assistant:"
    )
    with (
        Model(make_chat_model("chatml").path) as one,
        Model(make_chat_model(refusing).path) as other,
        run_server({"chatml": one, "jinja": other}) as client,
    ):
        yield client


@pytest.fixture(scope="session")
def running_server() -> Any:
    """Run a server of other settings: running_server(models, limits, **options), in a with."""
    return run_server

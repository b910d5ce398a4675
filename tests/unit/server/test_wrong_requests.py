"""Wrong requests are refused in OpenAI's form, before any work, and the server goes on."""

from __future__ import annotations

import contextlib
import json
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from llamita.cli.serve import named_models, read_keys
from llamita.engine import Model
from llamita.errors import ConfigError, SourceError
from llamita.server.serving import ServerLimits
from llamita.server.token_text import TokenText

Client = Any  # conftest.Client: the tests are not a package
COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"

WRONG_FIELDS: list[tuple[str, Any]] = [
    ("max_tokens", -1), ("max_tokens", "ten"), ("max_tokens", 1.5), ("max_tokens", True), ("max_tokens", 10**30),
    ("n", 0), ("n", 10**9), ("n", "2"), ("temperature", -1), ("temperature", "hot"), ("temperature", 10**400),
    ("top_p", 2), ("top_k", -1), ("min_p", 3), ("seed", "x"), ("seed", 2**70), ("stop", 7), ("stop", [""]),
    ("stop", ["x" * 10_000]), ("stop", "x" * 10_000), ("stop", ["x"] * 99), ("logit_bias", [1]),
    ("logit_bias", {"x": 1}),
    ("logit_bias", {"99999999": 1}), ("logit_bias", {"1": 1000}), ("logit_bias", {"-1": 1}), ("presence_penalty", 9),
    ("frequency_penalty", "x"), ("logprobs", 99), ("logprobs", True), ("stream", "yes"),
    ("stream_options", 3), ("best_of", 5), ("suffix", "end"), ("response_format", {"type": "xml"}),
    ("response_format", "json"), ("prompt", 5), ("prompt", []), ("prompt", [[]]), ("prompt", [1, "a", None]),
    ("prompt", [-1]), ("prompt", [10**9]), ("prompt", [[1], [2.5]]), ("prompt", ["x"] * 1000), ("prompt", None),
    ("model", 7), ("typical_p", 2), ("mirostat", 1), ("mirostat", 3), ("mirostat_tau", "x"), ("mirostat_eta", 2),
    ("xtc_probability", -1), ("xtc_threshold", 2), ("dry_multiplier", -1), ("dry_base", 0.5), ("dry_base", []),
    ("dry_allowed_length", 0), ("dry_penalty_last_n", -2), ("dry_penalty_last_n", 10**9),
    ("dry_sequence_breakers", ["x"]), ("dry_sequence_breakers", "x"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "value"), WRONG_FIELDS, ids=[f"{name}-{i}" for i, (name, _) in enumerate(WRONG_FIELDS)]
)
def test_wrong_fields(client: Client, name: str, value: Any) -> None:
    submitted = client.stats
    error = client.refused(COMPLETIONS, {"prompt": "Once", name: value})
    assert error["status"] == 400 and error["type"] == "invalid_request_error" and error["param"] in (name, "n")
    assert len(error["message"]) < 600 and client.stats == submitted


@pytest.mark.parametrize(
    "messages",
    [
        None, [], "Hi", [5], [{}], [{"role": "user"}],
        [{"role": "robot", "content": "x"}], [{"role": 1, "content": "x"}],
        [{"role": ["user"], "content": "x"}], [{"role": "user", "content": 5}], [{"role": "tool", "content": "x"}],
        [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}],
        [{"role": "assistant", "content": "x"}], [{"role": "user", "content": "x"}] * 100_000,
    ],
    ids=range(14),
)  # fmt: skip
def test_wrong_messages(chat_client: Client, messages: Any) -> None:
    error = chat_client.refused(CHAT, {"model": "chatml", "messages": messages})
    assert error["status"] == 400 and error["param"] == "messages"


def test_wrong_chat_fields(chat_client: Client) -> None:
    body = {"model": "chatml", "messages": [{"role": "user", "content": "Hi"}]}
    for change, param in (
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_completion_tokens": 0}, "max_completion_tokens"),
        ({"top_logprobs": 3}, "top_logprobs"),
        ({"logprobs": 3}, "logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools"),
        ({"response_format": {"type": "json_schema", "json_schema": {}}}, "response_format"),
    ):
        error = chat_client.refused(CHAT, {**body, **change})
        assert (error["status"], error["param"]) == (400, param)
    chat_client.ok(CHAT, {**body, "max_tokens": 1, "tools": [], "response_format": {"type": "text"}, "top_logprobs": 0})


def test_models_that_do_not_chat(client: Client) -> None:
    error = client.refused(CHAT, {"messages": [{"role": "user", "content": "Hi"}]})
    assert error["status"] == 400 and "no chat template" in error["message"]


def test_unknown_models_routes_and_methods(client: Client) -> None:
    for error in (
        client.refused(COMPLETIONS, {"model": "gpt-4o", "prompt": "x"}),
        client.refused("/v1/models/gpt-4o", None),
    ):
        assert (error["status"], error["code"], error["param"]) == (404, "model_not_found", "model")
    assert client.refused("/v1/nothing", {})["status"] == 404
    assert client.refused(COMPLETIONS, None)["status"] == 405


@pytest.mark.parametrize(
    "raw",
    [b"", b"{", b"[]", b"null", b'"x"', b"\xff\xfe", b'{"prompt": NaN}', b"[" * 100_000, b'{"prompt": "\xff"}'],
    ids=range(9),
)
def test_broken_json(client: Client, raw: bytes) -> None:
    assert client.refused(COMPLETIONS, raw)["status"] == 400


def test_lone_surrogates(client: Client) -> None:
    client.ok(COMPLETIONS, b'{"prompt": "\\ud800", "max_tokens": 1}')


def test_prompt_too_long(client: Client, chat_client: Client) -> None:
    steps = client.stats
    error = client.refused(COMPLETIONS, {"prompt": "Once upon a time " * 200})
    assert (error["status"], error["code"]) == (400, "context_length_exceeded") and client.stats == steps
    long = "Hello " * 1000
    for path, field, more in (
        (CHAT, "messages", {}),
        (COMPLETIONS, "prompt", {}),
        ("/v1/responses", "input", {}),
        ("/v1/embeddings", "input", {}),
        ("/choose", "messages", {"choices": ["a", "b"]}),
        ("/choose", "prompt", {"choices": ["a", "b"]}),
    ):
        given = [{"role": "user", "content": long}] if field == "messages" else long
        error = chat_client.refused(path, {"model": "chatml", field: given, **more})
        assert (error["status"], error["code"], error["param"]) == (400, "context_length_exceeded", field), path
        assert f"your {field} resulted in" in error["message"]
    for path, field in (("/v1/messages", "messages"), ("/api/chat", "messages"), ("/api/generate", "prompt")):
        given = [{"role": "user", "content": long}] if field == "messages" else long
        status, _, answer = chat_client.send(path, {"model": "chatml", field: given, "max_tokens": 5})
        assert status == 400 and f"your {field} resulted in" in str(answer["error"]), path


def test_what_a_template_refuses_names_its_field(chat_client: Client) -> None:
    said = [{"role": "system", "content": "x"}, {"role": "user", "content": "x"}]
    for path, field in ((CHAT, "messages"), ("/v1/responses", "input")):
        error = chat_client.refused(path, {"model": "jinja", field: said})
        assert (error["status"], error["param"]) == (400, field) and "no system messages" in error["message"]


def test_long_texts_that_are_encoded_count_as_requests_that_wait(
    stories: Model, running_server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    go, begun = threading.Event(), threading.Event()
    encode = Model.encode

    def wait_and_encode(self: Model, *args: Any, **options: Any) -> list[int]:
        begun.set()
        assert go.wait(20)
        return encode(self, *args, **options)

    long = "x" * 30_000
    with running_server({"stories": stories}, ServerLimits(num_parallel=1, max_queue=0)) as client:
        monkeypatch.setattr(Model, "encode", wait_and_encode)
        sent: list[Any] = []
        thread = threading.Thread(target=lambda: sent.append(client.send("/tokenize", {"content": long})))
        thread.start()
        try:
            client.wait_until(begun.is_set)
            for path, body in (
                ("/tokenize", {"content": long}), (COMPLETIONS, {"prompt": long}), ("/v1/embeddings", {"input": "x"}),
                ("/choose", {"prompt": long, "choices": ["a"]}),
            ):  # fmt: skip
                error = client.refused(path, body)
                assert (error["status"], error["code"]) == (429, "queue_full"), path
            for path, body in (("/api/generate", {"prompt": long}), ("/api/embed", {"input": "x"}),
                               ("/api/embeddings", {"prompt": "x"})):  # fmt: skip
                assert client.send(path, body)[0] == 429, path
        finally:
            go.set()
            thread.join()
        assert sent[0][0] == 200
        client.ok("/tokenize", {"content": long})


def test_wrong_tokens(client: Client) -> None:
    for path, body in (
        ("/tokenize", {}), ("/tokenize", {"content": 5}), ("/detokenize", {}), ("/detokenize", {"tokens": "x"}),
        ("/detokenize", {"tokens": [10**8]}), ("/detokenize", {"tokens": [[1], [2]]}),
    ):  # fmt: skip
        error = client.refused(path, body)
        assert error["status"] == 400 and error["param"] == ("content" if path == "/tokenize" else "tokens")


def test_limits_and_keys(stories: Model, running_server: Any) -> None:
    limits = ServerLimits(num_parallel=1, max_queue=1, max_body_bytes=10_000, body_seconds=0.3)
    with running_server(
        {"stories": stories}, limits, api_keys=("one", "two"), cors_origins=("https://a.example",)
    ) as client:
        right = {"Authorization": "Bearer two"}
        for headers in (
            {},
            {"Authorization": "Bearer three"},
            {"Authorization": "Basic two"},
            {"Authorization": "two"},
        ):
            status, _, answer = client.send("/v1/models", headers=headers)
            assert status == 401 and answer["error"]["code"] == "invalid_api_key"
        assert client.send("/v1/models", headers=right)[0] == 200
        assert client.send("/health")[0] == 200
        status, _, answer = client.send(COMPLETIONS, {"prompt": "x" * 20_000}, headers=right)
        assert status == 413 and "10,000" in answer["error"]["message"]
        status, _, answer = client.send(COMPLETIONS, {"prompt": "x", "n": 3}, headers=right)
        assert status == 400 and answer["error"]["param"] == "n"
        _, headers, _ = client.send("/v1/models", headers={**right, "Origin": "https://a.example"})
        assert headers["access-control-allow-origin"] == "https://a.example"
        with socket.create_connection(("127.0.0.1", client.port)) as slow:  # promises a body and sends none
            slow.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer one\r\n"
                         b"Content-Length: 10\r\n\r\n")  # fmt: skip
            assert b" 408 " in slow.recv(1000)


def test_names_of_the_server(stories: Model, running_server: Any) -> None:
    """A web site that lets its name point to this machine is refused: its pages would be of the same origin."""
    with running_server({"stories": stories}, host_names=("localhost", "127.0.0.1", "[::1]")) as client:
        for name in ("localhost", "LOCALHOST:80", "127.0.0.1:8000", "[::1]:8000", "[::1]", ""):
            assert client.send("/v1/models", headers={"Host": name})[0] == 200, name
        for name in ("a.example", "a.example:8000", "localhost.a.example", "127.0.0.1.a.example", "[::1].a:1"):
            status, _, answer = client.send("/v1/models", headers={"Host": name})
            assert (status, answer["error"]["code"]) == (403, "wrong_host"), name


def test_a_bug_is_counted_as_one(stories: Model, running_server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> None:
        raise RuntimeError("a bug")

    with running_server({"stories": stories}) as client:
        monkeypatch.setattr(Model, "encode", broken)
        assert client.send("/tokenize", {"content": "x"})[0] == 500
        monkeypatch.undo()
        assert 'llamita_requests_total{route="/tokenize",status="500"} 1.0' in client.ok("/metrics")


def test_full_queue(stories: Model, running_server: Any) -> None:
    with running_server({"stories": stories}, ServerLimits(num_parallel=1, max_queue=1)) as client:
        body = {"prompt": "Once", "max_tokens": 250, "n": 2, "logit_bias": {str(stories.info.eos_id): -100}}
        results = []

        def ask() -> None:
            results.append(client.send(COMPLETIONS, body))

        for _ in range(50):
            threads = [threading.Thread(target=ask) for _ in range(4)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            if any(status == 429 for status, _, _ in results):
                break
        statuses = {status for status, _, _ in results}
        assert statuses == {200, 429}
        headers, answer = next((headers, answer) for status, headers, answer in results if status == 429)
        assert int(headers["retry-after"]) >= 1 and answer["error"]["code"] == "queue_full"
        assert len({json.dumps(sorted(answer)) for _, _, answer in results}) == 2


def test_answers_that_take_too_long(stories: Model, running_server: Any) -> None:
    with running_server({"stories": stories}, ServerLimits(answer_seconds=0.0001)) as client:
        error = client.refused(COMPLETIONS, {"prompt": "Once", "max_tokens": 250})
        assert (error["status"], error["code"]) == (503, "timeout")
        events = client.events(COMPLETIONS, {"prompt": "Once", "max_tokens": 250})
        assert events[-1]["error"]["code"] == "timeout"


def test_stop_strings_are_held_back(stories: Model) -> None:
    ids = stories.encode("One day a dog ran home. The end.")
    text = TokenText(stories, -1, ("dog ran away", "The end"))
    said = ""
    for token_id in ids:
        said += text.add(token_id)
        assert not said.endswith(("d", "do", "dog", "dog ", "dog ran", "dog ran ")) or "home" in said
        if text.is_stopped:
            break
    assert said == "One day a dog ran home. " and text.is_stopped
    text = TokenText(stories, -1, ("home. The cat",))
    said = "".join(text.add(token_id) for token_id in stories.encode("ran home. The"))
    assert said == "ran " and text.finish() == "home. The" and not text.is_stopped


# ---- the command line


def test_names(tmp_path: Path) -> None:
    model = tmp_path / "a=b.gguf"
    model.touch()
    assert named_models([]) == {"stories": None}
    assert named_models(["x.gguf", "chat=y.gguf"]) == {"x.gguf": Path("x.gguf"), "chat": Path("y.gguf")}
    assert named_models([str(model)]) == {"a=b": model}
    for words in (["chat=a", "chat=b"], ["=a"], ["chat="]):
        with pytest.raises(ConfigError, match="MODEL: expected"):
            named_models(words)


def test_key_files(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    path.write_text("# ours\none\n\n two \n")
    assert read_keys(path) == ("one", "two")
    path.write_bytes(b"\xef\xbb\xbf# ours\r\none\r\n")
    assert read_keys(path) == ("one",)
    for raw in (b"", b"# none\n", b"\xff", b"a\n" * (1 << 19) + b"cut", "schlüssel".encode(), b"two words"):
        path.write_bytes(raw)
        with pytest.raises(SourceError, match=r"--api-key-file: .*expected"):
            read_keys(path)
    with pytest.raises(SourceError, match="No such file"):
        read_keys(tmp_path / "missing")


@contextlib.contextmanager
def serve(*words: str) -> Iterator[subprocess.Popen[str]]:
    """The command; it does not outlive a test that fails."""
    command = [sys.executable, "-m", "llamita", "serve", *words]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def test_command(engine_build: Path) -> None:
    """Prints a command to copy, serves, says no texts in its log, and ends on SIGTERM."""
    with serve("--port", "0", "--threads", "1") as process:
        assert process.stdout is not None
        first, curl = process.stdout.readline(), process.stdout.readline()
        assert (
            first.startswith("serving stories at http://127.0.0.1:")
            and "/ in a browser" in first
            and curl.startswith("  curl http://127.0.0.1:")
        )
        port = int(first.split("127.0.0.1:")[1].split("/")[0])
        with socket.create_connection(("127.0.0.1", port)) as connection:
            body = b'{"prompt": "Secret", "max_tokens": 3}'
            head = f"POST /v1/completions?x=Secret HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n"
            connection.sendall(head.encode() + body)
            assert b" 200 OK" in connection.recv(4000)
        with socket.create_connection(("127.0.0.1", port)) as connection:
            connection.sendall(b"GET /v1/models HTTP/1.1\r\nHost: a.example\r\n\r\n")
            assert b" 403 " in connection.recv(4000)
        with serve("--port", str(port)) as busy:
            out, err = busy.communicate(timeout=60)
        assert busy.returncode == 2 and out == "" and "in use" in err and err.count("\n") == 1
        process.terminate()
        out, err = process.communicate(timeout=30)
    assert "POST /v1/completions 200" in err and "Secret" not in err and "Traceback" not in err


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["missing.gguf"], "no such file"),
        (["--port", "99999"], "--port"),
        (["--parallel", "0"], "--parallel"),
        (["--host", "not an address"], "--host"),
        (["--api-key-file", "missing"], "--api-key-file"),
    ],
)
def test_wrong_options(words: list[str], expected: str, engine_build: Path) -> None:
    with serve(*words) as process:
        out, err = process.communicate(timeout=60)
    assert process.returncode == 2 and out == "" and expected in err and err.count("\n") == 1


def test_slow_client_does_not_stop_others(client: Client) -> None:
    with socket.create_connection(("127.0.0.1", client.port)) as slow:
        body = json.dumps({"prompt": ["Once"] * 16, "max_tokens": 200, "stream": True, "logprobs": 20}).encode()
        slow.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
        start = time.monotonic()
        client.ok(COMPLETIONS, {"prompt": "Once", "max_tokens": 5})
        assert time.monotonic() - start < 30

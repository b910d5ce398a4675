"""Embeddings over HTTP: the vectors of the engine, at any load, in the forms of OpenAI and Ollama."""

from __future__ import annotations

import base64
import concurrent.futures
import http.client
import json
import os
import random
import sys
from typing import Any

import numpy as np
import pytest

from llamita.engine import Model, encode_prompt
from llamita.server.embeddings import NICENESS
from llamita.server.serving import ServerLimits

Client = Any  # conftest.Client: the tests are not a package
ROUTE = "/v1/embeddings"
TEXTS = ["Once upon a time there was a dog.", "The cat sat.", "x", "One day " * 30]


def vectors_of(answer: Any) -> np.ndarray:
    return np.array([each["embedding"] for each in answer["data"]], dtype=np.float32)


def test_vectors_of_the_engine(client: Client, stories: Model) -> None:
    answer = client.ok(ROUTE, {"model": "stories", "input": TEXTS})
    expected = stories.embed(TEXTS, num_threads=2)
    np.testing.assert_array_equal(vectors_of(answer), expected)
    assert np.linalg.norm(expected, axis=1) == pytest.approx(np.ones(4), abs=1e-6)
    num_tokens = sum(len(encode_prompt(stories, text)) for text in TEXTS)
    assert answer["usage"] == {"prompt_tokens": num_tokens, "total_tokens": num_tokens}
    assert answer["object"] == "list" and answer["model"] == "stories"
    assert [each["index"] for each in answer["data"]] == [0, 1, 2, 3]
    assert {each["object"] for each in answer["data"]} == {"embedding"}


def test_inputs(client: Client, stories: Model) -> None:
    ids = [encode_prompt(stories, text) for text in TEXTS[:2]]
    expected = stories.embed(TEXTS[:2])
    for given, rows in ((TEXTS[0], [0]), (ids[1], [1]), (ids, [0, 1]), (TEXTS[:2], [0, 1])):
        answer = client.ok(ROUTE, {"input": given, "dimensions": stories.info.hidden_size, "user": "x"})
        np.testing.assert_array_equal(vectors_of(answer), expected[rows])


def test_base64(client: Client, stories: Model) -> None:
    answer = client.ok(ROUTE, {"input": TEXTS, "encoding_format": "base64"})
    rows = [np.frombuffer(base64.b64decode(each["embedding"]), dtype="<f4") for each in answer["data"]]
    np.testing.assert_array_equal(rows, stories.embed(TEXTS))


def test_ollama(client: Client, stories: Model) -> None:
    expected = stories.embed(TEXTS).tolist()
    answer = client.ok("/api/embed", {"model": "stories:latest", "input": TEXTS, "options": {"num_ctx": 1}})
    assert answer.keys() == {"model", "embeddings", "total_duration", "load_duration", "prompt_eval_count"}
    assert answer["embeddings"] == expected and answer["model"] == "stories:latest"
    assert answer["total_duration"] > answer["load_duration"] > 0
    assert answer["prompt_eval_count"] == sum(len(encode_prompt(stories, text)) for text in TEXTS)
    assert client.ok("/api/embed", {"input": TEXTS[0]})["embeddings"] == expected[:1]
    assert client.ok("/api/embeddings", {"model": "stories", "prompt": TEXTS[1]}) == {"embedding": expected[1]}
    for nothing in ("", []):
        assert client.ok("/api/embed", {"input": nothing})["embeddings"] == []
    assert client.ok("/api/embeddings", {"model": "stories"}) == {"embedding": []}


def test_long_texts(client: Client, stories: Model) -> None:
    """The whole context may be used. Ollama's routes cut what is longer, unless that is refused."""
    context = stories.info.context_tokens
    ids = (encode_prompt(stories, "One day " * context))[: context + 1]
    text = "One day " * context
    with stories.session() as session:
        assert session.context_tokens == context
    client.ok(ROUTE, {"input": ids[:-1]})
    error = client.refused(ROUTE, {"input": ids})
    assert (error["status"], error["code"], error["param"]) == (400, "context_length_exceeded", "input")
    cut = client.ok("/api/embed", {"input": text})
    assert cut["prompt_eval_count"] == context
    np.testing.assert_array_equal(
        np.array(cut["embeddings"], dtype=np.float32), vectors_of(client.ok(ROUTE, {"input": ids[:-1]}))
    )
    status, _, answer = client.send("/api/embed", {"input": text, "truncate": False})
    assert status == 400 and "maximum context length" in answer["error"]


def test_same_bits_at_any_load(client: Client, stories: Model) -> None:
    chosen = random.Random(4)
    words = ["once", "upon", "a", "time", "the", "dog", "ran", "home", "and", "she", "said", "goodbye"]
    texts = [" ".join(chosen.choices(words, k=chosen.randint(1, 60))) for _ in range(60)]
    expected = np.concatenate([stories.embed([text], num_threads=1) for text in texts])

    def ask(start: int) -> bool:
        if start % 3 == 0:  # texts are generated meanwhile
            client.ok("/v1/completions", {"prompt": "Once", "max_tokens": 30, "n": 2})
        some = slice(start, start + start % 20 + 1)
        return np.array_equal(vectors_of(client.ok(ROUTE, {"input": texts[some]})), expected[some])

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        assert all(pool.map(ask, range(len(texts) - 1)))


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "input"), ({"input": None}, "input"), ({"input": ""}, "input"), ({"input": []}, "input"),
        ({"input": ["a", ""]}, "input"), ({"input": [[]]}, "input"), ({"input": 5}, "input"),
        ({"input": [1, "a"]}, "input"), ({"input": [-1]}, "input"), ({"input": [10**9]}, "input"),
        ({"input": ["x"] * 2049}, "input"), ({"input": "x", "encoding_format": "int8"}, "encoding_format"),
        ({"input": "x", "encoding_format": 5}, "encoding_format"), ({"input": "x", "dimensions": 3}, "dimensions"),
        ({"input": "x", "dimensions": "3"}, "dimensions"),
    ],
    ids=range(15),
)  # fmt: skip
def test_wrong_requests(client: Client, body: Any, param: str) -> None:
    error = client.refused(ROUTE, body)
    assert error["status"] == 400 and error["param"] == param


@pytest.mark.parametrize(
    ("body", "name"),
    [
        ({}, "input"), ({"input": 5}, "input"), ({"input": ["a", ""]}, "input"), ({"input": ["x"] * 2049}, "input"),
        ({"input": "x", "dimensions": 3}, "dimensions"), ({"input": "x", "truncate": "no"}, "truncate"),
    ],
    ids=range(6),
)  # fmt: skip
def test_wrong_requests_of_ollama(client: Client, body: Any, name: str) -> None:
    status, _, answer = client.send("/api/embed", body)
    assert status == 400 and answer.keys() == {"error"} and answer["error"].startswith(name)


def test_unknown_models(client: Client) -> None:
    assert client.refused(ROUTE, {"model": "ada", "input": "x"})["status"] == 404
    for path in ("/api/embed", "/api/embeddings"):
        assert client.send(path, {"model": "ada", "input": "x", "prompt": "x"})[0] == 404
    assert client.send("/api/embeddings", {"prompt": ["x"]})[0] == 400


def test_limits(stories: Model, running_server: Any) -> None:
    with running_server({"stories": stories}, ServerLimits(num_parallel=1, max_queue=1)) as client:
        body = {"input": ["One day " * 100] * 40}

        def ask(_: int) -> Any:
            return client.send(ROUTE, body)

        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            results = list(pool.map(ask, range(8)))
        assert {status for status, _, _ in results} == {200, 429}
        headers, answer = next((headers, answer) for status, headers, answer in results if status == 429)
        assert headers["retry-after"] == "1" and answer["error"]["code"] == "queue_full"
        assert client.send(ROUTE, {"input": "x"})[0] == 200
    with running_server({"stories": stories}, ServerLimits(answer_seconds=0.0001)) as client:
        error = client.refused(ROUTE, body)
        assert (error["status"], error["code"]) == (503, "timeout")


def test_leaving_cancels(stories: Model, running_server: Any) -> None:
    """Nothing more is computed for a client that leaves: those who come after need not wait."""
    with running_server({"stories": stories}) as client:
        embedder = client.server._serving["stories"].embedder
        connection = http.client.HTTPConnection("127.0.0.1", client.port, timeout=60)
        connection.request("POST", ROUTE, json.dumps({"input": ["One day " * 100] * 2048}).encode())
        client.wait_until(lambda: embedder._session is not None)
        connection.close()
        client.wait_until(lambda: embedder._num_live == 0)
        passes = embedder._session.num_passes
        assert passes < 2048
        client.ok(ROUTE, {"input": "x"})
        assert embedder._session.num_passes <= passes + 1 + 8  # at most the piece that ran meanwhile
        assert "cancelled_total 1.0" in client.ok("/metrics")


@pytest.mark.skipif(sys.platform != "linux", reason="threads have no priorities of their own elsewhere")
def test_texts_go_first(client: Client) -> None:
    client.ok(ROUTE, {"input": "x"})
    embedder = client.server._serving["stories"].embedder
    [thread] = embedder._executor._threads
    ours = os.getpriority(os.PRIO_PROCESS, 0)
    assert os.getpriority(os.PRIO_PROCESS, thread.native_id) == min(ours + NICENESS, 19)

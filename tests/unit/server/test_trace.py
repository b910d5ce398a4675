"""POST /trace: where a text stands in the documents of the server's store."""

from __future__ import annotations

import json
import shutil
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from llamita.data.store_index import StoreIndex, build_store_index
from llamita.data.trace import trace
from llamita.engine import Model
from llamita.server import tracing
from llamita.server.serving import ServerLimits

Client = Any  # conftest.Client: the tests are not a package


@pytest.fixture(scope="module")
def index(story_store: Path, engine_build: Path, tmp_path_factory: pytest.TempPathFactory) -> StoreIndex:
    path = shutil.copytree(story_store, tmp_path_factory.mktemp("trace") / "store")
    build_store_index(path)
    return StoreIndex(path)


@pytest.fixture(scope="module")
def tracer(running_server: Any, stories: Model, index: StoreIndex) -> Iterator[Client]:
    with running_server({"stories": stories}, index=index) as client:
        yield client


def first_words(index: StoreIndex, split: Any, number: int) -> str:
    ids = index.store.split(split).document(number)[:-1]
    return index.tokenizer.decode(ids.tolist()).decode().split("\n")[0][:60]


def test_a_text_of_the_documents(tracer: Client, index: StoreIndex) -> None:
    text = f"Xyzzy. {first_words(index, 'train', 3)}"
    first, *others = tracer.ok("/trace", {"text": text, "max_sources": 1})["sentences"]
    assert first == {"start": 0, "text": "Xyzzy.", "spans": []}
    span = others[0]["spans"][0]
    assert span["text"] in text and span["num_places"]["train"] >= 1 and len(span["sources"]) == 1
    source = span["sources"][0]
    assert (source["file"], source["unit"], source["split"]) == ("stories", "document", "train")
    assert tracer.ok("/v1/models")["data"][0]["trace"] is True


def test_held_out_text(tracer: Client, index: StoreIndex) -> None:
    spans = [
        span
        for number in range(index.store.split("val").num_documents)
        for sentence in tracer.ok("/trace", {"text": first_words(index, "val", number)})["sentences"]
        for span in sentence["spans"]
    ]
    assert spans and all(any(source["is_held_out"] for source in span["sources"]) for span in spans)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({}, "text: expected a string"),
        ({"text": 5}, "text: expected a string, found a number"),
        ({"text": "x" * 100_001}, "text: expected at most 100,000 characters, found 100,001"),
        ({"text": "x", "min_bytes": 7}, "min_bytes: expected 8 to 1024, found 7"),
        ({"text": "x", "max_sources": 0}, "max_sources: expected 1 to 64, found 0"),
        ({"text": "x", "max_sources": "3"}, "max_sources: expected a whole number"),
    ],
)
def test_wrong_requests(tracer: Client, body: Any, message: str) -> None:
    error = tracer.refused("/trace", body)
    assert error["status"] == 400 and message in error["message"]


def test_odd_texts(tracer: Client) -> None:
    for text in ("", " \n ", "\0" * 50, "\ud800" * 50, "🦙" * 500):
        sentences = tracer.ok("/trace", {"text": text})["sentences"]
        assert all(not sentence["spans"] for sentence in sentences)


def test_few_wait_and_those_that_left_are_not_traced(
    running_server: Any, stories: Model, index: StoreIndex, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, go, traced = threading.Event(), threading.Event(), []

    def wait_and_trace(index: StoreIndex, text: str, **options: Any) -> list[Any]:
        traced.append(text)
        begun.set()
        assert go.wait(20)
        return trace(index, text, **options)

    monkeypatch.setattr(tracing, "trace", wait_and_trace)
    with running_server({"stories": stories}, ServerLimits(max_queue=1), index=index) as client:
        body = json.dumps({"text": "second"}).encode()
        first = threading.Thread(target=client.send, args=("/trace", {"text": "first"}))
        first.start()
        client.wait_until(begun.is_set)
        with socket.create_connection(("127.0.0.1", client.port)) as second:
            second.sendall(b"POST /trace HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))
            client.wait_until(lambda: client.send("/trace", {"text": "third"})[0] == 429)
        client.wait_until(lambda: "cancelled_total 1.0" in client.ok("/metrics"))
        go.set()
        first.join()
        client.ok("/trace", {"text": "last"})
    assert traced == ["first", "last"]


def test_without_an_index(client: Client) -> None:
    error = client.refused("/trace", {"text": "x"})
    assert error["status"] == 404 and "start it with --trace STORE" in error["message"]
    assert client.ok("/v1/models")["data"][0]["trace"] is False


def test_a_store_that_is_damaged_while_it_is_served(
    running_server: Any, stories: Model, index: StoreIndex, tmp_path: Path
) -> None:
    path = Path(shutil.copytree(index.path, tmp_path / "store"))
    with running_server({"stories": stories}, index=StoreIndex(path)) as client:
        for split in ("train", "val"):
            ids = path / split / "00000.ds"
            data = bytearray(ids.read_bytes())
            for at in range(0, len(data), 8):  # every fourth token
                data[at] ^= 1
            with ids.open("r+b") as file:
                file.write(data)
        found = [client.send("/trace", {"text": first_words(index, "train", number)}) for number in range(5)]
    assert all(status in (200, 500) for status, _, _ in found)
    assert all(not any(s["spans"] for s in body["sentences"]) for status, _, body in found if status == 200)

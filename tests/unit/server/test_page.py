"""The chat page: one file that may ask only its own server, with or without a key and a prefix."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import html.parser
import json
import re
from typing import Any

import pytest

from llamita import web
from llamita.engine import Model
from llamita.sampling import SamplingParams
from llamita.server.app import Server
from llamita.server.serving import API_SAMPLING, ServedModel

Client = Any  # conftest.Client: the tests are not a package


class Elements(html.parser.HTMLParser):
    """The tags of a page with their attributes, and the texts of its scripts and styles."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.sources: dict[str, list[str]] = {"script": [], "style": []}
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        if self.found and self.found[-1][0] in self.sources and data.strip():
            self.sources[self.found[-1][0]].append(data)


def test_the_policy_allows_this_page_and_no_other_server(client: Client) -> None:
    status, headers, text = client.send("/")
    assert status == 200 and headers["content-type"] == "text/html; charset=utf-8"
    assert headers["x-content-type-options"] == "nosniff" and headers["referrer-policy"] == "no-referrer"
    rules = dict(rule.strip().split(" ", 1) for rule in headers["content-security-policy"].split(";"))
    elements = Elements(text)
    for tag, rule in (("script", "script-src"), ("style", "style-src")):
        (source,) = elements.sources[tag]
        assert rules.pop(rule) == f"'sha256-{base64.b64encode(hashlib.sha256(source.encode()).digest()).decode()}'"
    assert rules == {
        "default-src": "'none'", "connect-src": "'self'", "img-src": "data:", "base-uri": "'none'",
        "form-action": "'none'", "frame-ancestors": "'self'",
    }  # fmt: skip
    assert client.send("/", method="HEAD")[:1] == (200,) and client.send("/", method="POST")[0] == 405


def test_nothing_is_loaded_from_elsewhere(client: Client) -> None:
    _, _, text = client.send("/")
    assert "://" not in text and "@import" not in text and "url(" not in text
    for tag, attributes in Elements(text).found:
        assert "src" not in attributes and "action" not in attributes and "style" not in attributes, tag
        assert attributes.get("href", "data:,") == "data:,", tag
        assert not [name for name in attributes if name.startswith("on")], tag
    assert not re.search(r'fetch\((?!BASE \+)|"/v1|WebSocket|XMLHttpRequest|sendBeacon', web.source("chat.js"))


def test_texts_never_become_html() -> None:
    assert not re.search(
        r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|DOMParser|createContextualFragment|setHTML|eval\(",
        web.source("chat.js"),
    )


def test_every_label_exists() -> None:
    """In both languages, and every field of the page has one."""
    script, page = web.source("chat.js"), web.source("chat.html")
    english, chinese = (set(re.findall(r"(?:^|[ {])(\w+):\s+(?=[\"(])", part)) for part in
                        script[: script.index("\nconst number")].split("\n  zh: {"))  # fmt: skip
    assert english == chinese and len(english) > 40
    ids = {attributes["id"] for _, attributes in Elements(page).found if "id" in attributes}
    assert set(re.findall(r'\$\("([\w-]+)"\)', script)) <= ids
    fields = [each for tag, each in Elements(page).found if tag in ("input", "textarea", "select")]
    labeled = {each.get("for") for tag, each in Elements(page).found if tag == "label"} | {"model", "probabilities"}
    assert {each["id"] for each in fields} <= labeled


async def ask(server: Server, path: str, root_path: str, key: str = "") -> tuple[int, bytes]:
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    async def receive() -> Any:
        return {"type": "http.request", "body": b"", "more_body": False}

    headers = [(b"authorization", f"Bearer {key}".encode())] if key else []
    scope = {"type": "http", "method": "GET", "path": path, "raw_path": path.encode(), "root_path": root_path,
             "headers": headers, "query_string": b"", "scheme": "http", "http_version": "1.1",
             "server": ("test", 80), "client": ("test", 1)}  # fmt: skip
    await server.app(scope, receive, send)
    return sent[0]["status"], b"".join(each.get("body", b"") for each in sent[1:])


@pytest.mark.parametrize("prefix", ["", "/llm", "/a/b"])
def test_the_page_needs_no_key_at_any_prefix(stories: Model, prefix: str) -> None:
    server = Server([ServedModel("stories", stories)], api_keys=("secret",))
    for path, key, expected in (
        ("/", "", 200), ("/", "wrong", 200), ("/health", "", 200), ("/v1/models", "", 401),
        ("/v1/models", "secret", 200), ("/metrics", "", 401), ("//", "", 401), ("/nothing", "", 401),
        ("/nothing", "secret", 404),
    ):  # fmt: skip
        status, body = asyncio.run(ask(server, prefix + path, prefix, key))
        assert status == expected, (path, key, body)
        assert (b"<!doctype html>" in body) is (path == "/")


def test_models_say_what_the_page_needs(client: Client, chat_client: Client, stories: Model) -> None:
    (base,) = client.ok("/v1/models")["data"]
    assert base["chat"] is False and base["context_length"] == 512 and base["sampling"] == {}
    assert [each["chat"] for each in chat_client.ok("/v1/models")["data"]] == [True, True]
    sampling = SamplingParams(temperature=0.6, top_p=API_SAMPLING.top_p, min_p=0.05)
    server = Server([ServedModel("stories", stories, sampling)])

    async def found() -> tuple[int, bytes]:
        async with server.app.router.lifespan_context(server.app):
            return await ask(server, "/v1/models/stories", "")

    assert json.loads(asyncio.run(found())[1])["sampling"] == {"temperature": 0.6, "min_p": 0.05}

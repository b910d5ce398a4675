"""The server's chat page in a real browser, in front of a real server: what is typed is answered, kept
and never lost, and nothing is asked of other servers."""

from __future__ import annotations

import asyncio
import contextlib
import json
import shutil
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("starlette")
pytest.importorskip("prometheus_client")
pytest.importorskip("uvicorn")

from llamita.data.store_index import StoreIndex, build_store_index
from llamita.engine import Model
from llamita.engine.model import PACKAGED_MODEL
from llamita.sampling import RuntimeOptions
from llamita.server.app import Server
from llamita.server.serving import ServedModel

pytestmark = [pytest.mark.cross, pytest.mark.usefixtures("engine_build")]
ENTER, SHIFT, CONTROL, ESCAPE, RIGHT, HOME = "\ue007", "\ue008", "\ue009", "\ue00c", "\ue014", "\ue011"
SAID = "Array.from(document.querySelectorAll('.said'), (e) => e.textContent)"


class Between:
    """Between browser and server: a prefix, and once in a while something that goes wrong."""

    def __init__(self, app: Any, prefix: str) -> None:
        self.app, self.prefix = app, prefix
        self.bodies: list[dict[str, Any]] = []  # of the requests for texts
        self.answer: tuple[int, dict[str, str], bytes] | None = None  # of the next one, instead of the server's
        self.hold = False  # streams stop after their first event, until this is False
        self.cut = False  # then the stream that waits breaks off

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        path = scope["path"] + ("/" if scope["path"] == self.prefix else "")  # as proxies do
        scope = {**scope, "root_path": self.prefix, "path": path, "raw_path": path.encode()}
        if not path.endswith("completions"):
            await self.app(scope, receive, send)
            return
        answer, self.answer = self.answer, None

        async def read() -> Any:
            message = await receive()
            if message.get("body"):
                self.bodies.append(json.loads(message["body"]))
            return message

        async def write(message: Any) -> None:
            body = message.get("body", b"")
            if body.startswith(b"data: ") and self.hold:
                end = body.index(b"\n\n") + 2  # a piece can hold the whole answer
                await send({"type": "http.response.body", "body": body[:end], "more_body": True})
                while self.hold:
                    await asyncio.sleep(0.02)
                if self.cut:
                    raise RuntimeError("cut by the test")
                message = {**message, "body": body[end:]}
            await send(message)

        if answer is None:
            await self.app(scope, read, write)
            return
        while (await read()).get("more_body"):
            pass
        status, headers, body = answer
        pairs = [(name.encode(), value.encode()) for name, value in headers.items()]
        await send({"type": "http.response.start", "status": status, "headers": pairs})
        await send({"type": "http.response.body", "body": body})

    def fail(self, status: int, headers: dict[str, str] | None = None, **error: Any) -> None:
        self.answer = (
            status,
            {"content-type": "application/json", **(headers or {})},
            json.dumps({"error": error}).encode(),
        )

    def stream(self, *events: Any) -> None:
        """Chunks of a chat, and the end."""
        texts = [json.dumps({"choices": [{"index": 0, "finish_reason": None, "delta": {}, **each}]}) for each in events]
        body = "".join(f"data: {text}\n\n" for text in [*texts, "[DONE]"])
        self.answer = 200, {"content-type": "text/event-stream"}, body.encode()


class Page:
    """The page in the browser. between: what lies between it and the server."""

    def __init__(self, browser: Any, url: str, between: Between) -> None:
        self.browser, self.url, self.between = browser, url, between

    def open(self) -> None:
        self.browser.get("about:blank")
        for log in ("performance", "browser"):
            self.browser.get_log(log)
        self.browser.get(self.url)
        self.wait("document.getElementById('model').value || !document.getElementById('key-form').hidden")

    def run(self, script: str, *given: Any) -> Any:
        return self.browser.execute_script(script, *given)

    def wait(self, condition: str, seconds: float = 30) -> None:
        end = time.monotonic() + seconds
        while not self.run(f"return {condition}"):
            assert time.monotonic() < end, (condition, self.problem, self.browser.get_log("browser"))
            time.sleep(0.02)

    def element(self, name: str) -> Any:
        return self.browser.find_element("id", name)

    def text(self, name: str) -> str:
        return self.run("return document.getElementById(arguments[0]).textContent", name)

    @property
    def problem(self) -> str:
        return self.element("problem").text

    @property
    def said(self) -> list[str]:
        return self.run(f"return {SAID}")

    @property
    def titles(self) -> list[str]:
        return self.run("return Array.from(document.querySelectorAll('#chats a'), (e) => e.textContent)")

    def set(self, **values: object) -> None:
        self.run("document.getElementById('settings').open = true")
        for name, value in values.items():
            self.run(
                "const e = document.getElementById(arguments[0]); e.value = arguments[1]; "
                "e.dispatchEvent(new Event('input'))", name, str(value),
            )  # fmt: skip

    def ask(self, text: str) -> None:
        """Type, press Enter, wait for the end."""
        self.element("input").send_keys(text + ENTER)
        self.finished()

    def finished(self) -> None:
        self.wait("document.getElementById('stop').hidden && document.getElementById('input').value === ''")

    def act(self, label: str, at: int = -1) -> None:
        """Click the button below a message."""
        found = self.run(
            "return Array.from(document.querySelectorAll('#log button')).filter((e) => e.textContent === arguments[0])",
            label,
        )
        found[at].click()

    def has_act(self, label: str) -> bool:
        return self.run(
            "return Array.from(document.querySelectorAll('#log button')).some((e) => e.textContent === arguments[0])",
            label,
        )

    def reload(self) -> None:
        self.browser.refresh()
        self.wait("document.getElementById('model').value")

    def errors(self) -> list[str]:
        return [line["message"] for line in self.browser.get_log("browser") if line["level"] == "SEVERE"]

    def outside(self) -> list[str]:
        """Addresses of requests that left the server."""
        messages = [json.loads(line["message"])["message"] for line in self.browser.get_log("performance")]
        urls = [each["params"]["request"]["url"] for each in messages if each["method"] == "Network.requestWillBeSent"]
        assert any(url.startswith(self.url) for url in urls)
        return [url for url in urls if not url.startswith((self.url, "data:", "about:"))]


@pytest.fixture
def page(
    browser: Any, listening: Callable[..., Any], make_chat_model: Callable[..., Any]
) -> Iterator[Callable[..., Any]]:
    """page(models, prefix, **options): the page of a server of its own, opened. Names of models: chat, base."""
    with contextlib.ExitStack() as stack:

        def open_page(names: tuple[str, ...] = ("chat",), prefix: str = "", **options: Any) -> Page:
            paths = {"chat": lambda: make_chat_model("chatml").path, "base": lambda: Path(PACKAGED_MODEL)}
            served = [ServedModel(name, stack.enter_context(Model(paths[name]()))) for name in names]
            server = Server(served, RuntimeOptions(num_threads=1), **options)
            between = Between(server.app, prefix)
            page = Page(browser, stack.enter_context(listening(between)) + prefix + "/", between)
            page.open()
            return page

        yield open_page
        browser.get("about:blank")


def answer_of(page: Page, body: dict[str, Any], route: str = "v1/chat/completions") -> str:
    """What the server says to the same request without a browser."""
    raw = json.dumps({**body, "stream": False, "stream_options": None}).encode()
    with urllib.request.urlopen(urllib.request.Request(page.url + route, raw), timeout=60) as response:
        (choice,) = json.load(response)["choices"]
    found: str = choice["text"] if "text" in choice else choice["message"]["content"]
    return found


def test_a_conversation(page: Callable[..., Page]) -> None:
    it = page()
    assert it.text("title") == "chat" and it.element("model").is_displayed() is False
    it.set(seed=5, length=24, temperature=0.7, system="Be short.")
    it.ask("Hi there")
    first = it.between.bodies[-1]
    assert [each["role"] for each in first["messages"]] == ["system", "user"]
    assert (first["seed"], first["max_tokens"], first["temperature"], first["top_p"]) == (5, 24, 0.7, 0.9)
    answer = answer_of(it, first)
    assert it.said == ["Hi there", answer] and it.problem == ""
    assert "tokens/s" in it.text("log") and "seed 5" in it.text("log")
    it.ask("And now?")
    second = it.between.bodies[-1]
    assert [each["content"] for each in second["messages"]] == ["Be short.", "Hi there", answer, "And now?"]
    said = it.said
    assert said[2:] == ["And now?", answer_of(it, second)]

    it.element("input").send_keys("a draft")
    it.reload()
    assert it.said == said and it.element("input").get_attribute("value") == "a draft" and it.titles == ["Hi there"]
    assert (
        it.element("seed").get_attribute("value") == "5" and it.element("system").get_attribute("value") == "Be short."
    )
    it.element("input").clear()

    it.act("Try again")
    it.finished()
    assert it.said == said and it.between.bodies[-1] == second
    it.set(seed="")
    it.act("Try again")
    it.finished()
    assert it.between.bodies[-1]["seed"] != 5 and it.said[:3] == said[:3]

    it.act("Edit")  # the last question: its answer is replaced
    edited = it.browser.switch_to.active_element
    assert edited.get_attribute("value") == "And now?"
    edited.send_keys(" Really?" + ENTER)
    it.finished()
    assert it.said[2] == "And now? Really?" and len(it.said) == 4 and it.titles == ["Hi there"]
    kept = it.said
    it.act("Edit", 0)  # an earlier one: a new conversation, and the old one stays
    it.browser.switch_to.active_element.send_keys("!" + ENTER)
    it.finished()
    assert it.said[0] == "Hi there!" and len(it.said) == 2 and it.titles == ["Hi there!", "Hi there"]
    it.browser.find_element("link text", "Hi there").click()
    it.wait(f"{SAID}.length === 4")
    assert it.said == kept
    assert it.outside() == [] and it.errors() == []


def test_where_an_answer_comes_from(page: Callable[..., Page], story_store: Path, tmp_path: Path) -> None:
    store = Path(shutil.copytree(story_store, tmp_path / "store"))
    build_store_index(store)
    index = StoreIndex(store)
    ids = index.store.split("train").document(2)[:40]
    words = index.tokenizer.decode(ids.tolist()).decode("utf-8", "ignore").split("\n")[0]
    it = page(index=index)
    it.between.stream({"delta": {"content": f"🦙 Qwertz. {words}"}})
    it.ask("Hi")
    it.act("Where from?")
    it.wait("document.querySelector('.trace figure')")
    marked = it.run("return Array.from(document.querySelectorAll('.answer mark'), (e) => e.textContent)")
    assert marked and all(each in words for each in marked) and it.said == ["Hi", f"🦙 Qwertz. {words}"]
    assert "stories, document " in it.run("return document.querySelector('.trace').textContent")
    assert it.run("return document.activeElement.getAttribute('aria-expanded')") == "true"
    it.act("Where from?")
    it.wait("!document.querySelector('.trace, mark')")
    assert it.outside() == [] and it.errors() == []

    without = page()
    without.ask("Hi")
    assert not without.has_act("Where from?")


def test_conversations_are_kept_and_deleted(page: Callable[..., Page]) -> None:
    it = page()
    it.set(length=8)
    for text in ("One", "Two", "Three"):
        it.element("new").click()
        it.wait(f"{SAID}.length === 0")
        it.ask(text)
    assert it.titles == ["Three", "Two", "One"]
    cross = it.browser.find_element("css selector", "[aria-label='Delete: Two']")
    cross.click()
    assert it.titles == ["Three", "One"] and it.said[0] == "Three"
    assert it.browser.switch_to.active_element.get_attribute("id") == "undo"
    it.element("undo").click()
    it.wait("document.querySelectorAll('#chats a').length === 3")
    it.wait(f"{SAID}[0] === 'Two'")
    it.browser.find_element("css selector", "[aria-label='Delete: Two']").click()
    it.wait(f"{SAID}.length === 0")
    it.reload()
    assert it.titles == ["Three", "One"] and it.element("removed").is_displayed() is False
    first = it.browser.current_window_handle
    it.browser.switch_to.new_window("tab")  # a second tab adds one, and both show all
    it.open()
    it.ask("Four")
    it.browser.switch_to.window(first)
    it.wait("document.querySelectorAll('#chats a').length === 3")
    assert it.titles == ["Four", "Three", "One"]
    for handle in it.browser.window_handles:
        if handle != first:
            it.browser.switch_to.window(handle)
            it.browser.close()
    it.browser.switch_to.window(first)

    it.run(  # fill the storage
        "for (let size = 1 << 20, i = 0; size > 16; i++) "
        "try { localStorage.setItem(`other${i}`, 'x'.repeat(size)); } catch { size >>= 1; }"
    )
    it.element("new").click()
    it.ask("Five")
    assert it.problem.startswith("The browser's storage is full") and it.said[0] == "Five" and len(it.said) == 2
    it.run("Object.keys(localStorage).filter((n) => n.startsWith('other')).forEach((n) => localStorage.removeItem(n))")
    it.ask("Six")
    assert it.problem == "" and len(it.said) == 4
    it.reload()
    assert it.titles[0] == "Five" and len(it.said) == 4


def test_a_base_model_continues_texts(page: Callable[..., Page]) -> None:
    it = page(("chat", "base"))
    assert it.element("model").is_displayed() and "What do you want to ask?" in it.text("log")
    it.browser.find_element("css selector", "#model option[value=base]").click()
    assert "How does it begin?" in it.text("log") and it.element("system").is_displayed() is False
    it.set(seed=7, length=20)
    it.ask("Once upon a time")
    body = it.between.bodies[-1]
    assert body["prompt"] == "Once upon a time" and body["model"] == "base" and "messages" not in body
    text = "Once upon a time" + answer_of(it, body, "v1/completions")
    shown = "return document.querySelector('.turn:last-child .text').textContent"
    assert it.run(shown) == text and "reached the limit of tokens" in it.text("log") and "base" in it.text("log")
    it.act("Continue")
    it.finished()
    assert it.between.bodies[-1]["prompt"] == text
    longer = it.run(shown)
    assert longer == text + answer_of(it, it.between.bodies[-1], "v1/completions")
    it.act("Another one")
    it.finished()
    assert it.run(shown) == text
    it.ask("One day")  # another text, below: it does not belong to the first
    assert it.between.bodies[-1]["prompt"] == "One day"
    assert it.run("return document.querySelectorAll('.text').length") == 2
    it.reload()
    assert it.element("model").get_attribute("value") == "base"
    assert it.run("return document.querySelector('.text').textContent") == text
    it.element("new").click()
    it.browser.find_element("class name", "start").click()
    it.finished()
    assert it.between.bodies[-1]["prompt"] == "" and len(it.run(shown)) > 10 and it.errors() == []


def test_stopping_and_losing_the_connection(page: Callable[..., Page]) -> None:
    it = page(("base",))
    it.set(seed=3, length=200)
    it.between.hold = True
    for stop in ("button", "key"):
        it.element("input").send_keys("Once upon a time" + ENTER)
        it.wait("document.querySelector('.turn:last-child .answer')?.textContent.length > 0")
        assert it.element("log").get_attribute("aria-busy") == "true" and it.element("go").is_displayed() is False
        it.element("input").send_keys("my next text" + ENTER)  # is not sent, and stays
        if stop == "button":
            it.element("stop").click()
        else:
            it.element("input").send_keys(ESCAPE)
        it.wait("document.getElementById('stop').hidden")
        assert it.element("input").get_attribute("value") == "my next text"
        it.element("input").clear()
        written = it.run("return document.querySelector('.turn:last-child .answer').textContent")
        assert answer_of(it, it.between.bodies[0], "v1/completions").startswith(written) and it.problem == ""
        assert "stopped" in it.text("log")
    it.element("input").send_keys("Once upon a time" + ENTER)
    it.wait("document.querySelector('.turn:last-child .answer')?.textContent.length > 0")
    it.reload()
    written = it.run("return document.querySelector('.turn:last-child .answer').textContent")
    assert answer_of(it, it.between.bodies[0], "v1/completions").startswith(written) and len(written) > 0
    assert it.run("return document.querySelector('.turn:last-child .acts').textContent").endswith("seed 3 · stopped")
    it.element("input").send_keys("One day" + ENTER)
    it.wait("document.querySelector('.turn:last-child .answer')?.textContent.length > 0")
    it.between.cut, it.between.hold = True, False
    it.finished()
    assert it.problem == "The connection was lost; the answer is not complete."
    whole = answer_of(it, it.between.bodies[-1], "v1/completions")
    written = it.run("return document.querySelector('.turn:last-child .answer').textContent")
    assert written and whole.startswith(written)
    it.reload()
    assert it.run("return document.querySelector('.turn:last-child .answer').textContent") == written
    it.act("Another one")
    it.finished()
    assert it.run("return document.querySelector('.turn:last-child .answer').textContent") == whole and it.problem == ""


def test_an_answer_goes_on_while_another_conversation_is_shown(page: Callable[..., Page]) -> None:
    it = page(("base",))
    it.set(seed=3, length=200)
    it.between.hold = True
    it.element("input").send_keys("Once upon a time" + ENTER)
    it.wait("document.querySelector('.answer')?.textContent.length > 0")
    it.element("new").click()
    it.wait("document.querySelector('.answer') === null")
    assert it.element("go").is_displayed()
    it.between.hold = False
    it.ask("One day")
    assert it.run("return document.querySelector('.text').textContent").startswith("One day")
    it.browser.find_element("link text", "Once upon a time").click()
    it.wait("document.querySelector('.given').textContent === 'Once upon a time'")
    it.finished()
    first = it.run("return document.querySelector('.answer').textContent")
    assert first == answer_of(it, it.between.bodies[0], "v1/completions") and it.errors() == []


def test_errors_are_one_line_and_lose_nothing(page: Callable[..., Page]) -> None:
    it = page()
    it.set(length=16, seed=2)
    it.ask("First")
    before = it.said
    for answer, expected in (
        (lambda: it.between.fail(429, {"retry-after": "7"}, message="the queue is full", code="queue_full"),
         "The server is busy. Try again in 7 s."),
        (lambda: it.between.fail(503, message="closing down"), "The server cannot answer now: closing down"),
        (lambda: it.between.fail(503, message="more than 600 s", code="timeout"),
         "The server ended the answer: it took too long."),
        (lambda: it.between.fail(400, message="<b>no</b> system messages"), "<b>no</b> system messages"),
        (lambda: it.between.fail(404, message="?", code="model_not_found"),
         "The server no longer has the model chat. Choose another."),
        (lambda: setattr(it.between, "answer", (502, {"content-type": "text/html"}, b"<h1>Bad gateway</h1>")),
         "The server cannot be reached. Check that it runs, then try again."),
    ):  # fmt: skip
        answer()
        it.act("Try again")
        it.finished()
        assert it.problem == expected and it.said == before  # the old answer is back
        answer()
        it.ask("Second")
        assert it.problem == expected and it.said == [*before, "Second"]
        it.reload()
        assert it.said == [*before, "Second"]
        it.act("Try again")
        it.finished()
        assert it.problem == "" and it.said[:3] == [*before, "Second"] and len(it.said) == 4
        it.act("Edit", 0)
        it.browser.switch_to.active_element.send_keys(ENTER)  # the first question again, elsewhere
        it.finished()
        assert it.said == before
    it.browser.set_network_conditions(offline=True, latency=0, throughput=1)
    it.act("Try again")
    it.finished()
    assert it.problem == "The server cannot be reached. Check that it runs, then try again." and it.said == before
    it.browser.delete_network_conditions()
    long = "word " * 300
    it.run("document.getElementById('input').value = arguments[0]", long)
    it.ask("")
    assert it.problem.startswith("This is too long for the model: its context has 256 tokens.")
    assert it.said == [*before, long]
    it.ask("Short")  # a question that got no answer is not sent again
    assert [each["content"] for each in it.between.bodies[-1]["messages"]] == [*before, "Short"]
    assert it.problem == "" and len(it.said) == 5


def test_a_key_behind_a_prefix(page: Callable[..., Page]) -> None:
    it = page(prefix="/a/llm", api_keys=("secret",))
    assert it.element("key-form").is_displayed() and it.browser.switch_to.active_element.get_attribute("id") == "key"
    for key in ("wrong", "schlüssel"):
        it.element("key").clear()
        it.element("key").send_keys(key + ENTER)
        it.wait("!document.getElementById('problem').hidden")
        assert it.problem == "The server does not accept this key." and it.element("key-form").is_displayed()
    it.element("key").clear()
    it.element("key").send_keys("secret" + ENTER)
    it.wait("document.getElementById('model').value")
    assert it.problem == "" and it.element("key-form").is_displayed() is False
    it.set(length=8)
    it.ask("Hello")
    assert len(it.said) == 2
    it.reload()
    it.ask("Again")
    assert len(it.said) == 4
    it.element("forget").click()
    it.ask("Without")
    assert it.element("key-form").is_displayed() and it.said[4:] == ["Without"]
    it.element("key").send_keys("secret" + ENTER)  # asks the question that waits
    it.wait(f"{SAID}.length === 6")
    it.finished()
    assert "secret" not in it.run("return JSON.stringify(localStorage)")
    assert it.outside() == []
    it.browser.get(it.url.rstrip("/"))  # without the last slash
    it.wait("document.getElementById('model').value")


def test_probabilities(page: Callable[..., Page]) -> None:
    it = page(("chat", "base"))
    it.set(seed=4, length=24)
    it.element("probabilities").click()
    info = "document.getElementById('token-info')"
    for name, text in (("chat", "Hi there"), ("base", "Once upon a time")):
        it.browser.find_element("css selector", f"#model option[value={name}]").click()
        it.element("new").click()
        it.ask(text)
        body = it.between.bodies[-1]
        assert (body.get("top_logprobs") or body["logprobs"]) == 8
        answer = answer_of(it, body, "v1/chat/completions" if name == "chat" else "v1/completions")
        assert it.run("return document.querySelector('.answer').textContent") == answer
        tokens = it.browser.find_elements("class name", "token")
        assert 5 < len(tokens) <= 24
        webdriver = pytest.importorskip("selenium.webdriver")
        webdriver.ActionChains(it.browser).move_to_element(tokens[3]).perform()
        it.wait(f"!{info}.hidden")
        lists = it.run(
            f"return Array.from({info}.querySelectorAll('ol'), (list) => Array.from(list.children, (e) => "
            "[e.className, e.lastChild.textContent]))"
        )
        for rows in lists:  # one for each token of the character
            assert [row[0] for row in rows].count("chosen") == 1 and len(rows) >= (8 if len(lists) == 1 else 3)
            shares = [float(share.removesuffix(" %")) for _, share in rows]
            assert shares == sorted(shares, reverse=True) and 0 < sum(shares) <= 101
        webdriver.ActionChains(it.browser).move_to_element(it.element("go")).perform()
        it.wait(f"{info}.hidden")
    token = it.run("const e = document.querySelector('.token'); e.focus(); return e")
    assert token.get_attribute("tabindex") == "0" and it.run(f"return !{info}.hidden")
    token.send_keys(RIGHT)
    second = it.browser.switch_to.active_element
    assert second != token and second.get_attribute("tabindex") == "0" and token.get_attribute("tabindex") == "-1"
    assert "%" in it.text("news")
    second.send_keys(HOME)
    assert it.browser.switch_to.active_element == token
    token.send_keys(ESCAPE)
    assert it.run(f"return {info}.hidden")
    it.element("probabilities").click()
    assert it.browser.find_elements("class name", "token") == []
    assert it.run("return document.querySelector('.answer').textContent") == answer


def logprob(text: str, *raws: bytes) -> dict[str, Any]:
    tokens = [{"token": text, "bytes": list(raw), "logprob": -0.5,
               "top_logprobs": [{"token": text, "bytes": list(raw), "logprob": -0.5}]} for raw in raws]  # fmt: skip
    return {"content": tokens}


def test_texts_are_texts(page: Callable[..., Page]) -> None:
    """HTML from people and models, characters of several tokens, a first space that is left out."""
    it = page()
    it.set()
    it.element("probabilities").click()
    html = "<img src=x onerror=document.title='broken'><script>document.title='broken'</script>&lt;"
    it.between.stream({"delta": {"content": html}, "logprobs": logprob(html, html.encode())}, {"finish_reason": "stop"})
    it.ask(html)
    assert it.said == [html, html] and it.titles == [html[:80]]
    token = it.browser.find_element("class name", "token")
    token.click()
    assert html in it.text("token-info")
    for script in ("", "navigator.clipboard.writeText = () => Promise.reject()"):  # as on a page of http
        it.run(script)
        it.act("Copy")
        it.wait("Array.from(document.querySelectorAll('#log button')).some((e) => e.textContent === 'Copied')")
        it.element("input").send_keys(CONTROL + "v")
        assert it.element("input").get_attribute("value") == html
        it.element("input").clear()
        it.run("showLog()")
    raw = "😀".encode()
    it.between.stream(
        {"delta": {"content": "a"}, "logprobs": logprob("a", b" a")},
        {"delta": {"content": "😀b"}, "logprobs": logprob("?", raw[:2], raw[2:], b"b")},
        {"delta": {"content": "held\n"}, "logprobs": logprob("?", b"other")},
        {"finish_reason": "stop"},
    )
    it.ask("More")
    assert it.said[3] == "a😀bheld\n"
    texts = it.run("return Array.from(document.querySelectorAll('.turn:last-child .token'), (e) => e.textContent)")
    assert texts == ["a", "😀", "b"]
    assert it.run("return document.querySelectorAll('#log img, #log script, #chats img').length") == 0
    assert "broken" not in it.browser.title.split("<")[0] and it.outside() == []
    it.reload()
    assert it.said[:2] == [html, html] and it.errors() == []


def test_input_methods(page: Callable[..., Page]) -> None:
    """Enter that ends a composition does not send; Shift+Enter begins a line."""
    it = page()
    it.set(length=8)
    it.element("input").click()
    cdp = it.browser.execute_cdp_cmd
    cdp("Input.imeSetComposition", {"text": "ni hao", "selectionStart": 6, "selectionEnd": 6})
    enter = {"key": "Enter", "code": "Enter", "windowsVirtualKeyCode": 13}
    cdp("Input.dispatchKeyEvent", {"type": "rawKeyDown", **enter})
    cdp("Input.dispatchKeyEvent", {"type": "keyUp", **enter})
    assert it.between.bodies == [] and it.said == []
    cdp("Input.insertText", {"text": "你好"})
    # Safari's order: the composition ends first, then comes an Enter with the code of an input method.
    it.run(
        "document.getElementById('input').dispatchEvent("
        "new KeyboardEvent('keydown', {key: 'Enter', keyCode: 229, bubbles: true}))"
    )
    assert it.between.bodies == []
    assert it.element("input").get_attribute("value") == "你好"
    webdriver = pytest.importorskip("selenium.webdriver")
    chain = webdriver.ActionChains(it.browser)
    chain.key_down(SHIFT).send_keys(ENTER).key_up(SHIFT).send_keys("second").perform()
    assert it.element("input").get_attribute("value") == "你好\nsecond"
    it.ask("")
    assert it.said[0] == "你好\nsecond" and it.between.bodies[-1]["messages"][-1]["content"] == "你好\nsecond"


def test_looks_and_labels(page: Callable[..., Page]) -> None:
    it = page(("chat", "base"))
    it.set(length=8)
    it.ask("A question " + "of many words " * 2 + "x" * 60)
    assert it.element("news").get_attribute("role") == "status" and it.text("news") == it.said[-1]
    it.browser.find_element("css selector", "#model option[value=base]").click()
    it.set(length=120)
    for _ in range(3):
        it.ask("Once")
    colors = []
    for _ in range(2):
        colors.append(it.run("return getComputedStyle(document.body).backgroundColor"))
        it.element("theme").click()
    assert colors[0] != colors[1]
    it.element("theme").click()
    it.reload()
    assert it.run("return getComputedStyle(document.body).backgroundColor") == colors[1]
    it.element("theme").click()
    for width in (320, 390, 700, 1200):
        screen = {"width": width, "height": 420, "deviceScaleFactor": 1, "mobile": width < 500}
        it.browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)
        assert it.run("return document.documentElement.scrollWidth") <= width
        assert it.run("return document.documentElement.scrollHeight") <= 420  # only the log scrolls
        assert it.run("const e = document.getElementById('log'); return e.scrollHeight > e.clientHeight")
        for name in ("input", "go", "log"):
            box = it.element(name).rect
            assert box["x"] >= 0 and box["x"] + box["width"] <= width and box["y"] + box["height"] <= 420, (name, width)
        visibility = "visible" if width > 736 else "hidden"
        it.wait(f"getComputedStyle(document.getElementById('side')).visibility === '{visibility}'")
        if width <= 736:
            it.element("menu").click()
            it.wait("document.getElementById('new').getBoundingClientRect().x >= 0")
            assert it.element("new").is_displayed() and it.element("menu").get_attribute("aria-expanded") == "true"
            it.browser.switch_to.active_element.send_keys(ESCAPE)
            it.wait("getComputedStyle(document.getElementById('side')).visibility === 'hidden'")
    it.browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    unnamed = it.run(
        "return Array.from(document.querySelectorAll('button, input, textarea, select, a, nav, [role=log]'))"
        ".filter((e) => !(e.textContent.trim() || e.getAttribute('aria-label') || e.labels?.length))"
        ".map((e) => e.outerHTML)"
    )
    assert unnamed == []
    assert it.element("log").get_attribute("aria-live") == "off"  # it would read each token
    it.element("language").click()
    assert it.element("go").text == "续写" and it.run("return document.documentElement.lang") == "zh-Hans"
    it.element("language").click()
    assert it.errors() == []

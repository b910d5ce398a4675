"""A page with a model inside, in a real browser: it opens from a file, writes what the engine writes
here, and asks nothing of the network."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from llamita.convert.page import write_page
from llamita.engine import Message, Model
from llamita.engine.model import PACKAGED_MODEL

pytestmark = [pytest.mark.cross, pytest.mark.usefixtures("engine_build")]
PROMPT = "Once upon a time"


class Page:
    """A page in the browser."""

    def __init__(self, browser: Any, path: Path) -> None:
        self.browser, self.path = browser, path
        self.browser.get_log("performance")
        self.browser.get(path.as_uri())
        self.wait("document.documentElement.dataset.readyMs || !document.getElementById('problem').hidden")

    def run(self, script: str) -> Any:
        return self.browser.execute_script(script)

    def wait(self, condition: str, seconds: float = 60) -> None:
        end = time.monotonic() + seconds
        while not self.run(f"return {condition}"):
            assert time.monotonic() < end, (condition, self.text("problem"), self.browser.get_log("browser"))
            time.sleep(0.02)

    def text(self, name: str) -> str:
        return self.run(f"return document.getElementById('{name}').textContent")

    def element(self, name: str) -> Any:
        return self.browser.find_element("id", name)

    def set(self, **values: object) -> None:
        for name, value in values.items():
            self.run(
                f"const e = document.getElementById('{name}'); e.value = {json.dumps(value)}; "
                "e.dispatchEvent(new Event('input'))"
            )

    def write(self, text: str, **values: object) -> None:
        """Type, press Enter, wait for the end."""
        self.set(**values)
        self.element("input").clear()
        self.element("input").send_keys(text + "\n")
        self.wait("!document.getElementById('go').hidden")
        assert "·" in self.text("status"), self.text("problem")

    def requests(self) -> list[str]:
        messages = [json.loads(line["message"])["message"] for line in self.browser.get_log("performance")]
        sent = [each for each in messages if each["method"] == "Network.requestWillBeSent"]
        return [each["params"]["request"]["url"] for each in sent]


def stories_page(folder: Path) -> Path:
    write_page(PACKAGED_MODEL, folder / "故事 of mine.html", starts=["One day, a cat"], bits_per_byte=0.704)
    return folder / "故事 of mine.html"


@pytest.mark.usefixtures("engine_for_browsers")
def test_stories(browser: Any, tmp_path: Path) -> None:
    page = Page(browser, stories_page(tmp_path))
    assert page.element("problem").is_displayed() is False
    with Model(PACKAGED_MODEL) as model:
        for seed, temperature in ((7, 0.8), (8, 1.2), (0, 0.0)):
            page.write(PROMPT, seed=str(seed), temperature=temperature, length=96)
            expected = "".join(model.generate(PROMPT, temperature=temperature, top_p=0.9, seed=seed, max_new_tokens=96))
            assert page.text("log") == PROMPT + expected
            assert f"seed {seed}" in page.text("status") and "tokens/s" in page.text("status")
    page.run("document.querySelector('.start').click()")
    page.wait("document.getElementById('log').textContent.length > 40")
    assert page.text("log").startswith("One day, a cat")
    page.wait("!document.getElementById('go').hidden")
    page.element("about-button").click()
    about = page.text("about")
    assert "0.704 bits per byte" in about and "Q8_0" in about and "512 tokens" in about
    assert page.element("about-button").get_attribute("aria-expanded") == "true"
    colors = []
    for _ in range(2):
        colors.append(page.run("return getComputedStyle(document.body).backgroundColor"))
        page.element("theme").click()
    assert colors[0] != colors[1]
    page.element("language").click()
    assert page.element("go").text == "续写" and page.run("return document.documentElement.lang") == "zh-Hans"
    for width in (360, 500, 1200):
        screen = {"width": width, "height": 740, "deviceScaleFactor": 1, "mobile": width < 600}
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)
        assert page.run("return document.documentElement.scrollWidth") <= width
    browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    outside = [url for url in page.requests() if not url.startswith(("file:", "blob:", "data:"))]
    assert outside == [] and [line for line in browser.get_log("browser") if line["level"] == "SEVERE"] == []


@pytest.mark.usefixtures("engine_for_browsers")
def test_stopping(browser: Any, tmp_path: Path) -> None:
    page = Page(browser, stories_page(tmp_path))
    page.set(length=240, seed="3")
    page.element("input").send_keys(PROMPT + "\n")
    page.wait("document.getElementById('log').textContent.length > 30")
    page.run("document.getElementById('stop').click()")
    page.wait("!document.getElementById('go').hidden")
    with Model(PACKAGED_MODEL) as model:
        whole = PROMPT + "".join(model.generate(PROMPT, temperature=0.8, top_p=0.9, seed=3, max_new_tokens=240))
    assert whole.startswith(page.text("log"))
    page.write(PROMPT, seed="3", length=240)
    assert page.text("log") == whole


@pytest.mark.usefixtures("engine_for_browsers")
def test_chat(browser: Any, tmp_path: Path, make_chat_model: Callable[..., Any]) -> None:
    path = make_chat_model("chatml").path
    write_page(path, tmp_path / "chat.html")
    page = Page(browser, tmp_path / "chat.html")
    assert page.element("again").is_displayed() is False
    page.set(input="你好")
    page.run(  # the Enter that ends a composition in Safari
        "document.getElementById('input').dispatchEvent("
        "new KeyboardEvent('keydown', {key: 'Enter', keyCode: 229, bubbles: true, cancelable: true}))"
    )
    assert page.text("log") == "" and page.element("input").get_attribute("value") == "你好"
    page.write("Hi there", seed="5", temperature=0.6, length=32)
    with Model(path) as model:
        ids = model.chat_encode([Message("user", b"Hi there")])
        answer = "".join(_generate(model, ids, 32))
    said = page.run("return Array.from(document.querySelectorAll('.said'), (e) => e.textContent)")
    assert said == ["Hi there", answer]
    page.write("And now?", seed="5", length=32)
    assert page.run("return document.querySelectorAll('.said').length") == 4
    long = "word " * 2000
    page.set(input=long)
    page.element("go").click()
    page.wait("!document.getElementById('problem').hidden")
    assert page.run("return document.querySelectorAll('.said').length") == 4, "it was not said"
    assert page.element("input").get_attribute("value") == long, "and can be shortened"
    page.write("Shorter", seed="5", length=8)
    assert page.run("return document.querySelectorAll('.said').length") == 6
    page.element("again").click()
    assert page.run("return document.querySelectorAll('.said').length") == 0


def _generate(model: Model, ids: list[int], count: int) -> Iterator[str]:
    from llamita.engine import Sampler, text_pieces

    with (
        contextlib.closing(model.session()) as session,
        Sampler(model.info.vocab_size, temperature=0.6, top_p=0.9, seed=5) as sampler,
    ):
        new: list[int] = []
        for token_id in ids:
            sampler.accept(token_id)
        session.feed(ids)
        while len(new) < count:
            logits = session.logits
            assert logits is not None
            token_id = sampler.pick(logits)
            if model.token_ends(token_id):
                break
            sampler.accept(token_id)
            new.append(token_id)
            session.feed([token_id])
    yield from text_pieces(model.decode_token(each, before) for before, each in zip([ids[-1], *new], new, strict=False))


@pytest.mark.usefixtures("engine_for_browsers")
def test_a_damaged_page_says_so(browser: Any, tmp_path: Path) -> None:
    whole = stories_page(tmp_path).read_text(encoding="utf-8")
    at = whole.index('data-part="model" value="') + 1000
    start = whole.index('data-part="model" value="') + len('data-part="model" value="')
    for name, damaged in (
        ("cut", whole[:at] + whole[at + 4000 :]),
        ("letters", whole[:at] + "!!!!" + whole[at + 4 :]),
        ("other bytes", whole[:start] + "A" * 40 + whole[start + 40 :]),
        ("one letter", whole[:at] + ("A" if whole[at] != "A" else "B") + whole[at + 1 :]),
        ("not to its end", whole[: len(whole) // 2]),
    ):
        (tmp_path / f"{name}.html").write_text(damaged, encoding="utf-8")
        page = Page(browser, tmp_path / f"{name}.html")
        assert "damaged" in page.text("problem"), name
        assert page.element("go").is_enabled() is False

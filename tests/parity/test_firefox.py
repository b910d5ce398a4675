"""The page with a model inside and the server's chat page in Firefox: the same text as here."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from llamita.convert.page import write_page
from llamita.engine import Model
from llamita.engine.model import PACKAGED_MODEL
from llamita.sampling import RuntimeOptions

pytestmark = [pytest.mark.cross, pytest.mark.usefixtures("engine_build")]
PROMPT = "Once upon a time"


class Firefox:
    """Firefox, driven by its own protocol."""

    def __init__(self, driver: Any) -> None:
        self.driver = driver

    def run(self, script: str) -> Any:
        return self.driver.execute_script(script, sandbox=None)

    def wait(self, condition: str, seconds: float = 60) -> None:
        end = time.monotonic() + seconds
        while not self.run(f"return {condition}"):
            problem = self.run("return document.getElementById('problem').textContent")
            assert time.monotonic() < end, (condition, problem)
            time.sleep(0.05)

    def set(self, **values: object) -> None:
        for name, value in values.items():
            self.run(
                f"const e = document.getElementById('{name}'); e.value = {json.dumps(str(value))}; "
                "e.dispatchEvent(new Event('input'))"
            )

    def type(self, text: str) -> None:
        self.driver.find_element("id", "input").send_keys(text + "\ue007")


@pytest.fixture(scope="module")
def firefox(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Firefox]:
    driver = pytest.importorskip("marionette_driver.marionette")
    program = shutil.which("firefox-esr") or shutil.which("firefox")
    if program is None:
        pytest.skip("Firefox is not installed")
    log = tmp_path_factory.mktemp("firefox") / "log.txt"
    marionette = driver.Marionette(bin=program, headless=True, gecko_log=str(log))
    marionette.start_session()
    yield Firefox(marionette)
    marionette.cleanup()


@pytest.mark.usefixtures("engine_for_browsers")
def test_page_with_a_model_inside(firefox: Firefox, tmp_path: Path) -> None:
    write_page(PACKAGED_MODEL, tmp_path / "故事 of mine.html")
    firefox.driver.navigate((tmp_path / "故事 of mine.html").as_uri())
    firefox.wait("document.documentElement.dataset.readyMs")
    firefox.set(seed=7, temperature=0.8, length=96)
    firefox.type(PROMPT)
    firefox.wait("document.getElementById('status').textContent.includes('seed 7')")
    with Model(PACKAGED_MODEL) as model:
        expected = "".join(model.generate(PROMPT, temperature=0.8, top_p=0.9, seed=7, max_new_tokens=96))
    assert firefox.run("return document.getElementById('log').textContent") == PROMPT + expected


def test_chat_page(firefox: Firefox, listening: Callable[..., Any]) -> None:
    pytest.importorskip("starlette")
    pytest.importorskip("prometheus_client")
    from llamita.server.app import Server
    from llamita.server.serving import ServedModel

    with Model(PACKAGED_MODEL) as model:
        with listening(Server([ServedModel("stories", model)], RuntimeOptions(num_threads=1)).app) as url:
            firefox.driver.navigate(url + "/")
            firefox.wait("document.getElementById('model').value")
            firefox.set(seed=3, temperature=0.7, length=64)
            firefox.type(PROMPT)
            firefox.wait("document.querySelector('.acts')?.textContent.includes('seed 3')")
            shown = firefox.run("return document.querySelector('.answer').textContent")
            assert firefox.run("return document.getElementById('problem').textContent") == ""
            firefox.driver.navigate("about:blank")
        assert shown == "".join(model.generate(PROMPT, temperature=0.7, top_p=0.9, seed=3, max_new_tokens=64))

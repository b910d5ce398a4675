"""A model whose file changes is served anew; running requests end with the model that they began
with, and a file that cannot be used changes nothing."""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from llamita.cli.serve import ServeFlags, main, open_model
from llamita.engine import PACKAGED_MODEL, Model
from llamita.errors import ConfigError, EngineError, SourceError
from llamita.server import watch
from llamita.server.watch import Watched, file_state, private_copy

Client = Any  # conftest.Client: the tests are not a package
COMPLETIONS = "/v1/completions"
BODY = {"prompt": "Once upon a time", "max_tokens": 20, "temperature": 0}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return Path(shutil.copy(PACKAGED_MODEL, tmp_path / "newest.gguf"))


@pytest.fixture
def other(make_chat_model: Callable[..., Any]) -> Path:
    return Path(make_chat_model("chatml").path)


@pytest.fixture
def watching(path: Path, running_server: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Client]:
    monkeypatch.setattr(watch, "POLL_SECONDS", 0.02)
    served = open_model("newest", path, ServeFlags((str(path),), watch=True))
    with running_server([served]) as client:
        client.first = served
        yield client


def size(client: Client) -> int:
    return int(client.ok("/v1/models/newest")["num_parameters"])


def replace(path: Path, source: Path) -> None:
    shutil.copy(source, path.with_suffix(".partial"))
    os.replace(path.with_suffix(".partial"), path)


def test_new_model(watching: Client, path: Path, other: Path, stories: Model) -> None:
    """New requests get the new model at once; one that runs ends on the old, which is then closed."""
    long = {**BODY, "max_tokens": 250, "n": 70, "logit_bias": {str(stories.info.eos_id): -100}}
    alone = watching.ok(COMPLETIONS, long)
    results = []
    running = threading.Thread(target=lambda: results.append(watching.ok(COMPLETIONS, long)))
    before = size(watching)
    running.start()
    watching.wait_until(lambda: watching.stats.num_running > 0)
    replace(path, other)
    watching.wait_until(lambda: size(watching) != before)
    assert running.is_alive() and not results
    watching.ok(COMPLETIONS, BODY)
    running.join()
    assert results[0]["choices"] == alone["choices"]
    watching.wait_until(lambda: is_closed(watching.first.model))
    replace(path, PACKAGED_MODEL)
    watching.wait_until(lambda: size(watching) == before)
    assert watching.ok(COMPLETIONS, long)["choices"] == alone["choices"]


def is_closed(model: Model) -> bool:
    try:
        model.encode(b"x")
    except EngineError:
        return True
    return False


@pytest.mark.parametrize("kind", ["half", "empty", "noise", "missing"])
def test_broken_file(
    watching: Client, path: Path, other: Path, caplog: pytest.LogCaptureFixture, kind: str, tmp_path: Path
) -> None:
    """The old model goes on, even if its file is overwritten in place; one line says why."""
    alone, before = watching.ok(COMPLETIONS, BODY), size(watching)
    if kind == "missing":
        path.unlink()
    else:
        raw = path.read_bytes()
        path.write_bytes({"half": raw[: len(raw) // 2], "empty": b"", "noise": os.urandom(5000)}[kind])
        watching.wait_until(lambda: "goes on" in caplog.text)
    time.sleep(0.2)
    # Once for each state that was seen, such as that of a file that is being written.
    warnings = {each.getMessage() for each in caplog.records if each.levelno >= logging.WARNING}
    assert bool(warnings) == (kind != "missing") and len(warnings) <= 2
    assert all(str(path) in each and "\n" not in each and "llamita-" not in each for each in warnings)
    assert watching.ok(COMPLETIONS, BODY)["choices"] == alone["choices"] and watching.ok("/health")
    shutil.copy(other, path)  # in place
    watching.wait_until(lambda: size(watching) != before)


def test_a_file_is_not_opened_while_it_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    states = [((("a", 1, 1, n),)) for n in (0, 1, 2, 3, 3, 3, 4, 4, 4, 0)]
    reloads: list[int] = []
    monkeypatch.setattr(watch, "POLL_SECONDS", 0)
    monkeypatch.setattr(watch, "file_state", lambda path: states.pop(0))

    async def reload() -> None:
        reloads.append(len(states))

    with pytest.raises(IndexError):  # no more states
        asyncio.run(watch.watch(Watched(tmp_path, states.pop(0)), reload))
    assert reloads == [5, 2]


def test_a_copy_of_a_file_that_changes(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with private_copy(path) as copy:
        assert copy.read_bytes() == path.read_bytes()
    assert not copy.exists()
    copy_file = shutil.copyfile

    def slow_copy(source: Path, target: Path) -> None:
        copy_file(source, target)
        source.write_bytes(b"more")

    monkeypatch.setattr(shutil, "copyfile", slow_copy)
    with pytest.raises(SourceError, match="being written"), private_copy(path):
        pass


def test_states_of_run_directories(tmp_path: Path) -> None:
    assert file_state(tmp_path) == file_state(tmp_path / "missing") == ()
    for number in (1, 2):
        (tmp_path / f"step-{number}").mkdir()
        (tmp_path / f"step-{number}" / "model.safetensors").touch()
    (tmp_path / "best").symlink_to("step-1")
    before = file_state(tmp_path)
    (tmp_path / "metrics.jsonl").touch()
    assert file_state(tmp_path) == before != ()
    (tmp_path / "best").unlink()
    (tmp_path / "best").symlink_to("step-2")
    assert file_state(tmp_path) not in (before, ())


def test_nothing_to_watch() -> None:
    with pytest.raises(ConfigError, match="--watch: expected a MODEL"):
        main(["--watch"])

"""Every kind of value at every key of our own JSON files: they may come from other people, too."""

from __future__ import annotations

import copy
import dataclasses
import itertools
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")
import torch

from llamita.config import PrepareConfig, TrainConfig
from llamita.data.prepare import prepare
from llamita.data.token_store import TokenStore
from llamita.errors import LlamitaError
from llamita.json_file import check_object
from llamita.report.summary import write_page
from llamita.run_directory import continued, extended_at, finished_message, finished_summary, open_run, remembered_run
from llamita.training.continued import old_stores, open_base
from llamita.training.distributed import Ranks
from llamita.training.metrics_log import Trackers
from llamita.training.pretraining import train
from llamita.training.trainer_state import STATE, TrainerState

VALUES: tuple[Any, ...] = (
    None, True, 0, -1, 3, 0.5, -1e308, 10**30, 2**53, float("nan"), float("inf"), "", "x", "../x", "\x1b[2J\n",
    "9" * 5000,    [], [1], ["x"], [[]], {}, {"a": 1}, {"": None},
)  # fmt: skip
TEXTS = (
    b"", b"{", b"[]", b"null", b"3", b'"x"', b"\xff\xfe{}", b"\xef\xbb\xbf{}", b"{}", b'{"a": "\\ud800"}',
    b"[" * 100_000 + b"]" * 100_000, b'{"a":' * 5000 + b"1" + b"}" * 5000, b'{"config": ' + b"1" * 5000 + b"}",
    b"\x00" * 100, b"version https://git-lfs.github.com/spec/v1\n",
)  # fmt: skip


def changed(content: Any, max_items: int = 2) -> Iterator[Any]:
    """The content with one value replaced or removed, for every key of every object."""

    def places(value: Any, path: tuple[Any, ...]) -> Iterator[tuple[Any, ...]]:
        items = value.items() if isinstance(value, dict) else enumerate(value[:max_items])
        for key, below in items:
            yield (*path, key)
            if isinstance(below, (dict, list)):
                yield from places(below, (*path, key))

    for path in places(content, ()):
        for value in (*VALUES, KeyError):
            new = copy.deepcopy(content)
            parent = new
            for key in path[:-1]:
                parent = parent[key]
            if value is KeyError:
                del parent[path[-1]]
            else:
                parent[path[-1]] = value
            yield new


def some(contents: Iterator[Any], step: int) -> Iterator[Any]:
    """For uses that take longer: of the 24 changes of each key some, at every key others."""
    assert step % 2 and step % 3
    return itertools.islice(contents, 0, None, step)


def check(path: Path, contents: Iterator[Any], use: Callable[[], object]) -> None:
    """Each content is used or refused in one clean line; the file is put back at the end."""
    before = path.read_bytes()
    texts = (json.dumps(content).encode() for content in contents)
    refused = 0
    try:
        for text in (*TEXTS, *texts):
            path.write_bytes(text)
            try:
                use()
            except LlamitaError as error:
                assert str(error).isprintable() and len(str(error.args[0])) <= 500, error
                refused += 1
            except Exception as error:
                raise AssertionError(f"{type(error).__name__} for {text[:2000]!r}") from error
    finally:
        path.write_bytes(before)
    assert refused >= len(TEXTS) // 2
    use()


@pytest.fixture
def run(finished: TrainConfig, tmp_path: Path) -> TrainConfig:
    """A copy of the finished run, which a test may change."""
    shutil.copytree(finished.out, tmp_path / "copy", symlinks=True)
    return dataclasses.replace(finished, out=tmp_path / "copy")


@pytest.fixture(scope="module")
def finished(story_store: Path, tmp_path_factory: pytest.TempPathFactory) -> TrainConfig:
    """A finished run of two steps."""
    config = TrainConfig(
        data=story_store, out=tmp_path_factory.mktemp("runs") / "run", steps=2, layers=1, hidden=16, heads=2,
        context=32, micro_batch_size=2, log_interval=1, eval_interval=1, device="cpu", threads=1,
    )  # fmt: skip
    train(config)
    return config


def load(path: Path) -> Any:
    return json.loads(path.read_text())


def test_run_json(run: TrainConfig) -> None:
    path = run.out / "run.json"
    description, resumed = load(path), dataclasses.replace(run, resume=True)

    def use() -> None:
        remembered_run(run.out)
        extended_at(run.out)
        config = continued(resumed, 1)
        summary = finished_summary(run.out)
        if summary:
            finished_message(config, summary)
        open_run(config, description)

    check(path, some(changed(description), 11), use)
    check(path, some(changed(description), 11), lambda: write_page([run.out]))
    going_on = dataclasses.replace(run, from_=run.out)
    check(path, some(changed(description), 5), lambda: old_stores(going_on, open_base(run.out)))


def test_summary_and_metrics(run: TrainConfig) -> None:
    path = run.out / "summary.json"
    overlap = {"length_tokens": 3, "median_tokens": 1.5, "val": {"length_tokens": 3, "median_tokens": 1.0}}
    overlap |= {"memorizes": True, "val_known": 0.0, "text": "x"}
    numbers = ("num_samples", "mean_tokens", "stop_rate", "distinct_1", "distinct_2", "distinct_3", "repetition")
    summary = load(path) | {"samples": {"overlap": overlap, **dict.fromkeys(numbers, 1)}}
    check(path, changed(summary), lambda: finished_summary(run.out))
    check(path, some(changed(summary), 7), lambda: write_page([run.out]))
    path = run.out / "metrics.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    kinds = {line["kind"]: line for line in lines}
    kinds["rollback"] = {"kind": "rollback", "step": 2, "to_step": 1, "reason": "x", "learning_rate_factor": 0.5}
    before = path.read_bytes()
    for line in kinds.values():
        for content in some(changed(line), 5):
            path.write_bytes(before + json.dumps(content).encode() + b"\n")
            try:
                write_page([run.out])
            except LlamitaError as error:
                assert str(error).isprintable() and len(str(error.args[0])) <= 500, error
    path.write_bytes(before)


def test_state_json(run: TrainConfig) -> None:
    path = run.out / "latest" / "training" / "state.json"
    ranks = Ranks(0, 1, torch.device("cpu"))

    def use() -> None:
        from llamita.checkpoint import load_training_state

        values = check_object(load_training_state(run.out).values, STATE, "state.json", Problem)
        try:
            TrainerState.from_state_dict(values["trainer"], ranks)
        except ValueError as error:
            raise Problem(str(error)) from None

    check(path, changed(load(path)), use)


class Problem(LlamitaError):
    """A refusal in this test."""


@pytest.mark.parametrize("change", [{"row": 10**6}, {"window": 10**6}, {"epoch": -1}, {"row": "x"}])
def test_a_place_that_does_not_exist_is_not_resumed(run: TrainConfig, tmp_path: Path, change: dict[str, Any]) -> None:
    shutil.copytree(run.out, tmp_path / "run", symlinks=True)
    path = tmp_path / "run" / "latest" / "training" / "state.json"
    state = load(path)
    state["batches"] |= change
    path.write_text(json.dumps(state))
    with pytest.raises(LlamitaError, match=rf"state\.json: .*{next(iter(change))}: expected"):
        train(dataclasses.replace(run, out=tmp_path / "run", resume=True, steps=3))


def test_tracking_json(run: TrainConfig) -> None:
    path = run.out / "tracking.json"
    path.write_text("{}")

    def use() -> None:
        before = path.read_bytes()
        Trackers((), run.out, (), (), print)
        path.write_bytes(before)

    check(path, changed({"id": "abc", "trackers": ["wandb", "x"]}), use)


def test_store_json(story_store: Path, tmp_path: Path) -> None:
    store = tmp_path / "store"
    shutil.copytree(story_store, store)
    config = PrepareConfig(sources=("stories",), out=store, vocab_size=320, num_stories=300, val_fraction=0.1)

    def use() -> None:
        opened = TokenStore(store)
        for name in ("train", "val"):
            split = opened.split(name)
            if split.num_documents:
                split.document(0)
        prepare(config)

    check(store / "store.json", some(changed(load(store / "store.json")), 5), use)

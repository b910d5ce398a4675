"""Weighted token stores: what an epoch sees of each, the same for any number of processes."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llamita.config import PrepareConfig
from llamita.data import batches as batches_module
from llamita.data.batches import IGNORED, Batches
from llamita.data.mixture import JoinedDocuments, Mixture, open_documents, parse_store
from llamita.data.token_store import TokenStore
from llamita.errors import ConfigError, StoreError
from tests.training_runs import stop_at

BOS, EOS = 1, 2


class OneTokenEach:
    """Documents of one id and EOS: ids first, first + 1, …"""

    def __init__(self, first: int, count: int) -> None:
        self.first, self.num_documents, self.num_tokens, self.text_bytes = first, count, 2 * count, 5 * count
        self.lengths = np.full(count, 2)

    def document(self, index: int, /) -> np.ndarray:
        return np.array([self.first + index, EOS], np.uint16)


def seen(batches: Batches, num_epochs: int) -> list[Counter[int]]:
    """How often each document's id is a target, epoch by epoch; the batch must hold one row."""
    counts: list[Counter[int]] = [Counter() for _ in range(num_epochs)]
    while batches.epoch < num_epochs:
        epoch = batches.epoch
        _, targets, _ = next(batches)
        counts[epoch].update(i for i in targets[0].tolist() if i not in (EOS, IGNORED))
    return counts


def mixture(*parts: tuple[int, float]) -> Mixture:
    """(documents, weight) each; the ids of part n begin at 1,000 · (n + 1)."""
    return Mixture([OneTokenEach(1000 * (n + 1), count) for n, (count, _) in enumerate(parts)], [w for _, w in parts])


def test_weights_are_times_an_epoch() -> None:
    documents = mixture((40, 2.0), (60, 1.0), (50, 0.2), (10, 1.5))
    counts = seen(Batches(documents, BOS, context=8, batch_size=1, seed=3), 5)
    for count in counts:
        by_part = Counter(i // 1000 for i in count.elements())
        assert by_part == {1: 80, 2: 60, 3: 10, 4: 15}
        assert all(count[1000 + i] == 2 for i in range(40)) and all(count[2000 + i] == 1 for i in range(60))
    total = sum(counts, Counter())
    assert all(total[3000 + i] == 1 for i in range(50))  # a fifth each epoch, another each time
    assert {total[4000 + i] for i in range(10)} <= {7, 8}
    assert documents.num_tokens == 160 + 120 + 20 + 30 and documents.text_bytes == 400 + 300 + 50 + 75


@settings(max_examples=60)
@given(st.lists(st.tuples(st.integers(1, 30), st.floats(0.05, 3)), min_size=1, max_size=4), st.integers(0, 20))
def test_an_epoch_has_its_size_and_nothing_else(parts: list[tuple[int, float]], epoch: int) -> None:
    documents = mixture(*parts)
    numbers = documents.epoch_documents(epoch)
    assert numbers.size == documents.epoch_size > 0
    assert np.array_equal(numbers, documents.epoch_documents(epoch))
    times = np.bincount(numbers, minlength=documents.num_documents)
    for n, (count, weight) in enumerate(parts):
        own = times[documents.first_documents[n] :][:count]
        assert set(own.tolist()) <= {int(weight), int(weight) + 1}


def test_number_of_processes_and_resuming_change_no_row(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batches_module, "WINDOW_DOCUMENTS", 20)
    documents = mixture((40, 1.5), (30, 0.4))

    def make(rank: int, world_size: int) -> Batches:
        return Batches(documents, BOS, 6, 4 // world_size, seed=1, rank=rank, world_size=world_size)

    alone, both, four = make(0, 1), [make(r, 2) for r in range(2)], [make(r, 4) for r in range(4)]
    for step in range(25):
        if step == 13:  # in the second epoch
            assert alone.epoch > 0
            state, alone = alone.state_dict(), make(0, 1)
            alone.load_state_dict(state)
        expected = next(alone).targets
        for processes in (both, four):
            assert np.array_equal(np.concatenate([next(each).targets for each in processes]), expected)
    assert not np.array_equal(make(0, 1).documents.epoch_documents(0), documents.epoch_documents(1))


def test_joined_documents() -> None:
    joined = JoinedDocuments([OneTokenEach(1000, 3), OneTokenEach(2000, 0), OneTokenEach(3000, 2)])
    assert [int(joined.document(i)[0]) for i in range(5)] == [1000, 1001, 1002, 3000, 3001]
    assert (joined.num_documents, joined.num_tokens, joined.text_bytes) == (5, 10, 25)
    assert joined.lengths.tolist() == [2] * 5
    for index in (-1, 5):
        with pytest.raises(IndexError):
            joined.document(index)


def test_how_a_store_is_written(tmp_path: Path) -> None:
    assert parse_store("a/b") == (Path("a/b"), 1.0) and parse_store("a:0.25") == (Path("a"), 0.25)
    assert parse_store("a:b") == (Path("a:b"), 1.0)
    (tmp_path / "x:2").mkdir()
    assert parse_store(f"{tmp_path}/x:2") == (tmp_path / "x:2", 1.0)
    assert parse_store(f"{tmp_path}/x:2:3") == (tmp_path / "x:2", 3.0)
    for wrong in ("a:0", "a:-1", "a:nan", "a:inf", "a:1001"):
        with pytest.raises(ConfigError, match="weight of a: expected more than 0, at most 1,000"):
            parse_store(wrong)


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """Two stores of one tokenizer, and one of another."""
    pytest.importorskip("tokenizers")
    from llamita.data.prepare import prepare

    root = tmp_path_factory.mktemp("stores")

    def make(name: str, **changes: Any) -> Path:
        values = {"sources": ("stories",), "num_stories": 120, "val_fraction": 0.1, "num_workers": 1, **changes}
        prepare(PrepareConfig(out=root / name, **values))
        return root / name

    first = make("first", vocab_size=320)
    return first, make("second", tokenizer=first, seed=1), make("other", vocab_size=330)


def test_opening_several(stores: tuple[Path, Path, Path]) -> None:
    first, second, _ = stores
    data = open_documents((f"{first}:2", str(second)))
    one, two = TokenStore(first), TokenStore(second)
    assert data.tokenizer_path == first and (data.bos_id, data.vocab_size) == (0, 320)
    assert data.train.num_tokens == 2 * one.split("train").num_tokens + two.split("train").num_tokens
    assert data.val.num_tokens == one.split("val").num_tokens + two.split("val").num_tokens
    assert data.fingerprint["stores"][0]["weight"] == 2.0 and data.fingerprint["documents"] == data.train.num_documents
    alone = open_documents(first)
    assert alone.train is not None and "stores" not in alone.fingerprint and not isinstance(alone.train, Mixture)
    assert open_documents((str(first),)).fingerprint == alone.fingerprint


def test_stores_that_do_not_go_together(stores: tuple[Path, Path, Path], tmp_path: Path) -> None:
    first, second, other = stores
    with pytest.raises(StoreError, match=f"cannot train on {first} and {other} together.*--tokenizer {first}"):
        open_documents((str(first), str(second), str(other)))
    with pytest.raises(ConfigError, match="given twice"):
        open_documents((str(first), f"{first}:2"))
    with pytest.raises(ConfigError, match="no token store given"):
        open_documents(())
    with pytest.raises(StoreError, match="no such folder"):
        open_documents((str(first), f"{tmp_path}/missing:2"))


def test_training_on_two_stores_resumes_exactly(
    stores: tuple[Path, Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("torch")

    from llamita.config import TrainConfig
    from llamita.training.pretraining import train

    first, second, _ = stores

    def run(name: str, weight: str = "0.5", **changes: Any) -> Any:
        values: dict[str, Any] = {
            "layers": 1, "hidden": 32, "heads": 2, "context": 64, "micro_batch_size": 4, "steps": 12,
            "eval_interval": 6,
            "device": "cpu", "threads": 1,
        }  # fmt: skip
        stores = (f"{first}:1.5", f"{second}:{weight}")
        return train(TrainConfig(data=stores, out=tmp_path / name, **(values | changes)))

    assert run("whole").summary["steps"] == 12
    with monkeypatch.context() as patched:
        stop_at(patched, 7)
        assert run("parts").interrupted
    with pytest.raises(ConfigError, match="stores of the data"):
        run("parts", weight="0.75", resume=True)
    assert not run("parts", resume=True).interrupted
    whole, parts = ((tmp_path / name / "latest/model.safetensors").read_bytes() for name in ("whole", "parts"))
    assert whole == parts
    assert (tmp_path / "parts/latest/tokenizer.json").read_bytes() == (first / "tokenizer.json").read_bytes()
    described = json.loads((tmp_path / "parts/run.json").read_text())
    assert described["config"]["data"] == [f"{first}:1.5", f"{second}:0.5"]
    assert [store["weight"] for store in described["data"]["stores"]] == [1.5, 0.5]

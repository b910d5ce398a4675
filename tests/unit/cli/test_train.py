"""The end of llamita train: whether the model memorizes, or why that was not checked."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")

from llamita.cli import main
from llamita.config import PrepareConfig
from llamita.data.prepare import prepare
from llamita.engine import library as engine_library
from llamita.eval import samples as sample_report

SHAPE = [
    *("--layers=1", "--hidden=64", "--heads=2", "--context=64", "--micro-batch-size=4"),
    *("--threads=1", "--device=cpu", "--early-stopping-patience=0"),
]
# 3 M weights, 24 texts of 200 tokens, a store that is read in no time
SMALL_MODEL_SECONDS = 3.5


@pytest.fixture(scope="module")
def letters(tmp_path_factory: pytest.TempPathFactory, engine_build: Path) -> Path:
    """A token store of 16 documents of letters that mean nothing, and 16 held-out ones: what is
    alike was copied."""
    folder, chosen = tmp_path_factory.mktemp("letters"), random.Random(1)
    for name in ("train", "val"):
        documents = ["".join(chosen.choices("abcdefghijklmnopqrstuvwxyz", k=64)) for _ in range(16)]
        (folder / f"{name}.txt").write_text("<|endoftext|>".join(documents))
    sources, val = (str(folder / "train.txt"),), (str(folder / "val.txt"),)
    prepare(PrepareConfig(sources=sources, val=val, out=folder / "store", vocab_size=260))
    return folder / "store"


@pytest.fixture
def no_engine(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As where the engine was not built."""
    monkeypatch.setattr(engine_library, "LIBRARY_NAMES", ("no-such-library.so",))
    engine_library.load_library.cache_clear()
    yield
    engine_library.load_library.cache_clear()


def trained(store: Path, run: Path, *limit: str) -> dict[str, Any]:
    assert main(["train", str(store), "--out", str(run), *SHAPE, *limit]) == 0
    summary = json.loads((run / "summary.json").read_text())
    assert isinstance(summary, dict)
    return summary


def test_many_epochs_of_little_text_are_known_by_heart(
    letters: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    samples = trained(letters, tmp_path / "run", "--steps=300", "--eval-interval=300", "--token-noise=0")["samples"]
    overlap = samples["overlap"]
    assert overlap["memorizes"] and overlap["length_tokens"] >= 12 and overlap["val"]["length_tokens"] < 6
    assert samples["num_samples"] == 24 and samples["max_new_tokens"] == 200
    page, said = (tmp_path / "run" / "report.html").read_text(), capfd.readouterr().err
    assert "The model memorizes" in page and overlap["text"] in page
    assert "the model memorizes: its samples copy" in said and f"longest {overlap['length_tokens']} tokens" in said
    assert main(["eval", str(tmp_path / "run"), str(letters), "--samples=24", "--max-new-tokens=200", "--json"]) == 0
    assert json.loads(capfd.readouterr().out)["samples"] == samples, "eval measures the same"


def test_after_one_epoch_nothing_is_printed(letters: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert "samples" not in trained(letters, tmp_path / "run", "--epochs=1")
    said = capfd.readouterr().err
    assert "copies" not in said and "memorizes" not in said


def test_without_the_engine_it_says_so(
    letters: Path, tmp_path: Path, no_engine: None, capfd: pytest.CaptureFixture[str]
) -> None:
    assert "samples" not in trained(letters, tmp_path / "run", "--steps=10", "--eval-interval=10")
    said = capfd.readouterr().err.splitlines()
    assert said[-2].startswith("copies of the training text: not checked: the engine's library: in ")


def test_what_would_take_long_is_left_to_eval(
    letters: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sample_report, "WEIGHTS_PER_SECOND", 1e7)
    assert "samples" not in trained(letters, tmp_path / "run", "--steps=10", "--eval-interval=10")
    last = capfd.readouterr().err.splitlines()[-2]
    assert "not checked, as it would take about" in last and "llamita eval" in last and "--samples 24" in last


def test_expected_seconds_grow_with_the_model_and_the_text() -> None:
    small = sample_report.expected_seconds(3_000_000, 24 * 200, 0)
    assert small < SMALL_MODEL_SECONDS < sample_report.expected_seconds(30_000_000, 24 * 200, 0)
    assert sample_report.expected_seconds(3_000_000, 24 * 200, 10_000_000) > 1.5 * small


def test_a_tokenizer_that_cannot_be_exported_is_noted_at_the_beginning(
    letters: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """By prepare and by train, not after hours by export."""
    tokenizer, text = tmp_path / "tokenizer", tmp_path / "text.txt"
    shutil.copytree(letters, tokenizer)
    content = json.loads((tokenizer / "tokenizer.json").read_text())
    split = json.dumps(content["pre_tokenizer"])
    content["pre_tokenizer"] = json.loads(split.replace(r"\\p{N}", r"\\p{N}{1,2}"))
    (tokenizer / "tokenizer.json").write_text(json.dumps(content))
    text.write_text("<|endoftext|>".join(f"{number} times {number}" for number in range(4000)))
    store, why = tmp_path / "store", "cannot be exported as .gguf: GGUF runtimes do not have its regular expression"
    assert main(["prepare", str(text), "--out", str(store), "--tokenizer", str(tokenizer / "tokenizer.json")]) == 0
    assert why in capfd.readouterr().err
    trained(store, tmp_path / "run", "--steps=1")
    assert why in capfd.readouterr().err
    trained(letters, tmp_path / "other", "--steps=1")
    assert "cannot be exported" not in capfd.readouterr().err

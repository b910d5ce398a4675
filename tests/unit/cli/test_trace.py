"""llamita index and llamita trace, and --trace of run and chat: what they print, and one line for
whatever is wrong."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from llamita.cli import main
from llamita.data.token_store import TokenStore
from llamita.tokenizer import load_tokenizer

pytestmark = pytest.mark.usefixtures("engine_build")
LETTERS = "abcdefghijklmnopqrstuvwxyz"


@pytest.fixture(scope="module")
def store(story_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(shutil.copytree(story_store, tmp_path_factory.mktemp("trace") / "store"))


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    def call(*words: object) -> tuple[int, str, str]:
        code = main([str(word) for word in words])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


def sentence_of(store: Path, split: Any) -> str:
    """The first words of a document of this split alone."""
    tokenizer, part = load_tokenizer(store), TokenStore(store).split(split)
    return tokenizer.decode(part.document(0)[:40].tolist()).decode("utf-8", "ignore").split("\n")[0]


def test_index_then_trace(store: Path, run: Any) -> None:
    shutil.rmtree(store / "index", ignore_errors=True)
    code, out, err = run("trace", store, "Once upon a time")
    assert (code, out) == (2, "") and f"the store has no index; make one: llamita index {store}" in err
    code, out, err = run("index", store)
    assert code == 0 and f"{store / 'index'}: written in " in out and "bytes per token" in out
    assert "2 parts, at most" in err and "of memory" in err and "next: llamita trace" in out
    text = sentence_of(store, "train")
    code, out, err = run("trace", store, f"{text}.\nXyzzy plugh.", "--sources", 1)
    assert (code, err) == (0, "")
    assert f"[{text}" in out and "in the training text" in out and "stories, document " in out
    assert out.endswith("Xyzzy plugh.\n  not found\n")
    code, out, _ = run("trace", store, text, "--json")
    assert code == 0 and json.loads(out)[0]["spans"][0]["num_places"]["train"] >= 1


def test_held_out_text(store: Path, run: Any) -> None:
    run("index", store)
    _, out, _ = run("trace", store, sentence_of(store, "val"))
    assert "in held-out text" in out and "held out: stories, document " in out


def test_text_of_stdin(store: Path, run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    run("index", store)
    for raw, expected in ((b"Xyzzy.\n", 0), (b"\xff", 2), (b"", 2), (b"x" * (1 << 20) + b"x", 2)):
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(raw)))
        code, out, err = run("trace", store, "-")
        assert code == expected and bool(out) == (code == 0) and bool(err) == (code == 2), (raw[:9], err)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["trace"], "STORE"),
        (["trace", "S"], "TEXT"),
        (["trace", "S", " "], "expected a sentence, found nothing"),
        (["trace", "S", "x", "--min-bytes", "7"], "--min-bytes: expected 8 to 1,024, found 7"),
        (["trace", "S", "x", "--sources", "0"], "--sources: expected 1 to 64, found 0"),
        (["trace", "missing", "x"], "no such folder; make a store: llamita prepare"),
        (["index"], "STORE"),
        (["index", "missing"], "no such folder; make a store: llamita prepare"),
        (["index", "S", "--memory", "0"], "--memory: expected 1 to"),
        (["index", "."], "it has no store.json"),
        (["run", "--trace", "missing"], "cannot open store missing: no such folder"),
        (["serve", "--trace", "missing"], "cannot open store missing: no such folder"),
    ],
)
def test_wrong_words(
    store: Path, run: Any, words: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run("index", store)
    monkeypatch.chdir(tmp_path)
    code, out, err = run(*[str(store) if word == "S" else word for word in words])
    assert (code, out) == (2, "") and message in err and len(err.splitlines()) == 1


def test_run_with_trace(tiny_models: Any, tmp_path: Path, run: Any) -> None:
    """A model that says the alphabet, and a document that has it."""
    letters = [tiny_models.piece_id(letter) for letter in LETTERS]
    model = tiny_models.successor("trace_alphabet", {1: letters[0], **dict(pairwise([*letters, 2]))})
    texts = [
        f"The {LETTERS} are letters.",
        *(f"Number {number} is a number that nobody wrote." for number in range(99)),
    ]
    (tmp_path / "t.txt").write_text("\n".join(texts))
    options = ("--split-on", "lines", "--vocab-size", 270, "--val-fraction", "0.4")
    assert (
        run("prepare", tmp_path / "t.txt", "-o", tmp_path / "s", *options)[0] == 0
        and run("index", tmp_path / "s")[0] == 0
    )
    words = ("run", model.path, "-z", model.tokenizer, "--trace", tmp_path / "s", "-t", 0)
    code, out, err = run(*words, "-n", 40)
    assert code == 0, err
    assert LETTERS in out and f"trace in {tmp_path / 's'}:\n{LETTERS}\n" in err
    assert f"The [{LETTERS}] are letters." in err
    code, out, err = run(
        "run", model.path, "-z", model.tokenizer, "-t", 0, "-n", 5, "-N", 2, "-s", 1, "--trace", tmp_path / "s"
    )
    assert code == 0 and err.count("no sentence stands there") == 2


def test_chat_with_trace(make_chat_model: Any, store: Path, run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    run("index", store)
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"Hello\nAgain\n")))
    code, out, err = run("chat", make_chat_model("chatml").path, "-n", 4, "--trace", store)
    assert code == 0 and len(out.splitlines()) >= 2
    assert err.count(f"trace in {store}:\nno sentence stands there\n") == 2

"""--prompt-cache and Session.save: the same texts as without, in both programs, and files that are refused."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import llamita
from llamita.cli import main
from llamita.errors import EngineError

PROMPT = "abc abd abe abf abg abh abc abd abe"
SAMPLING = ("-t", "0.9", "-p", "1", "-s", "5", "-n", "9", "--repetition-penalty", "1.3")


@pytest.fixture(scope="module")
def tiny(tiny_models: Any) -> Any:
    return tiny_models.random(context=128)


@pytest.fixture
def run(run_both: Callable[..., Any], tiny: Any) -> Callable[..., Any]:
    return lambda *words, model=tiny: run_both(model, *SAMPLING, *words)


def test_save_and_load(tiny: Any, tmp_path: Path) -> None:
    ids = [1, 5, 6, 7, 8, 9]
    path = tmp_path / "session"
    with llamita.load(tiny.path) as model:
        with model.session() as session:
            session.feed(ids[:4])
            assert session.ids.tolist() == ids[:4] and session.ids.dtype == np.int32
            session.save(path)
            assert path.stat().st_mode & 0o777 == 0o600
            session.feed(ids[4:])
            expected = session.logits
        with model.session() as session:
            assert session.ids.tolist() == []
            with pytest.raises(EngineError, match="found none; feed it first"):
                session.save(path)
            session.load(path)
            assert session.ids.tolist() == ids[:4] and session.logits is None
            session.feed(ids[4:])
            assert expected is not None and session.logits is not None
            assert session.logits.tobytes() == expected.tobytes()
        with model.session(kv_type="f32") as session, pytest.raises(EngineError, match="in f32, found f16"):
            session.load(path)
    assert [each.name for each in tmp_path.iterdir()] == ["session"]


def test_same_text(run: Callable[..., Any], tmp_path: Path) -> None:
    """Without the file, when it is written, when it holds the whole prompt, and when it holds only the
    beginning: then it is not written again if that is three quarters."""
    path = tmp_path / "cache"
    plain = run("-i", PROMPT)
    assert plain.returncode == 0 and b"from the cache" not in plain.stderr
    for expected in (None, b" from the cache)"):
        done = run("-i", PROMPT, "--prompt-cache", path)
        assert (done.returncode, done.stdout) == (0, plain.stdout)
        assert b"from the cache" not in done.stderr if expected is None else expected in done.stderr
    written = path.read_bytes()
    for text, rewritten in ((PROMPT + "xy", False), (PROMPT[:-1] + "z", False), (PROMPT[:9] + "zyx" * 9, True)):
        done = run("-i", text, "--prompt-cache", path)
        assert done.stdout == run("-i", text).stdout and b" from the cache)" in done.stderr
        assert (path.read_bytes() != written) is rewritten
    assert [each.name for each in tmp_path.iterdir()] == ["cache"]


def test_files_of_either_program(engine_build: Path, tiny: Any, tmp_path: Path) -> None:
    """Each reads what the other wrote."""
    programs = ([sys.executable, "-m", "llamita", "run"], [str(engine_build / "run")])
    for first in (0, 1):
        path = tmp_path / str(first)
        for program in (programs[first], programs[1 - first]):
            words = [*program, str(tiny.path), "-z", str(tiny.tokenizer), *SAMPLING, "-i", PROMPT]
            done = subprocess.run([*words, "--prompt-cache", str(path)], capture_output=True, timeout=60, check=True)
        assert b"from the cache" in done.stderr


def test_refused(run: Callable[..., Any], tiny_models: Any, tmp_path: Path) -> None:
    path = tmp_path / "cache"
    assert run("-i", PROMPT, "--prompt-cache", path).returncode == 0
    good = path.read_bytes()

    def refused(words: str, *options: object, **which: Any) -> None:
        done = run("-i", PROMPT, "--prompt-cache", path, *options, **which)
        assert done.returncode == 2 and done.stdout == b"", done
        assert done.stderr.count(b"\n") == 1 and words in done.stderr.decode(), done.stderr

    refused("of this model", model=tiny_models.random(seed=77, context=128))
    refused("expected keys and values in q8, found f16", "--kv", "q8")
    done = run("-i", "ab", "-c", 12, "--prompt-cache", path)
    assert done.returncode == 2 and b"at most 12 tokens (the context)" in done.stderr
    for content, words in (
        (good[:-1], "cut short"),
        (good[:30], "cut short"),
        (b"", "is empty"),
        (b"hello" * 99, "another kind of file"),
        (good[:-40] + bytes([good[-40] ^ 4]) + good[-39:], "damaged"),
        (good[:8] + b"\x02" + good[9:], "expected version 1 of the prompt cache, found 2"),
    ):
        path.write_bytes(content)
        refused(words)
        assert path.read_bytes() == content  # a file that is refused stays
    path.unlink()
    path.mkdir()
    refused("expected a file, found a directory")


@pytest.mark.skipif(os.name == "nt", reason="makes a pipe")
def test_a_pipe_or_a_link_to_nothing_is_refused(run: Callable[..., Any], tmp_path: Path) -> None:
    pipe, link = tmp_path / "pipe", tmp_path / "link"
    os.mkfifo(pipe)
    link.symlink_to(tmp_path / "nothing")
    for path, words in ((pipe, b"found a device or a pipe"), (link, b"No such file or directory")):
        done = run("-i", PROMPT, "--prompt-cache", path)
        assert done.returncode == 2 and done.stdout == b"" and words in done.stderr, done
    assert link.is_symlink() and pipe.is_fifo()


def test_where_it_cannot_be_written(run: Callable[..., Any], tmp_path: Path) -> None:
    done = run("-i", PROMPT, "--prompt-cache", "")
    assert done.returncode == 2 and b"expected a file" in done.stderr
    done = run("-i", PROMPT, "--prompt-cache", tmp_path / "no" / "folder")
    assert done.returncode == 2 and b"cannot write" in done.stderr and b"there is no folder" in done.stderr
    assert done.stdout == b"" and b"tok/s" not in done.stderr, "it is said before the prompt is computed"


def test_only_for_one_text(tiny: Any, tmp_path: Path) -> None:
    words = ["run", str(tiny.path), "-z", str(tiny.tokenizer), "-N", "2", "--prompt-cache", str(tmp_path / "cache")]
    assert main(words) == 2
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("program", ["python", "program"])
def test_chats(make_chat_model: Callable[..., Any], engine_build: Path, tmp_path: Path, program: str) -> None:
    """A second chat starts from the system prompt of the first, with the same answers."""
    path, model = tmp_path / "cache", make_chat_model("chatml").path
    begin = [sys.executable, "-m", "llamita", "chat", model] if program == "python" else [engine_build / "run", model]
    words = [*map(str, begin), *(() if program == "python" else ("-m", "chat")), *SAMPLING, "-v", "-y", "Be kind. " * 9]
    for cache in ([], ["--prompt-cache", str(path)], ["--prompt-cache", str(path)]):
        done = subprocess.run([*words, *cache], input=b"One?\nTwo?\n", capture_output=True, timeout=60, check=True)
        if not cache:
            plain = done.stdout
        assert done.stdout == plain
    assert b"\nread 1 tokens" in done.stderr

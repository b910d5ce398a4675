"""Texts that fill the context (--context-full, --keep) and contexts beyond the trained one (--rope-scaling ...): in
both programs, in Python and in the server."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import llamita
from llamita.cli import main
from llamita.errors import EngineError
from llamita.sampling import RuntimeOptions

SHIFT = ("--context-full", "shift")
YARN = ("--rope-scaling", "yarn", "--rope-scale", "3")


@pytest.fixture(scope="module")
def tiny(tiny_models: Any) -> Any:
    return tiny_models.random()  # a context of 32


@pytest.fixture(scope="module")
def endless(tiny_models: Any) -> Any:
    """Greedily repeats 日🦙 byte by byte."""
    ids = [tiny_models.byte_id(b) for b in "日🦙".encode()]
    return tiny_models.successor("endless-shift", dict(pairwise([1, *ids, ids[0]])), context=40)


@pytest.fixture
def run(run_both: Callable[..., Any], tiny: Any) -> Callable[..., Any]:
    return lambda *words, model=tiny: run_both(model, "-j", "1", *words)


def test_endless_text(run: Callable[..., Any], endless: Any) -> None:
    """Over 30 full contexts the text goes on as if there were none; a full context alone ends it."""
    done = run("-t", 0, "-n", 700, "-i", "", *SHIFT, model=endless)
    assert (done.returncode, done.stdout.decode()) == (0, "日🦙" * 100 + "\n")
    assert b"generated 700 tokens" in done.stderr
    for words in ([], ["--context-full", "stop"]):
        done = run("-t", 0, "-n", 0, "-i", "", *words, model=endless)
        assert done.stdout.decode().startswith("日🦙" * 5) and b"generated 40 tokens" in done.stderr


@pytest.mark.parametrize("keep", [(), ("--keep", 3), ("--keep", -1), ("--keep", 1000)])
def test_same_text_as_in_python(run: Callable[..., Any], tiny: Any, keep: tuple[object, ...]) -> None:
    """And as a session of its own for each token gives, which is the slow way."""
    prompt, count = "abcdef", 60
    done = run("-i", prompt, "-n", count, "-t", 0, "--repetition-penalty", 1.2, *SHIFT, *keep)
    number = int(keep[1]) if keep else 0  # type: ignore[call-overload]
    with llamita.load(tiny.path, tokenizer=tiny.tokenizer) as model:
        sampling = llamita.SamplingParams(temperature=0, repetition_penalty=1.2, seed=1)
        text = model.generate(prompt, sampling, max_new_tokens=count, context_full="shift", keep=number)
        pieces = "".join(text)
        num_kept = len(text.prompt_ids) if number < 0 else min(len(text.prompt_ids), number + 1)
        held = list(text.prompt_ids)
        new: list[int] = []
        sampler = llamita.engine.Sampler(model.info.vocab_size, sampling, model=model)
        for token_id in held:
            sampler.accept(token_id)
        while len(new) < count and not (new and model.token_ends(new[-1])):
            with model.session() as session:
                session.feed(held)
                assert session.logits is not None
                new.append(sampler.pick(session.logits))
            sampler.accept(new[-1])
            if len(held) == 32:
                del held[num_kept : num_kept + (32 - num_kept) // 2]
            held.append(new[-1])
        ended = model.token_ends(new[-1])
        assert text.num_new_tokens == len(new) - ended > 32 and len(text.ids) <= 33
        assert text.ids == new[: len(new) - ended][-len(text.ids) :]
    assert done.stdout.decode("utf-8", "replace") == prompt + pieces + "\n"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--context-full", "roll"], "--context-full: expected one of stop"),
        (["--keep", "3"], "--keep: only with --context-full shift"),
        (["--keep", "0", "--context-full", "stop"], "--keep: only with --context-full shift"),
        ([*SHIFT, "--keep", "-2"], "--keep: expected "),
        ([*SHIFT, "--keep", "x"], "--keep: expected a whole number"),
        ([*SHIFT, "-i", "a" * 100], "expected at most 32 tokens (the context)"),
        (["--rope-scaling", "cubic"], "--rope-scaling: expected one of none"),
        (["--rope-scale", "0.5"], "--rope-scale: expected "),
        (["--rope-scale", "nan"], "--rope-scale: expected "),
        (["--rope-scale", "1e9"], "--rope-scale: expected "),
        (["--rope-freq-base", "-1"], "--rope-freq-base: expected "),
        (["--yarn-orig-ctx", "-5"], "--yarn-orig-ctx: expected "),
        (["--yarn-orig-ctx", "99999999"], "--yarn-orig-ctx: expected "),
        (["--yarn-orig-ctx", "16"], "yarn_orig_ctx: expected rope_scaling yarn with it, found none"),
        (["--rope-scaling", "none", "--rope-scale", "2"], "rope_scale: expected 0 with rope_scaling none, found 2"),
        (["--rope-scaling", "ntk"], "rope_scale: expected a number with rope_scaling ntk"),
        ([*YARN, "-c", "97"], "context_tokens: expected 0 (the model's) to 96 (with these RoPE parameters), found 97"),
        (["-c", "33"], "32"),
    ],
)
def test_refused(run: Callable[..., Any], words: list[str], message: str) -> None:
    done = run(*words)
    assert done.returncode == 2 and done.stdout == b"", done
    assert done.stderr.count(b"\n") == 1 and message in done.stderr.decode(), done.stderr


@pytest.mark.skipif(sys.platform != "linux", reason="counts the pages of a process")
def test_memory_is_constant(engine_build: Path, endless: Any) -> None:
    """Some 200 full contexts later, the program needs no more than after the first ones."""
    command = [engine_build / "run", endless.path, "-z", endless.tokenizer, "-i", "", "-t", 0, "-j", 1, *SHIFT, "-n", 0]
    kilobytes = []
    with subprocess.Popen(list(map(str, command)), stdout=subprocess.PIPE) as program:
        for num_bytes in (200, 7_000):
            assert len(program.stdout.read(num_bytes)) == num_bytes  # type: ignore[union-attr]
            # Of the program alone: ru_maxrss begins with that of the process that started it.
            status = Path(f"/proc/{program.pid}/status").read_text()
            kilobytes.append(int(re.search(r"VmHWM:\s+(\d+)", status)[1]))  # type: ignore[index]
        program.kill()
    assert kilobytes[1] < kilobytes[0] + 1000, kilobytes


@pytest.mark.skipif(os.name == "nt", reason="sends SIGINT")
@pytest.mark.parametrize("program", ["python", "program"])
def test_control_c(engine_build: Path, endless: Any, program: str) -> None:
    begin = [sys.executable, "-m", "llamita", "run"] if program == "python" else [engine_build / "run"]
    command = [*begin, endless.path, "-z", endless.tokenizer, "-i", "", "-t", 0, "-j", 1, *SHIFT, "-n", 0]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(list(map(str, command)), **pipes) as running:  # type: ignore[call-overload]
        assert len(running.stdout.read(1400)) == 1400  # 40 full contexts
        running.send_signal(signal.SIGINT)
        text, status = running.communicate(timeout=30)
    assert running.returncode == 130 and status.startswith(b"stopped by Ctrl-C") and text.endswith(b"\n")


def test_only_for_one_text(tiny: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", str(tiny.path), "-z", str(tiny.tokenizer), "-N", "2", *SHIFT]) == 2
    assert "--context-full shift: only for one text, without -N" in capsys.readouterr().err


def test_not_in_a_chat(engine_build: Path, tiny: Any) -> None:
    command = [str(engine_build / "run"), str(tiny.path), "-m", "chat", *SHIFT]
    done = subprocess.run(command, capture_output=True, timeout=60, check=False)
    assert done.returncode == 2 and b"--context-full: not in a chat" in done.stderr


def test_refused_in_python(tiny: Any) -> None:
    with llamita.load(tiny.path, tokenizer=tiny.tokenizer) as model:
        for options, message in (
            ({"context_full": "roll"}, "context_full: expected stop or shift, found 'roll'"),
            ({"keep": 2}, "keep: expected -1 .all. or more with context_full='shift', else 0, found 2"),
            ({"keep": -2, "context_full": "shift"}, "keep: expected -1"),
            ({"rope_scaling": "cubic"}, "rope_scaling: expected one of none, linear, ntk, yarn"),
            ({"rope_scale": float("nan")}, "rope_scale: expected 1 to 10000"),
            ({"yarn_orig_ctx": 2**40}, "yarn_orig_ctx: expected a number of 32 bits"),
        ):
            with pytest.raises(EngineError, match=message):
                model.generate("a", **options)


def test_beyond_the_trained_context(run: Callable[..., Any], tiny: Any) -> None:
    """Both programs and a session give the same; each scaling gives another text, and -N the same as alone."""
    prompt, texts = "abcdefghij", set()
    ropes: list[dict[str, Any]] = [
        {"rope_scaling": "none"}, {"rope_scaling": "linear", "rope_scale": 3}, {"rope_scaling": "ntk", "rope_scale": 3},
        {"rope_scaling": "yarn", "rope_scale": 3}, {"rope_scaling": "yarn", "rope_scale": 6, "yarn_orig_ctx": 16},
        {"rope_freq_base": 500},
    ]  # fmt: skip
    for rope in ropes:
        words = [each for name, value in rope.items() for each in ("--" + name.replace("_", "-"), value)]
        options = ["-c", 90, "-t", 0.9, "-p", 1, "-s", 7, "-n", 50, "-i", prompt]
        done = run(*options, *words)
        with llamita.load(tiny.path, tokenizer=tiny.tokenizer) as model:
            expected = "".join(
                model.generate(prompt, max_new_tokens=50, seed=7, temperature=0.9, top_p=1, context_tokens=90, **rope)
            )
        assert done.stdout.decode("utf-8", "replace") == prompt + expected + "\n", rope
        texts.add(expected)
    assert len(texts) == len(ropes)


def test_several_texts(tiny: Any, capfd: pytest.CaptureFixture[str]) -> None:
    words = ["-z", str(tiny.tokenizer), *YARN, "-c", "90", "-n", "60", "-i", "abc"]
    assert main(["run", str(tiny.path), *words, "-s", "4"]) == 0
    alone = capfd.readouterr().out.strip()
    assert main(["run", str(tiny.path), *words, "-s", "3", "-N", "2"]) == 0
    assert capfd.readouterr().out.strip().endswith(alone)


def test_server(tiny: Any) -> None:
    """The scheduler computes with the same RoPE; its context is the longer one."""
    with llamita.load(tiny.path, tokenizer=tiny.tokenizer) as model:
        runtime = RuntimeOptions(num_threads=1, rope_scaling="yarn", rope_scale=3, context_tokens=90)
        ids = [1 + i % 60 for i in range(80)]
        with model.session(runtime) as session:
            session.feed(ids)
            assert session.logits is not None
            best = int(session.logits.argmax())
        with llamita.engine.Scheduler(model, runtime, num_parallel=2) as scheduler:
            assert scheduler.context_tokens == 90
            greedy = llamita.SamplingParams(temperature=0, seed=1)
            scheduler.submit(llamita.engine.Request(ids, 1, greedy, top_logprobs=0))
            events: list[llamita.engine.Event] = []
            while not any(event.kind == "end" for event in events):
                events += scheduler.step()
            assert events[0].id in (best, -1)
            with pytest.raises(EngineError, match="at most 90 tokens"):
                scheduler.submit(llamita.engine.Request(ids[:1] * 91, 1, greedy))


@pytest.mark.parametrize("command", ["serve", "chat"])
def test_refused_at_the_start(command: str, make_chat_model: Callable[..., Any], capsys: Any) -> None:
    pytest.importorskip("uvicorn")
    pytest.importorskip("starlette")
    for words, message in (
        (["--rope-scaling", "ntk"], "rope_scale: expected a number with rope_scaling ntk"),
        (["--rope-scaling", "yarn", "--rope-scale", "2", "-c", "100000"], "(with these RoPE parameters), found 100000"),
        (["--rope-scale", "0.1"], "--rope-scale: expected 1 to 10,000, or 0 (the model's), found 0.1"),
    ):
        assert main([command, str(make_chat_model("chatml").path), *words]) == 2
        printed = capsys.readouterr().err
        assert message in printed and printed.count("\n") == 1, printed


def test_saved_sessions(tiny: Any, tmp_path: Path) -> None:
    """A file belongs to its RoPE."""
    with llamita.load(tiny.path, tokenizer=tiny.tokenizer) as model:
        with model.session(rope_scaling="ntk", rope_scale=2) as session:
            session.feed([1, 5, 6])
            session.save(tmp_path / "cache")
            session.feed([7])
            expected = session.logits
        with model.session(rope_scaling="ntk", rope_scale=2) as session:
            session.load(tmp_path / "cache")
            session.feed([7])
            assert np.array_equal(session.logits, expected)  # type: ignore[arg-type]
        with model.session() as session, pytest.raises(EngineError, match="RoPE settings"):
            session.load(tmp_path / "cache")

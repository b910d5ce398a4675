"""Commands on stdin to seconds and bytes on stdout: one side of a comparison, alone in its process with one model.

    python bench_worker.py engine|llama_cpp

A line of JSON asks, a line of JSON answers: {"do": "decode", ...} → {"cost": seconds}, or {"error": "one line"}.
Seconds are taken inside, around calls of C functions through ctypes whose arguments have been prepared: a token costs
both sides the same microsecond or two of Python. Ids are fixed: nothing is picked, no id ends a run.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

import llamita
from llamita import engine
from llamita.engine import library as engine_library

FIRST_TOKEN_IDS = 8  # a short prompt: what the time to the first token is taken with
UNTIMED_TOKENS = 2  # before each measured run, so that threads are awake
BATCH_CONTEXT_TOKENS = 256  # of each sequence
FIRST_ID = 259  # of words: the vocabulary's special tokens and bytes come before it


class Runner(Protocol):
    """What a side can do. Each returns the seconds it took; setting = {"threads": n, ...}."""

    def load(self, path: str) -> None: ...

    def describe(self) -> dict[str, Any]: ...

    def first_token(self, path: str, setting: dict[str, Any]) -> float: ...

    def decode(self, depth: int, num_tokens: int, setting: dict[str, Any]) -> float: ...

    def prompt(self, num_tokens: int, setting: dict[str, Any]) -> float: ...

    def batch(self, num_sequences: int, depth: int, num_tokens: int, setting: dict[str, Any]) -> float: ...

    def sample(self, num_picks: int, setting: dict[str, Any]) -> float: ...


def fixed_ids(num_tokens: int, vocab_size: int) -> NDArray[np.int32]:
    """The same ids for both sides: the position, scrambled (Murmur's finaliser), so that nothing in them is repeated
    and nobody can guess what comes next. No generator of NumPy's: importing those takes longer than some starts."""
    scrambled = np.arange(1, num_tokens + 1, dtype=np.uint32)
    for multiplier in (0x85EBCA6B, 0xC2B2AE35):
        scrambled ^= scrambled >> np.uint32(16)
        scrambled *= np.uint32(multiplier)
    scrambled ^= scrambled >> np.uint32(16)
    ids: NDArray[np.int32] = (FIRST_ID + scrambled % np.uint32(vocab_size - FIRST_ID)).astype(np.int32)
    return ids


KERNELS_VARIABLE = "LLAMITA_BENCH_KERNELS"  # how bench.py tells our side which kernels to use


def peaked_logits(vocab_size: int) -> NDArray[np.float32]:
    """As a trained model's: about a hundred of 32,000 tokens hold 90 % (normal, with a deviation of 4)."""
    return np.random.default_rng(7).normal(0, 4, vocab_size).astype(np.float32)


class Engine:
    """Our side, through the engine's own library."""

    def __init__(self) -> None:
        self._library = engine_library.load_library()
        self._sessions: dict[int, engine.Session] = {}
        self._batches: dict[tuple[int, int], engine.Session] = {}
        self._error = ctypes.byref(engine_library.ErrorStruct())

    def load(self, path: str) -> None:
        self._model = llamita.load(path, kernels=os.environ.get(KERNELS_VARIABLE))
        self._ids = fixed_ids(self._model.info.context_tokens, self._model.info.vocab_size)
        self._pointers = [self._ids[i:].ctypes.data_as(engine_library.ids_pointer) for i in range(len(self._ids))]

    def describe(self) -> dict[str, Any]:
        with self._model.session() as session:
            threads = session.num_threads
        info = self._model.info
        return {"version": engine.version(), "kernels": info.kernels, "threads": threads,
                "decode_bytes": info.decode_bytes, "context_tokens": info.context_tokens}  # fmt: skip

    def _session(self, setting: dict[str, Any]) -> engine.Session:
        threads = int(setting["threads"])
        if threads not in self._sessions:
            self._sessions[threads] = self._model.session(num_threads=threads)
        return self._sessions[threads]

    def _feed(self, session: engine.Session, first: int, num_tokens: int) -> None:
        status = self._library.llamita_session_feed(session._handle, self._pointers[first], num_tokens, self._error)
        assert status == 0, f"the engine says {status}"

    def first_token(self, path: str, setting: dict[str, Any]) -> float:
        start = time.perf_counter()
        self._model = llamita.load(path, kernels=os.environ.get(KERNELS_VARIABLE))
        session = self._session(setting)
        session.feed(fixed_ids(FIRST_TOKEN_IDS, self._model.info.vocab_size))
        return time.perf_counter() - start

    def decode(self, depth: int, num_tokens: int, setting: dict[str, Any]) -> float:
        session = self._session(setting)
        session.rewind(min(depth, session.position))
        if session.position < depth:
            self._feed(session, session.position, depth - session.position)
        for position in range(depth, depth + UNTIMED_TOKENS):
            self._feed(session, position, 1)
        feed, handle, error = self._library.llamita_session_feed, session._handle, self._error
        pointers = self._pointers[session.position : session.position + num_tokens]
        start = time.perf_counter()
        for pointer in pointers:
            feed(handle, pointer, 1, error)
        seconds = time.perf_counter() - start
        assert session.position == depth + UNTIMED_TOKENS + num_tokens
        return seconds

    def prompt(self, num_tokens: int, setting: dict[str, Any]) -> float:
        session = self._session(setting)
        session.rewind(0)
        start = time.perf_counter()
        self._feed(session, 0, num_tokens)
        return time.perf_counter() - start

    def batch(self, num_sequences: int, depth: int, num_tokens: int, setting: dict[str, Any]) -> float:
        key = (int(setting["threads"]), num_sequences)
        if key not in self._batches:
            context_tokens = min(BATCH_CONTEXT_TOKENS, self._model.info.context_tokens)
            self._batches[key] = self._model.session(
                num_threads=key[0], num_sequences=num_sequences, context_tokens=context_tokens
            )
        session = self._batches[key]
        for i in range(num_sequences):
            session.sequence_rewind(i, min(depth, session.sequence_position(i)))
        filled = session.sequence_position(0)
        rows = [self._row(num_sequences, position) for position in range(filled, depth + UNTIMED_TOKENS + num_tokens)]
        for row in rows[:-num_tokens]:
            session.decode(row)
        start = time.perf_counter()
        for row in rows[-num_tokens:]:
            session.decode(row)
        seconds = time.perf_counter() - start
        assert session.sequence_position(num_sequences - 1) == depth + UNTIMED_TOKENS + num_tokens
        return seconds

    def _row(self, num_sequences: int, position: int) -> list[tuple[int, NDArray[np.int32], int]]:
        """One token of every sequence, at the same position; logits of all."""
        start = [(position + i) % len(self._ids) for i in range(num_sequences)]
        return [(i, self._ids[start[i] : start[i] + 1], 1) for i in range(num_sequences)]

    def sample(self, num_picks: int, setting: dict[str, Any]) -> float:
        logits = peaked_logits(self._model.info.vocab_size)
        sampler = engine.Sampler(logits.size, temperature=1.0, top_p=0.9, seed=7)
        pointer, picked = logits.ctypes.data_as(engine_library.floats_pointer), ctypes.c_int32()
        pick, out = self._library.llamita_sampler_pick, ctypes.byref(picked)
        handle, error = sampler._handle, self._error
        pick(handle, pointer, out, error)
        start = time.perf_counter()
        for _ in range(num_picks):
            pick(handle, pointer, out, error)
        return time.perf_counter() - start


# ---------------------------------------------------------------- the conversation


def memory_bytes(field: str) -> int:
    """A field of /proc/self/status, such as VmHWM."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise OSError(f"/proc/self/status has no {field}")


def answer(runner: Runner, asked: dict[str, Any]) -> dict[str, Any]:
    """One command's answer. repeats: the cost is the mean of so many in a row. memory: the peak while a model answers a
    prompt, less what the process had before."""
    do, setting = asked.pop("do"), asked.get("setting", {})
    if do == "describe":
        return runner.describe()
    if do == "load":
        runner.load(asked["path"])
        return runner.describe()
    if do == "memory":
        before = memory_bytes("VmRSS")
        runner.load(asked["path"])
        runner.prompt(asked["num_tokens"], setting)
        return {"cost": memory_bytes("VmHWM") - before}
    method: Callable[..., float] = getattr(runner, do)
    repeats = asked.pop("repeats", 1)
    return {"cost": sum(method(**asked) for _ in range(repeats)) / repeats}


@contextlib.contextmanager
def silent_stdout() -> Any:
    """A file for the answers, while whatever a library prints goes to stderr."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    yield answers
    answers.close()


def one_line(error: Exception) -> str:
    """The answer that says what went wrong."""
    told = str(error) or type(error).__name__
    return json.dumps({"error": " ".join(told.split())})


def make_runner(side: str) -> Runner:
    if side == "engine":
        return Engine()
    from bench_peer import LlamaCpp

    return LlamaCpp()


def main() -> None:
    with silent_stdout() as answers:
        try:
            runner = make_runner(sys.argv[1])
        except Exception as error:
            print(one_line(error), file=answers, flush=True)
            return
        print(json.dumps({"ready": True}), file=answers, flush=True)
        for line in sys.stdin:
            try:
                found = json.dumps(answer(runner, json.loads(line)))
            except Exception as error:
                found = one_line(error)
            print(found, file=answers, flush=True)


if __name__ == "__main__":
    main()

"""What `make bench` compares: our engine and llama.cpp in worker processes, and the programs run.c
and read_memory.c.

    python benchmarks/backends.py engine|llama.cpp [KERNELS]

runs a worker: it reads requests such as {"do": "decode", ...} and answers {"cost": seconds} or
{"error": "one line"}. Time is taken around C functions called through ctypes with prepared
arguments; the call costs both sides the same microsecond or two per token. Token ids are fixed:
nothing is sampled, and no id ends a run.
"""

from __future__ import annotations

import ctypes
import functools
import importlib.util
import json
import os
import re
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from measure import BenchmarkError, Worker, open_replies, peak_memory_bytes, status_bytes
from numpy.typing import NDArray

import llamita
from llamita import engine
from llamita.engine import library as engine_library

ROOT = Path(__file__).resolve().parents[1]
RUN_C_FLAGS = ("-Ofast", "-march=native", "-fopenmp")
READ_MEMORY_FLAGS = ("-std=gnu11", "-O3", "-march=native", "-fopenmp")

FIRST_TOKEN_IDS = 8  # prompt length for the time to the first token
UNTIMED_TOKENS = 2  # decoded before each measurement, to wake the threads
BATCH_CONTEXT_TOKENS = 256  # per sequence
MAX_BATCH_TOKENS = 512  # llama.cpp's n_batch and n_ubatch
FIRST_WORD_ID = 259  # special tokens and bytes come before it

Setting = dict[str, Any]  # {"threads": 2}, for llama.cpp {"threads": 2, "flash": True}


def fixed_ids(num_tokens: int, vocab_size: int) -> NDArray[np.int32]:
    """The same ids for both sides: positions hashed (Murmur's finalizer), so that speculation
    cannot guess them.

    np.random is not used: importing it takes longer than starting a small model.
    """
    hashed = np.arange(1, num_tokens + 1, dtype=np.uint32)
    for multiplier in (0x85EBCA6B, 0xC2B2AE35):
        hashed ^= hashed >> np.uint32(16)
        hashed *= np.uint32(multiplier)
    hashed ^= hashed >> np.uint32(16)
    ids: NDArray[np.int32] = (FIRST_WORD_ID + hashed % np.uint32(vocab_size - FIRST_WORD_ID)).astype(np.int32)
    return ids


def peaked_logits(vocab_size: int) -> NDArray[np.float32]:
    """Like a trained model's: about a hundred of 32,000 tokens hold 90 %."""
    return np.random.default_rng(7).normal(0, 4, vocab_size).astype(np.float32)


class Engine:
    """Our engine, through its shared library. Timed methods return seconds."""

    def __init__(self, kernels: str | None = None) -> None:
        self._kernels = kernels
        self._library = engine_library.load_library()
        self._sessions: dict[tuple[int, int], engine.Session] = {}
        self._error = ctypes.byref(engine_library.ErrorStruct())

    def info(self) -> dict[str, Any]:
        return {"name": f"llamita {engine.version()}, kernels {self._kernels or engine.kernels()}"}

    def load(self, path: str) -> dict[str, Any]:
        self._model = llamita.load(path, kernels=self._kernels)
        info = self._model.info
        self._ids = fixed_ids(info.context_tokens, info.vocab_size)
        self._pointers = [self._ids[i:].ctypes.data_as(engine_library.ids_pointer) for i in range(len(self._ids))]
        with self._model.session() as session:
            return {"threads": session.num_threads, "decode_bytes": info.decode_bytes}

    def _session(self, setting: Setting, num_sequences: int = 1) -> engine.Session:
        key = (int(setting["threads"]), num_sequences)
        if key not in self._sessions:
            context = 0 if num_sequences == 1 else min(BATCH_CONTEXT_TOKENS, self._model.info.context_tokens)
            self._sessions[key] = self._model.session(
                num_threads=key[0], num_sequences=num_sequences, context_tokens=context
            )
        return self._sessions[key]

    def _feed(self, session: engine.Session, first: int, num_tokens: int) -> None:
        status = self._library.llamita_session_feed(session._handle, self._pointers[first], num_tokens, self._error)
        assert status == 0, f"llamita_session_feed returned {status}"

    def first_token(self, path: str, setting: Setting) -> float:
        start = time.perf_counter()
        self._model = llamita.load(path, kernels=self._kernels)
        self._session(setting).feed(fixed_ids(FIRST_TOKEN_IDS, self._model.info.vocab_size))
        return time.perf_counter() - start

    def decode(self, depth: int, num_tokens: int, setting: Setting) -> float:
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

    def prompt(self, num_tokens: int, setting: Setting) -> float:
        session = self._session(setting)
        session.rewind(0)
        start = time.perf_counter()
        self._feed(session, 0, num_tokens)
        return time.perf_counter() - start

    def batch(self, num_sequences: int, depth: int, num_tokens: int, setting: Setting) -> float:
        session = self._session(setting, num_sequences)
        for i in range(num_sequences):
            session.sequence_rewind(i, min(depth, session.sequence_position(i)))
        first = session.sequence_position(0)
        batches = [self._batch(num_sequences, first + i) for i in range(depth + UNTIMED_TOKENS + num_tokens - first)]
        for batch in batches[:-num_tokens]:
            session.decode(batch)
        start = time.perf_counter()
        for batch in batches[-num_tokens:]:
            session.decode(batch)
        seconds = time.perf_counter() - start
        assert session.sequence_position(num_sequences - 1) == depth + UNTIMED_TOKENS + num_tokens
        return seconds

    def _batch(self, num_sequences: int, position: int) -> list[tuple[int, NDArray[np.int32], int]]:
        """One token of every sequence at the same position, with logits."""
        first = [(position + i) % len(self._ids) for i in range(num_sequences)]
        return [(i, self._ids[first[i] : first[i] + 1], 1) for i in range(num_sequences)]

    def sample(self, num_picks: int, setting: Setting) -> float:
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


def has_llama_cpp() -> bool:
    """Whether llama-cpp-python is installed."""
    return importlib.util.find_spec("llama_cpp") is not None


@functools.cache
def silence_llama_cpp() -> object:
    """Turn its log off. The cache keeps the callback alive, because llama.cpp keeps a pointer to
    it."""
    import llama_cpp

    ignore = llama_cpp.llama_log_callback(lambda level, text, data: None)
    llama_cpp.llama_log_set(ignore, ctypes.c_void_p(0))
    return ignore


class LlamaCpp:
    """llama.cpp on the CPU, through the ctypes functions of llama-cpp-python.

    Its defaults: F16 cache, batches of 512, repacked weights.
    """

    def __init__(self) -> None:
        import llama_cpp

        self.api = llama_cpp
        silence_llama_cpp()
        llama_cpp.llama_backend_init()
        self._contexts: dict[tuple[bool, int], Any] = {}
        self._positions: dict[int, int] = {}  # context → tokens in each of its sequences

    def info(self) -> dict[str, Any]:
        system = self.api.llama_print_system_info().decode().strip()
        return {"name": f"llama.cpp (llama-cpp-python {version('llama-cpp-python')})", "system": system}

    def load(self, path: str) -> dict[str, Any]:
        parameters = self.api.llama_model_default_params()
        parameters.n_gpu_layers = 0
        self.model = self.api.llama_model_load_from_file(path.encode(), parameters)
        assert self.model, f"llama.cpp cannot load {path}"
        self._context_tokens = min(1024, self.api.llama_model_n_ctx_train(self.model))
        self.vocab_size = self.api.llama_vocab_n_tokens(self.api.llama_model_get_vocab(self.model))
        ids = fixed_ids(self._context_tokens, self.vocab_size)
        self._ids = (ctypes.c_int32 * len(ids))(*ids.tolist())
        return {}

    def new_context(self, context_tokens: int, batch_tokens: int, threads: int, **fields: Any) -> Any:
        parameters = self.api.llama_context_default_params()
        parameters.n_ctx, parameters.no_perf = context_tokens, True
        parameters.n_batch = parameters.n_ubatch = batch_tokens
        parameters.n_threads = parameters.n_threads_batch = threads
        for name, value in fields.items():
            setattr(parameters, name, value)
        context = self.api.llama_init_from_model(self.model, parameters)
        assert context, f"llama.cpp cannot make a context of {context_tokens} tokens"
        return context

    def _context(self, setting: Setting, num_sequences: int = 1) -> Any:
        flash, threads = bool(setting["flash"]), int(setting["threads"])
        key = (flash, num_sequences)
        if key not in self._contexts:
            size = self._context_tokens if num_sequences == 1 else BATCH_CONTEXT_TOKENS * num_sequences
            context = self.new_context(
                size, MAX_BATCH_TOKENS, threads, n_seq_max=num_sequences, flash_attn_type=int(flash)
            )
            self._contexts[key], self._positions[context] = context, 0
        self.api.llama_set_n_threads(self._contexts[key], threads, threads)
        return self._contexts[key]

    def _rewind(self, context: Any, num_tokens: int) -> None:
        done = self.api.llama_memory_seq_rm(self.api.llama_get_memory(context), -1, num_tokens, -1)
        assert done, "llama.cpp cannot rewind"
        self._positions[context] = min(self._positions[context], num_tokens)

    def _ids_batch(self, first: int, num_tokens: int) -> Any:
        pointer = ctypes.cast(ctypes.byref(self._ids, 4 * first), ctypes.POINTER(ctypes.c_int32))
        return self.api.llama_batch_get_one(pointer, num_tokens)

    def _feed(self, context: Any, num_tokens: int) -> None:
        self._run(context, self._ids_batch(self._positions[context], num_tokens))
        self._positions[context] += num_tokens

    def _run(self, context: Any, batch: Any) -> None:
        status = self.api.llama_decode(context, batch)
        assert status == 0, f"llama_decode returned {status}"
        self.api.llama_get_logits(context)

    def first_token(self, path: str, setting: Setting) -> float:
        start = time.perf_counter()
        self.load(path)
        self._feed(self._context(setting), FIRST_TOKEN_IDS)
        return time.perf_counter() - start

    def decode(self, depth: int, num_tokens: int, setting: Setting) -> float:
        context = self._context(setting)
        self._rewind(context, depth)
        if self._positions[context] < depth:
            self._feed(context, depth - self._positions[context])
        for _ in range(UNTIMED_TOKENS):
            self._feed(context, 1)
        decode, logits = self.api.llama_decode, self.api.llama_get_logits
        batches = [self._ids_batch(self._positions[context] + i, 1) for i in range(num_tokens)]
        start = time.perf_counter()
        for batch in batches:
            decode(context, batch)
            logits(context)
        seconds = time.perf_counter() - start
        self._positions[context] += num_tokens
        return seconds

    def prompt(self, num_tokens: int, setting: Setting) -> float:
        context = self._context(setting)
        self._rewind(context, 0)
        start = time.perf_counter()
        self._feed(context, num_tokens)
        return time.perf_counter() - start

    def batch(self, num_sequences: int, depth: int, num_tokens: int, setting: Setting) -> float:
        context = self._context(setting, num_sequences)
        self._rewind(context, depth)
        positions = range(self._positions[context], depth + UNTIMED_TOKENS + num_tokens)
        batches = [self._batch(num_sequences, position) for position in positions]
        for batch in batches[:-num_tokens]:
            self._run(context, batch)
        start = time.perf_counter()
        for batch in batches[-num_tokens:]:
            self._run(context, batch)
        seconds = time.perf_counter() - start
        self._positions[context] = depth + UNTIMED_TOKENS + num_tokens
        for batch in batches:
            self.api.llama_batch_free(batch)
        return seconds

    def _batch(self, num_sequences: int, position: int) -> Any:
        """One token of every sequence at the same position, with logits."""
        batch = self.api.llama_batch_init(num_sequences, 0, 1)
        batch.n_tokens = num_sequences
        for i in range(num_sequences):
            batch.token[i] = self._ids[(position + i) % self._context_tokens]
            batch.pos[i], batch.n_seq_id[i], batch.logits[i] = position, 1, 1
            batch.seq_id[i][0] = i
        return batch

    def sample(self, num_picks: int, setting: Setting) -> float:
        """Its samplers change an array of (id, logit, probability), so each pick starts from a
        copy.

        The copy is faster than the loop over the logits in llama_sampler_sample.
        """
        api, size = self.api, self.vocab_size
        entries = np.zeros(size, dtype=[("id", "<i4"), ("logit", "<f4"), ("p", "<f4")])
        entries["id"], entries["logit"] = np.arange(size), peaked_logits(size)
        buffer = (api.llama_token_data * size)()
        tokens = api.llama_token_data_array(ctypes.cast(buffer, ctypes.POINTER(api.llama_token_data)), size, -1, False)
        chain = api.llama_sampler_chain_init(api.llama_sampler_chain_default_params())
        api.llama_sampler_chain_add(chain, api.llama_sampler_init_top_p(0.9, 1))
        api.llama_sampler_chain_add(chain, api.llama_sampler_init_dist(7))
        source, num_bytes, data = entries.ctypes.data, entries.nbytes, tokens.data

        def pick() -> None:
            ctypes.memmove(buffer, source, num_bytes)
            tokens.data, tokens.size, tokens.selected, tokens.sorted = data, size, -1, False
            api.llama_sampler_apply(chain, ctypes.byref(tokens))

        pick()
        start = time.perf_counter()
        for _ in range(num_picks):
            pick()
        seconds = time.perf_counter() - start
        api.llama_sampler_free(chain)
        return seconds


# ---------------------------------------------------------------- workers


def start_worker(name: str, path: Path | None = None, kernels: str | None = None) -> Worker:
    """A worker of "engine" or "llama.cpp", with the model loaded if a path is given."""
    # NumPy's OpenBLAS threads spin for 0.1 s after the import, and would slow down a new worker.
    command = [sys.executable, __file__, name, *([kernels] if kernels else [])]
    worker = Worker(name, command, {"OPENBLAS_NUM_THREADS": "1"}, quiet=True)
    if path is not None:
        worker.info |= worker.ask(do="load", path=str(path))
    return worker


def answer(backend: Engine | LlamaCpp, request: dict[str, Any]) -> dict[str, Any]:
    """repeats: return the mean of that many measurements. memory: peak memory above what the
    process had before."""
    do = request.pop("do")
    if do == "load":
        return backend.load(request["path"])
    if do == "memory":
        before = status_bytes("VmRSS")
        backend.load(request["path"])
        backend.prompt(request["num_tokens"], request["setting"])
        return {"cost": peak_memory_bytes() - before}
    repeats = request.pop("repeats", 1)
    return {"cost": sum(getattr(backend, do)(**request) for _ in range(repeats)) / repeats}


def main() -> None:
    reply = open_replies()
    try:
        backend: Engine | LlamaCpp = Engine(*sys.argv[2:]) if sys.argv[1] == "engine" else LlamaCpp()
        reply(backend.info())
    except Exception as error:
        return reply(one_line(error))
    for line in sys.stdin:
        try:
            reply(answer(backend, json.loads(line)))
        except Exception as error:
            reply(one_line(error))


def one_line(error: Exception) -> dict[str, str]:
    return {"error": " ".join((str(error) or type(error).__name__).split())}


# ---------------------------------------------------------------- C programs


def compile_c(source: Path, flags: tuple[str, ...], folder: Path) -> Path:
    """Compiles one file if its program is older. Raises BenchmarkError."""
    folder.mkdir(parents=True, exist_ok=True)
    program = folder / f"{source.parent.name}-{source.stem}"
    if not program.exists() or program.stat().st_mtime < source.stat().st_mtime:
        try:
            command = ["cc", *flags, str(source), "-o", str(program), "-lm"]
            subprocess.run(command, capture_output=True, text=True, check=True)
        except (OSError, subprocess.CalledProcessError) as error:
            raise BenchmarkError(f"cannot compile {source.name}: {getattr(error, 'stderr', '') or error}") from None
    return program


def run_c(command: list[str | Path], threads: int, pattern: str) -> float:
    """Runs a program with that many OpenMP threads; returns the number that matches in its
    output."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, env=environment)
    output = done.stdout + done.stderr
    found = re.search(pattern, output)
    if done.returncode != 0 or found is None:
        raise BenchmarkError(f"{Path(command[0]).name}: exit code {done.returncode}: {output.strip()[-200:]}")
    return float(found[1])


if __name__ == "__main__":
    main()

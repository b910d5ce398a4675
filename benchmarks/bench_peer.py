"""llama.cpp as the other side: through llama-cpp-python's C functions in a worker, or as a build's own programs.

Its best setting is looked for among flash attention on and off and the thread counts; cache in F16, batches of 512, no
warm-up run of its own, weights repacked as it likes: its defaults.
"""

from __future__ import annotations

import ctypes
import importlib.metadata
import importlib.util
import json
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from bench_protocol import SideError
from bench_worker import BATCH_CONTEXT_TOKENS, FIRST_TOKEN_IDS, UNTIMED_TOKENS, fixed_ids, peaked_logits

BATCH_TOKENS = 512


def is_installed() -> bool:
    """Whether there is a llama-cpp-python to import."""
    return importlib.util.find_spec("llama_cpp") is not None


class LlamaCpp:
    """llama.cpp's side, through the ctypes functions of llama-cpp-python (bench_worker.Runner)."""

    def __init__(self) -> None:
        import llama_cpp

        self._api = llama_cpp
        self._log = llama_cpp.llama_log_callback(lambda level, text, data: None)
        llama_cpp.llama_log_set(self._log, ctypes.c_void_p(0))
        llama_cpp.llama_backend_init()
        self._contexts: dict[tuple[bool, int], Any] = {}
        self._filled: dict[int, int] = {}  # of a context's address: tokens in each of its sequences

    def load(self, path: str) -> None:
        parameters = self._api.llama_model_default_params()
        parameters.n_gpu_layers = 0
        self._model = self._api.llama_model_load_from_file(path.encode(), parameters)
        assert self._model, f"llama.cpp cannot load {path}"
        self._context_tokens = min(1024, self._api.llama_model_n_ctx_train(self._model))
        self._vocab_size = self._api.llama_vocab_n_tokens(self._api.llama_model_get_vocab(self._model))
        ids = fixed_ids(self._context_tokens, self._vocab_size)
        self._ids = (ctypes.c_int32 * len(ids))(*ids.tolist())

    def describe(self) -> dict[str, Any]:
        system = self._api.llama_print_system_info().decode().strip()
        return {"version": importlib.metadata.version("llama-cpp-python"), "system": system}

    def _context(self, setting: dict[str, Any], num_sequences: int = 1) -> Any:
        """A context for this flash attention and number of sequences, set to this number of threads."""
        key, threads = (bool(setting["flash"]), num_sequences), int(setting["threads"])
        if key not in self._contexts:
            parameters = self._api.llama_context_default_params()
            parameters.n_ctx = self._context_tokens if num_sequences == 1 else BATCH_CONTEXT_TOKENS * num_sequences
            parameters.n_batch = parameters.n_ubatch = BATCH_TOKENS
            parameters.n_seq_max = num_sequences
            parameters.n_threads = parameters.n_threads_batch = threads
            parameters.flash_attn_type = 1 if setting["flash"] else 0
            parameters.no_perf = True
            self._contexts[key] = self._api.llama_init_from_model(self._model, parameters)
            assert self._contexts[key], f"llama.cpp cannot make a context of {parameters.n_ctx} tokens"
            self._filled[self._contexts[key]] = 0
        context = self._contexts[key]
        self._api.llama_set_n_threads(context, threads, threads)
        return context

    def _rewind(self, context: Any, num_tokens: int) -> None:
        """Keeps at most so many tokens of each sequence."""
        done = self._api.llama_memory_seq_rm(self._api.llama_get_memory(context), -1, num_tokens, -1)
        assert done, "llama.cpp cannot forget a part of a sequence"
        self._filled[context] = min(self._filled[context], num_tokens)

    def _one_batch(self, first: int, num_tokens: int) -> Any:
        pointer = ctypes.cast(ctypes.byref(self._ids, 4 * first), ctypes.POINTER(ctypes.c_int32))
        return self._api.llama_batch_get_one(pointer, num_tokens)

    def _feed(self, context: Any, num_tokens: int) -> None:
        status = self._api.llama_decode(context, self._one_batch(self._filled[context], num_tokens))
        assert status == 0, f"llama_decode says {status}"
        self._api.llama_get_logits(context)
        self._filled[context] += num_tokens

    def first_token(self, path: str, setting: dict[str, Any]) -> float:
        start = time.perf_counter()
        self.load(path)
        self._feed(self._context(setting), FIRST_TOKEN_IDS)
        return time.perf_counter() - start

    def decode(self, depth: int, num_tokens: int, setting: dict[str, Any]) -> float:
        context = self._context(setting)
        self._rewind(context, depth)
        if self._filled[context] < depth:
            self._feed(context, depth - self._filled[context])
        for _ in range(UNTIMED_TOKENS):
            self._feed(context, 1)
        decode, logits = self._api.llama_decode, self._api.llama_get_logits
        batches = [self._one_batch(self._filled[context] + i, 1) for i in range(num_tokens)]
        start = time.perf_counter()
        for batch in batches:
            decode(context, batch)
            logits(context)
        seconds = time.perf_counter() - start
        self._filled[context] += num_tokens
        return seconds

    def prompt(self, num_tokens: int, setting: dict[str, Any]) -> float:
        context = self._context(setting)
        self._rewind(context, 0)
        start = time.perf_counter()
        self._feed(context, num_tokens)
        return time.perf_counter() - start

    def batch(self, num_sequences: int, depth: int, num_tokens: int, setting: dict[str, Any]) -> float:
        context = self._context(setting, num_sequences)
        self._rewind(context, depth)
        filled = self._filled[context]
        batches = [self._row(num_sequences, position) for position in range(filled, depth + UNTIMED_TOKENS)]
        for batch in batches:
            self._run_row(context, batch)
        timed = [self._row(num_sequences, depth + UNTIMED_TOKENS + i) for i in range(num_tokens)]
        start = time.perf_counter()
        for batch in timed:
            self._run_row(context, batch)
        seconds = time.perf_counter() - start
        self._filled[context] = depth + UNTIMED_TOKENS + num_tokens
        for batch in (*batches, *timed):
            self._api.llama_batch_free(batch)
        return seconds

    def _row(self, num_sequences: int, position: int) -> Any:
        """One token of every sequence, at the same position; logits of all."""
        batch = self._api.llama_batch_init(num_sequences, 0, 1)
        batch.n_tokens = num_sequences
        for i in range(num_sequences):
            batch.token[i] = self._ids[(position + i) % self._context_tokens]
            batch.pos[i], batch.n_seq_id[i], batch.logits[i] = position, 1, 1
            batch.seq_id[i][0] = i
        return batch

    def _run_row(self, context: Any, batch: Any) -> None:
        status = self._api.llama_decode(context, batch)
        assert status == 0, f"llama_decode says {status}"
        self._api.llama_get_logits(context)

    def sample(self, num_picks: int, setting: dict[str, Any]) -> float:
        """Top-p 0.9 and a draw. Its samplers work on (id, logit, probability) in place: each pick begins with a copy,
        which is quicker than the loop over the logits that llama_sampler_sample begins with."""
        api, size = self._api, self._vocab_size
        entries = np.zeros(size, dtype=[("id", "<i4"), ("logit", "<f4"), ("p", "<f4")])
        entries["id"], entries["logit"] = np.arange(size), peaked_logits(size)
        work = (api.llama_token_data * size)()
        tokens = api.llama_token_data_array(ctypes.cast(work, ctypes.POINTER(api.llama_token_data)), size, -1, False)
        chain = api.llama_sampler_chain_init(api.llama_sampler_chain_default_params())
        api.llama_sampler_chain_add(chain, api.llama_sampler_init_top_p(0.9, 1))
        api.llama_sampler_chain_add(chain, api.llama_sampler_init_dist(7))
        source, num_bytes, data = entries.ctypes.data, entries.nbytes, tokens.data

        def pick() -> None:
            ctypes.memmove(work, source, num_bytes)
            tokens.data, tokens.size, tokens.selected, tokens.sorted = data, size, -1, False
            api.llama_sampler_apply(chain, ctypes.byref(tokens))

        pick()
        start = time.perf_counter()
        for _ in range(num_picks):
            pick()
        seconds = time.perf_counter() - start
        api.llama_sampler_free(chain)
        return seconds


class LlamaPrograms:
    """A build folder of llama.cpp: its llama-bench and llama-batched-bench, started anew for each measurement."""

    def __init__(self, folder: Path) -> None:
        self._bench, self._batched = (_find_program(folder, name) for name in ("llama-bench", "llama-batched-bench"))

    def name(self, path: str) -> str:
        """For the records: with the build's number and commit, which a run on any model tells."""
        found = self._run(path, {"threads": 1, "flash": False}, ["-p", "0", "-n", "1"])
        return f"llama.cpp (llama-bench {found.get('build_number', '?')} {found.get('build_commit', '?')})"

    def decode(self, path: str, depth: int, num_tokens: int, setting: dict[str, Any]) -> float:
        return num_tokens / self._speed(path, setting, ["-p", "0", "-n", str(num_tokens), "-d", str(depth)])

    def prompt(self, path: str, num_tokens: int, setting: dict[str, Any]) -> float:
        return num_tokens / self._speed(path, setting, ["-p", str(num_tokens), "-n", "0"])

    def batch(self, path: str, num_sequences: int, depth: int, num_tokens: int, setting: dict[str, Any]) -> float:
        if self._batched is None:
            raise SideError("the build has no llama-batched-bench")
        shape = ["-npp", str(depth), "-ntg", str(num_tokens), "-npl", str(num_sequences)]
        context = [
            "-c",
            str(num_sequences * BATCH_CONTEXT_TOKENS),
            "-b",
            str(BATCH_TOKENS),
            "-ub",
            str(BATCH_TOKENS),
            "-ngl",
            "0",
        ]
        threads = ["-t", str(setting["threads"]), "-tb", str(setting["threads"])]
        flash = ["-fa", "on" if setting["flash"] else "off"]
        command = [str(self._batched), "-m", path, *shape, *context, *threads, *flash, "--output-format", "jsonl"]
        for line in _output(command).splitlines():
            if line.startswith("{"):
                return float(json.loads(line)["t_tg"])
        raise SideError("llama-batched-bench printed no result")

    def _speed(self, path: str, setting: dict[str, Any], shape: list[str]) -> float:
        """Tokens per second of one run, which comes after a warm-up run of its own."""
        return float(self._run(path, setting, shape)["avg_ts"])

    def _run(self, path: str, setting: dict[str, Any], shape: list[str]) -> dict[str, Any]:
        threads, flash = str(setting["threads"]), "1" if setting["flash"] else "0"
        batch = ["-b", str(BATCH_TOKENS), "-ub", str(BATCH_TOKENS), "-ngl", "0", "-r", "1", "-o", "json"]
        command = [str(self._bench), "-m", path, *shape, "-t", threads, "-fa", flash, *batch]
        (found,) = json.loads(_output(command))
        return dict(found)


def program_measure(
    programs: LlamaPrograms, kind: str, path: str, arguments: dict[str, int]
) -> Callable[[dict[str, Any]], float]:
    """A function of the setting."""
    method: Callable[..., float] = getattr(programs, kind)
    return lambda setting: method(path, setting=setting, **arguments)


def _find_program(folder: Path, name: str) -> Path | None:
    return next((path for path in (folder / name, folder / "bin" / name) if path.is_file()), None)


def has_programs(folder: Path) -> bool:
    """Whether the folder is a build of llama.cpp with the program that decoding is measured with."""
    return _find_program(folder, "llama-bench") is not None


def _output(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    if done.returncode != 0:
        last = done.stderr.strip().splitlines()[-1:] or [f"exit code {done.returncode}"]
        raise SideError(f"{Path(command[0]).name}: {last[0]}")
    return done.stdout

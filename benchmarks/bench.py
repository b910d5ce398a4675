"""How fast is the engine on this machine, and beside llama.cpp? Models to the table of numbers to reach (`make bench`).

    python benchmarks/bench.py --only 'decode 15M*' --rounds 7 --threads 2

Makes what it needs (build/bench-models), measures both sides interleaved as README.md says, prints a table, and appends
rows to results/<machine>.csv.
"""

from __future__ import annotations

import argparse
import datetime
import os
import subprocess
import sys
import time
from pathlib import Path

import bench_peer
from bench_protocol import SideError, compare
from bench_results import (
    Result,
    append_rows,
    csv_rows,
    make_result,
    make_table,
    processor_name,
    results_path,
    table_cells,
)
from bench_sides import READING_FLAGS, REFERENCE_FLAGS, ROOT, Bench
from bench_worker import KERNELS_VARIABLE
from bench_works import OURS, Work, all_works, choose_works
from rich.console import Console

from llamita import engine
from llamita.errors import LlamitaError

DEFAULT_THREADS = 2
BUSY_LOAD = 0.5
ROUNDS_AT_MOST = {"size": 1, "memory": 2}  # what hardly varies


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", action="append", default=[], metavar="GLOB", help="works of such names; repeatable")
    parser.add_argument("--list", action="store_true", help="print the works' names and end")
    parser.add_argument("--rounds", type=int, default=5, help="interleaved rounds after the warm-up round (default 5)")
    parser.add_argument("--quick", action="store_true", help="2 rounds of a quarter of the tokens, not recorded")
    parser.add_argument("--threads", type=int, default=min(DEFAULT_THREADS, len(os.sched_getaffinity(0))),
                        help="at most so many, on both sides (default: 2, or the one there is)")  # fmt: skip
    parser.add_argument("--kernels", help="ours; default: avx2 where llama.cpp is compared with, which `make compat` "
                                          "builds for AVX2, else the fastest")  # fmt: skip
    parser.add_argument("--llama-cpp", type=Path, metavar="DIR", help="a build of llama.cpp with llama-bench in it")
    parser.add_argument("--no-peer", action="store_true", help="ours only")
    parser.add_argument("--models", type=Path, default=ROOT / "build" / "bench-models", metavar="DIR",
                        help="where the models are made and kept (default build/bench-models, 3 GB)")  # fmt: skip
    arguments = parser.parse_args()
    if arguments.rounds < 1 or arguments.threads < 1:
        parser.error("--rounds and --threads: expected at least 1")
    if arguments.llama_cpp is not None and not bench_peer.has_programs(arguments.llama_cpp):
        parser.error(f"--llama-cpp: expected a folder with llama-bench or bin/llama-bench, found {arguments.llama_cpp}")
    return arguments


def compiler_version() -> str:
    try:
        return subprocess.run(["cc", "--version"], capture_output=True, text=True, check=True).stdout.splitlines()[0]
    except (OSError, subprocess.CalledProcessError):
        return "no cc"


def describe_machine(bench: Bench, console: Console) -> None:
    """Prints what the figures depend on."""
    cores = len(os.sched_getaffinity(0))
    compiler = f"reference/run.c {' '.join(REFERENCE_FLAGS)}, reading {' '.join(READING_FLAGS)}"
    lines = [
        f"{processor_name()}, {cores} cores, at most {bench.threads} threads used",
        f"llamita {engine.version()}, kernels {os.environ.get(KERNELS_VARIABLE, engine.kernels())}",
        f"{compiler_version()}: {compiler}",
        *bench.describe_peers(),
    ]
    console.print("\n".join(lines), highlight=False, soft_wrap=True)
    load = os.getloadavg()[0]
    if load > BUSY_LOAD:
        console.print(f"the machine is busy: {load:.1f} processes ran on average in the last minute", style="yellow")


def measure(bench: Bench, work: Work, rounds: int, console: Console) -> Result | None:
    """One work, whole; None, with the reason printed, where ours cannot be measured."""

    def note(text: str) -> None:
        console.print(f"  {work.name}: {text}", style="yellow", highlight=False)

    try:
        sides = bench.sides(work)
        costs = compare(sides.entries, min(rounds, ROUNDS_AT_MOST.get(work.kind, rounds)), note)
    except (SideError, LlamitaError) as error:
        note(str(error))
        return None
    if OURS not in costs:
        return None
    return make_result(work, costs, sides.amount, sides.bytes_read, sides.peer_name)


def main() -> int:
    arguments = parse_arguments()
    works = choose_works(all_works(), arguments.only, quick=arguments.quick)
    if arguments.list or not works:
        print("\n".join(work.name for work in all_works()))
        return 0 if arguments.list else 2
    kernels = arguments.kernels or ("avx2" if engine.kernels() == "avxvnni" and not arguments.no_peer else None)
    if kernels is not None:
        os.environ[KERNELS_VARIABLE] = kernels  # the workers inherit it
    console = Console(width=None if sys.stdout.isatty() else 200)
    bench = Bench(arguments.models, arguments.threads, arguments.llama_cpp, not arguments.no_peer)
    results, start = [], time.monotonic()
    try:
        describe_machine(bench, console)
        for work in works:
            result = measure(bench, work, 2 if arguments.quick else arguments.rounds, console)
            if result is not None:
                results.append(result)
                console.print("  ".join(cell for cell in table_cells(result) if cell), highlight=False)
                if not arguments.quick:
                    append_rows(results_path(), csv_rows(result, datetime.date.today()))
    except (SideError, LlamitaError) as error:
        print(error, file=sys.stderr)
        return 2
    finally:
        bench.close()
    console.print(make_table(results))
    console.print(f"{len(results)} of {len(works)} works in {(time.monotonic() - start) / 60:.1f} minutes")
    return 0 if results else 1


if __name__ == "__main__":
    sys.exit(main())

"""Measures how long the launching thread of a GPU's process waits for a step's batches, and how fast
the reader alone makes them.

    python benchmarks/batch_speed.py STORE [--context 256]

Prints milliseconds per step of 65,536 tokens, one process of 1 and one of 8: CPU time of the
launching thread without and with the thread that makes batches ahead, and that of the whole step.
Then tokens per second of the reader alone, by processor time and in the best second by the clock.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path

import torch

from llamita.data.batches import Batches
from llamita.data.mixture import open_documents
from llamita.training.prefetch import StepStream

STEPS, TOKENS, STEP_SECONDS = 60, 65536, 0.05


def milliseconds(store: Path, context: int, world_size: int, *, ahead: bool) -> tuple[float, float]:
    """Median CPU time of `next` in this thread, and mean CPU time of the process per step."""
    data = open_documents(store)
    batches = Batches(data.train, data.bos_id, context, TOKENS // context, 1, 0, world_size)
    steps = StepStream(batches, 1, torch.device("cpu"), ahead=ahead)
    next(steps)
    times, start = [], time.process_time()
    for _ in range(STEPS):
        time.sleep(STEP_SECONDS)  # the GPU computes
        began = time.thread_time()
        next(steps)
        times.append(time.thread_time() - began)
    whole = (time.process_time() - start) / STEPS
    steps.close()
    return 1e3 * statistics.median(times), 1e3 * whole


def tokens_per_second(store: Path, context: int, seconds: int) -> tuple[float, float]:
    """Of the reader alone: by processor time, and in the best second by the clock."""
    data = open_documents(store)
    batches = Batches(data.train, data.bos_id, context, TOKENS // context, 1)
    next(batches)
    cpu_start, total, best = time.process_time(), 0, 0.0
    for _ in range(seconds):
        start, tokens = time.perf_counter(), 0
        while time.perf_counter() - start < 1:
            tokens += next(batches).inputs.size
        total, best = total + tokens, max(best, tokens / (time.perf_counter() - start))
    return total / (time.process_time() - cpu_start), best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("store", type=Path)
    parser.add_argument("--context", type=int, default=1024)
    parser.add_argument("--seconds", type=int, default=10, help="of the reader alone")
    arguments = parser.parse_args()
    for world_size in (1, 8):
        for ahead in (False, True):
            launching, whole = milliseconds(arguments.store, arguments.context, world_size, ahead=ahead)
            print(
                f"1 of {world_size}, ahead {ahead}: launching thread {launching:.2f} ms, process {whole:.2f} ms a step"
            )
    by_cpu, best = tokens_per_second(arguments.store, arguments.context, arguments.seconds)
    print(f"reader alone: {by_cpu / 1e6:.2f} M tokens/s of processor time, {best / 1e6:.2f} M in its best second")


if __name__ == "__main__":
    main()

"""Bits per byte after a number of minutes, and minutes to a target: ours, and optionally another
trainer's.

    python benchmarks/time_to_quality.py STORE --minutes 10 --seeds 0,1,2 --target 1.026 [--train '--preset 1.5M']
    python benchmarks/time_to_quality.py STORE --minutes 10 --peer 'sh peer.sh {data} {seconds} {seed} {out}'

STORE is written by `llamita prepare`. For each seed, `llamita train --minutes` runs first, then the
peer's command. It gets {data} (the store) or {text} (--text), trains for {seconds} with {seed}, may
write to the folder {out}, and prints its validation bits per byte as often as it likes: bits of the
store's validation text over its bytes. The last match of --pattern is its result, the first match
at or below --target its time.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import re
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from measure import BenchmarkError, append_rows, results_path

OURS, PEER = "ours", "peer"


@dataclasses.dataclass(frozen=True)
class Outcome:
    """One run. minutes_to_target is None if the target was never reached; seconds is the whole
    command."""

    bits_per_byte: float
    minutes_to_target: float | None
    seconds: float


def outcome(points: list[tuple[float, float]], target: float, seconds: float) -> Outcome:
    """points: (seconds since the start, validation bits per byte), in order. Raises BenchmarkError
    if empty."""
    if not points:
        raise BenchmarkError("the run printed no bits per byte: expected at least one")
    reached = next((at / 60 for at, bits in points if bits <= target), None)
    return Outcome(points[-1][1], reached, seconds)


def run_training(store: Path, out: Path, arguments: list[str]) -> tuple[list[dict[str, Any]], float]:
    """A complete `llamita train`: the lines of its metrics.jsonl, and its seconds, the start of Python
    included. Raises BenchmarkError."""
    command = [sys.executable, "-m", "llamita", "train", str(store), "--out", str(out), *arguments]
    start = time.monotonic()
    done = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    seconds = time.monotonic() - start
    if done.returncode != 0:
        raise BenchmarkError(f"llamita train ended with code {done.returncode}: {done.stderr.strip()[-300:]}")
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()], seconds


def run_ours(store: Path, out: Path, minutes: float, seed: int, arguments: list[str], target: float) -> Outcome:
    """A complete `llamita train --minutes`."""
    lines, seconds = run_training(store, out, ["--minutes", str(minutes), "--seed", str(seed), *arguments])
    evaluations = [line for line in lines if line["kind"] == "eval"]
    points = [(line["seconds"] + line["evaluation_seconds"], line["bpb"]) for line in evaluations]
    return outcome(points, target, seconds)


def run_peer(template: str, pattern: str, values: dict[str, object], target: float) -> Outcome:
    """The peer's command; each line it prints is timed as it arrives. Raises BenchmarkError."""
    command = [word.format(**values) for word in shlex.split(template)]
    points: list[tuple[float, float]] = []
    start = time.monotonic()
    try:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    except OSError as error:
        raise BenchmarkError(f"--peer: {error}") from None
    assert process.stdout is not None
    for line in process.stdout:
        points += [(time.monotonic() - start, float(found)) for found in re.findall(pattern, line)]
    if process.wait() != 0:
        raise BenchmarkError(f"--peer: ended with code {process.returncode}")
    return outcome(points, target, time.monotonic() - start)


def report(outcomes: dict[str, list[Outcome]], flags: argparse.Namespace) -> list[list[str]]:
    """Prints the medians of each side and returns rows for results/*.csv."""
    medians = {}
    for side, runs in outcomes.items():
        results = [run.bits_per_byte for run in runs]
        times = sorted(run.minutes_to_target if run.minutes_to_target is not None else float("inf") for run in runs)
        medians[side] = (statistics.median(results), statistics.median(times), f"{min(results):.4f}-{max(results):.4f}")
        print(f"{side}: {medians[side][0]:.4f} bits per byte after {flags.minutes:g} minutes ({medians[side][2]}, "
              f"{len(runs)} seeds); {medians[side][1]:.2f} minutes to {flags.target:g}")  # fmt: skip
    if OURS not in medians:
        return []
    bits, minutes, spread = medians[OURS]
    peer = medians.get(PEER)
    last = [str(len(outcomes[OURS])), spread if peer is None else f"{spread}; {peer[2]}"]
    what = f"{flags.store.name}, {flags.minutes:g} minutes {flags.train}".strip()
    quality = ["", "", ""] if peer is None else [flags.peer_name, f"{peer[0]:.4f}", f"{peer[0] / bits:.3f}"]
    speed = ["", "", ""] if peer is None else [flags.peer_name, f"{peer[1]:.2f}", f"{peer[1] / minutes:.3f}"]
    return [
        [what, f"{bits:.4f}", "bits per byte", *quality, *last],
        [f"{what}, to {flags.target:g}", f"{minutes:.2f}", "minutes", *speed, last[0], ""],
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("store", type=Path)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--target", type=float, default=1.026, help="bits per byte (default: llama2.c's, 10 minutes)")
    parser.add_argument("--train", default="", metavar="FLAGS", help="more flags for `llamita train`, as one string")
    parser.add_argument("--peer", metavar="COMMAND", help="another trainer; see above")
    parser.add_argument("--peer-name", default=PEER)
    parser.add_argument("--pattern", default=r"bpb[ =:]+([\d.]+)", help="regular expression; its group: bits per byte")
    parser.add_argument("--text", default="", help="value of {text} in --peer")
    parser.add_argument("--quick", action="store_true", help="the first seed, half a minute, not recorded")
    flags = parser.parse_args()
    if flags.quick:
        flags.minutes, flags.seeds = 0.5, flags.seeds.split(",")[0]
    outcomes: dict[str, list[Outcome]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for seed in map(int, flags.seeds.split(",")):
            values = {"data": flags.store, "text": flags.text, "seconds": 60 * flags.minutes, "seed": seed,
                      "out": Path(folder, f"peer-{seed}")}  # fmt: skip
            out, arguments = Path(folder, f"ours-{seed}"), shlex.split(flags.train)
            try:
                found = {OURS: run_ours(flags.store, out, flags.minutes, seed, arguments, flags.target)}
                if flags.peer:
                    found[PEER] = run_peer(flags.peer, flags.pattern, values, flags.target)
            except BenchmarkError as error:
                print(error, file=sys.stderr)
                return 1
            for side, one in found.items():
                outcomes.setdefault(side, []).append(one)
                reached = "never" if one.minutes_to_target is None else f"after {one.minutes_to_target:.2f} minutes"
                print(f"  seed {seed}, {side}: {one.bits_per_byte:.4f} in {one.seconds / 60:.2f} minutes; "
                      f"{flags.target:g} {reached}", flush=True)  # fmt: skip
    rows = report(outcomes, flags)
    if not flags.quick:
        append_rows(results_path(), "time_to_quality.py", rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())

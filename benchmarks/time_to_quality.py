"""Text to bits per byte: what a trainer reaches in so many minutes, and when it passes a target; ours beside a peer's.

    python benchmarks/time_to_quality.py STORE --minutes 10 --seeds 0,1,2 --target 1.026 [--train '--preset 1.5M']
    python benchmarks/time_to_quality.py STORE --minutes 10 --peer 'sh peer.sh {data} {seconds} {seed} {out}'

STORE is what `llamita prepare` wrote: both sides get it or, as {text}, what --text names. A seed at a time, one side
after the other: `llamita train --minutes`, then the peer's command, which trains for {seconds} with {seed}, may write
to the folder {out}, and prints its held-out bits per byte as often as it likes; --pattern's last match is the result,
the first match at or below --target the time. Its figures must be bits of the store's held-out text over its bytes.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import json
import re
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from bench_protocol import SideError
from bench_results import append_rows, results_path

OURS, PEER = "ours", "peer"


@dataclasses.dataclass(frozen=True)
class Outcome:
    """Of one run. minutes_to_target: None if it never came that low; seconds: all of it, whole."""

    bits_per_byte: float
    minutes_to_target: float | None
    seconds: float


def outcome(points: list[tuple[float, float]], target: float, seconds: float) -> Outcome:
    """points: (seconds since the start, held-out bits per byte), in order. Raises SideError if there is none."""
    if not points:
        raise SideError("expected at least one held-out figure, found none")
    reached = next((at / 60 for at, bits in points if bits <= target), None)
    return Outcome(points[-1][1], reached, seconds)


def run_ours(store: Path, out: Path, minutes: float, seed: int, words: list[str], target: float) -> Outcome:
    """A whole `llamita train`, start of Python included."""
    command = [sys.executable, "-m", "llamita", "train", str(store), "--out", str(out), "--minutes", str(minutes),
               "--seed", str(seed), *words]  # fmt: skip
    start = time.monotonic()
    done = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    seconds = time.monotonic() - start
    if done.returncode != 0:
        raise SideError(f"llamita train ended with code {done.returncode}: {done.stderr.strip()[-300:]}")
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    evaluations = [line for line in lines if line["kind"] == "eval"]
    points = [(line["seconds"] + line["evaluation_seconds"], line["bpb"]) for line in evaluations]
    return outcome(points, target, seconds)


def run_peer(template: str, pattern: str, values: dict[str, object], target: float) -> Outcome:
    """The peer's whole command; each line that it prints is timed as it comes. Raises SideError."""
    command = [word.format(**values) for word in shlex.split(template)]
    points: list[tuple[float, float]] = []
    start = time.monotonic()
    try:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    except OSError as error:
        raise SideError(f"--peer: {error}") from None
    assert process.stdout is not None
    for line in process.stdout:
        points += [(time.monotonic() - start, float(found)) for found in re.findall(pattern, line)]
    if process.wait() != 0:
        raise SideError(f"--peer: ended with code {process.returncode}")
    return outcome(points, target, time.monotonic() - start)


def report(outcomes: dict[str, list[Outcome]], flags: argparse.Namespace) -> list[list[str]]:
    """Prints each side's medians; returns rows for results/."""
    told = {}
    for side, runs in outcomes.items():
        bits = [run.bits_per_byte for run in runs]
        times = sorted(run.minutes_to_target if run.minutes_to_target is not None else float("inf") for run in runs)
        told[side] = (statistics.median(bits), statistics.median(times), f"{min(bits):.4f}-{max(bits):.4f}")
        print(f"{side}: {told[side][0]:.4f} bits per byte after {flags.minutes:g} minutes ({told[side][2]}, "
              f"{len(runs)} seeds); {told[side][1]:.2f} minutes to {flags.target:g}")  # fmt: skip
    if OURS not in told:
        return []
    bits, minutes, spread = told[OURS]
    peer = told.get(PEER)
    row = [datetime.date.today().isoformat(), "time_to_quality.py"]
    last = [str(len(outcomes[OURS])), spread if peer is None else f"{spread}; {peer[2]}"]
    what = f"{flags.store.name}, {flags.minutes:g} minutes {flags.train}".strip()
    quality = ["", "", ""] if peer is None else [flags.peer_name, f"{peer[0]:.4f}", f"{peer[0] / bits:.3f}"]
    speed = ["", "", ""] if peer is None else [flags.peer_name, f"{peer[1]:.2f}", f"{peer[1] / minutes:.3f}"]
    return [
        [*row, what, f"{bits:.4f}", "bits per byte", *quality, *last],
        [*row, f"{what}, to {flags.target:g}", f"{minutes:.2f}", "minutes", *speed, last[0], ""],
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("store", type=Path)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--target", type=float, default=1.026, help="bits per byte (default: llama2.c's, 10 minutes)")
    parser.add_argument("--train", default="", metavar="FLAGS", help="more flags of `llamita train`, in one word")
    parser.add_argument("--peer", metavar="COMMAND", help="another trainer, see above")
    parser.add_argument("--peer-name", default=PEER)
    parser.add_argument("--pattern", default=r"bpb[ =:]+([\d.]+)", help="one group: its held-out bits per byte")
    parser.add_argument("--text", default="", help="what {text} in --peer stands for")
    parser.add_argument("--quick", action="store_true", help="the first seed, half a minute, not recorded")
    flags = parser.parse_args()
    if flags.quick:
        flags.minutes, flags.seeds = 0.5, flags.seeds.split(",")[0]
    outcomes: dict[str, list[Outcome]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for seed in map(int, flags.seeds.split(",")):
            values = {"data": flags.store, "text": flags.text, "seconds": 60 * flags.minutes, "seed": seed,
                      "out": Path(folder, f"peer-{seed}")}  # fmt: skip
            out, words = Path(folder, f"ours-{seed}"), shlex.split(flags.train)
            try:
                found = {OURS: run_ours(flags.store, out, flags.minutes, seed, words, flags.target)}
                if flags.peer:
                    found[PEER] = run_peer(flags.peer, flags.pattern, values, flags.target)
            except SideError as error:
                print(error, file=sys.stderr)
                return 1
            for side, one in found.items():
                outcomes.setdefault(side, []).append(one)
                reached = "never" if one.minutes_to_target is None else f"after {one.minutes_to_target:.2f} minutes"
                print(f"  seed {seed}, {side}: {one.bits_per_byte:.4f} in {one.seconds / 60:.2f} minutes; "
                      f"{flags.target:g} {reached}", flush=True)  # fmt: skip
    rows = report(outcomes, flags)
    if not flags.quick:
        append_rows(results_path(), rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())

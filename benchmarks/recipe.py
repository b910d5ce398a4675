"""Does a change of the training recipe pay? Paired runs of `llamita train`, unattended.

    python benchmarks/recipe.py OUT --store tokens --train '--minutes 10' --seeds 0,1,2 \\
        --candidate 'noise=--token-noise 0.1' --candidate 'decay=--weight-decay 0.5'

For every seed and store one run with the options of --train alone, and one of each candidate with
its options added; the order is shuffled by seed. OUT/runs.jsonl gets a line per run. Started again,
the script goes on with the runs that are missing. A run's result is its best held-out bits per byte.

The table: the mean difference to the run without the candidate, of the same store and seed, its
standard error, and the probability of a difference that large if there were none (two-sided paired
t-test). Three seeds find what pays 1 %, not what pays 0.2 %.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import shlex
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from measure import BenchmarkError
from time_to_quality import run_training

BASELINE = "baseline"


def t_test(differences: list[float]) -> float:
    """The two-sided p-value of a t-test that the mean is 0, for at least two differences.

    Student's density is integrated over t = √ν tan u, where it is cos(u) ** (ν - 1) times a
    constant.
    """
    nu = len(differences) - 1
    error = statistics.stdev(differences) / math.sqrt(len(differences))
    if error == 0:
        return 1.0 if differences[0] == 0 else 0.0
    u = np.linspace(0, math.pi / 2, 20_001)
    density = np.cos(u) ** (nu - 1)
    inside = u <= math.atan(abs(statistics.mean(differences)) / error / math.sqrt(nu))
    return float(1 - density[inside].sum() / density.sum())


def run(store: Path, options: str, seed: int) -> dict[str, Any]:
    """One `llamita train`: its best bits per byte, the last of the training text, and seconds."""
    with tempfile.TemporaryDirectory() as folder:
        lines, seconds = run_training(store, Path(folder, "run"), ["--seed", str(seed), *shlex.split(options)])
    trained = [line for line in lines if line["kind"] == "train"]
    return {
        "bits_per_byte": min(line["bpb"] for line in lines if line["kind"] == "eval"),
        "training_bits_per_byte": trained[-1]["bpb"],
        "tokens": trained[-1]["tokens"],
        "seconds": seconds,
    }


def table(runs: list[dict[str, Any]], stores: list[str], candidates: list[str]) -> list[str]:
    """A line for each store and candidate that has runs."""
    found = {(each["store"], each["candidate"], each["seed"]): each["bits_per_byte"] for each in runs}
    lines = []
    for store in stores:
        for name in (BASELINE, *candidates):
            mine = {seed: bits for (where, who, seed), bits in found.items() if (where, who) == (store, name)}
            if not mine:
                continue
            line = f"{Path(store).name:16} {name:20} {len(mine)} seeds  {statistics.mean(mine.values()):.4f}"
            paired = [bits / found[store, BASELINE, seed] - 1 for seed, bits in mine.items()
                      if (store, BASELINE, seed) in found]  # fmt: skip
            if name != BASELINE and paired:
                line += f"  {100 * statistics.mean(paired):+.2f} %"
            if name != BASELINE and len(paired) > 1:
                error = statistics.stdev(paired) / math.sqrt(len(paired))
                line += f" ± {100 * error:.2f}  p = {t_test(paired):.3f}"
            lines.append(line)
    return lines


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="folder for the results")
    parser.add_argument("--store", type=Path, action="append", required=True, help="a token store; may be repeated")
    parser.add_argument("--train", default="", metavar="FLAGS", help="flags of every run, as one string")
    parser.add_argument("--candidate", action="append", default=[], metavar="NAME=FLAGS", help="may be repeated")
    parser.add_argument("--seeds", default="0,1,2")
    flags = parser.parse_args()
    candidates = dict(each.split("=", 1) for each in flags.candidate if "=" in each)
    if len(candidates) != len(flags.candidate) or BASELINE in candidates:
        parser.error(f"--candidate: expected NAME=FLAGS, each name once, none {BASELINE}")
    flags.out.mkdir(parents=True, exist_ok=True)
    record = flags.out / "runs.jsonl"
    known = [json.loads(line) for line in record.read_text().splitlines()] if record.exists() else []
    runs = []
    for seed in map(int, flags.seeds.split(",")):
        wanted = [(store, name) for store in flags.store for name in (BASELINE, *candidates)]
        random.Random(seed).shuffle(wanted)
        for store, name in wanted:
            options = f"{flags.train} {candidates.get(name, '')}".strip()
            key = {"store": str(store), "candidate": name, "options": options, "seed": seed}
            same = [each for each in known if key.items() <= each.items()]
            try:
                runs.append(same[0] if same else {**key, **run(store, options, seed)})
            except BenchmarkError as error:
                print(error, file=sys.stderr)
                return 1
            if same:
                continue
            with record.open("a") as file:
                file.write(json.dumps(runs[-1]) + "\n")
            print(f"  seed {seed}, {store.name}, {name}: {runs[-1]['bits_per_byte']:.4f}", flush=True)
    print("\n".join(table(runs, [str(store) for store in flags.store], list(candidates))))
    return 0


if __name__ == "__main__":
    sys.exit(main())

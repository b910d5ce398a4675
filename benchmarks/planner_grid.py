"""Is the planner's choice the best among its neighbors? Nine runs: three widths x three step sizes.

    python benchmarks/planner_grid.py STORE --minutes 2 [--seed 0] [--device cpu]

The widths are the planner's and the next ones below and above; the steps have half, the same and
twice its tokens. Every run is a complete `llamita train --minutes` with the same seed. The order is
shuffled, so that a slowdown of the machine does not hit one corner of the grid.
"""

from __future__ import annotations

import argparse
import random
import shlex
import sys
import tempfile
from pathlib import Path

from measure import BenchmarkError, append_rows, results_path
from time_to_quality import run_ours

from llamita.config import TrainConfig
from llamita.training.planner import WIDTHS, ladder_shape, plan_store


def neighbors(width: int) -> list[int]:
    """Three widths of the ladder around this one, also at its ends."""
    first = min(max(0, WIDTHS.index(width) - 1), len(WIDTHS) - 3)
    return list(WIDTHS[first : first + 3])


def train_flags(width: int, context: int, step_tokens: int) -> list[str]:
    """Flags of `llamita train` for a width of the ladder and a step size."""
    shape = ladder_shape(width, context)
    flags = {
        "layers": shape.num_hidden_layers, "hidden": width, "heads": shape.num_attention_heads,
        "kv-heads": shape.num_key_value_heads, "ffn": shape.intermediate_size, "context": context,
        "micro-batch-size": max(1, step_tokens // context),
    }  # fmt: skip
    return [argument for name, value in flags.items() for argument in (f"--{name}", str(value))]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("store", type=Path)
    parser.add_argument("--minutes", type=float, default=2.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--train", default="", metavar="FLAGS", help="more flags for `llamita train`, as one string")
    flags = parser.parse_args()
    config = TrainConfig(data=flags.store, out=Path("unused"), minutes=flags.minutes, device=flags.device)
    plan = plan_store(config).filled
    assert plan.hidden and plan.context and plan.micro_batch_size
    chosen = (plan.hidden, plan.micro_batch_size * plan.context)
    points = [(width, round(chosen[1] * factor)) for width in neighbors(chosen[0]) for factor in (0.5, 1, 2)]
    random.Random(flags.seed).shuffle(points)
    print(f"the planner chose hidden {chosen[0]}, {chosen[1]} tokens per step, context {plan.context}", flush=True)
    found: dict[tuple[int, int], float] = {}
    with tempfile.TemporaryDirectory() as folder:
        for i, (width, tokens) in enumerate(points):
            arguments = [*train_flags(width, plan.context, tokens), "--device", flags.device, *shlex.split(flags.train)]
            try:
                one = run_ours(flags.store, Path(folder, str(i)), flags.minutes, flags.seed, arguments, 0.0)
            except BenchmarkError as error:
                print(error, file=sys.stderr)
                return 1
            found[width, tokens] = one.bits_per_byte
            print(
                f"  hidden {width}, {tokens} tokens per step: {one.bits_per_byte:.4f}, {one.seconds:.0f} s", flush=True
            )
    best = min(found, key=lambda point: found[point])
    gap = found[chosen] / found[best] - 1
    print(f"planner: {found[chosen]:.4f}, {100 * gap:.1f} % above the best: "
          f"hidden {best[0]}, {best[1]} tokens per step, {found[best]:.4f}")  # fmt: skip
    row = [f"{flags.store.name}, {flags.minutes:g} minutes",
           f"{found[chosen]:.4f}", "bits per byte", f"hidden {best[0]}, {best[1]} tokens per step",
           f"{found[best]:.4f}", f"{found[best] / found[chosen]:.3f}", "1", ""]  # fmt: skip
    append_rows(results_path(), "planner_grid.py", [row])
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Shapes to tokens/s of a training step: ours beside an eager loop over transformers' LlamaForCausalLM with AdamW.

    python benchmarks/training_speed.py --only '6/288*' --rounds 5
    python benchmarks/training_speed.py --peer 'python train.py --data {data} --seconds {seconds}' --data STORE

Both get the same random ids in float32: 16 rows of 256, loss, backward, clip to 1, step. Ours is what `llamita train
--optimizer adamw` does in a step, plain and with --compile. The share of sgemm: operations a token (throughput.py)
times tokens/s, over what torch.mm reaches at the shape's own matrix sizes, measured in the same rounds.

--peer: a trainer's command, which trains on {data} for {seconds} and prints tokens/s; --pattern's last match in what it
prints is the figure. It is run once a round, after the others, with {layers} {hidden} {heads} {kv_heads} {ffn} {vocab}
{context} {batch} filled in too.
"""

from __future__ import annotations

import argparse
import datetime
import fnmatch
import os
import re
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from bench_protocol import Costs, Entry, SideError, compare
from bench_results import append_rows, results_path
from torch import Tensor

from llamita.config import ModelConfig, TrainConfig
from llamita.model.llama import Llama
from llamita.training.flops import flops_per_token
from llamita.training.loss import SummedLoss
from llamita.training.optimizer import build_optimizer

CONTEXT, ROWS, NUM_BATCHES = 256, 16, 4
TOKENS = CONTEXT * ROWS
OURS, COMPILED, EAGER, SGEMM, PEER = "ours", "ours --compile", "eager transformers", "sgemm", "peer"
SHAPES = {  # layers, hidden, heads, kv heads, ffn, vocabulary: llama2.c's
    "5/128 V4096": (5, 128, 8, 4, 352, 4096),
    "6/288 V4096": (6, 288, 6, 6, 768, 4096),
    "6/288 V32000": (6, 288, 6, 6, 768, 32000),
}
Step = Callable[[], object]


def model_config(shape: tuple[int, ...]) -> ModelConfig:
    layers, hidden, heads, kv_heads, ffn, vocab = shape
    return ModelConfig(
        vocab_size=vocab, hidden_size=hidden, intermediate_size=ffn, num_hidden_layers=layers,
        num_attention_heads=heads, num_key_value_heads=kv_heads, head_dim=hidden // heads,
        max_position_embeddings=CONTEXT,
    )  # fmt: skip


def random_batches(vocab_size: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(0, vocab_size, (ROWS, CONTEXT + 1), generator=generator) for _ in range(NUM_BATCHES)]


def our_step(config: ModelConfig, batches: list[Tensor], *, compiled: bool) -> Step:
    """A step as training/trainer.py makes it."""
    model = Llama(config).initialize(torch.Generator().manual_seed(0))
    loss = SummedLoss(model, compiled=compiled)
    settings = TrainConfig(data=Path("data"), out=Path("run"), optimizer="adamw", learning_rate=1e-3, beta2=0.99,
                           weight_decay=0.1)  # fmt: skip
    optimizer, done = build_optimizer(model, settings), iter(range(1 << 62))

    def step() -> float:
        ids = batches[next(done) % len(batches)]
        nats = loss(ids[:, :-1], ids[:, 1:])
        (nats / TOKENS).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return float(nats.item())

    return step


def eager_step(config: ModelConfig, batches: list[Tensor]) -> Step:
    """The plain loop that people write."""
    from transformers import LlamaConfig, LlamaForCausalLM

    model = LlamaForCausalLM(LlamaConfig(
        vocab_size=config.vocab_size, hidden_size=config.hidden_size, intermediate_size=config.intermediate_size,
        num_hidden_layers=config.num_hidden_layers, num_attention_heads=config.num_attention_heads,
        num_key_value_heads=config.num_key_value_heads, max_position_embeddings=CONTEXT, tie_word_embeddings=True,
        use_cache=False,
    )).train()  # fmt: skip
    optimizer, done = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.1), iter(range(1 << 62))

    def step() -> float:
        ids = batches[next(done) % len(batches)][:, :-1]
        loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return float(loss.item())

    return step


def sgemm_step(config: ModelConfig) -> tuple[Step, float]:
    """The forward products of one layer and of the classifier, and their operations."""
    hidden, ffn, kv_size = config.hidden_size, config.intermediate_size, config.num_key_value_heads * config.head_dim
    sizes = [(hidden, hidden)] * 2 + [(hidden, kv_size)] * 2 + [(hidden, ffn)] * 2 + [(ffn, hidden)]
    sizes.append((hidden, config.vocab_size))
    inputs = {size: torch.randn(TOKENS, size) for size in {hidden, ffn}}
    weights = [(inputs[rows], torch.randn(rows, columns), torch.empty(TOKENS, columns)) for rows, columns in sizes]

    def step() -> None:
        for left, right, out in weights:
            torch.mm(left, right, out=out)

    return step, sum(2.0 * TOKENS * rows * columns for rows, columns in sizes)


def peer_seconds(template: str, pattern: str, values: dict[str, Any]) -> float:
    """Seconds for TOKENS tokens, by the tokens/s that the command prints. Raises SideError."""
    command = [word.format(**values) for word in shlex.split(template)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60 + 3 * values["seconds"])
    except (OSError, subprocess.TimeoutExpired) as error:
        raise SideError(f"--peer: {error}") from None
    found = re.findall(pattern, done.stdout + done.stderr)
    if done.returncode != 0 or not found:
        raise SideError(f"--peer: expected code 0 and a match of {pattern!r}, found code {done.returncode}, "
                        f"{len(found)} matches")  # fmt: skip
    return TOKENS / float(found[-1].replace(",", ""))


def measure(name: str, flags: argparse.Namespace) -> Costs:
    config = model_config(SHAPES[name])
    batches = random_batches(config.vocab_size)
    sides: list[tuple[str, Step]] = [
        (EAGER, eager_step(config, batches)),
        (OURS, our_step(config, batches, compiled=False)),
    ]
    if flags.compile:
        sides.append((COMPILED, our_step(config, batches, compiled=True)))
    sides.append((SGEMM, sgemm_step(config)[0]))
    steps = 1 if flags.quick else flags.steps
    entries = [Entry(group, "", _timed(step, steps)) for group, step in sides]
    if flags.peer:
        keys = ("layers", "hidden", "heads", "kv_heads", "ffn", "vocab")
        values = {**dict(zip(keys, SHAPES[name], strict=True)), "context": CONTEXT, "batch": ROWS,
                  "seconds": flags.seconds, "data": flags.data}  # fmt: skip
        entries.append(Entry(PEER, "", lambda: peer_seconds(flags.peer, flags.pattern, values)))
    return compare(entries, 2 if flags.quick else flags.rounds, lambda text: print(f"  {name}: {text}"))


def _timed(step: Step, steps: int) -> Callable[[], float]:
    """Seconds of the clock a step."""

    def cost() -> float:
        start = time.perf_counter()
        for _ in range(steps):
            step()
        return (time.perf_counter() - start) / steps

    return cost


def report(name: str, costs: Costs, rounds: int) -> list[list[str]]:
    """Prints a shape's lines; returns its rows for results/: ours beside each other trainer."""
    config = model_config(SHAPES[name])
    seconds = {group: statistics.median(settings[""]) for group, settings in costs.items()}
    sgemm = sgemm_step(config)[1] / seconds[SGEMM]
    speeds = {group: TOKENS / seconds[group] for group in seconds if group != SGEMM}
    rows = []
    for group, speed in speeds.items():
        values = [TOKENS / cost for cost in costs[group][""]]
        spread, ratio = f"{min(values):.0f}-{max(values):.0f}", speed / speeds[EAGER]
        share = speed * flops_per_token(config, CONTEXT) / sgemm
        print(f"{name:14} {group:20} {speed:7.0f} tok/s ({spread})  {ratio:.2f}x eager  {share:.0%} of sgemm "
              f"({sgemm * 1e-9:.0f} GFLOP/s)", flush=True)  # fmt: skip
        if group != EAGER:
            other = (PEER, "") if group == PEER else (EAGER, f"{speeds[EAGER]:.0f}")
            what = f"train {name}, {group}, {share:.0%} of sgemm"
            rows.append([datetime.date.today().isoformat(), "training_speed.py", what, f"{speed:.0f}", "tok/s",
                         other[0], other[1], f"{ratio:.3f}", str(rounds), spread])  # fmt: skip
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="*", metavar="GLOB", help=f"of {', '.join(SHAPES)}")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=3, help="in a measurement")
    parser.add_argument("--quick", action="store_true", help="2 rounds of a step, not recorded")
    parser.add_argument("--compile", action="store_true", help="ours compiled too: a minute more a shape")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--peer", metavar="COMMAND", help="another trainer, see above")
    parser.add_argument("--pattern", default=r"([\d,.]+) tok(?:ens)?/s", help="one group: its tokens/s")
    parser.add_argument("--data", default="", help="what {data} in --peer stands for")
    parser.add_argument("--seconds", type=float, default=30.0, help="what {seconds} in --peer stands for")
    flags = parser.parse_args()
    names = [name for name in SHAPES if fnmatch.fnmatch(name, flags.only)]
    if not names or flags.rounds < 1 or flags.steps < 1:
        parser.error(f"--only, --rounds, --steps: expected one of {', '.join(SHAPES)} and at least 1")
    torch.set_num_threads(flags.threads)
    load = os.getloadavg()[0]
    print(f"{flags.threads} threads, torch {torch.__version__}, load {load:.1f}")
    for name in names:
        rows = report(name, measure(name, flags), 2 if flags.quick else flags.rounds)
        if not flags.quick:
            append_rows(results_path(), rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())

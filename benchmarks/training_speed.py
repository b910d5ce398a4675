"""Training throughput in tokens/s: ours, and an eager loop over transformers' LlamaForCausalLM with
AdamW.

    python benchmarks/training_speed.py --only '6/288*' --rounds 5
    python benchmarks/training_speed.py --peer 'python train.py --data {data} --seconds {seconds}' --data STORE

Both train on the same random ids: 16 rows of 256; loss, backward, clip to 1, step. Ours is one step
of `llamita train --optimizer adamw`, optionally compiled; like the command, it keeps freed memory.
With --dtype bfloat16 the loop over transformers runs under torch.autocast. "Of torch.mm" is the
share of the FLOP/s that torch.mm reaches in that type at the shape's own matrix sizes, measured in
the same rounds.

--peer is the command of another trainer, which trains for {seconds} on {data} and prints tokens/s;
the last match of --pattern counts. {layers} {hidden} {heads} {kv_heads} {ffn} {vocab} {context}
{batch} are filled in too. It runs once per round, after the others.
"""

from __future__ import annotations

import argparse
import contextlib
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
from measure import BenchmarkError, Costs, Side, append_rows, interleave, results_path
from torch import Tensor

from llamita.config import ModelConfig, TrainConfig
from llamita.model.llama import Llama
from llamita.training.distributed import compute_type
from llamita.training.flops import flops_per_token
from llamita.training.loss import SummedLoss
from llamita.training.malloc import keeping_freed_memory
from llamita.training.optimizer import build_optimizer

CONTEXT, ROWS, NUM_BATCHES = 256, 16, 4
TOKENS = CONTEXT * ROWS
OURS, COMPILED, EAGER, PRODUCTS, PEER = "ours", "ours --compile", "eager transformers", "torch.mm", "peer"
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


def our_step(config: ModelConfig, batches: list[Tensor], dtype: torch.dtype, *, compiled: bool) -> Step:
    """One optimizer step, as the trainer takes it."""
    model = Llama(config).initialize(torch.Generator().manual_seed(0))
    loss = SummedLoss(model, dtype, compiled=compiled)
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


def eager_step(config: ModelConfig, batches: list[Tensor], dtype: torch.dtype) -> Step:
    """The usual hand-written loop."""
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
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return float(loss.item())

    return step


def product_sizes(config: ModelConfig) -> list[tuple[int, int]]:
    """The weights [rows, columns] of one layer and the classifier."""
    hidden, ffn, kv_size = config.hidden_size, config.intermediate_size, config.num_key_value_heads * config.head_dim
    layer = [(hidden, hidden)] * 2 + [(hidden, kv_size)] * 2 + [(hidden, ffn)] * 2 + [(ffn, hidden)]
    return [*layer, (hidden, config.vocab_size)]


def products_step(config: ModelConfig, dtype: torch.dtype) -> Step:
    """The forward matrix products of product_sizes."""
    sizes = product_sizes(config)
    inputs = {rows: torch.randn(TOKENS, rows).to(dtype) for rows, _ in set(sizes)}
    weights = [
        (inputs[rows], torch.randn(rows, columns).to(dtype), torch.empty(TOKENS, columns, dtype=dtype))
        for rows, columns in sizes
    ]

    def step() -> None:
        for left, right, out in weights:
            torch.mm(left, right, out=out)

    return step


def peer_seconds(template: str, pattern: str, values: dict[str, Any]) -> float:
    """Seconds for TOKENS tokens at the speed that the command prints. Raises BenchmarkError."""
    command = [word.format(**values) for word in shlex.split(template)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60 + 3 * values["seconds"])
    except (OSError, subprocess.TimeoutExpired) as error:
        raise BenchmarkError(f"--peer: {error}") from None
    found = re.findall(pattern, done.stdout + done.stderr)
    if done.returncode != 0 or not found:
        raise BenchmarkError(f"--peer: expected code 0 and a match of {pattern!r}, found code {done.returncode}, "
                        f"{len(found)} matches")  # fmt: skip
    return TOKENS / float(found[-1].replace(",", ""))


def measure(shape: str, flags: argparse.Namespace) -> Costs:
    config = model_config(SHAPES[shape])
    batches, dtype = random_batches(config.vocab_size), compute_type(flags.dtype)
    steps_of: list[tuple[str, Step]] = [
        (EAGER, eager_step(config, batches, dtype)),
        (OURS, our_step(config, batches, dtype, compiled=False)),
    ]
    if flags.compile:
        steps_of.append((COMPILED, our_step(config, batches, dtype, compiled=True)))
    steps_of.append((PRODUCTS, products_step(config, dtype)))
    steps = 1 if flags.quick else flags.steps
    timed = [Side(name, "", _timed(step, steps, keeps_memory=name in (OURS, COMPILED))) for name, step in steps_of]
    if flags.peer:
        keys = ("layers", "hidden", "heads", "kv_heads", "ffn", "vocab")
        values = {**dict(zip(keys, SHAPES[shape], strict=True)), "context": CONTEXT, "batch": ROWS,
                  "seconds": flags.seconds, "data": flags.data}  # fmt: skip
        timed.append(Side(PEER, "", lambda: peer_seconds(flags.peer, flags.pattern, values)))
    return interleave(timed, 2 if flags.quick else flags.rounds, lambda text: print(f"  {shape}: {text}"))


def _timed(step: Step, steps: int, *, keeps_memory: bool) -> Callable[[], float]:
    """Mean seconds per step, after one that is not counted."""

    def cost() -> float:
        with keeping_freed_memory() if keeps_memory else contextlib.nullcontext():
            step()
            start = time.perf_counter()
            for _ in range(steps):
                step()
            return (time.perf_counter() - start) / steps

    return cost


def report(name: str, costs: Costs, rounds: int, dtype: str) -> list[list[str]]:
    """Prints the lines of a shape and returns its rows for results/*.csv."""
    config = model_config(SHAPES[name])
    seconds = {group: statistics.median(settings[""]) for group, settings in costs.items()}
    flops = sum(2.0 * TOKENS * rows * columns for rows, columns in product_sizes(config))
    reached = flops / seconds[PRODUCTS]  # FLOP/s
    speeds = {group: TOKENS / seconds[group] for group in seconds if group != PRODUCTS}
    rows = []
    for group, speed in speeds.items():
        values = [TOKENS / cost for cost in costs[group][""]]
        spread, ratio = f"{min(values):.0f}-{max(values):.0f}", speed / speeds[EAGER]
        share = speed * flops_per_token(config, CONTEXT) / reached
        print(f"{name:14} {group:20} {speed:7.0f} tok/s ({spread})  {ratio:.2f}x eager  {share:.0%} of torch.mm "
              f"({reached * 1e-9:.0f} GFLOP/s)", flush=True)  # fmt: skip
        if group != EAGER:
            other = (PEER, "") if group == PEER else (EAGER, f"{speeds[EAGER]:.0f}")
            what = f"train {name}, {dtype}, {group}, {share:.0%} of torch.mm"
            rows.append([what, f"{speed:.0f}", "tok/s", *other, f"{ratio:.3f}", str(rounds), spread])
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="*", metavar="GLOB", help=f"of {', '.join(SHAPES)}")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=3, help="per measurement")
    parser.add_argument("--quick", action="store_true", help="2 rounds of one step, not recorded")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--compile", action="store_true", help="also measure ours compiled: a minute more per shape")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--peer", metavar="COMMAND", help="another trainer; see above")
    parser.add_argument("--pattern", default=r"([\d,.]+) tok(?:ens)?/s", help="regular expression; its group: tokens/s")
    parser.add_argument("--data", default="", help="value of {data} in --peer")
    parser.add_argument("--seconds", type=float, default=30.0, help="value of {seconds} in --peer")
    flags = parser.parse_args()
    names = [name for name in SHAPES if fnmatch.fnmatch(name, flags.only)]
    if not names or flags.rounds < 1 or flags.steps < 1:
        parser.error(f"--only, --rounds, --steps: expected one of {', '.join(SHAPES)} and at least 1")
    torch.set_num_threads(flags.threads)
    load = os.getloadavg()[0]
    print(f"{flags.threads} threads, torch {torch.__version__}, load {load:.1f}")
    for name in names:
        rows = report(name, measure(name, flags), 2 if flags.quick else flags.rounds, flags.dtype)
        if not flags.quick:
            append_rows(results_path(), "training_speed.py", rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Whether a CPU multiplies in bfloat16 faster than in float32: measured, because processors that
have the type differ in its speed, and those without it emulate it."""

from __future__ import annotations

import statistics
import time
from typing import Literal

import torch

from llamita.config import RunConfig, TrainConfig
from llamita.training.defaults import resolve_dtype
from llamita.training.distributed import Ranks

Dtype = Literal["float32", "bfloat16"]

MIN_PRODUCT_SPEEDUP = 1.3  # below it a step cannot be faster by MIN_STEP_SPEEDUP
MIN_STEP_SPEEDUP = 1.1
PRODUCT_SIZE, PRODUCT_ROUNDS = (512, 256, 256), 9  # 0.2 to 0.7 ms in float32, up to 30 emulated
MIN_TIMED_FLOPS = 2e12  # ten seconds in float32: a shorter run is not worth a second of timing
LOSSES_AGREE = "loss within 0.2 % of float32's at equal tokens"  # three seeds: docs/experiments.md


def product_speedup() -> float:
    """How many times as fast as in float32 this processor multiplies matrices in bfloat16."""
    tokens, size, width = PRODUCT_SIZE
    generator = torch.Generator().manual_seed(0)
    wide = torch.randn(tokens, size, generator=generator), torch.randn(size, width, generator=generator)
    pairs = wide, tuple(matrix.bfloat16() for matrix in wide)
    times: list[list[float]] = [[], []]
    for _ in range(1 + PRODUCT_ROUNDS):
        for seconds, (left, right) in zip(times, pairs, strict=True):
            start = time.perf_counter()
            left @ right
            seconds.append(time.perf_counter() - start)
    in_float32, in_bfloat16 = (statistics.median(seconds[1:]) for seconds in times)  # the first one warms up
    return in_float32 / in_bfloat16


def is_worth_timing(config: RunConfig, flops_per_token: float, tokens_per_step: int, epoch_tokens: int) -> bool:
    """Whether a run is long enough to choose its type by measuring; with --minutes always."""
    tokens = (config.epochs or 0.0) * epoch_tokens + (config.steps or 0) * tokens_per_step
    return config.minutes is not None or tokens * flops_per_token >= MIN_TIMED_FLOPS


def candidate_dtypes(config: TrainConfig, device: torch.device) -> tuple[Dtype, ...]:
    """The types worth timing for this run: both, or the only one."""
    if not _is_open(config, device):
        resolved: Dtype = "bfloat16" if resolve_dtype(config, device).dtype == "bfloat16" else "float32"
        return (resolved,)
    return ("float32", "bfloat16") if product_speedup() >= MIN_PRODUCT_SPEEDUP else ("float32",)


def inherited_dtype(config: TrainConfig, earlier: str | None, ranks: Ranks) -> Literal["auto", "float32", "bfloat16"]:
    """The type for a run that goes on with one that computed in `earlier`: the same, if this CPU is
    faster in it. With --minutes the planner times steps in both."""
    if earlier != "bfloat16" or config.minutes is not None or not _is_open(config, ranks.device):
        return config.dtype
    return faster_dtype(ranks)


def faster_dtype(ranks: Ranks) -> Dtype:
    """The type in which the CPUs of all processes multiply faster."""
    (speedup,) = ranks.min(product_speedup())
    return "bfloat16" if speedup >= MIN_PRODUCT_SPEEDUP else "float32"


def _is_open(config: TrainConfig, device: torch.device) -> bool:
    """Whether the speed of a CPU decides the type: of a whole model, because the fused passes in
    bfloat16 need one."""
    return config.dtype == "auto" and device.type == "cpu" and not (config.fsdp or config.activation_checkpointing)

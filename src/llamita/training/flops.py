"""FLOPs per token of a network, and the peak FLOP/s of a device, for reporting MFU."""

from __future__ import annotations

import functools
import re
import time

import torch

from llamita.config import ModelConfig

MAX_MEASURING_SECONDS = 1.0  # a CPU without bfloat16 takes that for a product in it

# Peak dense tensor-core FLOP/s in bfloat16 (float16 without bfloat16), from the data sheets.
GPU_PEAKS = {
    "B200": 2250e12, "GB200": 2250e12, "H200": 989e12, "GH200": 989e12, "H800": 989e12, "H100": 989e12,
    "H100 NVL": 835e12, "H100 PCIe": 756e12, "H20": 148e12, "A100": 312e12, "A800": 312e12, "A40": 150e12,
    "A30": 165e12, "A10G": 70e12, "A10": 125e12, "L40S": 362e12, "L40": 181e12, "L4": 121e12, "T4": 65e12,
    "V100": 125e12, "RTX 3090": 71e12, "RTX 4090": 165e12, "RTX 5090": 209e12, "RTX A6000": 155e12,
    "RTX A5000": 111e12, "RTX A4000": 77e12,
}  # fmt: skip


def flops_per_token(config: ModelConfig, context: int) -> float:
    """FLOPs per token of forward and backward.

    6 per weight that multiplies (the classifier, not the embedding), and causal attention's 12 ·
    layers · heads · head size · context / 2 (PaLM, arXiv 2204.02311, appendix B, halved for
    causality).
    """
    lookups = 0 if config.tie_word_embeddings else config.vocab_size * config.hidden_size
    attention = 6 * config.num_hidden_layers * config.num_attention_heads * config.head_dim * context
    return 6.0 * (config.num_parameters - lookups) + attention


def peak_flops(device: torch.device, dtype: torch.dtype) -> float | None:
    """CPU: measured once, the best matrix product of 0.3 s. GPU: from GPU_PEAKS, else None."""
    if device.type == "mps":
        return None
    if device.type == "cpu":
        return _measured_flops(dtype)
    name = torch.cuda.get_device_name(device)
    matches = [part for part in GPU_PEAKS if re.search(rf"\b{part}\b", name)]  # a T400 is not a T4
    if not matches or "Laptop" in name:
        return None
    peak = GPU_PEAKS[max(matches, key=len)]
    return peak if dtype != torch.float32 else peak / 2  # TF32 runs at half the rate


@functools.cache
def _measured_flops(dtype: torch.dtype, size: int = 1024, repeats: int = 40) -> float:
    left, right = torch.randn(size, size).to(dtype), torch.randn(size, size).to(dtype)
    best, begun = float("inf"), time.perf_counter()
    for _ in range(repeats):
        start = time.perf_counter()
        left @ right
        best = min(best, time.perf_counter() - start)
        if time.perf_counter() - begun > MAX_MEASURING_SECONDS:
            break
    return 2.0 * size**3 / best

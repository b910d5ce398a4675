"""Estimates how many tokens a forward and backward pass can hold in a GPU's free memory, and
recognizes the errors of passes that do not fit."""

from __future__ import annotations

import math

import torch

SCORE_COPIES = 3  # scores, their softmax, and its gradient

# From the messages of the CPU's allocator, CUDA (pinned memory, NCCL), MPS and cuBLAS
MEMORY_ERRORS = ("can't allocate memory", "out of memory", "ALLOC_FAILED")


def is_out_of_memory(error: RuntimeError) -> bool:
    """Only CUDA's allocator has a type of its own for it."""
    return isinstance(error, torch.OutOfMemoryError) or any(text in str(error) for text in MEMORY_ERRORS)


def free_bytes(device: torch.device) -> float:
    """Free memory of a GPU; infinite for a CPU."""
    if device.type == "mps":  # it shares the machine's memory; Metal recommends a part of it
        return torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory()
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else math.inf


def token_bytes(
    layers: int,
    hidden: int,
    ffn: int,
    *,
    number_bytes: int = 2,
    activation_checkpointing: bool = False,
    stored_scores: int = 0,
) -> int:
    """Activation bytes per token kept for the backward pass: about 12 D + 4 F numbers per layer.

    D: hidden, F: ffn. With activation checkpointing: the input of each layer, and one complete
    layer. stored_scores: attention scores per token and layer, where no fused kernel trains.
    """
    whole_layer = 12 * hidden + 4 * ffn + SCORE_COPIES * stored_scores
    return number_bytes * (layers * hidden + whole_layer if activation_checkpointing else layers * whole_layer)


def scores_per_token(device: torch.device, heads: int, context: int) -> int:
    """Attention scores that a layer keeps for each token: MPS has no fused kernel for training."""
    return heads * context if device.type == "mps" else 0


def tokens_that_fit(free: float, weights: int, weight_bytes: int, bytes_per_token: int) -> int:
    """Tokens per pass: they may take half of the memory that the weights leave.

    weight_bytes: 16 per trained weight (with its gradient and AdamW's moments), else the size of
    its type.
    """
    return int(max(0.0, free - weights * weight_bytes) // (2 * bytes_per_token))


def split_rows(rows: int, context: int, fit_tokens: float) -> tuple[int, int]:
    """Rows of a step → (rows per pass, passes): the fewest passes of equal size that fit."""
    for passes in range(1, rows + 1):
        if rows % passes == 0 and rows // passes * context <= fit_tokens:
            return rows // passes, passes
    return 1, rows

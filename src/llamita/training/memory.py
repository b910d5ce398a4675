"""How many tokens a pass may have on a GPU: as many as its free memory takes, what the backward pass needs included."""

from __future__ import annotations

import math

import torch


def free_bytes(device: torch.device) -> float:
    """Memory that a GPU has left; of a CPU without an end."""
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else math.inf


def token_bytes(
    layers: int, hidden: int, ffn: int, *, number_bytes: int = 2, activation_checkpointing: bool = False
) -> int:
    """What a pass keeps of a token for its backward pass: some 12 D + 4 F numbers a layer; where layers are computed
    again, the input of each, and one layer whole."""
    whole_layer = 12 * hidden + 4 * ffn
    return number_bytes * (layers * hidden + whole_layer if activation_checkpointing else layers * whole_layer)


def tokens_that_fit(free: float, weights: int, weight_bytes: int, bytes_per_token: int) -> int:
    """Tokens of a pass: they may take half of what the weights leave. weight_bytes: 16 where they learn (gradient and
    AdamW's moments), else what they are kept in."""
    return int(max(0.0, free - weights * weight_bytes) // (2 * bytes_per_token))


def split_rows(rows: int, context: int, fit_tokens: float) -> tuple[int, int]:
    """rows of a step → rows of a pass, and passes: as few passes as fit, all of one size."""
    for passes in range(1, rows + 1):
        if rows % passes == 0 and rows // passes * context <= fit_tokens:
            return rows // passes, passes
    return 1, rows

"""Defaults of fine-tuning: learning rate, row length, and a micro-batch that fits the device."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import torch

from llamita.config import FinetuneConfig, ModelConfig
from llamita.errors import ConfigError
from llamita.finetune.base_model import BaseModel
from llamita.training.defaults import TOKENS_PER_PASS
from llamita.training.distributed import Ranks
from llamita.training.optimizer import beta2_for

DEFAULT_EPOCHS = 3.0
DEFAULT_RANK = 8
MIN_STEPS_PER_EPOCH = 32  # small datasets get small batches
ROW_MULTIPLE = 64


def learning_rate_for(hidden_size: int, lora: bool) -> float:
    """AdamW's peak learning rate: 1e-4 at width 576, in proportion to 1/width, and ten times as
    much for LoRA (J. Schulman, "LoRA Without Regret", 2025, finds about that factor between the
    best rates)."""
    return 1e-4 * 576 / max(hidden_size, 128) * (10 if lora else 1)


def row_length(lengths: Any, limit: int) -> int:
    """Tokens of a packed row: room for the longest example, and for four of average length if the
    limit allows. Longer rows pack better, shorter ones waste less attention."""
    wanted = max(int(lengths.max()), math.ceil(4 * float(lengths.mean())))
    return min(limit, math.ceil(wanted / ROW_MULTIPLE) * ROW_MULTIPLE)


def tokens_that_fit(free_bytes: int, config: ModelConfig, *, lora: bool) -> int:
    """Tokens of a micro-batch that fit into a GPU's memory.

    Activations, about 12 D + 4 F numbers of 2 bytes for each layer and token, may take half of what
    the weights leave: 2 bytes per frozen weight, 16 per trained one (gradient and AdamW's moments).
    """
    left = free_bytes - config.num_parameters * (2 if lora else 16)
    per_token = 2 * config.num_hidden_layers * (12 * config.hidden_size + 4 * config.intermediate_size)
    return max(0, left) // (2 * per_token)


def fill_defaults(
    config: FinetuneConfig, base: BaseModel, ranks: Ranks, context: int, row_tokens: int, epoch_tokens: int
) -> FinetuneConfig:
    """The configuration with a value for every option that has a default. Raises ConfigError.

    context: tokens of the longest conversation. row_tokens, epoch_tokens: masked tokens included.
    """
    if config.minutes is None and config.steps is None and config.epochs is None:
        config = dataclasses.replace(config, epochs=DEFAULT_EPOCHS)
    on_cpu = ranks.device.type == "cpu"
    tokens = TOKENS_PER_PASS[ranks.device.type] // (ranks.world_size if on_cpu else 1)
    if not on_cpu and not config.activation_checkpointing:
        tokens = min(tokens, tokens_that_fit(torch.cuda.mem_get_info(ranks.device)[0], base.config, lora=config.lora))
    tokens = min(tokens, epoch_tokens // (MIN_STEPS_PER_EPOCH * ranks.world_size))
    rows = config.micro_batch_size or max(1, tokens // row_tokens)
    dtype = config.dtype
    if dtype == "auto":
        dtype = "bfloat16" if not on_cpu and torch.cuda.is_bf16_supported() else "float32"
    if dtype == "bfloat16" and on_cpu:
        raise ConfigError("finetune: --dtype bfloat16 needs CUDA; CPUs compute in float32")
    if config.rank is not None and config.rank > base.config.hidden_size:
        raise ConfigError(
            f"finetune: --rank: expected at most {base.config.hidden_size}, the width of {base.directory}, found "
            f"{config.rank}; a higher rank would not be smaller than the weights"
        )
    tokens_per_step = rows * row_tokens * config.grad_accum_steps * ranks.world_size
    return dataclasses.replace(
        config,
        context=context,
        micro_batch_size=rows,
        dtype=dtype,
        rank=(config.rank or DEFAULT_RANK) if config.lora else None,
        learning_rate=config.learning_rate or learning_rate_for(base.config.hidden_size, config.lora),
        beta2=beta2_for(tokens_per_step) if config.beta2 is None else config.beta2,
    )

"""Defaults of fine-tuning: learning rate, row length, and a micro-batch that fits the device."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from llamita.config import FinetuneConfig, ModelConfig
from llamita.errors import ConfigError
from llamita.finetune.base_model import BaseModel
from llamita.finetune.linear_4bit import WEIGHT_BYTES
from llamita.finetune.lora import LINEAR_LAYERS, lora_specs
from llamita.training.cpu_dtype import faster_dtype, is_worth_timing
from llamita.training.defaults import TOKENS_PER_PASS, default_dtype
from llamita.training.distributed import Ranks, compute_type
from llamita.training.flops import flops_per_token
from llamita.training.memory import free_bytes, scores_per_token, token_bytes, tokens_that_fit
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


def fitting_tokens(free: float, base: ModelConfig, config: FinetuneConfig, stored_scores: int = 0) -> int:
    """Tokens of a micro-batch that fit into `free` bytes of a GPU. config.dtype must be resolved.

    stored_scores: see token_bytes.
    """
    number_bytes = compute_type(config.dtype).itemsize
    bytes_per_token = token_bytes(
        base.num_hidden_layers, base.hidden_size, base.intermediate_size, number_bytes=number_bytes,
        activation_checkpointing=config.activation_checkpointing,
        stored_scores=stored_scores,
    )  # fmt: skip
    trained = base.num_parameters
    if config.lora:
        free -= frozen_bytes(base, number_bytes, in_4bit=config.load_in_4bit)
        specs = lora_specs(base, LINEAR_LAYERS if config.targets is None else config.targets)
        trained = sum((config.rank or DEFAULT_RANK) * sum(spec.shape) for _, spec in specs)
    return tokens_that_fit(free, trained, 16, bytes_per_token)


def frozen_bytes(base: ModelConfig, number_bytes: int, *, in_4bit: bool) -> int:
    """Bytes of a frozen network: the decoder's matrices with number_bytes a weight or in 4 bits, the
    rest in float32."""
    matrices = sum(math.prod(spec.shape) for _, spec in lora_specs(base))
    matrix_bytes = WEIGHT_BYTES if in_4bit else number_bytes
    return math.ceil(matrix_bytes * matrices) + 4 * (base.num_parameters - matrices)


def fill_defaults(
    config: FinetuneConfig, base: BaseModel, ranks: Ranks, context: int, row_tokens: int, epoch_tokens: int
) -> FinetuneConfig:
    """The configuration with a value for every option that has a default. Raises ConfigError.

    context: tokens of the longest conversation. row_tokens, epoch_tokens: masked tokens included.
    """
    if config.minutes is None and config.steps is None and config.epochs is None:
        config = dataclasses.replace(config, epochs=DEFAULT_EPOCHS)
    on_cpu = ranks.device.type == "cpu"
    dtype = default_dtype(ranks.device) if config.dtype == "auto" else config.dtype
    tokens = TOKENS_PER_PASS[ranks.device.type] // (ranks.world_size if on_cpu else 1)
    if not on_cpu:
        (free,) = ranks.min(free_bytes(ranks.device))  # all processes must choose the same number of rows
        scores = scores_per_token(ranks.device, base.config.num_attention_heads, row_tokens)
        tokens = min(tokens, fitting_tokens(free, base.config, dataclasses.replace(config, dtype=dtype), scores))
    tokens = min(tokens, epoch_tokens // (MIN_STEPS_PER_EPOCH * ranks.world_size))
    rows = config.micro_batch_size or max(1, tokens // row_tokens)
    if config.rank is not None and config.rank > base.config.hidden_size:
        raise ConfigError(
            f"finetune: --rank: expected at most {base.config.hidden_size}, the width of {base.directory}, found "
            f"{config.rank}; a higher rank would not be smaller than the weights"
        )
    tokens_per_step = rows * row_tokens * config.grad_accum_steps * ranks.world_size
    if config.dtype == "auto" and on_cpu:
        flops = flops_per_token(base.config, context)
        dtype = faster_dtype(ranks) if is_worth_timing(config, flops, tokens_per_step, epoch_tokens) else dtype
    return dataclasses.replace(
        config,
        context=context,
        micro_batch_size=rows,
        dtype=dtype,
        rank=(config.rank or DEFAULT_RANK) if config.lora else None,
        learning_rate=config.learning_rate or learning_rate_for(base.config.hidden_size, config.lora),
        beta2=beta2_for(tokens_per_step) if config.beta2 is None else config.beta2,
    )

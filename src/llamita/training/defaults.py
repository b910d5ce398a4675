"""Fills in every training option that the user left open: shape, batch, learning rates, decay."""

from __future__ import annotations

import dataclasses
import math
from typing import Literal

import torch

from llamita.config import DEFAULT_MINUTES, PRESETS, ModelConfig, TrainConfig
from llamita.errors import TrainingError
from llamita.tokenizer import Tokenizer
from llamita.training.memory import scores_per_token, split_rows, token_bytes, tokens_that_fit
from llamita.training.optimizer import (
    MUON_RATE,
    beta2_for,
    embedding_lr_for,
    learning_rate_for,
    small_step_scale,
)

MIN_DECAY, MAX_DECAY, DECAY_EPOCHS = 0.1, 1.0, 30.0  # weight decay; DECAY_EPOCHS epochs add 1
FREE_EPOCHS, NOISE_EPOCHS, MAX_NOISE = 4.0, 40.0, 0.2  # token noise; NOISE_EPOCHS epochs after the free ones add 1
AVERAGED_FRACTION = 0.3  # of a run with more than the free epochs
TOKENS_PER_PASS = {"cpu": 2048, "cuda": 65536, "mps": 8192}  # on a GPU: its tokens of a step
TYPICAL_VOCAB_SIZE = 32_000  # to estimate the memory of the weights


def fill_defaults(
    config: TrainConfig,
    device: torch.device,
    world_size: int,
    *,
    epoch_tokens: int | None = None,
    free: float = math.inf,
) -> TrainConfig:
    """The configuration with a value for every option that has a default.

    Of minutes, steps and epochs only one is set. epoch_tokens: tokens of the text, if known. free:
    free bytes of GPU memory, which decide how many passes make a step. Raises ConfigError if the
    heads do not divide the width into even sizes.
    """
    if config.minutes is None and config.steps is None and config.epochs is None:
        config = dataclasses.replace(config, minutes=DEFAULT_MINUTES)
    config = fill_shape(config, device.type)
    config = resolve_dtype(config, device)
    if config.micro_batch_size is None:
        assert config.context is not None
        tokens = TOKENS_PER_PASS[device.type]
        shared = tokens // world_size if device.type == "cpu" else tokens
        rows = max(1, shared // config.context)
        config = fit_micro_batch(dataclasses.replace(config, micro_batch_size=rows), free, device)
    assert config.context is not None and config.hidden is not None and config.micro_batch_size is not None
    is_muon = config.optimizer == "muon"
    tokens_per_step = config.micro_batch_size * config.context * config.grad_accum_steps * world_size
    scale = small_step_scale(tokens_per_step)
    generations = config.generations or 1  # with --minutes the planner has set them, and the decay
    epochs = config.epochs or 1.0
    if config.steps is not None and epoch_tokens is not None:
        epochs = config.steps * tokens_per_step / epoch_tokens
    rate = scale * (MUON_RATE if is_muon else learning_rate_for(config.hidden))
    filled = dataclasses.replace(
        config,
        learning_rate=config.learning_rate or rate,
        embedding_lr=config.embedding_lr or scale * embedding_lr_for(config.hidden),
        beta2=beta2_for(tokens_per_step) if config.beta2 is None else config.beta2,
        generations=generations,
    )
    return regularize(filled, epochs / generations)


def default_dtype(device: torch.device) -> Literal["bfloat16", "float32"]:
    """bfloat16 on devices that multiply in it. PyTorch emulates it on GPUs before Ampere (T4, V100,
    RTX 20xx), more slowly than float32. On Apple's GPUs nobody has compared the two."""
    has_bfloat16 = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    return "bfloat16" if has_bfloat16 else "float32"


def resolve_dtype(config: TrainConfig, device: torch.device) -> TrainConfig:
    """The configuration with --dtype auto resolved."""
    return dataclasses.replace(config, dtype=default_dtype(device)) if config.dtype == "auto" else config


def fit_micro_batch(config: TrainConfig, free: float, device: torch.device) -> TrainConfig:
    """The configuration, with shape and rows set, divided into passes that fit into the free bytes.

    Unchanged if --grad-accum-steps was given.
    """
    if config.grad_accum_steps > 1 or math.isinf(free):
        return config
    assert config.layers and config.hidden and config.ffn and config.context and config.micro_batch_size
    weights = config.layers * config.hidden * (4 * config.hidden + 3 * config.ffn) + TYPICAL_VOCAB_SIZE * config.hidden
    fit_tokens = tokens_that_fit(free, weights, 16, row_token_bytes(config, device))
    rows, passes = split_rows(config.micro_batch_size, config.context, fit_tokens)
    return dataclasses.replace(config, micro_batch_size=rows, grad_accum_steps=passes)


def row_token_bytes(config: TrainConfig, device: torch.device) -> int:
    """Activation bytes per token of a configuration whose shape is set."""
    assert config.layers and config.hidden and config.ffn and config.context
    return token_bytes(
        config.layers, config.hidden, config.ffn,
        number_bytes=4 if config.dtype == "float32" else 2, activation_checkpointing=config.activation_checkpointing,
        stored_scores=scores_per_token(device, config.heads or 0, config.context),
    )  # fmt: skip


def regularize(config: TrainConfig, epochs: float) -> TrainConfig:
    """The configuration with the weight decay, the token noise and the averaged end for this many epochs
    of one model, if none is given."""
    averaged = averaged_for(epochs) if config.qat is None and not config.resume else 0.0  # a run from before has none
    return dataclasses.replace(
        config,
        averaged_fraction=averaged if config.averaged_fraction is None else config.averaged_fraction,
        weight_decay=decay_for(epochs) if config.weight_decay is None else config.weight_decay,
        token_noise=noise_for(epochs) if config.token_noise is None else config.token_noise,
    )


def averaged_for(epochs: float) -> float:
    """The share of the run whose weights are averaged, by epochs: none up to four
    (docs/experiments.md)."""
    return AVERAGED_FRACTION if epochs > FREE_EPOCHS else 0.0


def noise_for(epochs: float) -> float:
    """Token noise by epochs: none up to four, 0.1 for eight, 0.2 from twelve on
    (docs/experiments.md)."""
    return min(MAX_NOISE, max(0.0, epochs - FREE_EPOCHS) / NOISE_EPOCHS)


def decay_for(epochs: float) -> float:
    """Weight decay by epochs: 0.1 up to three, 0.5 for fifteen (docs/experiments.md)."""
    return min(MAX_DECAY, max(MIN_DECAY, epochs / DECAY_EPOCHS))


def preset_context(config: TrainConfig) -> int | None:
    """The context of the preset; None without one."""
    return PRESETS[config.preset].max_position_embeddings if config.preset is not None else None


def fill_shape(config: TrainConfig, device_type: str) -> TrainConfig:
    """The configuration with a shape. Raises ConfigError if the heads do not divide the width into
    even sizes."""
    preset = config.preset
    if preset is None and config.layers is None:
        preset = "3M" if device_type == "cpu" else "stories15M"
    if preset is not None:
        shape = PRESETS[preset]
        ffn = shape.intermediate_size if config.hidden is None else ffn_for(config.hidden)
        kv_heads = shape.num_key_value_heads if config.heads is None else config.heads
        config = dataclasses.replace(
            config,
            preset=preset,
            layers=config.layers or shape.num_hidden_layers,
            hidden=config.hidden or shape.hidden_size,
            heads=config.heads or shape.num_attention_heads,
            kv_heads=config.kv_heads or kv_heads,
            ffn=config.ffn or ffn,
            context=config.context or shape.max_position_embeddings,
        )
    assert config.hidden and config.heads
    return dataclasses.replace(
        config,
        kv_heads=config.kv_heads or config.heads,
        ffn=config.ffn or ffn_for(config.hidden),
        context=config.context or 512,
    )


def ffn_for(hidden: int) -> int:
    """The default FFN width: 8/3 of the hidden size, rounded up to a multiple of 32."""
    return (hidden * 8 // 3 + 31) // 32 * 32


def model_config(config: TrainConfig, tokenizer: Tokenizer) -> ModelConfig:
    """The network of a filled configuration. Raises ConfigError if the shape is impossible."""
    assert config.hidden and config.heads and config.layers and config.kv_heads and config.ffn and config.context
    _bos_id, eos_id = bos_eos_ids(tokenizer)
    return ModelConfig(
        vocab_size=tokenizer.vocab_size,
        hidden_size=config.hidden,
        intermediate_size=config.ffn,
        num_hidden_layers=config.layers,
        num_attention_heads=config.heads,
        num_key_value_heads=config.kv_heads,
        head_dim=config.hidden // config.heads,
        max_position_embeddings=config.context,
        rope_theta=config.rope_theta,
        tie_word_embeddings=config.tie_embeddings,
        bos_token_id=tokenizer.bos_id,
        eos_token_id=eos_id,
    )


def bos_eos_ids(tokenizer: Tokenizer) -> tuple[int, int]:
    """The ids before and after a document. Raises TrainingError if the tokenizer has no EOS."""
    if tokenizer.eos_id is None:
        raise TrainingError("the tokenizer has no end-of-text id to end documents with; use another tokenizer")
    return (tokenizer.eos_id if tokenizer.bos_id is None else tokenizer.bos_id), tokenizer.eos_id

"""Turns a network's parameters into the optimizer that trains them, and its state into named tensors and back."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from llamita.errors import CheckpointError

HALF_LIFE_TOKENS = 500_000  # of the memory of squared gradients


def beta2_for(tokens_per_step: int) -> float:
    """Adam's second decay whose memory halves every HALF_LIFE_TOKENS, between 0.9 and 0.999 (arXiv 2507.07101)."""
    return float(min(0.999, max(0.9, 0.5 ** (tokens_per_step / HALF_LIFE_TOKENS))))


def learning_rate_for(hidden_size: int) -> float:
    """Adam's peak learning rate for a width: 4e-3 up to 128, then falling with 1/sqrt(width)."""
    return 4e-3 * min(1.0, (128 / hidden_size) ** 0.5)


def build_optimizer(
    model: nn.Module, *, learning_rate: float, weight_decay: float, beta1: float, beta2: float
) -> torch.optim.Optimizer:
    """AdamW, fused: matrices of the layers decay; embeddings, classifier and norms do not (SmolLM's finding)."""
    decaying: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        is_layer_matrix = parameter.ndim == 2 and "embed_tokens" not in name and "lm_head" not in name
        (decaying if is_layer_matrix else others).append(parameter)
    groups = [{"params": decaying, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=learning_rate, betas=(beta1, beta2), eps=1e-8, fused=True)


def set_learning_rate(optimizer: torch.optim.Optimizer, learning_rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = learning_rate


def optimizer_tensors(optimizer: torch.optim.Optimizer, model: nn.Module) -> dict[str, Tensor]:
    """The optimizer's state as `STATE/PARAMETER` → tensor."""
    return {
        f"{key}/{name}": value
        for name, parameter in model.named_parameters()
        for key, value in optimizer.state[parameter].items()
    }


def restore_optimizer(optimizer: torch.optim.Optimizer, model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """What optimizer_tensors gave, back into place. Raises CheckpointError if the state is of another network."""
    parameters = dict(model.named_parameters())
    for key, name, value in _split_names(tensors):
        if name not in parameters:
            raise CheckpointError(f"cannot resume: the optimizer's state has an unknown tensor {key}/{name}")
        parameter = parameters[name]
        if value.ndim > 0 and value.shape != parameter.shape:
            raise CheckpointError(
                f"cannot resume: optimizer state {key}/{name}: expected shape {list(parameter.shape)}, "
                f"found {list(value.shape)}"
            )
        optimizer.state[parameter][key] = value.to(parameter.device, copy=True)
    missing = [name for name, parameter in parameters.items() if tensors and not optimizer.state[parameter]]
    if missing:
        raise CheckpointError(f"cannot resume: the optimizer's state lacks {missing[0]}")


def _split_names(tensors: Mapping[str, Tensor]) -> Iterator[tuple[str, str, Tensor]]:
    for full_name, value in tensors.items():
        key, _, name = full_name.partition("/")
        yield key, name, value

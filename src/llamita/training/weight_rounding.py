"""Quantization-aware training: near the end of a run, the network computes with the weights that a
model file will hold.

A step rounds the weights as the exporter does, computes the gradient there, and changes the exact
weights by it (the straight-through estimator, Bengio et al. 2013, arXiv 1308.3432).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Final

import torch
from torch import Tensor, nn

from llamita.config import ModelConfig
from llamita.convert.quant_mix import assign_types, quant_mix
from llamita.errors import FormatError
from llamita.formats.tensor_table import tensor_table
from llamita.formats.tensor_types import TypeName, dequantize, quantize
from llamita.training.distributed import local_tensor
from llamita.training.divergence import DivergenceError

START: Final = 0.8  # of the run; an earlier start is worse (docs/experiments.md)


class WeightRounding:
    """Rounds a network's matrices to the types that `llamita export --type` gives them."""

    def __init__(self, model: nn.Module, config: ModelConfig, type: str) -> None:
        """type: one of QUANT_MIXES. Raises ConfigError."""
        specs = tensor_table(config)
        types = assign_types({spec.gguf: spec.shape for spec in specs}, quant_mix(type, "train"))
        parameters = dict(model.named_parameters())
        self._matrices: list[tuple[nn.Parameter, TypeName]] = [
            (parameters[spec.huggingface], types[spec.gguf]) for spec in specs if types[spec.gguf] != "F32"
        ]

    @contextlib.contextmanager
    def applied(self, step: int) -> Iterator[None]:
        """Meanwhile the weights are the rounded ones. step: for the message of a DivergenceError, if a
        weight is no number."""
        exact = [local_tensor(parameter).detach().clone() for parameter, _ in self._matrices]
        try:
            for (parameter, type), weights in zip(self._matrices, exact, strict=True):
                _overwrite(parameter, _rounded(weights, type, step))
            yield
        finally:
            for (parameter, _), weights in zip(self._matrices, exact, strict=True):
                _overwrite(parameter, weights)


def _overwrite(parameter: nn.Parameter, values: Tensor) -> None:
    local_tensor(parameter).data.copy_(values)  # .data: backward passes do not count it as a change


def _rounded(weights: Tensor, type: TypeName, step: int) -> Tensor:
    """weights [rows, columns]: whole rows, of a shard too; blocks do not span rows."""
    numbers = weights.float().cpu().numpy()
    try:
        stored = quantize(numbers, type)
    except FormatError as error:
        raise DivergenceError(f"step {step}: {error}") from error
    return torch.from_numpy(dequantize(stored, type, numbers.shape))

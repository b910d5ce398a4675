"""Frozen linear layers with weights in four bits, for QLoRA (arXiv 2305.14314).

bitsandbytes quantizes: a weight is one of the 16 values of NF4, times the largest magnitude in its
block of 64 weights. Those magnitudes are kept in eight bits, scaled in blocks of 256 ("double
quantization"). Products are computed with the weights of one layer at a time in the type of the
input.
"""

from __future__ import annotations

import functools
import importlib.util
import logging
from typing import Any, Final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llamita.errors import ConfigError

BLOCK_WEIGHTS: Final = 64
WEIGHT_BYTES: Final = 0.5 + 1 / BLOCK_WEIGHTS + 4 / (256 * BLOCK_WEIGHTS)


class Linear4bit(nn.Linear):
    """A linear layer that does not learn. Loading a state_dict quantizes its weight, from then on
    uint8 [in * out / 2, 1]."""

    quant_state: Any

    def __init__(self, like: nn.Linear, device: torch.device, compute: torch.dtype) -> None:
        """Of the size of another layer, without a weight yet. compute: the type of the inputs."""
        super().__init__(like.in_features, like.out_features, like.bias is not None, device="meta")
        self.register_parameter("weight", None)
        self.device, self.compute = device, compute

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        weight = state_dict.pop(f"{prefix}weight", None)
        if weight is not None:
            packed, self.quant_state = quantize(weight.to(self.device), self.compute)
            self.weight = nn.Parameter(packed, requires_grad=False)
        super()._load_from_state_dict(state_dict, prefix, *rest)

    def forward(self, x: Tensor) -> Tensor:
        return linear_4bit(x, self.weight, self.quant_state, self.bias)


@functools.cache
def _functions() -> Any:
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it warns of packages that we do not need
    return importlib.import_module("bitsandbytes.functional")


def quantize(weight: Tensor, compute: torch.dtype) -> tuple[Tensor, Any]:
    """A float32 weight [out, in] → packed, state. compute: the type to dequantize to."""
    # flat: with rows that do not fill their blocks, version 0.50 unpacks wrong numbers on CPUs
    packed, state = _functions().quantize_4bit(
        weight.flatten(), blocksize=BLOCK_WEIGHTS, compress_statistics=True, quant_type="nf4"
    )
    state.dtype = compute
    return packed, state


def dequantize(packed: Tensor, state: Any, in_features: int) -> Tensor:
    """The weight [out, in]."""
    weight: Tensor = _functions().dequantize_4bit(packed, state)
    return weight.view(-1, in_features)


def linear_4bit(x: Tensor, packed: Tensor, state: Any, bias: Tensor | None) -> Tensor:
    """x weightᵀ + bias in the type of x."""
    out: Tensor = _Linear4bit.apply(x, packed, state)  # type: ignore[no-untyped-call]
    return out if bias is None else out + bias.to(x.dtype)


class _Linear4bit(torch.autograd.Function):
    """x weightᵀ, whose backward pass dequantizes again instead of keeping the weight."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, packed: Tensor, state: Any) -> Tensor:
        ctx.save_for_backward(packed)
        ctx.state = state
        ctx.in_features = x.shape[-1]
        return F.linear(x, dequantize(packed, state, ctx.in_features).to(x.dtype))

    @staticmethod
    def backward(ctx: Any, *outputs: Tensor) -> tuple[Tensor | None, ...]:
        (packed,) = ctx.saved_tensors
        weight = dequantize(packed, ctx.state, ctx.in_features)
        return outputs[0] @ weight.to(outputs[0].dtype), None, None


def check_4bit(device: torch.device) -> None:
    """Raise ConfigError unless bitsandbytes is installed and computes on the device."""
    if importlib.util.find_spec("bitsandbytes") is None:
        raise ConfigError("finetune: --load-in-4bit needs the package bitsandbytes: pip install 'llamita[qlora]'")
    weight = torch.linspace(-1, 1, 3 * BLOCK_WEIGHTS, device=device).view(2, -1)
    try:
        found = dequantize(*quantize(weight, torch.float32), weight.shape[1])
        is_close, reason = torch.allclose(found, weight, rtol=0, atol=0.2), "wrong results"
    except Exception as error:  # the library's own, of any type
        is_close, reason = False, (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
    if not is_close:
        raise ConfigError(
            f"finetune: --load-in-4bit: bitsandbytes does not compute on {device}: {reason}; leave the option out"
        )

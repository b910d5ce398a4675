"""LoRA (arXiv 2106.09685): trains low-rank updates of linear layers and freezes everything else.

A layer y = W x becomes y = W x + s B A dropout(x) with A [R, in] and B [out, R]; s is alpha / R, or
alpha / √R for rsLoRA (arXiv 2312.03732). W is not copied, and has no gradient or optimizer state;
nor has a bias.
Parameter names are PEFT's: `weight` and `bias` keep their names, the updates are `lora_A.weight` and
`lora_B.weight`.

Shape letters: R rank.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llamita.config import ModelConfig, check
from llamita.finetune.linear_4bit import Linear4bit, linear_4bit
from llamita.formats.tensor_table import TensorSpec, tensor_table
from llamita.model.llama import Linear, Llama

Layer = TypeVar("Layer", bound=nn.Module)

LINEAR_LAYERS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@dataclasses.dataclass(frozen=True)
class LoraConfig:
    """The settings of LoRA. alpha: default twice the rank. Raises ConfigError."""

    rank: int = 16
    alpha: float | None = None
    dropout: float = 0.0
    rslora: bool = False
    layers: tuple[str, ...] = LINEAR_LAYERS

    def __post_init__(self) -> None:
        check(1 <= self.rank <= 65_536, f"lora: rank: expected 1 to 65,536, found {self.rank}")
        check(
            self.alpha is None or (math.isfinite(self.alpha) and self.alpha > 0),
            f"lora: alpha: expected a positive number, found {self.alpha}",
        )
        check(0.0 <= self.dropout < 1.0, f"lora: dropout: expected a share from 0 to below 1, found {self.dropout}")
        check(len(self.layers) > 0, "lora: layers: expected at least one, found none")
        unknown = [name for name in self.layers if name not in LINEAR_LAYERS]
        check(not unknown, f"lora: layers: expected some of {', '.join(LINEAR_LAYERS)}, found {', '.join(unknown)}")

    @property
    def alpha_or_default(self) -> float:
        return 2.0 * self.rank if self.alpha is None else float(self.alpha)

    @property
    def scale(self) -> float:
        """s, the factor of B A."""
        return lora_scale(self.alpha_or_default, self.rank, self.rslora)


def lora_scale(alpha: float, rank: int, rslora: bool) -> float:
    return alpha / (math.sqrt(rank) if rslora else rank)


class LoraLinear(nn.Module):
    """A linear layer with its low-rank update: x [..., in] → [..., out]."""

    def __init__(self, linear: nn.Linear, rank: int, scale: float, dropout: float = 0.0) -> None:
        """Takes over the linear layer's weight and bias and freezes them; the update is on its device,
        in float32."""
        super().__init__()
        linear.requires_grad_(False)
        self.weight, self.bias = linear.weight, linear.bias
        self.quant_state = linear.quant_state if isinstance(linear, Linear4bit) else None
        self.scale, self.dropout = scale, dropout
        device = linear.weight.device
        self.lora_A = Linear(linear.in_features, rank, bias=False, device=device, dtype=torch.float32)
        self.lora_B = Linear(rank, linear.out_features, bias=False, device=device, dtype=torch.float32)

    def forward(self, x: Tensor) -> Tensor:
        if self.quant_state is not None:
            out = linear_4bit(x, self.weight, self.quant_state, self.bias)
        else:
            out = F.linear(x, self.weight.to(x.dtype), None if self.bias is None else self.bias.to(x.dtype))
        narrow = self.lora_A(F.dropout(x, self.dropout, self.training))  # [..., R]
        rows = out.flatten(0, -2), narrow.flatten(0, -2)
        # one fused operation, without another tensor of the size of `out`
        return torch.addmm(*rows, self.lora_B.weight.to(x.dtype).t(), alpha=self.scale).view_as(out)


@dataclasses.dataclass(frozen=True)
class LoraUpdate:
    """One layer's update: a [R, in], b [out, R]."""

    a: Tensor
    b: Tensor
    scale: float

    @property
    def rank(self) -> int:
        return self.a.shape[0]

    def delta(self) -> Tensor:
        """s B A, float32 [out, in], which merging adds to the weight."""
        return (self.b.float() @ self.a.float()) * self.scale


def lora_specs(config: ModelConfig, layers: tuple[str, ...] = LINEAR_LAYERS) -> Iterator[tuple[str, TensorSpec]]:
    """(module name, row of the tensor table) of every linear layer of the decoder with one of these
    names."""
    for spec in tensor_table(config):
        module = spec.huggingface.removesuffix(".weight")
        if spec.layer is not None and module.rpartition(".")[2] in layers:
            yield module, spec


def add_lora(model: Llama, config: LoraConfig, generator: torch.Generator | None = None) -> Llama:
    """Freeze the network in place and add updates that change nothing yet, see
    initialize_updates."""
    model.requires_grad_(False)
    for name, _ in lora_specs(model.config, config.layers):
        _add_update(model, name, config.rank, config.scale, config.dropout)
    initialize_updates(model, generator)
    return model


@torch.no_grad()
def initialize_updates(model: Llama, generator: torch.Generator | None = None) -> None:
    """A uniform in ±1/√in (Kaiming with a = √5, as in PEFT), drawn on the CPU; B zero."""
    for name, layer in lora_layers(model):
        bound = 1 / math.sqrt(layer.lora_A.in_features)
        a = torch.empty(layer.lora_A.weight.shape).uniform_(-bound, bound, generator=generator)
        load_update(model, name, a, torch.zeros(layer.lora_B.weight.shape))


def load_update(model: nn.Module, name: str, a: Tensor, b: Tensor) -> None:
    """Set the update of one layer, in a sharded network too. a [R, in], b [out, R]."""
    model.load_state_dict({f"{name}.lora_A.weight": a, f"{name}.lora_B.weight": b}, strict=False)


def attach_updates(model: Llama, updates: Mapping[str, LoraUpdate], dropout: float = 0.0) -> Llama:
    """Freeze the network in place and add these updates to the named linear layers."""
    model.requires_grad_(False)
    for name, update in updates.items():
        layer = _add_update(model, name, update.rank, update.scale, dropout)
        with torch.no_grad():
            layer.lora_A.weight.copy_(update.a)
            layer.lora_B.weight.copy_(update.b)
    return model


def lora_layers(model: nn.Module) -> Iterator[tuple[str, LoraLinear]]:
    """The layers with an update, by name."""
    for name, module in model.named_modules():
        if isinstance(module, LoraLinear):
            yield name, module


def updates_of(model: nn.Module) -> dict[str, LoraUpdate]:
    """A network's updates by layer name; the tensors share its memory."""
    return {
        name: LoraUpdate(layer.lora_A.weight.detach(), layer.lora_B.weight.detach(), layer.scale)
        for name, layer in lora_layers(model)
    }


def _add_update(model: Llama, name: str, rank: int, scale: float, dropout: float) -> LoraLinear:
    return replace_layer(model, name, lambda linear: LoraLinear(linear, rank, scale, dropout))


def replace_layer(model: Llama, name: str, make: Callable[[nn.Linear], Layer]) -> Layer:
    """Put make(layer) in the place of a linear layer, and return it."""
    parent, _, last = name.rpartition(".")
    linear = model.get_submodule(name)
    assert isinstance(linear, nn.Linear), f"{name} has an update already"
    layer = make(linear)
    layer.train(linear.training)
    setattr(model.get_submodule(parent), last, layer)
    return layer

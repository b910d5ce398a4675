"""Muon and AdamW: their default learning rates, construction, and saving and restoring their state.

Shape letters: N matrices of one shape, R rows, C columns.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from llamita.config import RunConfig
from llamita.errors import CheckpointError
from llamita.training.distributed import Ranks, local_tensor
from llamita.training.distributed_muon import MatrixFunction, distribute_replicated, distribute_row_sharded

HALF_LIFE_TOKENS = 500_000  # of the average of squared gradients
MUON_RATE, MUON_MOMENTUM, ROW_BETA2 = 0.02, 0.9, 0.95
AVERAGE = "average"  # in any optimizer's state: the mean of the weights after the last steps
EPSILON = 1e-8  # added to the sizes of rows
ROW_SQUARES = "row_squares"  # Muon's state: the running mean of the squared norm of each row
FULL_STEP_TOKENS = 2048
ORTHOGONAL_STEPS = 5
# Five times x → a x + b x³ + c x⁵ maps singular values of 0.003 to 1 to 0.68 to 1.20. The steep
# slope at 0 raises small values fast, at the cost of a band instead of a point (Keller Jordan,
# "Muon", 2024).
QUINTIC = (3.4445, -4.7750, 2.0315)


def beta2_for(tokens_per_step: int) -> float:
    """Adam's beta2 with a half-life of HALF_LIFE_TOKENS, between 0.9 and 0.999 (arXiv
    2507.07101)."""
    return float(min(0.999, max(0.9, 0.5 ** (tokens_per_step / HALF_LIFE_TOKENS))))


def learning_rate_for(hidden_size: int) -> float:
    """Adam's peak learning rate for a width: 4e-3 up to 128, then proportional to 1/sqrt(width)."""
    return 4e-3 * min(1.0, (128 / hidden_size) ** 0.5)


def embedding_lr_for(hidden_size: int) -> float:
    """Adam's peak learning rate for embeddings and norms in pretraining: ten times that of the
    matrices, because each token moves only its own row (docs/experiments.md)."""
    return 10 * learning_rate_for(hidden_size)


def small_step_scale(tokens_per_step: int) -> float:
    """The factor for the rates above, which hold from FULL_STEP_TOKENS per step on: smaller steps
    are noisier, so it falls with sqrt(tokens) (docs/experiments.md)."""
    return float(min(1.0, (tokens_per_step / FULL_STEP_TOKENS) ** 0.5))


def orthogonalize(matrices: Tensor, *, in_bfloat16: bool = False) -> Tensor:
    """[N, R, C] with R <= C → approximately the nearest matrices with orthonormal rows: U Vᵀ of U S
    Vᵀ.

    The singular values end in a band around 1 (see QUINTIC). Newton-Schulz steps need only matrix
    products: in bfloat16 on CUDA, on CPUs if in_bfloat16.
    """
    assert matrices.ndim == 3 and matrices.shape[1] <= matrices.shape[2], matrices.shape
    in_bfloat16 = in_bfloat16 or matrices.is_cuda
    x = matrices.to(torch.bfloat16 if in_bfloat16 else torch.float32)
    x = x / (torch.linalg.vector_norm(matrices, dim=(1, 2), keepdim=True) + 1e-7).to(x.dtype)  # singular values <= 1
    return (newton_schulz(x) if in_bfloat16 else newton_schulz_by_gram(x)).to(matrices.dtype)


def newton_schulz(x: Tensor) -> Tensor:
    """x → (a + b x xᵀ + c (x xᵀ)²) x, ORTHOGONAL_STEPS times. Works in any floating-point type."""
    a, b, c = QUINTIC
    for _ in range(ORTHOGONAL_STEPS):
        gram = x @ x.mT  # [N, R, R]
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x


def newton_schulz_by_gram(x: Tensor) -> Tensor:
    """newton_schulz with its steps combined into one [R, R] factor.

    All polynomials of x xᵀ commute, so the next value of x xᵀ is P (x xᵀ) P. Two products with the
    long side instead of ten. Squaring loses half the digits: float32 can afford that, bfloat16
    cannot.
    """
    a, b, c = QUINTIC
    gram, factor = x @ x.mT, None  # [N, R, R]
    for step in range(ORTHOGONAL_STEPS):
        polynomial = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        polynomial.diagonal(dim1=1, dim2=2).add_(a)
        factor = polynomial if factor is None else polynomial @ factor
        if step < ORTHOGONAL_STEPS - 1:
            gram = polynomial @ gram @ polynomial
    assert factor is not None
    return factor @ x


class Muon(torch.optim.Optimizer):
    """Orthogonalized momentum (Keller Jordan, "Muon", 2024) with rows of one size (NorMuon, arXiv
    2510.05491).

    The direction of a matrix [R, C] is U Vᵀ of its Nesterov momentum: all its singular values move
    equally far. Each row is then divided by its size, the root of the running mean of its squared
    norm, and moves by about lr. That changes a unit of activations by the same amount for any shape,
    so one lr serves all matrices. Weight decay is decoupled, as in AdamW. orthogonalizer: of all
    matrices, the work divided between processes (distributed_muon.py); by default each process does
    all of it.
    """

    def __init__(
        self,
        parameters: list[nn.Parameter],
        *,
        lr: float,
        momentum: float,
        weight_decay: float,
        orthogonalizer: MatrixFunction | None = None,
    ) -> None:
        assert all(parameter.ndim == 2 for parameter in parameters)
        self.orthogonalizer = orthogonalizer or (lambda matrices, shapes: orthogonalize_each(matrices))
        super().__init__(parameters, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """One step; parameters without a gradient stay unchanged."""
        assert closure is None
        for group in self.param_groups:
            parameters = [parameter for parameter in group["params"] if parameter.grad is not None]
            if not parameters:
                continue
            for parameter in parameters:
                if not self.state[parameter]:
                    self.state[parameter]["momentum"] = torch.zeros_like(parameter)
            # sharded matrices: this process's rows
            gradients = [local_tensor(parameter.grad) for parameter in parameters if parameter.grad is not None]
            momenta = [local_tensor(self.state[parameter]["momentum"]) for parameter in parameters]
            weights = [local_tensor(parameter) for parameter in parameters]
            shapes = [_shape(parameter) for parameter in parameters]
            torch._foreach_lerp_(momenta, gradients, 1 - group["momentum"])
            ahead = torch._foreach_lerp(gradients, momenta, group["momentum"])
            directions = self.orthogonalizer(ahead, shapes)
            torch._foreach_div_(directions, self._row_sizes(parameters, directions))
            torch._foreach_mul_(weights, 1 - group["lr"] * group["weight_decay"])
            torch._foreach_add_(weights, directions, alpha=-group["lr"])

    def _row_sizes(self, parameters: Sequence[nn.Parameter], directions: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """The sizes of the rows of each direction, [R, 1], or of this process's rows."""
        norms = [torch.linalg.vector_norm(direction, dim=1, keepdim=True) for direction in directions]
        squares = torch._foreach_mul(norms, norms)
        for parameter, square in zip(parameters, squares, strict=True):
            if ROW_SQUARES not in self.state[parameter]:
                self.state[parameter][ROW_SQUARES] = torch.zeros_like(state_layout(ROW_SQUARES, parameter))
                local_tensor(self.state[parameter][ROW_SQUARES]).copy_(square)
        means = [local_tensor(self.state[parameter][ROW_SQUARES]) for parameter in parameters]
        torch._foreach_lerp_(means, squares, 1 - ROW_BETA2)
        sizes = torch._foreach_sqrt(means)
        torch._foreach_add_(sizes, EPSILON)
        return sizes


def _shape(matrix: Tensor) -> tuple[int, int]:
    return matrix.shape[0], matrix.shape[1]


def state_layout(key: str, parameter: Tensor) -> Tensor:
    """A tensor with the shape, and the shards, of this part of a parameter's state."""
    return parameter[:, :1] if key == ROW_SQUARES and parameter.ndim == 2 else parameter


def orthogonalize_each(matrices: Sequence[Tensor], *, in_bfloat16: bool = False) -> list[Tensor]:
    """Each matrix orthogonalized. Matrices of one shape form one batch; tall ones are
    transposed."""
    batches: dict[tuple[int, int], list[int]] = {}
    for index, matrix in enumerate(matrices):
        rows, columns = _shape(matrix)
        batches.setdefault((min(rows, columns), max(rows, columns)), []).append(index)
    result = list(matrices)
    for shape, indices in batches.items():
        wide = [matrices[i] if _shape(matrices[i]) == shape else matrices[i].mT for i in indices]
        for i, direction in zip(
            indices, orthogonalize(torch.stack(wide), in_bfloat16=in_bfloat16).unbind(), strict=True
        ):
            result[i] = direction if _shape(matrices[i]) == shape else direction.mT
    return result


class Optimizers:
    """The optimizers of a network. Each parameter belongs to exactly one of them."""

    def __init__(self, parts: list[torch.optim.Optimizer]) -> None:
        self.parts = parts
        for group in self.groups():
            group["peak_lr"] = group["lr"]

    def groups(self) -> Iterator[dict[str, Any]]:
        for part in self.parts:
            yield from part.param_groups

    def scale_learning_rates(self, share: float) -> None:
        """Set every learning rate to this share of its peak."""
        for group in self.groups():
            group["lr"] = share * group["peak_lr"]

    def step(self) -> None:
        for part in self.parts:
            part.step()

    def zero_grad(self) -> None:
        for part in self.parts:
            part.zero_grad(set_to_none=True)

    @torch.no_grad()
    def average(self, share: float) -> None:
        """Move the average of each parameter towards it by this share; 1 begins an average (stochastic
        weight averaging, Izmailov et al. 2018, arXiv 1803.05407)."""
        for parameter, state in self._states():
            if share == 1:
                state[AVERAGE] = parameter.detach().clone()
            else:
                local_tensor(state[AVERAGE]).lerp_(local_tensor(parameter.detach()), share)

    @torch.no_grad()
    def swap_averages(self) -> None:
        """Exchange each parameter and its average."""
        for parameter, state in self._states():
            weights, average = local_tensor(parameter.detach()), local_tensor(state[AVERAGE])
            before = weights.clone()
            weights.copy_(average)
            average.copy_(before)

    def _states(self) -> Iterator[tuple[nn.Parameter, dict[str, Any]]]:
        """Each parameter with its state."""
        for part in self.parts:
            for group in part.param_groups:
                yield from ((parameter, part.state[parameter]) for parameter in group["params"])

    def clear(self) -> None:
        """Drop all gradients and all optimizer state."""
        self.zero_grad()
        for part in self.parts:
            part.state.clear()

    def state(self, parameter: nn.Parameter) -> dict[str, Any]:
        """A parameter's state, empty before the first step."""
        for part in self.parts:
            if any(other is parameter for group in part.param_groups for other in group["params"]):
                state: dict[str, Any] = part.state[parameter]
                return state
        raise AssertionError("the parameter has no optimizer")


def _trained(model: nn.Module) -> dict[str, nn.Parameter]:
    """The trainable parameters by name."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def build_optimizer(model: nn.Module, config: RunConfig, ranks: Ranks | None = None) -> Optimizers:
    """The optimizers of a filled configuration.

    adamw: fused AdamW; only the matrices of the layers decay, not embeddings, classifier and norms
    (SmolLM's finding). muon: Muon for the matrices of the layers, AdamW for the rest. ranks: with
    several processes, they divide Muon's work; each runs AdamW on its part of the network.
    """
    assert config.learning_rate is not None and config.beta2 is not None and config.weight_decay is not None
    matrices: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for name, parameter in _trained(model).items():
        is_layer_matrix = parameter.ndim == 2 and "embed_tokens" not in name and "lm_head" not in name
        (matrices if is_layer_matrix else others).append(parameter)
    others_rate = config.learning_rate if config.embedding_lr is None else config.embedding_lr
    groups: list[dict[str, Any]] = [{"params": others, "weight_decay": 0.0, "lr": others_rate}]
    parts: list[torch.optim.Optimizer] = []
    if config.optimizer == "muon":
        orthogonalizer = _orthogonalizer(matrices, ranks, in_bfloat16=config.dtype == "bfloat16")
        rate, decay = config.learning_rate, config.weight_decay
        parts.append(Muon(matrices, lr=rate, momentum=MUON_MOMENTUM, weight_decay=decay, orthogonalizer=orthogonalizer))
    else:
        groups.insert(0, {"params": matrices, "weight_decay": config.weight_decay})
    betas = (config.beta1, config.beta2)
    parts.append(torch.optim.AdamW(groups, lr=config.learning_rate, betas=betas, eps=1e-8, fused=True))
    return Optimizers(parts)


def _orthogonalizer(matrices: list[nn.Parameter], ranks: Ranks | None, *, in_bfloat16: bool) -> MatrixFunction:
    """How these matrices are orthogonalized, and how processes divide the work."""
    function = functools.partial(orthogonalize_each, in_bfloat16=in_bfloat16)
    if ranks is None or ranks.world_size == 1:
        return lambda matrices, shapes: function(matrices)
    if any(local_tensor(matrix) is not matrix for matrix in matrices):
        return distribute_row_sharded(function)
    # directions computed in bfloat16 lose nothing when they are sent in it
    sent_rounded = in_bfloat16 or ranks.device.type == "cuda"
    return distribute_replicated(function, torch.bfloat16 if sent_rounded else torch.float32)


def optimizer_tensors(optimizers: Optimizers, model: nn.Module) -> dict[str, Tensor]:
    """The optimizers' state as `STATE/PARAMETER` → tensor."""
    return {
        f"{key}/{name}": value
        for name, parameter in _trained(model).items()
        for key, value in optimizers.state(parameter).items()
    }


def restore_optimizer(
    optimizers: Optimizers, model: nn.Module, tensors: Mapping[str, Tensor], *, is_averaged: bool = False
) -> None:
    """Restore the tensors of optimizer_tensors; is_averaged: averages too. Raises CheckpointError if
    they are another network's."""
    parameters = _trained(model)
    states = {name: optimizers.state(parameter) for name, parameter in parameters.items()}
    for full_name, value in tensors.items():
        key, _, name = full_name.partition("/")
        if key == AVERAGE and not is_averaged:
            continue
        if name not in parameters:
            raise CheckpointError(f"cannot resume: optimizer state has an unknown tensor {key}/{name}")
        parameter = parameters[name]
        expected = state_layout(key, parameter).shape
        if value.ndim > 0 and value.shape != expected:
            raise CheckpointError(
                f"cannot resume: optimizer state {key}/{name}: expected shape {list(expected)}, "
                f"found {list(value.shape)}"
            )
        states[name][key] = value.to(parameter.device, copy=True)
    missing = [name for name, state in states.items() if tensors and not state]
    if is_averaged:
        missing += [f"{AVERAGE}/{name}" for name, state in states.items() if AVERAGE not in state]
    if missing:
        raise CheckpointError(f"cannot resume: optimizer state lacks {missing[0]}")

"""AdamW and Muon: decay, steps, orthogonality, and restoring the state to the bit."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any, Literal

import pytest

torch = pytest.importorskip("torch")

from llamita.config import ModelConfig, TrainConfig  # noqa: E402
from llamita.errors import CheckpointError  # noqa: E402
from llamita.model.llama import Llama  # noqa: E402
from llamita.training.loss import SummedLoss  # noqa: E402
from llamita.training.optimizer import (  # noqa: E402
    ORTHOGONAL_STEPS,
    QUINTIC,
    ROW_BETA2,
    Muon,
    Optimizers,
    beta2_for,
    build_optimizer,
    newton_schulz,
    newton_schulz_by_gram,
    optimizer_tensors,
    orthogonalize,
    restore_optimizer,
)

TINY = ModelConfig(50, 16, 24, 2, 4, 2, 4, 32)
OPTIMIZERS = ("adamw", "muon")


def make_config(**changes: Any) -> TrainConfig:
    values: dict[str, Any] = {"learning_rate": 1e-2, "beta2": 0.95, "weight_decay": 0.1}
    return TrainConfig(data=Path("store"), out=Path("run"), **(values | changes))


def random_matrices(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def make(optimizer: str, **changes: Any) -> tuple[Llama, Optimizers]:
    model = Llama(TINY).initialize(torch.Generator().manual_seed(0))
    return model, build_optimizer(model, make_config(optimizer=optimizer, **changes))


def run_steps(model: Llama, optimizer: Optimizers, count: int) -> None:
    for step in range(count):
        ids = torch.arange(12).view(2, 6) + step
        SummedLoss(model)(ids, ids.flip(0)).backward()
        optimizer.step()
        optimizer.zero_grad()


# ---------------------------------------------------------------- orthogonalizing


@pytest.mark.parametrize("shape", [(3, 8, 8), (2, 16, 48), (1, 1, 9), (4, 64, 64)])
@pytest.mark.parametrize("in_bfloat16", [False, True])
def test_singular_values_end_in_a_band_around_one(shape: tuple[int, ...], in_bfloat16: bool) -> None:
    found = torch.linalg.svdvals(orthogonalize(random_matrices(*shape), in_bfloat16=in_bfloat16))
    before = torch.linalg.svdvals(random_matrices(*shape))
    assert found.max() < 1.25
    assert found[before > 0.01 * before.amax(dim=1, keepdim=True)].min() > 0.65


def test_the_band_is_the_one_that_is_documented() -> None:
    values = torch.linspace(0.003, 1, 100_001, dtype=torch.float64)
    a, b, c = QUINTIC
    for _ in range(ORTHOGONAL_STEPS):
        values = a * values + b * values**3 + c * values**5
    assert (round(values.min().item(), 2), round(values.max().item(), 2)) == (0.68, 1.2)


@pytest.mark.parametrize("in_bfloat16", [False, True])
def test_direction_is_that_of_the_polar_factor(in_bfloat16: bool) -> None:
    matrices = random_matrices(4, 24, 40)
    left, _, right = torch.linalg.svd(matrices, full_matrices=False)
    found, exact = orthogonalize(matrices, in_bfloat16=in_bfloat16), left @ right
    assert found.dtype == torch.float32
    cosine = (found * exact).sum(dim=(1, 2)) / (found.norm(dim=(1, 2)) * exact.norm(dim=(1, 2)))
    assert cosine.min() > 0.97
    assert (found - exact).norm() / exact.norm() < 0.25


def test_the_size_of_a_gradient_does_not_matter() -> None:
    matrices = random_matrices(2, 8, 24)
    torch.testing.assert_close(orthogonalize(matrices * 1e-4), orthogonalize(matrices), rtol=1e-3, atol=1e-4)
    assert orthogonalize(torch.zeros(1, 4, 4)).abs().max() == 0, "no gradient, no step, and no 0 / 0"


def test_a_batch_of_matrices_equals_one_by_one() -> None:
    matrices = random_matrices(5, 24, 40)
    apart = torch.cat([orthogonalize(matrix[None]) for matrix in matrices])
    torch.testing.assert_close(orthogonalize(matrices), apart, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("smallest", [0.1, 1e-3, 1e-5, 0.0])
def test_the_fast_steps_equal_the_plain_ones(smallest: float) -> None:
    """For singular values down to almost 0, which squaring loses first."""
    left, _, right = torch.linalg.svd(random_matrices(3, 16, 48), full_matrices=False)
    values = torch.linspace(1.0, smallest, 16)
    matrices = left * values @ right
    matrices = matrices / matrices.norm(dim=(1, 2), keepdim=True)
    exact = newton_schulz(matrices.double())
    torch.testing.assert_close(newton_schulz_by_gram(matrices), newton_schulz(matrices), rtol=1e-3, atol=2e-4)
    assert (newton_schulz_by_gram(matrices) - exact).abs().max() < 2e-4


# ---------------------------------------------------------------- Muon


def slow_muon(weight: torch.Tensor, gradients: list[torch.Tensor], lr: float, momentum: float, decay: float) -> Any:
    """The same steps on one matrix, written out plainly."""
    rows, columns = weight.shape
    memory, squares = torch.zeros_like(weight), None
    for gradient in gradients:
        memory = momentum * memory + (1 - momentum) * gradient
        ahead = momentum * memory + (1 - momentum) * gradient
        tall = rows > columns
        direction = orthogonalize((ahead.T if tall else ahead)[None])[0]
        direction = direction.T if tall else direction
        now = (direction**2).sum(dim=1)
        squares = now if squares is None else ROW_BETA2 * squares + (1 - ROW_BETA2) * now
        weight = (1 - lr * decay) * weight - lr * direction / squares.sqrt()[:, None]
    return weight


def test_muon_equals_the_plain_formula_for_wide_tall_and_square() -> None:
    shapes = [(8, 24), (24, 8), (8, 8), (24, 8)]
    parameters = [torch.nn.Parameter(random_matrices(*shape) * (i + 1)) for i, shape in enumerate(shapes)]
    gradients = [[random_matrices(3, *p.shape)[step] * (i + 1) for step in range(3)] for i, p in enumerate(parameters)]
    expected = [
        slow_muon(p.detach(), of, lr=0.1, momentum=0.9, decay=0.2) for p, of in zip(parameters, gradients, strict=True)
    ]
    muon = Muon(parameters, lr=0.1, momentum=0.9, weight_decay=0.2)
    for step in range(3):
        for parameter, of in zip(parameters, gradients, strict=True):
            parameter.grad = of[step].clone()
        muon.step()
    for parameter, weight in zip(parameters, expected, strict=True):
        torch.testing.assert_close(parameter.detach(), weight, rtol=1e-4, atol=1e-4)


def test_rows_with_small_directions_move_as_far_as_the_others() -> None:
    """Two equal rows share one direction: orthogonalized, each has 0.7 of the length of another."""
    gradient = random_matrices(4, 6)
    gradient[3] = gradient[2]
    parameter = torch.nn.Parameter(torch.zeros(4, 6))
    muon = Muon([parameter], lr=1.0, momentum=0.9, weight_decay=0.0)
    parameter.grad = gradient
    muon.step()
    apart = orthogonalize(gradient[None])[0].norm(dim=1)
    assert apart[3] < 0.85 * apart[0]
    torch.testing.assert_close(parameter.norm(dim=1), torch.ones(4))


def test_muon_trains_the_matrices_of_layers_and_adamw_the_rest() -> None:
    model, optimizer = make("muon")
    muon, adamw = optimizer.parts
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    with_muon, with_adamw = (
        {names[id(p)] for group in part.param_groups for p in group["params"]} for part in (muon, adamw)
    )
    assert with_muon == {name for name in names.values() if "_proj" in name}
    assert with_adamw == set(names.values()) - with_muon


# ---------------------------------------------------------------- both


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_only_matrices_of_layers_decay(kind: str) -> None:
    model = Llama(dataclasses.replace(TINY, tie_word_embeddings=False))
    optimizer = build_optimizer(model, make_config(optimizer=kind, weight_decay=0.3))
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    decays = {names[id(p)]: group["weight_decay"] for group in optimizer.groups() for p in group["params"]}
    assert decays.keys() == dict(model.named_parameters()).keys()
    assert {name for name, decay in decays.items() if decay} == {name for name in decays if "_proj" in name}


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_a_share_scales_every_learning_rate_from_its_peak(kind: str) -> None:
    _, optimizer = make(kind, learning_rate=0.4, embedding_lr=0.01)
    peaks = [group["lr"] for group in optimizer.groups()]
    assert peaks == [0.4, 0.01], "matrices of the layers, and the rest"
    _, same = make(kind, learning_rate=0.4)
    assert [group["lr"] for group in same.groups()] == [0.4, 0.4]
    for share in (0.5, 0.0, 1.0):
        optimizer.scale_learning_rates(share)
        assert [group["lr"] for group in optimizer.groups()] == [share * peak for peak in peaks]


def test_half_life_of_beta2() -> None:
    assert math.isclose(beta2_for(8192) ** (500_000 / 8192), 0.5)
    assert beta2_for(1) == 0.999 and beta2_for(10**9) == 0.9


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_state_is_restored_and_foreign_state_rejected(kind: str) -> None:
    model, optimizer = make(kind)
    run_steps(model, optimizer, 3)
    weights, state = model.state_dict(), optimizer_tensors(optimizer, model)
    copied, fresh = make(kind)
    copied.load_state_dict(weights)
    restore_optimizer(fresh, copied, state)
    run_steps(model, optimizer, 2)
    run_steps(copied, fresh, 2)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), copied.parameters(), strict=True))
    with pytest.raises(CheckpointError, match="unknown tensor exp_avg/nobody"):
        restore_optimizer(fresh, copied, {"exp_avg/nobody": torch.zeros(1)})
    with pytest.raises(CheckpointError, match=r"expected shape \[16\], found \[3\]"):
        restore_optimizer(fresh, copied, {"exp_avg/model.norm.weight": torch.zeros(3)})
    with pytest.raises(CheckpointError, match=r"row_squares/.*expected shape \[24, 1\], found \[24, 16\]"):
        restore_optimizer(fresh, copied, {"row_squares/model.layers.0.mlp.up_proj.weight": torch.zeros(24, 16)})
    with pytest.raises(CheckpointError, match=r"lacks model\.embed_tokens\.weight"):
        other, empty = make(kind)
        restore_optimizer(empty, other, {"exp_avg/model.norm.weight": torch.zeros(16)})


def test_muons_state_of_an_older_version_is_completed() -> None:
    """It has no sizes of rows: they begin with the first step."""
    model, optimizer = make("muon")
    run_steps(model, optimizer, 2)
    state = {name: value for name, value in optimizer_tensors(optimizer, model).items() if "row_squares" not in name}
    fresh, restored = make("muon")
    restore_optimizer(restored, fresh, state)
    run_steps(fresh, restored, 1)
    assert optimizer_tensors(restored, fresh).keys() == optimizer_tensors(optimizer, model).keys()
    assert all(parameter.isfinite().all() for parameter in fresh.parameters())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_run_in_bfloat16_orthogonalizes_in_it(dtype: Literal["float32", "bfloat16"], monkeypatch: Any) -> None:
    seen: list[bool] = []

    def watched(matrices: torch.Tensor, *, in_bfloat16: bool) -> torch.Tensor:
        seen.append(in_bfloat16)
        return matrices

    monkeypatch.setattr("llamita.training.optimizer.orthogonalize", watched)
    model = torch.nn.Linear(4, 4, bias=False)
    config = TrainConfig(data=Path("store"), out=Path("run"), optimizer="muon", learning_rate=0.1, beta2=0.9,
                         weight_decay=0.0, dtype=dtype)  # fmt: skip
    optimizer = build_optimizer(model, config)
    model.weight.grad = torch.ones(4, 4)
    optimizer.step()
    assert seen == [dtype == "bfloat16"]

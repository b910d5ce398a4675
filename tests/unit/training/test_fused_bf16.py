"""The passes in bfloat16 against the same network in float32: values, gradients, repeatability."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

import torch.nn.functional as F  # noqa: E402

from llamita.config import ModelConfig  # noqa: E402
from llamita.model.llama import Llama  # noqa: E402
from llamita.training import fused_bf16, fused_cpu  # noqa: E402
from llamita.training.loss import SummedLoss  # noqa: E402

BF16 = torch.bfloat16


def make_model(kv_heads: int = 2, tied: bool = True) -> Llama:
    config = ModelConfig(
        vocab_size=97, hidden_size=48, intermediate_size=80, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=kv_heads, head_dim=16, max_position_embeddings=32, tie_word_embeddings=tied,
    )  # fmt: skip
    model = Llama(config).initialize(torch.Generator().manual_seed(5))
    with torch.no_grad():
        for parameter in model.parameters():
            generator = torch.Generator().manual_seed(parameter.numel())
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model


def nats_and_gradients(loss: SummedLoss) -> tuple[float, dict[str, torch.Tensor]]:
    ids = torch.randint(0, 97, (3, 20), generator=torch.Generator().manual_seed(1))
    parameters = dict(loss.model.named_parameters())
    nats = loss(ids[:, :-1], ids[:, 1:])
    found = torch.autograd.grad(nats, list(parameters.values()))
    return nats.item(), dict(zip(parameters, found, strict=True))


@pytest.mark.parametrize(("kv_heads", "tied"), [(1, True), (2, False), (4, True)])
# tiles of one row or token; of several, the last one smaller; of everything
@pytest.mark.parametrize("tile", [1, 600, 1 << 18])
def test_gradients_are_within_bounds_of_float32(
    kv_heads: int, tied: bool, tile: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a matrix's gradient at most 3 % of its length, of the nats 0.1 %: a number is rounded by up
    to 0.4 %. Gradients are float32, for float32 weights."""
    monkeypatch.setattr(fused_cpu, "TILE_NUMBERS", tile)
    monkeypatch.setattr(fused_bf16, "TILE_SCORES", tile)
    model = make_model(kv_heads, tied)
    nats, exact = nats_and_gradients(SummedLoss(model))
    rounded_nats, rounded = nats_and_gradients(SummedLoss(model, BF16))
    assert rounded_nats == pytest.approx(nats, rel=1e-3)
    for name, gradient in exact.items():
        assert rounded[name].dtype == torch.float32
        assert (rounded[name] - gradient).norm() <= 0.03 * gradient.norm(), name
    _, again = nats_and_gradients(SummedLoss(model, BF16))
    assert all(torch.equal(again[name], gradient) for name, gradient in rounded.items()), "a run resumes bit for bit"


@pytest.mark.parametrize("kv_heads", [1, 3, 6])
@pytest.mark.parametrize("longest", [8, 512])
def test_attention_equals_pytorchs(kv_heads: int, longest: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows beyond `longest` tokens do not store their shares."""
    monkeypatch.setattr(fused_bf16, "MAX_STORED_CONTEXT", longest)
    generator = torch.Generator().manual_seed(0)
    heads = [torch.randn(2, count, 23, 16, generator=generator).to(BF16) for count in (6, kv_heads, kv_heads)]
    for each in heads:
        each.requires_grad_()
    wide = [each.detach().float().requires_grad_() for each in heads]
    seen = torch.randn(2, 6, 23, 16, generator=generator)
    found, exact = (
        fused_bf16.causal_attention(*heads),
        F.scaled_dot_product_attention(*wide, is_causal=True, enable_gqa=True),
    )
    torch.testing.assert_close(found.float(), exact, rtol=0.02, atol=0.02)
    gradients = torch.autograd.grad(found, heads, seen.to(BF16))
    for one, other in zip(gradients, torch.autograd.grad(exact, wide, seen), strict=True):
        assert (one - other).norm() <= 0.02 * other.norm()


def test_the_future_is_not_seen() -> None:
    model = make_model()
    ids = torch.randint(0, 97, (1, 20), generator=torch.Generator().manual_seed(1))
    other = ids.clone()
    other[0, 12:] += 1 - 2 * (other[0, 12:] > 50).long()
    before, after = (fused_bf16.fused_hidden_states_bf16(model, each)[0] for each in (ids, other))
    assert torch.equal(before[:12], after[:12]) and not torch.equal(before[12], after[12])

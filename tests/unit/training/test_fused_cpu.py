"""The hand-written passes against model/llama.py: values, gradients, and which networks can use
them."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from llamita.config import ModelConfig  # noqa: E402
from llamita.finetune.lora import LoraConfig, add_lora  # noqa: E402
from llamita.model.llama import Llama  # noqa: E402
from llamita.training import fused_cpu  # noqa: E402
from llamita.training.loss import SummedLoss  # noqa: E402


def make_model(kv_heads: int = 2, dropout: float = 0.0, tied: bool = True) -> Llama:
    config = ModelConfig(
        vocab_size=97, hidden_size=48, intermediate_size=80, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=kv_heads, head_dim=16, max_position_embeddings=32, tie_word_embeddings=tied,
    )  # fmt: skip
    model = Llama(config, dropout).initialize(torch.Generator().manual_seed(5))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(
                0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(parameter.numel()))
            )
    return model


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
# tiles of one row or token; of several, the last one smaller; of everything
@pytest.mark.parametrize("tile", [1, 600, 1 << 18])
def test_values_and_gradients_equal_the_models(kv_heads: int, tile: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fused_cpu, "TILE_NUMBERS", tile)
    model = make_model(kv_heads)
    ids = torch.randint(0, 97, (3, 19), generator=torch.Generator().manual_seed(1))
    seen = torch.randn(3, 19, 48, generator=torch.Generator().manual_seed(2))
    plain, fused = model.hidden_states(ids), fused_cpu.fused_hidden_states(model, ids)
    torch.testing.assert_close(fused, plain, rtol=1e-5, atol=2e-6)
    parameters = list(model.parameters())
    expected = torch.autograd.grad((plain * seen).sum(), parameters)
    found = torch.autograd.grad((fused * seen).sum(), parameters)
    for name, one, other in zip(dict(model.named_parameters()), expected, found, strict=True):
        assert (one - other).abs().max() <= 3e-6 * one.abs().max(), name


def test_which_networks_can_fuse() -> None:
    assert fused_cpu.can_fuse(make_model())
    assert fused_cpu.can_fuse(make_model(tied=False))
    assert not fused_cpu.can_fuse(make_model(dropout=0.1))
    assert fused_cpu.can_fuse(make_model(dropout=0.1).eval())
    assert not fused_cpu.can_fuse(make_model().double())
    frozen = make_model()
    frozen.model.norm.weight.requires_grad_(False)
    assert not fused_cpu.can_fuse(frozen)
    adapted = make_model()
    add_lora(adapted, LoraConfig(rank=2), torch.Generator().manual_seed(0))
    assert not fused_cpu.can_fuse(adapted)


def test_the_loss_uses_fused_passes_with_gradients_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """The nats are the same either way."""
    model, calls = make_model(), []
    monkeypatch.setattr(
        "llamita.training.loss.fused_hidden_states",
        lambda *arguments: calls.append(1) or fused_cpu.fused_hidden_states(*arguments),
    )
    ids = torch.randint(0, 97, (1, 8), generator=torch.Generator().manual_seed(1))  # a row: not in halves
    nats = SummedLoss(model)(ids, ids)
    assert len(calls) == 1
    with torch.no_grad():
        torch.testing.assert_close(SummedLoss(model)(ids, ids), nats.detach())
    assert len(calls) == 1

"""Activation checkpointing: the same losses and gradients."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from llamita.config import ModelConfig  # noqa: E402
from llamita.model.llama import Llama  # noqa: E402
from llamita.training.activation_checkpointing import checkpoint_activations  # noqa: E402
from llamita.training.loss import SummedLoss  # noqa: E402

TINY = ModelConfig(50, 16, 24, 2, 4, 2, 4, 32)


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_recomputed_layers_give_the_same(dropout: float) -> None:
    """With dropout both run the plain forward and drop the same values: same bits."""
    ids, results, calls = torch.arange(24).view(2, 12), [], []
    for recomputes in (False, True):
        model = Llama(TINY, dropout).initialize(torch.Generator().manual_seed(0))
        if recomputes:
            checkpoint_activations(model)
            model.model.layers[0].mlp.register_forward_pre_hook(lambda *_: calls.append(1))
        torch.manual_seed(5)
        loss = SummedLoss(model)(ids, ids.flip(0))
        loss.backward()
        results.append([loss.detach(), *(parameter.grad for parameter in model.parameters())])
        if recomputes:
            assert len(calls) == 2, "forward, and again for backward"
    for plain, again in zip(*results, strict=True):
        torch.testing.assert_close(again, plain, rtol=0.0 if dropout else 1e-4, atol=0.0 if dropout else 1e-5)

"""The summed loss: in chunks, without gradients, in bfloat16."""

from __future__ import annotations

import dataclasses

import pytest

torch = pytest.importorskip("torch")

import torch.nn.functional as F  # noqa: E402

from llamita.config import ModelConfig  # noqa: E402
from llamita.model.llama import Llama  # noqa: E402
from llamita.training import loss as loss_module  # noqa: E402
from llamita.training.loss import SummedLoss  # noqa: E402

TINY = ModelConfig(50, 16, 24, 2, 4, 2, 4, 32)


@pytest.mark.parametrize("tied", [True, False])
def test_chunked_loss_and_gradients_equal_whole_logits(monkeypatch: pytest.MonkeyPatch, tied: bool) -> None:
    monkeypatch.setitem(loss_module.CHUNK_LOGITS, "cpu", 3 * TINY.vocab_size)  # 7 chunks, the last one smaller
    torch.manual_seed(0)
    model = Llama(dataclasses.replace(TINY, tie_word_embeddings=tied)).initialize()
    inputs, targets = torch.randint(0, 50, (4, 5)), torch.randint(0, 50, (4, 5))
    targets[1, 2:] = -100
    (SummedLoss(model)(inputs, targets) * 0.3).backward()
    found = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    model.zero_grad()
    total = F.cross_entropy(model(inputs).flatten(0, 1), targets.flatten(), reduction="sum")
    (total * 0.3).backward()
    torch.testing.assert_close(SummedLoss(model)(inputs, targets), total)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(found[name], parameter.grad, msg=name)


def test_loss_without_gradient_is_equal() -> None:
    model = Llama(TINY).initialize(torch.Generator().manual_seed(0))
    ids = torch.arange(12).view(1, 12)
    with torch.no_grad():
        quiet = SummedLoss(model)(ids, ids)
    assert quiet.item() == SummedLoss(model)(ids, ids).item() and not quiet.requires_grad


def test_bfloat16_is_close_and_its_gradients_are_float32() -> None:
    model = Llama(TINY).initialize(torch.Generator().manual_seed(0))
    ids = torch.arange(12).view(2, 6)
    total = SummedLoss(model, torch.bfloat16)(ids, ids)
    assert total.dtype == torch.float32
    torch.testing.assert_close(total, SummedLoss(model)(ids, ids), rtol=1e-2, atol=0)
    total.backward()
    assert all(p.grad.dtype == torch.float32 and p.grad.abs().sum() > 0 for p in model.parameters())

"""The losses of DPO and IPO: formulas, gradients, packed rows, and the score of a network."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from llamita.checkpoint import load_model
from llamita.finetune.dataset import digest_examples
from llamita.finetune.dpo_data import (
    DpoBatches,
)
from llamita.finetune.dpo_evaluate import answer_log_probabilities, score_pairs
from llamita.finetune.dpo_loss import DpoLoss, preference_losses, target_log_probabilities
from llamita.finetune.lora import LoraConfig, add_lora
from llamita.model.llama import Llama
from llamita.progress import Cancelled
from tests.unit.finetune.conftest import made_pairs, tensors

RATIOS = torch.tensor([[3.0, -1.0, 0.5], [-2.0, 4.0, 0.5]], dtype=torch.float64)


TOKENS = torch.tensor([[4.0, 2.0, 5.0], [8.0, 2.0, 1.0]], dtype=torch.float64)


def test_formulas() -> None:
    """By hand, from the papers."""
    delta = [5.0, -5.0, 0.0]
    sigmoid = [1 / (1 + math.exp(-0.3 * each)) for each in delta]
    assert preference_losses(RATIOS, TOKENS, "dpo", 0.3).tolist() == pytest.approx([-math.log(s) for s in sigmoid])
    smoothed = [-0.8 * math.log(s) - 0.2 * math.log(1 - s) for s in sigmoid]
    assert preference_losses(RATIOS, TOKENS, "dpo", 0.3, 0.2).tolist() == pytest.approx(smoothed)
    mean_delta = [3 / 4 + 2 / 8, -1 / 2 - 4 / 2, 0.5 / 5 - 0.5]
    expected = [(each - 1 / 0.6) ** 2 for each in mean_delta]
    assert preference_losses(RATIOS, TOKENS, "ipo", 0.3).tolist() == pytest.approx(expected)


@pytest.mark.parametrize("frozen", [False, True])
def test_log_probabilities_and_gradients(frozen: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunk by chunk as all at once."""
    monkeypatch.setattr("llamita.finetune.dpo_loss.tokens_per_chunk", lambda weight: 7)
    generator = torch.Generator().manual_seed(2)
    hidden = torch.randn(23, 16, generator=generator, requires_grad=True)
    weight = torch.randn(50, 16, generator=generator, requires_grad=not frozen)
    targets, scale = torch.randint(0, 50, (23,), generator=generator), torch.randn(23, generator=generator)
    expected = F.log_softmax(hidden @ weight.t(), -1).gather(1, targets[:, None])[:, 0]
    learning = [each for each in (hidden, weight) if each.requires_grad]
    wanted = torch.autograd.grad((expected * scale).sum(), learning)
    found = target_log_probabilities(hidden, weight, targets)
    assert torch.allclose(found, expected, atol=1e-5)
    for one, other in zip(torch.autograd.grad((found * scale).sum(), learning), wanted, strict=True):
        assert torch.allclose(one, other, atol=1e-5)
    with torch.no_grad():
        assert torch.equal(target_log_probabilities(hidden, weight, targets), found)


def alone(model: Llama, ids: np.ndarray, learned: np.ndarray) -> Tensor:
    """The log-probability of an answer, its conversation alone from position 0."""
    log_p = F.log_softmax(model(torch.from_numpy(ids)[None, :-1])[0].double(), -1)
    each = log_p.gather(1, torch.from_numpy(ids)[1:, None])[:, 0]
    return each[torch.from_numpy(learned[1:])].sum()


@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize("kind", ["dpo", "ipo"])
def test_packed_loss_is_that_of_each_pair_alone(checkpoint: Path, lora: bool, kind: str) -> None:
    pairs = made_pairs(checkpoint, 10)
    model = load_model(checkpoint)
    if lora:
        add_lora(model, LoraConfig(rank=2), torch.Generator().manual_seed(0))
    loss = DpoLoss(model, kind, 0.2, 0.1 if kind == "dpo" else 0.0)
    batches, total, seen = DpoBatches(pairs, 128, 4, seed=1), 0.0, 0
    while batches.epoch == 0:
        batch = next(batches)
        summed = loss(*tensors(batch))
        summed.backward()
        total, seen = total + summed.item(), seen + batch.num_targets
    assert seen == 10 and batch.segments.max() >= 2
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.requires_grad}
    model.zero_grad()
    expected = torch.zeros((), dtype=torch.float64)
    for index, pair in enumerate(pairs.pairs):
        ratios = torch.stack([alone(model, each.ids, each.loss_mask) for each in pair])
        ratios = ratios - torch.from_numpy(pairs.reference[:, index])
        tokens = torch.tensor([each.loss_mask.sum() for each in pair])
        expected = (
            expected + preference_losses(ratios[:, None], tokens[:, None], kind, loss.beta, loss.label_smoothing)[0]
        )
    expected.backward()
    assert total == pytest.approx(expected.item(), rel=1e-6)
    for name, gradient in gradients.items():
        wanted = dict(model.named_parameters())[name].grad
        assert torch.allclose(gradient, wanted, rtol=1e-3, atol=1e-4 * wanted.abs().max().item()), name
    assert (model.output_weight.grad is None) == lora


def cancel(stage: str, done: int, total: int) -> None:
    raise Cancelled


def test_at_the_reference_nothing_is_preferred(checkpoint: Path) -> None:
    """Before the first step all rewards are 0 and the loss is ln 2; the work is the same for every
    number of rows."""
    pairs = made_pairs(checkpoint, 30)
    loss = DpoLoss(load_model(checkpoint, dropout=0.2), "dpo", 0.5).train()
    said = answer_log_probabilities(loss, pairs)
    assert said is not None and loss.training
    model = loss.model.eval()
    for index, pair in enumerate(pairs.pairs[:5]):
        for side, each in enumerate(pair):
            assert said[side, index].item() == pytest.approx(alone(model, each.ids, each.loss_mask).item(), rel=1e-5)
    pairs.reference = said.numpy()
    score = score_pairs(loss, pairs, said)
    assert score == pytest.approx((math.log(2), 0.5, 0, 0, 0))
    with torch.no_grad():
        assert loss(*tensors(next(DpoBatches(pairs, 128, 2, seed=1)))).item() > 0
    score = score_pairs(loss, pairs, said + torch.tensor([[1.0], [-3.0]]))
    assert score == pytest.approx((math.log1p(math.exp(-2.0)), 1.0, 2.0, 0.5, -1.5))
    loss.train()
    with pytest.raises(Cancelled):
        answer_log_probabilities(loss, pairs, progress=cancel)
    assert loss.training
    digests = [
        digest_examples(each.pairs) for each in (pairs, made_pairs(checkpoint, 30), made_pairs(checkpoint, 30, 5))
    ]
    assert digests[0] == digests[1] != digests[2]

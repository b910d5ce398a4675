"""Packed rows of conversations: batches, their order, and a loss that keeps conversations apart."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from llamita.checkpoint import load_model
from llamita.data.batches import IGNORED
from llamita.finetune.lora import LoraConfig, add_lora
from llamita.finetune.loss import ConversationLoss
from llamita.finetune.packing import ConversationBatches, Examples
from llamita.finetune.rendering import render_examples
from tests.unit.finetune.conftest import WORDS, renderer, talk


def made_examples(checkpoint: Path, number: int = 60, context: int = 256) -> Examples:
    chosen = random.Random(4)
    said = [
        talk(*(" ".join(chosen.choices(WORDS, k=chosen.randrange(1, 12))) for _ in range(2 * chosen.randrange(1, 3))))
        for _ in range(number)
    ]
    with renderer(checkpoint, context) as render:
        return Examples(render_examples(said, render)[0])


def test_rows_hold_every_conversation_once_and_whole(checkpoint: Path) -> None:
    examples = made_examples(checkpoint)
    batches = ConversationBatches(examples, 256, 2, seed=5)
    seen, total = [], 0
    while batches.epoch == 0:
        batch = next(batches)
        assert batch.num_targets == (batch.targets != IGNORED).sum()
        for inputs, targets, segments in zip(batch.inputs, batch.targets, batch.segments, strict=True):
            for number in range(segments.max() + 1):
                inside = segments == number
                if (targets[inside] != IGNORED).any():
                    total += 1
                    seen.append((inputs[inside].tolist(), targets[inside].tolist()))
    wanted = [(e.ids[:-1].tolist(), np.where(e.loss_mask[1:], e.ids[1:], IGNORED).tolist()) for e in examples.examples]
    epoch = [row for row in seen if row in wanted]
    assert len(epoch) == total and sorted(map(str, wanted)) == sorted(set(map(str, seen)) & set(map(str, wanted)))
    assert total - len(wanted) <= 20  # of the row of the next epoch that fills the last batch


def test_order_is_a_function_of_seed_and_resumes(checkpoint: Path) -> None:
    examples = made_examples(checkpoint)

    def stream(batches: ConversationBatches, number: int) -> list[bytes]:
        return [
            b"".join(part.tobytes() for part in (b.inputs, b.targets, b.segments))
            for b, _ in zip(batches, range(number), strict=False)
        ]

    whole = ConversationBatches(examples, 256, 2, seed=5)
    first = stream(whole, 7)
    state = whole.state_dict()
    rest = stream(whole, 30)
    again = ConversationBatches(examples, 256, 2, seed=5)
    again.load_state_dict(state)
    assert stream(again, 30) == rest and whole.epoch > 0
    assert stream(ConversationBatches(examples, 256, 2, seed=5), 7) == first
    assert stream(ConversationBatches(examples, 256, 2, seed=6), 7) != first
    ranks = [ConversationBatches(examples, 256, 1, 5, rank, 2) for rank in (0, 1)]
    one, two, both = next(ranks[0]), next(ranks[1]), next(ConversationBatches(examples, 256, 2, seed=5))
    assert np.array_equal(np.concatenate([one.targets, two.targets]), both.targets)
    assert one.num_targets == two.num_targets == both.num_targets


@pytest.mark.parametrize("lora", [False, True])
def test_packed_loss_is_that_of_each_alone(checkpoint: Path, lora: bool) -> None:
    """Loss and gradients of packed rows are the sums over conversations, each from position 0 and
    unpadded."""
    examples = made_examples(checkpoint, 12)
    model = load_model(checkpoint)
    if lora:
        add_lora(model, LoraConfig(rank=2), torch.Generator().manual_seed(0))
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.data.normal_(0, 0.1)
    model = model.double()
    batches = ConversationBatches(examples, 256, 1, seed=1)
    packed = ConversationLoss(model, torch.float64)
    total, num_targets = 0.0, 0
    while batches.epoch == 0:
        batch = next(batches)
        assert batch.segments.max() >= 1
        nats = packed(*(torch.from_numpy(part) for part in (batch.inputs, batch.targets, batch.segments)))
        nats.backward()
        total, num_targets = total + nats.item(), num_targets + batch.num_targets
    gradients = {name: p.grad for name, p in model.named_parameters() if p.requires_grad}
    model.zero_grad()
    alone = 0.0
    for example in examples.examples:
        ids = torch.from_numpy(example.ids)
        targets = torch.where(torch.from_numpy(example.loss_mask[1:]), ids[1:], IGNORED)
        loss = F.cross_entropy(model(ids[None, :-1])[0], targets, ignore_index=IGNORED, reduction="sum")
        loss.backward()
        alone += loss.item()
    assert num_targets == examples.num_targets.sum()
    assert total == pytest.approx(alone, rel=1e-5)  # log-probabilities are float32's
    for name, gradient in gradients.items():
        expected = dict(model.named_parameters())[name].grad
        assert torch.allclose(gradient, expected, rtol=1e-3, atol=1e-4 * expected.abs().max().item()), name
    assert (model.output_weight.grad is None) == lora

"""The simple decoder: its filters against their definitions, its stops, its seeds."""

from __future__ import annotations

import pytest
import torch

from llamita.config import ModelConfig
from llamita.model.generate import filter_logits, generate, penalize_repetition
from llamita.model.llama import Llama


@pytest.fixture(scope="module")
def model() -> Llama:
    config = ModelConfig(50, 32, 64, 2, 4, 2, 8, max_position_embeddings=24)
    model = Llama(config).initialize(torch.Generator().manual_seed(3))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.mul_(12)
    return model


def test_temperature_alone_is_softmax() -> None:
    logits = torch.tensor([1.0, 2.0, 0.5])
    torch.testing.assert_close(filter_logits(logits, temperature=0.5), (logits / 0.5).softmax(0))


def test_top_k_keeps_the_k_best() -> None:
    kept = filter_logits(torch.tensor([0.0, 3.0, 1.0, 2.0]), top_k=2)
    assert kept.nonzero().flatten().tolist() == [1, 3] and kept.sum() == pytest.approx(1)


def test_top_p_keeps_the_smallest_set_that_reaches_it() -> None:
    logits = torch.tensor([0.5, 0.3, 0.15, 0.05]).log()
    assert (filter_logits(logits, top_p=0.5) > 0).tolist() == [True, False, False, False]
    assert (filter_logits(logits, top_p=0.51) > 0).tolist() == [True, True, False, False]
    assert (filter_logits(logits, top_p=0.96) > 0).tolist() == [True] * 4


def test_min_p_keeps_a_share_of_the_best() -> None:
    logits = torch.tensor([0.5, 0.3, 0.15, 0.05]).log()
    assert (filter_logits(logits, min_p=0.25) > 0).tolist() == [True, True, True, False]


def test_repetition_penalty_makes_recent_tokens_less_likely() -> None:
    logits = torch.tensor([2.0, -2.0, 1.0])
    assert penalize_repetition(logits, [0, 1, 1], 2.0).tolist() == [1.0, -4.0, 1.0]
    assert penalize_repetition(logits, [0], 1.0) is logits


def test_greedy_is_the_argmax_of_the_whole_text(model: Llama) -> None:
    ids = [1, 2, 3]
    new_ids = list(generate(model, ids, 10, temperature=0))
    for n in range(10):
        with torch.no_grad():
            assert int(model(torch.tensor([ids + new_ids[:n]]))[0, -1].argmax()) == new_ids[n]


def test_stops_at_an_end_id_and_at_the_contexts_end(model: Llama) -> None:
    whole = list(generate(model, [1], temperature=0))
    assert len(whole) == 23  # with the prompt: the context
    assert list(generate(model, [1], 5, temperature=0)) == whole[:5]
    end = whole[4]
    assert list(generate(model, [1], temperature=0, end_ids=[end])) == whole[: whole.index(end)]


def test_the_seed_determines_the_ids(model: Llama) -> None:
    def sample(seed: int) -> list[int]:
        return list(generate(model, [1], 15, temperature=1.5, seed=seed))

    assert sample(1) == sample(1) and sample(1) != sample(2)

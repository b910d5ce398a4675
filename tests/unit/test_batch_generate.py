"""A text of a batch equals the text that generate gives alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from llamita.batch_generate import NUM_SEQUENCES, SampleOptions, generate_batch
from llamita.engine import Model, load
from llamita.errors import EngineError
from llamita.sampling import SamplingParams


@pytest.fixture(scope="module")
def model(engine_build: Path) -> Model:
    return load()


def test_each_text_equals_generate_with_its_seed(model: Model) -> None:
    count = NUM_SEQUENCES + 3
    prompts = ("", "One day, a little", "Lily")
    reported: list[tuple[str, int, int]] = []
    options = SampleOptions(count, prompts, 12, SamplingParams(temperature=0.8, top_p=0.9, seed=5))
    samples = generate_batch(model, options, lambda *values: reported.append(values))
    for number, sample in enumerate(samples):
        alone = model.generate(
            prompts[number % 3], max_new_tokens=12, temperature=0.8, top_p=0.9, seed=5 + number, context_tokens=64
        )
        text = "".join(alone)
        assert sample.ids == tuple(alone.ids) and sample.text.decode().startswith(text)
        assert sample.ended == (alone.stop == "end token")
    assert reported == [("generating", done, count) for done in range(1, count + 1)]


def test_texts_end_at_an_end_token_or_at_the_limit(model: Model) -> None:
    ended, cut = (generate_batch(model, SampleOptions(3, max_new_tokens=limit)) for limit in (None, 5))
    assert all(sample.ended and 5 < len(sample.ids) < model.info.context_tokens for sample in ended)
    assert all(not sample.ended and len(sample.ids) == 5 for sample in cut)
    assert [sample.ids[:5] for sample in ended] == [sample.ids for sample in cut]


def test_a_prompt_that_is_too_long(model: Model) -> None:
    with pytest.raises(EngineError, match="shorten it"):
        generate_batch(model, SampleOptions(1, prompts=("word " * 2000,)))

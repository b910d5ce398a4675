"""The check of names and pronouns passes the generated stories and finds planted mistakes."""

from __future__ import annotations

import random
import re
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[3]
sys.path.insert(0, str(ROOT / "benchmarks"))

import story_names  # noqa: E402
from story_names import character_names, mistakes  # noqa: E402

from llamita.stories.generate import generate_stories  # noqa: E402
from llamita.tokenizer.bpe import train_bpe  # noqa: E402

NUM_STORIES = 1_000


@pytest.fixture(scope="module")
def stories() -> list[str]:
    return list(generate_stories(NUM_STORIES, seed=3))


def test_generated_stories_hold(stories: list[str]) -> None:
    assert sum(not mistakes(story) for story in stories) >= 0.99 * NUM_STORIES


def test_a_changed_name_is_found(stories: list[str]) -> None:
    """The last name of each story becomes another one of the same gender."""
    rng, found, changed = random.Random(0), 0, 0
    for story in stories:
        mentions = [m for m in re.finditer(r"[A-Z][a-z]+", story) if m.group() in character_names()]
        if len(mentions) < 4 or story_names.INTRODUCTION.search(story, 0, mentions[-1].start()):
            continue
        last, known = mentions[-1], {m.group() for m in mentions}
        gender = character_names()[last.group()]
        other = rng.choice([name for name, of in character_names().items() if of == gender and name not in known])
        changed += 1
        found += f"{other}: unknown" in mistakes(story[: last.start()] + other + story[last.end() :])
    assert found == changed > NUM_STORIES / 2


STORY = (
    "Once there was a little girl named Nora. She had a kite. One day, Nora met her friend Tom.\n\n"
    'Tom ran to Mrs. Bell. "He is here," said Mama. "Tom," said their neighbor Mrs. Bell.'
)


@pytest.mark.parametrize(
    ("before", "after", "mistake"),
    [
        ("Nora met", "Lily met", "Lily: unknown"),
        ("girl named", "boy named", "Nora: a boy"),
        ("Tom ran", "He met his friend Tom, who ran", "Tom: presented twice"),
        ("She had", "He had", "He: nobody who is he"),
        ("ran to", "ran to Mr. Bell and", "Mr. Bell: unknown"),
        ("ran to", "ran to", "Mrs. Bell: unknown"),
    ],
)
def test_each_kind_of_mistake_is_found(before: str, after: str, mistake: str) -> None:
    assert before in STORY
    assert mistake in mistakes(STORY.replace(before, after))


def test_a_story_needs_somebody() -> None:
    assert mistakes("") == mistakes("It rained all day.") == ["nobody has a name"]


def test_a_pronoun_in_quotes_may_mean_anybody() -> None:
    story = 'Once there was a little girl named Nora. "He is late," said Nora. She sat down.'
    assert mistakes(story) == []
    assert mistakes(story.replace("She", "He")) == ["He: nobody who is he"]


class Guesser:
    """A network whose most likely token is the right one, or the same everywhere."""

    def __init__(self, ids: list[int], strength: float) -> None:
        self.logits = torch.zeros(1, len(ids), 1000)
        self.logits[0, torch.arange(len(ids)), torch.tensor(ids)] = strength

    def __call__(self, ids: torch.Tensor) -> torch.Tensor:
        assert ids.shape == self.logits.shape[:2]
        return self.logits


def test_copying_counts_the_places_that_repeat_a_name() -> None:
    tokenizer = train_bpe([f"Nora ran. {name} ran." for name in character_names()] * 3, 380)
    ids = tokenizer.encode("Once Nora met Tom. Then Tom and Nora sang to Tom.")
    oracle = story_names.copying(Guesser(ids, 100.0), tokenizer, [ids], 0)  # type: ignore[arg-type]
    assert tuple(oracle) == pytest.approx((3, 1.0, 0.0), abs=1e-6)
    even = story_names.copying(Guesser(ids, 0.0), tokenizer, [ids], 0)  # type: ignore[arg-type]
    firsts = {tokenizer.encode(f" {name}")[0] for name in character_names()}
    assert tuple(even) == pytest.approx((3, 0.0, 1 - 2 / len(firsts)), abs=1e-6)

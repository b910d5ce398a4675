"""Generates the embedded corpus: short stories for young readers.

Story i depends only on (seed, i), so a longer corpus begins with the shorter one, and any part can
be generated on its own.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from pathlib import Path
from random import Random

from llamita.stories.grammar import Grammar
from llamita.stories.story import Story

# About 16 MB of text, 3.9 million tokens at a vocabulary of 2,048. A small model on two cores reads
# less than that in three minutes, so it sees each story at most once and cannot memorize any.
DEFAULT_NUM_STORIES = 20_000
MIN_WORDS, MAX_WORDS = 60, 200


@cache
def packaged_grammar() -> Grammar:
    """The grammar that comes with the package."""
    return Grammar(Path(__file__).with_name("grammar.txt").read_text(encoding="utf-8"))


def generate_story(seed: int, index: int) -> str:
    """Story `index` (from 0) of the corpus `seed`: 60 to 200 words in paragraphs."""
    grammar = packaged_grammar()
    rng = Random(f"llamita tale {seed} {index}")  # changing this text changes every story
    while True:
        story = Story(rng)
        grammar.rules[story.pick(grammar.stories)](story)
        text = story.text()
        if MIN_WORDS <= text.count(" ") + text.count("\n\n") + 1 <= MAX_WORDS:
            return text


def generate_stories(num_stories: int = DEFAULT_NUM_STORIES, seed: int = 0) -> Iterator[str]:
    """The first `num_stories` stories of the corpus `seed`, in order."""
    for index in range(num_stories):
        yield generate_story(seed, index)

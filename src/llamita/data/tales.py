"""A seed to a corpus of short stories for young readers: the text that the package carries with it, as a grammar.

Each tale is told by one of the plots, which are functions: they choose a cast, places and things, and what is chosen
early decides what can happen later. Tale i is a function of (seed, i) alone, so a longer corpus begins with the shorter
one, and any part can be made anywhere.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from random import Random

from llamita.data import tales_plots_classics as classics
from llamita.data import tales_plots_friends as friends
from llamita.data import tales_plots_journeys as journeys
from llamita.data import tales_plots_things as things
from llamita.data.tales_grammar import Tale

# About 16 MB of text, 3.9 million tokens at a vocabulary of 2,048: no less than a small model on two cores reads in
# three minutes, so it sees each story once at most and has no use for learning one by heart.
DEFAULT_NUM_TALES = 20_000
MIN_WORDS, MAX_WORDS = 60, 200

PLOTS: tuple[Callable[[Tale], None], ...] = (
    things.lost_and_found,
    things.broken_thing,
    things.mistake_mended,
    things.seed_grows,
    things.quarrel,
    things.birthday_gift,
    friends.promise_kept,
    friends.shared_lunch,
    friends.new_neighbor,
    friends.secret,
    friends.contest,
    friends.small_one,
    friends.helping_grandparent,
    journeys.fear_overcome,
    journeys.storm,
    journeys.journey,
    journeys.cannot_sleep,
    journeys.wish,
    journeys.new_skill,
    journeys.little_one_lost,
    classics.soup_for_all,
    classics.swaps,
    classics.false_alarm,
    classics.envy,
    classics.riddle,
    classics.letter_in_a_bottle,
    classics.echo,
    classics.pull_together,
)


def generate_tale(seed: int, index: int) -> str:
    """Tale number `index` (from 0) of the corpus `seed`: 60 to 200 words, paragraphs with a blank line between them."""
    rng = Random(f"llamita tale {seed} {index}")
    while True:
        tale = Tale(rng)
        tale.pick(PLOTS)(tale)
        text = tale.text()
        if MIN_WORDS <= text.count(" ") + text.count("\n\n") + 1 <= MAX_WORDS:
            return text


def generate_tales(num_tales: int = DEFAULT_NUM_TALES, seed: int = 0) -> Iterator[str]:
    """The first `num_tales` tales of the corpus `seed`, in order."""
    for index in range(num_tales):
        yield generate_tale(seed, index)

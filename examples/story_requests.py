"""Turns a file of stories into requests and answers for fine-tuning, as JSONL.

    python examples/story_requests.py stories.txt --out requests.jsonl
    {"prompt": "Write a story about a frog with the words pond, jump and brave.", "completion": "Once upon …"}

The topic of a story is its most frequent noun, weighted by rarity (TF-IDF). A noun is a word that often stands
between an article and a stop. Three more words are drawn from the story, seeded, so the same file gives the
same requests.
"""

from __future__ import annotations

import argparse
import collections
import json
import math
import random
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

ARTICLES = {"a", "an", "the"}
TOKEN = re.compile(r"[A-Za-z]+(?:'[a-z]+)?|[.,!?]")
MIN_COUNT, MAX_SHARE = 5, 0.06  # a word worth asking for occurs in this many stories, and at most this share
NOUN_SHARE = 0.15  # share of uses after an article that a stop follows: "a frog." but "a famous frog"
STOPS = set(".,!?")
REQUESTS = (
    "Write a story about {topic} with the words {words}.",
    "Tell me a story about {topic}. Use the words {words}.",
    "Please write a short story about {topic} that has the words {words} in it.",
    "Write a story with the words {words}. It should be about {topic}.",
)


def read_stories(path: Path, separator: str) -> list[str]:
    """The stories of a text file, between lines of the separator."""
    text = path.read_text(encoding="utf-8")
    return [story.strip() for story in text.split(separator) if story.strip()]


def lower_tokens(story: str) -> list[str]:
    """Words and stops in order; capitalized words, which may be names, become ''."""
    return ["" if token[0].isupper() else token for token in TOKEN.findall(story)]


class Vocabulary:
    """Counts: stories with each word, uses after an article, uses between an article and a stop."""

    def __init__(self, stories: Sequence[Sequence[str]]) -> None:
        self.num_stories = len(stories)
        self.stories_with: collections.Counter[str] = collections.Counter()
        self.after_article: collections.Counter[str] = collections.Counter()
        self.before_stop: collections.Counter[str] = collections.Counter()
        for tokens in stories:
            self.stories_with.update(set(tokens))
            for before, word, after in zip(tokens, tokens[1:], tokens[2:], strict=False):
                if before in ARTICLES:
                    self.after_article[word] += 1
                    self.before_stop[word] += after in STOPS

    def is_worth_asking(self, word: str) -> bool:
        return len(word) > 2 and MIN_COUNT <= self.stories_with[word] <= max(MIN_COUNT, MAX_SHARE * self.num_stories)

    def is_noun(self, word: str) -> bool:
        return self.after_article[word] >= MIN_COUNT and self.before_stop[word] >= NOUN_SHARE * self.after_article[word]

    def weight(self, word: str) -> float:
        """Inverse document frequency."""
        return math.log(self.num_stories / self.stories_with[word])


def make_request(words: Sequence[str], vocabulary: Vocabulary, choice: random.Random) -> str | None:
    """A request that this story fulfills; None if too few of its words are worth asking for."""
    counts = collections.Counter(word for word in words if vocabulary.is_worth_asking(word))
    nouns = [word for word in counts if vocabulary.is_noun(word)]
    if not nouns or len(counts) < 4:
        return None
    topic = max(nouns, key=lambda word: (counts[word] * vocabulary.weight(word), word))
    others = sorted(set(counts) - {topic, topic + "s", topic.removesuffix("s")})
    if len(others) < 3:
        return None
    first, second, third = choice.sample(others, 3)
    article = "an" if topic[0] in "aeiou" else "a"
    return choice.choice(REQUESTS).format(topic=f"{article} {topic}", words=f"{first}, {second} and {third}")


def make_rows(stories: Sequence[str], seed: int) -> Iterator[dict[str, str]]:
    """A row {"prompt", "completion"} for every story that yields a request."""
    split = [lower_tokens(story) for story in stories]
    vocabulary, choice = Vocabulary(split), random.Random(seed)
    for story, words in zip(stories, split, strict=True):
        request = make_request(words, vocabulary, choice)
        if request is not None:
            yield {"prompt": request, "completion": story}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("stories", type=Path, help="a text file of stories")
    parser.add_argument("--out", type=Path, required=True, help="the JSONL file to write")
    parser.add_argument("--separator", default="<|endoftext|>", help="the line between two stories")
    parser.add_argument("--limit", type=int, help="maximum number of requests")
    parser.add_argument("--seed", type=int, default=0)
    flags = parser.parse_args()
    stories = read_stories(flags.stories, flags.separator)
    rows = list(make_rows(stories, flags.seed))[: flags.limit]
    flags.out.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    print(f"{len(rows)} requests of {len(stories)} stories: {flags.out}", file=sys.stderr)


if __name__ == "__main__":
    main()

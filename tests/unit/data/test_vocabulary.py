"""The unit and the size of a vocabulary: what counts as Chinese, and what is chosen for which text."""

from __future__ import annotations

import random
import unicodedata

import pytest

from llamita.data.vocabulary import default_vocab_size, han_share, learn_tokenizer

CHARACTERS = [chr(0x4E00 + 7 * i) for i in range(400)]


def learned(texts: list[str], **options: object) -> tuple[str, int]:
    """The reason, and the number of tokens of two Chinese characters."""
    raw = [text.encode() for text in texts]
    found = learn_tokenizer([raw], texts[:40], sum(map(len, raw)), **options)  # type: ignore[arg-type]
    tokens = (found.tokenizer.decode([i]) for i in range(found.tokenizer.vocab_size))
    return found.reason, sum(len(token) == 6 and han_share(token.decode("utf-8", "ignore")) == 1 for token in tokens)


def chinese(num_words: int) -> list[str]:
    """Texts of words of two characters; the fewer there are, the more often each occurs."""
    choose = random.Random(1)
    words = [choose.choice(CHARACTERS) + choose.choice(CHARACTERS) for _ in range(num_words)]
    return ["，".join("".join(choose.choice(words) for _ in range(8)) for _ in range(12)) for _ in range(300)]


def test_every_ideograph_is_han_and_no_other_letter() -> None:
    assigned = [chr(code) for code in range(0x80, 0x40000) if unicodedata.category(chr(code))[0] in "LN"]
    names = ("CJK UNIFIED", "CJK COMPATIBILITY IDEO")
    ideographs = "".join(c for c in assigned if unicodedata.name(c, "").startswith(names))
    assert len(ideographs) > 90_000 and han_share(ideographs) == 1
    assert han_share("、。「」ぁゖァヺㄅ가힣ᄀﾊＡ0aé") == 0
    assert han_share("床前明月光，a𠀀b") == pytest.approx((15 + 4) / (15 + 3 + 1 + 4 + 1))
    assert han_share("") == 0


def test_words_where_they_make_the_text_shorter() -> None:
    frequent, pairs = learned(chinese(100))
    assert "Chinese by the word (" in frequent and pairs > 50
    rare, pairs = learned(chinese(20_000))
    assert "Chinese by the character (words would make it" in rare and pairs == 0


def test_the_unit_and_the_size_can_be_said() -> None:
    reason, pairs = learned(chinese(100), unit="character", vocab_size=400)
    assert reason == "learned, Chinese by the character, as asked, size as asked" and pairs == 0
    reason, pairs = learned(chinese(100), unit="word")
    assert "character" not in reason and pairs > 50


def test_english_is_not_asked() -> None:
    reason, _ = learned(
        [f"A story about {chr(97 + i % 26) * 3}{i * i} and the {i % 7} hens it met." for i in range(400)]
    )
    assert "Chinese" not in reason


def test_sizes() -> None:
    sizes = [default_vocab_size(n) for n in (0, 10_000, 1_000_000, 13_500_000, 16_000_000, 10**9)]
    assert sizes == [512, 512, 2048, 7552, 8192, 8192]
    assert all(default_vocab_size(n) % 64 == 0 for n in range(0, 10**8, 999_983))

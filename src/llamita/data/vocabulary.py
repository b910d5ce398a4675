"""Chooses the unit and the size of a vocabulary for a text, and trains its tokenizer."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Sequence
from typing import Final

import numpy as np

from llamita.engine import BpeUnit
from llamita.tokenizer import Tokenizer, VocabularyTooLarge
from llamita.tokenizer.bpe import MIN_VOCAB_SIZE, BpeVocabulary

# Unicode's script Han, as in engine/src/tokenizer/unicode.c: first and last code points.
_HAN = (
    (0x2E80, 0x2FD5), (0x3005, 0x3005), (0x3007, 0x3007), (0x3021, 0x3029), (0x3038, 0x303B), (0x3400, 0x4DBF),
    (0x4E00, 0x9FFF), (0xF900, 0xFAFF), (0x16FE2, 0x16FF6), (0x20000, 0x3FFFF),
)  # fmt: skip

MAX_DEFAULT_SIZE = 8192
# A rarer token is spelled in smaller ones: its embedding would learn too little.
MIN_OCCURRENCES: Final[dict[BpeUnit, int]] = {"character": 64, "word": 32}
# From this share of the bytes in Chinese on, both units are tried.
MIN_HAN_SHARE = 0.1
# Words of several characters must make the text shorter by this share of its tokens. They made Tang
# poems 14 % shorter and the model worse, Chinese prose 29 % and the model better
# (docs/experiments.md).
MIN_GAIN_OF_WORDS = 0.2


@dataclasses.dataclass(frozen=True)
class LearnedTokenizer:
    """A tokenizer, and why it has this unit and size."""

    tokenizer: Tokenizer
    reason: str


def learn_tokenizer(
    blocks: Iterable[Sequence[bytes]],
    sample: Sequence[str],
    train_bytes: int,
    *,
    vocab_size: int | None = None,
    unit: BpeUnit | None = None,
) -> LearnedTokenizer:
    """Train a tokenizer of the size and unit that are given, or that fit the text.

    blocks: the training texts, UTF-8, or an even sample of them. sample: the beginnings of some
    texts, to compare the units on. train_bytes: of all training texts. Raises TokenizerError,
    VocabularyTooLarge if the text cannot fill the vocab_size, EngineError, and what `blocks`
    raises.
    """
    share = han_share("".join(sample))
    units: tuple[BpeUnit, ...] = ("word",) if share < MIN_HAN_SHARE else ("character", "word")
    if unit is not None:
        units = (unit,)
    vocabularies = [BpeVocabulary(each) for each in units]
    for texts in blocks:
        for vocabulary in vocabularies:
            vocabulary.add(texts)
    learned = [_tokenizer(vocabulary, share, train_bytes, vocab_size) for vocabulary in vocabularies]
    if len(learned) == 1:
        how = ", Chinese by the character, as asked" if unit == "character" else ""
        return LearnedTokenizer(learned[0].tokenizer, f"learned{how}, {learned[0].reason}")
    tokens = [sum(map(len, each.tokenizer.encode_batch(list(sample)))) for each in learned]
    gain = 1 - tokens[1] / max(1, tokens[0])
    chosen = int(gain >= MIN_GAIN_OF_WORDS)
    how = f"Chinese by the {units[chosen]} (words would make it {100 * gain:.0f} % shorter)"
    if units[chosen] == "word":
        how = f"Chinese by the word ({100 * gain:.0f} % shorter than by the character)"
    return LearnedTokenizer(learned[chosen].tokenizer, f"learned, {how}, {learned[chosen].reason}")


def _tokenizer(vocabulary: BpeVocabulary, share: float, train_bytes: int, vocab_size: int | None) -> LearnedTokenizer:
    """The tokenizer of this vocabulary, and the reason for its size. share: of Chinese."""
    if vocab_size is not None:
        return LearnedTokenizer(vocabulary.tokenizer(vocab_size), "size as asked")
    megabytes = f"{train_bytes / 1e6:,.1f} MB"
    size = default_vocab_size(train_bytes) if share < MIN_HAN_SHARE else _size(vocabulary, share, train_bytes)
    try:
        return LearnedTokenizer(vocabulary.tokenizer(size), f"size chosen for {megabytes} of training text")
    except VocabularyTooLarge as error:
        smaller = max(MIN_VOCAB_SIZE, error.supported // 64 * 64)
        reason = f"as large as this text supports: in {megabytes} no more pairs occur twice"
        return LearnedTokenizer(vocabulary.tokenizer(smaller), reason)


def default_vocab_size(train_bytes: int) -> int:
    """2,048 tokens for a megabyte of text, growing with its square root, but at most one for each
    300 bytes, so that a token occurs a hundred times on average: 512 to 8,192, a multiple of 64.

    Of the sizes around it, models of a million weights learn English best with it, in equal
    arithmetic (docs/experiments.md).
    """
    tokens = min(2048 * math.sqrt(train_bytes / 1e6), train_bytes / 300)
    return min(MAX_DEFAULT_SIZE, max(512, 64 * round(tokens / 64)))


def han_share(text: str) -> float:
    """The bytes of Chinese characters, as a share of all bytes of the text in UTF-8."""
    code_points = np.frombuffer(text.encode("utf-32-le"), np.uint32)
    starts, ends = np.array(_HAN, np.uint32).T
    ranges = np.searchsorted(starts, code_points, side="right") - 1
    han = code_points[(ranges >= 0) & (code_points <= ends[np.maximum(ranges, 0)])]
    return (3 * len(han) + int((han > 0xFFFF).sum())) / max(1, len(text.encode()))


def _size(vocabulary: BpeVocabulary, share: float, train_bytes: int) -> int:
    """The size for a text with Chinese: its frequent tokens, at most three times as many as English
    of this length would get, in proportion to the share of Chinese."""
    limit = min(MAX_DEFAULT_SIZE, round(default_vocab_size(train_bytes) * (1 + 2 * share)))
    return max(512, 64 * round(vocabulary.num_tokens(limit, MIN_OCCURRENCES[vocabulary.unit]) / 64))

"""The vocabulary that the engine learns is that of a slow reference, to the last merge."""

from __future__ import annotations

import collections
import itertools
import unicodedata
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import tokenizers
from tokenizers import pre_tokenizers

from llamita.engine import BpeTrainer, BpeUnit
from llamita.errors import EngineError, TokenizerError
from llamita.tokenizer import SPECIAL_TOKENS, VocabularyTooLarge
from llamita.tokenizer.bpe import BpeVocabulary
from llamita.tokenizer.byte_level import BYTE_OF_SYMBOL
from llamita.tokenizer.pre_tokenizers import QWEN2

pytestmark = pytest.mark.usefixtures("engine_build")

ALPHABET = [BYTE_OF_SYMBOL[symbol] for symbol in sorted(BYTE_OF_SYMBOL)]  # bytes in the order of their ids
SYMBOLS = sorted(BYTE_OF_SYMBOL)
SPLIT = pre_tokenizers.Split(tokenizers.Regex(QWEN2), behavior="isolated")


def is_han(character: str) -> bool:
    name = unicodedata.name(character, "")
    return (
        name.startswith(("CJK UNIFIED", "CJK COMPATIBILITY IDEOGRAPH", "CJK RADICAL", "KANGXI")) or character in "々〇"
    )


def is_cut(left: str, right: str, unit: BpeUnit) -> bool:
    return is_han(left) != is_han(right) or (is_han(left) and unit == "character")


def reference_words(text: str, unit: BpeUnit) -> Iterator[str]:
    for word, _ in SPLIT.pre_tokenize_str(text):
        start = 0
        for i in range(1, len(word)):
            if is_cut(word[i - 1], word[i], unit):
                yield word[start:i]
                start = i
        yield word[start:]


def part(token: bytes) -> str:
    try:
        token.decode()
        return "whole"
    except UnicodeDecodeError:
        return "start" if token[0] >= 0xC2 else "rest"


def reference_merges(texts: list[str], vocab_size: int, unit: BpeUnit) -> list[str]:
    """The merges of a tokenizer.json: counts all pairs anew for every merge."""
    counted = collections.Counter(word for text in texts for word in reference_words(text, unit))
    words = [([ALPHABET.index(byte) for byte in word.encode()], count) for word, count in counted.items()]
    tokens = [bytes([byte]) for byte in ALPHABET]
    merges: dict[tuple[int, int], None] = {}
    while len(tokens) < vocab_size - len(SPECIAL_TOKENS):
        pairs: collections.Counter[tuple[int, int]] = collections.Counter()
        for word, count in words:
            for left, right in itertools.pairwise(word):
                if (part(tokens[left]), part(tokens[right])) in (("whole", "whole"), ("start", "rest")):
                    pairs[left, right] += count
        (left, right), count = max(pairs.items(), key=lambda item: (item[1], -item[0][0], -item[0][1]))
        assert count >= 2
        joined = tokens[left] + tokens[right]
        if joined not in tokens:
            tokens.append(joined)
        merges[left, right] = None
        for word, _ in words:
            i = 0
            while i + 1 < len(word):
                if (word[i], word[i + 1]) == (left, right):
                    word[i : i + 2] = [tokens.index(joined)]
                i += 1
    of_byte = dict(zip(ALPHABET, SYMBOLS, strict=True))
    spelled = ["".join(of_byte[byte] for byte in token) for token in tokens]
    return [f"{spelled[left]} {spelled[right]}" for left, right in merges]


def counted(texts: list[str], unit: BpeUnit = "word") -> BpeVocabulary:
    """Counted in blocks of 1,000 texts."""
    raw = [text.encode() for text in texts]
    vocabulary = BpeVocabulary(unit)
    for first in range(0, len(raw), 1000):
        vocabulary.add(raw[first : first + 1000])
    return vocabulary


@pytest.mark.parametrize("unit", ["word", "character"])
@pytest.mark.parametrize(("num_texts", "vocab_size"), [(40, 259), (40, 260), (300, 420)])
def test_random_texts(num_texts: int, vocab_size: int, unit: BpeUnit, random_texts: list[str]) -> None:
    texts = random_texts[:num_texts]
    own = counted(texts, unit).tokenizer(vocab_size)
    assert own.merges() == reference_merges(texts, vocab_size, unit)
    assert (own.bos_id, own.eos_id, own.vocab_size) == (0, 0, vocab_size)


@pytest.mark.parametrize("unit", ["word", "character"])
@pytest.mark.parametrize("text", ["aaaaaaaa", "aaaa aaa aaaaaaa aa", "abababab babab ab", "床前明月光床前明月光"])
def test_words_that_overlap_themselves(text: str, unit: BpeUnit) -> None:
    texts = [text] * 7 + [text[1:]] * 3
    for vocab_size in range(260, 264):
        assert counted(texts, unit).tokenizer(vocab_size).merges() == reference_merges(texts, vocab_size, unit)


@pytest.mark.parametrize("unit", ["word", "character"])
def test_tokens_are_whole_characters_or_the_start_of_one(unit: BpeUnit) -> None:
    """Han, kana, hangul, Thai, Cyrillic, emoji."""
    texts = ["，春眠不覺曉。處處聞啼鳥", "ひらがなとカタカナを書く、漢字も", "안녕하세요 세계", "สวัสดีชาวโลก",
             "«Привет, мир!»", "🦙🦙 emoji🦙", 'He said:"Hello"and 中文English中文'] * 5  # fmt: skip
    tokenizer = counted(texts, unit).tokenizer(370)
    for token in range(259, 370):
        spelled = tokenizer.decode([token])
        if part(spelled) == "whole":
            text = spelled.decode()
            assert len(list(reference_words(text, unit))) == 1, text
        else:
            assert part(spelled) == "start" and len(spelled) < 4
    if unit == "character":
        assert all(len(tokenizer.encode(character)) <= 3 for character in "春眠不覺曉")


@pytest.mark.parametrize("name", ["text/tinyshakespeare.txt", "text/tang_poems_zh_hant.txt", "tinystories/valid.txt"])
def test_real_text(name: str, shared_data: Path) -> None:
    text = (shared_data / name).read_text(encoding="utf-8")[:20_000]
    texts = [part for part in text.split("\n") if part]
    for unit in ("word", "character"):
        assert counted(texts, unit).tokenizer(300).merges() == reference_merges(texts, 300, unit)


def test_too_little_text() -> None:
    words = counted(["the moon", "the sun", "<|endoftext|>"])
    with pytest.raises(VocabularyTooLarge) as learned:
        words.tokenizer(400)
    assert words.tokenizer(learned.value.supported).vocab_size == learned.value.supported
    with pytest.raises(TokenizerError, match="expected 259"):
        words.tokenizer(258)
    assert counted([]).tokenizer(259).vocab_size == 259


def test_words_longer_than_tokens_may_be() -> None:
    """A token has at most 512 bytes, so that every vocabulary can be opened."""
    learner = BpeTrainer()
    text = b"a" * 5000
    learner.add(text * 2, np.array([5000, 10_000], np.uint64))
    merges = learner.merge(300, 1)
    sizes = [1] * 256
    for left, right, product, _ in merges.tolist():
        assert product == len(sizes)
        sizes.append(sizes[left] + sizes[right])
    assert max(sizes) == 512


def test_wrong_ends() -> None:
    learner = BpeTrainer()
    with pytest.raises(EngineError, match=r"document 1: expected an end .* after its start at byte 3"):
        learner.add(b"ab", np.array([3, 2], np.uint64))
    with pytest.raises(EngineError, match="expected 256 to 2"):
        learner.merge(255, 2)

"""The vocabulary that the engine learns is the one that the tokenizers library learns, to the last merge."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from llamita.engine import BpeTrainer
from llamita.errors import EngineError, TokenizerError
from llamita.tokenizer import Tokenizer, VocabularyTooLarge, train_bpe
from llamita.tokenizer.bpe_trainer import EngineBpeTrainer

pytestmark = pytest.mark.usefixtures("engine_build")


def counted(texts: list[str]) -> EngineBpeTrainer:
    """Counted in blocks of 1,000 texts."""
    raw = [text.encode() for text in texts]
    return EngineBpeTrainer(raw[first : first + 1000] for first in range(0, len(raw), 1000))


def content(tokenizer: Tokenizer) -> dict[str, object]:
    return json.loads(tokenizer.to_json())


@pytest.mark.parametrize("vocab_size", [259, 260, 500, 2000])
def test_random_texts(vocab_size: int, random_texts: list[str]) -> None:
    texts = random_texts[:3000]
    own = counted(texts).tokenizer(vocab_size)
    assert content(own) == content(train_bpe(texts, vocab_size))
    assert (own.bos_id, own.eos_id, own.vocab_size) == (0, 0, vocab_size)


@pytest.mark.parametrize("text", ["aaaaaaaa", "aaaa aaa aaaaaaa aa", "abababab babab ab", "床前明月光床前明月光"])
def test_words_that_overlap_themselves(text: str) -> None:
    texts = [text] * 7 + [text[1:]] * 3
    for vocab_size in range(260, 264):
        assert content(counted(texts).tokenizer(vocab_size)) == content(train_bpe(texts, vocab_size))


@pytest.mark.parametrize("name", ["text/tinyshakespeare.txt", "text/tang_poems_zh_hant.txt", "tinystories/valid.txt"])
def test_real_text(name: str, shared_data: Path) -> None:
    text = (shared_data / name).read_text(encoding="utf-8")[:200_000]
    texts = [part for part in text.split("\n") if part]
    assert content(counted(texts).tokenizer(1500)) == content(train_bpe(texts, 1500))


def test_too_little_text() -> None:
    words = counted(["the moon", "the sun", "<|endoftext|>"])
    with pytest.raises(VocabularyTooLarge) as learned:
        words.tokenizer(400)
    with pytest.raises(VocabularyTooLarge) as expected:
        train_bpe(["the moon", "the sun", "<|endoftext|>"], 400)
    assert str(learned.value) == str(expected.value)
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
    for left, right, product in merges.tolist():
        assert product == len(sizes)
        sizes.append(sizes[left] + sizes[right])
    assert max(sizes) == 512


def test_wrong_ends() -> None:
    learner = BpeTrainer()
    with pytest.raises(EngineError, match=r"document 1: expected an end .* after its start at byte 3"):
        learner.add(b"ab", np.array([3, 2], np.uint64))
    with pytest.raises(EngineError, match="expected 256 to 2"):
        learner.merge(255, 2)

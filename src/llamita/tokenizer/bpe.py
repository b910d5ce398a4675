"""Trains byte-level BPE tokenizers; the engine counts and merges."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, processors

from llamita.engine import BpeTrainer, BpeUnit
from llamita.errors import TokenizerError
from llamita.tokenizer.byte_level import BYTE_OF_SYMBOL
from llamita.tokenizer.pre_tokenizers import QWEN2
from llamita.tokenizer.tokenizer import Tokenizer

# Ids 0, 1, 2: the separator of documents (BOS = EOS), and two reserved for chat.
SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
MIN_VOCAB_SIZE = len(SPECIAL_TOKENS) + 256
MAX_VOCAB_SIZE = 1 << 20


class VocabularyTooLarge(TokenizerError):
    """The text has too few distinct words for the vocabulary; `supported` is the largest possible
    size."""

    def __init__(self, vocab_size: int, supported: int) -> None:
        super().__init__(
            f"cannot learn a vocabulary of {vocab_size:,}: the text supports at most {supported:,} "
            f"(every merge must occur twice); use --vocab-size {supported} or less, or more text"
        )
        self.supported = supported


class BpeVocabulary:
    """The words of texts, counted; makes a tokenizer of any size.

    unit: `character` makes every Han character a token, `word` joins frequent ones. Memory: the
    distinct words, plus about 16 bytes for each of their bytes during merging. Raises EngineError
    if there is no engine.
    """

    def __init__(self, unit: BpeUnit = "word") -> None:
        self.unit = unit
        self._trainer = BpeTrainer(unit)
        self._merges: npt.NDArray[np.int32] | None = None  # up to _num_merged tokens
        self._num_merged = 0

    def add(self, texts: Sequence[bytes]) -> None:
        """Count the words of UTF-8 texts, ideally thousands at once."""
        self._merges = None
        self._trainer.add(b"".join(texts), np.cumsum([len(text) for text in texts], dtype=np.uint64))

    def num_tokens(self, vocab_size: int, min_count: int) -> int:
        """The tokens of a vocabulary of at most `vocab_size` whose merges occur at least
        `min_count` times."""
        merges = self._merge(vocab_size)
        merges = merges[merges[:, 3] >= min_count]
        return len(SPECIAL_TOKENS) + max(256, int(merges[:, 2].max(initial=0)) + 1)

    def tokenizer(self, vocab_size: int) -> Tokenizer:
        """A byte-level BPE of exactly `vocab_size` tokens: 3 special ones, the 256 bytes, then the
        merges, the most frequent first.

        Words are split by the `qwen2` pattern. Nothing is normalized, so decoding restores the
        bytes. The result depends only on the texts, not on their order. Raises TokenizerError if
        the size is out of range, VocabularyTooLarge if the text cannot fill it.
        """
        if not MIN_VOCAB_SIZE <= vocab_size <= MAX_VOCAB_SIZE:
            raise TokenizerError(
                f"vocabulary size: expected {MIN_VOCAB_SIZE} (special tokens and bytes) to {MAX_VOCAB_SIZE:,}, "
                f"found {vocab_size:,}"
            )
        return _from_merges(self._merge(vocab_size), vocab_size)

    def _merge(self, vocab_size: int) -> npt.NDArray[np.int32]:
        """The merges of a vocabulary of at most this size: those of a larger one begin with them."""
        if self._merges is None or self._num_merged < vocab_size:
            self._num_merged = vocab_size + 64  # a size that is rounded up needs no second run
            self._merges = self._trainer.merge(self._num_merged - len(SPECIAL_TOKENS), least_count=2)
        num_tokens = MIN_VOCAB_SIZE
        for number, product in enumerate(self._merges[:, 2].tolist()):
            if num_tokens == vocab_size:
                return self._merges[:number]
            num_tokens = max(num_tokens, len(SPECIAL_TOKENS) + 1 + product)
        return self._merges


def train_bpe(texts: Iterable[str], vocab_size: int, unit: BpeUnit = "word") -> Tokenizer:
    """The tokenizer of BpeVocabulary for texts that fit in memory."""
    vocabulary = BpeVocabulary(unit)
    vocabulary.add([text.encode() for text in texts])
    return vocabulary.tokenizer(vocab_size)


def _from_merges(merges: npt.NDArray[np.int32], vocab_size: int) -> Tokenizer:
    """merges [n, 4]: left, right, product, count. Ids 0 to 255 are the bytes in the order of GPT-2's
    alphabet; the others follow in the order in which merges first produce them."""
    pieces = sorted(BYTE_OF_SYMBOL)
    pairs: dict[tuple[str, str], None] = {}
    for left, right, product, _ in merges.tolist():
        pairs[pieces[left], pieces[right]] = None
        if product == len(pieces):
            pieces.append(pieces[left] + pieces[right])
    vocabulary = {piece: i for i, piece in enumerate([*SPECIAL_TOKENS, *pieces])}
    backend = tokenizers.Tokenizer(models.BPE(vocab=vocabulary, merges=list(pairs)))
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(tokenizers.Regex(QWEN2), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(list(SPECIAL_TOKENS))
    if backend.get_vocab_size() < vocab_size:
        raise VocabularyTooLarge(vocab_size, backend.get_vocab_size())
    separator = SPECIAL_TOKENS[0]
    backend.post_processor = processors.TemplateProcessing(
        single=f"{separator} $A", pair=f"{separator} $A {separator} $B:1", special_tokens=[(separator, 0)]
    )
    return Tokenizer(backend, bos_id=0, eos_id=0, where="the new tokenizer")

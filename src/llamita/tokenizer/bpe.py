"""Trains a byte-level BPE with the `tokenizers` library, or builds one from learned merges."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import tokenizers
from tokenizers import decoders, models, pre_tokenizers, processors, trainers

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


def train_bpe(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """Learn a byte-level BPE of exactly `vocab_size` tokens: 3 special ones, the 256 bytes, then
    the merges.

    Words are split by the `qwen2` pattern. Nothing is normalized, so decoding restores the bytes.
    The result depends only on the text, not on its order or on threads. Raises TokenizerError if
    the size is out of range, VocabularyTooLarge if the text cannot fill it, and what `texts`
    raises.
    """
    check_vocab_size(vocab_size)
    backend = _backend(models.BPE())
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=2,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(iter(texts), trainer)
    return _finish(backend, vocab_size)


def bpe_from_merges(merges: Sequence[Sequence[int]], vocab_size: int) -> Tokenizer:
    """The tokenizer of `train_bpe` from merges learned elsewhere.

    merges: (left, right, product). Ids 0 to 255 are the bytes in the order of GPT-2's alphabet; the
    others follow in the order in which merges first produce them. Raises VocabularyTooLarge if
    there are fewer than vocab_size tokens.
    """
    pieces = sorted(BYTE_OF_SYMBOL)
    pairs: dict[tuple[str, str], None] = {}
    for left, right, product in merges:
        pairs[pieces[left], pieces[right]] = None
        if product == len(pieces):
            pieces.append(pieces[left] + pieces[right])
    vocabulary = {piece: i for i, piece in enumerate([*SPECIAL_TOKENS, *pieces])}
    backend = _backend(models.BPE(vocab=vocabulary, merges=list(pairs)))
    backend.add_special_tokens(list(SPECIAL_TOKENS))
    return _finish(backend, vocab_size)


def check_vocab_size(vocab_size: int) -> None:
    """Raise TokenizerError for a size that cannot be learned."""
    if not MIN_VOCAB_SIZE <= vocab_size <= MAX_VOCAB_SIZE:
        raise TokenizerError(
            f"vocabulary size: expected {MIN_VOCAB_SIZE} (special tokens and bytes) to {MAX_VOCAB_SIZE:,}, "
            f"found {vocab_size:,}"
        )


def _backend(model: models.BPE) -> tokenizers.Tokenizer:
    """Splits by the `qwen2` pattern, then writes bytes in GPT-2's alphabet."""
    backend = tokenizers.Tokenizer(model)
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(tokenizers.Regex(QWEN2), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    return backend


def _finish(backend: tokenizers.Tokenizer, vocab_size: int) -> Tokenizer:
    if backend.get_vocab_size() < vocab_size:
        raise VocabularyTooLarge(vocab_size, backend.get_vocab_size())
    separator = SPECIAL_TOKENS[0]
    backend.post_processor = processors.TemplateProcessing(
        single=f"{separator} $A", pair=f"{separator} $A {separator} $B:1", special_tokens=[(separator, 0)]
    )
    return Tokenizer(backend, bos_id=0, eos_id=0, where="the new tokenizer")

"""Tokenizers: byte-level BPE trained here, or any Llama tokenizer read from its files."""

from __future__ import annotations

from llamita.tokenizer.bpe import SPECIAL_TOKENS, VocabularyTooLarge, train_bpe
from llamita.tokenizer.load import load_tokenizer
from llamita.tokenizer.tokenizer import Tokenizer

__all__ = ["SPECIAL_TOKENS", "Tokenizer", "VocabularyTooLarge", "load_tokenizer", "train_bpe"]

"""A tokenizer to the engine's, which encodes many times faster, where the two give the same ids; else to the reason."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from llamita.engine import DocumentTokenizer
from llamita.errors import EngineError, TokenizerError
from llamita.formats.gguf import encode_header
from llamita.tokenizer import Tokenizer
from llamita.tokenizer.gguf import tokenizer_metadata


class EngineEncoder:
    """Texts to ids by the engine: those of `Tokenizer.encode_batch`, EOS after each. Threads may share it.

    single_spaces: spaces around a text are dropped, and others become one (SentencePiece's remove_extra_whitespaces).
    """

    def __init__(self, tokenizer: DocumentTokenizer, eos_id: int, dtype: np.dtype[Any], *, single_spaces: bool) -> None:
        self._tokenizer, self._eos_id, self._dtype = tokenizer, eos_id, dtype
        self._single_spaces = single_spaces

    def encode(self, texts: Sequence[bytes]) -> tuple[npt.NDArray[Any], npt.NDArray[np.int64]]:
        """ids of all texts, EOS after each [tokens]; tokens of each [documents]."""
        if self._single_spaces:
            stripped = (text.strip(b" ") for text in texts)
            texts = [re.sub(rb" {2,}", b" ", text) if b"  " in text else text for text in stripped]
        ends = np.cumsum(np.fromiter(map(len, texts), np.uint64, len(texts)), dtype=np.uint64)
        ids, token_ends = self._tokenizer.encode(b"".join(texts), ends, self._eos_id)
        lengths = token_ends.astype(np.int64)
        lengths[1:] -= lengths[:-1].copy()
        return ids.astype(self._dtype), lengths


def open_engine_encoder(tokenizer: Tokenizer, dtype: np.dtype[Any], sample: Sequence[str]) -> EngineEncoder | str:
    """The engine's encoder, if it gives the ids of the `tokenizers` library on every text of `sample`; else one line
    that says why not."""
    assert tokenizer.eos_id is not None
    reason = tokenizer.engine_obstacle
    if reason is not None:
        return reason
    try:
        metadata = tokenizer_metadata(tokenizer, tokenizer.vocab_size, [tokenizer.eos_id])
        engine = DocumentTokenizer(encode_header(metadata), "the store's")
        encoder = EngineEncoder(
            engine,
            tokenizer.eos_id,
            dtype,
            single_spaces=tokenizer.kind == "llama" and tokenizer.remove_extra_whitespaces,
        )
        ids, lengths = encoder.encode([text.encode("utf-8") for text in sample])
    except (EngineError, TokenizerError) as error:
        return str(error)
    ends = np.cumsum(lengths)
    for text, expected, end, length in zip(sample, tokenizer.encode_batch(sample), ends, lengths, strict=True):
        if ids[end - length : end - 1].tolist() != expected:
            return f"the engine gives other ids than the tokenizers library for {text[:40]!r}"
    return encoder

"""Encodes many documents at a time with a tokenizer that needs no model."""

from __future__ import annotations

import ctypes
import os

import numpy as np
import numpy.typing as npt

from llamita.engine.library import Owned, call


class DocumentTokenizer(Owned):
    """A tokenizer without a model. Immutable: threads may share it, and other threads run while it
    encodes."""

    _kind = "tokenizer"

    def __init__(self, gguf: bytes, name: str) -> None:
        """gguf: the bytes of a GGUF file; only its tokenizer's keys are read. name: for error
        messages."""
        handle = ctypes.c_void_p()
        call("tokenizer_open", gguf, len(gguf), os.fsencode(name), ctypes.byref(handle))
        self._own(handle.value)

    def encode(
        self, text: bytes, ends: npt.NDArray[np.uint64], last_id: int
    ) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.uint64]]:
        """Encode concatenated documents; ends [documents] is the byte in `text` where each ends.

        Returns the ids [tokens], with last_id after each document (-1: nothing), and where the ids
        of each document end [documents]. Control tokens spelled out in the text stay text. Raises
        EngineError for more than 2^30 bytes and for a byte without a token.
        """
        assert ends.dtype == np.uint64 and ends.flags.c_contiguous and (ends.size == 0 or int(ends[-1]) == len(text))
        ids, token_ends = np.empty(2 * (len(text) + ends.size), np.int32), np.empty(ends.size, np.uint64)
        call(
            "tokenizer_encode", self._handle, text, ends.ctypes.data, ends.size, last_id, ids.ctypes.data, ids.size,
            token_ends.ctypes.data,
        )  # fmt: skip
        return ids[: int(token_ends[-1]) if ends.size else 0], token_ends

"""Trains byte-level BPE merges on documents."""

from __future__ import annotations

import ctypes
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

from llamita.engine.library import Owned, call

BpeUnit = Literal["word", "character"]
UNITS: tuple[BpeUnit, ...] = get_args(BpeUnit)  # in the order of llamita_bpe_unit


class BpeTrainer(Owned):
    """Counts the words of documents and learns merges.

    Words are those of the `qwen2` pre-tokenizer, cut between Han and other characters; with the
    unit "character", also between Han characters. Tokens are whole characters, or the first bytes
    of one.
    """

    _kind = "bpe_trainer"

    def __init__(self, unit: BpeUnit = "word") -> None:
        handle = ctypes.c_void_p()
        call("bpe_trainer_open", ctypes.byref(handle), UNITS.index(unit))
        self._own(handle.value)

    def add(self, text: bytes, ends: npt.NDArray[np.uint64]) -> None:
        """Count the words of concatenated documents; ends [documents] is the byte in `text` where
        each ends. Other threads run meanwhile."""
        assert ends.dtype == np.uint64 and ends.flags.c_contiguous and (ends.size == 0 or int(ends[-1]) == len(text))
        call("bpe_trainer_add", self._handle, text, ends.ctypes.data, ends.size)

    def merge(self, num_tokens: int, least_count: int) -> npt.NDArray[np.int32]:
        """Learn merges: [merges, 4], the ids of left, right and the result, and how often the pair
        occurred, which never increases.

        Stops at num_tokens tokens (the 256 bytes included), or when no pair appears least_count
        times. Tokens 0 to 255 are the bytes in the order of GPT-2's alphabet; the others follow in
        the order of the merges.
        """
        merges, num_merges = np.empty((4 * num_tokens, 4), np.int32), ctypes.c_size_t()
        call(
            "bpe_trainer_train", self._handle, num_tokens, least_count, merges.ctypes.data, len(merges),
            ctypes.byref(num_merges),
        )  # fmt: skip
        return merges[: num_merges.value]

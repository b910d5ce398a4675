"""Counts Chinese characters, which decide the unit and the size of a vocabulary."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

# Unicode's script Han, as in engine/src/tokenizer/unicode.c: first and last code points.
_RANGES = (
    (0x2E80, 0x2FD5), (0x3005, 0x3005), (0x3007, 0x3007), (0x3021, 0x3029), (0x3038, 0x303B), (0x3400, 0x4DBF),
    (0x4E00, 0x9FFF), (0xF900, 0xFAFF), (0x16FE2, 0x16FF6), (0x20000, 0x3FFFF),
)  # fmt: skip
# A text with this share of Han characters gets a vocabulary of characters.
MIN_HAN_SHARE = 0.05
# A character that occurs less often is spelled in bytes: its embedding would learn too little.
MIN_OCCURRENCES = 64


class HanCounts:
    """How often each Han character occurs, and how many bytes are other text."""

    def __init__(self) -> None:
        self.counts = np.zeros(0x40000, np.int64)
        self.num_bytes = self.other_bytes = self._characters = 0

    def add(self, texts: Sequence[bytes]) -> None:
        """Count the characters of UTF-8 texts."""
        text = b"".join(texts)
        code_points = np.frombuffer(text.decode().encode("utf-32-le"), np.uint32)
        han = code_points[_is_han(code_points)]
        self.counts += np.bincount(han, minlength=len(self.counts))
        self._characters += len(code_points)
        self.num_bytes += len(text)
        self.other_bytes += len(text) - 3 * int((han < 0x10000).sum()) - 4 * int((han >= 0x10000).sum())

    @property
    def share(self) -> float:
        """Han characters, as a share of all characters."""
        return int(self.counts.sum()) / max(1, self._characters)

    @property
    def num_frequent(self) -> int:
        """Characters that occur at least MIN_OCCURRENCES times."""
        return int((self.counts >= MIN_OCCURRENCES).sum())

    @property
    def num_prefixes(self) -> int:
        """Different first two bytes of frequent characters: the tokens that merges pass through."""
        return len(np.unique(np.flatnonzero(self.counts >= MIN_OCCURRENCES) >> 6))


def _is_han(code_points: npt.NDArray[np.uint32]) -> npt.NDArray[np.bool_]:
    starts, ends = np.array(_RANGES, np.uint32).T
    range_index = np.searchsorted(starts, code_points, side="right") - 1
    return (range_index >= 0) & (code_points <= ends[np.maximum(range_index, 0)])

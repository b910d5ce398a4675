"""Finds documents that are almost the same, by MinHash over shingles of words.

A shingle is three words in a row; in Chinese, Japanese, Thai and other scripts without spaces, each
character counts as a word. Case, punctuation and the width of letters do not count. Two documents
are near-duplicates if about 55 % of their different shingles are in both (Jaccard similarity); if
5 % of the words are edited, about three quarters are.

Memory holds about 550 bytes per document, not its text.
"""

from __future__ import annotations

import collections
import functools
import hashlib
import re
import unicodedata
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt

MIN_SIMILARITY: Final = 0.55
VERSION: Final = 1  # raised when the same documents would give other near-duplicates
_WORDS_PER_SHINGLE: Final = 3
_HASHES: Final = 256  # in bands of 4: documents with a similarity of 0.6 share a band with P > 0.9998
# Documents under one key of a band that are compared with a new one. Where more share it, they hold
# the same long phrase, and comparing them all would take quadratic time.
_MAX_COMPARED: Final = 256
_MAX_WORDS: Final = 1 << 20  # whose hashes are remembered
_MAX_CHARACTERS: Final = 4 << 20  # of a document; whole books are shorter
# Thai, Lao, Tibetan, Burmese, Khmer; ideographs and kana.
_UNSPACED = (
    "\u0e00-\u0fff\u1000-\u109f\u1780-\u17ff\u2e80-\u2fdf\u3005-\u3007\u3040-\u312f\u31a0-\u31ff\u3400-\u4dbf"
    "\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
)
_WORD = re.compile(rf"[{_UNSPACED}]|[^\W_{_UNSPACED}]+")
_MIX: Final = np.array([0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9], np.uint64)


class NearDuplicates:
    """Documents are added block by block; `find` compares them all."""

    def __init__(self) -> None:
        self._signatures: list[npt.NDArray[np.uint16]] = []
        self._hashes = _WordHashes()

    def add(self, texts: Sequence[bytes]) -> None:
        """Add documents (UTF-8)."""
        if texts:
            self._signatures.append(_signatures([_words(str(text, "utf-8")) for text in texts], self._hashes))

    def find(self, order: npt.NDArray[np.int64], is_val: npt.NDArray[np.bool_]) -> npt.NDArray[np.int64]:
        """For each document the earlier one in `order` that it repeats, or -1. [documents]

        A document repeats one that repeats nothing. A training document also repeats a held-out one
        that repeats another: held-out documents (is_val) come first in `order`.
        """
        found = np.full(len(order), -1, np.int64)
        if not len(order):
            return found
        signatures = np.concatenate(self._signatures)
        bands = signatures.view("<u8")  # the 4 hashes of a band are one number
        shared = np.zeros(bands.shape, np.bool_)
        for band in range(bands.shape[1]):
            _, value, counts = np.unique(bands[:, band], return_inverse=True, return_counts=True)
            shared[:, band] = counts[value.reshape(-1)] > 1
        seen: dict[tuple[int, int], list[int]] = collections.defaultdict(list)
        for number in order[shared[order].any(axis=1)].tolist():
            keys = [(band, int(bands[number, band])) for band in np.flatnonzero(shared[number]).tolist()]
            for key in keys:
                others = [each for each in seen[key] if found[each] < 0 or not is_val[number]]
                if others:
                    similarity = (signatures[others] == signatures[number]).mean(axis=1)
                    best = int(similarity.argmax())
                    if similarity[best] >= MIN_SIMILARITY:
                        found[number] = others[best]
                        break
            if found[number] < 0 or is_val[number]:
                for key in keys:
                    if len(seen[key]) < _MAX_COMPARED:
                        seen[key].append(number)
        return found


class _WordHashes(dict[str, int]):
    """64 bits for each word, the same on every machine."""

    def __missing__(self, word: str) -> int:
        if len(self) >= _MAX_WORDS:
            self.clear()
        value = int.from_bytes(hashlib.blake2b(word.encode("utf-8"), digest_size=8).digest(), "little")
        self[word] = value
        return value


def _words(text: str) -> list[str]:
    """What is compared; the text itself if it has neither letters nor digits."""
    text = text[:_MAX_CHARACTERS]
    return _WORD.findall(unicodedata.normalize("NFKC", text).lower()) or [text]


def _signatures(documents: Sequence[Sequence[str]], hashes: _WordHashes) -> npt.NDArray[np.uint16]:
    """The low 16 bits of each document's MinHash values. [documents, _HASHES]"""
    padding = [0] * (_WORDS_PER_SHINGLE - 1)  # so that each word begins a shingle
    words = np.array(
        [value for document in documents for value in (*map(hashes.__getitem__, document), *padding)], np.uint64
    )
    lengths = np.fromiter(map(len, documents), np.int64, len(documents))
    starts = np.cumsum(lengths) - lengths
    begins = np.arange(int(lengths.sum())) + np.repeat(np.arange(len(documents)) * len(padding), lengths)
    shingles = functools.reduce(np.add, (words[begins + i] * _MIX[i] for i in range(_WORDS_PER_SHINGLE)))
    shingles ^= shingles >> np.uint64(29)
    shingles = (shingles * _MIX[0]) >> np.uint64(32)
    signatures = np.empty((len(documents), _HASHES), np.uint16)
    for i, (factor, offset) in enumerate(_permutations()):
        values = ((shingles * factor + offset) >> np.uint64(32)).astype(np.uint32)
        signatures[:, i] = np.minimum.reduceat(values, starts).astype(np.uint16)
    return signatures


@functools.cache
def _permutations() -> npt.NDArray[Any]:
    """An odd factor and an offset for each hash. [_HASHES, 2]"""
    digests = (hashlib.blake2b(b"MinHash %d" % i, digest_size=16).digest() for i in range(_HASHES))
    numbers = np.frombuffer(b"".join(digests), "<u8").reshape(_HASHES, 2).astype(np.uint64)
    numbers[:, 0] |= np.uint64(1)
    return numbers

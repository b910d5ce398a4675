"""Builds and searches the index of a text of tokens: finds any string of its bytes."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from llamita.engine.library import IndexedTextStruct, Owned, TextPlaceStruct, call

BLOCK_BYTES = 4  # LLAMITA_INDEX_BLOCK_BYTES
ENTRY_BLOCKS = 32  # LLAMITA_INDEX_ENTRY_BLOCKS
MAX_QUERY_BYTES = 1 << 24  # LLAMITA_INDEX_MAX_QUERY_BYTES


class IndexedText:
    """Tokens whose text is indexed.

    parts: arrays of uint16 or uint32 [tokens], all alike, read-only while the text is in use; the
    last token is `eos_id`. token_bytes: the bytes of each id.
    """

    def __init__(self, parts: Sequence[npt.NDArray[Any]], token_bytes: Sequence[bytes], eos_id: int) -> None:
        assert all(part.dtype == parts[0].dtype and part.flags.c_contiguous for part in parts)
        assert all(part.dtype in (np.uint16, np.uint32) for part in parts)
        ends = np.cumsum([len(each) for each in token_bytes], dtype=np.uint32)
        joined = b"".join(token_bytes)
        ids = (ctypes.c_void_p * len(parts))(*(part.ctypes.data for part in parts))
        counts = (ctypes.c_uint64 * len(parts))(*(part.size for part in parts))
        id_bytes = parts[0].dtype.itemsize if parts else 2
        self.struct = IndexedTextStruct(
            ctypes.addressof(ids), ctypes.addressof(counts), len(parts), id_bytes, len(token_bytes), eos_id, joined,
            ends.ctypes.data,
        )  # fmt: skip
        self.kept = (list(parts), ends, joined, ids, counts)

    def num_blocks(self) -> int:
        """Blocks of the text. Raises EngineError if it cannot be indexed."""
        count = ctypes.c_uint64()
        call("text_index_measure", ctypes.byref(self.struct), ctypes.byref(count))
        return count.value


class IndexArrays(NamedTuple):
    """What an index consists of; see llamita.h."""

    suffixes: npt.NDArray[np.uint32]  # [blocks]
    entry_tokens: npt.NDArray[np.uint32]  # [entries]
    entry_offsets: npt.NDArray[np.uint16]  # [entries]


def num_entries(num_blocks: int) -> int:
    """Entries of an index of this many blocks."""
    return -(-num_blocks // ENTRY_BLOCKS)


def build_text_index(text: IndexedText) -> IndexArrays:
    """Sort the blocks of a text. Other threads run meanwhile. Raises EngineError."""
    blocks = text.num_blocks()
    entries = num_entries(blocks)
    arrays = IndexArrays(np.empty(blocks + 1, np.uint32), np.empty(entries, np.uint32), np.empty(entries, np.uint16))
    call(
        "text_index_build", ctypes.byref(text.struct), blocks, arrays.suffixes.ctypes.data,
        arrays.entry_tokens.ctypes.data, arrays.entry_offsets.ctypes.data,
    )  # fmt: skip
    return arrays._replace(suffixes=arrays.suffixes[:blocks])


class Found(NamedTuple):
    """Where a string starts: (token, which of its bytes). num_found: also those beyond the places;
    is_complete: whether these are all."""

    places: list[tuple[int, int]]
    num_found: int
    is_complete: bool


class TextIndex(Owned):
    """An index that is open. Immutable: threads may share it."""

    _kind = "text_index"

    def __init__(self, text: IndexedText, arrays: IndexArrays) -> None:
        entries = num_entries(arrays.suffixes.size)
        assert arrays.entry_tokens.size == entries and arrays.entry_offsets.size == entries
        assert all(array.flags.c_contiguous for array in arrays)
        handle = ctypes.c_void_p()
        call(
            "text_index_open", ctypes.byref(text.struct), arrays.suffixes.size, arrays.suffixes.ctypes.data,
            arrays.entry_tokens.ctypes.data, arrays.entry_offsets.ctypes.data, ctypes.byref(handle),
        )  # fmt: skip
        self._own(handle.value, text, arrays)

    def match(self, query: bytes, step: int = 1) -> npt.NDArray[np.uint32]:
        """For every step-th byte of the query, the most bytes from there on that the text has at the
        start of a block. With step 1, a string of the query that is in the text starts at most 3 bytes
        before one of these."""
        lengths = np.zeros(-(-len(query) // step), np.uint32)
        call("text_index_match", self._handle, query, len(query), step, lengths.ctypes.data)
        return lengths

    def find(self, query: bytes, max_places: int) -> Found:
        """Up to max_places of the places of a string of at least 4 bytes."""
        places, num_found = (TextPlaceStruct * max_places)(), ctypes.c_uint64()
        is_complete = ctypes.c_bool()
        call(
            "text_index_find", self._handle, query, len(query), places, max_places, ctypes.byref(num_found),
            ctypes.byref(is_complete),
        )  # fmt: skip
        count = min(num_found.value, max_places)
        return Found([(each.token, each.offset) for each in places[:count]], num_found.value, is_complete.value)

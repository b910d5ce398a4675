"""Where documents come from: the name of a source file, and the position in it."""

from __future__ import annotations

import array
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt


class Origin(NamedTuple):
    """file: relative to the folder that was prepared; FILE/NAME in an archive. position: as in
    `documents.Document`; the number of the document, from 1, in a .ds file and of generated stories."""

    file: str
    position: int


class DocumentOrigins:
    """The origins of many documents in their order, in 8 bytes each."""

    def __init__(self, names: Iterable[str] = (), counts: Iterable[int] = ()) -> None:
        self._names, self._counts = list(names), list(counts)
        self._positions = array.array("Q")

    def add(self, name: str, positions: Sequence[int]) -> None:
        """Add documents of a file."""
        if not self._names or self._names[-1] != name:
            self._names.append(name)
            self._counts.append(0)
        self._counts[-1] += len(positions)
        self._positions.extend(positions)

    def keep_of_last(self, is_kept: Sequence[bool]) -> None:
        """Of the last documents that were added, as many as is_kept has, remove the others."""
        files: list[int] = []
        for file in reversed(range(len(self._names))):
            taken = min(self._counts[file], len(is_kept) - len(files))
            files = [file] * taken + files
            self._counts[file] -= taken
        positions = self._positions[len(self._positions) - len(files) :]
        del self._positions[len(self._positions) - len(files) :]
        for file, position, kept in zip(files, positions, is_kept, strict=True):
            if kept:
                self._counts[file] += 1
                self._positions.append(position)

    def chosen(self, which: npt.NDArray[np.bool_]) -> DocumentOrigins:
        """Those of the documents that are chosen. [documents]"""
        files = np.repeat(np.arange(len(self._names)), self._counts)[which]
        counts = np.bincount(files, minlength=len(self._names)).tolist()
        found = DocumentOrigins(self._names, counts)
        found._positions.frombytes(np.array(self._positions, np.uint64)[which].tobytes())
        return found

    def files(self) -> list[tuple[str, int]]:
        """The name of each file with documents, and how many it has."""
        return [(name, count) for name, count in zip(self._names, self._counts, strict=True) if count]

    def positions(self) -> npt.NDArray[np.uint64]:
        """Where each document stands in its file. [documents]"""
        return np.array(self._positions, "<u8")

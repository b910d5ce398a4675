"""Finds questions that were asked before, in the same or nearly the same words."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Set
from typing import Final

from llamita.synthesize.words import numbers, squeezed, terms

MIN_SIMILARITY: Final = 0.8  # Jaccard index of their terms


class Questions:
    """Questions that were asked. Two sets of terms as similar as MIN_SIMILARITY share one of the
    first few in any common order, so only those are indexed."""

    def __init__(self) -> None:
        self._exact: set[str] = set()
        self._sets: list[tuple[frozenset[str], set[str]]] = []  # terms, numbers
        self._by_term: dict[str, list[int]] = {}

    def add(self, question: str, *, exact_only: bool = False) -> bool:
        """Remember a question. Returns False for one that was asked before. exact_only: other words
        make another question, however few they are."""
        if self.has(question, exact_only=exact_only):
            return False
        found = frozenset(terms(question))
        self._exact.add(squeezed(question))
        for term in _first(found):
            self._by_term.setdefault(term, []).append(len(self._sets))
        self._sets.append((found, numbers(question)))
        return True

    def has(self, question: str, *, exact_only: bool = False) -> bool:
        """Whether the question was asked."""
        if squeezed(question) in self._exact:
            return True
        if exact_only:
            return False
        found, counted = terms(question), numbers(question)
        return any(
            counted == other_counted and len(found & other) >= MIN_SIMILARITY * len(found | other)
            for number in {number for term in _first(found) for number in self._by_term.get(term, ())}
            for other, other_counted in [self._sets[number]]
        )


def _first(found: Set[str]) -> list[str]:
    """The terms of which a similar set must share one."""
    ordered = sorted(found, key=_order)
    return ordered[: len(ordered) - math.ceil(MIN_SIMILARITY * len(ordered)) + 1]


def _order(term: str) -> bytes:
    return hashlib.blake2b(term.encode("utf-8", "surrogatepass"), digest_size=8).digest()

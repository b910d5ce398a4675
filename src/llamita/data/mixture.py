"""Joins weighted token stores into the documents that a run trains on and is evaluated on.

In one epoch, each document of a store with weight w is seen w times. For the fractional part, each epoch
takes the next share of the documents, in a fixed order, so that after e epochs every document has
been seen e·w times, rounded up or down. Which documents an epoch has depends only on the stores and
the number of the epoch; their order also depends on the seed (see Batches).

Tokens stay on disk, memory-mapped. A document takes 8 bytes of memory (its length), in training 16
more for each time that an epoch sees it, and briefly 8 more if its weight has a fraction.
"""

from __future__ import annotations

import bisect
import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from llamita.data.batches import ScoredDocuments
from llamita.data.token_store import TokenStore
from llamita.errors import ConfigError, StoreError


@dataclasses.dataclass(frozen=True)
class TrainingData:
    """The data of a run. tokenizer_path: a folder that holds the tokenizer of all stores."""

    tokenizer_path: Path
    vocab_size: int
    bos_id: int
    train: ScoredDocuments
    val: ScoredDocuments
    stores: tuple[tuple[Path, float], ...]
    fingerprint: dict[str, Any]  # must not change when a run resumes: counts, weights

    @property
    def names(self) -> str:
        """The stores' paths, for messages."""
        return ", ".join(str(path) for path, _ in self.stores)


class JoinedDocuments:
    """The documents of several splits, one split after another."""

    def __init__(self, splits: Sequence[ScoredDocuments]) -> None:
        self.splits = tuple(splits)
        counts = [split.num_documents for split in self.splits]
        self.first_documents = [sum(counts[:i]) for i in range(len(counts))]
        self.num_documents = sum(counts)
        self.num_tokens = sum(split.num_tokens for split in self.splits)
        self.text_bytes = sum(split.text_bytes for split in self.splits)

    @property
    def lengths(self) -> npt.NDArray[Any]:
        """Tokens of each document, EOS included."""
        return np.concatenate([np.asarray(split.lengths, np.int64) for split in self.splits])

    def document(self, index: int, /) -> npt.NDArray[Any]:
        """The ids of one document, EOS included, without BOS."""
        if not 0 <= index < self.num_documents:
            raise IndexError(f"document {index} of {self.num_documents}")
        place = bisect.bisect_right(self.first_documents, index) - 1
        return self.splits[place].document(index - self.first_documents[place])


class Mixture(JoinedDocuments):
    """Splits with weights: how often an epoch sees each of their documents.

    num_tokens and text_bytes are those of an average epoch; num_documents counts each document
    once.
    """

    def __init__(self, splits: Sequence[ScoredDocuments], weights: Sequence[float]) -> None:
        super().__init__(splits)
        assert len(weights) == len(self.splits) and all(weight > 0 for weight in weights)
        self.weights = tuple(weights)
        pairs = list(zip(self.splits, self.weights, strict=True))
        self.num_tokens = round(sum(split.num_tokens * weight for split, weight in pairs))
        self.text_bytes = round(sum(split.text_bytes * weight for split, weight in pairs))
        self.epoch_size = sum(int(weight) * split.num_documents + _share(split, weight) for split, weight in pairs)

    def epoch_documents(self, epoch: int) -> npt.NDArray[np.int64]:
        """The numbers of the documents that an epoch sees, with repetitions, store by store.
        [epoch_size]"""
        parts = []
        for number, (split, weight, first) in enumerate(
            zip(self.splits, self.weights, self.first_documents, strict=True)
        ):
            count, share = split.num_documents, _share(split, weight)
            parts += [np.arange(first, first + count, dtype=np.int64)] * int(weight)
            if share:
                order = np.random.default_rng((number, count)).permutation(count)
                parts.append(first + order[(epoch * share + np.arange(share)) % count].astype(np.int64))
        return np.concatenate(parts)


def _share(split: ScoredDocuments, weight: float) -> int:
    """How many documents the weight's fractional part selects: at least one, unless it is 0."""
    fraction = weight - int(weight)
    return max(1, round(fraction * split.num_documents)) if fraction > 0 and split.num_documents else 0


def parse_store(text: str) -> tuple[Path, float]:
    """Parse PATH or PATH:WEIGHT; a folder whose name is the whole text takes precedence.

    Raises ConfigError for an invalid weight.
    """
    path, colon, number = text.rpartition(":")
    if not colon or not path or Path(text).exists():
        return Path(text), 1.0
    try:
        weight = float(number)
    except ValueError:
        return Path(text), 1.0  # a path with a colon; opening it reports that it is missing
    if not (math.isfinite(weight) and 0 < weight <= 1000):
        raise ConfigError(f"weight of {path}: expected more than 0, at most 1,000, found {number}")
    return Path(path), weight


def open_stores(data: Path | Sequence[str]) -> tuple[tuple[tuple[Path, float], ...], list[TokenStore]]:
    """The paths and weights of the stores, and the stores. Raises what open_documents raises."""
    named = ((data, 1.0),) if isinstance(data, Path) else tuple(parse_store(text) for text in data)
    if not named:
        raise ConfigError("no token store given: expected PATH or PATH:WEIGHT; make one with: llamita prepare")
    places = [path.resolve() for path, _ in named]
    for (path, _), place in zip(named, places, strict=True):
        if places.count(place) > 1:
            raise ConfigError(f"token store {path} is given twice; give it once, with a weight: {path}:2")
    stores = [TokenStore(path) for path, _ in named]
    first = stores[0]
    for store in stores[1:]:
        if _tokenizer(store) != _tokenizer(first):
            raise StoreError(
                f"cannot train on {first.path} and {store.path} together: they were made with different tokenizers "
                f"(sha256 {first.tokenizer_fingerprint[:16]}… and {store.tokenizer_fingerprint[:16]}…); prepare one "
                f"of them again with --tokenizer {first.path}"
            )
    return named, stores


def open_documents(data: Path | Sequence[str]) -> TrainingData:
    """Open one token store or several ("PATH" or "PATH:WEIGHT"), all made with the same tokenizer.

    Raises StoreError if a store cannot be opened or its tokenizer differs from the first store's;
    ConfigError for an invalid weight, no store at all, or a store that is given twice.
    """
    named, stores = open_stores(data)
    first = stores[0]
    train, weights = [store.split("train") for store in stores], [weight for _, weight in named]
    fingerprint: dict[str, Any] = {
        "tokenizer": first.tokenizer_fingerprint,
        "documents": sum(split.num_documents for split in train),
        "tokens": sum(split.num_tokens for split in train),
    }
    if weights == [1.0]:
        return TrainingData(
            first.path, first.vocab_size, first.bos_id, train[0], first.split("val"), named, fingerprint
        )
    fingerprint["stores"] = [
        {"documents": split.num_documents, "tokens": split.num_tokens, "weight": weight}
        for split, weight in zip(train, weights, strict=True)
    ]
    val = JoinedDocuments([store.split("val") for store in stores])
    mixture = Mixture(train, weights)
    return TrainingData(first.path, first.vocab_size, first.bos_id, mixture, val, named, fingerprint)


def _tokenizer(store: TokenStore) -> tuple[str, int, int]:
    return store.tokenizer_fingerprint, store.bos_id, store.eos_id

"""Joins new token stores with old ones: a model that goes on with new documents sees old ones again.

A new document that an old store holds too, in training or held out, is left out: held-out text stays
held out, and what is measured as new is new. Equal tokenizers encode equal texts alike, so documents
are compared by their ids.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from llamita.data.batches import ScoredDocuments
from llamita.data.mixture import JoinedDocuments, Mixture, TrainingData, open_stores
from llamita.data.token_store import SPLITS, Split, SplitName
from llamita.errors import StoreError
from llamita.tokenizer import Tokenizer, load_tokenizer


@dataclasses.dataclass(frozen=True)
class ReplayedData:
    """data: the training documents, new and old, and the new held-out ones. old_val: the old
    held-out ones. known: how many new documents were left out, of each split."""

    data: TrainingData
    old_val: ScoredDocuments
    known: dict[SplitName, int]


class RemainingDocuments:
    """A split without some of its documents."""

    def __init__(self, split: Split, left_out: npt.NDArray[np.bool_], tokenizer: Tokenizer) -> None:
        """left_out: for each document. [documents]"""
        self._split, self._numbers = split, np.flatnonzero(~left_out)
        self.lengths: npt.NDArray[Any] = split.lengths[self._numbers]
        self.num_documents, self.num_tokens = len(self._numbers), int(self.lengths.sum())
        dropped = (split.document(number)[:-1].tolist() for number in np.flatnonzero(left_out).tolist())
        self.text_bytes = split.text_bytes - sum(len(tokenizer.decode(ids)) for ids in dropped)

    def document(self, index: int, /) -> npt.NDArray[Any]:
        """The ids of one document, EOS included, without BOS."""
        return self._split.document(int(self._numbers[index]))


def open_replayed(new: Path | Sequence[str], old: Sequence[str], share: float, checkpoint: Path) -> ReplayedData:
    """Open new token stores and old ones, which are `share` of the tokens of an epoch.

    An epoch sees each new document as often as its store's weight says. The weights of the old
    stores only count beside each other. Raises what open_documents raises, and StoreError if a
    store's tokenizer is not the checkpoint's, or no new document is left.
    """
    tokenizer = load_tokenizer(checkpoint)
    named, stores = open_stores([*old, *([str(new)] if isinstance(new, Path) else new)])
    named, stores = (*named[len(old) :], *named[: len(old)]), [*stores[len(old) :], *stores[: len(old)]]
    num_new, first = len(stores) - len(old), stores[0]
    if first.tokenizer_fingerprint != tokenizer.fingerprint:  # that of all
        raise StoreError(
            f"cannot train on {first.path}: its tokenizer is not that of {checkpoint} (sha256 "
            f"{first.tokenizer_fingerprint[:16]}… and {tokenizer.fingerprint[:16]}…); prepare it again with "
            f"--tokenizer {checkpoint}"
        )
    old_splits = [store.split(name) for store in stores[num_new:] for name in SPLITS]
    kept: dict[SplitName, list[ScoredDocuments]] = {"train": [], "val": []}
    known: dict[SplitName, int] = {"train": 0, "val": 0}
    for store in stores[:num_new]:
        for name in SPLITS:
            left_out = find_copies(store.split(name), old_splits)
            known[name] += int(left_out.sum())
            split = store.split(name)
            kept[name].append(RemainingDocuments(split, left_out, tokenizer) if left_out.any() else split)
    names = ", ".join(str(path) for path, _ in named[:num_new])
    num_tokens = [split.num_tokens for split in kept["train"]]
    if not sum(num_tokens):
        found = f"all {known['train']:,} training documents are in {', '.join(map(str, old))} too" if old else "none"
        raise StoreError(f"cannot train on {names}: expected new documents, found {found}; prepare new text")
    weights = [weight for _, weight in named]
    old_train = [store.split("train") for store in stores[num_new:]]
    weights[num_new:] = replay_weights(
        share,
        sum(size * weight for size, weight in zip(num_tokens, weights, strict=False)),
        [split.num_tokens for split in old_train],
        weights[num_new:],
    )
    whole = [store.split("train") for store in stores]
    fingerprint = {
        "tokenizer": first.tokenizer_fingerprint,
        "documents": sum(split.num_documents for split in whole),
        "tokens": sum(split.num_tokens for split in whole),
        "stores": [
            {"documents": split.num_documents, "tokens": split.num_tokens, "weight": weight}
            for split, weight in zip(whole, weights, strict=True)
        ],
    }
    read = [pair for pair in zip([*kept["train"], *old_train], weights, strict=True) if pair[1] > 0]
    return ReplayedData(
        TrainingData(
            first.path, first.vocab_size, first.bos_id,
            Mixture([split for split, _ in read], [weight for _, weight in read]),
            JoinedDocuments(kept["val"]),
            tuple((path, weight) for (path, _), weight in zip(named, weights, strict=True)),
            fingerprint,
        ),
        JoinedDocuments([store.split("val") for store in stores[num_new:]]),
        known,
    )  # fmt: skip


def replay_weights(share: float, new_tokens: float, sizes: Sequence[int], weights: Sequence[float]) -> list[float]:
    """The weights that make old stores of these sizes, in tokens, `share` of an epoch."""
    whole = sum(size * weight for size, weight in zip(sizes, weights, strict=True))
    factor = share / (1 - share) * new_tokens / whole if whole else 0.0
    return [factor * weight for weight in weights]


def find_copies(split: Split, others: Sequence[Split]) -> npt.NDArray[np.bool_]:
    """Which documents have the same ids as a document of one of the others. [documents]"""
    found, keys = np.zeros(split.num_documents, np.bool_), _keys(split)
    for other in others:
        theirs = _keys(other)
        order = np.argsort(theirs, kind="stable")
        ordered = theirs[order]
        first, last = (np.searchsorted(ordered, keys, side) for side in ("left", "right"))
        for number in np.flatnonzero(~found & (first < last)).tolist():
            ids = split.document(number)
            alike = order[first[number] : last[number]].tolist()
            found[number] = any(np.array_equal(ids, other.document(each)) for each in alike)
    return found


def _keys(split: Split) -> npt.NDArray[np.uint64]:
    """A number of each document that is the same for equal ids. [documents]"""
    return split.checksums.astype(np.uint64) << np.uint64(32) | split.lengths.astype(np.uint64)

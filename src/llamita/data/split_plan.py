"""Decides for every document of a corpus: training, validation, or dropped as a duplicate."""

from __future__ import annotations

import array
import dataclasses
import hashlib
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import numpy.typing as npt

from llamita.config import PrepareConfig
from llamita.data.corpus import Corpus
from llamita.data.documents import SourceCounts
from llamita.data.near_duplicates import NearDuplicates
from llamita.data.token_store import SplitName
from llamita.errors import SourceError
from llamita.progress import Progress

DEFAULT_VAL_FRACTION = 0.05
MIN_SPLIT_BYTES = 1_000  # of text, in each split
SAMPLED_DOCUMENTS, SAMPLED_CHARACTERS = 128, 2048  # the engine and the library must agree on these
DROPPED, TRAIN, VAL = 0, 1, 2  # decisions


@dataclasses.dataclass
class SplitPlan:
    """A decision for each document in reading order, and the totals."""

    decisions: bytearray
    counts: SourceCounts
    documents: dict[SplitName, int]
    text_bytes: dict[SplitName, int]
    sample: DocumentSample
    duplicate_documents: int = 0
    duplicate_bytes: int = 0
    near_duplicates: int = 0  # found
    near_held_out: int = 0  # of these, training documents that repeat a held-out one
    near_duplicate_documents: int = 0  # dropped
    near_duplicate_bytes: int = 0

    @classmethod
    def make(cls, corpus: Corpus, config: PrepareConfig, progress: Progress) -> SplitPlan:
        """Read the whole corpus. progress: counts the bytes read.

        Raises SourceError if a split gets too little text.
        """
        empty: dict[SplitName, int] = {"train": 0, "val": 0}
        plan = cls(bytearray(), SourceCounts(), dict(empty), dict(empty), DocumentSample())
        fraction = 0.0 if config.val else (config.val_fraction or DEFAULT_VAL_FRACTION)
        threshold = int(fraction * 2**64)
        seen: set[bytes] = set()
        near = _NearDocuments() if config.near_duplicates != "keep" else None
        for texts, is_val in corpus.blocks(plan.counts):
            hashes = document_hashes(texts, config.seed)
            first = len(plan.decisions)
            plan._decide(texts, hashes, seen, 2**64 if is_val else threshold)
            if near is not None:
                near.add(texts, hashes, plan.decisions, first)
            progress("reading", plan.counts.source_bytes, corpus.num_bytes)
        progress("reading", corpus.num_bytes, corpus.num_bytes)
        if near is not None:
            plan._use(near, drop=config.near_duplicates == "drop")
        unread = corpus.conversions.document_files.describe_unread()
        if unread and not plan.counts.documents:
            raise SourceError(f"no text in {', '.join(config.sources)}: {unread[0]}")
        check_split_sizes(config, plan.documents, plan.text_bytes)
        return plan

    def _decide(self, texts: Sequence[bytes], hashes: Sequence[bytes], seen: set[bytes], threshold: int) -> None:
        """Decide on one block. A document is held out if the first half of its hash is below
        `threshold`."""
        is_new = np.zeros(len(texts), np.bool_)
        for i, digest in enumerate(hashes):
            if digest not in seen:
                seen.add(digest)
                is_new[i] = True
        halves = np.frombuffer(b"".join(hashes), "<u8").reshape(-1, 2)
        is_val = halves[:, 0] <= np.uint64(threshold - 1) if threshold else np.zeros(len(texts), np.bool_)
        decisions = np.where(is_new, np.where(is_val, VAL, TRAIN), DROPPED).astype(np.uint8)
        self.decisions += decisions.tobytes()
        self.sample.add(halves[:, 1], is_new, texts)
        documents = np.bincount(decisions, minlength=3).tolist()
        sizes = np.fromiter(map(len, texts), np.int64, len(texts))
        text_bytes = [int(sizes[decisions == decision].sum()) for decision in range(3)]
        self.duplicate_documents += documents[DROPPED]
        self.duplicate_bytes += text_bytes[DROPPED]
        splits: tuple[tuple[SplitName, int], ...] = (("train", TRAIN), ("val", VAL))
        for split, decision in splits:
            self.documents[split] += documents[decision]
            self.text_bytes[split] += text_bytes[decision]

    def _use(self, near: _NearDocuments, *, drop: bool) -> None:
        """Count near-duplicates, and drop them."""
        for number, size, crosses in near.find(self.decisions):
            self.near_duplicates += 1
            self.near_held_out += crosses
            if drop:
                split: SplitName = "val" if self.decisions[number] == VAL else "train"
                self.decisions[number] = DROPPED
                self.documents[split] -= 1
                self.text_bytes[split] -= size
                self.near_duplicate_documents += 1
                self.near_duplicate_bytes += size


class _NearDocuments:
    """The documents that are no exact duplicates, to find those that are near-duplicates.

    Held-out documents come first, and those with smaller hashes before others. So a document is kept
    or dropped whatever the order of the files is, and whatever is added later, training never sees
    what repeats a held-out document.
    """

    def __init__(self) -> None:
        self._documents = NearDuplicates()
        self._numbers, self._sizes, self._keys = array.array("q"), array.array("q"), array.array("Q")

    def add(self, texts: Sequence[bytes], hashes: Sequence[bytes], decisions: Sequence[int], first: int) -> None:
        """Add a block, whose first document is number `first`."""
        new = [i for i in range(len(texts)) if decisions[first + i] != DROPPED]
        self._documents.add([texts[i] for i in new])
        self._numbers.extend(first + i for i in new)
        self._sizes.extend(len(texts[i]) for i in new)
        self._keys.extend(int.from_bytes(hashes[i][:8], "little") for i in new)

    def find(self, decisions: Sequence[int]) -> Iterator[tuple[int, int, bool]]:
        """The number and size of each near-duplicate, and whether it is a training document that
        repeats a held-out one."""
        is_val = np.array([decisions[number] == VAL for number in self._numbers], np.bool_)
        order = np.lexsort((np.array(self._keys, np.uint64), ~is_val))
        found = self._documents.find(order, is_val)
        for i in np.flatnonzero(found >= 0).tolist():
            yield self._numbers[i], self._sizes[i], bool(is_val[found[i]] and not is_val[i])


def document_hashes(texts: Sequence[bytes], seed: int) -> list[bytes]:
    """16 bytes that identify each document. The first 8, as a fraction of 2^64, decide its split.

    They depend only on the text and the seed, so adding documents never moves one to another split.
    """
    key = b"" if seed == 0 else seed.to_bytes(8, "little")
    return [hashlib.blake2b(text, digest_size=16, key=key).digest() for text in texts]


class DocumentSample:
    """The beginnings of the SAMPLED_DOCUMENTS documents with the smallest hashes: a random sample,
    and the same one in every run."""

    def __init__(self) -> None:
        # By the second half of the hash: the first half decides the split.
        self._chosen: list[tuple[int, str]] = []

    def add(self, hashes: npt.NDArray[np.uint64], is_new: npt.NDArray[np.bool_], texts: Sequence[bytes]) -> None:
        """Take those of the new documents that have smaller hashes than the chosen ones."""
        if len(self._chosen) == SAMPLED_DOCUMENTS:
            is_new = is_new & (hashes < np.uint64(self._chosen[-1][0]))
        found = np.flatnonzero(is_new)
        for i in found[np.argsort(hashes[found], kind="stable")[:SAMPLED_DOCUMENTS]].tolist():
            # A character has at most 4 bytes.
            start = texts[i][: 4 * SAMPLED_CHARACTERS].decode("utf-8", "ignore")
            self._chosen.append((int(hashes[i]), start[:SAMPLED_CHARACTERS]))
        self._chosen = sorted(self._chosen)[:SAMPLED_DOCUMENTS]

    def texts(self) -> list[str]:
        return [text for _, text in reversed(self._chosen)]


def check_split_sizes(
    config: PrepareConfig, documents: Mapping[SplitName, int], text_bytes: Mapping[SplitName, int]
) -> None:
    """Raise SourceError if a split has less than MIN_SPLIT_BYTES of text."""
    num_documents = sum(documents.values())
    if not num_documents:
        raise SourceError(f"no text in {', '.join(config.sources)}: all documents are empty")
    for split, size in text_bytes.items():
        if size >= MIN_SPLIT_BYTES:
            continue
        if split == "val" and config.val:
            advice = "give more text with --val"
        elif num_documents == 1:
            found = {"lines": " of one line", "blank-lines": " without blank lines"}.get(config.split_on, "")
            others = [f"--split-on {rule}" for rule in ("blank-lines", "lines") if rule != config.split_on]
            advice = f"it is a single document{found}: split it with {', '.join(others)} or --separator, or give --val"
        else:
            advice = "give more text" + ("" if split == "train" else ", a larger --val-fraction, or --val")
        raise SourceError(
            f"too little text: the {'training' if split == 'train' else 'validation'} split would get "
            f"{documents[split]:,} of {num_documents:,} documents, {size:,} bytes; expected at least "
            f"{MIN_SPLIT_BYTES:,} bytes; {advice}"
        )

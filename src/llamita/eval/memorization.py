"""Memorization: the longest runs of ids that generated texts share verbatim with the training
documents.

There are few texts (samples, or held-out documents for comparison) and many documents. Documents
stay on disk and are read once, some millions of ids at a time. A run of length L + 1 can only start
where a run of length L starts, so each length is searched only where the previous one was found,
with 64-bit rolling hashes (Karp and Rabin, 1987). A false match is as unlikely as a collision of
these hashes.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from llamita.data.batches import Documents
from llamita.eval.sample_metrics import ALONE

CHUNK_IDS = 1 << 21  # ids of documents that are searched at a time: about 100 MB of memory
RATIO = 2.0  # from this ratio to held-out text on, samples count as memorized
MIN_TOKENS = 12  # shorter overlaps are common phrases; characters where words have no spaces

Text: TypeAlias = "bytes | Sequence[int] | npt.NDArray[Any]"
Words: TypeAlias = npt.NDArray[np.uint64]
Places: TypeAlias = npt.NDArray[np.int64]

_ALONE = re.compile(f"[{ALONE}]")
_BASE = 0x9E3779B97F4A7C15  # odd, so that it has an inverse modulo 2^64
_SYMBOL_SEED = 20261124
_SEPARATOR = 0  # precedes each document; ids are shifted by one


@dataclasses.dataclass(frozen=True)
class Match:
    """The longest run of ids that a text shares with a document: `length` ids from `start` in the
    text and from `document_start` in document number `document` (all -1 if nothing matches)."""

    length: int = 0
    start: int = -1
    document: int = -1
    document_start: int = -1


@dataclasses.dataclass(frozen=True)
class Overlap:
    """The longest verbatim overlap of several texts with documents, in whole tokens. sample,
    document: the numbers of the text and the document (-1: none)."""

    length_tokens: int
    length_bytes: int
    text: bytes
    sample: int
    document: int


@dataclasses.dataclass(frozen=True)
class Memorization:
    """The longest overlaps of samples with the training documents, beside those of equally many
    held-out texts of equal length. Medians are over each text's longest run, in tokens."""

    longest: Overlap
    median_tokens: float
    val_longest: Overlap
    val_median_tokens: float
    val_known: float
    """Share of the held-out texts of `min_tokens` or more that appear whole in the training
    documents. If it is high, nothing was really held out."""
    min_tokens: float = MIN_TOKENS
    """Shorter overlaps are common phrases."""

    @property
    def memorizes(self) -> bool:
        """Whether the median or the longest overlap of the samples is at least twice that of
        held-out text, and at least `min_tokens`.

        Held-out text is the baseline because common phrases (openings, formulas, quotations) appear
        in it as often as in the training text, in any language and with any vocabulary.
        """
        pairs = (
            (self.median_tokens, self.val_median_tokens),
            (self.longest.length_tokens, self.val_longest.length_tokens),
        )
        return any(ours >= max(self.min_tokens, RATIO * val) for ours, val in pairs)


def measure_memorization(
    samples: Sequence[Text],
    val: Documents,
    training: Documents,
    decode: Callable[[npt.NDArray[Any]], bytes],
    *,
    max_tokens: int | None = None,
) -> Memorization:
    """Overlaps of samples' ids (new tokens only: no prompt, BOS or EOS) and of held-out documents
    with the training documents. decode: ids → their bytes. max_tokens: see `longest_matches`.

    Held-out texts are beginnings of held-out documents, as samples are of texts: for each sample
    one that is as long, if there is one long enough, spread evenly over the split.
    """
    texts = [_as_ids(text) for text in samples]
    beside = list(beginnings(val, [len(text) for text in texts]))
    matches = longest_matches([*texts, *beside], training, max_tokens=max_tokens)
    ours, theirs = matches[: len(texts)], matches[len(texts) :]
    min_tokens = common_phrase([*texts, *beside], decode)
    return Memorization(
        longest=_longest(texts, ours, decode),
        median_tokens=_median(ours),
        val_longest=_longest(beside, theirs, decode),
        val_median_tokens=_median(theirs),
        val_known=sum(m.length == len(text) >= min_tokens for m, text in zip(theirs, beside, strict=True))
        / max(len(beside), 1),
        min_tokens=min_tokens,
    )


def common_phrase(texts: Sequence[npt.NDArray[Any]], decode: Callable[[npt.NDArray[Any]], bytes]) -> float:
    """The tokens of a common phrase: MIN_TOKENS, or in scripts without spaces, where a token may be
    a byte or a phrase, as many as MIN_TOKENS characters take."""
    text = "".join(decode(ids).decode("utf-8", "ignore") for ids in texts)
    if 2 * len(_ALONE.findall(text)) <= len(text):
        return MIN_TOKENS
    return MIN_TOKENS * sum(map(len, texts)) / len(text)


def longest_overlap(
    samples: Sequence[Text],
    documents: Documents,
    decode: Callable[[npt.NDArray[Any]], bytes] | None = None,
    *,
    max_tokens: int | None = None,
) -> Overlap:
    """The longest run of any sample that stands verbatim in a document. Samples: ids like the
    documents', or bytes where the documents' ids are bytes. decode: ids → their bytes; None: the
    ids are bytes."""
    texts = [_as_ids(text) for text in samples]
    return _longest(texts, longest_matches(texts, documents, max_tokens=max_tokens), decode or _bytes)


def longest_matches(
    texts: Sequence[Text],
    documents: Documents,
    *,
    max_tokens: int | None = None,
    chunk_ids: int = CHUNK_IDS,
) -> list[Match]:
    """For each text its longest run of ids that is in one document, of equal ones the first that
    was found.

    max_tokens: read about this many tokens at most, of documents spread evenly over all.
    chunk_ids: how many are in memory at once (or one document).
    """
    search = _Search([_as_ids(text) for text in texts])
    if search.num_texts:
        for ids, numbers, starts in _chunks(documents, chunk_ids, max_tokens):
            search.read(ids, numbers, starts)
    return search.matches()


def beginnings(documents: Documents, lengths: Sequence[int]) -> Iterator[npt.NDArray[Any]]:
    """For each length, the first `length` ids of a document that has them (EOS not counted), spread
    evenly over such documents; if none is long enough, the whole longest document."""
    available = np.asarray(documents.lengths, dtype=np.int64) - 1
    if available.size == 0:
        return
    for place, length in enumerate(lengths):
        long_enough = np.flatnonzero(available >= length)
        number = int(available.argmax())
        if long_enough.size:
            number = int(long_enough[long_enough.size * place // len(lengths)])
        yield np.asarray(documents.document(number))[: min(length, int(available[number]))]


def _as_ids(text: Text) -> npt.NDArray[Any]:
    return np.frombuffer(text, np.uint8) if isinstance(text, bytes) else np.asarray(text, dtype=np.int64)


def _bytes(ids: npt.NDArray[Any]) -> bytes:
    return np.asarray(ids).astype(np.uint8).tobytes()


def _median(matches: Sequence[Match]) -> float:
    return float(np.median([match.length for match in matches])) if matches else 0.0


def _longest(
    texts: Sequence[npt.NDArray[Any]], matches: Sequence[Match], decode: Callable[[npt.NDArray[Any]], bytes]
) -> Overlap:
    sample = max(range(len(matches)), key=lambda number: matches[number].length, default=-1)
    if sample < 0 or not matches[sample].length:
        return Overlap(0, 0, b"", -1, -1)
    match = matches[sample]
    text = decode(texts[sample][match.start : match.start + match.length])
    return Overlap(match.length, len(text), text, sample, match.document)


# ---- the search


def _chunks(
    documents: Documents, chunk_ids: int, max_tokens: int | None
) -> Iterator[tuple[npt.NDArray[np.int64], Places, Places]]:
    """Documents one after another, each with the separator before it and its ids one higher: (ids,
    the numbers of the documents in it, where each one's own ids start)."""
    numbers = np.arange(documents.num_documents)
    if max_tokens is not None and documents.num_tokens > max_tokens:
        count = max(1, documents.num_documents * max_tokens // documents.num_tokens)
        numbers = np.linspace(0, documents.num_documents - 1, count).astype(np.int64)
    sizes = np.asarray(documents.lengths, dtype=np.int64)[numbers] + 1
    first = 0
    while first < numbers.size:
        ends = sizes[first:].cumsum()
        last = first + max(1, int(np.searchsorted(ends, chunk_ids, side="right")))
        ids = np.full(int(ends[last - first - 1]), _SEPARATOR, dtype=np.int64)
        starts = ends[: last - first] - sizes[first:last] + 1
        for number, start in zip(numbers[first:last].tolist(), starts.tolist(), strict=True):
            document = documents.document(number)
            np.add(document, 1, out=ids[start : start + len(document)], dtype=np.int64, casting="unsafe")
        yield ids, numbers[first:last], starts
        first = last


class _Windows:
    """The hash of any window of ids: Σ symbol[id] · base^i, i from the window's start, modulo
    2^64."""

    def __init__(self, ids: npt.NDArray[np.int64], symbols: Words) -> None:
        powers = _powers(_BASE, ids.size)
        self._sums = np.zeros(ids.size + 1, dtype=np.uint64)
        np.cumsum(symbols[np.minimum(ids, symbols.size - 1)] * powers, out=self._sums[1:])
        self._inverse = _powers(pow(_BASE, -1, 1 << 64), ids.size)

    def at(self, starts: Places, length: int) -> Words:
        """The hashes of the windows of this length at these starts."""
        return np.asarray((self._sums[starts + length] - self._sums[starts]) * self._inverse[starts])

    def all(self, length: int) -> Words:
        """The hashes of the windows of this length at every start that has room for it."""
        count = self._sums.size - length
        return np.asarray((self._sums[length:] - self._sums[:count]) * self._inverse[:count])


def _powers(base: int, count: int) -> Words:
    """base^0 … base^(count - 1) modulo 2^64."""
    powers = np.full(count, base, dtype=np.uint64)
    powers[:1] = 1
    return np.multiply.accumulate(powers)


class _Search:
    """What has been found so far for each text; `read` looks at more documents."""

    def __init__(self, texts: Sequence[npt.NDArray[Any]]) -> None:
        self.num_texts = len(texts)
        self._sizes = np.array([len(text) for text in texts], dtype=np.int64)
        self._ends = self._sizes.cumsum()  # of each text, in all of them one after another
        self._text = np.repeat(np.arange(len(texts)), self._sizes)  # of each position
        ids = np.concatenate([np.zeros(0, np.int64), *texts]).astype(np.int64) + 1
        assert ids.size == 0 or ids.min() > 0, "ids are 0 or more"
        # One number for each id that texts have, and one for all others, which match nothing.
        self._symbols = np.random.default_rng(_SYMBOL_SEED).integers(
            0, 1 << 64, size=int(ids.max(initial=0)) + 2, dtype=np.uint64
        )
        self._windows = _Windows(ids, self._symbols)
        self._found = [Match() for _ in texts]
        self._lengths = np.zeros(len(texts), dtype=np.int64)  # of what was found

    def matches(self) -> list[Match]:
        return self._found

    def read(self, ids: npt.NDArray[np.int64], numbers: Places, starts: Places) -> None:
        """Look for longer runs than those found, in the documents of one chunk (see `_chunks`)."""
        unfinished = self._lengths < self._sizes
        if not unfinished.any():
            return
        windows = _Windows(ids, self._symbols)
        length = int(self._lengths[unfinished].min()) + 1
        positions = np.arange(self._text.size)  # where in the texts a run may begin
        places: Places | None = None  # where in the chunk it may; None: anywhere
        while True:
            positions = positions[positions + length <= self._ends[self._text[positions]]]
            if places is not None:
                places = places[places + length <= ids.size]
            if not positions.size or length > ids.size:
                return
            wanted = self._windows.at(positions, length)
            places, hashes = _among(windows, places, length, wanted)
            ordered = np.argsort(hashes, kind="stable")
            hashes, by_hash = hashes[ordered], places[ordered]
            nearest = np.searchsorted(hashes, wanted)
            there = nearest < hashes.size
            there[there] = hashes[nearest[there]] == wanted[there]
            positions, nearest = positions[there], nearest[there]
            self._note(length, positions, by_hash[nearest], numbers, starts)
            length += 1

    def _note(self, length: int, positions: Places, places: Places, numbers: Places, starts: Places) -> None:
        """Runs of this length begin at these positions of the texts and places of the chunk."""
        texts, first = np.unique(self._text[positions], return_index=True)
        longer = self._lengths[texts] < length
        for text, index in zip(texts[longer].tolist(), first[longer].tolist(), strict=True):
            place = int(places[index])
            row = int(np.searchsorted(starts, place, side="right")) - 1
            begin = int(self._ends[text - 1]) if text else 0
            start = int(positions[index]) - begin
            self._found[text] = Match(length, start, int(numbers[row]), place - int(starts[row]))
            self._lengths[text] = length


def _among(windows: _Windows, places: Places | None, length: int, wanted: Words) -> tuple[Places, Words]:
    """The places (None: all) whose windows of this length have a wanted hash, and these hashes."""
    hashes = windows.all(length) if places is None else windows.at(places, length)
    bits = min(22, max(10, int(wanted.size).bit_length() + 4))
    shift = np.uint64(64 - bits)
    table = np.zeros(1 << bits, dtype=bool)
    table[wanted >> shift] = True
    maybe = np.flatnonzero(table[hashes >> shift])  # few are left for the exact question
    maybe = maybe[np.isin(hashes[maybe], wanted)]
    return (maybe if places is None else places[maybe]), hashes[maybe]

"""Memorization: the longest runs of ids that generated texts share verbatim with the training
documents.

There are few texts (samples, or held-out documents for comparison) and many documents. Documents
stay on disk and are read once, some millions of ids at a time; an index of these, the one of
`llamita index` with the ids as its text, finds the texts' runs.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from llamita.data.batches import Documents
from llamita.engine import IndexedText, TextIndex, build_text_index
from llamita.eval.sample_metrics import ALONE

CHUNK_IDS = 1 << 22  # ids of documents that are searched at a time: about 100 MB of memory
RATIO = 2.0  # from this ratio to held-out text on, samples count as memorized
MIN_TOKENS = 12  # shorter overlaps are common phrases; characters where words have no spaces

Text: TypeAlias = "bytes | Sequence[int] | npt.NDArray[Any]"
Places: TypeAlias = npt.NDArray[np.int64]

_ALONE = re.compile(f"[{ALONE}]")
_CODE_BYTES = 4  # of an id in an index: a block
_DIGITS = 255  # the values of a byte of a code: an index has 0xFF for itself


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
    search = _Search([_as_ids(text).astype(np.int64) for text in texts])
    if texts:
        for ids, numbers, ends in _chunks(documents, chunk_ids, max_tokens):
            search.read(ids, numbers, ends)
    return search.found


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
    """Documents one after another, a -1 after each: (ids, the numbers of the documents in it, where
    each one's -1 is)."""
    numbers = np.arange(documents.num_documents)
    if max_tokens is not None and documents.num_tokens > max_tokens:
        count = max(1, documents.num_documents * max_tokens // documents.num_tokens)
        numbers = np.linspace(0, documents.num_documents - 1, count).astype(np.int64)
    sizes = np.asarray(documents.lengths, dtype=np.int64)[numbers] + 1
    first = 0
    while first < numbers.size:
        ends = sizes[first:].cumsum()
        last = first + max(1, int(np.searchsorted(ends, chunk_ids, side="right")))
        ends = ends[: last - first] - 1
        ids = np.full(int(ends[-1]) + 1, -1, dtype=np.int64)
        for number, end in zip(numbers[first:last].tolist(), ends.tolist(), strict=True):
            document = documents.document(number)
            ids[end - len(document) : end] = document
        yield ids, numbers[first:last], ends
        first = last


class _Search:
    """What has been found so far for each text; `read` looks at more documents."""

    def __init__(self, texts: Sequence[npt.NDArray[np.int64]]) -> None:
        self.found = [Match() for _ in texts]
        self._known = np.unique(np.concatenate([np.zeros(0, np.int64), *texts]))
        count = self._known.size + 2  # and any other id, and the end of a document
        codes = [np.arange(count) // _DIGITS**digit % _DIGITS for digit in reversed(range(_CODE_BYTES))]
        self._codes = [code.tobytes() for code in np.stack(codes, axis=1).astype(np.uint8)]
        self._queries = [b"".join(self._codes[i] for i in np.searchsorted(self._known, text)) for text in texts]

    def read(self, ids: npt.NDArray[np.int64], numbers: Places, ends: Places) -> None:
        """Look for longer runs than those found, in the documents of one chunk (see `_chunks`)."""
        other, end = len(self._codes) - 2, len(self._codes) - 1
        places = np.full(max(int(ids.max()), int(self._known.max(initial=0))) + 2, other, np.uint32)
        places[self._known] = np.arange(self._known.size)
        places[-1] = end  # of id -1
        text = IndexedText([places[ids]], self._codes, end)
        with TextIndex(text, build_text_index(text)) as index:
            for number, query in enumerate(self._queries):
                if _CODE_BYTES * self.found[number].length < len(query):
                    lengths = index.match(query, _CODE_BYTES) // _CODE_BYTES
                    start = int(lengths.argmax())
                    self._note(index, number, start, int(lengths[start]), numbers, ends)

    def _note(self, index: TextIndex, number: int, start: int, length: int, numbers: Places, ends: Places) -> None:
        """A run of this text is in the chunk."""
        if length <= self.found[number].length:
            return
        run = self._queries[number][_CODE_BYTES * start : _CODE_BYTES * (start + length)]
        ((place, _),) = index.find(run, 1).places
        row = int(np.searchsorted(ends, place))
        first = int(ends[row - 1]) + 1 if row else 0
        self.found[number] = Match(length, start, int(numbers[row]), place - first)

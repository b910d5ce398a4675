"""Finds the longest stretches of a text that stand word for word in the documents of a store."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from llamita.commands import command_line
from llamita.data.file_formats import ROW_READERS, find_suffix
from llamita.data.token_store import SplitName
from llamita.errors import StoreError

if TYPE_CHECKING:  # it needs the tokenizers library
    from llamita.data.store_index import IndexShard, StoreIndex

DEFAULT_MIN_BYTES = 24  # of a span: five English words, or eight Chinese characters
MIN_BYTES = 8
DEFAULT_SOURCES, MAX_SOURCES = 3, 64
MAX_SENTENCE_BYTES = 1024  # a longer one is cut
CONTEXT_CHARACTERS = 80  # around a span in its document
_PLACES = 64  # of a span, among which the documents are chosen
_BLOCK_BYTES = 4
_MAX_TRIED = 64  # runs that start before a block: enough for any text but a hostile one

# What may end a sentence: a line end, 。！？, or .!?… before whitespace; with closing quotes.
_END = re.compile(r"\n|[。！？][。！？.!?…]*[”’」』）〉》\"'\])]*|[.!?…]+[”’\"'\])]*")


@dataclasses.dataclass(frozen=True)
class Source:
    """A place where a span stands. position: of the document in the file, in `unit`s (byte, line,
    item, row or document); file is None if the store does not know it. offset: byte of the span in
    the document. before, after: the text around it."""

    split: SplitName
    document: int
    file: str | None
    position: int | None
    unit: str | None
    offset: int
    before: str
    after: str

    @property
    def is_held_out(self) -> bool:
        """Whether the document was not trained on."""
        return self.split == "val"


@dataclasses.dataclass(frozen=True)
class Span:
    """Text that stands word for word in documents. start: of its first character in the whole text.
    num_places: how often, in train and in val; is_complete: whether there are no more."""

    start: int
    text: str
    num_places: dict[SplitName, int]
    is_complete: bool
    sources: tuple[Source, ...]

    @property
    def is_only_held_out(self) -> bool:
        """Whether it stands in held-out documents and in no training document that was found."""
        return not self.num_places["train"]


@dataclasses.dataclass(frozen=True)
class TracedSentence:
    """A sentence, where it starts in the text, and its spans from left to right, the longest first
    chosen; they do not overlap."""

    start: int
    text: str
    spans: tuple[Span, ...]


def trace(
    index: StoreIndex, text: str, *, min_bytes: int = DEFAULT_MIN_BYTES, max_sources: int = DEFAULT_SOURCES
) -> list[TracedSentence]:
    """The spans of at least min_bytes (UTF-8) of each sentence, with up to max_sources documents
    each. Raises StoreError if the store or its index is damaged."""
    assert min_bytes >= MIN_BYTES
    return [
        TracedSentence(start, sentence, tuple(_spans(index, start, sentence, min_bytes, max_sources)))
        for start, sentence in sentences(text)
    ]


def trace_values(traced: Sequence[TracedSentence]) -> list[dict[str, Any]]:
    """The sentences as JSON values."""
    return [
        {
            "start": sentence.start,
            "text": sentence.text,
            "spans": [
                {
                    **dataclasses.asdict(span),
                    "is_only_held_out": span.is_only_held_out,
                    "sources": [
                        {**dataclasses.asdict(source), "is_held_out": source.is_held_out} for source in span.sources
                    ],
                }
                for span in sentence.spans
            ],
        }
        for sentence in traced
    ]


def sentences(text: str) -> Iterator[tuple[int, str]]:
    """The sentences of a text and where they start, without the whitespace around them."""
    at = 0
    ends = (
        found.end()
        for found in _END.finditer(text)
        if found[0][0] in "\n。！？" or text[found.end() : found.end() + 1].isspace()
    )
    for end in (*ends, len(text)):
        stripped = text[at:end].strip()
        start = at + text[at:end].find(stripped)
        while stripped:
            piece = stripped.encode("utf-8", "replace")[:MAX_SENTENCE_BYTES].decode("utf-8", "ignore")
            yield start, piece
            start, stripped = start + len(piece), stripped[len(piece) :]
        at = end


def _spans(index: StoreIndex, start: int, sentence: str, min_bytes: int, max_sources: int) -> Iterator[Span]:
    query = sentence.encode("utf-8", "replace")
    for first, end in longest_runs(index.shards, query, min_bytes):
        first, end = _whole_characters(query, first, end)
        if end - first < min_bytes:
            continue
        at = start + len(query[:first].decode("utf-8"))
        yield _locate(index, query[first:end], at, max_sources)


def _whole_characters(query: bytes, first: int, end: int) -> tuple[int, int]:
    """The range without parts of characters and spaces at its ends."""
    while first < end and (query[first] & 0xC0 == 0x80 or query[first] in b" \t"):
        first += 1
    while end > first and end < len(query) and query[end] & 0xC0 == 0x80:
        end -= 1
    while end > first and query[end - 1] in b" \t":
        end -= 1
    return first, end


# ---- the search


def longest_runs(shards: list[IndexShard], query: bytes, min_bytes: int) -> list[tuple[int, int]]:
    """The longest range of the query that stands in the text, then the longest ones before and
    after it, and so on; from left to right."""
    if len(query) < min_bytes or not shards:
        return []
    lengths = np.max([shard.index.match(query) for shard in shards], axis=0).astype(np.int64)
    found: list[tuple[int, int]] = []
    ranges = [(0, len(query))]
    while ranges:
        first, end = ranges.pop()
        start, length = _longest(shards, query, lengths, first, end, min_bytes)
        if length >= min_bytes:
            found.append((start, start + length))
            ranges += [(first, start), (start + length, end)]
    return sorted(found)


def _longest(
    shards: list[IndexShard], query: bytes, lengths: npt.NDArray[np.int64], first: int, end: int, min_bytes: int
) -> tuple[int, int]:
    """Start and length of the longest run within a range; of a shorter one if that has less than
    min_bytes.

    lengths: see TextIndex.match. A run starts at most 3 bytes before a block, so it is at most 3
    bytes longer than the longest of these.
    """
    if end - first < min_bytes:
        return first, 0
    known = np.minimum(lengths[first:end], end - np.arange(first, end))
    start, length = first + int(known.argmax()), int(known.max())
    if length + _BLOCK_BYTES <= min_bytes:
        return start, length
    longest = known.copy()  # at most, from each byte on
    for before in range(1, _BLOCK_BYTES):
        longest[:-before] = np.maximum(longest[:-before], np.where(known[before:] > 0, known[before:] + before, 0))
    tried: set[bytes] = set()  # in vain: text that repeats would try the same again and again
    for place in np.flatnonzero(longest > length)[np.argsort(-longest[longest > length], kind="stable")].tolist():
        while longest[place] > length and len(tried) < _MAX_TRIED:
            run = query[first + place : first + place + length + 1]
            if run in tried or not any(shard.index.find(run, 1).num_found for shard in shards):
                tried.add(run)
                break
            start, length = first + place, length + 1
    return start, length


# ---- the documents


def _locate(index: StoreIndex, span: bytes, at: int, max_sources: int) -> Span:
    counts: dict[SplitName, int] = {"train": 0, "val": 0}
    is_complete = True
    documents: dict[tuple[SplitName, int], tuple[int, int]] = {}  # the first place in each
    for shard in index.shards:
        found = shard.index.find(span, _PLACES)
        counts[shard.split] += found.num_found
        is_complete &= found.is_complete
        split = index.store.split(shard.split)
        for token, offset in found.places:
            place = token + shard.first_token, offset
            number, _ = split.document_of(place[0])
            key = shard.split, number
            documents[key] = min(place, documents.get(key, place))
    chosen = sorted(documents)[:max_sources]  # train before val
    held_out = next((key for key in sorted(documents) if key[0] == "val"), None)
    if held_out is not None and held_out not in chosen:
        chosen = [*chosen[: max_sources - 1], held_out]
    sources = tuple(_source(index, name, number, *documents[name, number], span) for name, number in chosen)
    return Span(at, span.decode("utf-8"), counts, is_complete, sources)


def _source(index: StoreIndex, name: SplitName, number: int, token: int, offset: int, span: bytes) -> Source:
    """Read the span in its document, which checks the place."""
    split, reach = index.store.split(name), 4 * CONTEXT_CHARACTERS
    ids = split.document(number)[:-1]
    place = token - split.document_of(token)[1]
    near = max(0, place - reach)
    before = b"".join(index.token_bytes[id] for id in ids[near:place].tolist())
    after = b"".join(index.token_bytes[id] for id in ids[place : place + offset + len(span) + reach].tolist())
    before, after = before + after[:offset], after[offset:]
    if not after.startswith(span):
        raise StoreError(
            f"cannot trace in {index.path}: document {number:,} of {name} does not have what its index says; make it "
            f"again: {command_line('index', index.path)}"
        )
    has_prefix = ids.size > 0 and index.adds_first_space[int(ids[0])]  # a space that is not in the text
    start = int(index.token_sizes[ids[:near]].sum()) + len(before) - has_prefix
    if near == 0 and has_prefix:
        before = before[1:]
    origin = split.origin(number)
    return Source(
        split=name,
        document=number,
        file=None if origin is None else origin.file,
        position=None if origin is None else origin.position,
        unit=None if origin is None else _unit(origin.file),
        offset=start,
        before=before[-reach:].decode("utf-8", "ignore")[-CONTEXT_CHARACTERS:],
        after=after[len(span) :][:reach].decode("utf-8", "ignore")[:CONTEXT_CHARACTERS],
    )


def _unit(file: str) -> str:
    """What positions in the file count; see Origin."""
    suffix = find_suffix(Path(file))
    if suffix in ROW_READERS:
        return {".json": "item", ".parquet": "row"}.get(suffix, "line")
    return "document" if suffix is None else "byte"

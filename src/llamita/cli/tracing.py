"""Prints where the words of a text come from: for `llamita trace`, and --trace of run and chat."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from llamita.cli.command import requires_extra
from llamita.errors import clean_line

if TYPE_CHECKING:
    from llamita.data.store_index import StoreIndex
    from llamita.data.trace import Source, Span, TracedSentence

NAMES = {"train": "the training text", "val": "held-out text"}
MAX_SPAN_CHARACTERS = 400


def open_index(path: Path) -> StoreIndex:
    """The index of a token store. Raises StoreError."""
    with requires_extra("train"):  # for its tokenizer
        from llamita.data.store_index import StoreIndex
    return StoreIndex(path)


class TextTracer:
    """Collects a generated text and prints its trace on stderr; without a store it does nothing."""

    def __init__(self, store: Path | None) -> None:
        """Raises StoreError."""
        self._index = None if store is None else open_index(store)
        self._pieces: list[str] = []

    def add(self, piece: str) -> None:
        """The next piece of the text."""
        if self._index is not None:
            self._pieces.append(piece)

    def print_trace(self) -> None:
        """Print the sentences that stand in the store, in whole or in part, and forget the text."""
        text, self._pieces = "".join(self._pieces), []
        if self._index is None or not text:
            return
        from llamita.data.trace import trace

        found = [sentence for sentence in trace(self._index, text) if sentence.spans]
        lines = trace_lines(found) or ["no sentence stands there"]
        print("\n".join([clean_line(f"trace in {self._index.path}:"), *lines]), file=sys.stderr, flush=True)


def trace_lines(traced: Sequence[TracedSentence]) -> list[str]:
    """What was found, for a terminal."""
    lines = []
    for sentence in traced:
        lines.append(clean_line(sentence.text, MAX_SPAN_CHARACTERS))
        for span in sentence.spans:
            lines.append(f"  {clean_line(_quoted(span.text), MAX_SPAN_CHARACTERS)}: {_count(span)}")
            lines += [f"    {line}" for source in span.sources for line in _source_lines(source, span)]
        if not sentence.spans:
            lines.append("  not found")
    return lines


def _quoted(text: str) -> str:
    """The text in quotes, on one line."""
    return '"' + text.replace("\n", " ⏎ ") + '"'


def _count(span: Span) -> str:
    """How often it was found, and where."""
    more = "" if span.is_complete else "at least "
    counts = [f"{more}{count:,} × in {NAMES[split]}" for split, count in span.num_places.items() if count]
    return ", ".join(counts) + (", not in the training text" if span.is_only_held_out and span.is_complete else "")


def _source_lines(source: Source, span: Span) -> list[str]:
    where = f"document {source.document:,} of {source.split}"
    if source.file is not None:
        where = f"{source.file}, {source.unit} {source.position:,} ({where})"
    held_out = "held out: " if source.is_held_out else ""
    around = f"…{source.before}[{span.text}]{source.after}…".replace("\n", " ⏎ ")
    return [
        f"{held_out}{clean_line(where)}, from byte {source.offset:,}",
        f"  {clean_line(around, MAX_SPAN_CHARACTERS)}",
    ]

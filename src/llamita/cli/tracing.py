"""Prints where the words of a text come from: for `llamita trace`, and --trace of run and chat."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

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


def print_trace(index: StoreIndex, text: str, file: TextIO) -> None:
    """Print the sentences that stand in the store, in whole or in part."""
    from llamita.data.trace import trace

    lines = trace_lines([sentence for sentence in trace(index, text) if sentence.spans])
    print("\n".join(lines or [f"trace: no long words of {index.path}"]), file=file, flush=True)


def trace_lines(traced: Sequence[TracedSentence]) -> list[str]:
    """What was found, for a terminal."""
    lines = []
    for sentence in traced:
        lines.append(clean_line(sentence.text, MAX_SPAN_CHARACTERS))
        for span in sentence.spans:
            lines.append(f"  {clean_line(repr_text(span.text), MAX_SPAN_CHARACTERS)}: {_count(span)}")
            lines += [f"    {line}" for source in span.sources for line in _source_lines(source, span)]
        if not sentence.spans:
            lines.append("  not found")
    return lines


def repr_text(text: str) -> str:
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

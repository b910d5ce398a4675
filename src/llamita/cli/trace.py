"""`llamita trace STORE TEXT`: shows which documents of a token store have the words of a text."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from typing import Annotated

from llamita.cli.command import parse
from llamita.cli.prompt import check_utf8
from llamita.cli.tracing import open_index, trace_lines
from llamita.config import Option, check
from llamita.data.trace import (
    DEFAULT_MIN_BYTES,
    DEFAULT_SOURCES,
    MAX_SENTENCE_BYTES,
    MAX_SOURCES,
    MIN_BYTES,
    trace,
    trace_values,
)
from llamita.errors import SourceError

MAX_TEXT_BYTES = 1 << 20


@dataclasses.dataclass(frozen=True)
class TraceFlags:
    """Show which documents of a token store have the words of a text.

    For each sentence, the longest stretches that stand in a document word for word: how often, in
    which source files and where, and the text around them. Held-out documents say so. The store
    needs an index: `llamita index`.
    """

    examples = (
        "llamita trace tokens 'There was a little girl.'",
        "llamita run my.gguf | llamita trace tokens - --json",
    )

    store: Annotated[Path, Option(positional=True)]
    """Token store with an index."""
    text: Annotated[str, Option("TEXT", positional=True)]
    """Text to look for; -: standard input."""
    min_bytes: Annotated[int, Option("BYTES")] = DEFAULT_MIN_BYTES
    """Shortest stretch to show, in bytes of UTF-8. 24 are five English words or eight Chinese
    characters."""
    sources: Annotated[int, Option("N")] = DEFAULT_SOURCES
    """Most documents to show for a stretch."""
    json: bool = False
    """Print the sentences as one line of JSON."""

    def __post_init__(self) -> None:
        check(
            MIN_BYTES <= self.min_bytes <= MAX_SENTENCE_BYTES,
            f"--min-bytes: expected {MIN_BYTES} to {MAX_SENTENCE_BYTES:,}, found {str(self.min_bytes)[:60]}",
        )
        check(
            1 <= self.sources <= MAX_SOURCES, f"--sources: expected 1 to {MAX_SOURCES}, found {str(self.sources)[:60]}"
        )


def main(argv: list[str]) -> None:
    flags = parse(TraceFlags, argv, "llamita trace")
    index = open_index(flags.store)
    traced = trace(index, _read_text(flags.text), min_bytes=flags.min_bytes, max_sources=flags.sources)
    if flags.json:
        print(json.dumps(trace_values(traced), ensure_ascii=False))
    else:
        print("\n".join(trace_lines(traced)))


def _read_text(text: str) -> str:
    """The text, or that of stdin. Raises SourceError."""
    raw = sys.stdin.buffer.read(MAX_TEXT_BYTES + 1) if text == "-" else text.encode("utf-8", "surrogateescape")
    if len(raw) > MAX_TEXT_BYTES:
        raise SourceError(f"the text: expected at most {MAX_TEXT_BYTES:,} bytes, found more; trace a part of it")
    check_utf8(raw, "the text")
    found = raw.decode("utf-8")
    if not found.strip():
        raise SourceError("the text: expected a sentence, found nothing")
    return found

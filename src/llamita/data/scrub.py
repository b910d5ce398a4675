"""Removes repeated lines and masks personal data in documents, and counts what it changed."""

from __future__ import annotations

from pathlib import Path

from llamita.data import personal_data
from llamita.data.document_origins import DocumentOrigins
from llamita.data.documents import SourceCounts
from llamita.data.utf8_files import read_lines
from llamita.errors import SourceError


class Scrubber:
    """drop_lines: a text file of lines to remove; mask: mask personal data. Raises SourceError."""

    def __init__(self, drop_lines: Path | None, *, mask: bool) -> None:
        self.lines = frozenset[str]() if drop_lines is None else _read_line_list(drop_lines)
        self._mask = mask

    def scrub(self, texts: list[bytes], counts: SourceCounts, origins: DocumentOrigins | None = None) -> list[bytes]:
        """The texts that are not empty afterwards. Corrects `counts` and the last of `origins`, which
        have them as they were."""
        if not self.lines and not self._mask:
            return texts
        scrubbed = [self._scrub(text, counts) for text in texts]
        kept = list(filter(None, scrubbed))
        if origins is not None and len(kept) < len(texts):
            origins.keep_of_last([bool(text) for text in scrubbed])
        counts.documents -= len(texts) - len(kept)
        counts.empty_documents += len(texts) - len(kept)
        return kept

    def _scrub(self, raw: bytes, counts: SourceCounts) -> bytes:
        text = raw.decode("utf-8")
        if self.lines:
            lines = text.split("\n")
            kept = [line for line in lines if line.strip() not in self.lines]
            if len(kept) < len(lines):
                text = "\n".join(kept).strip()
                counts.dropped_lines += len(lines) - len(kept)
        dropped = len(raw) - len(text.encode("utf-8"))
        if self._mask:

            def found(kind: personal_data.Kind, _: str) -> None:
                name = f"masked_{kind}"
                setattr(counts, name, getattr(counts, name) + 1)

            text = personal_data.mask(text, found)
        scrubbed = text.encode("utf-8")
        counts.dropped_line_bytes += dropped
        counts.masked_bytes += len(raw) - dropped - len(scrubbed)
        counts.document_bytes -= len(raw) - len(scrubbed)
        return scrubbed


def _read_line_list(path: Path) -> frozenset[str]:
    """The lines of a file, without the whitespace around them and without blank ones."""
    lines = frozenset(line.strip() for line in read_lines(path)) - {""}
    if not lines:
        raise SourceError(f"cannot use --drop-lines {path}: it has no lines; expected the lines to remove, one a line")
    return lines

"""The text that `prepare` reads: files given as sources, or generated stories."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from collections.abc import Iterator
from typing import Any

from llamita.config import PrepareConfig
from llamita.data.document_files import DOCUMENT_SUFFIXES
from llamita.data.document_origins import DocumentOrigins
from llamita.data.documents import (
    SourceCounts,
    SourceList,
    check_unchanged,
    hash_source,
    list_sources,
    read_texts,
)
from llamita.data.file_formats import find_suffix
from llamita.data.scrub import Scrubber
from llamita.data.utf8_files import Conversions
from llamita.errors import ConfigError

KEPT_BYTES = 64 << 20  # a smaller corpus is read once and stays in memory
_STORIES_PER_BLOCK = 1024


class Corpus:
    """All texts of a configuration, in a fixed order, as often as needed: --val first."""

    def __init__(self, config: PrepareConfig) -> None:
        self._config = config
        self.conversions = Conversions(config.encoding)
        self.origins = DocumentOrigins()  # of all texts, once they have been read
        self.scrubber = Scrubber(config.drop_lines, mask=config.mask_personal_data)
        self._stories: list[bytes] = []
        self._kept: list[tuple[list[bytes], bool]] | None = None
        self._kept_counts = SourceCounts()
        if config.sources == ("tinystories",):
            raise ConfigError(
                "prepare: tinystories must be downloaded first; call "
                "llamita.data.tinystories.download_tinystories and pass the files it returns"
            )
        self.val = list_sources(config.val, skip_unknown=config.skip_unknown)
        if config.sources == ("stories",):
            from llamita.stories.generate import generate_stories

            stories = generate_stories(config.num_stories, seed=config.seed)
            self._stories = [story.encode("utf-8") for story in stories]
            self.train = SourceList((), 0)
        else:
            self.train = list_sources(config.sources, skip_unknown=config.skip_unknown, exclude=config.exclude)
        self.hidden_files = self.train.hidden_files + self.val.hidden_files
        self.skipped = self.train.skipped + self.val.skipped
        files = (*self.val.files, *self.train.files)
        self.has_document_files = any(find_suffix(file.path) in DOCUMENT_SUFFIXES for file in files)
        self.num_bytes = self.train.num_bytes + self.val.num_bytes + sum(map(len, self._stories))

    def blocks(self, counts: SourceCounts) -> Iterator[tuple[list[bytes], bool]]:
        """Yield a few thousand texts (UTF-8) at a time, and whether they come from --val.

        Adds what was read to `counts`.
        """
        if self._kept is not None:
            for field in dataclasses.fields(SourceCounts):
                setattr(counts, field.name, getattr(self._kept_counts, field.name))
            yield from self._kept
            return
        kept: list[tuple[list[bytes], bool]] = []
        for block in self._read(counts):
            if counts.document_bytes <= KEPT_BYTES:
                kept.append(block)
            else:
                kept = []
            yield block
        if counts.document_bytes <= KEPT_BYTES:
            self._kept, self._kept_counts = kept, dataclasses.replace(counts)

    def _read(self, counts: SourceCounts) -> Iterator[tuple[list[bytes], bool]]:
        config = self._config
        self.origins = DocumentOrigins()
        for sources, is_val in ((self.val, True), (self.train, False)):
            for texts in read_texts(
                sources,
                separator=config.separator,
                split_on=config.split_on,
                text_key=config.text_key,
                keep_line_ends=config.keep_line_ends,
                counts=counts,
                conversions=self.conversions,
                origins=self.origins,
            ):
                yield self.scrubber.scrub(texts, counts, self.origins), is_val
        for first in range(0, len(self._stories), _STORIES_PER_BLOCK):
            texts = self._stories[first : first + _STORIES_PER_BLOCK]
            size = sum(map(len, texts))
            self.origins.add("stories", range(first + 1, first + len(texts) + 1))
            counts.source_bytes += size
            counts.documents += len(texts)
            counts.document_bytes += size
            yield self.scrubber.scrub(texts, counts, self.origins), False

    @functools.cached_property
    def fingerprint(self) -> list[dict[str, Any]]:
        """Name within its folder, size and sha256 of each source; not its path on this machine."""
        files = [(file, "val") for file in self.val.files] + [(file, "") for file in self.train.files]
        entries = [
            {"name": file.name, "bytes": file.num_bytes, "sha256": hash_source(file), "only": split}
            for file, split in files
        ]
        if self._config.sources == ("stories",):
            digest = hashlib.sha256(b"\0".join(self._stories)).hexdigest()
            entries.append({"name": "stories", "bytes": self.num_bytes, "sha256": digest, "only": ""})
        return entries

    def check_unchanged(self) -> None:
        """Raise SourceError if a file has changed since it was listed."""
        check_unchanged((*self.val.files, *self.train.files))

"""What `llamita new` finds in a folder: texts, questions and answers, preference pairs, and files that
cannot be used."""

from __future__ import annotations

import dataclasses
import itertools
import json
import re
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

from llamita.atomic import atomic_directory
from llamita.data.document_files import DOCUMENT_SUFFIXES
from llamita.data.documents import Document, SourceFile, SourceList, SplitOn, list_sources, read_documents
from llamita.data.file_formats import ROW_READERS, BadRows, Row, find_suffix, list_keys, read_rows
from llamita.data.utf8_files import Conversions
from llamita.errors import SourceError
from llamita.finetune.conversations import FORMS, Conversation, read_conversation
from llamita.finetune.dataset import MAX_HELD_OUT, hold_out
from llamita.finetune.dpo_data import Preference, read_preference
from llamita.progress import Progress

SNIFFED_ROWS: Final = 100
MAX_BAD_ROWS: Final = 1_000_000
READ_SECONDS: Final = 10.0  # then the rest of the text is estimated: prepare reads it again
MIN_DOCUMENTS: Final = 20  # fewer cannot be divided into training and held-out text
MAX_SHARE: Final = 0.25  # of the text in one document
_BLANK_LINES = re.compile(r"\n\s*\n")


@dataclasses.dataclass
class TextCounts:
    """documents: as `--split-on separator` divides the text; blocks: as blank lines do."""

    files: int = 0
    documents: int = 0
    blocks: int = 0
    lines: int = 0
    num_bytes: int = 0
    longest: int = 0  # bytes of the longest document
    is_estimate: bool = False

    def add(self, document: Document) -> None:
        self.documents += 1
        self.blocks += sum(bool(block.strip()) for block in _BLANK_LINES.split(document.text))
        self.lines += sum(bool(line.strip()) for line in document.text.split("\n"))
        self.num_bytes += document.text_bytes
        self.longest = max(self.longest, document.text_bytes)

    def split_on(self) -> SplitOn:
        """Where documents end: at the separator, unless that leaves few, or one that is most of it."""
        if self.documents >= MIN_DOCUMENTS and self.longest <= MAX_SHARE * self.num_bytes:
            return "separator"
        return "blank-lines" if self.blocks >= MIN_DOCUMENTS else "lines"


@dataclasses.dataclass
class Found:
    """What is in a file or a folder. unusable: files of a known type, and why."""

    sources: SourceList
    text: TextCounts
    question_files: dict[Path, int] = dataclasses.field(default_factory=dict)  # how many are in each
    pair_files: dict[Path, int] = dataclasses.field(default_factory=dict)
    example_bytes: int = 0  # of the text of the questions and answers
    bad_rows: list[str] = dataclasses.field(default_factory=list)
    unusable: dict[Path, str] = dataclasses.field(default_factory=dict)
    notes: list[str] = dataclasses.field(default_factory=list)

    @property
    def example_files(self) -> list[Path]:
        return list(dict.fromkeys([*self.question_files, *self.pair_files]))

    @property
    def num_questions(self) -> int:
        return sum(self.question_files.values())

    @property
    def num_pairs(self) -> int:
        return sum(self.pair_files.values())


def look(source: Path, text_key: str, encoding: str | None, progress: Progress) -> Found:
    """Read a file or a folder. Raises SourceError, ConfigError."""
    sources = list_sources([str(source)], skip_unknown=True)
    found, conversions = Found(sources, TextCounts()), Conversions(encoding)
    documents: list[SourceFile] = []
    deadline = time.monotonic() + READ_SECONDS
    for number, file in enumerate(sources.files):
        progress("looking at the files", number, len(sources.files))
        suffix = find_suffix(file.path)
        if suffix in DOCUMENT_SUFFIXES:
            documents.append(file)
            continue
        try:
            if suffix in ROW_READERS and _has_examples(file.path, text_key, conversions):
                _count_examples(file.path, found, conversions)
            else:
                _count_text(file, found.text, text_key, conversions, deadline)
        except SourceError as error:
            found.unusable[file.path] = str(error)
    _count_documents(documents, found.text, text_key, conversions, deadline)
    progress("looking at the files", len(sources.files), len(sources.files))
    found.notes = conversions.describe()
    return found


def _has_examples(path: Path, text_key: str, conversions: Conversions) -> bool:
    """Whether the first rows are examples rather than texts. Raises SourceError if they are neither."""
    bad = BadRows(SNIFFED_ROWS, conversions)
    num_texts = num_examples = 0
    why: SourceError | None = None
    for row in itertools.islice(read_rows(path, bad=bad), SNIFFED_ROWS):
        try:
            _read_example(row)
            num_examples += 1
        except SourceError as error:
            num_texts += isinstance(row.values.get(text_key), str)
            why = why or error
            if FORMS in str(why):
                why = SourceError(
                    f"cannot use {path}: its rows are no examples, and no texts: expected the key {text_key!r}, found "
                    f"{list_keys(row.values)}; --text-key names another"
                )
    if not num_examples and not num_texts:
        raise why or SourceError(bad.skipped[0] if bad.skipped else f"cannot use {path}: it has no rows")
    return num_examples > num_texts


def _read_example(row: Row) -> Conversation | Preference:
    """A preference pair, or else a conversation. Raises SourceError."""
    try:
        json.dumps(row.values, ensure_ascii=False, default=str).encode("utf-8")
    except UnicodeEncodeError:
        raise SourceError(f"cannot use {row.where}: its text has half of a UTF-16 surrogate pair; remove it") from None
    is_pair = all(row.values.get(key) is not None for key in ("chosen", "rejected"))
    return read_preference(row) if is_pair else read_conversation(row)


def _examples(path: Path, bad: BadRows) -> Iterator[tuple[dict[str, Any], Conversation | Preference]]:
    """The rows that can be used, as they are and as read."""
    try:
        for row in read_rows(path, bad=bad):
            try:
                example = _read_example(row)
            except SourceError as error:
                bad.skip(error)
                continue
            yield row.values, example
    except SourceError as error:  # the file is broken from here on
        bad.skip(error)


def _count_examples(path: Path, found: Found, conversions: Conversions) -> None:
    bad = BadRows(MAX_BAD_ROWS, conversions)
    for _, example in _examples(path, bad):
        counts = found.pair_files if isinstance(example, Preference) else found.question_files
        counts[path] = counts.get(path, 0) + 1
        found.example_bytes += sum(len(turn.text.encode()) for turn in example.conversation.turns)
    found.bad_rows += bad.skipped


def _count_text(file: SourceFile, counts: TextCounts, text_key: str, conversions: Conversions, deadline: float) -> None:
    """Count a text file, or the texts in rows; after the deadline estimate them."""
    if time.monotonic() > deadline:
        counts.files, counts.documents, counts.is_estimate = counts.files + 1, counts.documents + 1, True
        counts.num_bytes += file.num_bytes
        return
    own = TextCounts()
    for document in read_documents(SourceList((file,), 0), text_key=text_key, conversions=conversions):
        own.add(document)
    own.files = int(own.documents > 0)
    for field in dataclasses.fields(TextCounts):
        before, now = getattr(counts, field.name), getattr(own, field.name)
        setattr(counts, field.name, max(before, now) if field.name == "longest" else before + now)


def _count_documents(
    files: list[SourceFile], counts: TextCounts, text_key: str, conversions: Conversions, deadline: float
) -> None:
    """Count the text of PDFs and the like; after the deadline estimate that of the rest."""
    own = TextCounts()
    for document in read_documents(SourceList(tuple(files), 0), text_key=text_key, conversions=conversions):
        own.add(document)
        if time.monotonic() > deadline:
            own.is_estimate = True
            break
    readers = conversions.document_files
    seen = {*readers.read_files, *readers.unread, *readers.scans}
    read_bytes = sum(file.num_bytes for file in files if str(file.path) in seen)
    scale = sum(file.num_bytes for file in files) / read_bytes if own.is_estimate and read_bytes else 1.0
    counts.files += round(scale * len(readers.read_files))
    for name in ("documents", "blocks", "lines", "num_bytes"):
        setattr(counts, name, getattr(counts, name) + round(scale * getattr(own, name)))
    counts.longest = max(counts.longest, own.longest)
    counts.is_estimate |= own.is_estimate


# ---- examples of several files as files of their own


def gather_examples(files: Iterable[Path], folder: Path, text_key: str, encoding: str | None) -> None:
    """Write the usable rows of all files into a new folder:

        questions.jsonl, held-out.jsonl      the conversations; without any, the chosen ones of the pairs
        pairs.jsonl, pairs-held-out.jsonl    the pairs, if there are any
        text.jsonl                           the text of questions.jsonl, to train on before

    Conversations are held out here, so that their text is in none of the training. Raises
    SourceError, OutputError.
    """
    bad = BadRows(MAX_BAD_ROWS, Conversions(encoding))
    found = [each for path in files for each in _examples(path, bad)]
    pairs = [(values, example) for values, example in found if isinstance(example, Preference)]
    talks = [(values, example) for values, example in found if isinstance(example, Conversation)]
    pairs_held_out = _choose_held_out(example.split_key for _, example in pairs)
    if talks:
        held_out = _choose_held_out(example.split_key for _, example in talks)
    else:  # the same: what is held out of the pairs may be nowhere
        talks, held_out = [({"messages": pair.chosen.messages()}, pair.chosen) for _, pair in pairs], pairs_held_out
    with atomic_directory(folder) as made:
        _write_split(talks, held_out, made / "questions.jsonl", made / "held-out.jsonl")
        if pairs:
            _write_split(pairs, pairs_held_out, made / "pairs.jsonl", made / "pairs-held-out.jsonl")
        texts = (
            "\n\n".join(turn.text for turn in talk.turns)
            for (_, talk), is_held_out in zip(talks, held_out, strict=True)
            if not is_held_out
        )
        _write_rows(made / "text.jsonl", ({text_key: text} for text in texts))


def _choose_held_out(split_keys: Iterable[str]) -> list[bool]:
    keys = list(split_keys)
    found: list[bool] = hold_out(keys, None, MAX_HELD_OUT).tolist() if keys else []
    return found


def _write_split(
    examples: Sequence[tuple[dict[str, Any], Any]], held_out: Sequence[bool], train: Path, val: Path
) -> None:
    """Write each example into one of two files."""
    for path, wanted in ((train, False), (val, True)):
        _write_rows(path, (values for (values, _), is_val in zip(examples, held_out, strict=True) if is_val == wanted))


def _write_rows(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    with path.open("w", encoding="utf-8", newline="\n") as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False, default=str) + "\n")

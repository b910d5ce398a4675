"""Looks through text before anything is trained on it: where it comes from, its languages and
lengths, what repeats, odd characters, personal data.

`survey` is for files and folders, `survey_store` for a token store. Both read everything once.
"""

from __future__ import annotations

import array
import collections
import dataclasses
import hashlib
import itertools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt

from llamita.data import personal_data
from llamita.data.document_files import DOCUMENT_SUFFIXES
from llamita.data.documents import SourceCounts, SourceFile, SourceList, SplitOn, list_sources, read_documents
from llamita.data.file_formats import PAIR_KEYS, ROW_READERS, BadRows, find_suffix, read_rows
from llamita.data.languages import describe_language
from llamita.data.near_duplicates import NearDuplicates
from llamita.data.odd_characters import describe_character, find_odd
from llamita.data.token_store import SPLITS, TokenStore
from llamita.data.utf8_files import BOM, Conversions, binary_kind, is_gzipped, open_file
from llamita.errors import SourceError
from llamita.progress import Progress, no_progress

Form = Literal["text", "conversations", "preferences", "questions and answers", "other rows"]
MAX_SAMPLES: Final = 8
MAX_LISTED: Final = 20  # groups of near-duplicates, characters
MAX_LINES: Final = 500
_MAX_PIECES: Final = 5  # examples of personal data
# A folder with one of these is a checkpoint, an adapter, a run or a token store.
_MODEL_FILES: Final = (
    "store.json", "run.json", "config.json", "adapter_config.json", "params.json", "tokenizer.json",
    "model.safetensors",
)  # fmt: skip
_MESSAGE_KEYS: Final = ("content", "value")  # of a message in a conversation, beside its role
_HEAD_BYTES: Final = 1 << 16
_START, _SAMPLE = 160, 1200  # characters of a document that are kept
_MAX_STARTS: Final = 200_000
_BLOCK_BYTES: Final = 1 << 20
_MAX_COUNTED_LINES: Final = 500_000
_MAX_LINE: Final = 500  # characters
_MIN_LINE_DOCUMENTS, _MIN_LINE_SHARE = 4, 0.01  # documents in which a listed line is, of those with several lines


@dataclasses.dataclass(frozen=True)
class Share:
    """A part of the documents: of a file, a language, a length."""

    name: str
    documents: int
    num_bytes: int  # of text, UTF-8


@dataclasses.dataclass(frozen=True)
class Group:
    """Documents that repeat one. start: how it begins; like: how another begins."""

    start: str
    like: str
    documents: int  # besides the one


@dataclasses.dataclass(frozen=True)
class Found:
    """A character, or a kind of personal data."""

    name: str
    count: int
    documents: int
    examples: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Sample:
    """The start of a document."""

    source: str
    text: str
    characters: int  # of the whole document


@dataclasses.dataclass(frozen=True)
class Survey:
    """What there is. Lists are sorted, the largest first."""

    paths: tuple[str, ...]
    files: int
    file_bytes: int
    kinds: tuple[Share, ...]  # files by their suffix, with their bytes; none of a token store
    skipped_files: int  # of unknown types, and hidden
    problems: tuple[str, ...]  # a line for what cannot be read, or was converted
    forms: Mapping[Form, int]  # documents
    sources: tuple[Share, ...]
    documents: int
    num_bytes: int
    empty_documents: int
    languages: tuple[Share, ...]
    lengths: tuple[Share, ...]  # from 1, 2, 4, 8 … characters on
    quantiles: tuple[int, ...]  # characters of the shortest, at 5 %, 50 %, 95 %, of the longest
    duplicates: Share
    near_duplicates: Share
    near_held_out: int  # near-duplicates in training of a held-out document; only of a token store
    groups: tuple[Group, ...]
    lines: tuple[tuple[str, int], ...]  # lines that repeat, and in how many documents
    odd_characters: tuple[Found, ...]
    personal: tuple[Found, ...]
    samples: tuple[Sample, ...]

    @property
    def main_form(self) -> Form:
        """What most documents are."""
        return max(self.forms, key=self.forms.__getitem__)


def is_text(path: Path) -> bool:
    """Whether a path is text, as `survey` takes it, by what it is: not a model, a tokenizer, a token
    store or a run."""
    if path.is_dir():
        if any((path / name).exists() for name in _MODEL_FILES):
            return False
        try:
            return bool(list_sources([str(path)], skip_unknown=True).files)
        except SourceError:
            return False
    suffix = find_suffix(path)
    if suffix is None or not path.is_file():
        return suffix is not None
    with open_file(path) as file:
        head = file.read(_HEAD_BYTES)
    if suffix != ".json" or is_gzipped(path):
        return not (head.startswith(b"GGUF") and binary_kind(head))
    start = head.removeprefix(BOM).lstrip()
    lines = start.split(b"\n", 1)
    return start.startswith(b"[") or (len(lines) == 2 and lines[0].rstrip().endswith(b"}") and bool(lines[1].strip()))


def survey(
    sources: Sequence[str],
    *,
    text_key: str = "text",
    separator: str = "<|endoftext|>",
    split_on: SplitOn = "separator",
    encoding: str | None = None,
    progress: Progress = no_progress,
) -> Survey:
    """Look through files and folders. A file that cannot be read is a problem, not an error.

    A row is read as its text, or, if it has none, as all text in it: a conversation, a pair. Raises
    SourceError if a source is missing, or there is no text at all.
    """
    listed = list_sources(sources, skip_unknown=True)
    surveyor, conversions = _Surveyor(), Conversions(encoding)
    problems: list[str] = []
    done = 0
    names = {str(file.path): file.name for file in listed.files}  # of what is in an archive, none
    for files in _portions(listed.files):
        counts, bad = SourceCounts(), BadRows(1 << 62, conversions)
        try:
            if find_suffix(files[0].path) in ROW_READERS:
                for row in read_rows(files[0].path, bad=bad):
                    surveyor.add(files[0].name, _form(row.values, text_key), _all_text(row.values, text_key))
            else:
                for document in read_documents(
                    SourceList(files, 0),
                    separator=separator,
                    split_on=split_on,
                    text_key=text_key,
                    counts=counts,
                    conversions=conversions,
                ):
                    surveyor.add(names.get(document.source, document.source), "text", document.text)
        except SourceError as error:
            problems.append(str(error))
        problems += bad.skipped
        surveyor.empty_documents += counts.empty_documents
        done += sum(file.num_bytes for file in files)
        progress("reading", done, listed.num_bytes)
    problems += conversions.describe()
    if not surveyor.num_documents:
        raise SourceError(f"no text in {', '.join(sources)}: {problems[0] if problems else 'all documents are empty'}")
    kinds = _Tally()
    for file in listed.files:
        kinds.add(find_suffix(file.path) or "", file.num_bytes)
    return surveyor.finish(
        paths=sources,
        files=len(listed.files),
        file_bytes=listed.num_bytes,
        kinds=kinds.shares(),
        skipped_files=listed.hidden_files + len(listed.skipped),
        problems=problems,
    )


def survey_store(path: Path, progress: Progress = no_progress) -> Survey:
    """Look through the documents of a token store; its sources are its splits. Raises StoreError."""
    from llamita.tokenizer import load_tokenizer  # needs the tokenizers library, which text does not

    store = TokenStore(path)
    tokenizer = load_tokenizer(store.tokenizer_path)
    surveyor = _Surveyor()
    total = sum(store.split(name).num_documents for name in SPLITS)
    for name in SPLITS:
        split = store.split(name)
        for number in range(split.num_documents):
            text = tokenizer.decode(split.document(number).tolist()).decode("utf-8", "replace")
            surveyor.add(name, "text", text, is_val=name == "val")
            if number % 1000 == 0:
                progress("reading", surveyor.num_documents, total)
    progress("reading", total, total)
    sizes = [file.stat().st_size for file in path.rglob("*") if file.is_file()]
    return surveyor.finish(
        paths=[str(path)], files=len(sizes), file_bytes=sum(sizes), kinds=(), skipped_files=0, problems=()
    )


def _portions(files: Sequence[SourceFile]) -> Iterator[tuple[SourceFile, ...]]:
    """Files to read together: all documents such as PDF, whose readers work ahead; others alone, so
    that one that cannot be read costs itself only."""
    for is_document, group in itertools.groupby(files, lambda file: find_suffix(file.path) in DOCUMENT_SUFFIXES):
        if is_document:
            yield tuple(group)
        else:
            yield from ((file,) for file in group)


def _form(values: Mapping[str, Any], text_key: str) -> Form:
    if isinstance(values.get(text_key), str):
        return "text"
    if values.get("chosen") is not None and values.get("rejected") is not None:
        return "preferences"
    if "messages" in values or "conversations" in values:
        return "conversations"
    return "questions and answers" if any(a in values and b in values for a, b in PAIR_KEYS) else "other rows"


def _all_text(values: Mapping[str, Any], text_key: str) -> str:
    text = values.get(text_key)
    return text if isinstance(text, str) else "\n".join(_strings(values))


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        message = [value[key] for key in _MESSAGE_KEYS if key in value]
        for each in message or value.values():
            yield from _strings(each)
    elif isinstance(value, list):
        for each in value:
            yield from _strings(each)


class _Tally:
    """Counts documents and bytes by name."""

    def __init__(self) -> None:
        self._documents: collections.Counter[str] = collections.Counter()
        self._bytes: collections.Counter[str] = collections.Counter()

    def add(self, name: str, num_bytes: int) -> None:
        self._documents[name] += 1
        self._bytes[name] += num_bytes

    def shares(self) -> tuple[Share, ...]:
        """The most bytes first."""
        return tuple(Share(name, self._documents[name], size) for name, size in self._bytes.most_common())


class _Occurrences:
    """Counts pieces of text by their kind."""

    def __init__(self) -> None:
        self._counts: collections.Counter[str] = collections.Counter()
        self._documents: collections.Counter[str] = collections.Counter()
        self._examples: dict[str, dict[str, None]] = collections.defaultdict(dict)

    def add(self, found: Sequence[tuple[str, str]]) -> None:
        """Add those of one document: kind and piece."""
        self._counts.update(kind for kind, _ in found)
        self._documents.update({kind for kind, _ in found})
        for kind, piece in found:
            if piece and len(self._examples[kind]) < _MAX_PIECES:
                self._examples[kind][piece] = None

    def found(self) -> tuple[Found, ...]:
        """The most frequent first."""
        return tuple(
            Found(kind, count, self._documents[kind], tuple(self._examples[kind]))
            for kind, count in self._counts.most_common(MAX_LISTED)
        )


class _Surveyor:
    """Counts documents one after another."""

    def __init__(self) -> None:
        self.num_documents = self.empty_documents = 0
        self._forms: collections.Counter[Form] = collections.Counter()
        self._sources, self._languages, self._lengths = _Tally(), _Tally(), _Tally()
        self._characters = array.array("q")  # of each document
        self._odd, self._personal = _Occurrences(), _Occurrences()
        self._hashes: set[bytes] = set()
        self._duplicate_bytes = 0
        # Of the documents that are no duplicates:
        self._near = NearDuplicates()
        self._block: list[bytes] = []  # not yet in self._near
        self._block_bytes = 0
        self._sizes, self._is_val = array.array("q"), array.array("b")
        self._starts: list[str] = []  # of the first ones
        self._lines: collections.Counter[str] = collections.Counter()
        self._with_lines = 0
        self._samples: list[tuple[bytes, Sample]] = []

    def add(self, source: str, form: Form, text: str, *, is_val: bool = False) -> None:
        """Look at a document."""
        raw = text.strip().encode("utf-8", "replace")  # a .jsonl may hold half of a surrogate pair
        if not raw:
            self.empty_documents += 1
            return
        text = raw.decode("utf-8")
        self.num_documents += 1
        self._forms[form] += 1
        self._sources.add(source, len(raw))
        self._languages.add(describe_language(text), len(raw))
        self._lengths.add(str(1 << (len(text).bit_length() - 1)), len(raw))
        self._characters.append(len(text))
        self._odd.add([(describe_character(each), "") for each in find_odd(text)])
        pieces: list[tuple[str, str]] = []
        personal_data.mask(text, lambda kind, piece: pieces.append((personal_data.LABELS[kind], _conceal(piece))))
        self._personal.add(pieces)
        digest = hashlib.blake2b(raw, digest_size=16).digest()
        if digest in self._hashes:
            self._duplicate_bytes += len(raw)
            return
        self._hashes.add(digest)
        self._add_lines(text)
        if len(self._samples) < MAX_SAMPLES or digest < self._samples[-1][0]:  # random, the same in every run
            sample = (digest, Sample(source, text[:_SAMPLE], len(text)))
            self._samples = sorted([*self._samples, sample], key=lambda each: each[0])[:MAX_SAMPLES]
        if len(self._starts) < _MAX_STARTS:
            self._starts.append(text[:_START])
        self._sizes.append(len(raw))
        self._is_val.append(is_val)
        self._block.append(raw)
        self._block_bytes += len(raw)
        if self._block_bytes >= _BLOCK_BYTES:
            self._add_block()

    def _add_block(self) -> None:
        self._near.add(self._block)
        self._block, self._block_bytes = [], 0

    def _add_lines(self, text: str) -> None:
        """Count the lines of a document with several. If there are too many, forget rare ones."""
        lines = set(map(str.strip, text.replace("\r", "\n").split("\n"))) - {""}
        if len(lines) < 2:
            return
        self._with_lines += 1
        self._lines.update(line for line in lines if len(line) <= _MAX_LINE)
        floor = 1
        while len(self._lines) > _MAX_COUNTED_LINES:
            self._lines = collections.Counter({line: count for line, count in self._lines.items() if count > floor})
            floor += 1

    def finish(
        self, *, paths: Sequence[str], files: int, file_bytes: int, kinds: Sequence[Share], skipped_files: int,
        problems: Sequence[str]
    ) -> Survey:  # fmt: skip
        """The result; the arguments are what is known of the files."""
        self._add_block()
        is_val = np.array(self._is_val, np.bool_)
        repeated = self._near.find(np.argsort(~is_val, kind="stable"), is_val)
        near = np.flatnonzero(repeated >= 0)
        needed = max(_MIN_LINE_DOCUMENTS, _MIN_LINE_SHARE * self._with_lines)
        lines = [(line, count) for line, count in self._lines.items() if count >= needed]
        lines.sort(key=lambda each: (-len(each[0]) * each[1], each[0]))
        quantiles = np.quantile(np.array(self._characters), (0, 0.05, 0.5, 0.95, 1), method="nearest")
        return Survey(
            paths=tuple(paths),
            files=files,
            file_bytes=file_bytes,
            kinds=tuple(kinds),
            skipped_files=skipped_files,
            problems=tuple(problems),
            forms=dict(self._forms.most_common()),
            sources=self._sources.shares(),
            documents=self.num_documents,
            num_bytes=sum(share.num_bytes for share in self._sources.shares()),
            empty_documents=self.empty_documents,
            languages=self._languages.shares(),
            lengths=tuple(sorted(self._lengths.shares(), key=lambda share: int(share.name))),
            quantiles=tuple(map(int, quantiles)),
            duplicates=Share("duplicates", self.num_documents - len(self._hashes), self._duplicate_bytes),
            near_duplicates=Share("near-duplicates", len(near), sum(self._sizes[i] for i in near)),
            near_held_out=int((is_val[repeated[near]] & ~is_val[near]).sum()),
            groups=self._groups(repeated),
            lines=tuple(lines[:MAX_LINES]),
            odd_characters=self._odd.found(),
            personal=self._personal.found(),
            samples=tuple(sample for _, sample in self._samples),
        )

    def _groups(self, repeated: npt.NDArray[np.int64]) -> tuple[Group, ...]:
        """The largest groups of near-duplicates."""
        known = repeated[: len(self._starts)]
        first = {int(repeated[i]): int(i) for i in np.flatnonzero(known >= 0)[::-1]}
        counts = collections.Counter(repeated[repeated >= 0].tolist())
        return tuple(
            Group(self._starts[one], self._starts[first[one]], count)
            for one, count in counts.most_common(MAX_LISTED)
            if one in first and one < len(self._starts)
        )


def _conceal(piece: str) -> str:
    """A piece of personal data that can be recognized, but not used."""
    return f"{piece[:3]}…{piece[-2:]}"

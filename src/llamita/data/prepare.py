"""Text to a token store: reads the documents, drops duplicates, splits them, learns a vocabulary, encodes, writes.

Large sources are read three times as a stream (to decide on every document, to learn the vocabulary, to encode), so
that memory holds some 100 bytes a document (what finds duplicates) and never the text.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import itertools
import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from llamita.atomic import atomic_directory
from llamita.config import PrepareConfig
from llamita.data.datatrove import TokenFile, adopt, find_token_files
from llamita.data.readers import (
    SourceCounts,
    SourceList,
    check_unchanged,
    hash_source,
    list_sources,
    read_texts,
)
from llamita.data.token_store import FORMAT, SPLITS, SplitName, StoreWriter, read_store_info
from llamita.data.tokenize_workers import Batch, DocumentEncoder
from llamita.errors import ConfigError, EngineError, OutputError, SourceError, StoreError, TokenizerError
from llamita.tokenizer import Tokenizer, VocabularyTooLarge, load_tokenizer, train_bpe
from llamita.tokenizer.bpe_trainer import EngineBpeTrainer

DEFAULT_VAL_FRACTION = 0.05
MIN_SPLIT_BYTES = 1_000  # of text, in each split
LEARN_BYTES = 64 << 20  # a vocabulary is learned from at most so much text: 1 GB of memory at worst (Chinese)
KEPT_BYTES = 64 << 20  # so much text is read once and stays in memory; more is read again for each purpose
SAMPLED_DOCUMENTS, SAMPLED_CHARACTERS = 128, 2048  # on which the engine's ids are compared with the library's
_RECIPE = 1  # raised when the same sources and flags would give other tokens
_RECIPE_OF_A_SAMPLE = 2  # the same, for a vocabulary learned from LEARN_BYTES of more text

Stage = Literal["reading", "learning the vocabulary", "encoding", "checking tokens"]
Progress = Callable[[Stage, int, int], None]  # stage, bytes of text done, bytes of text in all

_DROPPED, _TRAIN, _VAL = 0, 1, 2  # what was decided on a document
_STORIES = 1024  # generated ones are prepared so many at a time


@dataclasses.dataclass(frozen=True)
class SplitReport:
    """One split's size."""

    documents: int
    tokens: int  # EOS included
    text_bytes: int


@dataclasses.dataclass(frozen=True)
class PrepareReport:
    """What went in and what came out. These add up, to the byte and to the document:

    source_bytes = train.text_bytes + val.text_bytes + duplicate_bytes + whitespace_bytes + separator_bytes
    + container_bytes;
    documents = train.documents + val.documents + duplicate_documents + empty_documents.
    """

    out: Path
    files: int
    hidden_files: int
    source_bytes: int
    documents: int
    train: SplitReport
    val: SplitReport
    duplicate_documents: int
    duplicate_bytes: int
    empty_documents: int
    whitespace_bytes: int
    separator_bytes: int
    container_bytes: int
    vocab_size: int
    vocabulary: str  # where it came from and why it is so large
    reused: bool  # the store was there already, made from the same sources with the same flags
    seconds: float
    encoded_by: str = "the tokenizers library"  # who made ids of the text (as stores of before say by silence)

    @property
    def tokens(self) -> int:
        return self.train.tokens + self.val.tokens

    @property
    def text_bytes(self) -> int:
        return self.train.text_bytes + self.val.text_bytes

    @property
    def bytes_per_token(self) -> float:
        return self.text_bytes / self.tokens


def prepare(config: PrepareConfig, progress: Progress | None = None) -> PrepareReport:
    """Make the token store `config.out` from `config.sources`; with the same sources and flags again, do nothing.

    Raises SourceError (text), TokenizerError (vocabulary), OutputError (disk, or something else is at `out`).
    """
    started = time.monotonic()
    report = progress or _silent
    if config.datatrove:
        return _adopt(config, report, started)
    corpus = _Corpus(config)
    given = load_tokenizer(config.tokenizer) if config.tokenizer is not None else None
    recipe = _recipe(config, corpus, given)
    _check_place(config)
    if _has_store(config, recipe):
        return _read_report(config.out, time.monotonic() - started)
    plan = _Plan.make(corpus, config, report)
    tokenizer, reason = (given, f"{config.tokenizer}") if given else _learn(corpus, plan, config, report)
    if tokenizer.eos_id is None:
        raise TokenizerError(f"cannot use tokenizer {config.tokenizer}: it has no end-of-text token (eos_token)")
    with atomic_directory(config.out, replace=config.out.exists()) as folder:
        tokenizer.save(folder)
        writer = StoreWriter(folder, vocab_size=tokenizer.vocab_size, eos_id=tokenizer.eos_id)
        try:
            encoded_by = _encode(corpus, plan, tokenizer, writer, config, report)
            facts = {"recipe": recipe, "sources": corpus.facts, "report": plan.facts(reason, encoded_by)}
            writer.finish(_tokenizer_facts(tokenizer), facts)
        finally:
            writer.close()
    return _read_report(config.out, time.monotonic() - started, reused=False)


def default_vocab_size(train_bytes: int) -> int:
    """1,024 tokens for a megabyte of text, growing with its square root, 512 to 8,192, a multiple of 64.

    So 16 MB get 4,096: a domain's own 4,096 tokens cut it about as finely as Llama 2's 32,000, at a third of a small
    model's arithmetic, and each token still occurs hundreds of times.
    """
    return min(8192, max(512, 64 * round(16 * math.sqrt(train_bytes / 1e6))))


# ---- the corpus


class _Corpus:
    """The texts of the configuration's sources, as often as they are asked for: first --val's, then the others."""

    def __init__(self, config: PrepareConfig) -> None:
        self._config = config
        self._stories: list[bytes] | None = None
        self._kept: list[tuple[list[bytes], bool]] | None = None
        self._kept_counts = SourceCounts()
        if config.sources == ("tinystories",):
            raise ConfigError("prepare: tinystories is downloaded first, by llamita.data.tinystories; give its files")
        self.val = list_sources(config.val)
        if config.sources == ("stories",):
            from llamita.stories.generate import generate_stories

            self._stories = [story.encode("utf-8") for story in generate_stories(config.num_stories, seed=config.seed)]
            self.train = SourceList((), 0)
        else:
            self.train = list_sources(config.sources)
        self.num_bytes = self.train.num_bytes + self.val.num_bytes + sum(map(len, self._stories or ()))

    def blocks(self, counts: SourceCounts) -> Iterator[tuple[list[bytes], bool]]:
        """Every text (UTF-8), some thousands at a time, and whether they are --val's. Those of small sources are read
        once and kept."""
        if self._kept is not None:
            for field in dataclasses.fields(SourceCounts):
                setattr(counts, field.name, getattr(self._kept_counts, field.name))
            yield from self._kept
            return
        kept: list[tuple[list[bytes], bool]] = []
        for block in self._read(counts):
            if self.num_bytes <= KEPT_BYTES:
                kept.append(block)
            yield block
        if self.num_bytes <= KEPT_BYTES:
            self._kept, self._kept_counts = kept, dataclasses.replace(counts)

    def _read(self, counts: SourceCounts) -> Iterator[tuple[list[bytes], bool]]:
        config = self._config
        for sources, is_val in ((self.val, True), (self.train, False)):
            for texts in read_texts(
                sources,
                separator=config.separator,
                split_on=config.split_on,
                text_key=config.text_key,
                counts=counts,
            ):
                yield texts, is_val
        stories = self._stories or []
        for first in range(0, len(stories), _STORIES):
            texts = stories[first : first + _STORIES]
            size = sum(map(len, texts))
            counts.source_bytes += size
            counts.documents += len(texts)
            counts.document_bytes += size
            yield texts, False

    @functools.cached_property
    def facts(self) -> list[dict[str, Any]]:
        """What identifies the sources: names within their folders, sizes, hashes; not where they lie."""
        files = [(file, split) for split, found in (("val", self.val), ("", self.train)) for file in found.files]
        facts = [{"name": f.name, "bytes": f.num_bytes, "sha256": hash_source(f), "only": split} for f, split in files]
        if self._stories is not None:
            digest = hashlib.sha256(b"\0".join(self._stories)).hexdigest()
            facts.append({"name": "stories", "bytes": self.num_bytes, "sha256": digest, "only": ""})
        return facts

    def check_unchanged(self) -> None:
        check_unchanged((*self.val.files, *self.train.files))


# ---- deciding on every document


@dataclasses.dataclass
class _Plan:
    """A decision for each document in reading order, and the sums."""

    decisions: bytearray
    counts: SourceCounts
    hidden_files: int
    documents: dict[SplitName, int]
    text_bytes: dict[SplitName, int]
    sample: _Sample
    duplicate_documents: int = 0
    duplicate_bytes: int = 0

    @classmethod
    def make(cls, corpus: _Corpus, config: PrepareConfig, progress: Progress) -> _Plan:
        hidden = corpus.train.hidden_files + corpus.val.hidden_files
        plan = cls(bytearray(), SourceCounts(), hidden, {"train": 0, "val": 0}, {"train": 0, "val": 0}, _Sample())
        fraction = 0.0 if config.val else (config.val_fraction or DEFAULT_VAL_FRACTION)
        threshold = int(fraction * 2**64)
        seen: set[bytes] = set()
        for texts, is_val in corpus.blocks(plan.counts):
            plan._decide(texts, document_hashes(texts, config.seed), seen, 2**64 if is_val else threshold)
            progress("reading", plan.counts.source_bytes, corpus.num_bytes)
        progress("reading", corpus.num_bytes, corpus.num_bytes)
        plan._check(config)
        return plan

    def _decide(self, texts: Sequence[bytes], hashes: Sequence[bytes], seen: set[bytes], threshold: int) -> None:
        """Decide on some documents. Those are held out whose hash's first half is less than the threshold."""
        is_new = np.zeros(len(texts), np.bool_)
        for i, digest in enumerate(hashes):
            if digest not in seen:
                seen.add(digest)
                is_new[i] = True
        halves = np.frombuffer(b"".join(hashes), "<u8").reshape(-1, 2)
        is_val = halves[:, 0] <= np.uint64(threshold - 1) if threshold else np.zeros(len(texts), np.bool_)
        decisions = np.where(is_new, np.where(is_val, _VAL, _TRAIN), _DROPPED).astype(np.uint8)
        self.decisions += decisions.tobytes()
        self.sample.offer(halves[:, 1], is_new, texts)
        documents = np.bincount(decisions, minlength=3).tolist()
        sizes = np.fromiter(map(len, texts), np.int64, len(texts))
        text_bytes = [int(sizes[decisions == decision].sum()) for decision in range(3)]
        self.duplicate_documents += documents[_DROPPED]
        self.duplicate_bytes += text_bytes[_DROPPED]
        splits: tuple[tuple[SplitName, int], ...] = (("train", _TRAIN), ("val", _VAL))
        for split, decision in splits:
            self.documents[split] += documents[decision]
            self.text_bytes[split] += text_bytes[decision]

    def _check(self, config: PrepareConfig) -> None:
        """Both splits must hold enough to be worth it."""
        if not self.decisions:
            raise SourceError(f"no text in {', '.join(config.sources)}: all documents are empty")
        for split, size in self.text_bytes.items():
            if size >= MIN_SPLIT_BYTES:
                continue
            documents = sum(self.documents.values())
            if split == "val" and config.val:
                advice = "give more with --val"
            elif documents == 1 and config.split_on != "blank-lines":
                advice = "it is all one document: cut it with --split-on blank-lines or --separator, or give --val"
            else:
                advice = "give more text" + ("" if split == "train" else ", a larger --val-fraction, or --val")
            raise SourceError(
                f"too little text: the {'training' if split == 'train' else 'validation'} split would get "
                f"{self.documents[split]:,} of {documents:,} documents, {size:,} bytes, and needs "
                f"{MIN_SPLIT_BYTES:,} bytes; {advice}"
            )

    def facts(self, vocabulary: str, encoded_by: str) -> dict[str, Any]:
        """What the report needs and the splits' own entries in store.json do not say."""
        return {
            "files": self.counts.files,
            "hidden_files": self.hidden_files,
            "source_bytes": self.counts.source_bytes,
            "documents": self.counts.documents + self.counts.empty_documents,
            "duplicate_documents": self.duplicate_documents,
            "duplicate_bytes": self.duplicate_bytes,
            "empty_documents": self.counts.empty_documents,
            "whitespace_bytes": self.counts.whitespace_bytes,
            "separator_bytes": self.counts.separator_bytes,
            "container_bytes": self.counts.container_bytes,
            "vocabulary": vocabulary,
            "encoded_by": encoded_by,
        }


class _Sample:
    """The beginnings of the SAMPLED_DOCUMENTS documents with the smallest hashes: a fair choice, and the same each
    time."""

    def __init__(self) -> None:
        self._chosen: list[tuple[int, str]] = []  # by hash; of this the second half: the first decides the split

    def offer(self, hashes: npt.NDArray[np.uint64], is_new: npt.NDArray[np.bool_], texts: Sequence[bytes]) -> None:
        if len(self._chosen) == SAMPLED_DOCUMENTS:
            is_new = is_new & (hashes < np.uint64(self._chosen[-1][0]))
        found = np.flatnonzero(is_new)
        for i in found[np.argsort(hashes[found], kind="stable")[:SAMPLED_DOCUMENTS]].tolist():
            start = texts[i][: 4 * SAMPLED_CHARACTERS].decode("utf-8", "ignore")  # a character has 4 bytes at most
            self._chosen.append((int(hashes[i]), start[:SAMPLED_CHARACTERS]))
        self._chosen = sorted(self._chosen)[:SAMPLED_DOCUMENTS]

    def texts(self) -> list[str]:
        return [text for _, text in reversed(self._chosen)]


def document_hashes(texts: Sequence[bytes], seed: int) -> list[bytes]:
    """16 bytes that identify each document; the first 8, as a share of 2^64, decide its split.

    A function of the text and the seed alone: more documents never move one from a split to the other.
    """
    key = b"" if seed == 0 else seed.to_bytes(8, "little")
    return [hashlib.blake2b(text, digest_size=16, key=key).digest() for text in texts]


# ---- the vocabulary


def _learn(corpus: _Corpus, plan: _Plan, config: PrepareConfig, progress: Progress) -> tuple[Tokenizer, str]:
    """Learn a vocabulary from the training documents; the size is the flag's, or chosen by the amount of text."""
    train_bytes = plan.text_bytes["train"]
    try:
        learn = EngineBpeTrainer(_train_texts(corpus, plan, progress)).tokenizer
    except EngineError:  # it is not built: the library learns the same, in its time, and encoding says so

        def learn(vocab_size: int) -> Tokenizer:
            blocks = _train_texts(corpus, plan, progress)
            return train_bpe((str(text, "utf-8") for texts in blocks for text in texts), vocab_size)

    if config.vocab_size is not None:
        return learn(config.vocab_size), "learned, size as asked"
    try:
        size = default_vocab_size(train_bytes)
        return learn(size), f"learned, size chosen for {train_bytes / 1e6:,.1f} MB of training text"
    except VocabularyTooLarge as error:
        smaller = max(320, error.supported // 64 * 64)
        reason = f"learned, as large as this text supports: in {train_bytes / 1e6:,.1f} MB no more pairs occur twice"
        return learn(smaller), reason


def _train_texts(corpus: _Corpus, plan: _Plan, progress: Progress) -> Iterator[list[bytes]]:
    """The training documents' texts; of more than LEARN_BYTES, a share that is evenly spread."""
    total = plan.text_bytes["train"]
    share = min(1.0, LEARN_BYTES / max(1, total))
    done = first = 0
    for texts, _ in corpus.blocks(SourceCounts()):
        numbered = zip(itertools.count(first), texts, plan.decisions[first : first + len(texts)], strict=False)
        train = [(number, text) for number, text, decision in numbered if decision == _TRAIN]
        progress("learning the vocabulary", done, total)
        yield [text for number, text in train if share == 1.0 or int((number + 1) * share) > int(number * share)]
        first += len(texts)
        done += sum(len(text) for _, text in train)
    progress("learning the vocabulary", total, total)


# ---- the tokens


def _encode(
    corpus: _Corpus,
    plan: _Plan,
    tokenizer: Tokenizer,
    writer: StoreWriter,
    config: PrepareConfig,
    progress: Progress,
) -> str:
    """Encode the kept documents, in reading order whatever the number of workers, and write them; returns what encoded
    them."""
    total = sum(plan.text_bytes.values())
    counts = SourceCounts()
    written: dict[SplitName, int] = {"train": 0, "val": 0}
    done = 0

    def kept() -> Iterator[Batch]:
        first = 0
        for texts, _ in corpus.blocks(counts):  # of a source that has grown since, more than was decided on
            decided = list(zip(texts, plan.decisions[first : first + len(texts)], strict=False))
            train = [text for text, decision in decided if decision == _TRAIN]
            yield Batch(train, [text for text, decision in decided if decision == _VAL])
            first += len(texts)

    with DocumentEncoder(tokenizer, config.num_workers, total, plan.sample.texts()) as encoder:
        for batch in encoder.encode(kept()):
            for split, ids, lengths, text_bytes in batch:
                writer.add(split, ids, lengths, text_bytes)
                written[split] += len(lengths)
                done += text_bytes
            progress("encoding", done, total)
    corpus.check_unchanged()
    assert counts == plan.counts and written == plan.documents and done == total, "documents were lost"
    return encoder.encoded_by


# ---- the store that is there already


def _recipe(config: PrepareConfig, corpus: _Corpus, tokenizer: Tokenizer | None) -> str:
    """sha256 (hex) of all that decides the store's tokens: sources by content, flags, the given tokenizer."""
    content = {
        "recipe": _RECIPE_OF_A_SAMPLE if tokenizer is None and corpus.num_bytes > LEARN_BYTES else _RECIPE,
        "sources": corpus.facts,
        "vocab_size": config.vocab_size,
        "tokenizer": tokenizer.fingerprint if tokenizer else None,
        "val_fraction": None if config.val else (config.val_fraction or DEFAULT_VAL_FRACTION),
        "separator": config.separator,
        "split_on": config.split_on,
        "text_key": config.text_key,
        "seed": config.seed,
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


# ---- what datatrove tokenized


def _adopt(config: PrepareConfig, progress: Progress, started: float) -> PrepareReport:
    """Make the store of datatrove's token files: see llamita.data.datatrove."""
    assert config.tokenizer is not None
    tokenizer = load_tokenizer(config.tokenizer)
    if tokenizer.eos_id is None:
        raise TokenizerError(f"cannot use tokenizer {config.tokenizer}: it has no end-of-text token (eos_token)")
    train = find_token_files(config.sources, tokenizer.vocab_size)
    val = find_token_files(config.val, tokenizer.vocab_size) if config.val else []
    fraction = config.val_fraction or DEFAULT_VAL_FRACTION
    files: list[tuple[list[TokenFile], str]] = [(val, "val"), (train, "")]
    facts = [
        {"name": file.path.name, "bytes": file.tokens.nbytes, "modified": file.path.stat().st_mtime_ns, "only": split}
        for found, split in files
        for file in found
    ]
    content = {"datatrove": 1, "files": facts, "tokenizer": tokenizer.fingerprint, "val": None if val else fraction}
    recipe = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    _check_place(config)
    if _has_store(config, recipe):
        return _read_report(config.out, time.monotonic() - started)
    total = sum(file.tokens.nbytes for file in (*train, *val))
    with atomic_directory(config.out, replace=config.out.exists()) as folder:
        tokenizer.save(folder)
        writer = StoreWriter(folder, vocab_size=tokenizer.vocab_size, eos_id=tokenizer.eos_id)
        try:
            adopt(writer, tokenizer, train, val, fraction, lambda done: progress("checking tokens", done, total))
            counts = SourceCounts(len(train) + len(val), total, sum(len(file.ends) for file in (*train, *val)))
            text_bytes = {name: writer.text_bytes(name) for name in SPLITS}
            counts.container_bytes = total - sum(text_bytes.values())  # ids are not text
            documents = {name: writer.num_documents(name) for name in SPLITS}
            plan = _Plan(bytearray(1), counts, 0, documents, text_bytes, _Sample())
            plan._check(config)
            report = plan.facts(f"{config.tokenizer}", "datatrove")
            writer.finish(_tokenizer_facts(tokenizer), {"recipe": recipe, "sources": facts, "report": report})
        finally:
            writer.close()
    return _read_report(config.out, time.monotonic() - started, reused=False)


def _check_place(config: PrepareConfig) -> None:
    """The store must not lie among its own sources: the next run would read it."""
    out = config.out.resolve()
    for source in (*config.sources, *config.val):
        place = Path(source).resolve()
        if place.is_dir() and (out == place or place in out.parents):
            raise ConfigError(f"--out {config.out} lies inside the source folder {source}; choose a place outside it")


def _has_store(config: PrepareConfig, recipe: str) -> bool:
    """True if `out` is the finished store of this very recipe; False if it is free or may be replaced."""
    out = config.out
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return False
    try:
        info = read_store_info(out)
    except StoreError as error:
        if out.is_dir() and _says_store(out / "store.json") and config.overwrite:
            return False
        raise OutputError(f"cannot write {out}: something that is no token store is there ({error})") from None
    if info.get("recipe") == recipe and not config.overwrite:
        return True
    if not config.overwrite:
        raise OutputError(
            f"cannot write {out}: it holds a token store made from other text or with other flags; "
            "choose another --out, or replace it with --overwrite"
        )
    return False


def _says_store(path: Path) -> bool:
    """True for a store.json, even a damaged one, of a token store."""
    return path.is_file() and FORMAT.encode() in path.read_bytes()[:200]


def _read_report(out: Path, seconds: float, *, reused: bool = True) -> PrepareReport:
    info = read_store_info(out)
    splits = {
        name: SplitReport(split["documents"], split["tokens"], split["text_bytes"])
        for name, split in info["splits"].items()
    }
    return PrepareReport(
        out=out,
        train=splits["train"],
        val=splits["val"],
        vocab_size=info["tokenizer"]["vocab_size"],
        reused=reused,
        seconds=seconds,
        **info["report"],
    )


def _tokenizer_facts(tokenizer: Tokenizer) -> dict[str, Any]:
    """What the store says of its tokenizer. A tokenizer without BOS starts documents with EOS."""
    return {
        "kind": tokenizer.kind,
        "split": tokenizer.split,
        "fingerprint": tokenizer.fingerprint,
        "bos_id": tokenizer.bos_id if tokenizer.bos_id is not None else tokenizer.eos_id,
        "eos_id": tokenizer.eos_id,
    }


def _silent(stage: Stage, done: int, total: int) -> None:
    """No progress is wanted."""

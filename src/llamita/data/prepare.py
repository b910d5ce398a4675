"""Makes a token store from text: reads, drops duplicates, splits, trains a tokenizer, encodes.

A large source is streamed three times: to decide on every document, to train the tokenizer, and to
encode. Memory holds about 100 bytes per document (to find duplicates; 550 more for
near-duplicates), never the whole text.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from llamita.atomic import atomic_directory, check_no_writer
from llamita.config import PrepareConfig
from llamita.data import document_files, near_duplicates, personal_data
from llamita.data.corpus import Corpus
from llamita.data.datatrove import adopt, find_token_files
from llamita.data.document_encoder import Batch, DocumentEncoder
from llamita.data.documents import SourceCounts
from llamita.data.prepare_report import PrepareReport, SplitReport, read_report, report_entry
from llamita.data.split_plan import (
    DEFAULT_VAL_FRACTION,
    TRAIN,
    VAL,
    SplitPlan,
    check_split_sizes,
    document_hashes,
)
from llamita.data.token_store import FORMAT, SPLITS, SplitName, StoreWriter, TokenStore, read_store_info
from llamita.data.vocabulary import learn_tokenizer
from llamita.errors import ConfigError, OutputError, StoreError, TokenizerError
from llamita.progress import Progress, no_progress
from llamita.tokenizer import Tokenizer, load_tokenizer

__all__ = ["PrepareReport", "SplitReport", "document_hashes", "prepare"]

# A tokenizer is trained on at most this much text, which takes up to 1 GB of memory (Chinese).
LEARN_BYTES = 64 << 20
# Versions of the recipe, raised when the same sources and flags would give other tokens; the second
# is for a tokenizer trained on a sample, because there is more text than LEARN_BYTES.
_RECIPE, _RECIPE_OF_A_SAMPLE = 3, 4


def prepare(config: PrepareConfig, progress: Progress = no_progress) -> PrepareReport:
    """Make the token store `config.out`; do nothing if the same sources and flags already made it.

    Raises SourceError (text), TokenizerError (vocabulary), or OutputError (the disk, or something
    else is at `out`).
    """
    started = time.monotonic()
    make = _from_token_files if config.datatrove else _from_texts
    is_new = make(config, progress)
    return read_report(config.out, time.monotonic() - started, reused=not is_new)


# ---- the two ways to make a store; both return False if it exists already


def _from_texts(config: PrepareConfig, progress: Progress) -> bool:
    corpus = Corpus(config)
    given = load_tokenizer(config.tokenizer) if config.tokenizer is not None else None
    recipe = _text_recipe(config, corpus, given)
    if _is_made(config, recipe):
        return False
    plan = SplitPlan.make(corpus, config, progress)
    if given is not None:
        tokenizer, origin = given, str(config.tokenizer)
    else:
        tokenizer, origin = _train_tokenizer(corpus, plan, config, progress)
    with _new_store(config, tokenizer) as writer:
        encoded_by = _encode(corpus, plan, tokenizer, writer, config, progress)
        report = report_entry(
            plan.counts,
            vocabulary=origin,
            encoded_by=encoded_by,
            hidden_files=corpus.hidden_files,
            skipped=corpus.skipped,
            conversions=corpus.conversions,
            duplicate_documents=plan.duplicate_documents,
            duplicate_bytes=plan.duplicate_bytes,
            near_duplicates=config.near_duplicates,
            near_duplicates_kept=plan.near_duplicates - plan.near_duplicate_documents,
            near_held_out=plan.near_held_out,
            near_duplicate_documents=plan.near_duplicate_documents,
            near_duplicate_bytes=plan.near_duplicate_bytes,
        )
        decisions = np.frombuffer(plan.decisions, np.uint8)
        writer.add_origins("train", corpus.origins.chosen(decisions == TRAIN))
        writer.add_origins("val", corpus.origins.chosen(decisions == VAL))
        _finish(writer, tokenizer, recipe, corpus.fingerprint, report)
    return True


def _from_token_files(config: PrepareConfig, progress: Progress) -> bool:
    """Adopt the token files of datatrove; see llamita.data.datatrove."""
    assert config.tokenizer is not None
    tokenizer = load_tokenizer(config.tokenizer)
    _check_has_eos(config, tokenizer)
    train = find_token_files(config.sources, tokenizer.vocab_size)
    val = find_token_files(config.val, tokenizer.vocab_size) if config.val else []
    fraction = config.val_fraction or DEFAULT_VAL_FRACTION
    sources = [
        {"name": file.path.name, "bytes": file.num_bytes, "modified": file.path.stat().st_mtime_ns, "only": split}
        for files, split in ((val, "val"), (train, ""))
        for file in files
    ]
    recipe = _digest(
        {"datatrove": 1, "files": sources, "tokenizer": tokenizer.fingerprint, "val": None if val else fraction}
    )
    if _is_made(config, recipe):
        return False
    files = [*train, *val]
    total = sum(file.num_bytes for file in files)
    with _new_store(config, tokenizer) as writer:
        adopt(writer, tokenizer, train, val, fraction, progress)
        text_bytes = {name: writer.text_bytes(name) for name in SPLITS}
        check_split_sizes(config, {name: writer.num_documents(name) for name in SPLITS}, text_bytes)
        counts = SourceCounts(
            files=len(files),
            source_bytes=total,
            documents=sum(file.num_documents for file in files),
            container_bytes=total - sum(text_bytes.values()),  # the files hold ids, not text
        )
        report = report_entry(counts, vocabulary=str(config.tokenizer), encoded_by="datatrove")
        _finish(writer, tokenizer, recipe, sources, report)
    return True


# ---- the vocabulary


def _train_tokenizer(
    corpus: Corpus, plan: SplitPlan, config: PrepareConfig, progress: Progress
) -> tuple[Tokenizer, str]:
    """Train a tokenizer on the training documents. Returns it with the reasons for its unit and
    size."""
    learned = learn_tokenizer(
        _train_texts(corpus, plan, progress),
        plan.sample.texts(),
        plan.text_bytes["train"],
        vocab_size=config.vocab_size,
        unit=None if config.unit == "auto" else config.unit,
    )
    return learned.tokenizer, learned.reason


def _train_texts(corpus: Corpus, plan: SplitPlan, progress: Progress) -> Iterator[list[bytes]]:
    """The training documents, or an evenly spread sample if there are more than LEARN_BYTES."""
    total = plan.text_bytes["train"]
    share = min(1.0, LEARN_BYTES / max(1, total))
    done = first = 0
    for texts, _ in corpus.blocks(SourceCounts()):
        numbered = zip(itertools.count(first), texts, plan.decisions[first : first + len(texts)], strict=False)
        train = [(number, text) for number, text, decision in numbered if decision == TRAIN]
        progress("learning the vocabulary", done, total)
        yield [text for number, text in train if share == 1.0 or int((number + 1) * share) > int(number * share)]
        first += len(texts)
        done += sum(len(text) for _, text in train)
    progress("learning the vocabulary", total, total)


# ---- the tokens


def _encode(
    corpus: Corpus,
    plan: SplitPlan,
    tokenizer: Tokenizer,
    writer: StoreWriter,
    config: PrepareConfig,
    progress: Progress,
) -> str:
    """Encode and write the documents that the plan keeps, in reading order. Returns what encoded
    them."""
    total = sum(plan.text_bytes.values())
    counts = SourceCounts()
    written: dict[SplitName, int] = {"train": 0, "val": 0}
    done = 0

    def kept() -> Iterator[Batch]:
        first = 0
        for texts, _ in corpus.blocks(counts):  # a source that grew has more texts than decisions
            decided = list(zip(texts, plan.decisions[first : first + len(texts)], strict=False))
            train = [text for text, decision in decided if decision == TRAIN]
            yield Batch(train, [text for text, decision in decided if decision == VAL])
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


# ---- the store


def _text_recipe(config: PrepareConfig, corpus: Corpus, tokenizer: Tokenizer | None) -> str:
    """sha256 (hex) of everything that decides the store's tokens: the sources' content, the flags,
    the given tokenizer."""
    return _digest(
        {
            "recipe": _RECIPE_OF_A_SAMPLE if tokenizer is None and corpus.num_bytes > LEARN_BYTES else _RECIPE,
            "sources": corpus.fingerprint,
            "vocab_size": config.vocab_size,
            "unit": config.unit,
            "tokenizer": tokenizer.fingerprint if tokenizer else None,
            "val_fraction": None if config.val else (config.val_fraction or DEFAULT_VAL_FRACTION),
            "separator": config.separator,
            "split_on": config.split_on,
            "text_key": config.text_key,
            "keep_line_ends": config.keep_line_ends,
            "encoding": config.encoding,
            "seed": config.seed,
            **({"documents": document_files.VERSION} if corpus.has_document_files else {}),
            **(
                {"near_duplicates": [config.near_duplicates, near_duplicates.VERSION]}
                if config.near_duplicates != "keep"
                else {}
            ),
            **({"drop_lines": sorted(corpus.scrubber.lines)} if config.drop_lines else {}),
            **({"personal_data": personal_data.VERSION} if config.mask_personal_data else {}),
        }
    )


def _digest(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _is_made(config: PrepareConfig, recipe: str) -> bool:
    """True if `out` is the finished store of this recipe; False if it is free or may be replaced.

    Raises ConfigError or OutputError if no store may be written there.
    """
    out = config.out
    sources = () if config.sources == ("stories",) else config.sources
    for source in (*sources, *config.val):  # the next run would read the store as text
        folder = Path(source).resolve()
        if folder.is_dir() and folder in (out.resolve(), *out.resolve().parents):
            raise ConfigError(f"--out {out} is inside the source folder {source}; choose a folder outside it")
    check_no_writer(out)
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return False
    try:
        info = read_store_info(out)
    except StoreError as error:
        if out.is_dir() and _looks_like_store(out / "store.json") and config.overwrite:
            return False
        raise OutputError(f"cannot write {out}: it exists and is not a token store ({error})") from None
    if config.overwrite:
        return False
    if info.get("recipe") != recipe:
        raise OutputError(
            f"cannot write {out}: it holds a token store made from other text or with other flags; "
            "choose another --out, or replace it with --overwrite"
        )
    try:
        TokenStore(out).verify()
    except StoreError as error:
        raise OutputError(
            f"cannot write {out}: it holds the token store of this text, but damaged ({error}); replace it with "
            "--overwrite"
        ) from None
    return True


def _looks_like_store(path: Path) -> bool:
    """True for the store.json of a token store, even a damaged one."""
    return path.is_file() and FORMAT.encode() in path.read_bytes()[:200]


@contextlib.contextmanager
def _new_store(config: PrepareConfig, tokenizer: Tokenizer) -> Iterator[StoreWriter]:
    """A writer for `out`, which appears, or is replaced, when the block ends without an error."""
    eos_id = _check_has_eos(config, tokenizer)
    with atomic_directory(config.out, replace=config.out.exists()) as folder:
        tokenizer.beginning_with_bos().save(folder)  # as the documents of a store do
        writer = StoreWriter(folder, vocab_size=tokenizer.vocab_size, eos_id=eos_id)
        try:
            yield writer
        finally:
            writer.close()


def _finish(
    writer: StoreWriter, tokenizer: Tokenizer, recipe: str, sources: list[dict[str, Any]], report: dict[str, Any]
) -> None:
    """Write store.json. If a tokenizer has no BOS, documents start with EOS."""
    described = {
        "kind": tokenizer.kind,
        "split": tokenizer.split,
        "fingerprint": tokenizer.fingerprint,
        "bos_id": tokenizer.bos_id if tokenizer.bos_id is not None else tokenizer.eos_id,
        "eos_id": tokenizer.eos_id,
    }
    writer.finish(described, {"recipe": recipe, "sources": sources, "report": report})


def _check_has_eos(config: PrepareConfig, tokenizer: Tokenizer) -> int:
    if tokenizer.eos_id is None:
        raise TokenizerError(f"cannot use tokenizer {config.tokenizer}: it has no end-of-text token (eos_token)")
    return tokenizer.eos_id

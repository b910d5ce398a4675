"""Scores a model file or a checkpoint on data: a token store, or text files."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from llamita.data.batches import ScoredDocuments
from llamita.data.documents import SplitOn, list_sources, read_documents
from llamita.data.file_formats import PLAIN_SUFFIXES, ROW_READERS, find_suffix
from llamita.data.token_store import TokenStore
from llamita.data.utf8_files import Conversions
from llamita.engine import Model
from llamita.errors import SourceError, TokenizerError
from llamita.eval.scoring import EncodedTexts, Score, score_documents
from llamita.progress import Progress, no_progress

ROUND_TRIPS = 32  # documents of a store on which a model file's tokenizer is checked

Split = Literal["val", "train"]


@dataclasses.dataclass(frozen=True)
class Data:
    """A token store and its split, or text files and how to read them (see data.documents)."""

    paths: tuple[str, ...]
    split: Split = "val"
    separator: str = "<|endoftext|>"
    split_on: SplitOn = "separator"
    text_key: str = "text"
    keep_line_ends: bool = False
    skip_unknown: bool = False
    conversions: Conversions = dataclasses.field(default_factory=Conversions, compare=False)

    def __str__(self) -> str:
        return " ".join(self.paths)

    def open_store(self) -> TokenStore | None:
        """The token store; None if the paths are text. Raises SourceError for an empty split."""
        if len(self.paths) != 1 or not (Path(self.paths[0]) / "store.json").is_file():
            return None
        store = TokenStore(Path(self.paths[0]))
        if store.split(self.split).num_documents == 0:
            raise SourceError(f"cannot score on {self}: its {self.split} split is empty")
        return store

    def describe_documents(self) -> str:
        """How the documents of text files were found; "" for a token store."""
        if self.open_store() is not None:
            return ""
        sources = list_sources(self.paths, skip_unknown=self.skip_unknown)
        has_text = any(find_suffix(file.path) in PLAIN_SUFFIXES for file in sources.files)
        has_rows = any(find_suffix(file.path) in ROW_READERS for file in sources.files)
        rules = {
            "separator": f"a text file's documents end at {self.separator!r} and at its end (--separator, --split-on)",
            "lines": "each line of a text file is a document",
            "blank-lines": "a text file's documents end at blank lines",
            "file": "each text file is a document",
        }
        parts = [rules[self.split_on]] if has_text else []
        parts += ["each row is a document"] if has_rows else []
        names = ", ".join(sources.skipped[:8]) + (", …" if len(sources.skipped) > 8 else "")
        return "; ".join([*parts, *([f"skipped, of unknown types: {names}"] if names else [])])

    def encode_texts(self, encode_batch: Callable[[list[str]], Any], eos_id: int) -> EncodedTexts:
        """The text files as ids. Raises SourceError."""
        found = read_documents(
            list_sources(self.paths, skip_unknown=self.skip_unknown),
            separator=self.separator,
            split_on=self.split_on,
            text_key=self.text_key,
            keep_line_ends=self.keep_line_ends,
            conversions=self.conversions,
        )
        documents = EncodedTexts([document.text for document in found], encode_batch, eos_id)
        if documents.num_documents == 0:
            unread = self.conversions.document_files.describe_unread()
            raise SourceError(f"cannot score on {self}: {unread[0] if unread else 'no text in it'}")
        return documents


@dataclasses.dataclass(frozen=True)
class ScoredModel:
    """A score, and the documents as the model's ids."""

    score: Score
    documents: ScoredDocuments


def score_model_file(
    path: Path, model: Model, data: Data, *, num_threads: int = 0, progress: Progress = no_progress
) -> ScoredModel:
    """Score a model file in the engine. Raises SourceError, TokenizerError, EngineError."""
    documents = encode_for_model_file(path, model, data)
    bos_id = first_id(path, *_special_ids(model))
    with model.session(num_threads=num_threads) as session:

        def score_row(ids: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
            session.rewind(0)
            return session.score(ids)

        score = score_documents(documents, model.info.context_tokens, bos_id, score_row, progress)
    return ScoredModel(score, documents)


def encode_for_model_file(path: Path, model: Model, data: Data) -> ScoredDocuments:
    """The data as the ids of a model file. Raises SourceError, TokenizerError."""
    store = data.open_store()
    if store is None:
        eos_id = first_id(path, _special_ids(model)[1])
        return data.encode_texts(lambda texts: [model.encode(text) for text in texts], eos_id)
    documents = store.split(data.split)
    for number in np.unique(np.linspace(0, documents.num_documents - 1, ROUND_TRIPS).astype(int)):
        ids = documents.document(int(number))[:-1]
        if ids.size and (int(ids.max()) >= model.info.vocab_size or model.encode(model.decode(ids)) != ids.tolist()):
            raise other_tokenizer(path, data)
    return documents


def first_id(path: Path, *ids: int | None) -> int:
    """The first id that is not None. Raises TokenizerError."""
    for found in ids:
        if found is not None:
            return found
    raise TokenizerError(
        f"cannot score {path}: its tokenizer has no BOS or EOS token; a llama2.c model needs --tokenizer"
    )


def other_tokenizer(path: Path, data: Data) -> TokenizerError:
    """The error for a token store of another tokenizer than the model's."""
    return TokenizerError(
        f"cannot score {path} on {data}: the store was made with another tokenizer; give the text itself instead"
    )


def _special_ids(model: Model) -> tuple[int | None, int | None]:
    """BOS and EOS, if there are any."""
    bos_id, eos_id = (found if found >= 0 else None for found in (model.info.bos_id, model.info.eos_id))
    return bos_id, eos_id

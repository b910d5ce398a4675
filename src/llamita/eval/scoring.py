"""Splits documents into the rows that bits per byte is computed on: from BOS, non-overlapping,
every token once."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from llamita.data.batches import IGNORED, Documents, Piece, ScoredDocuments, fill_row
from llamita.progress import Progress, no_progress


@dataclasses.dataclass(frozen=True)
class Score:
    """How well a model predicts documents."""

    nats: float
    num_tokens: int
    num_documents: int
    text_bytes: int

    @property
    def bits_per_byte(self) -> float:
        """Σ nats / (ln 2 · UTF-8 bytes of the original text)."""
        return self.nats / (math.log(2) * self.text_bytes)

    @property
    def nats_per_token(self) -> float:
        return self.nats / self.num_tokens


class EncodedTexts:
    """Documents in memory: the ids of each stripped text and EOS. Empty texts are dropped."""

    def __init__(
        self, texts: Sequence[str], encode_batch: Callable[[list[str]], Sequence[Sequence[int]]], eos_id: int
    ) -> None:
        stripped = [text for text in (text.strip() for text in texts) if text]
        self._ids = [np.array([*ids, eos_id], dtype=np.int64) for ids in encode_batch(stripped)]
        self.text_bytes = sum(len(text.encode()) for text in stripped)
        self.lengths: npt.NDArray[Any] = np.array([ids.size for ids in self._ids], dtype=np.int64)
        self.num_documents = len(self._ids)
        self.num_tokens = int(self.lengths.sum())

    def document(self, index: int, /) -> npt.NDArray[Any]:
        return self._ids[index]


def scoring_rows(lengths: npt.NDArray[Any], context: int) -> list[Piece]:
    """All rows of at most `context` pairs, the longest first, so that neighbors are of nearly the
    same length.

    A document's row after the first starts with the input that was the last target before it.
    """
    rows = [
        Piece(document, start, min(context, length - start))
        for document, length in enumerate(np.asarray(lengths).tolist())
        for start in range(0, length, context)
    ]
    rows.sort(key=lambda row: -row.length)
    return rows


Item = TypeVar("Item")


def evenly_spaced(items: Sequence[Item], share: float) -> list[Item]:
    """This share of the items, at least one if there are any."""
    count = min(len(items), max(1, round(share * len(items))))
    return [items[index * len(items) // count] for index in range(count)]


def scoring_batches(
    documents: Documents, rows: Sequence[Piece], bos_id: int, tokens_per_batch: int
) -> Iterator[tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]]:
    """Rows as padded inputs and targets, int64 [B, T], B · T at most `tokens_per_batch` (or one
    row)."""
    at = 0
    while at < len(rows):
        width = rows[at].length
        chosen = rows[at : at + max(1, tokens_per_batch // width)]
        inputs = np.full((len(chosen), width), bos_id, dtype=np.int64)
        targets = np.full((len(chosen), width), IGNORED, dtype=np.int64)
        for row, piece in enumerate(chosen):
            fill_row(inputs[row], targets[row], [piece], documents, bos_id)
        yield inputs, targets
        at += len(chosen)


def score_documents(
    documents: ScoredDocuments,
    context: int,
    bos_id: int,
    score_row: Callable[[npt.NDArray[np.int64]], npt.NDArray[np.float64]],
    progress: Progress = no_progress,
) -> Score:
    """Score documents row by row: score_row(n + 1 ids) → the nats of the last n, each given those
    before it. Progress counts rows."""
    rows = scoring_rows(documents.lengths, context)
    nats = 0.0
    for index, piece in enumerate(rows):
        ids = np.full(piece.length + 1, bos_id, dtype=np.int64)
        fill_row(ids[:-1], ids[1:], [piece], documents, bos_id)
        nats += float(score_row(ids).sum())
        progress("evaluating", index + 1, len(rows))
    return Score(nats, documents.num_tokens, documents.num_documents, documents.text_bytes)

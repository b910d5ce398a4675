"""Packs documents into batches of rows: every token once per epoch, in an order fixed by the seed.

A document of n stored tokens, the last one EOS, is n pairs (input, target): the inputs are BOS and
all tokens but the last, the targets are all tokens. A row is `context` pairs, filled with whole
documents by best fit. A wide enough gap is filled with the beginning of a document, whose rest
starts another row ("Fewer truncations improve language modeling", arXiv 2404.10830, without losing
a token). So a row starts at a document or at the rest of one.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any, NamedTuple, Protocol, cast

import numpy as np
import numpy.typing as npt

IGNORED = -100  # a target without a loss: the default ignore_index of torch's cross-entropy
WINDOW_DOCUMENTS = 8192  # packed together; bounds the time and memory of packing


class Documents(Protocol):
    """Encoded documents, in a token store or in memory."""

    @property
    def num_documents(self) -> int: ...

    @property
    def num_tokens(self) -> int: ...

    @property
    def lengths(self) -> npt.NDArray[Any]:
        """Tokens of each document, EOS included."""
        ...

    def document(self, index: int, /) -> npt.NDArray[Any]:
        """The ids of one document, EOS included, without BOS."""
        ...


class ScoredDocuments(Documents, Protocol):
    """Documents that know the size of their text, for bits per byte."""

    @property
    def text_bytes(self) -> int:
        """UTF-8 bytes of all documents' text."""
        ...


class WeightedDocuments(Documents, Protocol):
    """Documents that an epoch may see several times, or not at all."""

    @property
    def epoch_size(self) -> int:
        """How many documents an epoch sees, repetitions included."""
        ...

    def epoch_documents(self, epoch: int, /) -> npt.NDArray[np.int64]:
        """The numbers of the documents that an epoch sees, in any order. [epoch_size]"""
        ...


class Piece(NamedTuple):
    """`length` pairs of a document, starting at pair `start`."""

    document: int
    start: int
    length: int


class Batch(NamedTuple):
    """inputs, targets: this process's int64 [B, T]. num_targets: targets with a loss, in all
    processes."""

    inputs: npt.NDArray[np.int64]
    targets: npt.NDArray[np.int64]
    num_targets: int


class _Shelf:
    """Whole documents by length. `present` has a bit for each length that is in stock."""

    def __init__(self, capacity: int) -> None:
        self.by_length: list[list[int]] = [[] for _ in range(capacity + 1)]
        self.present = 0

    def put(self, document: int, length: int) -> None:
        self.by_length[length].append(document)
        self.present |= 1 << length

    def take(self, room: int) -> Piece | None:
        """Remove and return the longest document that fits into `room`."""
        length = (self.present & ((1 << (room + 1)) - 1)).bit_length() - 1
        if length < 1:
            return None
        document = self.by_length[length].pop()
        if not self.by_length[length]:
            self.present &= ~(1 << length)
        return Piece(document, 0, length)


def pack_rows(
    documents: npt.NDArray[np.int64], lengths: npt.NDArray[np.int64], context: int, *, split: bool = True
) -> list[list[Piece]]:
    """Pack documents (lengths [n], in pairs) into rows of at most `context` pairs. Every pair is in
    exactly one row.

    A gap that no whole document fits into stays empty if it is narrower than context/16. A wider
    one is filled with the beginning of a document, preferably of one that is longer than a row and
    must be split anyway. Without `split`, all gaps stay empty and no document may be longer than a
    row.
    """
    assert split or lengths.size == 0 or int(lengths.max()) <= context, (int(lengths.max()), context)
    shelf = _Shelf(context)
    long: list[Piece] = []
    rests: list[Piece] = []
    for document, length in zip(documents.tolist(), lengths.tolist(), strict=True):
        if length <= context:
            shelf.put(document, length)
        else:
            long.append(Piece(document, 0, length))
    worth_splitting = max(1, context // 16) if split else context + 1
    rows: list[list[Piece]] = []
    while shelf.present or long or rests:
        row: list[Piece] = []
        room = context
        opening = rests.pop() if rests else (long.pop() if not shelf.present else None)
        while room > 0:
            piece = opening or shelf.take(room)
            opening = None
            if piece is None and room >= worth_splitting:
                piece = long.pop() if long else shelf.take(context)
            if piece is None:
                break
            if piece.length > room:
                rests.append(Piece(piece.document, piece.start + room, piece.length - room))
                piece = piece._replace(length=room)
            row.append(piece)
            room -= piece.length
        rows.append(row)
    return rows


def fill_row(
    inputs: npt.NDArray[np.int64],
    targets: npt.NDArray[np.int64],
    pieces: list[Piece],
    documents: Documents,
    bos_id: int,
) -> None:
    """Write pieces into the inputs and targets [T] of one row; the rest keeps its padding."""
    at = 0
    for document, start, length in pieces:
        ids = documents.document(document)
        end = at + length
        targets[at:end] = ids[start : start + length]
        inputs[at] = ids[start - 1] if start else bos_id
        inputs[at + 1 : end] = ids[start : start + length - 1]
        at = end


def add_noise(inputs: npt.NDArray[np.int64], share: float, bos_id: int, rng: np.random.Generator) -> None:
    """Replace a share of the tokens [T] by others among them. BOS stays where it is."""
    places = np.flatnonzero(inputs != bos_id)
    noisy = places[rng.random(places.size) < share]
    inputs[noisy] = inputs[rng.choice(places, noisy.size)]


@dataclasses.dataclass
class _Position:
    """The next row of the stream, which all processes share."""

    epoch: int = 0
    window: int = 0
    row: int = 0


class RowStream:
    """An endless stream of packed rows of `documents`; each epoch has its own order.

    The stream depends only on (seed, epoch). A step takes its next world_size * batch_size rows,
    and a process gets batch_size of them, by its rank. So a step has the same rows for any
    number of processes with the same product, and `state_dict` (three numbers) restores the exact
    position.
    """

    splits_documents = True  # to fill gaps

    def __init__(
        self, documents: Documents, context: int, batch_size: int, seed: int, rank: int = 0, world_size: int = 1
    ) -> None:
        assert documents.num_documents > 0 and context > 0 and batch_size > 0 and 0 <= rank < world_size
        self.documents, self.context, self.batch_size = documents, context, batch_size
        self.seed, self.rank, self.world_size = seed, rank, world_size
        # Not isinstance: that would evaluate every property.
        is_weighted = hasattr(documents, "epoch_documents")
        self._weighted = cast(WeightedDocuments, documents) if is_weighted else None
        size = self._weighted.epoch_size if self._weighted is not None else documents.num_documents
        self.num_windows = max(1, round(size / WINDOW_DOCUMENTS))
        self._lengths = np.asarray(documents.lengths, dtype=np.int64)
        self._position = _Position()
        self._epoch_order: tuple[int, npt.NDArray[np.int64]] | None = None
        self._rows: list[list[Piece]] | None = None

    @property
    def epoch(self) -> int:
        """The epoch of the next row, from 0."""
        return self._position.epoch

    def state_dict(self) -> dict[str, int]:
        return dataclasses.asdict(self._position)

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Continue where state_dict was called. Raises ValueError if there is no such row."""
        position = _Position(state["epoch"], state["window"], state["row"])
        if position.window >= self.num_windows:
            raise ValueError(f"window: expected less than {self.num_windows}, found {position.window}")
        rows = self._window_rows(position.epoch, position.window)
        if position.row >= len(rows):
            raise ValueError(f"row: expected less than {len(rows)}, found {position.row}")
        self._position, self._rows = position, rows

    def _step_rows(self) -> tuple[list[list[Piece]], list[list[Piece]]]:
        """The next rows of this process, and those of all processes."""
        rows = [self._next_row() for _ in range(self.world_size * self.batch_size)]
        return rows[self.rank * self.batch_size : (self.rank + 1) * self.batch_size], rows

    def _next_row(self) -> list[Piece]:
        at = self._position
        if self._rows is None:
            self._rows = self._window_rows(at.epoch, at.window)
        pieces = self._rows[at.row]
        at.row += 1
        if at.row == len(self._rows):
            at.row, at.window, self._rows = 0, at.window + 1, None
            if at.window == self.num_windows:
                at.window, at.epoch = 0, at.epoch + 1
        return pieces

    def _window_rows(self, epoch: int, window: int) -> list[list[Piece]]:
        """The shuffled rows of one window of an epoch, whose documents are shuffled first."""
        if self._epoch_order is None or self._epoch_order[0] != epoch:
            rng = np.random.default_rng((self.seed, epoch))
            if self._weighted is None:
                order = rng.permutation(self._lengths.size).astype(np.int64)
            else:
                order = self._weighted.epoch_documents(epoch)
                rng.shuffle(order)
            self._epoch_order = (epoch, order)
        order = self._epoch_order[1]
        bounds = [order.size * i // self.num_windows for i in (window, window + 1)]
        documents = order[bounds[0] : bounds[1]]
        rows = pack_rows(documents, self._lengths[documents], self.context, split=self.splits_documents)
        return [rows[i] for i in np.random.default_rng((self.seed, epoch, window)).permutation(len(rows))]


class Batches(RowStream):
    """An endless iterator over batches; it splits documents to fill gaps.

    token_noise: the share of a row's inputs that become other tokens of the row, at random: "word
    dropout", for text that is read many times (docs/experiments.md). The targets stay.
    """

    def __init__(
        self,
        documents: Documents,
        bos_id: int,
        context: int,
        batch_size: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        *,
        token_noise: float = 0.0,
    ) -> None:
        super().__init__(documents, context, batch_size, seed, rank, world_size)
        self.bos_id, self.token_noise = bos_id, token_noise

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        place = dataclasses.astuple(self._position)
        own, rows = self._step_rows()
        inputs = np.full((self.batch_size, self.context), self.bos_id, dtype=np.int64)
        targets = np.full((self.batch_size, self.context), IGNORED, dtype=np.int64)
        for row, pieces in enumerate(own):
            fill_row(inputs[row], targets[row], pieces, self.documents, self.bos_id)
            if self.token_noise > 0:  # by the row's number in the step, whichever process has it
                rng = np.random.default_rng((self.seed, *place, self.rank * self.batch_size + row))
                add_noise(inputs[row], self.token_noise, self.bos_id, rng)
        return Batch(inputs, targets, sum(piece.length for row in rows for piece in row))

"""Batches of conversations in packed rows: no conversation is split, the seed gives the order."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from llamita.data.batches import IGNORED, Documents, RowStream, pack_rows
from llamita.finetune.rendering import Example


def count_rows(documents: Documents, context: int) -> int:
    """How many rows an epoch takes if no document is split."""
    numbers = np.arange(documents.num_documents)
    return len(pack_rows(numbers, np.asarray(documents.lengths), context, split=False))


class PackedBatch(NamedTuple):
    """A data.batches.Batch with segments: int64 [B, T], the number of the conversation in its row
    that a position belongs to. Attention must stay within each. positions: of the targets that
    count, in the flattened batch. cu_seqlens: int32, see document_starts."""

    inputs: npt.NDArray[np.int64]
    targets: npt.NDArray[np.int64]
    num_targets: int
    segments: npt.NDArray[np.int64]
    positions: npt.NDArray[np.int64]
    cu_seqlens: npt.NDArray[np.int32]


def document_starts(segments: npt.NDArray[np.int64]) -> npt.NDArray[np.int32]:
    """Where the documents of segments [B, T] begin in the flattened rows, then B T: what flash
    attention calls cu_seqlens. Padding counts as a document."""
    begins = np.ones(segments.shape, dtype=bool)
    np.not_equal(segments[:, 1:], segments[:, :-1], out=begins[:, 1:])
    return np.append(np.flatnonzero(begins), segments.size).astype(np.int32)


class Examples:
    """Rendered conversations as data.batches.Documents."""

    def __init__(self, examples: Sequence[Example]) -> None:
        assert len(examples) > 0 and all(example.num_targets for example in examples)
        self.examples = list(examples)
        self.lengths = np.array([example.length for example in examples], dtype=np.int64)
        self.num_targets = np.array([example.num_targets for example in examples], dtype=np.int64)

    @property
    def num_documents(self) -> int:
        return len(self.examples)

    @property
    def num_tokens(self) -> int:
        return int(self.lengths.sum())

    def document(self, index: int, /) -> npt.NDArray[np.int64]:
        """The targets of one conversation, masked ones included."""
        return self.examples[index].ids[1:]


class ConversationBatches(RowStream):
    """An endless iterator of batches, packed by best fit without splitting a conversation.

    num_targets counts the targets in the rows of all processes, so that a loss divided by it is the
    mean over the whole step, however unevenly the answers are spread.
    """

    splits_documents = False

    def __init__(
        self, examples: Examples, context: int, batch_size: int, seed: int, rank: int = 0, world_size: int = 1
    ) -> None:
        super().__init__(examples, context, batch_size, seed, rank, world_size)
        self.examples = examples

    def __iter__(self) -> Iterator[PackedBatch]:
        return self

    def __next__(self) -> PackedBatch:
        own, rows = self._step_rows()
        num_targets = sum(int(self.examples.num_targets[piece.document]) for row in rows for piece in row)
        assert num_targets > 0, "every example has targets"
        shape = (self.batch_size, self.context)
        inputs, targets = np.zeros(shape, dtype=np.int64), np.full(shape, IGNORED, dtype=np.int64)
        segments = np.zeros(shape, dtype=np.int64)
        for b, row in enumerate(own):
            start = 0
            for number, piece in enumerate(row):
                example, end = self.examples.examples[piece.document], start + piece.length
                inputs[b, start:end], targets[b, start:end] = example.inputs, example.targets
                segments[b, start:end] = number
                segments[b, end:] = number + 1  # padding, unless another conversation follows
                start = end
        positions = np.flatnonzero(targets != IGNORED)
        return PackedBatch(inputs, targets, num_targets, segments, positions, document_starts(segments))

"""Rendered conversations to batches of packed rows, each conversation whole and for itself, in the order of a seed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from llamita.data.batches import IGNORED, Batches
from llamita.finetune.rendering import Example


class PackedBatch(NamedTuple):
    """A data.batches.Batch and, beside it, segments: int64 [B, T], the number of the conversation in its row that a
    position belongs to; attention must stay within each."""

    inputs: npt.NDArray[np.int64]
    targets: npt.NDArray[np.int64]
    num_targets: int
    segments: npt.NDArray[np.int64]


class Examples:
    """Rendered conversations as data.batches.Documents: a document's length is its pairs of input and target."""

    def __init__(self, examples: Sequence[Example]) -> None:
        assert len(examples) > 0 and all(example.learned[1:].any() for example in examples)
        self.examples = list(examples)
        self.lengths: npt.NDArray[np.int64] = np.array([example.num_pairs for example in examples], dtype=np.int64)
        self.num_learned = np.array([int(example.learned[1:].sum()) for example in examples], dtype=np.int64)

    @property
    def num_documents(self) -> int:
        return len(self.examples)

    @property
    def num_tokens(self) -> int:
        return int(self.lengths.sum())

    @property
    def text_bytes(self) -> int:
        raise AssertionError("a loss on answers is told in nats a token, not in bits per byte")

    def document(self, index: int, /) -> npt.NDArray[np.int64]:
        """The targets of one conversation."""
        return self.examples[index].ids[1:]


class ConversationBatches(Batches):
    """An endless iterator of batches: best fit, no conversation split; positions that nothing fills are no targets.

    Like Batches, the stream of rows depends on (seed, epoch) alone, and `state_dict` restores the exact position.
    num_targets counts what is learned in the rows of all processes, so that a loss divided by it is the mean over the
    whole step, however unevenly the answers fall.
    """

    splits_documents = False

    def __init__(
        self, examples: Examples, context: int, batch_size: int, seed: int, rank: int = 0, world_size: int = 1
    ) -> None:
        super().__init__(examples, 0, context, batch_size, seed, rank, world_size)
        self.examples = examples

    def __next__(self) -> PackedBatch:  # type: ignore[override]  # a Batch's fields, and one more
        shape = (self.batch_size, self.context)
        inputs, targets = np.zeros(shape, dtype=np.int64), np.full(shape, IGNORED, dtype=np.int64)
        segments = np.zeros(shape, dtype=np.int64)
        first, num_targets = self.rank * self.batch_size, 0
        for index in range(self.world_size * self.batch_size):
            at, own = 0, index - first
            for number, piece in enumerate(self._next_row()):
                num_targets += int(self.examples.num_learned[piece.document])
                if 0 <= own < self.batch_size:
                    example, end = self.examples.examples[piece.document], at + piece.length
                    inputs[own, at:end] = example.ids[:-1]
                    targets[own, at:end] = np.where(example.learned[1:], example.ids[1:], IGNORED)
                    segments[own, at:end] = number
                    segments[own, end:] = number + 1  # the rest of the row, so far
                    at = end
        assert num_targets > 0, "every example has something to learn"
        return PackedBatch(inputs, targets, num_targets, segments)

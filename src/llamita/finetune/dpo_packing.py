"""Preferences to batches of packed rows: better answers in the first half of the rows, the worse ones in the second.

A pair takes the same stretch of a row in both halves, as long as its longer conversation, so both conversations are
always in the same batch of the same process, and best fit packs pairs as it packs conversations.

Shape letters: B rows (an even number), T time, P pairs of a batch.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from llamita.data.batches import IGNORED, Batches, Piece
from llamita.errors import TrainingError
from llamita.finetune.preferences import Preference
from llamita.finetune.rendering import Example, Renderer


class Pair(NamedTuple):
    """A preference, rendered: ids that begin alike; what is learned is the last answer with its end token."""

    chosen: Example
    rejected: Example

    @property
    def length(self) -> int:
        """What it takes of a row in each half."""
        return max(self.chosen.num_pairs, self.rejected.num_pairs)


@dataclasses.dataclass
class PairCounts:
    """What became of the preferences. tokens: inputs of those kept; answer_tokens: those that are compared."""

    pairs: int = 0
    kept: int = 0
    too_long: int = 0
    ties: int = 0
    tokens: int = 0
    answer_tokens: int = 0
    first_too_long: str | None = None


class DpoBatch(NamedTuple):
    """inputs, targets, segments: int64 [B, T] of this process; of row b and row b + B/2 the same pairs are the better
    and the worse. targets: the answers' tokens, the rest IGNORED. segments: which of the batch's pairs a position
    belongs to, P where nothing is; attention must stay within each. reference: float64 [2, P], the log-probability of
    each better and worse answer before training. num_targets: pairs, over all processes."""

    inputs: npt.NDArray[np.int64]
    targets: npt.NDArray[np.int64]
    num_targets: int
    segments: npt.NDArray[np.int64]
    reference: npt.NDArray[np.float64]


def render_pair(preference: Preference, renderer: Renderer) -> Pair | None:
    """None if one of the two conversations does not fit. Raises ChatError or SourceError naming the example."""
    chosen, rejected = renderer.render(preference.chosen), renderer.render(preference.rejected)
    return None if chosen is None or rejected is None else Pair(chosen, rejected)


def render_pairs(
    preferences: Sequence[Preference], renderer: Renderer, aim: str = "prefer"
) -> tuple[list[Pair], PairCounts]:
    """Every pair whose two conversations fit, and what became of all.

    An answer is compared whole or not at all: a pair of which one conversation does not fit is left out and counted,
    and so is a tie. Raises TrainingError if there are some and none is left (aim: what for), ChatError or SourceError
    naming the example.
    """
    counts, pairs = PairCounts(), []
    for preference in preferences:
        counts.pairs += 1
        if preference.is_tie:
            counts.ties += 1
            continue
        pair = render_pair(preference, renderer)
        if pair is None:
            counts.too_long += 1
            counts.first_too_long = counts.first_too_long or preference.where
            continue
        counts.kept += 1
        counts.tokens += sum(example.num_pairs for example in pair)
        counts.answer_tokens += sum(int(example.learned[1:].sum()) for example in pair)
        pairs.append(pair)
    if preferences and not pairs:
        too_long = (
            f" and {counts.too_long:,} do not fit into {renderer.context_tokens:,} tokens (the first: "
            f"{counts.first_too_long}); raise --context or shorten them"
        )
        raise TrainingError(
            f"nothing to {aim}: of {counts.pairs:,} pairs {counts.ties:,} have two answers that are the same"
            + (too_long if counts.too_long else "; expected chosen and rejected to differ")
        )
    return pairs, counts


class Pairs:
    """Rendered pairs as data.batches.Documents: a document's length is what it takes of a row."""

    def __init__(self, pairs: Sequence[Pair], reference: npt.NDArray[np.float64] | None = None) -> None:
        """reference: float64 [2, number of pairs], see DpoBatch; may be set later, before batches are made."""
        assert all(example.learned[1:].any() for pair in pairs for example in pair)
        self.pairs, self.reference = list(pairs), reference
        self.lengths: npt.NDArray[np.int64] = np.array([pair.length for pair in pairs], dtype=np.int64)
        learned = [[int(example.learned[1:].sum()) for example in pair] for pair in pairs]
        self.answer_tokens = np.array(learned, dtype=np.int64).reshape(-1, 2).T  # [2, number of pairs]

    @property
    def num_documents(self) -> int:
        return len(self.pairs)

    @property
    def num_tokens(self) -> int:
        return int(sum(example.num_pairs for pair in self.pairs for example in pair))

    @property
    def text_bytes(self) -> int:
        raise AssertionError("a loss on preferences is told in nats a pair, not in bits per byte")

    def document(self, index: int, /) -> npt.NDArray[np.int64]:
        """The targets of the better conversation."""
        return self.pairs[index].chosen.ids[1:]

    @property
    def fingerprint(self) -> str:
        """sha256 (hex) of what the log-probabilities of the answers depend on, beside the network."""
        content = hashlib.sha256()
        for pair in self.pairs:
            for example in pair:
                content.update(np.int64(len(example.ids)).tobytes() + example.ids.tobytes() + example.learned.tobytes())
        return content.hexdigest()

    def batch(self, rows: Sequence[Sequence[Piece]], context: int, num_targets: int) -> DpoBatch:
        """The batch of these rows of packed pairs; without a reference its reference is zeros."""
        shape = (2 * len(rows), context)
        documents = [piece.document for row in rows for piece in row]
        inputs, targets = np.zeros(shape, dtype=np.int64), np.full(shape, IGNORED, dtype=np.int64)
        segments = np.full(shape, len(documents), dtype=np.int64)
        number = 0
        for index, row in enumerate(rows):
            at = 0
            for piece in row:
                for half, example in enumerate(self.pairs[piece.document]):
                    b, end = index + half * len(rows), at + example.num_pairs
                    inputs[b, at:end] = example.ids[:-1]
                    targets[b, at:end] = np.where(example.learned[1:], example.ids[1:], IGNORED)
                    segments[b, at:end] = number
                at += piece.length
                number += 1
        reference = np.zeros((2, number)) if self.reference is None else self.reference[:, documents]
        return DpoBatch(inputs, targets, num_targets, segments, np.ascontiguousarray(reference))


class DpoBatches(Batches):
    """An endless iterator of batches: best fit, no pair split; positions that nothing fills are no targets.

    Like Batches, the stream of rows depends on (seed, epoch) alone, and `state_dict` restores the exact position.
    num_targets counts the pairs in the rows of all processes, so that a loss divided by it is the mean over the step.
    batch_size: rows of each half, so a batch has twice as many.
    """

    splits_documents = False

    def __init__(
        self, pairs: Pairs, context: int, batch_size: int, seed: int, rank: int = 0, world_size: int = 1
    ) -> None:
        super().__init__(pairs, 0, context, batch_size, seed, rank, world_size)
        self.pairs = pairs

    def __next__(self) -> DpoBatch:  # type: ignore[override]  # a Batch's fields, and two more
        assert self.pairs.reference is not None, "the reference comes first"
        rows = [self._next_row() for _ in range(self.world_size * self.batch_size)]
        own = rows[self.rank * self.batch_size : (self.rank + 1) * self.batch_size]
        return self.pairs.batch(own, self.context, sum(map(len, rows)))


def pair_count_lines(counts: PairCounts) -> list[tuple[str, str]]:
    """What became of the preferences, as rows of a table."""
    return [
        ("pairs", f"{counts.pairs:,}, {counts.kept:,} kept"),
        ("tokens", f"{counts.tokens:,}, {counts.answer_tokens:,} of them in answers that are compared"),
        *pair_loss_lines(counts),
    ]


def pair_loss_lines(counts: PairCounts) -> list[tuple[str, str]]:
    """What of the preferences is not used, and why."""
    rows = []
    if counts.too_long:
        rows.append(("too long", f"{counts.too_long:,} left out, the first: {counts.first_too_long}"))
    if counts.ties:
        rows.append(("ties", f"{counts.ties:,} pairs of two answers that are the same left out"))
    return rows

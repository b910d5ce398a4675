"""Embeddings of texts: the mean of the hidden states of their tokens, with length 1."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import numpy.typing as npt

from llamita.engine.library import Ids, id_array
from llamita.engine.session import Session
from llamita.errors import EngineError

EMBEDDING_SEQUENCES = 8  # texts side by side: short ones fill a pass together
PIECE_TOKENS = 64  # of a text in a call; sums begin anew at each piece, so that they do not depend on other texts


def embed_ids(
    session: Session, num_sequences: int, texts: Sequence[Ids], is_cancelled: Callable[[], bool] = lambda: False
) -> npt.NDArray[np.float32]:
    """float32 [n, D] for texts of at least one token, computed in sequences 0 to num_sequences - 1,
    which forget what they hold.

    The bits do not depend on the other texts. is_cancelled: asked between pieces; once it is true,
    the rest is not computed. Raises EngineError.
    """
    means = []
    for start in range(0, len(texts), num_sequences):
        batch = [id_array(ids) for ids in texts[start : start + num_sequences]]
        means += list(_batch(session, batch, is_cancelled))
    return np.array(means, dtype=np.float32) if means else np.empty((0, session.hidden_size), dtype=np.float32)


def _batch(
    session: Session, texts: Sequence[npt.NDArray[np.int32]], is_cancelled: Callable[[], bool]
) -> Iterator[npt.NDArray[np.float64]]:
    """The vectors of at most as many texts as there are sequences."""
    sums = np.zeros((len(texts), session.hidden_size))
    for sequence in range(len(texts)):
        session.sequence_rewind(sequence, 0)
    for begin in range(0, max(map(len, texts)), PIECE_TOKENS):
        if is_cancelled():
            raise EngineError("the embedding was cancelled")
        pieces = [(i, ids[begin : begin + PIECE_TOKENS]) for i, ids in enumerate(texts) if len(ids) > begin]
        states = session.decode_hidden_states([(i, piece, len(piece)) for i, piece in pieces])
        for i, piece in pieces:
            sums[i] += states[: len(piece)].sum(axis=0, dtype=np.float64)
            states = states[len(piece) :]
    for total in sums:
        length = math.sqrt(math.fsum(total * total))
        yield total / length if length > 0 else total

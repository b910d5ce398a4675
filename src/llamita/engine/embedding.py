"""Embeddings of texts: the mean of the hidden states of their tokens, with length 1."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import numpy.typing as npt

from llamita.engine.library import Ids, id_array
from llamita.engine.session import Session
from llamita.errors import EngineError

EMBEDDING_SEQUENCES = 8  # texts side by side: short ones fill a pass together
PASS_TOKENS = 64  # more are hardly faster, and a pass cannot be interrupted


def embed_ids(
    session: Session,
    num_sequences: int,
    texts: Sequence[Ids],
    is_cancelled: Callable[[], bool] = lambda: False,
    turn: Callable[[], contextlib.AbstractContextManager[int]] = lambda: contextlib.nullcontext(PASS_TOKENS),
) -> npt.NDArray[np.float32]:
    """float32 [n, D] for texts of at least one token, computed in sequences 0 to num_sequences - 1,
    which forget what they hold.

    The bits do not depend on the other texts, nor on turn: each pass is computed in this context,
    which gives the most tokens that it may have. is_cancelled: asked before each pass; once it is
    true, the rest is not computed. Raises EngineError.
    """
    means = []
    for start in range(0, len(texts), num_sequences):
        batch = [id_array(ids) for ids in texts[start : start + num_sequences]]
        means += list(_batch(session, batch, is_cancelled, turn))
    return np.array(means, dtype=np.float32) if means else np.empty((0, session.hidden_size), dtype=np.float32)


def _batch(
    session: Session,
    texts: Sequence[npt.NDArray[np.int32]],
    is_cancelled: Callable[[], bool],
    turn: Callable[[], contextlib.AbstractContextManager[int]],
) -> Iterator[npt.NDArray[np.float64]]:
    """The vectors of at most as many texts as there are sequences."""
    sums = np.zeros((len(texts), session.hidden_size))
    for sequence in range(len(texts)):
        session.sequence_rewind(sequence, 0)
    left = list(texts)
    while any(map(len, left)):
        if is_cancelled():
            raise EngineError("the embedding was cancelled")
        with turn() as room:
            chunks = []
            for i, ids in enumerate(left):
                piece, left[i], room = ids[:room], ids[room:], room - min(room, len(ids))
                if len(piece) > 0:
                    chunks.append((i, piece, len(piece)))
            states = session.decode_hidden_states(chunks)
        for i, piece, _ in chunks:
            for state in states[: len(piece)]:  # one after another, so that the passes do not matter
                sums[i] += state
            states = states[len(piece) :]
    for total in sums:
        length = math.sqrt(math.fsum(total * total))
        yield total / length if length > 0 else total

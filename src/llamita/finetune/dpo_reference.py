"""OWNER of RUN/reference.npz, what the network gave each answer before its first step: computed once, then read.

Arrays: learn [2, pairs], val [2, held-out pairs] (float64: log-probabilities of the better and the worse answers),
fingerprint (of the pairs and of the network that they were computed with).
"""

from __future__ import annotations

import io
import zipfile
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from llamita.atomic import atomic_write_bytes
from llamita.errors import CheckpointError

NAME: Final = "reference.npz"


class Reference(NamedTuple):
    learn: npt.NDArray[np.float64]
    val: npt.NDArray[np.float64]


def save_reference(run: Path, reference: Reference, fingerprint: str) -> None:
    """Write it into a run directory, whole or not at all. Raises OutputError."""
    content = io.BytesIO()
    np.savez(content, learn=reference.learn, val=reference.val, fingerprint=np.array(fingerprint))
    atomic_write_bytes(Path(run) / NAME, content.getvalue())


def load_reference(run: Path, fingerprint: str, num_pairs: tuple[int, int]) -> Reference | None:
    """A run's reference; None if it has none yet. num_pairs: to learn from, and held out.

    Raises CheckpointError if it is damaged, or was computed from other pairs or another checkpoint.
    """
    path = Path(run) / NAME
    if not path.is_file():
        return None
    try:
        with np.load(path, allow_pickle=False) as arrays:
            reference = Reference(arrays["learn"], arrays["val"])
            of = str(arrays["fingerprint"])
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise CheckpointError(f"cannot resume {run}: {NAME} is damaged: {str(error)[:200]}; start again") from error
    if of != fingerprint:
        raise CheckpointError(
            f"cannot resume {run}: {NAME} was computed from other pairs or another checkpoint; start again with "
            "another --out"
        )
    for array, size in zip(reference, num_pairs, strict=True):
        if array.shape != (2, size) or array.dtype != np.float64 or not np.isfinite(array).all():
            raise CheckpointError(f"cannot resume {run}: {NAME} is damaged: expected {size:,} pairs; start again")
    return reference

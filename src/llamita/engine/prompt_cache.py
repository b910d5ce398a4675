"""The file of --prompt-cache: a prompt that need not be computed again."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from llamita.atomic import check_parent
from llamita.engine.session import Session


def load_prompt_cache(session: Session, path: str | os.PathLike[str] | None) -> None:
    """Replace the session's tokens by those of the file, if there is one.

    Raises EngineError, and OutputError if there is no folder for it.
    """
    if path is None:
        return
    if os.path.lexists(path):
        session.load(path)
    else:
        check_parent(Path(path))


def keep_common_ids(session: Session, ids: Sequence[int]) -> int:
    """Rewind the session to the tokens that it has in common with a prompt, without the last one,
    whose logits are needed. Returns their number."""
    held = session.ids[: len(ids) - 1]
    same = held == np.asarray(ids[: len(held)], dtype=np.int64)
    num_common = len(held) if same.all() else int(same.argmin())
    session.rewind(num_common)
    return num_common


def save_prompt_cache(
    session: Session, path: str | os.PathLike[str] | None, num_cached: int, num_prompt_tokens: int
) -> None:
    """Write the file, now that the session holds a prompt, if fewer than three quarters of it came from
    there. Raises EngineError."""
    if path is not None and num_cached < num_prompt_tokens - num_prompt_tokens // 4:
        session.save(Path(path))

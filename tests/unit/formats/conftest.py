"""Shared by the tests of readers."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from llamita.errors import LlamitaError


@pytest.fixture
def refuses_every_prefix(tmp_path: Path) -> Callable[..., None]:
    """refuses_every_prefix(path, read, keep=0): the file is read whole; cut after any of its bytes,
    but for the last `keep`, `read` raises a one-line LlamitaError."""

    def check(path: Path, read: Callable[[Path], object], *, keep: int = 0) -> None:
        read(path)
        content = path.read_bytes()
        cut = tmp_path / f"cut{path.suffix}"
        cut.write_bytes(content)
        for length in range(len(content) - keep - 1, -1, -1):
            os.truncate(cut, length)
            with pytest.raises(LlamitaError) as caught:
                read(cut)
            assert "\n" not in str(caught.value)

    return check

"""A model file to a read-only mapping of its bytes: nothing is loaded until it is looked at."""

from __future__ import annotations

import mmap
from pathlib import Path

from llamita.errors import FormatError


def map_file(path: Path) -> mmap.mmap:
    """Map a whole file. Raises FormatError if it is missing, unreadable, empty, or no ordinary file."""
    path = Path(path)
    try:
        if path.exists() and not path.is_file():
            found = "a folder" if path.is_dir() else "a device"
            raise FormatError(f"cannot read {path}: expected a file, found {found}")
        with path.open("rb") as file:
            if path.stat().st_size == 0:
                raise FormatError(f"cannot read {path}: the file is empty")
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except OSError as error:
        raise FormatError(f"cannot read {path}: {error.strerror or error}") from error

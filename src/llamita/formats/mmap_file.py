"""Reads model files: a read-only mapping of a whole file, or the bytes of one tensor."""

from __future__ import annotations

import mmap
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from llamita.errors import FormatError

_LFS_POINTER = b"version https://git-lfs"


def map_file(path: Path) -> mmap.mmap:
    """Map a whole file. Raises FormatError if it is missing, unreadable, empty or not a file, or a
    Git LFS pointer in its place."""
    path = Path(path)
    try:
        if path.exists() and not path.is_file():
            found = "a folder" if path.is_dir() else "a device"
            raise FormatError(f"cannot read {path}: expected a file, found {found}")
        with path.open("rb") as file:
            if path.stat().st_size == 0:
                raise FormatError(f"cannot read {path}: the file is empty")
            if file.read(len(_LFS_POINTER)) == _LFS_POINTER:
                raise FormatError(f"cannot read {path}: found a Git LFS pointer; fetch the file with: git lfs pull")
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except OSError as error:
        raise FormatError(f"cannot read {path}: {error.strerror or error}") from error


def read_bytes(path: Path, offset: int, num_bytes: int, name: str) -> NDArray[np.uint8]:
    """Read the bytes of the tensor `name` into new memory. (Mapped pages would count as used.)

    Raises FormatError if the file cannot be read or is too short.
    """
    raw = np.empty(num_bytes, np.uint8)
    try:
        with path.open("rb") as file:
            file.seek(offset)
            found = file.readinto(raw.data) if num_bytes else 0
    except OSError as error:
        raise FormatError(f"cannot read {path}: {error.strerror or error}") from error
    if found != num_bytes:
        raise FormatError(
            f"cannot read {path}: tensor {name}: expected {num_bytes} bytes, found {found}; the file changed"
        )
    return raw

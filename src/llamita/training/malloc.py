"""Keeps the memory that passes on a CPU free, so that the next pass gets it again.

By default glibc returns large blocks to the kernel, which clears each page when it is used again.
Sources: mallopt(3), malloc_trim(3); docs/experiments.md has what it costs.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
from collections.abc import Iterator

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # malloc.h
KEEP = {M_TRIM_THRESHOLD: -1, M_MMAP_MAX: 0}  # never return the heap's end; no block outside the heap
DEFAULT = {M_TRIM_THRESHOLD: 128 * 1024, M_MMAP_MAX: 65536}


@contextlib.contextmanager
def keeping_freed_memory() -> Iterator[None]:
    """Keep freed memory in this process, and return it at the end. Does nothing without glibc, or
    where the user has set malloc up in the environment."""
    has_settings = any(name.startswith("MALLOC_") for name in os.environ) or "GLIBC_TUNABLES" in os.environ
    if platform.libc_ver()[0] != "glibc" or has_settings:
        yield
        return
    libc = ctypes.CDLL(None)
    _set(libc, KEEP)
    try:
        yield
    finally:
        _set(libc, DEFAULT)
        libc.malloc_trim(0)


def _set(libc: ctypes.CDLL, options: dict[int, int]) -> None:
    for option, value in options.items():
        libc.mallopt(option, value)

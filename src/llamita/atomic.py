"""Writes files and folders atomically: a temporary sibling is synced, then renamed into place."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from llamita.errors import OutputError

_SYNCS_AT_ONCE = 8


def _output_error(path: Path, error: OSError) -> OutputError:
    return OutputError(f"cannot write {path}: {error.strerror or error}; nothing was left behind")


def _sync(path: Path) -> None:
    """Flush a file or a folder to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sync_tree(folder: Path) -> None:
    """Flush a folder and all files in it in parallel, which takes the time of one or two syncs."""
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(_SYNCS_AT_ONCE) as pool:
        paths = [Path(place, name) for place, _, names in os.walk(folder) for name in (*names, "")]
        list(pool.map(_sync, paths))


@contextlib.contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Yield a temporary sibling to write; it replaces `path` on success and is removed on error.

    Raises OutputError if the system refuses (disk full, no permission, no such folder).
    """
    path = Path(path)
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".partial", dir=path.parent)
        os.close(descriptor)
        temporary = Path(name)
        yield temporary
        os.chmod(temporary, 0o666 & ~_umask())
        _sync(temporary)
        os.replace(temporary, path)
        temporary = None
        _sync(path.parent)
    except OSError as error:
        raise _output_error(path, error) from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_directory(path: Path, *, replace: bool = False) -> Iterator[Path]:
    """Yield a temporary sibling folder; it becomes `path` on success and is removed on error.

    An existing `path` raises OutputError unless `replace`. In that case it is moved aside first and
    removed last: at any moment the old or the new folder is complete (as `path`, or briefly as
    `.NAME.*.old`).
    """
    path = Path(path)
    temporary = None
    try:
        if path.exists() and not replace:
            raise OutputError(f"cannot write {path}: it exists already; choose another name or remove it")
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".partial", dir=path.parent))
        os.chmod(temporary, 0o777 & ~_umask())
        yield temporary
        _sync_tree(temporary)
        old = None
        if path.exists():
            old = temporary.with_suffix(".old")
            os.rename(path, old)
        os.rename(temporary, path)
        temporary = None
        _sync(path.parent)
        if old is not None:
            shutil.rmtree(old, ignore_errors=True)
    except OSError as error:
        raise _output_error(path, error) from error
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)


def atomic_write_bytes(path: Path, data: bytes) -> None:
    """Write `data` to `path` atomically. Raises OutputError."""
    with atomic_file(path) as temporary:
        temporary.write_bytes(data)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask

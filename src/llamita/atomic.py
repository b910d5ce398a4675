"""Writes files and folders atomically: a temporary sibling is synced, then renamed into place.

A temporary folder `.NAME.RANDOM.partial` beside the result holds it until it is finished:

    .NAME.RANDOM.partial/lock   held by the process that writes; a killed process holds nothing
    .NAME.RANDOM.partial/NAME   the unfinished file or folder
    .NAME.RANDOM.partial/old    the folder that is being replaced

The next writer of NAME removes what killed processes left behind, and says so.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import logging
import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from llamita.errors import LlamitaError, OutputError
from llamita.file_lock import FileLock, acquire_lock, is_lock_file, lock_holder

_SYNCS_AT_ONCE = 8
_MAX_PREFIX_BYTES = 200  # of NAME in the temporary folder's name, which the system bounds too
_LOCK, _OLD, _SUFFIX = "lock", "old", ".partial"

log = logging.getLogger(__name__)
_unfinished: set[Path] = set()


def _output_error(path: Path, error: OSError) -> OutputError:
    return OutputError(f"cannot write {path}: {error.strerror or error}; nothing was left behind")


def _exists_already(path: Path) -> OutputError:
    return OutputError(f"cannot write {path}: it exists already; choose another name or remove it")


# ---------------------------------------------------------------- syncs


def sync(path: Path) -> None:
    """Flush a file or a folder to disk."""
    if os.name == "nt" and path.is_dir():
        return  # Windows writes folders through
    descriptor = os.open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sync_tree(folder: Path) -> None:
    """Flush a folder and all files in it in parallel, which takes the time of one or two syncs."""
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(_SYNCS_AT_ONCE) as pool:
        paths = [Path(place, name) for place, _, names in os.walk(folder) for name in (*names, "")]
        list(pool.map(sync, paths))


def make_folders(path: Path) -> None:
    """Create the folder and its parents, durably. Raises OSError."""
    if path.is_dir():
        return
    if path.parent == path:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))  # no such drive
    make_folders(path.parent)
    path.mkdir(exist_ok=True)
    sync(path.parent)


@contextlib.contextmanager
def lock_folder(folder: Path, lock: str, describe: Callable[[str], str]) -> Iterator[None]:
    """Keep other processes out of the folder, which is made if it is missing, by a file `lock` in it.

    describe: the message of the OutputError if a process works there, from what lock_holder says.
    """
    is_new = not folder.exists()
    try:
        make_folders(folder)
        held = acquire_lock(folder / lock)
    except OSError as error:
        raise OutputError(f"cannot write {folder}: {error.strerror or error}") from error
    if held is None:
        raise OutputError(describe(lock_holder(folder / lock)))
    try:
        yield
    finally:
        held.release()
        if is_new:
            with contextlib.suppress(OSError):
                folder.rmdir()  # only if it is empty: nothing began


def check_parent(path: Path) -> None:
    """Raise OutputError if the folder of `path` does not exist: its name may be misspelled."""
    parent = Path(os.path.abspath(path)).parent
    if not parent.is_dir():
        raise OutputError(f"cannot write {path}: there is no folder {parent}; make it, or correct the name")


# ---------------------------------------------------------------- temporary folders


@contextlib.contextmanager
def temporary_folder(path: Path) -> Iterator[Path]:
    """Yield a new, locked folder beside `path`, removed at the end with everything in it.

    Removes those of dead processes first. Raises OutputError.
    """
    lock = folder = None
    try:
        make_folders(path.parent)
        remove_leftovers(path)
        lock = _make_locked(path)
        folder = lock.path.parent
        _unfinished.add(folder)
        yield folder
    except OSError as error:
        raise _output_error(path, error) from error
    except LlamitaError as error:
        if folder is None or str(folder) not in str(error):
            raise
        hidden = re.escape(str(folder)) + r"(?:[/\\]" + re.escape(path.name) + ")?"
        error.args = (re.sub(hidden, lambda _: str(path), str(error)),)  # the name that the user gave
        raise
    finally:
        if lock is not None and folder is not None:
            with contextlib.suppress(OSError):
                _restore(folder, path)
                _remove(folder, lock)
            _unfinished.discard(folder)


def _with_name(path: Path) -> Path:
    """The path, absolute if it does not end with a name, such as `..`. Raises OutputError."""
    if path.name in ("", ".."):
        path = Path(os.path.abspath(path))
    if not path.name:
        raise _exists_already(path)
    return path


def _prefix(path: Path) -> str:
    name = path.name
    if len(os.fsencode(name)) > _MAX_PREFIX_BYTES:
        name = hashlib.sha256(os.fsencode(name)).hexdigest()[:32]
    return f".{name}."


def is_writing() -> bool:
    """Whether this process has an unfinished file or folder, which it removes at the end."""
    return bool(_unfinished)


def _make_locked(path: Path) -> FileLock:
    while True:
        folder = path.with_name(f"{_prefix(path)}{secrets.token_hex(4)}{_SUFFIX}")
        try:
            folder.mkdir(mode=0o700)
            lock = acquire_lock(folder / _LOCK)
        except (FileExistsError, FileNotFoundError):
            if not path.parent.is_dir():
                raise
            continue  # another process took the folder for a dead one's: it was still empty
        if lock is not None:
            return lock


def _remove(folder: Path, lock: FileLock) -> None:
    """Remove a temporary folder, the lock last: what is left after a kill is still recognized."""
    for entry in _entries(folder):
        if entry.name == _LOCK:
            continue
        if entry.is_symlink() or not entry.is_dir():
            with contextlib.suppress(OSError):
                entry.unlink()
        else:
            shutil.rmtree(entry, ignore_errors=True)
    lock.release()
    with contextlib.suppress(OSError):
        folder.rmdir()


def _entries(folder: Path) -> list[Path]:
    with contextlib.suppress(OSError):
        return sorted(folder.iterdir())
    return []


def _temporary_folders(path: Path) -> list[Path]:
    """The temporary folders of writers of `path`, dead or alive."""
    pattern = re.compile(re.escape(_prefix(path)) + "[0-9a-f]{8}" + re.escape(_SUFFIX))
    return [each for each in _entries(path.parent) if pattern.fullmatch(each.name) and each.is_dir()]


def remove_leftovers(path: Path) -> list[str]:
    """Remove the temporary folders of killed writers of `path`, and log their names.

    A folder that a killed process was replacing gets its name back. Returns the living writers, in
    words.
    """
    living = []
    for folder in _temporary_folders(path):
        lock_path = folder / _LOCK
        if not lock_path.exists():
            with contextlib.suppress(OSError):
                folder.rmdir()  # killed at its very beginning, or at its very end
            continue
        if not is_lock_file(lock_path):
            continue  # not ours
        try:
            lock = acquire_lock(lock_path, must_exclude=True)
            if lock is None:
                living.append(lock_holder(lock_path))
                continue
            if _restore(folder, path):
                log.warning("%s is back: a process was killed while it replaced it", path)
        except OSError:
            continue  # another user's, or on a file system without locks
        _remove(folder, lock)
        log.warning("removed %s, which a killed process left behind", folder)
    return living


def remove_leftovers_in(folder: Path) -> None:
    """Remove what killed writers of any name left in the folder, and log it."""
    pattern = re.compile(r"\.(.+)\.[0-9a-f]{8}" + re.escape(_SUFFIX))
    for name in {found[1] for entry in _entries(folder) if (found := pattern.fullmatch(entry.name))}:
        remove_leftovers(folder / name)


def check_no_writer(path: Path) -> None:
    """Raise OutputError if a living process is writing `path`; remove what killed ones left."""
    for holder in remove_leftovers(path):
        raise OutputError(f"cannot write {path}: {holder} is writing it; wait for it, or choose another name")


def _restore(folder: Path, path: Path) -> bool:
    """Give the folder that was being replaced its name back, if nothing has taken it."""
    if not os.path.lexists(folder / _OLD) or os.path.lexists(path):
        return False
    os.rename(folder / _OLD, path)
    return True


# ---------------------------------------------------------------- files and folders


@contextlib.contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path to write a file to; it replaces `path` on success and is removed on
    error.

    Of two writers at once, the last one to finish wins. Raises OutputError if the system refuses
    (disk full, no permission, no such folder).
    """
    path = _with_name(Path(path))
    with temporary_folder(path) as folder:
        yield folder / path.name
        sync(folder / path.name)
        os.replace(folder / path.name, path)
        sync(path.parent)


@contextlib.contextmanager
def atomic_directory(path: Path, *, replace: bool = False) -> Iterator[Path]:
    """Yield a temporary folder; it becomes `path` on success and is removed on error.

    An existing `path` raises OutputError unless `replace`, at the beginning and at the end: what
    another process put there meanwhile is never touched. With `replace` the old folder is moved
    aside first and removed last: at any moment the old or the new folder is complete. If the
    process is killed between the two renames, the next writer gives the old folder its name back.
    Raises OutputError also while a living process is writing `path`.
    """
    path = _with_name(Path(path))
    if os.path.lexists(path) and not replace:
        raise _exists_already(path)
    check_no_writer(path)
    before = _listing(path)
    with temporary_folder(path) as folder:
        (folder / path.name).mkdir()
        yield folder / path.name
        _sync_tree(folder / path.name)
        if replace and before is not None:
            if _listing(path) != before:
                raise OutputError(
                    f"cannot write {path}: another process has changed it meanwhile; nothing was replaced; "
                    "start again, or choose another name"
                )
            os.rename(path, folder / _OLD)
        _rename_to_new(folder / path.name, path)
        sync(path.parent)


def _rename_to_new(source: Path, path: Path) -> None:
    """Rename a folder to a name that nobody has taken.

    No system renames a folder over a folder with content, or over a file. An empty folder may be
    replaced: nothing is lost.
    """
    try:
        os.rename(source, path)
    except OSError as error:
        if not os.path.lexists(path):
            raise
        raise OutputError(
            f"cannot write {path}: another process has made it meanwhile; it was not touched; choose another name"
        ) from error


def _listing(path: Path) -> tuple[int, int, frozenset[str]] | None:
    """What identifies a folder and its entries; None if there is no folder."""
    try:
        status = os.stat(path)
        return status.st_dev, status.st_ino, frozenset(os.listdir(path))
    except OSError:
        return None


def atomic_write_bytes(path: Path, data: bytes) -> None:
    """Write `data` to `path` atomically. Raises OutputError."""
    with atomic_file(path) as temporary:
        temporary.write_bytes(data)

"""Locks of the operating system on files, which end with their process, however it ends."""

from __future__ import annotations

import contextlib
import datetime
import errno
import os
import platform
import weakref
from pathlib import Path

if os.name == "nt":
    import msvcrt
else:
    import fcntl

_MAGIC = "llamita"
_MAX_BYTES = 400  # of the text in a lock file
_LOCKED_BYTE = 1 << 30  # Windows: a locked byte cannot be read, so lock one beyond the text
_BUSY = (errno.EWOULDBLOCK, errno.EACCES, errno.EDEADLK)
_NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)


class FileLock:
    """A lock file that this process holds. It says which process holds it, and since when."""

    def __init__(self, path: Path, descriptor: int) -> None:
        self.path, self._descriptor = path, descriptor
        _held.add(self)

    def release(self) -> None:
        """Remove the file and release it. Does nothing the second time."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor < 0:
            return
        if os.name == "nt":  # an open file cannot be removed there
            os.close(descriptor)
        with contextlib.suppress(OSError):
            os.unlink(self.path)
        if os.name != "nt":
            os.close(descriptor)

    def _forget(self) -> None:
        """Close a forked child's copy, which would keep the lock after its parent's end."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)


_held: weakref.WeakSet[FileLock] = weakref.WeakSet()


def _forget_all() -> None:
    for lock in list(_held):
        lock._forget()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_all)


def acquire_lock(path: Path, *, must_exclude: bool = False) -> FileLock | None:
    """Create and lock the file; None if a living process holds it. Raises OSError.

    The file of a dead process does not count. Some network file systems have no locks: there
    nothing is excluded, and must_exclude raises OSError.
    """
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_CLOEXEC", 0), 0o666)
        try:
            is_locked = _lock(descriptor, must_exclude)
            if not is_locked or not _is_same_file(descriptor, path):
                os.close(descriptor)
                if is_locked:
                    continue  # its holder removed it meanwhile
                return None
            os.ftruncate(descriptor, 0)
            os.write(descriptor, _describe().encode("utf-8", "replace")[:_MAX_BYTES])
        except BaseException:
            with contextlib.suppress(OSError):
                os.close(descriptor)
            raise
        return FileLock(path, descriptor)


def lock_holder(path: Path) -> str:
    """Who holds the lock: "process 12 on host, since 2026-11-28 12:00:00 UTC"."""
    try:
        with open(path, "rb") as file:
            lines = file.read(_MAX_BYTES).decode("utf-8", "replace").splitlines()
    except OSError:
        lines = []
    if len(lines) < 4 or lines[0] != _MAGIC:
        return "another process"
    return f"process {lines[1][:20]} on {lines[2][:80]}, since {lines[3][:40]},"


def is_lock_file(path: Path) -> bool:
    """Whether the file is one of ours."""
    try:
        with open(path, "rb") as file:
            content = file.read(len(_MAGIC))
    except OSError:
        return False
    return content in (b"", _MAGIC.encode())  # a process can die before it writes


def _describe() -> str:
    now = datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M:%S UTC")
    return f"{_MAGIC}\n{os.getpid()}\n{platform.node()}\n{now}\n"


def _lock(descriptor: int, must_exclude: bool) -> bool:
    """Lock the open file; False if another process has locked it."""
    try:
        if os.name == "nt":
            os.lseek(descriptor, _LOCKED_BYTE, os.SEEK_SET)
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined,unused-ignore]
            os.lseek(descriptor, 0, os.SEEK_SET)
        else:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in _BUSY:
            return False
        if must_exclude or error.errno not in _NO_LOCKS:
            raise
    return True


def _is_same_file(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except FileNotFoundError:
        return False

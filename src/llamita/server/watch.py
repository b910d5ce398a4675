"""Notices when the file of a served model is replaced, for example by the next export of a training
run."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import shutil
import tempfile
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Final

from llamita.errors import SourceError

POLL_SECONDS: Final = 1.0
_LINKS: Final = ("best", "latest")  # of a run directory: what it is served from

FileState = tuple[tuple[str, int, int, int], ...]


@dataclasses.dataclass(frozen=True)
class Watched:
    """What a model was read from, and the state of that before it was read."""

    path: Path
    state: FileState


def file_state(path: Path) -> FileState:
    """The names, numbers, sizes and times of a model's files: a file, or the weights of a checkpoint
    or run directory. (): there are none."""
    try:
        folder = next(
            (each for each in (path, *(path / link for link in _LINKS)) if any(each.glob("*.safetensors"))), path
        )
        files = sorted(folder.glob("*.safetensors")) if path.is_dir() else [path]
        stats = [(str(each.resolve()), each.stat()) for each in files]
    except OSError:  # it is being replaced
        return ()
    return tuple((name, stat.st_ino, stat.st_size, stat.st_mtime_ns) for name, stat in stats)


async def watch(watched: Watched, reload: Callable[[], Awaitable[None]]) -> None:
    """Call `reload` whenever the files are others than before, and have not changed between two
    looks: they are not being written."""
    tried = before = watched.state
    while True:
        await asyncio.sleep(POLL_SECONDS)
        now = await asyncio.to_thread(file_state, watched.path)
        if now and now == before and now != tried:
            tried = now
            await reload()
        before = now


@contextlib.contextmanager
def private_copy(path: Path) -> Iterator[Path]:
    """A copy of a file that nobody else writes: the engine maps its model into memory, and must not
    see it overwritten. Raises SourceError if the file changes meanwhile."""
    with tempfile.TemporaryDirectory(prefix="llamita-") as folder:
        copy = Path(folder) / path.name
        before = file_state(path)
        try:
            shutil.copyfile(path, copy)
        except OSError as error:
            raise SourceError(f"{path}: {error.strerror or error}") from None
        if file_state(path) != before:
            raise SourceError(f"{path}: expected a file that is complete, found one that is being written")
        yield copy

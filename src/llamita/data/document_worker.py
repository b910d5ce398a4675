"""A program that reads documents under limits: JSON lines on stdin and stdout.

document_files.py starts it and never imports it. Documents come from anywhere, and their readers
are large programs in C: here they have little memory and time, cannot write files, and cannot open
any while they work, unless they import a module late.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import json
import sys
from collections.abc import Iterator
from typing import Any

MEMORY_BYTES = 1 << 30  # besides what the program has at the start
MAX_DEPTH = 3  # of archives in archives
MAX_NAMES = 5


def main() -> None:
    """argv: sys.path as JSON. The first line is only answered. Each request: {"path": …, "suffix": …,
    "is_gzipped": …, "text_key": …, "max_characters": …, "seconds": …}. Each answer: {"texts": [{"text",
    "name", "notes", "row"}], "unread": [{"name", "error", "scanned_pages"}]}."""
    sys.path[:] = json.loads(sys.argv[1])
    import heapq  # noqa: F401 (the standard library imports it late, when no file can be opened)

    import llamita.data.readers.kinds  # noqa: F401

    sys.stdin.readline()
    limit_resources()
    answer({})
    for line in sys.stdin:
        asked = json.loads(line)
        with limit_time(asked["seconds"]):
            answer(read(asked))


def read(asked: dict[str, Any]) -> dict[str, Any]:
    """The answer to one request."""
    from llamita.data.readers.kinds import load

    try:
        with open(asked["path"], "rb") as file:
            data = file.read()
        load(asked["suffix"])
        try:
            with no_files():
                return read_data(data, asked)
        except OSError as error:
            if error.errno != errno.EMFILE:
                raise
            return read_data(data, asked)  # the reader imported a module late
    except Exception as error:  # whatever a reader raises costs its document only
        return {"texts": [], "unread": [failure("", error)]}


def read_data(data: bytes, asked: dict[str, Any]) -> dict[str, Any]:
    """The answer about a file with this content."""
    from llamita.data.readers.content import ReaderError, Text
    from llamita.data.readers.package import unpack_gzip

    texts: list[dict[str, Any]] = []
    unread: list[dict[str, Any]] = []
    left = asked["max_characters"]
    if asked["is_gzipped"]:
        data = unpack_gzip(data)
    for found in documents(data, asked["suffix"], "", 0, asked["text_key"]):
        if not isinstance(found, Text):
            unread.append(found)
            continue
        left -= len(found.text)
        if left < 0:
            raise ReaderError(f"it holds more than {asked['max_characters']:,} characters; split it")
        text = found.text.encode("utf-8", "replace").decode("utf-8")
        texts.append(dataclasses.asdict(dataclasses.replace(found, text=text)))
    return {"texts": texts, "unread": unread}


def documents(data: bytes, suffix: str, name: str, depth: int, text_key: str) -> Iterator[Any]:
    """The texts of a file and of the files in it, and failures as dictionaries."""
    from llamita.data.file_formats import packed_suffix
    from llamita.data.readers.content import Member, ReaderError, Text
    from llamita.data.readers.kinds import READERS, find_kind

    if depth > MAX_DEPTH:
        raise ReaderError(f"archives in archives, {MAX_DEPTH + 1} deep; unpack it")
    others: list[str] = []
    for found in READERS[suffix](data):
        if isinstance(found, Text):
            yield dataclasses.replace(found, name=f"{name}/{found.name}" if name and found.name else name or found.name)
            continue
        assert isinstance(found, Member)
        place = f"{name}/{found.name}" if name else found.name
        kind = find_kind(found.name)
        if kind is None and packed_suffix(found.name) is None:
            others.append(place)
            continue
        try:
            if found.error:
                raise ReaderError(found.error)
            if kind is None:
                yield from row_texts(found.data, place, text_key)
            else:
                yield from documents(found.data, kind, place, depth + 1, text_key)
        except MemoryError:
            raise
        except Exception as error:  # a member costs itself only
            if isinstance(error, OSError) and error.errno == errno.EMFILE:
                raise
            yield failure(place, error)
    if others:
        more = f" and {len(others) - MAX_NAMES:,} more" if len(others) > MAX_NAMES else ""
        count = f"{len(others):,} file{'s' * (len(others) != 1)}"
        yield Text("", name, (f"{count} of unknown types in it: {', '.join(others[:MAX_NAMES])}{more}",))


def row_texts(data: bytes, name: str, text_key: str) -> list[Any]:
    """The texts of all rows in a file of an archive."""
    from llamita.data.file_formats import packed_rows, row_text
    from llamita.data.readers.content import Text, decode

    text = decode(data).replace("\0", "")
    return [Text(row_text(row, text_key).decode(), name, row=row.number) for row in packed_rows(text, name, text_key)]


def failure(name: str, error: BaseException) -> dict[str, Any]:
    """What is wrong with a document."""
    from llamita.data.readers.content import ReaderError, ScanError
    from llamita.errors import SourceError

    if isinstance(error, (ReaderError, SourceError)):
        what = str(error)
    elif isinstance(error, MemoryError):
        what = f"its reader needs more than {MEMORY_BYTES >> 20:,} MiB of memory"
    elif isinstance(error, ImportError):
        what = f"it needs {error.name or 'a package'}: pip install 'llamita[documents]'"
    elif isinstance(error, OSError) and error.filename is not None:
        what = error.strerror or "it cannot be opened"
    else:
        what = f"its reader failed ({type(error).__name__}: {' '.join(str(error).split())[:100]})"
    pages = error.num_pages if isinstance(error, ScanError) else 0
    return {"name": name, "error": what, "scanned_pages": pages}


@contextlib.contextmanager
def no_files() -> Iterator[None]:
    """No file can be opened in the block."""
    try:
        import resource
    except ImportError:  # Windows
        yield
        return
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def limit_resources() -> None:
    """Limit memory, and forbid writing files and starting processes."""
    try:
        import resource
    except ImportError:  # Windows
        return
    used = 1 << 30
    with contextlib.suppress(OSError), open("/proc/self/statm", encoding="ascii") as file:
        used = int(file.read().split()[0]) * resource.getpagesize()
    limits = {"RLIMIT_AS": used + MEMORY_BYTES, "RLIMIT_FSIZE": 0, "RLIMIT_CORE": 0, "RLIMIT_NPROC": 0}
    for name, limit in limits.items():
        with contextlib.suppress(AttributeError, ValueError, OSError):
            resource.setrlimit(getattr(resource, name), (limit, limit))


@contextlib.contextmanager
def limit_time(seconds: float) -> Iterator[None]:
    """Let the system kill this process if the block takes too much processor time; its parent waits
    longer, see limited_process.py."""
    import signal

    if hasattr(signal, "setitimer"):
        signal.setitimer(signal.ITIMER_PROF, seconds)
    yield
    if hasattr(signal, "setitimer"):
        signal.setitimer(signal.ITIMER_PROF, 0)


def answer(content: dict[str, Any]) -> None:
    """Write one line."""
    sys.stdout.write(json.dumps(content) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()

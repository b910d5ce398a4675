"""Reads the text of documents (PDF, office files, web pages, books, mails, archives) in processes
with limits, and remembers what could not be read."""

from __future__ import annotations

import collections
import concurrent.futures
import importlib.util
import json
import os
import queue
import tempfile
import threading
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import IO, Any, Final, NamedTuple

from llamita.cores import num_cores
from llamita.errors import SourceError
from llamita.limited_process import LimitedProcess

MAX_CHARACTERS: Final = 32 << 20  # of the text of one file
MAX_FILE_BYTES: Final = 256 << 20
MAX_PROCESSES: Final = 8
MAX_NAMED: Final = 4
# A page of a PDF takes 10 to 50 ms, and at least 2 kB.
_SECONDS, _SECONDS_PER_MB, _MAX_SECONDS = 30.0, 30.0, 600.0
_KEPT_BYTES: Final = 64 << 20  # of text in memory; more is in a temporary file
_WORKER: Final = Path(__file__).with_name("document_worker.py")

# The suffix of each kind of document, and the packages that read it.
DOCUMENT_PACKAGES: dict[str, tuple[str, ...]] = {
    ".pdf": ("pypdfium2",),
    **dict.fromkeys((".docx", ".pptx", ".xlsx", ".html", ".htm", ".xhtml", ".epub", ".odt"), ("lxml",)),
    **dict.fromkeys((".rtf", ".ipynb", ".srt"), ()),
    **dict.fromkeys((".eml", ".zip"), ("lxml", "pypdfium2")),
}
DOCUMENT_SUFFIXES = tuple(DOCUMENT_PACKAGES)
VERSION: Final = 1  # raised when the readers make other text of the same file


class DocumentText(NamedTuple):
    """The text of a document. name: its place in an archive, "" outside of one. row: its number, from
    1, if it is the row of a file there."""

    text: str
    name: str
    row: int


class DocumentFiles:
    """Reads documents, and keeps their texts for the next time. Not thread-safe."""

    def __init__(self) -> None:
        self.read_files: dict[str, tuple[str, int]] = {}  # path → suffix, number of documents
        self.unread: dict[str, str] = {}  # path, or place in an archive → what is wrong
        self.scans: dict[str, int] = {}  # the same → pages
        self.notes: dict[str, str] = {}  # the same → what was left out
        self._store: IO[bytes] | None = None
        self._places: dict[Path, tuple[int, int]] = {}

    def read(
        self, files: Sequence[tuple[Path, str]], text_key: str = "text"
    ) -> Generator[list[DocumentText], None, None]:
        """The documents of each file (path and suffix) in order, read ahead by several processes; none
        of a file that cannot be read. text_key: of rows in an archive. Raises SourceError if a package
        is missing."""
        for path, suffix in files:
            _check_packages(path, suffix)
        new = list(dict.fromkeys((path, suffix) for path, suffix in files if path not in self._places))
        answers = _read_ahead(new, text_key)
        try:
            for path, suffix in files:
                if path not in self._places:
                    self._keep(path, suffix, next(answers))
                yield self._kept(path)
        finally:
            answers.close()

    def _keep(self, path: Path, suffix: str, answer: dict[str, Any]) -> None:
        """Remember an answer."""
        texts = [
            (each["text"], each["name"], each["row"]) for each in answer["texts"] if each["text"].strip() or each["row"]
        ]
        for each in answer["texts"]:
            if each["notes"]:
                self.notes[_place(path, each["name"])] = "; ".join(each["notes"])
        for each in answer["unread"]:
            place = _place(path, each["name"])
            if each["scanned_pages"]:
                self.scans[place] = each["scanned_pages"]
            else:
                self.unread[place] = each["error"]
        whole = str(path)
        if not texts and whole not in self.unread and whole not in self.scans:
            self.unread[whole] = "it has no text"
        if texts:
            self.read_files[whole] = (suffix, len(texts))
        if self._store is None:
            self._store = tempfile.SpooledTemporaryFile(max_size=_KEPT_BYTES)  # noqa: SIM115
        data = json.dumps(texts, ensure_ascii=False).encode("utf-8")
        start = self._store.seek(0, os.SEEK_END)
        self._store.write(data)
        self._places[path] = (start, len(data))

    def _kept(self, path: Path) -> list[DocumentText]:
        assert self._store is not None
        start, size = self._places[path]
        self._store.seek(start)
        return [DocumentText(*each) for each in json.loads(self._store.read(size))]

    # ---- what to print

    def describe_read(self) -> str:
        """How many files of each kind were read; "" if none."""
        kinds: dict[str, list[int]] = collections.defaultdict(list)
        for suffix, count in self.read_files.values():
            kinds[suffix].append(count)
        return ", ".join(
            f"{len(counts):,} {suffix}" + (f" ({sum(counts):,} documents)" if sum(counts) > len(counts) else "")
            for suffix, counts in kinds.items()
        )

    def describe_unread(self) -> list[str]:
        """What could not be read, and why: a line for scans, and one for the rest."""
        lines = []
        if self.scans:
            pages, count = sum(self.scans.values()), len(self.scans)
            lines.append(
                f"{count:,} scanned file{'s' * (count != 1)} without text, {pages:,} page{'s' * (pages != 1)} "
                f"({_first(list(self.scans))}); make text of them with OCR, such as ocrmypdf"
            )
        if self.unread:
            count = len(self.unread)
            named = [f"{place}: {why}" for place, why in self.unread.items()]
            lines.append(f"{count:,} file{'s' * (count != 1)} not read: {_first(named, '; ')}")
        return lines

    def describe_notes(self) -> str:
        """What was left out of files that were read; "" if nothing."""
        return _first([f"{place}: {what}" for place, what in self.notes.items()], "; ")

    def describe(self) -> list[str]:
        """All of it but what was read whole."""
        notes = self.describe_notes()
        return [*self.describe_unread(), *([f"left out: {notes}"] if notes else [])]


def _place(path: Path, name: str) -> str:
    return f"{path}/{name}" if name else str(path)


def _first(names: Sequence[str], between: str = ", ") -> str:
    more = len(names) - MAX_NAMED
    return between.join(names[:MAX_NAMED]) + (f" and {more:,} more" if more > 0 else "")


def _check_packages(path: Path, suffix: str) -> None:
    for package in DOCUMENT_PACKAGES[suffix]:
        if importlib.util.find_spec(package) is None:
            raise SourceError(f"cannot read {path}: {suffix} needs {package}: pip install 'llamita[documents]'")


def _read_ahead(files: Sequence[tuple[Path, str]], text_key: str = "text") -> Generator[dict[str, Any], None, None]:
    """The answer about each file, in order."""
    cores = num_cores()
    count = min(cores, len(files), MAX_PROCESSES)
    if not count:
        return
    free: queue.SimpleQueue[LimitedProcess | None] = queue.SimpleQueue()
    started: list[LimitedProcess] = []
    is_closed = threading.Event()
    for _ in range(count):
        free.put(None)

    def read(path: Path, suffix: str) -> dict[str, Any]:
        process = free.get()
        try:
            if process is None or not process.is_running:
                process = LimitedProcess(_WORKER, {})
                started.append(process)
                if is_closed.is_set():
                    process.close()
            return _ask(process, path, suffix, text_key)
        finally:
            free.put(process)

    pool = concurrent.futures.ThreadPoolExecutor(count, thread_name_prefix="documents")
    pending: collections.deque[concurrent.futures.Future[dict[str, Any]]] = collections.deque()
    try:
        for path, suffix in files:
            pending.append(pool.submit(read, path, suffix))
            if len(pending) > 2 * count:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
        is_closed.set()  # for those that are being started
        for process in started:
            process.close()
        pool.shutdown()


def _ask(process: LimitedProcess, path: Path, suffix: str, text_key: str) -> dict[str, Any]:
    if not process.is_running:
        raise SourceError("cannot start the process that reads documents")
    try:
        size = path.stat().st_size
    except OSError as error:
        return _failed(error.strerror or str(error))
    if size > MAX_FILE_BYTES:
        return _failed(f"it has {size:,} bytes, expected at most {MAX_FILE_BYTES:,}; split it")
    seconds = min(_MAX_SECONDS, _SECONDS + _SECONDS_PER_MB * size / 1e6)
    request = {
        "path": str(path), "suffix": suffix, "is_gzipped": path.name.lower().endswith(".gz"),
        "text_key": text_key, "max_characters": MAX_CHARACTERS,
    }  # fmt: skip
    reply = process.ask(request, seconds)
    if reply is None:
        return _failed(f"its reader crashed, or took more than {seconds:.0f} s; the file is damaged or malicious")
    return reply


def _failed(why: str) -> dict[str, Any]:
    return {"texts": [], "unread": [{"name": "", "error": why, "scanned_pages": 0}]}

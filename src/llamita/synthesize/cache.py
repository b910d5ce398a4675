"""The answers of a model on disk, appended one by one: what is paid for once is never asked again."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Final

from llamita.errors import OutputError, SourceError
from llamita.file_lock import FileLock, acquire_lock, lock_holder
from llamita.synthesize.endpoint import Answer

_HEADER: Final = b'{"format": "llamita answers", "version": 1}\n'


def request_key(body: Mapping[str, Any], attempt: int) -> str:
    """What identifies a request: all that is sent, and which attempt it is."""
    text = json.dumps([attempt, body], sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:32]


class AnswerCache:
    """Answers by the keys of their requests. Open it in a `with`; one process at a time can.

    A line is an answer. What a kill left of a last line is cut off; that answer is asked for again.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._answers: dict[str, Answer] = {}
        self._file: IO[bytes] | None = None
        self._lock: FileLock | None = None
        self.damaged_lines = 0

    def __enter__(self) -> AnswerCache:
        lock_path = self.path.with_name(f"{self.path.name}.lock")
        try:
            self._lock = acquire_lock(lock_path)
            if self._lock is None:
                raise OutputError(
                    f"cannot write {self.path}: {lock_holder(lock_path)} is writing it; wait for it, or choose another "
                    "--out"
                )
            self._file = open(self.path, "a+b")
            self._load(self._file)
        except OSError as error:
            self.__exit__(None, None, None)
            raise OutputError(f"cannot write {self.path}: {error.strerror or error}") from None
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file is not None:
            with contextlib.suppress(OSError):  # of a full disk, which `add` has reported
                self._file.close()
            self._file = None
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def _load(self, file: IO[bytes]) -> None:
        file.seek(0)
        first = file.readline(len(_HEADER))
        if not first or (_HEADER.startswith(first) and len(first) < len(_HEADER)):
            file.truncate(0)
            self._write(_HEADER)
            return
        if first != _HEADER:
            raise SourceError(f"cannot read {self.path}: it holds no answers; choose another --out, or move it away")
        end = len(_HEADER)
        for line in file:
            if not line.endswith(b"\n"):
                break
            end += len(line)
            try:
                values = json.loads(line)
                key, answer = values.pop("key"), Answer(**values)
                if not isinstance(answer.text, str):
                    raise ValueError
                self._answers[key] = answer
            except (ValueError, RecursionError, LookupError, TypeError, AttributeError):
                self.damaged_lines += 1
        file.truncate(end)

    def find(self, key: str) -> Answer | None:
        return self._answers.get(key)

    def add(self, key: str, answer: Answer) -> None:
        """Keep an answer, durably. Raises OutputError."""
        line = json.dumps({"key": key, **dataclasses.asdict(answer)}, ensure_ascii=False)
        try:
            self._write(line.encode("utf-8") + b"\n")
        except OSError as error:
            raise OutputError(
                f"cannot write {self.path}: {error.strerror or error}; the same command goes on from here"
            ) from None
        self._answers[key] = answer

    def _write(self, line: bytes) -> None:
        assert self._file is not None
        self._file.write(line)
        self._file.flush()
        os.fsync(self._file.fileno())

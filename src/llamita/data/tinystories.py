"""Downloads TinyStories (arXiv 2305.07759) from the Hugging Face hub; resumes and verifies."""

from __future__ import annotations

import dataclasses
import hashlib
import http.client
import re
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

from llamita.atomic import atomic_write_bytes, sync
from llamita.errors import NetworkError, OutputError
from llamita.network import NoRedirect, failure_reason
from llamita.progress import Progress, no_progress

ENDPOINT = "https://huggingface.co"
DATASET = "roneneldan/TinyStories"  # CDLA-Sharing-1.0
TRAIN_FILE, VAL_FILE = "TinyStoriesV2-GPT4-train.txt", "TinyStoriesV2-GPT4-valid.txt"
_CHUNK_BYTES = 1 << 18


@dataclasses.dataclass(frozen=True)
class RemoteFile:
    """A file on the hub, as its headers describe it."""

    url: str
    num_bytes: int
    sha256: str


def download_tinystories(
    directory: Path,
    *,
    endpoint: str = ENDPOINT,
    progress: Progress = no_progress,
    attempts: int = 6,
    first_wait_seconds: float = 1.0,
    timeout_seconds: float = 30.0,
) -> list[Path]:
    """Download the training and the validation file to `directory` and return their paths.

    A complete file is not downloaded again and needs no network; a partial one is resumed. Size and
    sha256 are checked. A connection may fail `attempts` times in a row, with pauses that double
    from `first_wait_seconds`. Raises NetworkError, OutputError.
    """
    directory = Path(directory)
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"cannot write {directory}: {error.strerror or error}") from None
    retry = _Retry(attempts, first_wait_seconds)
    paths = []
    for name in (TRAIN_FILE, VAL_FILE):
        path = directory / name
        if not _is_whole(path, progress):
            url = f"{endpoint.rstrip('/')}/datasets/{DATASET}/resolve/main/{name}"
            remote = retry.run(url, lambda url=url: _describe(url, timeout_seconds))  # type: ignore[misc]
            _fetch(remote, path, progress, retry, timeout_seconds)
        paths.append(path)
    return paths


class _Interrupted(Exception):
    """A failure after which another attempt may succeed."""


@dataclasses.dataclass(frozen=True)
class _Retry:
    attempts: int
    first_wait_seconds: float

    def run(self, url: str, action: Callable[[], Any], made_progress: Callable[[], bool] = lambda: False) -> Any:
        """Run `action` until it succeeds. Consecutive failures without progress are counted."""
        failures = 0
        while True:
            try:
                return action()
            except _Interrupted as error:
                failures = 1 if made_progress() else failures + 1
                if failures >= self.attempts:
                    raise NetworkError(
                        f"cannot download {url}: {error} ({failures} attempts); check the connection and run the "
                        "command again (it resumes where it stopped), or give the path of your own copy as SOURCE"
                    ) from None
                time.sleep(min(60.0, self.first_wait_seconds * 2 ** (failures - 1)))


def _describe(url: str, timeout_seconds: float) -> RemoteFile:
    """Ask for size and sha256. They are in the first response, which redirects to the data."""
    headers = _request(url, "HEAD", {}, timeout_seconds, redirects=False).headers
    digest = (headers.get("X-Linked-Etag") or headers.get("ETag") or "").removeprefix("W/").strip('"')
    size = headers.get("X-Linked-Size") or headers.get("Content-Length") or ""
    if not re.fullmatch(r"[0-9a-f]{64}", digest) or not size.isdigit():
        raise NetworkError(
            f"cannot download {url}: the server does not send the file's sha256 and size (X-Linked-Etag, "
            "X-Linked-Size); is it a Hugging Face endpoint?"
        )
    return RemoteFile(url, int(size), digest)


def _fetch(remote: RemoteFile, path: Path, progress: Progress, retry: _Retry, timeout_seconds: float) -> None:
    """Download to a partial file, which is named by the hash; verify it, then rename it."""
    part = path.with_name(f".{path.name}.{remote.sha256[:16]}.partial")
    sizes = [-1, _size(part)]  # of the partial file, at the last failure and now

    def made_progress() -> bool:
        sizes[:] = [sizes[1], _size(part)]
        return sizes[1] > sizes[0] >= 0

    retry.run(remote.url, lambda: _fetch_rest(remote, part, progress, timeout_seconds), made_progress)
    digest = _sha256(part, progress, f"{path.name}: checking")
    try:
        if digest != remote.sha256:
            part.unlink()
            raise NetworkError(
                f"cannot download {remote.url}: expected sha256 {remote.sha256}, found {digest}; "
                "the data was damaged in transit; run the command again"
            )
        atomic_write_bytes(path.with_name(path.name + ".sha256"), f"{digest}  {path.name}\n".encode())
        sync(part)
        part.replace(path)
        sync(path.parent)
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror or error}") from None


def _fetch_rest(remote: RemoteFile, part: Path, progress: Progress, timeout_seconds: float) -> None:
    """Append the missing bytes. Raises _Interrupted if the connection ends early; the file stays."""
    have = _size(part)
    if have > remote.num_bytes:
        part.unlink()
        have = 0
    if have == remote.num_bytes and part.exists():
        return
    answer = _request(remote.url, "GET", {"Range": f"bytes={have}-"}, timeout_seconds)
    with answer:
        if answer.status != 206:  # the server does not support ranges: start over
            have = 0
        elif not (answer.headers.get("Content-Range") or "").startswith(f"bytes {have}-"):
            raise _Interrupted(f"expected bytes from {have:,}, found {answer.headers.get('Content-Range')}")
        try:
            stream = open(part, "ab" if have else "wb")  # noqa: SIM115 (a disk error is not a network error)
        except OSError as error:
            raise OutputError(f"cannot write {part}: {error.strerror or error}") from None
        with stream:
            while chunk := _receive(answer):
                _append(stream, chunk, part)
                have += len(chunk)
                progress(part.name[1:].rsplit(".", 2)[0], have, remote.num_bytes)
                if have > remote.num_bytes:
                    break
    if have != remote.num_bytes:
        if have > remote.num_bytes:
            part.unlink()
        raise _Interrupted(f"the connection ended after {have:,} of {remote.num_bytes:,} bytes")


def _receive(answer: http.client.HTTPResponse) -> bytes:
    try:
        return answer.read(_CHUNK_BYTES)
    except (OSError, http.client.HTTPException) as error:
        raise _Interrupted(failure_reason(error)) from None


def _append(stream: IO[bytes], chunk: bytes, part: Path) -> None:
    try:
        stream.write(chunk)
    except OSError as error:
        raise OutputError(f"cannot write {part}: {error.strerror or error}; the next run resumes there") from None


def _request(
    url: str, method: str, headers: dict[str, str], timeout_seconds: float, *, redirects: bool = True
) -> http.client.HTTPResponse:
    """Send a request. Raises _Interrupted if another attempt may help, NetworkError otherwise."""
    if urllib.parse.urlsplit(url).scheme not in ("http", "https"):
        raise NetworkError(f"cannot download {url}: expected an endpoint that begins with https://")
    opener = urllib.request.build_opener(*([] if redirects else [NoRedirect]))
    request = urllib.request.Request(
        url, method=method, headers={"User-Agent": "llamita", "Accept-Encoding": "identity", **headers}
    )
    try:
        answer: http.client.HTTPResponse = opener.open(request, timeout=timeout_seconds)
        return answer
    except urllib.error.HTTPError as error:
        with error:
            if not redirects and 300 <= error.code < 400:
                return error  # type: ignore[return-value]  # an HTTPError is a response too, with headers
            if error.code in (408, 416, 429) or error.code >= 500:
                raise _Interrupted(f"the server answered {error.code} {error.reason}") from None
            hint = "; the dataset may have moved" if error.code == 404 else ""
            raise NetworkError(
                f"cannot download {url}: the server answered {error.code} {error.reason}{hint}"
            ) from None
    except (OSError, http.client.HTTPException) as error:
        raise _Interrupted(failure_reason(error)) from None
    except ValueError as error:
        raise NetworkError(f"cannot download {url}: {error}") from None


def _is_whole(path: Path, progress: Progress) -> bool:
    """True for a file that an earlier download verified and that still has the same sha256."""
    note = path.with_name(path.name + ".sha256")
    if not path.is_file() or not note.is_file():
        return False
    return note.read_text(encoding="utf-8", errors="replace").split()[:1] == [
        _sha256(path, progress, f"{path.name}: checking")
    ]


def _sha256(path: Path, progress: Progress, name: str) -> str:
    digest = hashlib.sha256()
    done, total = 0, _size(path)
    try:
        with open(path, "rb") as stream:
            while chunk := stream.read(1 << 22):
                digest.update(chunk)
                done += len(chunk)
                progress(name, done, total)
    except OSError as error:
        raise OutputError(f"cannot read {path}: {error.strerror or error}") from None
    return digest.hexdigest()


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0

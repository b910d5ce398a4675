"""Downloads from a local server that fails in every way that a hub can."""

from __future__ import annotations

import hashlib
import http.server
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from llamita.data import tinystories
from llamita.data.tinystories import TRAIN_FILE, VAL_FILE, download_tinystories
from llamita.errors import NetworkError, OutputError

FILES = {TRAIN_FILE: b"a story about a fox.<|endoftext|>\n" * 30_000, VAL_FILE: b"held out<|endoftext|>\n" * 500}


class Hub(http.server.ThreadingHTTPServer):
    """Like huggingface.co: HEAD sends size and sha256 and redirects, GET redirects to the data."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.requests: list[tuple[str, str, str]] = []  # method, path, range
        self.cut_after: list[int] = []  # bytes after which the next answers break off
        self.statuses: list[int] = []  # of the next answers
        self.digest: dict[str, str] = {}  # instead of the true one
        self.damage = 0  # number of answers to come with a wrong byte
        self.ranges = True
        self.checksums = True

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Handler(http.server.BaseHTTPRequestHandler):
    server: Hub

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.answer()

    def do_GET(self) -> None:
        self.answer()

    def answer(self) -> None:
        hub, name = self.server, self.path.rpartition("/")[2]
        wanted = self.headers.get("Range") or ""
        hub.requests.append((self.command, self.path, wanted))
        if hub.statuses:
            self.send_error(hub.statuses.pop(0))
            return
        data = FILES[name]
        if not self.path.startswith("/cdn/"):
            assert self.path == f"/datasets/roneneldan/TinyStories/resolve/main/{name}"
            self.send_response(302)
            self.send_header("Location", f"/cdn/{name}")
            if hub.checksums:
                self.send_header("X-Linked-Etag", f'"{hub.digest.get(name, hashlib.sha256(data).hexdigest())}"')
                self.send_header("X-Linked-Size", str(len(data)))
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        start = int(wanted.removeprefix("bytes=").rstrip("-") or 0) if hub.ranges else 0
        self.send_response(206 if hub.ranges and wanted else 200)
        self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        self.send_header("Content-Length", str(len(data) - start))
        self.end_headers()
        body = data[start:]
        if hub.damage:
            hub.damage -= 1
            body = b"X" + body[1:]
        self.wfile.write(body[: hub.cut_after.pop(0)] if hub.cut_after else body)


@pytest.fixture
def hub() -> Iterator[Hub]:
    server = Hub()
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def fetch(directory: Path, hub: Hub, **settings: float) -> list[Path]:
    values = {"attempts": 3, "first_wait_seconds": 0.001, "timeout_seconds": 5.0, **settings}
    return download_tinystories(directory, endpoint=hub.endpoint, **values)  # type: ignore[arg-type]


def check(directory: Path, paths: list[Path]) -> None:
    assert paths == [directory / TRAIN_FILE, directory / VAL_FILE]
    assert [path.read_bytes() for path in paths] == list(FILES.values())
    expected = {name + end for name in FILES for end in ("", ".sha256")}
    assert {path.name for path in directory.iterdir()} == expected


def test_both_files_come_whole_and_are_not_fetched_again(tmp_path: Path, hub: Hub) -> None:
    seen: list[tuple[str, int, int]] = []
    paths = download_tinystories(tmp_path / "new", endpoint=hub.endpoint + "/", progress=lambda *at: seen.append(at))
    check(tmp_path / "new", paths)
    assert (TRAIN_FILE, len(FILES[TRAIN_FILE]), len(FILES[TRAIN_FILE])) in seen
    hub.requests.clear()
    check(tmp_path / "new", fetch(tmp_path / "new", hub))
    assert hub.requests == []
    paths[1].write_bytes(b"changed")
    check(tmp_path / "new", fetch(tmp_path / "new", hub))


def test_a_broken_transfer_goes_on_where_it_stopped(tmp_path: Path, hub: Hub) -> None:
    hub.cut_after = [300_000, 0, 400_000]
    check(tmp_path, fetch(tmp_path, hub))
    ranges = [wanted for method, path, wanted in hub.requests if method == "GET" and path == f"/cdn/{TRAIN_FILE}"]
    assert ranges == ["bytes=0-", "bytes=300000-", "bytes=300000-", "bytes=700000-"]


def test_another_run_goes_on_too(tmp_path: Path, hub: Hub) -> None:
    hub.cut_after = [300_000, 0, 0]
    with pytest.raises(NetworkError, match=r"ended after 300,000 of 1,020,000 bytes \(3 attempts\).*resumes"):
        fetch(tmp_path, hub)
    hub.requests.clear()
    check(tmp_path, fetch(tmp_path, hub))
    assert ("GET", f"/cdn/{TRAIN_FILE}", "bytes=300000-") in hub.requests


def test_a_server_without_ranges_starts_anew(tmp_path: Path, hub: Hub) -> None:
    hub.cut_after = [300_000]
    hub.ranges = False
    check(tmp_path, fetch(tmp_path, hub))


def test_damaged_bytes_are_not_kept(tmp_path: Path, hub: Hub) -> None:
    hub.damage = 1
    with pytest.raises(NetworkError, match=r"expected sha256 .*, found .*; the data was damaged in transit"):
        fetch(tmp_path, hub)
    assert list(tmp_path.iterdir()) == []
    check(tmp_path, fetch(tmp_path, hub))


def test_a_file_that_changed_on_the_hub_is_not_patched_together(tmp_path: Path, hub: Hub) -> None:
    hub.digest[TRAIN_FILE] = "0" * 64
    hub.cut_after = [300_000, 0, 0]
    with pytest.raises(NetworkError):
        fetch(tmp_path, hub)
    hub.digest.clear()
    assert fetch(tmp_path, hub)[0].read_bytes() == FILES[TRAIN_FILE]


@pytest.mark.parametrize("statuses", [[500], [503, 429]])
def test_a_busy_server_is_asked_again(tmp_path: Path, hub: Hub, statuses: list[int]) -> None:
    waiting = len(statuses)
    hub.statuses = statuses
    check(tmp_path, fetch(tmp_path, hub))
    assert len(hub.requests) == 2 * 3 + waiting  # per file: HEAD, GET, redirected GET


@pytest.mark.parametrize("status", [401, 403, 404])
def test_a_refusal_is_not_asked_again(tmp_path: Path, hub: Hub, status: int) -> None:
    hub.statuses = [status]
    with pytest.raises(NetworkError, match=f"the server answered {status}"):
        fetch(tmp_path, hub)
    assert len(hub.requests) == 1 and list(tmp_path.iterdir()) == []


def test_offline(tmp_path: Path) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        endpoint = f"http://127.0.0.1:{unused.getsockname()[1]}"
        with pytest.raises(NetworkError, match=r"Connection refused \(2 attempts\); check the connection") as caught:
            download_tinystories(tmp_path, endpoint=endpoint, attempts=2, first_wait_seconds=0.001)
    assert "\n" not in str(caught.value)


def test_a_server_that_is_no_hub(tmp_path: Path, hub: Hub) -> None:
    hub.checksums = False
    with pytest.raises(NetworkError, match="does not send the file's sha256"):
        fetch(tmp_path, hub)
    with pytest.raises(NetworkError, match="begins with https"):
        download_tinystories(tmp_path, endpoint="ftp://example.org")


def test_a_silent_server(tmp_path: Path) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        endpoint = f"http://127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(NetworkError, match="timed out"):
            download_tinystories(tmp_path, endpoint=endpoint, attempts=2, first_wait_seconds=0.001, timeout_seconds=0.1)


def test_a_full_disk(tmp_path: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(OutputError, match="cannot write"):
        fetch(tmp_path / "file" / "folder", hub)
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full here")
    part = tmp_path / "part"
    part.symlink_to("/dev/full")
    with open(part, "wb", buffering=0) as full, pytest.raises(OutputError, match="No space left"):
        tinystories._append(full, b"bytes", part)

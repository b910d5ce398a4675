"""Files and folders are written completely or not at all."""

from __future__ import annotations

import errno
import logging
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from llamita.atomic import atomic_directory, atomic_file, atomic_write_bytes, check_parent
from llamita.errors import FormatError, OutputError

WRITER = """
import sys, time
from pathlib import Path
from llamita.atomic import atomic_directory, atomic_file
kind, path = sys.argv[1], Path(sys.argv[2])
with (atomic_file(path) if kind == "file" else atomic_directory(path, replace=kind == "replace")) as temporary:
    if kind == "file":
        temporary.write_bytes(b"half")
    else:
        (temporary / "part").write_bytes(b"half")
    print("writing", flush=True)
    sys.stdin.readline()
"""


def writer(kind: str, path: Path) -> subprocess.Popen[str]:
    """Another process, in the middle of writing; a line on its stdin lets it finish."""
    process = subprocess.Popen(
        [sys.executable, "-c", WRITER, kind, str(path)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None and process.stdout.readline() == "writing\n"
    return process


def kill(process: subprocess.Popen[str]) -> None:
    process.send_signal(signal.SIGKILL if os.name == "posix" else signal.SIGTERM)
    process.communicate()


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_file_is_replaced_whole(tmp_path: Path) -> None:
    path = tmp_path / "new" / "file"
    atomic_write_bytes(path, b"one")
    atomic_write_bytes(path, b"two")
    assert path.read_bytes() == b"two" and names(path.parent) == ["file"]


def test_an_error_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")
    with pytest.raises(KeyError), atomic_file(path) as temporary:
        temporary.write_bytes(b"half")
        raise KeyError
    assert path.read_bytes() == b"old" and names(tmp_path) == ["file"]


def test_full_disk_is_one_line_and_leaves_nothing(tmp_path: Path) -> None:
    with (
        pytest.raises(OutputError, match=r"cannot write .*file: No space left on device"),
        atomic_file(tmp_path / "file"),
    ):
        raise OSError(errno.ENOSPC, "No space left on device")
    with pytest.raises(OutputError, match="No space left"), atomic_directory(tmp_path / "folder") as temporary:
        (temporary / "part").write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")
    assert names(tmp_path) == []


def test_a_folder_that_cannot_be_created_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(OutputError, match="cannot write"):
        atomic_write_bytes(tmp_path / "file" / "below", b"")


def test_directory_appears_whole(tmp_path: Path) -> None:
    with atomic_directory(tmp_path / "folder") as temporary:
        (temporary / "a").write_text("1")
        assert not (tmp_path / "folder").exists()
    assert (tmp_path / "folder" / "a").read_text() == "1" and names(tmp_path) == ["folder"]


def test_directory_is_replaced_only_if_asked(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "old").touch()
    with pytest.raises(OutputError, match="exists already"), atomic_directory(tmp_path / "folder"):
        pass
    with atomic_directory(tmp_path / "folder", replace=True) as temporary:
        (temporary / "new").touch()
    assert names(tmp_path / "folder") == ["new"] and names(tmp_path) == ["folder"]


# ---------------------------------------------------------------- several writers


def test_what_appears_meanwhile_is_not_touched(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="another process has made it"), atomic_directory(tmp_path / "a") as temporary:
        (temporary / "mine").touch()
        (tmp_path / "a").mkdir()
        (tmp_path / "a" / "theirs").write_text("kept")
    assert names(tmp_path) == ["a"] and names(tmp_path / "a") == ["theirs"]
    with pytest.raises(OutputError, match="another process has made it"), atomic_directory(tmp_path / "b"):
        (tmp_path / "b").write_text("a file")
    assert (tmp_path / "b").read_text() == "a file"


@pytest.mark.parametrize("before", [(), ("old",)], ids=["empty", "full"])
def test_a_folder_that_changes_meanwhile_is_not_replaced(tmp_path: Path, before: tuple[str, ...]) -> None:
    (tmp_path / "a").mkdir()
    for name in before:
        (tmp_path / "a" / name).touch()
    with (
        pytest.raises(OutputError, match="another process has changed it"),
        atomic_directory(tmp_path / "a", replace=True) as temporary,
    ):
        (temporary / "mine").touch()
        (tmp_path / "a" / "theirs").touch()
    assert names(tmp_path / "a") == [*before, "theirs"] and names(tmp_path) == ["a"]


def test_a_second_writer_of_a_folder_is_refused_and_learns_who_writes(tmp_path: Path) -> None:
    process = writer("folder", tmp_path / "a")
    message = rf"cannot write .*a: process {process.pid} on .*, since .* UTC, is writing it"
    with pytest.raises(OutputError, match=message), atomic_directory(tmp_path / "a"):
        pass
    process.communicate("go on\n")
    assert process.returncode == 0 and names(tmp_path) == ["a"] and names(tmp_path / "a") == ["part"]


def test_of_two_writers_of_a_file_each_writes_all_of_it(tmp_path: Path) -> None:
    process = writer("file", tmp_path / "a")
    atomic_write_bytes(tmp_path / "a", b"whole")
    assert len(names(tmp_path)) == 2, "the other's unfinished file is left alone"
    process.communicate("go on\n")
    assert (tmp_path / "a").read_bytes() == b"half" and names(tmp_path) == ["a"]


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_what_a_killed_writer_left_is_named_and_removed(
    tmp_path: Path, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    kill(writer(kind, tmp_path / "a"))
    (left,) = names(tmp_path)
    with caplog.at_level(logging.WARNING):
        if kind == "file":
            atomic_write_bytes(tmp_path / "a", b"whole")
        else:
            with atomic_directory(tmp_path / "a") as temporary:
                (temporary / "whole").touch()
    assert names(tmp_path) == ["a"]
    assert caplog.messages == [f"removed {tmp_path / left}, which a killed process left behind"]


def test_a_folder_that_was_being_replaced_comes_back(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "a"
    path.mkdir()
    (path / "old").touch()
    kill(writer("replace", path))
    (left,) = (each for each in names(tmp_path) if each != "a")
    os.rename(path, tmp_path / left / "old")  # as if it had been killed between its two renames
    with pytest.raises(KeyError), atomic_directory(path, replace=True):
        assert names(path) == ["old"]
        raise KeyError
    assert names(tmp_path) == ["a"] and names(path) == ["old"] and "is back" in caplog.text


def test_folders_that_only_look_like_ours_are_left_alone(tmp_path: Path) -> None:
    for name in (".a.0123abcd.partial", ".a.x.partial", ".a.0123abcd.partial.b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "letter").touch()
    (tmp_path / ".a.1123abcd.partial").mkdir()
    (tmp_path / ".a.1123abcd.partial" / "lock").write_text("somebody else's")
    before = names(tmp_path)
    atomic_write_bytes(tmp_path / "a", b"")
    assert names(tmp_path) == sorted(["a", *before])


def test_errors_name_the_file_that_was_asked_for(tmp_path: Path) -> None:
    with pytest.raises(FormatError) as caught, atomic_directory(tmp_path / "a") as temporary:
        raise FormatError(f"cannot read {temporary / 'config.json'}")
    assert str(caught.value) == f"cannot read {tmp_path / 'a' / 'config.json'}"
    with (
        pytest.raises(OutputError, match=rf"cannot write {tmp_path}/a: File too large"),
        atomic_file(tmp_path / "a") as outer,
        atomic_file(outer) as inner,
    ):
        inner.touch()
        raise OSError(errno.EFBIG, "File too large")
    assert names(tmp_path) == []


def test_long_names(tmp_path: Path) -> None:
    for name in ("x" * 255, "é" * 127):
        atomic_write_bytes(tmp_path / name, b"1")
        with atomic_directory(tmp_path / name[:-1]) as temporary:
            (temporary / "a").touch()
    assert len(names(tmp_path)) == 4
    with pytest.raises(OutputError, match="File name too long"):
        atomic_write_bytes(tmp_path / ("x" * 256), b"1")


def test_paths_without_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for path in (Path(), Path(".."), Path("/")):
        with pytest.raises(OutputError, match="exists already"), atomic_directory(path):
            pass
        with pytest.raises(OutputError):
            atomic_write_bytes(path, b"")
    assert names(tmp_path) == []


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    check_parent(tmp_path / "a")
    with pytest.raises(OutputError, match=r"cannot write .*modles/a.gguf: there is no folder .*modles; make it"):
        check_parent(tmp_path / "modles" / "a.gguf")

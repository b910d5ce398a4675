"""Files and folders are written completely or not at all."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from llamita.atomic import atomic_directory, atomic_file, atomic_write_bytes
from llamita.errors import OutputError


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

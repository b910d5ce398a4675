"""Locks: held by one process, free as soon as that process is gone."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from llamita.file_lock import acquire_lock, lock_holder

HOLD = """
import sys, time
from pathlib import Path
from llamita.file_lock import acquire_lock
lock = acquire_lock(Path(sys.argv[1]))
print("held" if lock else "refused", flush=True)
time.sleep(60 if len(sys.argv) < 3 else 0)
"""


def holder(path: Path) -> subprocess.Popen[str]:
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    return process


def test_one_process_holds_it_and_a_killed_one_does_not(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    process = holder(path)
    assert acquire_lock(path) is None
    assert f"process {process.pid} on " in lock_holder(path) and " UTC," in lock_holder(path)
    process.kill()
    process.wait()
    assert path.exists(), "nobody removed it"
    lock = acquire_lock(path)
    assert lock is not None and f"process {os.getpid()} on " in lock_holder(path)
    assert acquire_lock(path) is None, "not twice in one process either"
    lock.release()
    lock.release()
    assert not path.exists() and acquire_lock(path) is not None


def test_foreign_content_of_a_lock_is_not_repeated(tmp_path: Path) -> None:
    for content in (b"", b"\xff" * 1000, b"llamita\n", b"llamita\n1\n2", b"else\n1\n2\n3\n"):
        (tmp_path / "lock").write_bytes(content)
        assert lock_holder(tmp_path / "lock") == "another process"
        lock = acquire_lock(tmp_path / "lock")
        assert lock is not None, "a file alone does not hold the lock"
        lock.release()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
def test_a_forked_child_does_not_keep_the_lock(tmp_path: Path) -> None:
    code = """
import os, sys, time
from pathlib import Path
from llamita.file_lock import acquire_lock
lock = acquire_lock(Path(sys.argv[1]))
if os.fork() == 0:
    time.sleep(60)
    os._exit(0)
print("forked", flush=True)
os._exit(0)
"""
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / "lock")], stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        assert process.stdout is not None and process.stdout.readline() == "forked\n"
        process.wait()
        deadline = time.monotonic() + 30  # the child sleeps longer; on a busy machine it has not begun yet
        while acquire_lock(tmp_path / "lock") is None:
            assert time.monotonic() < deadline
            time.sleep(0.01)
    finally:
        os.killpg(process.pid, 9)

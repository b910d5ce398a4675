"""Runs a command again and again, each time killed before another change of the file system.

    python kill_everywhere.py MAX_KILLS FOLDER RESULT WORDS...

The command (WORDS of `llamita`) writes FOLDER/RESULT. Each try starts from a copy of FOLDER. After
a kill the disk also loses its power: a file that was not synced since its last write is cut to half
its size. Then everything under a final name must be whole, and a second run must succeed and remove
what the first one left. Prints the number of kills; exits with 1 and a reason if something is wrong.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
from pathlib import Path
from typing import Any

CHANGES = ("os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.symlink", "os.truncate", "shutil.rmtree")
VOLATILE = ("run.json", "summary.json", "report.html", "store.json", "state.json", "metrics.jsonl", "README.md")


def whole_files(result: Path) -> dict[str, bytes]:
    """The files under a final name that must be the same in every run."""
    if result.is_file():
        return {"": result.read_bytes()}
    found = {}
    for place, folders, names in os.walk(result):
        folders[:] = [name for name in folders if not name.endswith(".partial")]
        for name in names:
            path = Path(place, name)
            if name not in VOLATILE and not name.endswith(".lock"):
                found[str(path.relative_to(result))] = path.read_bytes()
    return found


def child(words: list[str], folder: Path, kill_at: int, record: Path) -> int:
    """Run the command; before change number kill_at, note what was synced and die."""
    synced: dict[str, tuple[int, int]] = {}
    fsync, seen = os.fsync, [0]

    def note(descriptor: int) -> None:
        fsync(descriptor)
        status = os.fstat(descriptor)
        synced[str(status.st_ino)] = (status.st_size, status.st_mtime_ns)

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        writes = event == "open" and isinstance(arguments[1], str) and set(arguments[1]) & set("wax+")
        if not (event in CHANGES or writes) or str(folder) not in os.path.abspath(str(arguments[0])):
            return
        seen[0] += 1
        if seen[0] == kill_at:
            seen[0] += 1 << 40
            with open("/dev/null", "w"):
                pass
            descriptor = os.open(record, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.write(descriptor, json.dumps(synced).encode())
            os.kill(os.getpid(), signal.SIGKILL)

    os.fsync = note
    sys.addaudithook(watch)
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    errors = os.open(record.with_suffix(".err"), os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(errors, 2)
    from llamita.cli import main

    return main(words)


def run(words: list[str], folder: Path, kill_at: int, record: Path) -> int:
    """The exit code, or -9."""
    record.unlink(missing_ok=True)
    process = os.fork()
    if process == 0:
        code = 1
        try:
            os.chdir(folder)
            signal.alarm(60)
            code = child(words, folder, kill_at, record)
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def lose_power(folder: Path, record: Path, before: set[int]) -> list[str]:
    """Cut the files that were not synced; returns those under a final name."""
    synced, lost = json.loads(record.read_text()), []
    for place, _, names in os.walk(folder):
        for name in names:
            path = Path(place, name)
            status = path.lstat()
            if path.is_symlink() or status.st_ino in before or not status.st_size:
                continue
            if synced.get(str(status.st_ino)) != [status.st_size, status.st_mtime_ns]:
                os.truncate(path, status.st_size // 2)
                hidden = any(part.endswith(".partial") for part in path.parts)
                if not hidden and name not in ("metrics.jsonl", "run.lock"):
                    lost.append(str(path.relative_to(folder)))
    return lost


def main() -> str:
    """What is wrong, or the number of kills."""
    max_kills, original, name, words = int(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], sys.argv[4:]
    import llamita.cli.export
    import llamita.cli.finetune
    import llamita.cli.prepare
    import llamita.convert.import_model
    import llamita.data.prepare
    import llamita.finetune.run
    import llamita.training.pretraining  # noqa: F401

    work = original.with_name(f"{original.name}-work")
    record = original.with_name(f"{original.name}-record")
    expected: dict[str, bytes] = {}
    kills = 0
    for kill_at in range(max_kills + 1):
        shutil.rmtree(work, ignore_errors=True)
        shutil.copytree(original, work, symlinks=True)
        before = {path.lstat().st_ino for path in work.rglob("*")}
        code = run(words, work, kill_at, record)
        where = f"killed before change {kill_at}"
        if code == 0:
            if kill_at:
                return str(kills)
            expected = whole_files(work / name)
            continue
        if code != -9:
            return f"failed with {code}, {where}: {record.with_suffix('.err').read_text()[-500:]}"
        kills += 1
        if lost := lose_power(work, record, before):
            return f"not synced, {where}: {', '.join(lost)}"
        found = whole_files(work / name) if (work / name).exists() else {}
        is_run = words[0] in ("train", "finetune")
        if found and found != expected and not is_run:
            return f"half of the result, {where}: {sorted(found)} of {sorted(expected)}"
        again = [*words, "--resume"] if is_run and (work / name / "run.json").exists() else words
        if found and (work / name).is_dir() and words[0] in ("import", "merge", "export"):
            continue  # finished: a second run is refused
        if run(again, work, 0, record) != 0:
            return f"the second run failed, {where}: {record.with_suffix('.err').read_text()[-500:]}"
        if whole_files(work / name) != expected:
            return f"another result after {where}"
        if left := [str(path.relative_to(work)) for path in work.rglob(".*")]:
            return f"left over after {where}: {left}"
    return str(kills)


if __name__ == "__main__":
    print(outcome := main())
    sys.exit(0 if outcome.isdigit() else 1)

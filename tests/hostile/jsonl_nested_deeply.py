"""A line of JSON with 100,000 brackets: no recursion without a limit."""

from pathlib import Path

COMMAND = ("prepare", "PATH", "--out", "OUT")
EXPECTED = r"a.jsonl:2"


def write(folder: Path) -> Path:
    path = folder / "a.jsonl"
    path.write_text('{"text": "a"}\n' + "[" * 100_000 + "\n")
    return path

"""A text in UTF-16, as Windows programs write it."""

from pathlib import Path

COMMAND = ("prepare", "PATH", "--out", "OUT")
EXPECTED = "UTF-16|UTF-8"


def write(folder: Path) -> Path:
    path = folder / "a.jsonl"
    path.write_bytes('{"text": "a"}\n'.encode("utf-16"))
    return path

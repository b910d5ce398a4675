"""A text in a one-byte encoding, which looks like many others: it is not guessed."""

from pathlib import Path

COMMAND = ("prepare", "PATH", "--out", "OUT")
EXPECTED = "--encoding"


def write(folder: Path) -> Path:
    path = folder / "a.jsonl"
    path.write_bytes('{"text": "Le café est très fort, à côté de la forêt."}\n'.encode("latin-1") * 3)
    return path

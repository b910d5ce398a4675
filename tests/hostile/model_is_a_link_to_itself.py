"""A symbolic link that points to itself."""

from pathlib import Path

COMMAND = ("run", "PATH", "--prompt", "a")
EXPECTED = "model.gguf"


def write(folder: Path) -> Path:
    path = folder / "model.gguf"
    path.symlink_to(path)
    return path

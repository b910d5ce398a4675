"""A pipe without a writer: opening it must not wait."""

import os
from pathlib import Path

COMMAND = ("run", "PATH", "--prompt", "a")
EXPECTED = "expected a regular file, found a device or a pipe"


def write(folder: Path) -> Path:
    path = folder / "model.gguf"
    os.mkfifo(path)
    return path

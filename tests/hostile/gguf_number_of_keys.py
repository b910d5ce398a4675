"""A GGUF that announces 2^64 - 1 keys, more than it could hold."""

import struct
from pathlib import Path

COMMAND = ("run", "PATH", "--prompt", "a")
EXPECTED = "expected at most 65536, found 18446744073709551615"


def write(folder: Path) -> Path:
    path = folder / "model.gguf"
    path.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 0, 2**64 - 1) + bytes(100))
    return path

"""A GGUF tensor whose dimensions multiply to more than 64 bits."""

import struct
from pathlib import Path

COMMAND = ("inspect", "PATH")
EXPECTED = "tensor t: |dimensions of t: "


def write(folder: Path) -> Path:
    path = folder / "model.gguf"
    tensor = struct.pack("<Q", 1) + b"t" + struct.pack("<I2QIQ", 2, 2**40, 2**40, 0, 0)
    path.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 1, 0) + tensor + bytes(64))
    return path

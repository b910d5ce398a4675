"""A GGUF with an array of 2^24 strings in a hundred bytes."""

import struct
from pathlib import Path

COMMAND = ("run", "PATH", "--prompt", "a")
EXPECTED = "tokenizer.ggml.tokens: (expected|string)"


def write(folder: Path) -> Path:
    name = b"tokenizer.ggml.tokens"
    path = folder / "model.gguf"
    header = b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + struct.pack("<Q", len(name)) + name
    path.write_bytes(header + struct.pack("<IIQ", 9, 8, 1 << 24) + bytes(100))
    return path

"""A llama2.c header of sizes whose product needs more than 64 bits."""

import struct
from pathlib import Path

COMMAND = ("run", "PATH", "--prompt", "a")
EXPECTED = (
    "expected the 18446744073709551615 bytes that the header implies|expected a divisor of the 18446744073709551615"
)


def write(folder: Path) -> Path:
    path = folder / "model.bin"
    sizes = (0x7FC00000, 46, 2, 4, 20, 8, 16)
    path.write_bytes(struct.pack("<Ii7iBi", 0x616B3432, 2, *sizes, 0, 8192).ljust(256, b"\0"))
    return path

"""A safetensors header of 60,000 names, the last one twice: finding it must not take 60,000^2 steps."""

import json
import struct
from pathlib import Path

COMMAND = ("inspect", "PATH")
EXPECTED = "twice"


def write(folder: Path) -> Path:
    entry = json.dumps({"dtype": "F32", "shape": [0], "data_offsets": [0, 0]})
    header = ",".join(f'"t{number}": {entry}' for number in (*range(60_000), 59_999)).encode()
    path = folder / "model.safetensors"
    path.write_bytes(struct.pack("<Q", len(header) + 2) + b"{" + header + b"}")
    return path

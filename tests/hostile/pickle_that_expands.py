"""A PyTorch checkpoint in a compressed zip file: 64 kilobytes on disk, 64 megabytes in memory."""

import zipfile
from pathlib import Path

COMMAND = ("import", "PATH", "--out", "OUT", "--verify", "no")
EXPECTED = "found a compressed zip file"


def write(folder: Path) -> Path:
    path = folder / "model.pt"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as container:
        container.writestr("archive/data.pkl", bytes(1 << 26))
    return path

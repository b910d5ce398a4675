"""A clone without Git LFS has a text of three lines in place of the weights."""

from pathlib import Path

COMMAND = ("run", "PATH", "--prompt", "a")
EXPECTED = "Git LFS pointer; fetch the file with: git lfs pull"


def write(folder: Path) -> Path:
    path = folder / "model.gguf"
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0123456789abcdef\nsize 4661211808\n")
    return path

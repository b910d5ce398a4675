"""A CSV whose last field opens a quote that nothing closes."""

from pathlib import Path

COMMAND = ("prepare", "PATH", "--out", "OUT")
EXPECTED = r"a.csv"


def write(folder: Path) -> Path:
    path = folder / "a.csv"
    path.write_text('text\nfine\n"' + "never\n" * 1000)
    return path

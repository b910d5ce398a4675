"""A parquet column of strings with bytes that are not UTF-8, which pyarrow does not check."""

from pathlib import Path

import pyarrow
import pyarrow.parquet

COMMAND = ("prepare", "PATH", "--out", "OUT")
EXPECTED = r"a.parquet"


def write(folder: Path) -> Path:
    path = folder / "a.parquet"
    texts = pyarrow.array([b"fine", b"\xb3\xff"], pyarrow.binary()).view(pyarrow.string())
    pyarrow.parquet.write_table(pyarrow.table({"text": texts}), path)
    return path

"""Reads rows, with file and line, from files of examples (.jsonl, .json, .csv, .parquet)."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from llamita.data.readers import SourceFile, json_name, read_lines
from llamita.errors import SourceError

SUFFIXES = (".jsonl", ".json", ".csv", ".parquet")


class Row(NamedTuple):
    """where: FILE:LINE of a .jsonl or .csv, FILE: item N of a .json, FILE: row N of a .parquet."""

    where: str
    values: dict[str, Any]


def list_keys(values: Mapping[str, Any]) -> str:
    """The first keys of a row, for error messages."""
    return ", ".join(map(repr, list(values)[:12])) or "nothing"


def read_files(data: Path | Sequence[Path], what: str) -> Iterator[Row]:
    """Every row in files or folders, in order. Raises SourceError, also if there is none at all.

    what: the plural of what the rows hold, for the error message.
    """
    paths = [data] if isinstance(data, (str, Path)) else list(data)
    found = 0
    for path in paths:
        for file in list_example_files(Path(path)):
            for row in read_rows(file):
                found += 1
                yield row
    if not found:
        raise SourceError(f"no {what} in {', '.join(map(str, paths))}: the files are empty; add some")


def read_rows(path: Path) -> Iterator[Row]:
    """Every row in a file, in order. Raises SourceError naming file and line."""
    path = Path(path)
    readers = {".jsonl": _read_jsonl, ".json": _read_json, ".csv": _read_csv, ".parquet": _read_parquet}
    reader = readers.get(path.suffix.lower())
    if not path.exists():
        raise SourceError(f"cannot read {path}: no such file or folder")
    if reader is None:
        kind = path.suffix or "no suffix"
        raise SourceError(
            f"cannot read {path}: unknown file type ({kind}); expected {', '.join(SUFFIXES)}, .txt or .md"
        )
    if not path.is_file():
        raise SourceError(f"cannot read {path}: " + ("not a regular file" if path.exists() else "no such file"))
    return reader(path)


def list_example_files(path: Path) -> list[Path]:
    """The file itself, or the files with SUFFIXES in a folder, sorted by name. Raises SourceError
    if none."""
    path = Path(path)
    if not path.is_dir():
        return [path]
    try:
        found = sorted(
            each for each in path.iterdir() if each.suffix.lower() in SUFFIXES and not each.name.startswith(".")
        )
    except OSError as error:
        raise SourceError(f"cannot read folder {path}: {error.strerror or error}") from None
    if not found:
        raise SourceError(f"no examples in folder {path}: expected files with the suffix {', '.join(SUFFIXES)}")
    return found


def _lines_of(path: Path) -> Iterator[str]:
    try:
        status = path.stat()
    except OSError as error:
        raise SourceError(f"cannot read {path}: {error.strerror or error}") from None
    return read_lines(SourceFile(path, path.name, status.st_size, status.st_mtime_ns))


def _parse(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        line = f"line {error.lineno}, " if "\n" in text else ""
        raise SourceError(f"cannot read {where}: broken JSON at {line}column {error.colno}: {error.msg}") from None
    except (RecursionError, ValueError) as error:
        raise SourceError(f"cannot read {where}: broken JSON: {error}") from None


def _object(value: Any, where: str) -> Row:
    if not isinstance(value, dict):
        raise SourceError(f"cannot read {where}: expected a JSON object, found {json_name(value)}")
    return Row(where, value)


def _read_jsonl(path: Path) -> Iterator[Row]:
    for number, line in enumerate(_lines_of(path), start=1):
        if line.strip():
            where = f"{path}:{number}"
            yield _object(_parse(line.rstrip("\r\n"), where), where)


def _read_json(path: Path) -> Iterator[Row]:
    """An array of objects, the form of Alpaca's and LLaMA-Factory's files."""
    content = _parse("".join(_lines_of(path)), str(path))
    if not isinstance(content, list):
        raise SourceError(
            f"cannot read {path}: expected a JSON array of examples, found {json_name(content)}; name a file with "
            "one object per line .jsonl"
        )
    for number, value in enumerate(content, start=1):
        yield _object(value, f"{path}: item {number}")


def _read_csv(path: Path) -> Iterator[Row]:
    csv.field_size_limit(2**31 - 1)
    reader = csv.reader(_lines_of(path), strict=True)
    try:
        columns = next(reader, None)
        if not columns:
            raise SourceError(f"cannot read {path}: it is empty; expected a header line with column names")
        if len(set(columns)) != len(columns):
            raise SourceError(f"cannot read {path}:1: two columns have the same name: {', '.join(columns)[:200]}")
        start = reader.line_num + 1
        for cells in reader:
            where, start = f"{path}:{start}", reader.line_num + 1
            if not cells:
                continue
            if len(cells) != len(columns):
                raise SourceError(f"cannot read {where}: expected {len(columns)} columns, found {len(cells)}")
            yield Row(where, dict(zip(columns, cells, strict=True)))
    except csv.Error as error:
        raise SourceError(f"cannot read {path}:{reader.line_num}: broken CSV: {error}") from None


def _read_parquet(path: Path) -> Iterator[Row]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise SourceError(f"cannot read {path}: parquet needs pyarrow: pip install 'llamita[train]'") from None
    try:
        with pyarrow.parquet.ParquetFile(path) as table:  # type: ignore[no-untyped-call]
            number = 0
            for batch in table.iter_batches(batch_size=1024):
                for values in batch.to_pylist():
                    number += 1
                    yield Row(f"{path}: row {number}", values)
    except (pyarrow.lib.ArrowException, OSError) as error:
        message = " ".join(str(error).split())[:200]
        raise SourceError(f"cannot read {path}: not a whole parquet file: {message}") from None

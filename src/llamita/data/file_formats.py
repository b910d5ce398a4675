"""The file formats that llamita reads, and the rows of those that hold records.

To add a format, add its suffix to TEXT_SUFFIXES, or its suffix and reader to ROW_READERS.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from llamita.data.utf8_files import read_lines
from llamita.errors import SourceError


class Row(NamedTuple):
    """where: FILE:LINE in .jsonl and .csv, FILE: item N in .json, FILE: row N in .parquet."""

    where: str
    values: dict[str, Any]
    number: int = 0  # the line, item or row, from 1


def read_rows(path: Path, key: str | None = None) -> Iterator[Row]:
    """Every row in a file, in order. Raises SourceError, which names file and line.

    key: every row must have it; other keys may be missing from `values`.
    """
    path = Path(path)
    reader = ROW_READERS.get(find_suffix(path) or "")
    if not path.exists():
        raise SourceError(f"cannot read {path}: no such file or folder")
    if reader is None:
        raise unknown_type(path, ROW_READERS)
    if not path.is_file():
        raise SourceError(f"cannot read {path}: not a regular file")
    return reader(path, key)


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


def list_example_files(path: Path) -> list[Path]:
    """The file itself, or the files of rows in a folder, by name. Raises SourceError if none."""
    path = Path(path)
    if not path.is_dir():
        return [path]
    try:
        found = sorted(
            each for each in path.iterdir() if find_suffix(each) in ROW_READERS and not each.name.startswith(".")
        )
    except OSError as error:
        raise SourceError(f"cannot read folder {path}: {error.strerror or error}") from None
    if not found:
        raise SourceError(f"no examples in folder {path}: expected files with the suffix {list_suffixes(ROW_READERS)}")
    return found


def list_keys(values: Mapping[str, Any]) -> str:
    """The first keys of a row, for error messages."""
    return ", ".join(map(repr, list(values)[:12])) or "nothing"


def json_name(value: Any) -> str:
    """What kind of JSON a value is, for error messages."""
    names = {list: "an array", dict: "an object", str: "a string", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number" if isinstance(value, (int, float)) else type(value).__name__)


# ---- the readers


def _read_jsonl(path: Path, key: str | None) -> Iterator[Row]:
    for number, line in enumerate(read_lines(path), start=1):
        if line.strip():
            where = f"{path}:{number}"
            yield _object(_parse(line.rstrip("\r\n"), where), where, number, key)


def _read_json(path: Path, key: str | None) -> Iterator[Row]:
    """An array of objects, as in Alpaca's and LLaMA-Factory's files. It is read as a whole."""
    content = _parse("".join(read_lines(path)), str(path))
    if not isinstance(content, list):
        raise SourceError(
            f"cannot read {path}: expected a JSON array of objects, found {json_name(content)}; name a file with "
            "one object per line .jsonl"
        )
    for number, value in enumerate(content, start=1):
        yield _object(value, f"{path}: item {number}", number, key)


def _read_csv(path: Path, key: str | None) -> Iterator[Row]:
    csv.field_size_limit(2**31 - 1)
    reader = csv.reader(read_lines(path), strict=True)
    try:
        columns = next(reader, None)
        if not columns:
            raise SourceError(f"cannot read {path}: it is empty; expected a header line with column names")
        if key is not None:
            _check_has_key(columns, key, f"{path}:1")
        elif len(set(columns)) != len(columns):
            raise SourceError(f"cannot read {path}:1: two columns have the same name: {', '.join(columns)[:200]}")
        chosen = range(len(columns)) if key is None else [columns.index(key)]
        start = reader.line_num + 1
        for cells in reader:
            number, start = start, reader.line_num + 1
            where = f"{path}:{number}"
            if not cells:
                continue
            if len(cells) != len(columns):
                raise SourceError(f"cannot read {where}: expected {len(columns)} columns, found {len(cells)}")
            yield Row(where, {columns[i]: cells[i] for i in chosen}, number)
    except csv.Error as error:
        raise SourceError(f"cannot read {path}:{reader.line_num}: broken CSV: {error}") from None


def _read_parquet(path: Path, key: str | None) -> Iterator[Row]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise SourceError(f"cannot read {path}: parquet needs pyarrow: pip install 'llamita[train]'") from None
    try:
        with pyarrow.parquet.ParquetFile(path) as table:  # type: ignore[no-untyped-call]
            if key is not None:
                _check_has_key(table.schema_arrow.names, key, str(path))
            number = 0
            for batch in table.iter_batches(batch_size=1024, columns=None if key is None else [key]):
                for values in batch.to_pylist():
                    number += 1
                    yield Row(f"{path}: row {number}", values, number)
    except (pyarrow.lib.ArrowException, OSError) as error:
        message = " ".join(str(error).split())[:200]
        raise SourceError(f"cannot read {path}: not a complete parquet file: {message}") from None


def _parse(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        line = f"line {error.lineno}, " if "\n" in text else ""
        raise SourceError(f"cannot read {where}: broken JSON at {line}column {error.colno}: {error.msg}") from None
    except (RecursionError, ValueError) as error:
        raise SourceError(f"cannot read {where}: broken JSON: {error}") from None


def _object(value: Any, where: str, number: int, key: str | None) -> Row:
    if not isinstance(value, dict):
        raise SourceError(f"cannot read {where}: expected a JSON object, found {json_name(value)}")
    if key is not None:
        _check_has_key(value, key, where)
    return Row(where, value, number)


def _check_has_key(names: Collection[str], key: str, where: str) -> None:
    if key not in names:
        found = ", ".join(list(names)[:20]) or "nothing"
        raise SourceError(f"cannot read {where}: expected {key!r}, found {found}; choose one with --text-key")


# ---- the formats

TEXT_SUFFIXES = (".txt", ".md")  # text, which llamita.data.documents cuts into documents
ROW_READERS: dict[str, Callable[[Path, str | None], Iterator[Row]]] = {
    ".jsonl": _read_jsonl,
    ".json": _read_json,
    ".csv": _read_csv,
    ".parquet": _read_parquet,
}
SUFFIXES = (*TEXT_SUFFIXES, *ROW_READERS)


def find_suffix(path: Path) -> str | None:
    """The suffix of a known format, or None. A suffix may have several dots."""
    name = path.name.lower()
    return next((suffix for suffix in SUFFIXES if name.endswith(suffix)), None)


def list_suffixes(suffixes: Iterable[str]) -> str:
    *first, last = suffixes
    return ", ".join(first) + f" or {last}"


def unknown_type(path: Path, expected: Iterable[str]) -> SourceError:
    """The error for a file that has none of the expected suffixes."""
    found = path.suffix or "no suffix"
    return SourceError(f"cannot read {path}: unknown file type ({found}); expected {list_suffixes(expected)}")

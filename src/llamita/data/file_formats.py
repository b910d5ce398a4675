"""The file formats that llamita reads, and the rows of those that hold records.

To add a format, add its suffix to TEXT_SUFFIXES, or its suffix and reader to ROW_READERS; a format
of documents has a reader in `llamita.data.readers`.
"""

from __future__ import annotations

import csv
import itertools
import json
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeVar

from llamita.data.document_files import DOCUMENT_SUFFIXES
from llamita.data.utf8_files import GZIP_SUFFIX, Conversions, is_gzipped, read_lines, split_lines
from llamita.errors import LlamitaError, SourceError


class Row(NamedTuple):
    """where: FILE:LINE in .jsonl, .csv and .tsv, FILE: item N in .json, FILE: row N in .parquet."""

    where: str
    values: dict[str, Any]
    number: int = 0  # the line, item or row, from 1


class BadRows:
    """Counts rows that cannot be used. Up to `limit` of them are skipped, the next one is the
    error. conversions: how their files are encoded. half_width: see `to_half_width`."""

    def __init__(self, limit: int = 0, conversions: Conversions | None = None, *, half_width: bool = False) -> None:
        self.limit = limit
        self.half_width = half_width
        self.conversions = conversions or Conversions()
        self.skipped: list[str] = []

    def skip(self, error: LlamitaError) -> None:
        """Keep what is wrong with a row. Raises `error`, or a SourceError if the limit is exceeded."""
        if not self.limit:
            raise error
        if len(self.skipped) == self.limit:
            raise SourceError(f"{error} (--skip-bad-rows: {self.limit:,} were skipped before it)") from None
        self.skipped.append(str(error))


def read_rows(path: Path, key: str | None = None, bad: BadRows | None = None) -> Iterator[Row]:
    """Every row in a file, in order. Raises SourceError, which names file and line.

    key: every row must have it; other keys may be missing from `values`. Without a key, a row may
    also be an array of objects, which is then under "messages". bad: takes rows that cannot be
    read, in formats in which the next one can be.
    """
    path = Path(path)
    reader = ROW_READERS.get(find_suffix(path) or "")
    if not path.exists():
        raise SourceError(f"cannot read {path}: no such file or folder")
    if reader is None:
        raise unknown_type(path, ROW_READERS)
    if not path.is_file():
        raise SourceError(f"cannot read {path}: not a regular file")
    return reader(path, key, bad or BadRows())


T = TypeVar("T")


def read_files(
    data: Path | Sequence[Path], what: str, read: Callable[[Row], T], bad: BadRows | None = None
) -> Iterator[T]:
    """What `read` makes of every row in files or folders, in order. Raises SourceError, also if
    there is none at all.

    what: the plural of what the rows hold, for the error message. bad: takes rows that cannot be
    used.
    """
    paths = [data] if isinstance(data, (str, Path)) else list(data)
    bad = bad or BadRows()
    is_empty, before = True, len(bad.skipped)
    for path in paths:
        files, others = list_example_files(Path(path))
        bad.conversions.not_read += map(str, others)
        for file in files:
            for row in read_rows(file, bad=bad):
                try:
                    made = read(row._replace(values=to_half_width(row.values)) if bad.half_width else row)
                except SourceError as error:
                    bad.skip(error)
                    continue
                is_empty = False
                yield made
    if is_empty:
        skipped = bad.skipped[before:]
        why = f"{len(skipped):,} bad rows were skipped, the first: {skipped[0]}" if skipped else "the files are empty"
        raise SourceError(f"no {what} in {', '.join(map(str, paths))}: {why}; add some")


_CHINESE_MARKS = "！（），：；？～"  # of Chinese and Japanese sentences: their usual form
_HALF_WIDTH = {code: code - 0xFEE0 for code in range(0xFF01, 0xFF5F) if chr(code) not in _CHINESE_MARKS}


def to_half_width(value: Any) -> Any:
    """The value with the full-width letters, digits and signs in its texts (U+FF01 to U+FF5E, without
    the marks of Chinese sentences: ，？！) as ASCII. Keys stay."""
    if isinstance(value, str):
        return value.translate(_HALF_WIDTH)
    if isinstance(value, list):
        return [to_half_width(each) for each in value]
    return {key: to_half_width(each) for key, each in value.items()} if isinstance(value, dict) else value


def list_example_files(path: Path) -> tuple[list[Path], list[Path]]:
    """The file itself, or the files of rows in a folder, by name; and what else is in the folder. Raises
    SourceError if there are none."""
    if not path.is_dir():
        return [path], []
    try:
        entries = sorted(each for each in path.iterdir() if not each.name.startswith("."))
    except OSError as error:
        raise SourceError(f"cannot read folder {path}: {error.strerror or error}") from None
    found = [each for each in entries if find_suffix(each) in ROW_READERS]
    if not found:
        raise SourceError(
            f"no examples in folder {path}: expected files with the suffix {list_suffixes(ROW_READERS)}, not in "
            "folders inside it"
        )
    return found, [each for each in entries if each not in found]


def row_text(row: Row, text_key: str) -> bytes:
    """The UTF-8 text of a row; empty for null. Raises SourceError."""
    text = row.values[text_key]
    if text is not None and not isinstance(text, str):
        raise SourceError(f"cannot read {row.where}: {text_key!r}: expected text, found {json_name(text)}")
    try:
        return (text or "").encode("utf-8")
    except UnicodeEncodeError:
        raise SourceError(
            f"cannot read {row.where}: the text has half of a UTF-16 surrogate pair (\\ud800 to \\udfff), "
            "which is not a character"
        ) from None


def list_keys(values: Mapping[str, Any]) -> str:
    """The first keys of a row, for error messages."""
    return ", ".join(map(repr, list(values)[:12])) or "nothing"


def json_name(value: Any) -> str:
    """What kind of JSON a value is, for error messages."""
    names = {list: "an array", dict: "an object", str: "a string", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number" if isinstance(value, (int, float)) else type(value).__name__)


# ---- the readers


def packed_suffix(name: str) -> str | None:
    """The suffix of a file in an archive whose rows `packed_rows` reads, or None."""
    return next((suffix for suffix in _LINE_READERS if name.lower().endswith(suffix)), None)


def packed_rows(text: str, name: str, key: str) -> Iterator[Row]:
    """The rows of a file in an archive, from its text. Raises SourceError."""
    lines = split_lines(text.encode("utf-8", "replace"))
    return _LINE_READERS[packed_suffix(name) or ""](iter(lines), Path(name), key, BadRows())


def _read_lines(path: Path, key: str | None, bad: BadRows) -> Iterator[Row]:
    return _LINE_READERS[find_suffix(path) or ""](read_lines(path, bad.conversions), path, key, bad)


def _jsonl_rows(lines: Iterable[str], path: Path, key: str | None, bad: BadRows) -> Iterator[Row]:
    found = 0
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        where = f"{path}:{number}"
        found += 1
        try:
            if found == 1 and line.strip() in ("[", "{"):
                raise SourceError(
                    f"cannot read {where}: expected one JSON object per line, found one over several lines; name the "
                    "file .json"
                )
            row = _object(_parse(line.rstrip("\r\n"), where, key), where, number, key)
        except SourceError as error:
            bad.skip(error)
            continue
        yield row


def _json_rows(lines: Iterable[str], path: Path, key: str | None, bad: BadRows) -> Iterator[Row]:
    """An array of objects, as in Alpaca's and LLaMA-Factory's files, or JSON lines under this name.
    It is read as a whole."""
    text = "".join(lines)
    try:
        content = json.loads(text, object_pairs_hook=names_once(key))
    except json.JSONDecodeError as error:
        first = text[: error.pos].strip()
        if error.msg == "Extra data" and "\n" not in first and "\n" in text[: error.pos].lstrip():
            yield from _jsonl_rows(text.split("\n"), path, key, bad)
            return
        content = _parse(text, str(path), key)  # for its error
    except (RecursionError, ValueError):
        content = _parse(text, str(path), key)
    if not isinstance(content, list):
        raise SourceError(
            f"cannot read {path}: expected a JSON array of objects, found {json_name(content)}; name a file with "
            "one object per line .jsonl"
        )
    for number, value in enumerate(content, start=1):
        try:
            row = _object(value, f"{path}: item {number}", number, key)
        except SourceError as error:
            bad.skip(error)
            continue
        yield row


def _csv_rows(lines: Iterator[str], path: Path, key: str | None, bad: BadRows) -> Iterator[Row]:
    """A table with a header line, of cells between commas, semicolons (spreadsheets where the comma
    is the decimal sign) or tabs."""
    csv.field_size_limit(2**31 - 1)
    first = next(lines, "")
    skipped = 0
    if first.startswith("sep=") and len(first.rstrip("\r\n")) == 5:  # Excel names the delimiter so
        delimiter, first, skipped = first[4], next(lines, ""), 1
    else:
        delimiter = _find_delimiter(first, key, is_tsv=find_suffix(path) == ".tsv")
    reader = csv.reader(itertools.chain([first], lines), strict=True, delimiter=delimiter)
    try:
        columns = next(reader, None)
        if not columns:
            raise SourceError(f"cannot read {path}: it is empty; expected a header line with column names")
        if key is not None:
            _check_has_key(columns, key, f"{path}:{skipped + 1}")
        _check_columns(columns, key, f"{path}:{skipped + 1}")
        chosen = range(len(columns)) if key is None else [columns.index(key)]
        start = skipped + reader.line_num + 1
        for cells in reader:
            number, start = start, skipped + reader.line_num + 1
            where = f"{path}:{number}"
            if not cells:
                continue
            if len(cells) != len(columns):
                bad.skip(SourceError(f"cannot read {where}: expected {len(columns)} columns, found {len(cells)}"))
                continue
            yield Row(where, {columns[i]: cells[i] for i in chosen}, number)
    except csv.Error as error:
        raise SourceError(
            f"cannot read {path}:{skipped + reader.line_num}: broken CSV (with {_DELIMITERS.get(delimiter, delimiter)} "
            f"between cells, by its header line): {error}"
        ) from None


_DELIMITERS = {",": "commas", ";": "semicolons", "\t": "tabs"}


def _find_delimiter(header: str, key: str | None, *, is_tsv: bool) -> str:
    """The delimiter that finds most columns in a header line, or the only one that finds `key`."""
    best, most = ("\t" if is_tsv else ","), 1
    for delimiter in (best, *_DELIMITERS):
        try:
            columns = next(csv.reader([header], strict=True, delimiter=delimiter), [])
        except csv.Error:
            continue
        if key is not None and key in columns:
            return delimiter
        if len(columns) > most:
            best, most = delimiter, len(columns)
    return best


def _read_parquet(path: Path, key: str | None, bad: BadRows) -> Iterator[Row]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise SourceError(f"cannot read {path}: parquet needs pyarrow: pip install 'llamita[train]'") from None
    try:
        with pyarrow.parquet.ParquetFile(path) as table:  # type: ignore[no-untyped-call]
            if key is not None:
                _check_has_key(table.schema_arrow.names, key, str(path))
            _check_columns(table.schema_arrow.names, key, str(path))
            number = 0
            for batch in table.iter_batches(batch_size=1024, columns=None if key is None else [key]):
                for values in _batch_rows(batch, path, number, bad):
                    number += 1
                    if values is not None:
                        yield Row(f"{path}: row {number}", values, number)
    except (pyarrow.lib.ArrowException, OSError, UnicodeDecodeError) as error:  # Unicode: names of columns
        message = " ".join(str(error).split())[:200]
        raise SourceError(f"cannot read {path}: not a complete parquet file: {message}") from None


def _batch_rows(batch: Any, path: Path, before: int, bad: BadRows) -> Iterator[dict[str, Any] | None]:
    """The rows of a batch; None for a bad one that is skipped."""
    try:
        rows = batch.to_pylist()
    except (ValueError, OverflowError):  # text that is not UTF-8, a date that Python does not have
        rows = None
    if rows is not None:
        yield from rows
        return
    for index in range(batch.num_rows):
        try:
            (values,) = batch.slice(index, 1).to_pylist()
        except (ValueError, OverflowError) as error:
            what = "text that is not UTF-8" if isinstance(error, UnicodeDecodeError) else str(error)[:120]
            bad.skip(SourceError(f"cannot read {path}: row {before + index + 1}: {what}; the file is damaged"))
            values = None
        yield values


def _parse(text: str, where: str, key: str | None) -> Any:
    try:
        return json.loads(text, object_pairs_hook=names_once(key))
    except _RepeatedNameError as error:
        raise SourceError(f"cannot read {where}: expected every key once, {error}; remove one") from None
    except json.JSONDecodeError as error:
        line = f"line {error.lineno}, " if "\n" in text else ""
        raise SourceError(f"cannot read {where}: broken JSON at {line}column {error.colno}: {error.msg}") from None
    except (RecursionError, ValueError) as error:
        raise SourceError(f"cannot read {where}: broken JSON: {error}") from None


class _RepeatedNameError(ValueError):
    """A key twice in one JSON object: Python would keep the last value alone."""


def names_once(key: str | None) -> Callable[[list[tuple[str, Any]]], dict[str, Any]]:
    """Makes the objects of JSON. They raise _RepeatedNameError if `key`, or without one any key, is
    there twice."""

    def make(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        values = dict(pairs)
        if len(values) < len(pairs) and (name := _repeated([name for name, _ in pairs], key)) is not None:
            raise _RepeatedNameError(f"found {name[:60]!r} twice")
        return values

    return make


def _repeated(names: Sequence[str], key: str | None) -> str | None:
    """`key`, or without one the first name, that is there twice."""
    return next((name for name in ([key] if key is not None else names) if names.count(name) > 1), None)


def _check_columns(names: Sequence[str], key: str | None, where: str) -> None:
    if _repeated(names, key) is not None:
        raise SourceError(f"cannot read {where}: two columns have the same name: {', '.join(names)[:200]}; rename one")


def _object(value: Any, where: str, number: int, key: str | None) -> Row:
    if key is None and isinstance(value, list) and value and all(isinstance(each, dict) for each in value):
        value = {"messages": value}
    if not isinstance(value, dict):
        raise SourceError(f"cannot read {where}: expected a JSON object, found {json_name(value)}")
    if key is not None:
        _check_has_key(value, key, where)
    return Row(where, value, number)


# Keys of a question and its answer in one row.
PAIR_KEYS: Final = (
    ("prompt", "completion"), ("question", "answer"), ("instruction", "output"), ("query", "response"),
    ("prompt", "response"), ("input", "output"),
)  # fmt: skip
# Keys that rows of examples have, and rows of text do not.
_EXAMPLE_KEYS = {"messages", "conversations", "chosen", "rejected", *itertools.chain(*PAIR_KEYS)}


def _check_has_key(names: Collection[str], key: str, where: str) -> None:
    if key in names:
        return
    found = ", ".join(list(names)[:20]) or "nothing"
    advice = "choose one with --text-key"
    if not _EXAMPLE_KEYS.isdisjoint(names):
        advice = "these are examples for `llamita finetune CHECKPOINT DATA --out DIR`; to read one column: --text-key"
    raise SourceError(f"cannot read {where}: expected {key!r}, found {found}; {advice}")


# ---- the formats

TEXT_SUFFIXES = (".txt", ".md")  # text, which llamita.data.documents cuts into documents
_LINE_READERS: dict[str, Callable[[Iterator[str], Path, str | None, BadRows], Iterator[Row]]] = {
    ".jsonl": _jsonl_rows,
    ".json": _json_rows,
    ".csv": _csv_rows,
    ".tsv": _csv_rows,
}
ROW_READERS: dict[str, Callable[[Path, str | None, BadRows], Iterator[Row]]] = {
    **dict.fromkeys(_LINE_READERS, _read_lines),
    ".parquet": _read_parquet,
}
PLAIN_SUFFIXES = (*TEXT_SUFFIXES, *DOCUMENT_SUFFIXES)  # what has documents, but no rows
SUFFIXES = (*TEXT_SUFFIXES, *ROW_READERS, *DOCUMENT_SUFFIXES)


def find_suffix(path: Path) -> str | None:
    """The suffix of a known format, without the .gz of a packed file, or None. A suffix may have
    several dots."""
    name = path.name.lower()
    if is_gzipped(path):
        name = name.removesuffix(GZIP_SUFFIX)
        if name.endswith(".parquet"):  # its columns are packed inside
            return None
    return next((suffix for suffix in SUFFIXES if name.endswith(suffix)), None)


def list_suffixes(suffixes: Iterable[str]) -> str:
    *first, last = suffixes
    return ", ".join(first) + f" or {last}"


def unknown_type(path: Path, expected: Iterable[str]) -> SourceError:
    """The error for a file that has none of the expected suffixes."""
    found = path.suffix or "no suffix"
    return SourceError(f"cannot read {path}: unknown file type ({found}); expected {list_suffixes(expected)}")

"""Writes and reads token stores: the ids of documents in datatrove's file format, and a store.json.

A split is a folder:
NAME.ds          little-endian uint16 (uint32 above 65,536 ids): documents one after another, each
                 ending with EOS
NAME.ds.index    little-endian uint64: the end of each document, in tokens from the start of NAME.ds
documents.index  the same over all files of the split, counted from the start of the first
documents.crc32  little-endian uint32: the CRC-32 of each document's ids, as they are on disk
documents.position  little-endian uint64: where each document stands in its source file

store.json has the size of every .ds file and the CRC-32 of both files of documents. These are
checked when a split is opened, a document each time it is read. Its "origins" name the source files
of a split in the order of their documents, how many each has, and the CRC-32 of documents.position;
stores that were made before have none. A split may have any number of .ds
files: opening it reads none of the NAME.ds.index, which are for other programs, and at most
MAX_OPEN_SHARDS files are open.
"""

from __future__ import annotations

import bisect
import functools
import hashlib
import itertools
import json
import mmap
import os
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np
import numpy.typing as npt

from llamita.commands import command_line
from llamita.data.document_origins import DocumentOrigins, Origin
from llamita.errors import StoreError
from llamita.json_file import Key, Schema, check_object, parse_json, shown

FORMAT = "llamita token store"
VERSION = 3
SplitName = Literal["train", "val"]
SPLITS: tuple[SplitName, SplitName] = ("train", "val")
SHARD_TOKENS = 1 << 27
MAX_OPEN_SHARDS = 32  # of a split; some systems allow a process no more than 256 files
MAX_MAPPED_FILES = 64  # of a split that is searched
LONG_DOCUMENT_TOKENS = 4096  # longer documents are checked once: rows take many pieces of them
_SAMPLED_DOCUMENTS = 256  # these are read when a split is opened

Ids = npt.NDArray[np.uint16] | npt.NDArray[np.uint32]


def id_type(vocab_size: int) -> np.dtype[Any]:
    """The type of the ids on disk."""
    return np.dtype("<u2") if vocab_size <= 1 << 16 else np.dtype("<u4")


def file_sha256(path: Path) -> str:
    """sha256 (hex) of a small file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _document_checksums(ids: Ids, ends: npt.NDArray[Any]) -> npt.NDArray[np.uint32]:
    """The CRC-32 of each document of ids [tokens], which end at ends [documents]."""
    data, size = ids.data.cast("B"), ids.itemsize
    bounds = itertools.pairwise(itertools.chain((0,), (ends * size).tolist()))
    return np.fromiter((zlib.crc32(data[start:end]) for start, end in bounds), np.dtype("<u4"), len(ends))


# ---- writing


class StoreWriter:
    """Writes the splits and store.json. The caller makes the folder and saves the tokenizer there."""

    def __init__(self, directory: Path, *, vocab_size: int, eos_id: int, shard_tokens: int = SHARD_TOKENS) -> None:
        self._directory = Path(directory)
        self._vocab_size = vocab_size
        self._splits = {name: _SplitWriter(self._directory / name, vocab_size, eos_id, shard_tokens) for name in SPLITS}

    def add(self, split: SplitName, ids: npt.NDArray[Any], lengths: npt.NDArray[Any], text_bytes: int) -> None:
        """Append documents: all ids [tokens], the number of tokens of each, EOS included [documents],
        and the bytes of text."""
        self._splits[split].add(ids, lengths, text_bytes)

    def link(self, split: SplitName, ds: Path, index: Path, documents: int, tokens: int, text_bytes: int) -> None:
        """Append existing files as a shard, by hard links or, if impossible, symbolic links."""
        self._splits[split].link(ds, index, documents, tokens, text_bytes)

    def add_origins(self, split: SplitName, origins: DocumentOrigins) -> None:
        """Say where the documents of a split come from: all of them, in their order, once."""
        self._splits[split].add_origins(origins)

    def num_documents(self, split: SplitName) -> int:
        """Documents added so far."""
        return self._splits[split].num_documents

    def text_bytes(self, split: SplitName) -> int:
        """Bytes of their text, as given to `add` and `link`."""
        return self._splits[split].text_bytes

    def finish(self, tokenizer: Mapping[str, Any], extra: Mapping[str, Any]) -> None:
        """Close the shards and write store.json. `tokenizer` identifies the tokenizer (fingerprint,
        bos_id, eos_id …), `extra` is added (sources, counts). The folder must hold tokenizer.json.
        """
        info = {
            "format": FORMAT,
            "version": VERSION,
            "tokenizer": {
                **tokenizer,
                "vocab_size": self._vocab_size,
                "tokenizer_json_sha256": file_sha256(self._directory / "tokenizer.json"),
            },
            "dtype": id_type(self._vocab_size).name,
            "splits": {name: writer.finish() for name, writer in self._splits.items()},
            **extra,
        }
        text = json.dumps(info, indent=2, ensure_ascii=False) + "\n"
        (self._directory / "store.json").write_text(text, encoding="utf-8")

    def close(self) -> None:
        """Close the files, also after an error."""
        for writer in self._splits.values():
            writer.close()


class _SplitWriter:
    def __init__(self, directory: Path, vocab_size: int, eos_id: int, shard_tokens: int) -> None:
        self._directory = directory
        self._vocab_size = vocab_size
        self._eos_id = eos_id
        self._shard_tokens = shard_tokens
        self._dtype = id_type(vocab_size)
        self._shards: list[dict[str, Any]] = []
        self._tokens: IO[bytes] | None = None
        self._ends: IO[bytes] | None = None
        directory.mkdir(parents=True, exist_ok=True)
        self._all_ends = open(directory / "documents.index", "wb")  # noqa: SIM115 (closed by close)
        self._checksums = open(directory / "documents.crc32", "wb")  # noqa: SIM115
        self._index_crc = self._checksums_crc = 0
        self._origins: dict[str, Any] = {}
        self.text_bytes = 0
        self.num_tokens = 0

    def add(self, ids: npt.NDArray[Any], lengths: npt.NDArray[Any], text_bytes: int) -> None:
        ends = np.cumsum(lengths, dtype=np.int64)
        assert len(ends) and ends[-1] == len(ids) and np.all(lengths > 0), "lengths do not add up to the ids"
        assert int(ids.min()) >= 0 and int(ids.max()) < self._vocab_size, "an id outside the vocabulary"
        assert np.all(ids[ends - 1] == self._eos_id), "a document that does not end with EOS"
        stored = ids.astype(self._dtype, copy=False)
        self._index(stored, ends, text_bytes)
        first = 0
        while first < len(ends):  # documents [first, last) go into the current shard
            start = int(ends[first - 1]) if first else 0
            room = self._shard_tokens - (self._shards[-1]["tokens"] if self._tokens else 0)
            last = int(np.searchsorted(ends, start + room, side="right"))
            if last <= first:
                if self._tokens is not None:
                    self._close_shard()
                    continue
                last = first + 1  # one document larger than a shard
            self._write(stored[start : ends[last - 1]], ends[first:last] - start)
            first = last

    def link(self, ds: Path, index: Path, documents: int, tokens: int, text_bytes: int) -> None:
        self._close_shard()
        name = f"{len(self._shards):05d}.ds"
        for target, place in ((ds, self._directory / name), (index, self._directory / f"{name}.index")):
            try:
                place.hardlink_to(target.resolve())
            except OSError:  # another file system, or one without hard links
                place.symlink_to(target.resolve())
        ids: Ids = np.asarray(np.memmap(ds, self._dtype, "r", shape=(tokens,)))
        self._index(ids, np.fromfile(index, "<u8", documents).astype(np.int64), text_bytes)
        self._shards.append({"name": name, "documents": documents, "tokens": tokens})

    def add_origins(self, origins: DocumentOrigins) -> None:
        positions = origins.positions()
        assert len(positions) == self.num_documents, "an origin for each document"
        (self._directory / "documents.position").write_bytes(positions.tobytes())
        crc = f"{zlib.crc32(positions.data):08x}"
        files = [{"name": name, "documents": count} for name, count in origins.files()]
        self._origins = {"origins": {"positions_crc32": crc, "files": files}}

    def _index(self, ids: Ids, ends: npt.NDArray[np.int64], text_bytes: int) -> None:
        """Add documents to the two files of the split. ids [tokens], ends [documents] within them."""
        index, checksums = (ends + self.num_tokens).astype("<u8"), _document_checksums(ids, ends)
        self._index_crc = zlib.crc32(index.data, self._index_crc)
        self._checksums_crc = zlib.crc32(checksums.data, self._checksums_crc)
        self._all_ends.write(index.tobytes())
        self._checksums.write(checksums.tobytes())
        self.text_bytes += text_bytes
        self.num_tokens += len(ids)

    def _write(self, ids: Ids, ends: npt.NDArray[np.int64]) -> None:
        if self._tokens is None or self._ends is None:
            name = f"{len(self._shards):05d}.ds"
            self._tokens = open(self._directory / name, "wb")  # noqa: SIM115 (closed by close)
            self._ends = open(self._directory / f"{name}.index", "wb")  # noqa: SIM115
            self._shards.append({"name": name, "documents": 0, "tokens": 0})
        shard = self._shards[-1]
        self._tokens.write(ids.tobytes())
        self._ends.write((ends + shard["tokens"]).astype("<u8").tobytes())
        shard["documents"] += len(ends)
        shard["tokens"] += len(ids)

    def _close_shard(self) -> None:
        for file in (self._tokens, self._ends):
            if file is not None:
                file.close()
        self._tokens = self._ends = None

    def finish(self) -> dict[str, Any]:
        self.close()
        return {
            "documents": self.num_documents,
            "tokens": self.num_tokens,
            "text_bytes": self.text_bytes,
            "index_crc32": f"{self._index_crc:08x}",
            "checksums_crc32": f"{self._checksums_crc:08x}",
            "shards": self._shards,
            **self._origins,
        }

    @property
    def num_documents(self) -> int:
        return sum(shard["documents"] for shard in self._shards)

    def close(self) -> None:
        self._close_shard()
        self._all_ends.close()
        self._checksums.close()


# ---- reading


class TokenStore:
    """A memory-mapped token store. Raises StoreError if its parts are inconsistent."""

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        self.info = read_store_info(self.path)
        self.tokenizer_path = self.path / "tokenizer.json"
        try:
            digest = file_sha256(self.tokenizer_path)
        except OSError as error:
            raise StoreError(f"cannot open store {self.path}: tokenizer.json: {error.strerror}") from None
        tokenizer = self.info["tokenizer"]
        if digest != tokenizer["tokenizer_json_sha256"]:
            raise StoreError(
                f"cannot open store {self.path}: its tokenizer.json is not the one that made its tokens "
                f"(expected sha256 {shown(tokenizer['tokenizer_json_sha256'][:16])}…, found {digest[:16]}…); prepare "
                "it again"
            )
        self.vocab_size: int = tokenizer["vocab_size"]
        self.bos_id: int = tokenizer["bos_id"]
        self.eos_id: int = tokenizer["eos_id"]
        self.tokenizer_fingerprint: str = tokenizer["fingerprint"]
        self._splits: dict[str, Split] = {}

    def verify(self) -> None:
        """Read all files and compare them with their checksums. Raises StoreError."""
        for name in SPLITS:
            self.split(name).verify()

    def split(self, name: SplitName) -> Split:
        """The training or the validation documents."""
        if name not in self._splits:
            self._splits[name] = Split(self.path / name, self.info["splits"][name], self.vocab_size, self.eos_id)
        return self._splits[name]


class Split:
    """The documents of one split, over all its shards; their ids are read from disk when needed."""

    def __init__(self, directory: Path, info: Mapping[str, Any], vocab_size: int, eos_id: int) -> None:
        self._directory, self._vocab_size, self._eos_id = directory, vocab_size, eos_id
        self._shards, self._dtype = info["shards"], id_type(vocab_size)
        self._paths = [f"{directory}{os.sep}{shard['name']}" for shard in self._shards]
        # the first document and the first token of each shard, and the ends
        self._first_documents = list(itertools.accumulate((each["documents"] for each in self._shards), initial=0))
        self._first_tokens = list(itertools.accumulate((each["tokens"] for each in self._shards), initial=0))
        self.num_documents, self.num_tokens = self._first_documents[-1], self._first_tokens[-1]
        self.text_bytes: int = info["text_bytes"]
        self._origins: dict[str, Any] | None = info.get("origins")
        for name, found in (("documents", self.num_documents), ("tokens", self.num_tokens)):
            if info[name] != found:
                raise StoreError(f"cannot open {directory}: store.json says {info[name]:,} {name}, found {found:,}")
        self._ends = _map_checked(directory / "documents.index", "<u8", self.num_documents, info["index_crc32"])
        self._checksums = _map_checked(
            directory / "documents.crc32", "<u4", self.num_documents, info["checksums_crc32"]
        )
        self._check_ends()
        for path, shard in zip(self._paths, self._shards, strict=True):
            _check_size(path, self._dtype, shard["tokens"])
        self._checked: set[int] = set()  # long documents
        self._shard_ids = functools.lru_cache(MAX_OPEN_SHARDS)(self._map_shard)
        sampled = np.linspace(0, self.num_documents - 1, min(_SAMPLED_DOCUMENTS, self.num_documents))
        for number in np.unique(sampled.astype(np.int64)).tolist():
            self.document(number)

    def _check_ends(self) -> None:
        """Raise StoreError unless no document is empty and each shard ends with a document."""
        ends, last = self._ends, np.array(self._first_documents[1:], np.int64) - 1
        is_ordered = not len(ends) or (int(ends[0]) > 0 and bool(np.all(ends[1:] > ends[:-1])))
        if not is_ordered or ends[last].tolist() != self._first_tokens[1:]:
            raise StoreError(
                f"cannot open {self._directory / 'documents.index'}: its ends do not increase from 0 to "
                f"{self.num_tokens:,}, with one at the end of each .ds file; prepare it again"
            )

    @functools.cached_property
    def token_files(self) -> list[Ids]:
        """The ids of all .ds files, one array each. Raises StoreError if there are too many to have
        open at once."""
        if len(self._shards) > MAX_MAPPED_FILES:
            raise StoreError(
                f"cannot map {self._directory}: expected at most {MAX_MAPPED_FILES} .ds files, found "
                f"{len(self._shards):,}; join them with datatrove's merger"
            )
        return [self._map_shard(place) for place in range(len(self._shards))]

    def document_of(self, token: int) -> tuple[int, int]:
        """The number of the document that holds a token of the split, and its first token."""
        number = int(np.searchsorted(self._ends, np.uint64(token), side="right"))
        return number, int(self._ends[number - 1]) if number else 0

    def origin(self, number: int) -> Origin | None:
        """Where a document comes from; None if the store does not know. Raises StoreError."""
        if self._origins is None:
            return None
        place = bisect.bisect_right(self._first_of_files, number) - 1
        return Origin(self._origins["files"][place]["name"], int(self._positions[number]))

    @functools.cached_property
    def _first_of_files(self) -> list[int]:
        assert self._origins is not None
        return list(itertools.accumulate((each["documents"] for each in self._origins["files"]), initial=0))

    @functools.cached_property
    def _positions(self) -> npt.NDArray[Any]:
        assert self._origins is not None
        path = self._directory / "documents.position"
        return _map_checked(path, "<u8", self.num_documents, self._origins["positions_crc32"])

    @property
    def lengths(self) -> npt.NDArray[np.int64]:
        """Tokens of every document, EOS included. [documents]"""
        lengths = self._ends.astype(np.int64)
        lengths[1:] -= lengths[:-1].copy()
        return lengths

    @property
    def checksums(self) -> npt.NDArray[np.uint32]:
        """The CRC-32 of every document's ids. [documents]"""
        return self._checksums

    def document(self, number: int) -> Ids:
        """The ids of a document, EOS included, as a read-only view. [tokens]

        Raises StoreError if the file is damaged there.
        """
        if not 0 <= number < self.num_documents:
            raise IndexError(f"document {number} of {self.num_documents}")
        place = bisect.bisect_right(self._first_documents, number) - 1
        first = self._first_tokens[place]
        start = int(self._ends[number - 1]) if number else 0
        ids = self._shard_ids(place)[start - first : int(self._ends[number]) - first]
        if len(ids) <= LONG_DOCUMENT_TOKENS or number not in self._checked:
            self._check(number, place, start - first, ids)
        return ids

    def _check(self, number: int, place: int, start: int, ids: Ids) -> None:
        """Raise StoreError unless the ids are those that were written, in the vocabulary, with EOS."""
        found, where, row = zlib.crc32(ids.data), self._paths[place], number - self._first_documents[place]
        if int(ids.max()) >= self._vocab_size:
            raise StoreError(
                f"cannot read {where}: document {row}: expected ids below {self._vocab_size:,}, found "
                f"{int(ids.max()):,}; prepare it again"
            )
        if found != self._checksums[number]:
            size = ids.itemsize
            raise StoreError(
                f"cannot read {where}: document {row}, bytes {start * size:,} to {(start + len(ids)) * size - 1:,}: "
                f"expected the CRC-32 {int(self._checksums[number]):08x}, found {found:08x}: the file has changed or "
                "is damaged; prepare it again"
            )
        if ids[-1] != self._eos_id:
            raise StoreError(
                f"cannot read {where}: document {row}: expected EOS ({self._eos_id}) at its end, found id "
                f"{int(ids[-1])}; prepare it again"
            )
        if len(ids) > LONG_DOCUMENT_TOKENS:
            self._checked.add(number)

    def _map_shard(self, place: int) -> Ids:
        return _map(self._paths[place], self._dtype, self._shards[place]["tokens"])

    def verify(self) -> None:
        """Read all files and compare them with their checksums. Raises StoreError."""
        self._checked.clear()
        for number in range(self.num_documents):
            self.document(number)
        for place, shard in enumerate(self._shards):
            path, rows = f"{self._paths[place]}.index", slice(*self._first_documents[place : place + 2])
            _check_size(path, np.dtype("<u8"), shard["documents"])
            if (
                _map(path, np.dtype("<u8"), shard["documents"]).tolist()
                != (self._ends[rows] - np.uint64(self._first_tokens[place])).tolist()
            ):
                raise StoreError(f"cannot read {path}: it differs from documents.index; prepare it again")


INFO: Schema = {  # of store.json: what _check_info does not check
    "recipe": Key("string"),
    "sources": Key("list", default=[], null=False, items=Key("object", required=True, keys={
        "name": Key("string", required=True),
    })),
    "report": Key("object", default={}, null=False),
}  # fmt: skip


def read_store_info(path: Path) -> dict[str, Any]:
    """Read and check store.json. Raises StoreError."""
    file = Path(path) / "store.json"
    if not file.is_file():
        if Path(path).exists():  # most likely a folder of texts
            raise StoreError(
                f"cannot open store {path}: it has no store.json; to make a store from text: "
                + command_line("prepare", path, "--out", "STORE")
            )
        make = command_line("prepare", "SOURCE", "--out", path)
        raise StoreError(f"cannot open store {path}: no such folder; make a store: {make}")
    try:
        info = parse_json(file.read_bytes(), "it", StoreError)
        _check_info(info)
        return check_object(info, INFO, "it", StoreError)
    except OSError as error:
        raise StoreError(f"cannot open store {path}: store.json: {error.strerror}") from None
    except (StoreError, ValueError, KeyError, TypeError) as error:
        message = f"{error} is missing" if isinstance(error, KeyError) else str(error)
        raise StoreError(f"cannot open store {path}: store.json is damaged: {message}") from None


def _check_info(info: Any) -> None:
    if not isinstance(info, dict) or info.get("format") != FORMAT:
        raise ValueError(f"expected format {FORMAT!r}")
    if info["version"] != VERSION:
        raise ValueError(f"expected version {VERSION}, found {shown(info['version'])}; prepare it again")
    tokenizer = info["tokenizer"]
    size = tokenizer["vocab_size"]
    if not _is_count(size) or not 0 < size <= 1 << 24:
        raise ValueError(f"vocab_size {shown(size)}")
    for name in ("bos_id", "eos_id"):
        if not _is_count(tokenizer[name]) or tokenizer[name] >= size:
            raise ValueError(f"{name} {shown(tokenizer[name])} is not an id of a vocabulary of {size}")
    for name in ("fingerprint", "tokenizer_json_sha256"):
        if not isinstance(tokenizer[name], str):
            raise ValueError(f"{name} {shown(tokenizer[name])}")
    if info["dtype"] != id_type(size).name:
        raise ValueError(f"dtype {shown(info['dtype'])}, expected {id_type(size).name}")
    for name in SPLITS:
        split = info["splits"][name]
        for shard in split["shards"]:
            file = shard["name"]
            if not isinstance(file, str) or os.path.basename(file) != file:
                raise ValueError(f"shard name {shown(file)}")
            if len(file) > 255 or "\0" in file:
                raise ValueError(f"shard name {shown(file)}")
            if shard["documents"] == 0:
                raise ValueError(f"shard {shown(shard['name'])} has no documents")
        if not all(_is_crc(split[key]) for key in ("index_crc32", "checksums_crc32")):
            raise ValueError(f"a checksum of {name} is not 8 hexadecimal digits")
        parts = (split, *split["shards"])
        counted = [split["text_bytes"], *(part[key] for part in parts for key in ("documents", "tokens"))]
        if not all(_is_count(value) for value in counted):
            raise ValueError(f"a count of {name} is not a whole number of 0 or more")
        if "origins" in split:
            _check_origins(name, split["origins"], split["documents"])


def _check_origins(name: str, origins: Any, num_documents: int) -> None:
    if not _is_crc(origins["positions_crc32"]):
        raise ValueError(f"a checksum of {name} is not 8 hexadecimal digits")
    files = origins["files"]
    if not all(isinstance(each["name"], str) and _is_count(each["documents"]) for each in files):
        raise ValueError(f"the origins of {name} are not names and counts")
    if sum(each["documents"] for each in files) != num_documents:
        raise ValueError(f"the origins of {name} are not those of {num_documents:,} documents")


def _is_crc(value: Any) -> bool:
    return isinstance(value, str) and len(value) == 8 and set(value) <= set("0123456789abcdef")


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _map_checked(path: Path, dtype: str, count: int, crc: str) -> npt.NDArray[Any]:
    """Map a file of a split and compare it with its CRC-32. Raises StoreError."""
    _check_size(path, np.dtype(dtype), count)
    values = _map(path, np.dtype(dtype), count)
    found = f"{zlib.crc32(values.data):08x}"
    if found != crc:
        raise StoreError(
            f"cannot open {path}: expected the CRC-32 {crc}, found {found}: the file has changed or is damaged; "
            "prepare it again"
        )
    return values


def _check_size(path: str | Path, dtype: np.dtype[Any], count: int) -> None:
    try:
        found = os.stat(path).st_size
    except OSError as error:
        raise StoreError(f"cannot open {path}: {error.strerror or error}") from None
    if found != count * dtype.itemsize:
        raise StoreError(
            f"cannot open {path}: expected {count * dtype.itemsize:,} bytes ({count:,} {dtype.name}), "
            f"found {found:,}; prepare it again"
        )


def _map(path: str | Path, dtype: np.dtype[Any], count: int) -> npt.NDArray[Any]:
    """The file as a read-only array; it is closed with the last view of it. Raises StoreError."""
    if not count:
        _check_size(path, dtype, count)
        return np.zeros(0, dtype)
    try:
        file = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
        try:
            mapping = mmap.mmap(file, 0, access=mmap.ACCESS_READ)
        finally:
            os.close(file)
        # not np.memmap, whose slices cost several times as much: a batch takes hundreds
        return np.frombuffer(mapping, dtype, count)
    except (OSError, ValueError) as error:  # ValueError: it is too short
        _check_size(path, dtype, count)
        raise StoreError(f"cannot open {path}: {getattr(error, 'strerror', None) or error}") from None

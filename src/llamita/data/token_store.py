"""Writes and reads token stores: the ids of documents in datatrove's file format, and a store.json.

NAME.ds        little-endian uint16 (uint32 above 65,536 ids): documents one after another, each
               ending with EOS
NAME.ds.index  little-endian uint64: the end of each document, in tokens from the start of NAME.ds

store.json has the size of every file, the CRC-32 of each MiB of NAME.ds, and that of NAME.ds.index.
Sizes and indexes are checked when a split is opened, a MiB of ids before it is first used.
"""

from __future__ import annotations

import bisect
import dataclasses
import hashlib
import json
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np
import numpy.typing as npt

from llamita.commands import command_line
from llamita.errors import StoreError
from llamita.json_file import Key, Schema, check_object, parse_json, shown

FORMAT = "llamita token store"
VERSION = 2
SplitName = Literal["train", "val"]
SPLITS: tuple[SplitName, SplitName] = ("train", "val")
SHARD_TOKENS = 1 << 27
BLOCK_BYTES = 1 << 20  # that have a checksum
_SAMPLED_DOCUMENTS = 256  # ids of these are checked when a shard is opened

Ids = npt.NDArray[np.uint16] | npt.NDArray[np.uint32]


def id_type(vocab_size: int) -> np.dtype[Any]:
    """The type of the ids on disk."""
    return np.dtype("<u2") if vocab_size <= 1 << 16 else np.dtype("<u4")


def file_sha256(path: Path) -> str:
    """sha256 (hex) of a small file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


class Checksum:
    """The CRC-32 of each block of a file that is written in pieces."""

    def __init__(self, block_bytes: int = BLOCK_BYTES) -> None:
        self._block_bytes = block_bytes
        self._blocks: list[int] = []
        self._room = 0  # in the last block

    def update(self, data: bytes | memoryview) -> None:
        left = memoryview(data)
        while len(left):
            if not self._room:
                self._blocks.append(0)
                self._room = self._block_bytes
            piece, left = left[: self._room], left[self._room :]
            self._blocks[-1] = zlib.crc32(piece, self._blocks[-1])
            self._room -= len(piece)

    def hex(self) -> str:
        """8 digits for each block."""
        return "".join(f"{block:08x}" for block in self._blocks)


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

    def num_tokens(self, split: SplitName) -> int:
        """Tokens added so far, EOS included."""
        return self._splits[split].num_tokens

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
        self._checksum, self._index_crc = Checksum(), 0
        self.text_bytes = 0
        self.num_tokens = 0
        directory.mkdir(parents=True, exist_ok=True)

    def add(self, ids: npt.NDArray[Any], lengths: npt.NDArray[Any], text_bytes: int) -> None:
        ends = np.cumsum(lengths, dtype=np.int64)
        assert len(ends) and ends[-1] == len(ids) and np.all(lengths > 0), "lengths do not add up to the ids"
        assert int(ids.min()) >= 0 and int(ids.max()) < self._vocab_size, "an id outside the vocabulary"
        assert np.all(ids[ends - 1] == self._eos_id), "a document that does not end with EOS"
        self.text_bytes += text_bytes
        self.num_tokens += len(ids)
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
            self._write(ids[start : ends[last - 1]], ends[first:last] - start)
            first = last

    def link(self, ds: Path, index: Path, documents: int, tokens: int, text_bytes: int) -> None:
        self._close_shard()
        name = f"{len(self._shards):05d}.ds"
        for target, place in ((ds, self._directory / name), (index, self._directory / f"{name}.index")):
            try:
                place.hardlink_to(target.resolve())
            except OSError:  # another file system, or one without hard links
                place.symlink_to(target.resolve())
        checksum, index_crc = Checksum(), 0
        for file, add in ((ds, checksum.update), (index, None)):
            with open(file, "rb") as stream:
                while data := stream.read(BLOCK_BYTES):
                    if add is not None:
                        add(data)
                    else:
                        index_crc = zlib.crc32(data, index_crc)
        shard = {"name": name, "documents": documents, "tokens": tokens}
        self._shards.append({**shard, "crc32": checksum.hex(), "index_crc32": f"{index_crc:08x}"})
        self.text_bytes += text_bytes
        self.num_tokens += tokens

    def _write(self, ids: npt.NDArray[Any], ends: npt.NDArray[np.int64]) -> None:
        if self._tokens is None or self._ends is None:
            name = f"{len(self._shards):05d}.ds"
            self._tokens = open(self._directory / name, "wb")  # noqa: SIM115 (closed by close)
            self._ends = open(self._directory / f"{name}.index", "wb")  # noqa: SIM115
            self._shards.append({"name": name, "documents": 0, "tokens": 0})
            self._checksum, self._index_crc = Checksum(), 0
        shard = self._shards[-1]
        data = ids.astype(self._dtype, copy=False).tobytes()
        index = (ends + shard["tokens"]).astype("<u8").tobytes()
        self._tokens.write(data)
        self._ends.write(index)
        self._checksum.update(data)
        self._index_crc = zlib.crc32(index, self._index_crc)
        shard["documents"] += len(ends)
        shard["tokens"] += len(ids)

    def _close_shard(self) -> None:
        if self._tokens is not None:
            self._shards[-1] |= {"crc32": self._checksum.hex(), "index_crc32": f"{self._index_crc:08x}"}
        for file in (self._tokens, self._ends):
            if file is not None:
                file.close()
        self._tokens = self._ends = None

    def finish(self) -> dict[str, Any]:
        self._close_shard()
        return {
            "documents": self.num_documents,
            "tokens": self.num_tokens,
            "text_bytes": self.text_bytes,
            "shards": self._shards,
        }

    @property
    def num_documents(self) -> int:
        return sum(shard["documents"] for shard in self._shards)

    def close(self) -> None:
        self._close_shard()


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


@dataclasses.dataclass(frozen=True)
class _Shard:
    path: Path
    tokens: Ids  # [tokens], memory-mapped
    ends: npt.NDArray[np.uint64]  # [documents], memory-mapped
    checksums: tuple[int, ...]  # of the blocks of `tokens`
    is_checked: bytearray  # 1 for each block that has been compared with its checksum
    vocab_size: int

    def read(self, start: int, end: int) -> Ids:
        """Ids from blocks that are checked. Raises StoreError."""
        size = BLOCK_BYTES // self.tokens.itemsize
        for block in range(start // size, (end - 1) // size + 1):
            if not self.is_checked[block]:
                self._check(block, size)
        return self.tokens[start:end]

    def _check(self, block: int, size: int) -> None:
        ids = self.tokens[block * size : (block + 1) * size]
        if int(ids.max()) >= self.vocab_size:
            raise StoreError(
                f"cannot read {self.path}: expected ids below {self.vocab_size:,}, found {int(ids.max()):,}; prepare "
                "it again"
            )
        found = zlib.crc32(ids.view(np.uint8).data)
        if found != self.checksums[block]:
            raise StoreError(
                f"cannot read {self.path}: bytes {block * BLOCK_BYTES:,} to {block * BLOCK_BYTES + ids.nbytes - 1:,}: "
                f"expected the CRC-32 {self.checksums[block]:08x}, found {found:08x}: the file has changed or is "
                "damaged; prepare it again"
            )
        self.is_checked[block] = 1


class Split:
    """The documents of one split, over all its shards; their ids are read from disk when needed."""

    def __init__(self, directory: Path, info: Mapping[str, Any], vocab_size: int, eos_id: int) -> None:
        self._shards = [_open_shard(directory, shard, vocab_size, eos_id) for shard in info["shards"]]
        self._eos_id = eos_id
        self._first_documents: list[int] = []  # of each shard
        self.num_documents = 0
        self.num_tokens = 0
        for shard in self._shards:
            self._first_documents.append(self.num_documents)
            self.num_documents += len(shard.ends)
            self.num_tokens += len(shard.tokens)
        self.text_bytes: int = info["text_bytes"]
        for name, found in (("documents", self.num_documents), ("tokens", self.num_tokens)):
            if info[name] != found:
                raise StoreError(f"cannot open {directory}: store.json says {info[name]:,} {name}, found {found:,}")

    @property
    def lengths(self) -> npt.NDArray[np.int64]:
        """Tokens of every document, EOS included. [documents]"""
        parts = [np.diff(shard.ends.astype(np.int64), prepend=0) for shard in self._shards]
        return np.concatenate(parts) if parts else np.zeros(0, np.int64)

    def document(self, number: int) -> Ids:
        """The ids of a document, EOS included, as a read-only view. [tokens]

        Raises StoreError if the file is damaged there.
        """
        if not 0 <= number < self.num_documents:
            raise IndexError(f"document {number} of {self.num_documents}")
        place = bisect.bisect_right(self._first_documents, number) - 1
        shard, row = self._shards[place], number - self._first_documents[place]
        start = int(shard.ends[row - 1]) if row else 0
        ids = shard.read(start, int(shard.ends[row]))
        if ids[-1] != self._eos_id:
            raise _no_eos(shard.path, row, self._eos_id, int(ids[-1]))
        return ids

    def verify(self) -> None:
        """Read all ids and compare them with their checksums. Raises StoreError."""
        for shard in self._shards:
            shard.read(0, len(shard.tokens))
            wrong = np.flatnonzero(shard.tokens[shard.ends - np.uint64(1)] != self._eos_id)
            if wrong.size:
                row = int(wrong[0])
                raise _no_eos(shard.path, row, self._eos_id, int(shard.tokens[int(shard.ends[row]) - 1]))


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
            if not isinstance(shard["name"], str) or Path(shard["name"]).name != shard["name"]:
                raise ValueError(f"shard name {shown(shard['name'])}")
            if not all(_is_crc(shard[key]) for key in ("crc32", "index_crc32")):
                raise ValueError(f"a checksum of {name} is not a row of 8 hexadecimal digits")
        parts = (split, *split["shards"])
        counted = [split["text_bytes"], *(part[key] for part in parts for key in ("documents", "tokens"))]
        if not all(_is_count(value) for value in counted):
            raise ValueError(f"a count of {name} is not a whole number of 0 or more")


def _is_crc(value: Any) -> bool:
    return isinstance(value, str) and len(value) % 8 == 0 and set(value) <= set("0123456789abcdef")


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _open_shard(directory: Path, info: Mapping[str, Any], vocab_size: int, eos_id: int) -> _Shard:
    """Map the two files of a shard; check their sizes, the ends, and the ids of some documents."""
    path = directory / info["name"]
    tokens = _map(path, id_type(vocab_size), info["tokens"])
    ends = _map(path.with_name(path.name + ".index"), np.dtype("<u8"), info["documents"])
    if len(ends) == 0 or int(ends[-1]) != len(tokens) or int(ends[0]) == 0 or not np.all(ends[1:] > ends[:-1]):
        raise StoreError(
            f"cannot open {path}.index: its ends do not increase from 0 to {len(tokens):,}; prepare it again"
        )
    found = f"{zlib.crc32(ends.view(np.uint8).data):08x}"
    if found != info["index_crc32"]:
        raise StoreError(
            f"cannot open {path}.index: expected the CRC-32 {info['index_crc32'][:8]}, found {found}: the file has "
            "changed or is damaged; prepare it again"
        )
    checksums = tuple(int(info["crc32"][at : at + 8], 16) for at in range(0, len(info["crc32"]), 8))
    if len(checksums) != -(-tokens.nbytes // BLOCK_BYTES):
        raise StoreError(
            f"cannot open {path}: expected {-(-tokens.nbytes // BLOCK_BYTES):,} checksums in store.json, found "
            f"{len(checksums):,}; prepare it again"
        )
    rows = np.unique(np.linspace(0, len(ends) - 1, _SAMPLED_DOCUMENTS).astype(np.int64))
    for row in rows:
        start = int(ends[row - 1]) if row else 0
        document = tokens[start : int(ends[row])]
        if int(document.max()) >= vocab_size:
            raise StoreError(
                f"cannot open {path}: document {row}: expected ids below {vocab_size:,}, found "
                f"{int(document.max()):,}; prepare it again"
            )
        if int(document[-1]) != eos_id:
            raise _no_eos(path, row, eos_id, int(document[-1]))
    return _Shard(path, tokens, ends, checksums, bytearray(len(checksums)), vocab_size)


def _no_eos(path: Path, row: int, eos_id: int, found: int) -> StoreError:
    return StoreError(
        f"cannot open {path}: document {row}: expected EOS ({eos_id}) at its end, found id {found}; prepare it again"
    )


def _map(path: Path, dtype: np.dtype[Any], count: int) -> npt.NDArray[Any]:
    try:
        found = path.stat().st_size
        if found != count * dtype.itemsize:
            raise StoreError(
                f"cannot open {path}: expected {count * dtype.itemsize:,} bytes ({count:,} {dtype.name}), "
                f"found {found:,}; prepare it again"
            )
        if not count:
            raise StoreError(f"cannot open {path}: it is empty")
        # a plain array over the mapping: slices of a memmap cost several times as much, and a batch takes hundreds
        return np.asarray(np.memmap(path, dtype=dtype, mode="r", shape=(count,)))
    except OSError as error:
        raise StoreError(f"cannot open {path}: {error.strerror or error}") from None

"""Writes and opens the index of a token store: STORE/index, which finds any string in its documents.

index.json  the sha256 of store.json, and the shards of each split: name, tokens, blocks, CRC-32
SPLIT.N     a shard: whole documents, as many as the memory allows. The arrays of llamita.h's text
            index, little-endian: blocks in order (uint32), entry tokens (uint32), entry offsets
            (uint16)

store.json holds checksums of all tokens, so its hash says whether an index belongs to the store.
"""

from __future__ import annotations

import dataclasses
import json
import queue
import threading
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from llamita.atomic import atomic_directory
from llamita.commands import command_line
from llamita.data.token_store import SPLITS, Ids, Split, SplitName, TokenStore, file_sha256
from llamita.engine import IndexArrays, IndexedText, TextIndex, build_text_index, num_entries
from llamita.errors import EngineError, StoreError
from llamita.formats.mmap_file import map_file
from llamita.json_file import Key, Schema, check_object, parse_json, shown
from llamita.progress import Progress, no_progress
from llamita.tokenizer import Tokenizer, load_tokenizer

FORMAT, VERSION = "llamita text index", 1
FOLDER = "index"
DEFAULT_MEMORY_BYTES = 1 << 30
BLOCK_MEMORY_BYTES = 17  # that llamita_text_index_build needs at most, its arrays included
_BLOCK_BYTES = 4
_MAX_SHARD_TOKENS = 1 << 32
_WRITTEN_BYTES = 1 << 26  # at a time

_COUNT = Key("integer", required=True, minimum=0, maximum=2**48)
_SHARDS = Key("list", required=True, items=Key("object", required=True, keys={
    "name": Key("string", required=True),
    "tokens": _COUNT,
    "blocks": _COUNT,
    "crc32": Key("string", required=True),
}))  # fmt: skip
INFO: Schema = {
    "format": Key("string", required=True, choices=(FORMAT,)),
    "version": Key("integer", required=True),
    "store_sha256": Key("string", required=True),
    "splits": Key("object", required=True, keys=dict.fromkeys(SPLITS, _SHARDS)),
}


@dataclasses.dataclass(frozen=True)
class IndexPlan:
    """What an index will take, before it is built."""

    num_tokens: int
    text_bytes: int
    num_shards: int
    memory_bytes: int
    disk_bytes: int


@dataclasses.dataclass(frozen=True)
class _Range:
    """Whole documents of a split, for a shard."""

    split: SplitName
    first_token: int
    num_tokens: int
    num_blocks: int  # about


# ---- writing


def build_store_index(
    path: Path,
    *,
    max_memory_bytes: int = DEFAULT_MEMORY_BYTES,
    announce: Callable[[IndexPlan], None] = lambda plan: None,
    progress: Progress = no_progress,
) -> IndexPlan:
    """Write STORE/index, in place of an older one, and check all tokens on the way. announce: gets the
    plan before the work. Progress counts tokens. Raises StoreError, OutputError."""
    path = Path(path)
    store_sha256 = _store_sha256(path)
    store = TokenStore(path)
    token_bytes = load_tokenizer(path).token_bytes()
    ranges = list(_plan_ranges(store, token_bytes, max_memory_bytes, progress))
    largest = max((each.num_blocks for each in ranges), default=0)
    plan = IndexPlan(
        num_tokens=sum(store.split(name).num_tokens for name in SPLITS),
        text_bytes=sum(store.split(name).text_bytes for name in SPLITS),
        num_shards=len(ranges),
        memory_bytes=BLOCK_MEMORY_BYTES * largest,
        disk_bytes=sum(_shard_bytes(each.num_blocks) for each in ranges),
    )
    announce(plan)
    splits: dict[str, list[dict[str, Any]]] = {name: [] for name in SPLITS}
    total, done, disk_bytes = plan.num_tokens, 0, 0
    with atomic_directory(path / FOLDER, replace=(path / FOLDER).exists()) as folder:
        for each in ranges:
            parts = _token_parts(store.split(each.split), each.first_token, each.num_tokens)
            text = IndexedText(parts, token_bytes, store.eos_id)
            try:
                arrays = _in_thread(lambda text=text: build_text_index(text))  # type: ignore[misc]
            except EngineError as error:
                found = str(error).removeprefix("cannot index a text: ")
                raise StoreError(f"cannot index {path}: {each.split}: {found}") from None
            shards = splits[each.split]
            name, blocks = f"{each.split}.{len(shards)}", arrays.suffixes.size
            shards.append(
                {"name": name, "tokens": each.num_tokens, "blocks": blocks, "crc32": _write(folder / name, arrays)}
            )
            done += each.num_tokens
            disk_bytes += _shard_bytes(blocks)
            progress("indexing", done, total)
        info = {"format": FORMAT, "version": VERSION, "store_sha256": store_sha256, "splits": splits}
        (folder / "index.json").write_text(json.dumps(info, indent=2) + "\n", encoding="utf-8")
        if _store_sha256(path) != store_sha256:
            raise StoreError(f"cannot index {path}: the store changed meanwhile; start again")
    return dataclasses.replace(plan, disk_bytes=disk_bytes)


def _plan_ranges(
    store: TokenStore, token_bytes: list[bytes], max_memory_bytes: int, progress: Progress
) -> Iterator[_Range]:
    """Cut the splits into shards. Reads and so checks every document."""
    sizes = np.array([len(each) for each in token_bytes], np.int64)
    sizes[store.eos_id] = 0
    limit = max_memory_bytes // BLOCK_MEMORY_BYTES
    total, done = sum(store.split(name).num_tokens for name in SPLITS), 0
    for name in SPLITS:
        split = store.split(name)
        first = tokens = blocks = 0
        for number in range(split.num_documents):
            ids = split.document(number)
            document_blocks = int(sizes[ids].sum()) // _BLOCK_BYTES + 1
            if document_blocks > limit:
                needed = BLOCK_MEMORY_BYTES * document_blocks
                raise StoreError(
                    f"cannot index {store.path}: document {number:,} of {name} is too long: it needs "
                    f"{needed >> 20:,} MB of memory, expected at most {max_memory_bytes >> 20:,}; raise --memory"
                )
            if tokens and (blocks + document_blocks > limit or tokens + len(ids) > _MAX_SHARD_TOKENS):
                yield _Range(name, first, tokens, blocks)
                first, tokens, blocks = first + tokens, 0, 0
            tokens += len(ids)
            blocks += document_blocks
            if number % 1024 == 0:
                progress("reading", done + first + tokens, total)
        done += split.num_tokens
        if tokens:
            yield _Range(name, first, tokens, blocks)
    progress("reading", total, total)


def _shard_bytes(num_blocks: int) -> int:
    return 4 * num_blocks + 6 * num_entries(num_blocks)


def _write(path: Path, arrays: IndexArrays) -> str:
    """Write a shard; returns its CRC-32."""
    crc = 0
    with path.open("wb") as file:
        for array, dtype in (
            (arrays.suffixes, "<u4"), (arrays.entry_tokens, "<u4"), (arrays.entry_offsets, "<u2"),
        ):  # fmt: skip
            data = array.astype(dtype, copy=False).view(np.uint8).data
            for start in range(0, len(data), _WRITTEN_BYTES):
                part = data[start : start + _WRITTEN_BYTES]
                crc = zlib.crc32(part, crc)
                file.write(part)
    return f"{crc:08x}"


T = TypeVar("T")


def _in_thread(work: Callable[[], T]) -> T:
    """Call `work` so that Ctrl-C is heard meanwhile: the engine is in C for minutes."""
    results: queue.SimpleQueue[T | BaseException] = queue.SimpleQueue()

    def run() -> None:
        try:
            results.put(work())
        except BaseException as error:  # raised again where it is awaited
            results.put(error)

    threading.Thread(target=run, daemon=True, name="text index").start()
    while True:
        try:
            found = results.get(timeout=0.2)
        except queue.Empty:
            continue
        if isinstance(found, BaseException):
            raise found
        return found


# ---- reading


@dataclasses.dataclass(frozen=True)
class IndexShard:
    """An open shard: documents of a split. first_token: of the split's."""

    split: SplitName
    first_token: int
    index: TextIndex


class StoreIndex:
    """The open index of a token store. Raises StoreError if it is missing, damaged, or of another
    store. Threads may share it."""

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        self.store = TokenStore(self.path)
        self.tokenizer: Tokenizer = load_tokenizer(self.path)
        self.token_bytes = self.tokenizer.token_bytes()
        self.token_sizes = np.array([len(each) for each in self.token_bytes], np.int64)
        self.adds_first_space = self.tokenizer.adds_first_space()
        info = _read_info(self.path)
        self.shards = [shard for name in SPLITS for shard in self._open_shards(name, info["splits"][name])]

    def _open_shards(self, name: SplitName, infos: list[dict[str, Any]]) -> Iterator[IndexShard]:
        split = self.store.split(name)
        if sum(each["tokens"] for each in infos) != split.num_tokens:
            raise _damaged(self.path, f"index.json: expected {split.num_tokens:,} tokens of {name}")
        first = 0
        for number, each in enumerate(infos):
            if each["name"] != f"{name}.{number}":
                raise _damaged(self.path, f"index.json: expected the name {name}.{number}, found {shown(each['name'])}")
            arrays = _read(self.path, each)
            parts = _token_parts(split, first, each["tokens"])
            text = IndexedText(parts, self.token_bytes, self.store.eos_id)
            yield IndexShard(name, first, TextIndex(text, arrays))
            first += each["tokens"]


def _token_parts(split: Split, first: int, count: int) -> list[Ids]:
    """The tokens of a range, one array for each .ds file."""
    parts, start = [], 0
    for ids in split.token_files:
        part = ids[max(0, first - start) : max(0, first + count - start)]
        start += len(ids)
        if len(part):
            parts.append(part)
    return parts


def _store_sha256(path: Path) -> str:
    try:
        return file_sha256(path / "store.json")
    except OSError:
        TokenStore(path)  # for its error
        raise


def _damaged(path: Path, what: str) -> StoreError:
    return StoreError(f"cannot open index {path / FOLDER}: {what}; make it again: {command_line('index', path)}")


def _read_info(path: Path) -> dict[str, Any]:
    file = path / FOLDER / "index.json"
    if not file.is_file():
        raise StoreError(f"{path}: the store has no index; make one: {command_line('index', path)}")
    try:
        content = parse_json(file.read_bytes(), "it", StoreError)
        if isinstance(content, dict) and content.get("format") == FORMAT and content.get("version") != VERSION:
            raise StoreError(f"expected version {VERSION}, found {shown(content.get('version'))}")
        info = check_object(content, INFO, "it", StoreError) if isinstance(content, dict) else None
    except OSError as error:
        raise _damaged(path, f"index.json: {error.strerror}") from None
    except StoreError as error:
        raise _damaged(path, f"index.json is damaged: {error}") from None
    if info is None:
        raise _damaged(path, "index.json is damaged: expected an object")
    found = _store_sha256(path)
    if info["store_sha256"] != found:
        raise _damaged(
            path,
            f"it was made for another store.json (expected sha256 {shown(info['store_sha256'][:16])}…, found "
            f"{found[:16]}…)",
        )
    return info


def _read(path: Path, info: dict[str, Any]) -> IndexArrays:
    """Map a shard and compare it with its CRC-32. Raises StoreError."""
    file, blocks = path / FOLDER / info["name"], info["blocks"]
    expected = _shard_bytes(blocks)
    try:
        num_bytes = file.stat().st_size
    except OSError as error:
        raise _damaged(path, f"{info['name']}: {error.strerror}") from None
    if num_bytes != expected:
        raise _damaged(path, f"{info['name']}: expected {expected:,} bytes, found {num_bytes:,}")
    data: Any = map_file(file) if num_bytes else b""
    found = f"{zlib.crc32(data):08x}"
    if found != info["crc32"]:
        raise _damaged(path, f"{info['name']}: expected the CRC-32 {shown(info['crc32'])}, found {found}")
    entries = num_entries(blocks)

    def array(dtype: str, count: int, offset: int) -> npt.NDArray[Any]:
        return np.frombuffer(data, dtype, count, offset) if count else np.zeros(0, dtype)

    return IndexArrays(
        array("<u4", blocks, 0), array("<u4", entries, 4 * blocks), array("<u2", entries, 4 * blocks + 4 * entries)
    )

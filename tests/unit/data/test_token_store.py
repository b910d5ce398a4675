"""The token store: reads back what it wrote, in datatrove's layout; refuses inconsistent files."""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llamita.data import token_store
from llamita.data.token_store import StoreWriter, TokenStore, id_type, read_store_info
from llamita.errors import StoreError

TOKENIZER = {"kind": "gpt2", "fingerprint": "f" * 64, "bos_id": 0, "eos_id": 0}


def documents(count: int, vocab_size: int, seed: int) -> list[np.ndarray[Any, Any]]:
    choose = np.random.default_rng(seed)
    return [np.append(choose.integers(1, vocab_size, choose.integers(0, 40)), 0) for _ in range(count)]


def write_store(path: Path, vocab_size: int = 300, shard_tokens: int = 200) -> dict[str, list[np.ndarray[Any, Any]]]:
    path.mkdir(parents=True)
    (path / "tokenizer.json").write_text("{}")
    writer = StoreWriter(path, vocab_size=vocab_size, eos_id=0, shard_tokens=shard_tokens)
    splits = {"train": documents(100, vocab_size, 1), "val": documents(20, vocab_size, 2)}
    for first in range(0, 100, 7):
        for name in ("train", "val"):
            batch = splits[name][first : first + 7]
            if batch:
                lengths = np.array([len(d) for d in batch])
                writer.add(name, np.concatenate(batch), lengths, 10 * len(batch))  # type: ignore[arg-type]
    writer.finish(TOKENIZER, {"more": 1})
    return splits


@pytest.mark.parametrize("vocab_size", [300, 1 << 16, (1 << 16) + 1])
def test_what_is_written_is_read(tmp_path: Path, vocab_size: int) -> None:
    splits = write_store(tmp_path / "s", vocab_size)
    store = TokenStore(tmp_path / "s")
    assert (store.bos_id, store.eos_id, store.vocab_size, store.info["more"]) == (0, 0, vocab_size, 1)
    for name in ("train", "val"):
        split, expected = store.split(name), splits[name]  # type: ignore[arg-type]
        assert split.num_documents == len(expected) and split.text_bytes == 10 * len(expected)
        assert split.num_tokens == sum(map(len, expected))
        assert split.lengths.tolist() == [len(d) for d in expected]
        for i, document in enumerate(expected):
            found = split.document(i)
            assert found.dtype == id_type(vocab_size) and found.tolist() == document.tolist()
        for outside in (-1, len(expected)):
            with pytest.raises(IndexError):
                split.document(outside)


def test_layout_is_datatroves(tmp_path: Path) -> None:
    splits = write_store(tmp_path / "s")
    shards = sorted((tmp_path / "s/train").glob("*.ds"))
    assert len(shards) > 5 and shards[0].name == "00000.ds"
    tokens = np.concatenate([np.fromfile(shard, "<u2") for shard in shards])
    assert tokens.tolist() == np.concatenate(splits["train"]).tolist()
    lengths = []
    for shard in shards:
        ends = np.fromfile(f"{shard}.index", "<u8")
        assert ends[-1] * 2 == shard.stat().st_size <= 400
        lengths += np.diff(ends, prepend=0).tolist()
    assert lengths == [len(d) for d in splits["train"]]


def test_a_document_larger_than_a_shard(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{}")
    writer = StoreWriter(tmp_path, vocab_size=9, eos_id=0, shard_tokens=10)
    lengths = np.array([4, 25, 3, 7, 1])
    ids = np.concatenate([np.append(np.full(n - 1, n % 9), 0) for n in lengths])
    writer.add("train", ids, lengths, 1)
    writer.add("val", np.array([1, 0]), np.array([2]), 1)
    writer.finish(TOKENIZER, {})
    split = TokenStore(tmp_path).split("train")
    assert [shard["tokens"] for shard in read_store_info(tmp_path)["splits"]["train"]["shards"]] == [4, 25, 10, 1]
    assert split.lengths.tolist() == lengths.tolist()


def rewrite(path: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    info = json.loads(path.read_text())
    edit(info)
    path.write_text(json.dumps(info))


def patch(path: Path, offset: int, data: bytes) -> None:
    content = bytearray(path.read_bytes())
    content[offset : offset + len(data)] = data
    path.write_bytes(content)


def rewrite_index(store: Path, edit: Callable[[np.ndarray[Any, Any]], object]) -> None:
    """Change the ends of the training split, and their checksum."""
    ends = np.fromfile(store / "train/documents.index", "<u8").astype(np.int64)
    edit(ends)
    data = ends.astype("<u8").tobytes()
    (store / "train/documents.index").write_bytes(data)
    crc = f"{zlib.crc32(data):08x}"
    rewrite(store / "store.json", lambda i: i["splits"]["train"].update(index_crc32=crc))


def move_first_end(index: Path) -> None:
    """To a place where it still increases."""
    ends = np.fromfile(index, "<u8")
    row = int(np.flatnonzero(np.diff(ends) > 1)[0])
    ends[row] += 1
    ends.tofile(index)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda s: (s / "store.json").unlink(), "no store.json"),
        (lambda s: (s / "store.json").write_text("{"), "store.json is damaged"),
        (lambda s: (s / "store.json").write_text("[]"), "expected format"),
        (lambda s: rewrite(s / "store.json", lambda i: i.update(version=9)), "expected version 3, found 9"),
        (lambda s: rewrite(s / "store.json", lambda i: i.pop("splits")), "'splits' is missing"),
        (lambda s: rewrite(s / "store.json", lambda i: i["tokenizer"].update(eos_id=300)), "eos_id 300"),
        (lambda s: rewrite(s / "store.json", lambda i: i["tokenizer"].update(vocab_size=-1)), "vocab_size -1"),
        (lambda s: rewrite(s / "store.json", lambda i: i.update(dtype="uint32")), "dtype"),
        (lambda s: rewrite(s / "store.json", lambda i: i["splits"]["train"].update(tokens=1)), "says 1 tokens"),
        (lambda s: rewrite(s / "store.json", lambda i: i["splits"]["val"].update(text_bytes=-1)), "whole number"),
        (
            lambda s: rewrite(s / "store.json", lambda i: i["splits"]["train"]["shards"][0].update(name="../x")),
            "shard name",
        ),
        (lambda s: (s / "tokenizer.json").write_text("{} "), "not the one that made its tokens"),
        (lambda s: (s / "tokenizer.json").unlink(), "tokenizer.json"),
        (lambda s: (s / "train/00001.ds").unlink(), r"00001\.ds: No such file"),
        (lambda s: patch(s / "train/00001.ds", 10**6, b"\0"), r"00001\.ds: expected .* bytes"),
        (lambda s: (s / "val/documents.index").write_bytes(b""), r"documents\.index: expected 160 bytes"),
        (lambda s: (s / "val/documents.crc32").unlink(), r"documents\.crc32: No such file"),
        (lambda s: rewrite_index(s, lambda ends: ends.__setitem__(1, 0)), "do not increase"),
        (lambda s: rewrite_index(s, lambda ends: ends.__setitem__(0, 1 << 48)), "do not increase"),
        (lambda s: rewrite_index(s, lambda ends: ends.__isub__(ends > 200)), "at the end of each .ds file"),
        (lambda s: move_first_end(s / "train/documents.index"), r"documents\.index: expected the CRC-32"),
        (lambda s: patch(s / "train/documents.crc32", 4, b"\0\1\2"), r"documents\.crc32: expected the CRC-32"),
        (
            lambda s: rewrite(s / "store.json", lambda i: i["splits"]["train"].update(checksums_crc32="x" * 8)),
            "8 hexadecimal digits",
        ),
        (
            lambda s: rewrite(s / "store.json", lambda i: i["splits"]["train"].update(index_crc32="0" * 16)),
            "8 hexadecimal digits",
        ),
        (
            lambda s: rewrite(s / "store.json", lambda i: i["splits"]["train"].pop("index_crc32")),
            "'index_crc32' is missing",
        ),
        (
            lambda s: rewrite(s / "store.json", lambda i: i["splits"]["train"]["shards"][0].update(documents=0)),
            "has no documents",
        ),
        (lambda s: patch(s / "train/00000.ds", 0, b"\xff\xff"), "expected ids below 300, found 65,535"),
        (
            lambda s: patch(s / "val/00000.ds", (s / "val/00000.ds").stat().st_size - 2, b"\x07\0"),
            r"val/00000\.ds: document \d+, bytes .*expected the CRC-32",
        ),
    ],
)
def test_damaged_stores(tmp_path: Path, damage: Callable[[Path], object], message: str) -> None:
    write_store(tmp_path / "s")
    damage(tmp_path / "s")
    with pytest.raises(StoreError, match=message) as caught:
        store = TokenStore(tmp_path / "s")
        store.split("train")
        store.split("val")
    assert str(tmp_path) in str(caught.value) and "\n" not in str(caught.value)


BITS = ((0, 1), (7, 1), (-4, 1), (-3, 2))  # offsets and bits that leave ids inside the vocabulary


@pytest.mark.parametrize(("offset", "bit"), BITS)
def test_a_flipped_bit_is_found_before_the_ids_are_used(
    tmp_path: Path, offset: int, bit: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(token_store, "_SAMPLED_DOCUMENTS", 2)
    splits = write_store(tmp_path / "s", 1 << 16)
    store = TokenStore(tmp_path / "s")
    store.verify()
    path = tmp_path / "s/train/00001.ds"
    content = bytearray(path.read_bytes())
    content[offset] ^= bit
    path.write_bytes(content)
    damaged = TokenStore(tmp_path / "s").split("train")
    found = refused = 0
    for number, expected in enumerate(splits["train"]):
        try:
            assert damaged.document(number).tolist() == expected.tolist()
            found += 1
        except StoreError as error:
            assert "00001.ds: document " in str(error) and "expected the CRC-32" in str(error)
            refused += 1
    assert refused == 1 and found == 99
    with pytest.raises(StoreError, match=r"00001\.ds: document .*found"):
        TokenStore(tmp_path / "s").verify()


@pytest.mark.parametrize("length", [30, 5000])
def test_every_document_is_checked_when_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, length: int
) -> None:
    """Even if somebody wrote the checksums too; long documents as well, though only once."""
    monkeypatch.setattr(token_store, "_SAMPLED_DOCUMENTS", 2)
    (tmp_path / "tokenizer.json").write_text("{}")
    writer = StoreWriter(tmp_path, vocab_size=300, eos_id=0)
    ids = np.append(np.ones(length - 1, np.int64), 0)
    writer.add("train", np.tile(ids, 3), np.full(3, length), 1)
    writer.add("val", ids, np.array([length]), 1)
    writer.finish(TOKENIZER, {})
    file = tmp_path / "train/00000.ds"
    whole = file.read_bytes()
    for change, message in ((b"\xff\xff", "document 1: expected ids below 300, found 65,535"), (b"\x07\0", "EOS")):
        patch(file, 2 * (2 * length - 1), change)
        checksums = np.fromfile(tmp_path / "train/documents.crc32", "<u4")
        checksums[1] = zlib.crc32(file.read_bytes()[2 * length : 4 * length])
        checksums.tofile(tmp_path / "train/documents.crc32")
        crc = f"{zlib.crc32(checksums.tobytes()):08x}"
        rewrite(tmp_path / "store.json", lambda i, crc=crc: i["splits"]["train"].update(checksums_crc32=crc))  # type: ignore[misc]
        split = TokenStore(tmp_path).split("train")
        assert split.document(0).tolist() == split.document(2).tolist() == ids.tolist()
        for _ in range(2):
            with pytest.raises(StoreError, match=message):
                split.document(1)
        with pytest.raises(StoreError, match=message):
            TokenStore(tmp_path).verify()
        file.write_bytes(whole)


def test_long_documents_are_checked_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A row takes a piece of a long document, which costs no reading of all of it."""
    monkeypatch.setattr(token_store, "LONG_DOCUMENT_TOKENS", 20)
    splits = write_store(tmp_path / "s")
    split = TokenStore(tmp_path / "s").split("train")
    sizes: list[int] = []
    monkeypatch.setattr(token_store.zlib, "crc32", lambda ids, crc=zlib.crc32: sizes.append(len(ids)) or crc(ids))
    for _ in range(3):
        for number in range(split.num_documents):
            split.document(number)
    assert not [size for size in sizes if size > 20], "all were read when the split was opened"
    assert len(sizes) == 3 * sum(len(document) <= 20 for document in splits["train"])


def test_thousands_of_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Opening a split opens a bounded number of its files, and so does reading all of it."""
    (tmp_path / "tokenizer.json").write_text("{}")
    writer = StoreWriter(tmp_path, vocab_size=300, eos_id=0, shard_tokens=1)
    count, ids = 3000, np.zeros(3000, np.int64)
    writer.add("train", ids, np.ones(count, np.int64), count)
    writer.add("val", ids[:1], np.ones(1, np.int64), 1)
    writer.finish(TOKENIZER, {})
    opened: list[str] = []
    map_shard = token_store.Split._map_shard

    def note(split: token_store.Split, place: int) -> Any:
        opened.append(split._shards[place]["name"])
        return map_shard(split, place)

    monkeypatch.setattr(token_store.Split, "_map_shard", note)
    split = TokenStore(tmp_path).split("train")
    assert split.num_documents == count and len(opened) <= token_store._SAMPLED_DOCUMENTS
    descriptors = Path("/proc/self/fd")
    before = len(list(descriptors.iterdir())) if descriptors.is_dir() else 0
    assert all(split.document(int(n)).tolist() == [0] for n in np.random.default_rng(1).permutation(count))
    if descriptors.is_dir():
        assert len(list(descriptors.iterdir())) <= before + token_store.MAX_OPEN_SHARDS
    assert len(set(opened)) == count


def test_no_store(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="no such folder; make a store: llamita prepare"):
        TokenStore(tmp_path / "missing")

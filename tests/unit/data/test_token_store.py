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
        (lambda s: rewrite(s / "store.json", lambda i: i.update(version=9)), "expected version 2, found 9"),
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
        (lambda s: (s / "val/00000.ds.index").write_bytes(b""), r"00000\.ds\.index: expected"),
        (lambda s: patch(s / "train/00000.ds.index", 8, b"\0" * 8), "do not increase"),
        (lambda s: patch(s / "train/00000.ds.index", 6, b"\1"), "do not increase"),
        (lambda s: move_first_end(s / "train/00000.ds.index"), r"00000\.ds\.index: expected the CRC-32"),
        (
            lambda s: rewrite(s / "store.json", lambda i: i["splits"]["train"]["shards"][0].update(crc32="x" * 8)),
            "8 hexadecimal digits",
        ),
        (
            lambda s: rewrite(s / "store.json", lambda i: i["splits"]["train"]["shards"][0].update(crc32="0" * 16)),
            "expected 1 checksums in store.json, found 2",
        ),
        (
            lambda s: rewrite(s / "store.json", lambda i: i["splits"]["train"]["shards"][0].pop("crc32")),
            "'crc32' is missing",
        ),
        (lambda s: patch(s / "train/00000.ds", 0, b"\xff\xff"), "expected ids below 300, found 65,535"),
        (
            lambda s: patch(s / "val/00000.ds", (s / "val/00000.ds").stat().st_size - 2, b"\x07\0"),
            r"expected EOS \(0\) at its end, found id 7",
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
    monkeypatch.setattr(token_store, "BLOCK_BYTES", 64)
    monkeypatch.setattr(token_store.Checksum.__init__, "__defaults__", (64,))
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
            assert "00001.ds: bytes " in str(error) and "expected the CRC-32" in str(error)
            refused += 1
    assert refused >= 1 and found > 80
    with pytest.raises(StoreError, match=r"00001\.ds: bytes .*found"):
        TokenStore(tmp_path / "s").verify()


def test_every_document_is_checked_when_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Even if somebody wrote the checksums too."""
    monkeypatch.setattr(token_store, "_SAMPLED_DOCUMENTS", 2)
    splits = write_store(tmp_path / "s", shard_tokens=10**6)
    file, info = tmp_path / "s/train/00000.ds", tmp_path / "s/store.json"
    whole = file.read_bytes()
    end = 2 * sum(len(document) for document in splits["train"][:50])
    for change, message in ((b"\xff\xff", "expected ids below 300, found 65,535"), (b"\x07\0", "expected EOS")):
        patch(file, end - 2, change)
        crc = f"{zlib.crc32(file.read_bytes()):08x}"
        rewrite(info, lambda i, crc=crc: i["splits"]["train"]["shards"][0].update(crc32=crc))  # type: ignore[misc]
        with pytest.raises(StoreError, match=message):
            TokenStore(tmp_path / "s").split("train").document(49)
        with pytest.raises(StoreError, match=message):
            TokenStore(tmp_path / "s").verify()
        file.write_bytes(whole)


def test_no_store(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="no such folder; make a store: llamita prepare"):
        TokenStore(tmp_path / "missing")

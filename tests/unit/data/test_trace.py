"""Trace: any stretch of a document is found where it is; indexes that do not fit are refused."""

from __future__ import annotations

import itertools
import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llamita.config import PrepareConfig
from llamita.data import store_index, token_store
from llamita.data.prepare import prepare
from llamita.data.store_index import BLOCK_MEMORY_BYTES, StoreIndex, build_store_index
from llamita.data.token_store import SPLITS, StoreWriter, TokenStore
from llamita.data.trace import longest_runs, sentences, trace, trace_values
from llamita.engine import TextIndex
from llamita.errors import StoreError
from llamita.tokenizer import load_tokenizer

pytestmark = pytest.mark.usefixtures("engine_build")
WORDS = [
    "once",
    "the fox",
    "狐狸",
    "saw",
    "a\u3000small",
    "红色",
    "boat,",
    "and a",
    "kite.",
    "“Ha!”",
    "ran ",
    "it 🦙",
    "日本語",
]
SECRET = "The zebra of Zanzibar zigzags at noon."
HELD_OUT = "Quartz quails quarrel quietly in Quebec, 鹌鹑在争吵。"


def story(number: int) -> str:
    choose = random.Random(number)
    return " ".join(choose.choice(WORDS) for _ in range(choose.randrange(20, 60))) + f" number {number}"


@pytest.fixture(scope="module", params=["learned", "sentencepiece"])
def store(request: pytest.FixtureRequest, tiny_tokenizers: dict[str, Path], tmp_path_factory: Any) -> Path:
    """Documents in three training files and one that is held out, with an index."""
    folder = tmp_path_factory.mktemp("trace")
    (folder / "texts").mkdir()
    texts = [story(number) for number in range(120)]
    texts[7] += f"\n{SECRET} {texts[7]}"
    texts[9] = "a" * 6000
    (folder / "texts" / "a.txt").write_text("<|endoftext|>".join(texts[:50]))
    (folder / "texts" / "b.jsonl").write_text(
        "".join(json.dumps({"text": f"\0{text}\0."}) + "\n" for text in texts[50:90])
    )
    (folder / "texts" / "c.txt").write_text("<|endoftext|>".join(texts[90:110]))
    (folder / "val.txt").write_text("<|endoftext|>".join([*texts[110:], f"{HELD_OUT} {texts[111]} in val"]))
    tokenizer = None if request.param == "learned" else tiny_tokenizers["llama"]
    prepare(PrepareConfig(
        (str(folder / "texts"),), folder / "store", val=(str(folder / "val.txt"),), tokenizer=tokenizer,
        vocab_size=330 if tokenizer is None else None, num_workers=1,
    ))  # fmt: skip
    build_store_index(folder / "store")
    return folder / "store"


@pytest.fixture(scope="module")
def index(store: Path) -> StoreIndex:
    return StoreIndex(store)


@pytest.fixture
def copy(store: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(store, tmp_path / "store"))


def documents(index: StoreIndex, split: Any) -> list[bytes]:
    part = index.store.split(split)
    return [index.tokenizer.decode(part.document(i)[:-1].tolist()) for i in range(part.num_documents)]


def test_stretches_of_any_alignment(index: StoreIndex) -> None:
    """Cut at any byte, also within characters and tokens."""
    choose = random.Random(1)
    for split in SPLITS:
        for number, text in enumerate(documents(index, split)):
            for _ in range(4):
                length = choose.randrange(8, min(200, len(text)))
                start = choose.randrange(len(text) - length + 1)
                query = text[start : start + length]
                assert longest_runs(index.shards, query, 8) == [(0, length)], (split, number, start, length)


def test_longest_runs_are_those_of_a_plain_search(index: StoreIndex) -> None:
    choose = random.Random(2)
    texts = [text for split in SPLITS for text in documents(index, split)]
    first = b" " if index.tokenizer.add_space_prefix else b""  # which the tokens have
    whole = b"\xff".join([b"", *(first + text for text in texts)])
    for number in range(4):
        text = choose.choice(texts)
        cut = choose.randrange(len(text))
        query = text[cut : cut + 30] + story(number + 1000).encode()[:50] + choose.choice(texts)[:20]
        lengths = [
            next(n for n in range(len(query) - at, -1, -1) if query[at : at + n] in whole) for at in range(len(query))
        ]
        found = longest_runs(index.shards, query, 8)
        assert max(end - start for start, end in found) == max(lengths)
        assert all(query[start:end] in whole for start, end in found)
        assert all(end <= start for (_, end), (start, _) in itertools.pairwise(found))


def test_a_span_names_its_documents(index: StoreIndex) -> None:
    (sentence,) = trace(index, f"  {SECRET} ")
    (span,) = sentence.spans
    assert (sentence.start, sentence.text, span.start, span.text) == (2, SECRET, 2, SECRET)
    assert (span.num_places, span.is_complete, span.is_only_held_out) == ({"train": 1, "val": 0}, True, False)
    (source,) = span.sources
    texts = documents(index, "train")
    assert (source.split, source.file, source.unit, source.is_held_out) == ("train", "a.txt", "byte", False)
    text = texts[source.document]
    assert text[source.offset :].startswith(SECRET.encode())
    assert source.before and text[: source.offset].decode().endswith(source.before)
    assert source.after and text[source.offset + len(SECRET) :].decode().startswith(source.after)


def test_positions_are_those_in_the_source_files(index: StoreIndex, store: Path) -> None:
    raw = (store.parent / "texts" / "a.txt").read_bytes()
    rows = [json.loads(line)["text"] for line in (store.parent / "texts" / "b.jsonl").read_text().splitlines()]
    files = set()
    for number, text in enumerate(documents(index, "train")):
        origin = index.store.split("train").origin(number)
        assert origin is not None
        files.add(origin.file)
        if origin.file == "a.txt":
            assert raw[origin.position :].lstrip().startswith(text)
        elif origin.file == "b.jsonl":
            assert rows[origin.position - 1].strip().encode() == text
    assert files == {"a.txt", "b.jsonl", "c.txt"}


def test_held_out_text_says_so(index: StoreIndex) -> None:
    (sentence,) = trace(index, "他们说：鹌鹑在争吵。", min_bytes=12)
    (span,) = sentence.spans
    assert span.is_only_held_out and span.num_places == {"train": 0, "val": 1}
    (source,) = span.sources
    assert span.text == "鹌鹑在争吵。" and source.is_held_out and source.file == "val.txt"
    values = trace_values([sentence])[0]["spans"][0]
    assert values["is_only_held_out"] is True and values["sources"][0]["is_held_out"] is True


def test_a_held_out_document_is_among_the_sources(index: StoreIndex) -> None:
    for text in documents(index, "val"):
        for sentence in trace(index, text.decode()[:100], min_bytes=8, max_sources=2):
            for span in sentence.spans:
                assert any(source.is_held_out for source in span.sources) and len(span.sources) <= 2


def test_repeated_text(index: StoreIndex) -> None:
    (sentence, *_) = trace(index, "b" + "a" * 1000 + "b")
    (span,) = sentence.spans
    assert len(span.text) == 1000 and span.num_places["train"] > 1 and len(span.sources) == 1


def test_nothing_is_found_across_documents(index: StoreIndex) -> None:
    first, second = documents(index, "train")[:2]
    query = first[-20:] + second[:20]
    assert all(end - start < len(query) for start, end in longest_runs(index.shards, query, 8))
    assert longest_runs(index.shards, b"\xff" * 40, 8) == []


def test_several_shards_find_the_same(index: StoreIndex, copy: Path) -> None:
    largest = max(len(text) for split in SPLITS for text in documents(index, split))
    plan = build_store_index(copy, max_memory_bytes=BLOCK_MEMORY_BYTES * (largest // 4 + 100))
    assert plan.num_shards > 3
    cut = StoreIndex(copy)
    for number in range(20):
        text = story(number)
        one, many = trace_values(trace(index, text)), trace_values(trace(cut, text))
        assert one == many


def test_texts_that_repeat_take_few_searches(index: StoreIndex, monkeypatch: pytest.MonkeyPatch) -> None:
    searches = 0
    find = TextIndex.find

    def counted(self: TextIndex, query: bytes, max_places: int) -> Any:
        nonlocal searches
        searches += 1
        return find(self, query, max_places)

    monkeypatch.setattr(TextIndex, "find", counted)
    for text in ("." * 1000, "a" * 1000, "the fox" * 140, "boat, and a " * 80):
        trace(index, text)
        assert searches < 400, text[:12]
        searches = 0


def test_sentences() -> None:
    assert len(list(sentences(". " * 50_000))) == 50_000 and len(list(sentences("." * 100_000))) == 98
    text = "One. Two of 3.5 “Three!” 四。五？」six\n\nSeven"
    found = list(sentences(text))
    assert [sentence for _, sentence in found] == ["One.", "Two of 3.5 “Three!”", "四。", "五？」", "six", "Seven"]
    assert all(text[start:].startswith(sentence) for start, sentence in found)
    long = "狐" * 2000
    pieces = list(sentences(long))
    assert "".join(piece for _, piece in pieces) == long and max(len(piece.encode()) for _, piece in pieces) <= 1024
    assert list(sentences(" \n ")) == []


# ---- stores


def small_store(path: Path, store: Path, splits: dict[str, list[list[int]]], dtype: Any = np.uint16) -> Path:
    path.mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(store / name, path / name)
    tokenizer = load_tokenizer(path)
    assert tokenizer.eos_id is not None
    writer = StoreWriter(path, vocab_size=tokenizer.vocab_size, eos_id=tokenizer.eos_id)
    for name, texts in splits.items():
        for ids in texts:
            ended = np.array([*ids, tokenizer.eos_id], dtype)
            writer.add(name, ended, np.array([len(ended)]), len(ids))  # type: ignore[arg-type]
    writer.finish({"fingerprint": "f", "bos_id": 0, "eos_id": tokenizer.eos_id}, {})
    return path


def test_empty_and_one_token_stores(store: Path, tmp_path: Path) -> None:
    empty = small_store(tmp_path / "empty", store, {})
    assert build_store_index(empty).num_shards == 0
    assert trace(StoreIndex(empty), SECRET)[0].spans == ()
    one = small_store(tmp_path / "one", store, {"train": [[]], "val": [[], []]})
    assert build_store_index(one).disk_bytes == 3 * 4 + 2 * 6
    assert trace(StoreIndex(one), SECRET)[0].spans == ()


def test_a_store_without_origins(store: Path, tmp_path: Path) -> None:
    ids = load_tokenizer(store).encode(SECRET)
    path = small_store(tmp_path / "old", store, {"train": [ids]})
    build_store_index(path)
    (source,) = trace(StoreIndex(path), SECRET)[0].spans[0].sources
    assert (source.file, source.position, source.unit, source.offset) == (None, None, None, 0)


def change_json(path: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    info = json.loads(path.read_text())
    edit(info)
    path.write_text(json.dumps(info))


def flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: shutil.rmtree(path / "index"), "the store has no index; make one: llamita index "),
        (lambda path: (path / "index" / "index.json").write_text("{"), "index.json is damaged: "),
        (lambda path: (path / "index" / "index.json").write_text("[]"), "index.json is damaged: expected an object"),
        (lambda path: change_json(path / "index" / "index.json", lambda i: i.update(version=9)), "version 1, found 9"),
        (lambda path: change_json(path / "index" / "index.json", lambda i: i["splits"].pop("val")), "splits.val"),
        (lambda path: change_json(path / "index" / "index.json", lambda i: i["splits"]["train"].clear()), "tokens of"),
        (
            lambda path: change_json(
                path / "index" / "index.json", lambda i: i["splits"]["train"][0].update(name="../store.json")
            ),
            "expected the name train.0, found '../store.json'",
        ),
        (lambda path: change_json(path / "store.json", lambda i: i.update(more=1)), "made for another store.json"),
        (lambda path: (path / "index" / "train.0").unlink(), "train.0: No such file"),
        (
            lambda path: os.truncate(path / "index" / "train.0", 1000),
            "bytes, found 1,000; make it again: llamita index",
        ),
        (lambda path: flip(path / "index" / "train.0", 1001), "train.0: expected the CRC-32 "),
        (lambda path: flip(path / "index" / "val.0", -1), "val.0: expected the CRC-32 "),
        (lambda path: flip(path / "tokenizer.json", 9), "tokenizer.json"),
    ],
)
def test_damaged_and_stale_indexes(copy: Path, damage: Callable[[Path], object], message: str) -> None:
    damage(copy)
    with pytest.raises(StoreError) as error:
        StoreIndex(copy)
    assert message in str(error.value) and str(copy) in str(error.value)


def test_damaged_tokens_are_found_before_an_index_is_made(copy: Path) -> None:
    before = (copy / "index" / "index.json").read_bytes()
    flip(copy / "train" / "00000.ds", 4001)
    with pytest.raises(StoreError, match=r"CRC-32|expected ids below"):
        build_store_index(copy)
    assert (copy / "index" / "index.json").read_bytes() == before and not list(copy.glob(".index.*"))


def test_damaged_origins(copy: Path) -> None:
    flip(copy / "train" / "documents.position", 8)
    with pytest.raises(StoreError, match=r"documents\.position: expected the CRC-32"):
        trace(StoreIndex(copy), SECRET)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda origins: origins.update(positions_crc32="x"), "checksum"),
        (lambda origins: origins["files"][0].update(documents=-1), "not names and counts"),
        (lambda origins: origins["files"][0].update(name=3), "not names and counts"),
        (lambda origins: origins["files"].pop(), "origins of train are not those of"),
    ],
)
def test_wrong_origins(copy: Path, edit: Callable[[dict[str, Any]], object], message: str) -> None:
    change_json(copy / "store.json", lambda info: edit(info["splits"]["train"]["origins"]))
    with pytest.raises(StoreError, match=message):
        TokenStore(copy)


def test_a_document_longer_than_the_memory_allows(copy: Path) -> None:
    with pytest.raises(StoreError, match=r"document \d+ of train is too long: it needs .* raise --memory"):
        build_store_index(copy, max_memory_bytes=10_000)


def test_too_many_token_files(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(token_store, "MAX_MAPPED_FILES", 0)
    with pytest.raises(StoreError, match=r"expected at most 0 \.ds files, found 1"):
        StoreIndex(copy)


def test_a_store_that_changes_meanwhile(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = store_index._write

    def change(path: Path, arrays: Any) -> str:
        change_json(copy / "store.json", lambda info: info.update(more=2))
        return write(path, arrays)

    monkeypatch.setattr(store_index, "_write", change)
    with pytest.raises(StoreError, match="the store changed meanwhile; start again"):
        build_store_index(copy)


def test_an_error_in_the_thread_is_raised() -> None:
    def fail() -> None:
        raise KeyError("x")

    with pytest.raises(KeyError):
        store_index._in_thread(fail)


def test_origins_of_documents_that_scrubbing_empties(tmp_path: Path) -> None:
    texts = ["Home\nContact" if number % 3 == 0 else f"{story(number)} number {number}" for number in range(90)]
    for name, part in (("a.txt", texts[:50]), ("b.txt", texts[50:])):
        (tmp_path / name).write_text("<|endoftext|>".join(part))
    (tmp_path / "lines").write_text("Home\nContact\n")
    prepare(PrepareConfig(
        (str(tmp_path / "a.txt"), str(tmp_path / "b.txt")), tmp_path / "store", vocab_size=300, num_workers=1,
        val_fraction=0.2, drop_lines=tmp_path / "lines",
    ))  # fmt: skip
    store, tokenizer = TokenStore(tmp_path / "store"), load_tokenizer(tmp_path / "store")
    for name in SPLITS:
        split = store.split(name)
        for number in range(split.num_documents):
            origin = split.origin(number)
            assert origin is not None
            raw = (tmp_path / origin.file).read_bytes()[origin.position :].lstrip()
            assert raw.startswith(tokenizer.decode(split.document(number)[:-1].tolist()))

"""Text to token store: counts add up, splits are stable, reruns do nothing, kills leave nothing."""

from __future__ import annotations

import dataclasses
import errno
import gzip
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from llamita.config import PrepareConfig
from llamita.data import prepare as prepare_module
from llamita.data import token_store
from llamita.data.prepare import PrepareReport, document_hashes, prepare
from llamita.data.token_store import TokenStore
from llamita.errors import ConfigError, OutputError, SourceError, TokenizerError
from llamita.tokenizer import load_tokenizer, train_bpe

NAMES = ("Lily", "Ben", "Sue", "Tom", "Ada", "Max")
THINGS = ("ball", "apple", "pebble", "kite", "drum", "狐狸", "boat")


def story(number: int) -> str:
    choose = random.Random(number)
    name, thing, other = choose.choice(NAMES), choose.choice(THINGS), choose.choice(THINGS)
    return (
        f"One day {name} found a {thing} by the river. It was number {number}.\n"
        f'"May I keep the {thing}?" asked {name}. Mum said {choose.choice(("yes", "no"))}, and they ate {other}s.'
    )


STORIES = [story(i) for i in range(400)]


def write_stories(path: Path, stories: list[str] = STORIES) -> Path:
    path.write_bytes("\n<|endoftext|>\n".join(stories).encode())
    return path


def make(tmp_path: Path, **changes: object) -> PrepareConfig:
    if "sources" not in changes:
        changes["sources"] = (str(write_stories(tmp_path / "stories.txt")),)
    values = {"out": tmp_path / "store", "vocab_size": 320, "num_workers": 1}
    return PrepareConfig(**{**values, **changes})  # type: ignore[arg-type]


def texts(store: Path, split: str) -> list[str]:
    tokenizer = load_tokenizer(store)
    part = TokenStore(store).split(split)  # type: ignore[arg-type]
    documents = [part.document(i) for i in range(part.num_documents)]
    assert all(document[-1] == tokenizer.eos_id for document in documents)
    return [tokenizer.decode(document[:-1].tolist()).decode() for document in documents]


def check_sums(report: PrepareReport) -> None:
    parts = (report.duplicate_bytes, report.whitespace_bytes, report.separator_bytes, report.container_bytes)
    assert report.source_bytes == report.text_bytes + sum(parts)
    dropped = report.duplicate_documents + report.empty_documents
    assert report.documents == report.train.documents + report.val.documents + dropped
    store = TokenStore(report.out)
    for name, split in (("train", report.train), ("val", report.val)):
        found = store.split(name)  # type: ignore[arg-type]
        sizes = (found.num_documents, found.num_tokens, found.text_bytes)
        assert sizes == (split.documents, split.tokens, split.text_bytes)
        assert split.text_bytes == sum(len(text.encode()) for text in texts(report.out, name))


def test_every_document_is_in_the_store_once_in_order(tmp_path: Path) -> None:
    report = prepare(make(tmp_path, val_fraction=0.1))
    check_sums(report)
    train, val = texts(report.out, "train"), texts(report.out, "val")
    assert [text for text in STORIES if text in set(train)] == train
    assert [text for text in STORIES if text in set(val)] == val
    assert sorted(train + val) == sorted(STORIES)
    assert 20 <= len(val) <= 65
    assert load_tokenizer(report.out).vocab_size == report.vocab_size == 320


def test_mixed_sources_with_duplicates_and_empties_add_up(tmp_path: Path) -> None:
    folder = tmp_path / "text"
    folder.mkdir()
    write_stories(folder / "a.txt", [*STORIES[:150], "", "  \n ", STORIES[3], "\n" + STORIES[4] + "\t"])
    (folder / "b.jsonl").write_text("\n".join(json.dumps({"text": s, "n": 1}) for s in [*STORIES[140:300], " "]))
    (folder / "c.md").write_text("\ufeff" + STORIES[0])
    (folder / ".hidden").write_text("x")
    report = prepare(make(tmp_path, sources=(str(folder), str(folder / "c.md"))))
    check_sums(report)
    assert (report.files, report.hidden_files) == (4, 1)
    assert (report.duplicate_documents, report.empty_documents) == (2 + 10 + 2, 3)
    assert Counter(texts(report.out, "train") + texts(report.out, "val")) == Counter(STORIES[:300])


def test_line_ends_are_normalized_and_a_packed_source_gives_the_same_tokens(tmp_path: Path) -> None:
    text = "\n<|endoftext|>\n".join(STORIES)
    (tmp_path / "crlf.txt").write_bytes(text.replace("\n", "\r\n").encode())
    (tmp_path / "lf.txt.gz").write_bytes(gzip.compress(text.encode()))
    found = {}
    for name, options in (("crlf.txt", {}), ("lf.txt.gz", {}), ("crlf.txt", {"keep_line_ends": True})):
        config = make(tmp_path, sources=(str(tmp_path / name),), out=tmp_path / f"{name}{len(options)}", **options)
        report = prepare(config)
        check_sums(report)
        found[config.out.name] = (report.line_ends, sorted(texts(report.out, "train") + texts(report.out, "val")))
    kept = sorted(story.replace("\n", "\r\n") for story in STORIES)
    assert found == {
        "crlf.txt0": (len(STORIES), sorted(STORIES)), "lf.txt.gz0": (0, sorted(STORIES)), "crlf.txt1": (0, kept),
    }  # fmt: skip


def test_file_names_that_are_not_utf8(tmp_path: Path) -> None:
    path = tmp_path / os.fsdecode(b"\xff.txt")
    try:
        write_stories(path)
    except OSError:
        pytest.skip("the file system takes UTF-8 names only")
    config = make(tmp_path, sources=(str(path),), out=tmp_path / "tokens")
    assert not prepare(config).reused and prepare(config).reused
    command = [sys.executable, "-m", "llamita", "prepare", str(path), "--out", str(config.out), "--vocab-size", "320"]
    strict = {**os.environ, "PYTHONIOENCODING": "utf-8:strict"}
    done = subprocess.run(command, capture_output=True, timeout=60, env=strict)
    assert done.returncode == 0 and b"exists already" in done.stdout and done.stderr == b""


def test_held_out_texts_are_dropped_from_training(tmp_path: Path) -> None:
    val = write_stories(tmp_path / "val.txt", [*STORIES[:40], STORIES[0]])
    report = prepare(make(tmp_path, val=(str(val),)))
    check_sums(report)
    assert texts(report.out, "val") == STORIES[:40] and texts(report.out, "train") == STORIES[40:]
    assert report.duplicate_documents == 41


def test_more_text_moves_no_document_to_another_split(tmp_path: Path) -> None:
    few = prepare(make(tmp_path, out=tmp_path / "few", sources=(str(write_stories(tmp_path / "a.txt")),)))
    more = [story(i) for i in range(1000, 1400)]
    both = (str(write_stories(tmp_path / "0.txt", more)), str(tmp_path / "a.txt"))
    many = prepare(make(tmp_path, out=tmp_path / "many", sources=both))
    assert set(texts(few.out, "val")) == set(texts(many.out, "val")) & set(STORIES)
    other_seed = prepare(make(tmp_path, out=tmp_path / "seed", sources=both, seed=1))
    assert set(texts(other_seed.out, "val")) != set(texts(many.out, "val"))


def test_document_hash_is_fixed_for_ever() -> None:
    hashes = [each.hex() for each in document_hashes([b"Once upon a time", "狐狸".encode()], 0)]
    assert hashes == ["041b76e5564c0ea1bdb7e4cb77fae791", "5b3eb19def654f2a9effe96be989c2d8"]
    assert document_hashes([b"Once upon a time"], 1)[0].hex() == "638c839f7d76b88aef71390361850da1"


def test_the_same_command_again_does_nothing(tmp_path: Path) -> None:
    config = make(tmp_path)
    first = prepare(config)
    before = {path: path.stat().st_mtime_ns for path in config.out.rglob("*")}
    os.utime(config.sources[0])  # touched, not changed
    second = prepare(dataclasses.replace(config, num_workers=2))
    assert second.reused and not first.reused
    assert dataclasses.replace(second, seconds=first.seconds, reused=False) == first
    assert {path: path.stat().st_mtime_ns for path in config.out.rglob("*")} == before


def test_another_command_into_the_same_place_is_refused(tmp_path: Path) -> None:
    config = make(tmp_path)
    prepare(config)
    content = {path: path.read_bytes() for path in config.out.rglob("*") if path.is_file()}
    for change in ({"vocab_size": 321}, {"seed": 5}, {"val_fraction": 0.2}):
        with pytest.raises(OutputError, match=r"made from other text or with other flags.*--overwrite"):
            prepare(dataclasses.replace(config, **change))  # type: ignore[arg-type]
    write_stories(tmp_path / "stories.txt", STORIES[1:])
    with pytest.raises(OutputError, match="other text"):
        prepare(config)
    assert {path: path.read_bytes() for path in config.out.rglob("*") if path.is_file()} == content
    report = prepare(dataclasses.replace(config, overwrite=True))
    assert not report.reused and report.documents == 399
    assert sorted(path.name for path in tmp_path.iterdir()) == ["store", "stories.txt"]


def test_a_damaged_store_is_not_there_already(tmp_path: Path) -> None:
    config = make(tmp_path)
    prepare(config)
    for name, damage in (("train/00000.ds", lambda b: b[:-2]), ("val/00000.ds", lambda b: b[:4] + b"\x09" + b[5:])):
        path = config.out / name
        whole = path.read_bytes()
        path.write_bytes(damage(whole))
        with pytest.raises(OutputError, match=r"the token store of this text, but damaged .*--overwrite"):
            prepare(config)
        path.write_bytes(whole)
    path.write_bytes(whole[:-2])
    assert not prepare(dataclasses.replace(config, overwrite=True)).reused and path.read_bytes() == whole
    assert prepare(config).reused


def test_overwrite_replaces_token_stores_only(tmp_path: Path) -> None:
    config = make(tmp_path, overwrite=True)
    config.out.mkdir()
    (config.out / "thesis.txt").write_text("years of work")
    with pytest.raises(OutputError, match="it exists and is not a token store"):
        prepare(config)
    assert (config.out / "thesis.txt").read_text() == "years of work"
    (config.out / "thesis.txt").unlink()
    prepare(config)
    (config.out / "store.json").write_text((config.out / "store.json").read_text()[:200])  # damaged, but ours
    assert prepare(config).documents == 400


def test_out_inside_its_source_is_refused(tmp_path: Path) -> None:
    write_stories(tmp_path / "a.txt")
    with pytest.raises(ConfigError, match="is inside the source folder"):
        prepare(make(tmp_path, sources=(str(tmp_path),)))


def test_number_of_processes_changes_no_byte(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llamita.data.documents._BLOCK_BYTES", 3000)
    monkeypatch.setattr(token_store.StoreWriter.__init__, "__kwdefaults__", {"shard_tokens": 5000})
    for workers in (1, 2):
        prepare(make(tmp_path, out=tmp_path / str(workers), num_workers=workers))
    folders = (tmp_path / "1", tmp_path / "2")
    one, two = ({p.relative_to(d): p.read_bytes() for p in d.rglob("*") if p.is_file()} for d in folders)
    assert one == two and len(one) > 8


def test_given_tokenizers(tmp_path: Path) -> None:
    tokenizer = train_bpe(STORIES, 300)
    tokenizer.save(tmp_path / "tokenizer")
    report = prepare(make(tmp_path, vocab_size=None, tokenizer=tmp_path / "tokenizer"))
    check_sums(report)
    assert report.vocab_size == 300 and TokenStore(report.out).tokenizer_fingerprint == tokenizer.fingerprint
    again = prepare(make(tmp_path, vocab_size=None, tokenizer=tmp_path / "tokenizer" / "tokenizer.json"))
    assert again.reused
    content = json.loads((tmp_path / "tokenizer/tokenizer.json").read_text())
    (tmp_path / "tokenizer/tokenizer.json").write_text(json.dumps({**content, "post_processor": None}))
    without = prepare(make(tmp_path, out=tmp_path / "bos", vocab_size=None, tokenizer=tmp_path / "tokenizer"))
    assert not load_tokenizer(tmp_path / "tokenizer").begins_with_bos
    assert load_tokenizer(without.out).begins_with_bos, "documents begin with BOS in training"
    config = json.loads((tmp_path / "tokenizer/tokenizer_config.json").read_text())
    (tmp_path / "tokenizer/tokenizer_config.json").write_text(json.dumps({**config, "eos_token": None}))
    with pytest.raises(TokenizerError, match="no end-of-text token"):
        prepare(make(tmp_path, out=tmp_path / "x", vocab_size=None, tokenizer=tmp_path / "tokenizer"))


def test_given_sentencepiece_model(tmp_path: Path, shared_data: Path) -> None:
    for name in ("tok512.model", "tok512.bin"):
        path = shared_data / "models/stories260K" / name
        report = prepare(make(tmp_path, out=tmp_path / name, vocab_size=None, tokenizer=path))
        check_sums(report)
        store = TokenStore(report.out)
        assert (store.bos_id, store.eos_id, store.vocab_size) == (1, 2, 512)


POEMS = [
    f"{a}{b}明月光，疑是地上霜。\n舉頭望{b}{a}，低頭思故鄉。" for a in "春夏秋冬東西南北" for b in "山水風雲花鳥日月"
]


def test_the_unit_of_chinese(tmp_path: Path) -> None:
    """It is chosen by the text, or said; the report names it. English is not asked."""

    def made(name: str, documents: list[str], unit: str) -> PrepareReport:
        source = write_stories(tmp_path / f"{name}.txt", documents)
        changes = {"sources": (str(source),), "out": tmp_path / name, "vocab_size": None, "val_fraction": 0.3}
        return prepare(make(tmp_path, **changes, unit=unit))

    assert "Chinese by the word (" in made("auto", POEMS, "auto").vocabulary  # the same words again and again
    assert "Chinese by the character, as asked" in made("characters", POEMS, "character").vocabulary
    tokenizer = load_tokenizer(tmp_path / "characters")
    assert [len(tokenizer.encode(character)) for character in "明月光疑是地上霜"] == [1] * 8
    assert len(tokenizer.encode("明月光疑是地上霜")) == 8
    assert "character" not in made("words", POEMS, "word").vocabulary
    assert len(load_tokenizer(tmp_path / "words").encode("明月光，疑是地上霜")) < 5
    assert "Chinese" not in made("en", STORIES, "auto").vocabulary


def test_default_vocabulary_of_little_text_is_what_it_supports(tmp_path: Path) -> None:
    source = write_stories(tmp_path / "a.txt", STORIES[:60])
    report = prepare(make(tmp_path, sources=(str(source),), vocab_size=None, val_fraction=0.3))
    assert report.vocab_size % 64 == 0 and 320 <= report.vocab_size < 512
    assert "as large as this text supports" in report.vocabulary


@pytest.mark.parametrize(
    ("stories", "changes", "message"),
    [
        ([""], {}, "all documents are empty"),
        (["one single story. " * 200], {}, "it is a single document: split it with --split-on blank-lines"),
        (["a line\u2028" * 200], {"split_on": "blank-lines"}, "document without blank lines: split it with .* lines"),
        (["one line. " * 200], {"split_on": "lines"}, "document of one line: split it with --split-on blank-lines"),
        (
            ["a", "b"],
            {},
            "training split would get . of 2 documents, . bytes; expected at least 1,000 bytes; give more text",
        ),
        (STORIES[:30], {"val_fraction": 0.0001}, "validation split would get 0 of 30 documents.*larger --val-fraction"),
        (STORIES, {"vocab_size": 5000}, r"vocabulary of 5,000: the text supports at most \d"),
    ],
)
def test_too_little_text(tmp_path: Path, stories: list[str], changes: dict[str, object], message: str) -> None:
    source = write_stories(tmp_path / "a.txt", stories)
    with pytest.raises((SourceError, TokenizerError), match=message):
        prepare(make(tmp_path, sources=(str(source),), **changes))
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sources": ()}, "no SOURCE"),
        ({"vocab_size": 258}, "--vocab-size: expected 259"),
        ({"tokenizer": Path("x")}, "--vocab-size and --tokenizer exclude"),
        ({"val_fraction": 0.0}, "--val-fraction: expected more than 0"),
        ({"val_fraction": 0.1, "val": ("x",)}, "exclude each other"),
        ({"separator": " \n"}, "--separator"),
        ({"num_workers": 0}, "--num-workers"),
        ({"seed": -1}, "--seed"),
        ({"sources": ("stories", "a.txt")}, "cannot be mixed"),
    ],
)
def test_flags_out_of_range(changes: dict[str, object], message: str) -> None:
    values = {"sources": ("a.txt",), "out": Path("x"), "vocab_size": 300}
    with pytest.raises(ConfigError, match=message):
        PrepareConfig(**{**values, **changes})  # type: ignore[arg-type]


def test_a_source_that_changes_meanwhile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = make(tmp_path)
    learn = prepare_module._train_tokenizer

    def grow(*arguments: object) -> object:
        result = learn(*arguments)  # type: ignore[arg-type]
        with open(config.sources[0], "a") as file:
            file.write("<|endoftext|>and one more story")
        return result

    monkeypatch.setattr(prepare_module, "_train_tokenizer", grow)
    with pytest.raises(SourceError, match="changed while it was being read"):
        prepare(config)
    assert not config.out.exists()


def test_a_full_disk_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = make(tmp_path)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    for name in ("_write", "finish"):
        with monkeypatch.context() as patch:
            patch.setattr(token_store._SplitWriter, name, full)
            with pytest.raises(OutputError, match=r"cannot write .*store: No space left on device"):
                prepare(config)
        assert [path.name for path in tmp_path.iterdir()] == ["stories.txt"]


def test_a_limit_on_file_sizes_is_one_line(tmp_path: Path) -> None:
    source = write_stories(tmp_path / "a.txt")
    command = [sys.executable, "-m", "llamita", "prepare", str(source), "--out", str(tmp_path / "s")]
    command += ["--vocab-size", "320"]
    limited = ["/bin/sh", "-c", 'ulimit -f 8 && exec "$@"', "sh", *command]
    done = subprocess.run(limited, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.count("\n") == 1 and "cannot write" in done.stderr and "File too large" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]


def children(pid: int) -> list[int]:
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[1]) == pid:
            found.append(int(stat.parent.name))
    return found


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks for processes in /proc")
def test_a_killed_run_leaves_no_store_and_no_processes(tmp_path: Path) -> None:
    source = write_stories(tmp_path / "a.txt", [story(i) for i in range(12_000)])
    command = [sys.executable, "-m", "llamita", "prepare", str(source), "--out", str(tmp_path / "store")]
    command += ["--tokenizer", str(normalizing_tokenizer(tmp_path)), "--num-workers", "2"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 60
        while not list(tmp_path.glob(".store.*.partial/store/train/*.ds")):  # the workers' first tokens
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.01)
    finally:
        workers = children(process.pid)
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert len(workers) >= 2 and not (tmp_path / "store").exists()
    assert list(tmp_path.glob(".store.*.partial"))
    while any(alive(pid) for pid in workers):
        assert time.monotonic() < deadline, "orphans"
        time.sleep(0.05)
    report = prepare(make(tmp_path, sources=(str(source),)))
    assert not report.reused and report.documents == 12_000
    assert not list(tmp_path.glob(".store.*.partial")), "the next run removes it"


def normalizing_tokenizer(tmp_path: Path) -> Path:
    """A tokenizer that only the `tokenizers` library supports, so that processes encode."""
    train_bpe(STORIES, 320).save(tmp_path / "tokenizer")
    path = tmp_path / "tokenizer" / "tokenizer.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"normalizer": {"type": "NFC"}}))
    return path


@pytest.mark.usefixtures("engine_build")
def test_what_encodes_is_said_and_changes_no_byte(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    left = prepare(make(tmp_path, out=tmp_path / "nfc", vocab_size=None, tokenizer=normalizing_tokenizer(tmp_path)))
    assert left.encoded_by == "the tokenizers library (it normalizes text (NFC))"
    by_engine = prepare(make(tmp_path, out=tmp_path / "engine"))
    assert by_engine.encoded_by == "the engine" == prepare(make(tmp_path, out=tmp_path / "engine")).encoded_by
    monkeypatch.setattr("llamita.data.document_encoder.open_engine_encoder", lambda *_: "not today")
    by_library = prepare(make(tmp_path, out=tmp_path / "library"))
    assert by_library.encoded_by == "the tokenizers library (not today)"
    for name in ("train/00000.ds", "train/00000.ds.index", "val/00000.ds"):
        assert (by_engine.out / name).read_bytes() == (by_library.out / name).read_bytes()


def test_real_stories(tmp_path: Path, shared_data: Path) -> None:
    folder = shared_data / "tinystories"
    config = make(tmp_path, sources=(str(folder / "valid.txt"),), vocab_size=1024, val_fraction=0.1)
    report = prepare(config)
    check_sums(report)
    assert report.documents == 3_110 and report.text_bytes == 2_460_398 and report.duplicate_documents == 0

"""New token stores beside old ones: how much is replayed, and that known documents are left out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("tokenizers")

from llamita.config import PrepareConfig
from llamita.data.mixture import Mixture
from llamita.data.prepare import prepare
from llamita.data.replay import find_copies, open_replayed, replay_weights
from llamita.data.token_store import TokenStore
from llamita.errors import StoreError
from llamita.tokenizer import load_tokenizer

NEW = [f"Number {i} met number {i + 1} and said hello to it." for i in range(900)]


def make_store(out: Path, texts: list[str], tokenizer: Path | None, val: list[str] | None = None) -> Path:
    folder = out.with_name(f"{out.name}-texts")
    folder.mkdir()
    for name, documents in (("train", texts), ("val", val or [])):
        (folder / f"{name}.txt").write_text("<|endoftext|>".join(documents))
    held_out = (str(folder / "val.txt"),) if val else ()
    sources = (str(folder / "train.txt"),)
    vocab_size = None if tokenizer else 280
    prepare(PrepareConfig(sources=sources, val=held_out, out=out, tokenizer=tokenizer, vocab_size=vocab_size))
    return out


def texts_of(store: Path, split: str) -> list[str]:
    tokenizer, documents = load_tokenizer(store), TokenStore(store).split(split)  # type: ignore[arg-type]
    return [tokenizer.decode(documents.document(i)[:-1].tolist()).decode() for i in range(documents.num_documents)]


def test_documents_of_the_old_store_are_left_out_of_the_new_one(story_store: Path, tmp_path: Path) -> None:
    held_out, trained = texts_of(story_store, "val"), texts_of(story_store, "train")
    new = make_store(tmp_path / "new", [*NEW, *held_out[:3], trained[0]], story_store, [*trained[1:3], *NEW[:40]])
    replayed = open_replayed((str(new),), (str(story_store),), 0.5, story_store)
    assert replayed.known == {"train": 4, "val": 2}
    assert isinstance(replayed.data.train, Mixture)
    train = replayed.data.train.splits[0]
    tokenizer = load_tokenizer(new)
    texts = [tokenizer.decode(train.document(i)[:-1].tolist()).decode() for i in range(train.num_documents)]
    assert sorted(texts) == sorted(NEW[40:]) and train.text_bytes == sum(len(text.encode()) for text in texts)
    assert train.num_tokens == int(train.lengths.sum()) == sum(len(train.document(i)) for i in range(len(texts)))
    assert replayed.data.val.num_documents == 40 and replayed.old_val.num_documents == len(held_out)


@pytest.mark.parametrize("share", [0.0, 0.2, 0.5, 0.9])
def test_the_share_is_of_an_epochs_tokens(story_store: Path, tmp_path: Path, share: float) -> None:
    new = make_store(tmp_path / "new", NEW, story_store)
    other = make_store(tmp_path / "other", [f"{text} Twice." for text in NEW], story_store)
    data = open_replayed((f"{new}:2",), (str(story_store), f"{other}:3"), share, story_store).data
    num_new = 2 * TokenStore(new).split("train").num_tokens
    assert data.train.num_tokens == pytest.approx(num_new / (1 - share), abs=1)
    weights = [weight for _, weight in data.stores]
    assert weights[0] == 2 and weights[2] == pytest.approx(3 * weights[1])
    assert [each["weight"] for each in data.fingerprint["stores"]] == weights
    assert replay_weights(0.5, 100, [], []) == []


def test_equal_checksums_and_lengths_are_not_enough(
    story_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, new = TokenStore(story_store), TokenStore(make_store(tmp_path / "new", NEW, story_store))
    monkeypatch.setattr("llamita.data.replay._keys", lambda split: np.zeros(split.num_documents, np.uint64))
    assert not find_copies(new.split("train"), [old.split("train"), old.split("val")]).any()
    assert find_copies(old.split("val"), [new.split("val"), old.split("val")]).all()


def test_what_cannot_be_joined_is_named(story_store: Path, tmp_path: Path) -> None:
    new, strange = make_store(tmp_path / "new", NEW, story_store), make_store(tmp_path / "strange", NEW, None)
    with pytest.raises(StoreError, match=r"strange: its tokenizer is not that of .*again with --tokenizer"):
        open_replayed((str(strange),), (), 0.0, story_store)
    with pytest.raises(StoreError, match="different tokenizers"):
        open_replayed((str(new),), (str(strange),), 0.5, story_store)
    with pytest.raises(StoreError, match=r"expected new documents, found all 8\d\d training documents are in"):
        open_replayed((str(new),), (str(make_copy(new, tmp_path)),), 0.5, story_store)


def make_copy(store: Path, folder: Path) -> Path:
    import shutil

    return Path(shutil.copytree(store, folder / "copy"))

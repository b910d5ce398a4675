"""Token files in datatrove's layout: which become a store, and which are refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llamita.config import PrepareConfig
from llamita.data import datatrove as datatrove_module
from llamita.data.prepare import PrepareReport, prepare
from llamita.data.token_store import TokenStore
from llamita.errors import ConfigError, SourceError
from llamita.tokenizer import Tokenizer, load_tokenizer, train_bpe

pytest.importorskip("tokenizers")
TEXTS = [f"Once there was number {i}, and its friend {i * 17}; they met and danced." for i in range(400)]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    train_bpe(TEXTS, 280).save(folder)
    return folder


def write(path: Path, documents: list[list[int]]) -> Path:
    path.parent.mkdir(exist_ok=True)
    np.array([i for document in documents for i in document], "<u2").tofile(path)
    np.cumsum([len(document) for document in documents]).astype("<u8").tofile(f"{path}.index")
    return path


def encoded(tokenizer: Tokenizer, texts: list[str]) -> list[list[int]]:
    assert tokenizer.eos_id is not None
    return [[*ids, tokenizer.eos_id] for ids in tokenizer.encode_batch(texts)]


def make(tmp_path: Path, tokenizer: Path, **changes: Any) -> PrepareReport:
    values = {"sources": (str(tmp_path / "tokens"),), "out": tmp_path / "store", "tokenizer": tokenizer}
    return prepare(PrepareConfig(**{**values, "datatrove": True, **changes}))


def texts(store: Path, name: str) -> list[str]:
    tokenizer, split = load_tokenizer(store), TokenStore(store).split(name)  # type: ignore[arg-type]
    return [tokenizer.decode(split.document(i)[:-1].tolist()).decode() for i in range(split.num_documents)]


@pytest.mark.parametrize("val", [30, 100, 150, 190])
def test_the_last_documents_are_held_out(
    tmp_path: Path, tokenizer: Path, val: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whole files are linked; the file in which the held-out part begins is copied in two parts."""
    monkeypatch.setattr(datatrove_module, "_CHUNK_TOKENS", 700)
    documents = encoded(load_tokenizer(tokenizer), TEXTS)
    for number, (first, last) in enumerate([(0, 120), (120, 250), (250, 300), (300, 400)]):
        write(tmp_path / "tokens" / f"{number:05d}_00000_shuffled.ds", documents[first:last])
    (tmp_path / "tokens" / "00009_unshuffled.ds").touch()  # a task that had no documents
    (tmp_path / "tokens" / "00009_unshuffled.ds.index").touch()
    report = make(tmp_path, tokenizer, val_fraction=val / 400)
    assert texts(report.out, "train") == TEXTS[: 400 - val] and texts(report.out, "val") == TEXTS[-val:]
    assert report.text_bytes == sum(len(text) for text in TEXTS)
    assert report.source_bytes == report.text_bytes + report.container_bytes and report.documents == 400
    cut = val not in (100, 150)
    copied = [p for p in report.out.rglob("*.ds") if p.stat().st_nlink == 1 and not p.is_symlink()]
    assert len(copied) == (2 if cut else 0)
    assert make(tmp_path, tokenizer, val_fraction=val / 400).reused


def test_held_out_files_of_their_own(tmp_path: Path, tokenizer: Path) -> None:
    documents = encoded(load_tokenizer(tokenizer), TEXTS)
    write(tmp_path / "tokens" / "a.ds", documents[:300])
    val = write(tmp_path / "b.ds", documents[300:])
    report = make(tmp_path, tokenizer, val=(str(val),))
    assert texts(report.out, "train") == TEXTS[:300] and texts(report.out, "val") == TEXTS[300:]


def test_a_list_of_files(tmp_path: Path, tokenizer: Path) -> None:
    """Each opened only when it is read: there may be more than a process may open."""
    documents = encoded(load_tokenizer(tokenizer), TEXTS)
    for number in range(0, 400, 100):
        write(tmp_path / "tokens" / f"{number}.ds", documents[number : number + 100])
    (tmp_path / "list.txt").write_text("tokens/200.ds\n\ntokens/0.ds\n")
    report = make(tmp_path, tokenizer, sources=(str(tmp_path / "list.txt"),), val_fraction=0.1)
    assert texts(report.out, "train") == [*TEXTS[200:300], *TEXTS[:80]] and texts(report.out, "val") == TEXTS[80:100]
    for content, message in (
        ("tokens/0.ds\ntokens/missing.ds\n", r"list\.txt: line 2: expected the path of a \.ds file, found .*missing"),
        ("tokens/0.ds.index\n", r"line 1: expected the path of a \.ds file"),
        ("\n", "it is empty; expected the path"),
        (b"\xff\xfe", "codec can't decode"),
        (None, r"cannot read .*list\.txt: No such file"),
    ):
        if content is None:
            (tmp_path / "list.txt").unlink()
        else:
            (tmp_path / "list.txt").write_bytes(content.encode() if isinstance(content, str) else content)
        with pytest.raises(SourceError, match=message):
            make(tmp_path, tokenizer, sources=(str(tmp_path / "list.txt"),), out=tmp_path / "other")


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="counts open files in /proc")
def test_files_are_open_one_at_a_time(tmp_path: Path, tokenizer: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    documents, counts = encoded(load_tokenizer(tokenizer), TEXTS), []
    for number in range(400):
        write(tmp_path / "tokens" / f"{number:03}.ds", documents[number : number + 1])
    before = len(list(Path("/proc/self/fd").iterdir()))
    check = datatrove_module._check

    def count(*values: Any) -> None:
        counts.append(len(list(Path("/proc/self/fd").iterdir())))
        check(*values)

    monkeypatch.setattr(datatrove_module, "_check", count)
    assert make(tmp_path, tokenizer, val_fraction=0.1).documents == 400
    assert len(counts) == 400 and max(counts) < before + 20


def test_sentencepiece_bytes_are_the_texts(tmp_path: Path, shared_data: Path) -> None:
    """The space that SentencePiece adds before a text does not count as text."""
    path = shared_data / "models/stories260K/tok512.model"
    write(tmp_path / "tokens" / "a.ds", encoded(load_tokenizer(path), TEXTS))
    assert make(tmp_path, path).text_bytes == sum(len(text) for text in TEXTS)


def test_what_cannot_be_trained_on(tmp_path: Path, tokenizer: Path) -> None:
    documents = encoded(load_tokenizer(tokenizer), TEXTS)
    path = tmp_path / "tokens" / "a.ds"

    def refuse(message: str, **changes: Any) -> None:
        with pytest.raises(SourceError, match=message):
            make(tmp_path, tokenizer, **changes)
        assert not (tmp_path / "store").exists()

    refuse("no token files in")
    write(path, [*documents[:200], documents[200][:-1], *documents[201:]])
    refuse(
        r"a\.ds: document 200 does not end with EOS \(id 0\); run DocumentTokenizer with eos_token='<\|endoftext\|>'"
    )
    write(path, [*documents[:3], [500, 0], *documents[4:]])
    refuse(r"expected ids below 280, found 500; give the --tokenizer")
    write(path, [[*(min(i + 9, 279) for i in document[:-1]), 0] for document in documents])
    refuse("16 of 16 documents change when they are decoded and encoded again")
    write(path, documents)
    np.arange(1, 401).astype("<u8").tofile(f"{path}.index")
    refuse(r"a\.ds\.index: its ends do not increase from 0 to")
    Path(f"{path}.index").unlink()
    refuse(r"a\.ds\.index is missing")
    write(path, documents)
    mask = np.ones(sum(map(len, documents)), np.uint8)
    mask[7] = 0
    mask.tofile(f"{path}.loss")
    refuse(r"a\.ds\.loss: it masks tokens")
    np.ones_like(mask).tofile(f"{path}.loss")
    Path(f"{path}.metadata").write_text("big/tokenizer.json|4\n9\n9 T")
    refuse(r"expected 2 bytes per token for a vocabulary of 280, found 4 in its \.metadata")
    Path(f"{path}.metadata").write_text("own/tokenizer.json|2\n9\n9 T")
    refuse("training split would get|validation split would get", val_fraction=0.001)
    assert make(tmp_path, tokenizer).documents == 400


def test_a_tokenizer_is_needed() -> None:
    with pytest.raises(ConfigError, match="--datatrove needs the --tokenizer"):
        PrepareConfig(sources=("x",), out=Path("y"), datatrove=True)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("exclude", ("x/bad",)), ("split_on", "lines"), ("separator", "--"), ("text_key", "body"), ("unit", "word"),
        ("encoding", "utf-8"), ("keep_line_ends", True), ("skip_unknown", True), ("near_duplicates", "drop"),
        ("drop_lines", Path("lines.txt")), ("mask_personal_data", True),
    ],
)  # fmt: skip
def test_options_for_text_are_refused(option: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=f"--{option.replace('_', '-')}: --datatrove links to tokens as they are"):
        PrepareConfig(sources=("x",), out=Path("y"), datatrove=True, tokenizer=Path("t"), **{option: value})

"""Splits of fine-tuning data, held-out data that does not fit, and general text."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from llamita.errors import SourceError, TrainingError
from llamita.eval.score import Data
from llamita.finetune import dataset
from llamita.finetune.dataset import hold_out, is_text, open_sft_dataset, read_texts
from llamita.tokenizer import load_tokenizer
from tests.unit.finetune.conftest import make_config


def test_the_split_is_disjoint_and_stable_as_data_grows(chat_base: Path, questions: Path) -> None:
    dataset = open_sft_dataset(make_config(chat_base, questions, Path("x")), "cpu")
    assert len(dataset.train) == 36 and len(dataset.val) == 4
    wheres = {each.where for each in dataset.train}
    assert not wheres & {each.where for each in dataset.val}
    keys = [str(number) for number in range(200)]
    chosen = hold_out(keys, 0.1, None)
    assert chosen.sum() == 20 and hold_out(keys, 0.0, None).sum() == 0 and hold_out(["a"], None, 5).sum() == 0
    more = hold_out([*keys, *map(str, range(200, 220))], 0.1, None)
    assert (chosen & ~more[:200]).sum() <= 3
    assert hold_out(["a"] * 9 + ["b"] * 9, 0.5, None).sum() == 9  # equal ones stand on one side
    assert hold_out(keys * 10, None, 8).sum() == 80


def test_held_out_conversations_that_do_not_fit_are_counted(chat_base: Path, questions: Path, tmp_path: Path) -> None:
    """And if none fits, there is nothing to judge by: `best` would mean nothing."""
    long = json.dumps({"question": "Why? " * 200, "answer": "So."}) + "\n"
    val = tmp_path / "val.jsonl"
    val.write_text(long + '{"question": "Who?", "answer": "She."}\n' + long)
    dataset = open_sft_dataset(make_config(chat_base, questions, tmp_path / "x", val=val), "cpu")
    assert len(dataset.val) == 1 and dataset.val_counts.too_long == 2
    val.write_text(long + long)
    with pytest.raises(TrainingError, match=r"nothing to evaluate on: none of 2 .*val\.jsonl:1\); shorten them, or"):
        open_sft_dataset(make_config(chat_base, questions, tmp_path / "x", val=val), "cpu")


def test_a_book_and_many_documents_are_cut(story_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dataset, "GENERAL_CHARACTERS", 100)
    monkeypatch.setattr(dataset, "GENERAL_TOKENS", 150)
    tokenizer = load_tokenizer(story_store)
    text = "The old fox slept under the apple tree. " * 50
    path = tmp_path / "book.txt"
    path.write_text("\n<|endoftext|>\n".join([text] * 20), encoding="utf-8")
    found = dataset.open_general_text(path, tokenizer, 0)
    one = len(tokenizer.encode(text[:100])) + 1
    assert found.num_documents == -(-150 // one) and found.text_bytes == 100 * found.num_documents


def test_packed_texts_and_tables_are_read_alike_by_finetune_and_eval(tmp_path: Path) -> None:
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(b"\xef\xbb\xbfone\r\ntwo<|endoftext|>three"))
    (tmp_path / "b.csv").write_text("id;text\n1;four\n")
    (tmp_path / "c.tsv").write_text("id\ttext\n1\tfive\n")
    (tmp_path / "d.jsonl.gz").write_bytes(gzip.compress(b'{"text": "six"}'))
    assert is_text(tmp_path / "a.txt.gz") and not is_text(tmp_path / "d.jsonl.gz")
    assert read_texts(tmp_path / "a.txt.gz") == ["one\ntwo", "three"]
    with pytest.raises(SourceError, match=r"both texts \(a\.txt\.gz\) and examples \(b\.csv\)"):
        is_text(tmp_path)
    found: list[str] = []

    def encode(texts: list[str]) -> list[list[int]]:
        found.extend(texts)
        return [[1] for _ in texts]

    Data((str(tmp_path),)).encode_texts(encode, 0)
    assert found == ["one\ntwo", "three", "four", "five", "six"]
    Data((str(tmp_path / "a.txt.gz"),), split_on="lines", keep_line_ends=True).encode_texts(encode, 0)
    assert found[5:] == ["one", "two<|endoftext|>three"]

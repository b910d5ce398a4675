"""Near-duplicates: what is found and what is not, in text with spaces and without; held-out text."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest

from llamita.config import PrepareConfig
from llamita.data.near_duplicates import NearDuplicates
from llamita.data.prepare import PrepareReport, prepare
from llamita.data.token_store import TokenStore
from llamita.errors import ConfigError
from llamita.tokenizer import load_tokenizer

ENGLISH = [a + b for a in ("ba", "do", "fe", "gi", "ku", "lo", "me", "ni", "pa", "ro") for b in "bdfgklmnprst"]
CHINESE = [chr(0x4E00 + 7 * i) for i in range(300)]


def make(words: list[str], between: str, count: int, length: int, seed: int) -> list[list[str]]:
    rng = random.Random(seed)
    return [[rng.choice(words) for _ in range(length)] for _ in range(count)]


def edited(document: list[str], words: list[str], rng: random.Random, share: float = 0.05) -> list[str]:
    changed = list(document)
    for place in rng.sample(range(len(document)), max(1, round(share * len(document)))):
        changed[place] = rng.choice(words)
    return changed


def find(texts: list[str], is_val: list[bool] | None = None) -> list[int]:
    near = NearDuplicates()
    for first in range(0, len(texts), 7):  # blocks do not matter
        near.add([text.encode() for text in texts[first : first + 7]])
    val = np.array(is_val or [False] * len(texts), np.bool_)
    return near.find(np.argsort(~val, kind="stable"), val).tolist()


@pytest.mark.parametrize(
    ("words", "between"), [(ENGLISH, " "), (CHINESE, ""), (ENGLISH[:60] + CHINESE[:100], " ")], ids=["en", "zh", "both"]
)
def test_planted_edits_are_found_and_nothing_else(words: list[str], between: str) -> None:
    rng = random.Random(1)
    documents = make(words, between, 200, 80, 0)
    planted = [edited(document, words, rng) for document in documents[:100]]
    found = find([between.join(document) for document in documents + planted])
    assert found[:200] == [-1] * 200
    assert found[200:] == list(range(100))


def test_case_punctuation_and_width_do_not_count() -> None:
    assert find(["The fox, the hen and the boat!", "the FOX the hen and the boat"]) == [-1, 0]
    assert find(["模型ＡＢＣ１２３，可以下载。", "模型abc123可以下载"]) == [-1, 0]


def test_texts_of_signs_are_compared_as_they_are() -> None:
    assert find(["***", "---", "***"]) == [-1, -1, 0]
    assert find([]) == []


def test_short_rows_that_differ_where_it_matters_stay() -> None:
    assert find(["What is 3 + 4?", "What is 3 + 5?", "What is 8 + 4?"]) == [-1, -1, -1]


def test_of_a_group_the_held_out_document_is_kept() -> None:
    document = make(ENGLISH, " ", 1, 100, 0)[0]
    rng = random.Random(0)
    texts = [" ".join(edited(document, ENGLISH, rng, 0.02)) for _ in range(5)]
    found = find(texts, [False, False, True, False, True])
    assert found[2] == -1 and found[4] == 2 and {found[0], found[1], found[3]} <= {2, 4}


def test_training_never_repeats_a_held_out_document_that_was_dropped() -> None:
    """C repeats B, B repeats A, but C does not repeat A; A and B are held out."""
    words = make(ENGLISH, " ", 1, 100, 0)[0]
    other = make(CHINESE, " ", 1, 100, 1)[0]
    a, b, c = words, words[20:] + other[:20], words[40:] + other[:40]
    texts = [" ".join(each) for each in (a, b, c)]
    assert find([texts[0], texts[2]]) == [-1, -1]
    assert find(texts, [True, True, False]) == [-1, 0, 1]
    assert find(texts, [True, True, True]) == [-1, 0, -1], "B is dropped, so C is kept"


def test_a_phrase_in_all_documents_does_not_take_quadratic_time() -> None:
    """Of the documents that share a band, at most 256 are compared; the planted ones are still found."""
    notice = make(ENGLISH, " ", 1, 60, 3)[0]
    rng = random.Random(2)
    documents = [notice + document for document in make(CHINESE, " ", 600, 60, 4)]
    planted = [edited(document, CHINESE, rng) for document in documents[-20:]]
    found = find([" ".join(document) for document in documents + planted])
    assert [each >= 0 for each in found[600:]] == [True] * 20


# ---- prepare


def prepared(
    tmp_path: Path, texts: list[str], name: str, **options: object
) -> tuple[PrepareReport, dict[str, set[str]]]:
    source = tmp_path / f"{name}.txt"
    source.write_text("\n<|endoftext|>\n".join(texts), encoding="utf-8")
    report = prepare(
        PrepareConfig(sources=(str(source),), out=tmp_path / name, vocab_size=300, val_fraction=0.2, **options)  # type: ignore[arg-type]
    )
    store = TokenStore(tmp_path / name)
    tokenizer = load_tokenizer(store.tokenizer_path)
    splits = {
        split: {
            tokenizer.decode(store.split(split).document(i).tolist()).decode()
            for i in range(store.split(split).num_documents)
        }
        for split in ("train", "val")
    }
    assert report.source_bytes == (
        report.text_bytes + report.duplicate_bytes + report.near_duplicate_bytes + report.whitespace_bytes
        + report.separator_bytes + report.container_bytes + report.unread_bytes + report.dropped_line_bytes
        + report.masked_bytes
    )  # fmt: skip
    assert report.documents == (
        report.train.documents + report.val.documents + report.duplicate_documents + report.near_duplicate_documents
        + report.empty_documents
    )  # fmt: skip
    return report, splits


@pytest.fixture(scope="module")
def corpus() -> list[str]:
    rng = random.Random(5)
    documents = make(ENGLISH, " ", 60, 60, 6)
    copies = [edited(document, ENGLISH, rng) for document in documents]
    return [" ".join(document) for document in documents + copies]


def test_drop_keeps_one_of_each_group_in_any_order(tmp_path: Path, corpus: list[str]) -> None:
    report, splits = prepared(tmp_path, corpus, "one", near_duplicates="drop")
    assert report.near_duplicate_documents == 60 and len(splits["train"] | splits["val"]) == 60
    assert report.near_held_out > 0
    _, again = prepared(tmp_path, corpus[::-1], "two", near_duplicates="drop")
    assert again == splits


def test_more_documents_never_move_held_out_text_into_training(tmp_path: Path, corpus: list[str]) -> None:
    _, before = prepared(tmp_path, corpus[:60], "before", near_duplicates="drop")
    _, after = prepared(tmp_path, corpus, "after", near_duplicates="drop")
    held_out = sorted(before["val"])
    training = sorted(after["train"])
    found = find(held_out + training, [True] * len(held_out) + [False] * len(training))
    assert held_out and all(each < 0 for each in found[len(held_out) :])


def test_report_keeps_all_and_counts_what_crosses(tmp_path: Path, corpus: list[str]) -> None:
    report, splits = prepared(tmp_path, corpus, "store", near_duplicates="report")
    assert len(splits["train"] | splits["val"]) == 120
    assert (report.near_duplicates_kept, report.near_duplicate_documents) == (60, 0)
    pairs = list(zip(corpus[:60], corpus[60:], strict=True))
    assert report.near_held_out == sum((a in splits["val"]) != (b in splits["val"]) for a, b in pairs) > 0


def test_a_held_out_file_is_kept(tmp_path: Path, corpus: list[str]) -> None:
    val = tmp_path / "val.txt"
    val.write_text("\n<|endoftext|>\n".join(corpus[60:]))
    source = tmp_path / "train.txt"
    source.write_text("\n<|endoftext|>\n".join([*corpus[:60], " ".join(CHINESE * 3)]))
    report = prepare(
        PrepareConfig(
            sources=(str(source),), val=(str(val),), out=tmp_path / "store", vocab_size=300, near_duplicates="drop"
        )
    )
    assert (report.val.documents, report.train.documents, report.near_held_out) == (60, 1, 60)


def test_the_choice_belongs_to_the_recipe(tmp_path: Path, corpus: list[str]) -> None:
    from llamita.errors import OutputError

    prepared(tmp_path, corpus, "store")
    with pytest.raises(OutputError, match="other text or with other flags"):
        prepared(tmp_path, corpus, "store", near_duplicates="drop")


def test_not_for_tokens_that_exist(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--datatrove links to tokens as they are"):
        PrepareConfig(sources=("x",), out=tmp_path, datatrove=True, tokenizer=tmp_path, near_duplicates="drop")

"""Numbers about texts, against what a person counts."""

from __future__ import annotations

import math

import pytest

from llamita.batch_generate import Sample
from llamita.eval.sample_metrics import distinct, measure_samples, split_words


def make_sample(text: str, *, tokens: int = 1, ended: bool = True) -> Sample:
    return Sample(tuple(range(tokens)), text.encode(), ended)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("The cat's  hat, the CAT!", ["the", "cat's", "hat", ",", "the", "cat", "!"]),
        ("床前明月光，is 1024 トラ", ["床", "前", "明", "月", "光", "，", "is", "1024", "ト", "ラ"]),
        ("niño’s “Été”", ["niño’s", "“", "été", "”"]),
        ("안녕 \U00020000x", ["안", "녕", "\U00020000", "x"]),
        ("ไทย ok", ["ไ", "ท", "ย", "ok"]),
        (" \n", []),
    ],
)
def test_words(text: str, words: list[str]) -> None:
    assert split_words(text) == words


def test_distinct_by_hand() -> None:
    texts = [["a", "b", "a", "b"], ["a", "b", "c"]]
    assert distinct(texts, 1) == 3 / 7
    assert distinct(texts, 2) == 3 / 5  # ab ba ab | ab bc: ab, ba, bc
    assert distinct(texts, 3) == 3 / 3  # aba bab | abc
    assert distinct(texts, 4) == 1 / 1
    assert distinct(texts, 5) is None  # and none across texts


def test_metrics_by_hand() -> None:
    found = measure_samples(
        [
            make_sample(
                "go on and on go on and on", tokens=9
            ),  # 4-grams: goa ona nog+ … 5 in all, the first and the last equal
            make_sample("one two three four five", tokens=5, ended=False),  # 2, both different
            make_sample("é", tokens=1),  # too short to repeat anything
        ]
    )
    assert (found.num_samples, found.mean_tokens, found.mean_bytes) == (3, 5.0, (25 + 23 + 2) / 3)
    assert found.stop_rate == 2 / 3
    assert found.distinct_1 == 9 / 14
    assert found.distinct_2 == (4 + 4) / (7 + 4)  # go on, on and, and on, on go; one two … four five
    assert found.distinct_3 == (4 + 3) / (6 + 3)
    assert math.isclose(found.repetition, (1 / 5 + 0) / 2)


def test_texts_without_words_have_no_repetition() -> None:
    found = measure_samples([make_sample(""), make_sample("\n", ended=False)])
    assert (found.distinct_1, found.repetition, found.stop_rate) == (0.0, 0.0, 0.5)

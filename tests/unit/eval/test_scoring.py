"""The rows that bits per byte is computed on: each document from BOS, non-overlapping, every token once."""

from __future__ import annotations

import math

import numpy as np

from llamita.data.batches import IGNORED
from llamita.eval.scoring import EncodedTexts, score_documents, scoring_batches, scoring_rows

BOS, EOS = 1, 2


def encode_letters(texts: list[str]) -> list[list[int]]:
    return [[ord(letter) for letter in text] for text in texts]


def make_documents() -> EncodedTexts:
    return EncodedTexts(["  abcdefg\n", "", " \n", "xy", "é"], encode_letters, EOS)


def test_texts_are_stripped_counted_in_bytes_and_closed_with_eos() -> None:
    documents = make_documents()
    assert documents.num_documents == 3 and documents.text_bytes == 7 + 2 + 2
    assert documents.document(1).tolist() == [ord("x"), ord("y"), EOS]
    assert documents.num_tokens == 8 + 3 + 2 and documents.lengths.tolist() == [8, 3, 2]


def test_rows_start_with_bos_or_the_last_target_of_the_row_before() -> None:
    documents = make_documents()
    seen = []
    score_documents(documents, 3, BOS, lambda ids: seen.append(ids.tolist()) or np.zeros(len(ids) - 1))
    a, b, c, d, e, f, g = (ord(letter) for letter in "abcdefg")
    assert sorted(seen, key=len, reverse=True) == seen
    assert {tuple(row) for row in seen} == {
        (BOS, a, b, c), (c, d, e, f), (f, g, EOS), (BOS, ord("x"), ord("y"), EOS), (BOS, ord("é"), EOS),
    }  # fmt: skip


def test_batches_hold_every_target_once_in_about_the_tokens_asked_for() -> None:
    documents = make_documents()
    rows = scoring_rows(documents.lengths, 3)
    targets = []
    for inputs, wanted in scoring_batches(documents, rows, BOS, tokens_per_batch=6):
        assert inputs.shape == wanted.shape and inputs.size <= 6
        targets += wanted[wanted != IGNORED].tolist()
    assert sorted(targets) == sorted(t for i in range(3) for t in documents.document(i).tolist())


def test_bits_per_byte_is_nats_over_ln2_and_bytes() -> None:
    documents = make_documents()
    reported: list[tuple[str, int, int]] = []
    score = score_documents(
        documents, 4, BOS, lambda ids: np.full(len(ids) - 1, math.log(4)), lambda *values: reported.append(values)
    )
    assert math.isclose(score.bits_per_byte, 2 * 13 / 11) and math.isclose(score.nats_per_token, math.log(4))
    assert [done for _, done, _ in reported] == list(range(1, reported[-1][2] + 1))

"""Longest copies: against a search that tries everything, at the borders of documents and chunks, and the warning."""

from __future__ import annotations

import dataclasses

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llamita.eval.memorization import Match, beginnings, longest_matches, longest_overlap, measure_memorization

EOS = 0


class Stored:
    """Documents in memory: lists of ids as they are, EOS included where there is one."""

    def __init__(self, documents: list[list[int]]) -> None:
        self._documents = [np.array(document, dtype=np.uint16) for document in documents]
        self.lengths = np.array([len(document) for document in documents], dtype=np.int64)
        self.num_documents = len(documents)
        self.num_tokens = int(self.lengths.sum())
        self.text_bytes = self.num_tokens

    def document(self, index: int, /) -> npt.NDArray[np.uint16]:
        return self._documents[index]


def closed(*texts: str) -> Stored:
    """The bytes of each text and EOS."""
    return Stored([[*text.encode(), EOS] for text in texts])


def decode(ids: npt.NDArray[np.int64]) -> bytes:
    return bytes(int(i) for i in ids)


def longest_by_trying(text: list[int], documents: list[list[int]]) -> int:
    return max(
        (
            length
            for document in documents
            for start in range(len(text))
            for length in range(1, len(text) - start + 1)
            if any(document[at : at + length] == text[start : start + length] for at in range(len(document)))
        ),
        default=0,
    )


some_ids = st.lists(st.integers(0, 3), max_size=12)


@settings(max_examples=300, deadline=None)
@given(texts=st.lists(some_ids, max_size=4), documents=st.lists(some_ids, max_size=5), chunk_ids=st.integers(1, 30))
def test_lengths_are_those_of_trying_everything(
    texts: list[list[int]], documents: list[list[int]], chunk_ids: int
) -> None:
    found = longest_matches(texts, Stored(documents), chunk_ids=chunk_ids)
    assert [match.length for match in found] == [longest_by_trying(text, documents) for text in texts]
    for text, match in zip(texts, found, strict=True):
        if match.length:
            there = documents[match.document][match.document_start :][: match.length]
            assert text[match.start :][: match.length] == there and len(there) == match.length
        else:
            assert match == Match()


def test_large_ids_and_many_chunks() -> None:
    random = np.random.default_rng(0)
    documents = [random.integers(60_000, 60_050, size=200).tolist() for _ in range(60)]
    text = [7, *documents[41][100:177], 8, *documents[3][:30]]
    for chunk_ids in (100, 1000, 1 << 21):
        (found,) = longest_matches([text], Stored(documents), chunk_ids=chunk_ids)
        assert (found.length, found.document) == (77, 41) and found.start == 1 and found.document_start == 100


def test_a_copy_of_a_whole_document_and_a_new_text() -> None:
    found = longest_matches([list(range(1, 2000)), [5000]], Stored([[9, 9], list(range(1, 2000))]))
    assert found == [Match(1999, 0, 1, 0), Match()]


def test_overlap_says_what_was_copied() -> None:
    documents = closed("the fox sleeps", "春眠不覺曉，處處聞啼鳥。")
    samples = [list(b"a fox runs"), list("又春眠不覺曉，人".encode())]
    overlap = longest_overlap(samples, documents, decode)
    assert overlap.text.decode() == "春眠不覺曉，" and (overlap.sample, overlap.document) == (1, 1)
    assert overlap.length_bytes == overlap.length_tokens == 18
    assert longest_overlap([bytes(sample) for sample in samples], documents) == overlap
    nothing = longest_overlap([[], [200]], documents, decode)
    assert (nothing.length_tokens, nothing.text, nothing.document) == (0, b"", -1)


def test_a_part_of_the_documents() -> None:
    documents = Stored([[number] * 10 for number in range(100)])
    found = longest_matches([[number] * 10 for number in range(100)], documents, max_tokens=200)
    read = [match.document for match in found if match.length]
    assert len(read) == 20 and read[0] == 0 and read[-1] == 99


def test_beginnings_are_as_long_and_spread() -> None:
    documents = Stored([[number] * (number + 1) for number in range(1, 21)])  # `number` ids and EOS
    assert [ids.tolist() for ids in beginnings(documents, [18, 18, 18])] == [[18] * 18, [19] * 18, [20] * 18]
    assert [ids.size for ids in beginnings(documents, [3, 50])] == [3, 20]
    assert list(beginnings(Stored([]), [3])) == []


@pytest.mark.parametrize(("copied", "memorizes"), [(2, False), (40, True)])
def test_the_warning_needs_copies_that_held_out_text_does_not_have(copied: int, memorizes: bool) -> None:
    random = np.random.default_rng(1)
    opening = [1, 2, 3, 4, 5, 6]
    texts = [[*opening, *random.integers(10, 500, size=94).tolist()] for _ in range(300)]
    training, val = texts[:250], texts[250:]
    samples = [[*text[: 6 + copied], *random.integers(10, 500, size=94 - copied).tolist()] for text in training[:8]]
    found = measure_memorization(
        samples,
        Stored([[*t, EOS] for t in val]),
        Stored([[*t, EOS] for t in training]),
        lambda ids: b"x" * len(ids),
    )
    assert found.memorizes == memorizes and found.val_known == 0
    assert found.median_tokens >= 6 + copied and 6 <= found.val_median_tokens <= 8
    assert found.longest.length_bytes == found.longest.length_tokens >= 6 + copied


def test_text_that_was_not_held_out_is_noticed() -> None:
    training = closed("one very fine day", "two very fine days")
    found = measure_memorization([list(b"one very fine d"), list(b"two")], training, training, decode)
    assert found.val_known == 0.5 and not found.memorizes  # three bytes are no proof
    assert dataclasses.asdict(found)["val_median_tokens"] == 9


@pytest.mark.parametrize(("copied", "memorizes"), [(8, False), (16, True)])
def test_copies_without_spaces_are_measured_in_characters(copied: int, memorizes: bool) -> None:
    """Eight characters are 24 bytes; with a token a byte they are still a phrase."""
    random = np.random.default_rng(3)
    texts = ["".join(map(chr, random.integers(0x4E00, 0x9000, size=60))) for _ in range(60)]
    training = Stored([[*text.encode(), EOS] for text in texts[:50]])
    val = Stored([[*text.encode(), EOS] for text in texts[50:]])
    others = ["".join(map(chr, random.integers(0x4E00, 0x9000, size=60))) for _ in range(8)]
    samples = [list((text[:copied] + other[copied:]).encode()) for text, other in zip(texts, others, strict=False)]
    found = measure_memorization(samples, val, training, lambda ids: bytes(np.asarray(ids, np.uint8)))
    assert found.min_tokens == 36 and found.longest.length_tokens >= 3 * copied and found.memorizes == memorizes

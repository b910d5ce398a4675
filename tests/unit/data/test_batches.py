"""Packed rows: every token once per epoch, rows that start at documents, an order by seed."""

from __future__ import annotations

from collections import Counter
from itertools import islice, pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llamita.data import batches as batches_module
from llamita.data.batches import IGNORED, Batches, pack_rows

BOS, EOS = 1, 2


class FakeDocuments:
    """Documents of given lengths whose tokens are all different: 10, 11, … with EOS at each end."""

    def __init__(self, lengths: list[int]) -> None:
        ids = iter(range(10, 10 + sum(lengths)))
        self._documents = [np.array([*islice(ids, n - 1), EOS], dtype=np.uint32) for n in lengths]
        self.lengths = np.array(lengths)
        self.num_documents, self.num_tokens, self.text_bytes = len(lengths), sum(lengths), 3 * sum(lengths)

    def document(self, index: int) -> np.ndarray:
        return self._documents[index]


lengths_strategy = st.lists(st.integers(1, 70), min_size=1, max_size=60)


def take_epoch(batches: Batches) -> list[tuple[np.ndarray, np.ndarray]]:
    """All rows (inputs, targets) of the current epoch; the batch must hold one row."""
    rows = []
    epoch = batches.epoch
    while batches.epoch == epoch:
        inputs, targets, _ = next(batches)
        rows.append((inputs[0], targets[0]))
    return rows


@given(lengths_strategy, st.integers(1, 40))
def test_packing_holds_every_pair_once_and_no_row_overflows(lengths: list[int], context: int) -> None:
    rows = pack_rows(np.arange(len(lengths)), np.array(lengths), context)
    pairs = Counter((piece.document, piece.start + i) for row in rows for piece in row for i in range(piece.length))
    assert pairs == Counter((document, i) for document, length in enumerate(lengths) for i in range(length))
    assert all(0 < sum(piece.length for piece in row) <= context for row in rows)
    # only a row's first piece may begin inside a document, only its last one may be cut off
    assert all(piece.start == 0 for row in rows for piece in row[1:])
    assert all(piece.start + piece.length == lengths[piece.document] for row in rows for piece in row[:-1])


@given(lengths_strategy, st.integers(1, 40), st.integers(0, 5))
def test_every_token_is_a_target_once_an_epoch_and_follows_its_input(
    lengths: list[int], context: int, seed: int
) -> None:
    documents = FakeDocuments(lengths)
    follows = {}
    for index in range(documents.num_documents):
        ids = documents.document(index).tolist()
        follows.update(pairwise(ids))
    batches = Batches(documents, BOS, context, 1, seed)
    for _ in range(2):
        counted: Counter[int] = Counter()
        for inputs, targets in take_epoch(batches):
            kept = targets != IGNORED
            assert np.all(np.diff(kept.astype(int)) <= 0), "padding stands at the end of a row only"
            counted.update(targets[kept].tolist())
            for before, after in zip(inputs[kept].tolist(), targets[kept].tolist(), strict=True):
                assert before == BOS or follows[before] == after
                assert before != EOS, "nothing is predicted from the end of a document"
        assert counted == Counter(t for i in range(len(lengths)) for t in documents.document(i).tolist())


def test_padding_is_small_and_rows_mostly_start_at_documents() -> None:
    lengths = np.random.default_rng(0).lognormal(5.2, 0.5, 4000).astype(int) + 1
    rows = pack_rows(np.arange(4000), lengths, 512)
    padding = 1 - lengths.sum() / (512 * len(rows))
    assert padding < 0.02
    assert sum(row[0].start > 0 for row in rows) / len(rows) < 0.3


@settings(deadline=None)
@given(lengths_strategy, st.integers(2, 20), st.integers(0, 9))
def test_resumed_equals_uninterrupted(lengths: list[int], context: int, stop_after: int) -> None:
    documents = FakeDocuments(lengths)
    whole = Batches(documents, BOS, context, 2, seed=3, token_noise=0.3)
    before = [next(whole) for _ in range(stop_after)]
    state = whole.state_dict()
    assert len(before) == stop_after and all(isinstance(value, int) for value in state.values())
    resumed = Batches(documents, BOS, context, 2, seed=3, token_noise=0.3)
    resumed.load_state_dict(dict(state))
    for _ in range(4):
        expected, found = next(whole), next(resumed)
        assert np.array_equal(expected.inputs, found.inputs) and np.array_equal(expected.targets, found.targets)
        assert expected.num_targets == found.num_targets


@settings(deadline=None)
@given(lengths_strategy, st.integers(2, 20))
def test_ranks_partition_the_rows_of_one_process(lengths: list[int], context: int) -> None:
    documents = FakeDocuments(lengths)
    noise = {"seed": 1, "token_noise": 0.3}
    one = Batches(documents, BOS, context, 4, **noise)
    two = [Batches(documents, BOS, context, 2, **noise, rank=rank, world_size=2) for rank in range(2)]
    for _ in range(5):
        whole, shares = next(one), [next(batches) for batches in two]
        assert np.array_equal(whole.inputs, np.concatenate([share.inputs for share in shares]))
        assert np.array_equal(whole.targets, np.concatenate([share.targets for share in shares]))
        assert [share.num_targets for share in shares] == [int((whole.targets != IGNORED).sum())] * 2


def test_each_epoch_and_each_seed_has_its_own_order() -> None:
    documents = FakeDocuments([7] * 40)
    batches = Batches(documents, BOS, 7, 1, seed=0)
    first, second = (np.stack([targets for _, targets in take_epoch(batches)]) for _ in range(2))
    other = np.stack([targets for _, targets in take_epoch(Batches(documents, BOS, 7, 1, seed=1))])
    again = np.stack([targets for _, targets in take_epoch(Batches(documents, BOS, 7, 1, seed=0))])
    assert np.array_equal(first, again)
    assert not np.array_equal(first, second) and not np.array_equal(first, other)


def test_token_noise_replaces_inputs_by_others_of_their_row() -> None:
    documents = FakeDocuments([50] * 400)
    plain, noisy = Batches(documents, BOS, 100, 8, seed=0), Batches(documents, BOS, 100, 8, seed=0, token_noise=0.2)
    num_changed, num_tokens = 0, 0
    for _ in range(20):
        expected, found = next(plain), next(noisy)
        assert np.array_equal(expected.targets, found.targets) and expected.num_targets == found.num_targets
        assert np.array_equal(expected.inputs == BOS, found.inputs == BOS)
        for row in range(8):
            assert set(found.inputs[row]) <= set(expected.inputs[row])
        num_changed += int((expected.inputs != found.inputs).sum())
        num_tokens += int((expected.inputs != BOS).sum())
    assert 0.17 < num_changed / num_tokens < 0.21  # 0.2, less what was replaced by the same token
    epochs = [[next(noisy).inputs for _ in range(25)] for _ in range(2)]
    assert not np.array_equal(*epochs)


def test_windows_share_out_an_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batches_module, "WINDOW_DOCUMENTS", 10)
    documents = FakeDocuments([3, 9, 5, 30] * 12)
    batches = Batches(documents, BOS, 8, 1, seed=0)
    assert batches.num_windows == 5
    counted = Counter(t for _, targets in take_epoch(batches) for t in targets.tolist() if t != IGNORED)
    assert sum(counted.values()) == documents.num_tokens and counted[EOS] == 48
    assert max(count for token, count in counted.items() if token != EOS) == 1

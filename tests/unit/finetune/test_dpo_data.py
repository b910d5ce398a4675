"""Preference data: every form that is read, every error, and batches of pairs."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llamita.checkpoint import load_config
from llamita.data.batches import IGNORED
from llamita.data.file_formats import BadRows, Row
from llamita.errors import SourceError, TrainingError
from llamita.finetune.dpo_data import (
    DpoBatches,
    Preference,
    read_preference,
    read_preferences,
    render_pairs,
)
from llamita.finetune.rendering import Renderer
from llamita.tokenizer import load_tokenizer
from tests.unit.finetune.conftest import made_pairs


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def says(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def texts(preference: Preference) -> tuple[list[str], str]:
    before = [turn.text for turn in preference.chosen.turns[:-1]]
    assert before == [turn.text for turn in preference.rejected.turns[:-1]]
    for conversation in (preference.chosen, preference.rejected):
        assert [turn.is_target for turn in conversation.turns] == [False] * len(before) + [True]
    return before, f"{preference.chosen.turns[-1].text} > {preference.rejected.turns[-1].text}"


GOOD, BAD = "A llama.", "A goat."


LONG = [user("Hello"), says("Hi."), user("Who?")]


@pytest.mark.parametrize(
    ("values", "before"),
    [
        ({"prompt": "Who?", "chosen": GOOD, "rejected": BAD}, ["Who?"]),
        ({"prompt": [user("Who?")], "chosen": [says(GOOD)], "rejected": [says(BAD)]}, ["Who?"]),
        ({"prompt": LONG, "chosen": [says(GOOD)], "rejected": [says(BAD)]}, ["Hello", "Hi.", "Who?"]),
        ({"prompt": LONG, "chosen": GOOD, "rejected": BAD}, ["Hello", "Hi.", "Who?"]),
        ({"chosen": [*LONG, says(GOOD)], "rejected": [*LONG, says(BAD)]}, ["Hello", "Hi.", "Who?"]),
        ({"prompt": "Who?", "chosen": [user("Who?"), says(GOOD)], "rejected": [user("Who?"), says(BAD)]}, ["Who?"]),
        ({"prompt": "Who?", "chosen": [says(GOOD)], "rejected": [says(BAD)]}, ["Who?"]),
        ({"question": "Who?", "chosen": GOOD, "rejected": BAD, "system": "Be brief."}, ["Be brief.", "Who?"]),
        ({"instruction": "Who", "input": "is it?", "chosen": GOOD, "rejected": BAD}, ["Who\n\nis it?"]),
        (
            {"conversations": [{"from": "system", "value": "S"}, {"from": "human", "value": "Who?"}],
             "chosen": {"from": "gpt", "value": GOOD}, "rejected": {"from": "gpt", "value": BAD}},
            ["S", "Who?"],
        ),
        ({"messages": LONG, "chosen": says(GOOD), "rejected": says(BAD)}, ["Hello", "Hi.", "Who?"]),
        ({"prompt": json.dumps([user("Who?")]), "chosen": json.dumps([says(GOOD)]), "rejected": BAD}, ["Who?"]),
        ({"prompt": "Who?", "chosen": json.dumps([user("Who?"), says(GOOD)]),
          "rejected": json.dumps([user("Who?"), says(BAD)])}, ["Who?"]),
        ({"prompt": "[{not JSON", "chosen": GOOD, "rejected": BAD}, ["[{not JSON"]),
        ({"prompt": LONG, "chosen": {"role": "Assistant", "content": GOOD},
          "rejected": [{"from": "chatgpt", "value": BAD}]}, ["Hello", "Hi.", "Who?"]),
    ],
)  # fmt: skip
def test_forms(values: dict[str, Any], before: list[str]) -> None:
    assert texts(read_preference(Row("a.jsonl:1", values))) == (before, "A llama. > A goat.")


def test_columns_and_a_system_prompt() -> None:
    row = Row("a.csv:2", {"q": "Who?", "better": GOOD, "worse": BAD})
    assert texts(read_preference(row, ("q", "better", "worse"), "Be brief."))[0] == ["Be brief.", "Who?"]
    with pytest.raises(SourceError, match=r"a\.csv:2: it has no 'best', found 'q', 'better', 'worse'; choose existing"):
        read_preference(row, ("q", "best", "worse"))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"prompt": "Who?", "completion": GOOD}, "it has no 'chosen', found 'prompt', 'completion'; expected chosen"),
        ({"prompt": "Who?", "chosen": GOOD, "rejected": None}, "it has no 'rejected'"),
        ({"chosen": GOOD, "rejected": BAD}, r"\(chosen\): no prompt; expected chosen and rejected with"),
        ({"prompt": "Who?", "chosen": 3, "rejected": BAD}, r"\(chosen\): expected a string or messages, found a num"),
        ({"prompt": 3, "chosen": GOOD, "rejected": BAD}, "prompt: expected a string or messages, found a number"),
        ({"prompt": "Who?", "chosen": GOOD, "rejected": " "}, r"\(rejected\): message 2: the assistant's text is emp"),
        ({"prompt": "Who?", "chosen": GOOD, "rejected": user("Me")}, r"\(rejected\): message 2: expected the assist"),
        ({"messages": LONG[:2], "chosen": says(GOOD), "rejected": says(BAD)}, "message 3: expected the user, found"),
        ({"chosen": [*LONG, says(GOOD)], "rejected": [user("Who?"), says(BAD)]}, "message 1 differs between chosen"),
        ({"chosen": [user("Who?"), says(GOOD)], "rejected": [user("Who?"), says(BAD), *LONG[:1], says(GOOD)]},
         "chosen has 2 messages, rejected 4"),
        ({"chosen": [user("Who?"), says(GOOD), user("And?")], "rejected": [user("Who?"), says(BAD)]},
         r"\(chosen\): expected an assistant message at its end"),
        ({"prompt": "What?", "chosen": [user("Who?"), says(GOOD)], "rejected": [user("Who?"), says(BAD)]},
         r"\(chosen\): it is a whole conversation that lacks the prompt next to it"),
        ({"prompt": LONG, "chosen": [user("Who?"), says(GOOD)], "rejected": [user("Who?"), says(BAD)]},
         "a whole conversation that does not begin with prompt"),
        ({"prompt": "Who?", "chosen": says(GOOD) | {"weight": 0}, "rejected": BAD}, "nothing to train on"),
        ({"prompt": LONG, "chosen": says(GOOD) | {"weight": 0}, "rejected": BAD}, "weight 0; remove the weight"),
    ],
)  # fmt: skip
def test_refusals(values: dict[str, Any], message: str) -> None:
    with pytest.raises(SourceError, match=rf"cannot use a\.jsonl:7.*{message}"):
        read_preference(Row("a.jsonl:7", values))


def test_files(tmp_path: Path) -> None:
    row = {"prompt": "Who?", "chosen": GOOD, "rejected": BAD}
    (tmp_path / "a.jsonl").write_text(json.dumps(row) + "\n\n" + json.dumps(row) + "\n")
    (tmp_path / "b.json").write_text(json.dumps([row, row]))
    with (tmp_path / "c.csv").open("w", newline="") as file:
        csv.writer(file).writerows([list(row), list(row.values())])
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    messages = {"chosen": [[user("Who?"), says(GOOD)]], "rejected": [[user("Who?"), says(BAD)]]}
    parquet.write_table(pyarrow.table(messages), tmp_path / "d.parquet")
    read = list(read_preferences(tmp_path))
    assert [texts(each) for each in read] == [(["Who?"], "A llama. > A goat.")] * 6
    places = ["a.jsonl:1", "a.jsonl:3", "b.json: item 1", "b.json: item 2", "c.csv:2", "d.parquet: row 1"]
    assert [Path(each.where).name for each in read] == places
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(SourceError, match=r"no preferences in .*empty\.jsonl"):
        list(read_preferences(tmp_path / "empty.jsonl"))


def test_what_is_compared(checkpoint: Path) -> None:
    preference = read_preference(Row("x", {"prompt": LONG, "chosen": GOOD, "rejected": "No llama at all."}))
    tie = read_preference(Row("x", {"prompt": "Who?", "chosen": GOOD, "rejected": f" {GOOD}"}))
    long = read_preference(Row("a.jsonl:9", {"prompt": "Who?", "chosen": GOOD, "rejected": "A goat. " * 90}))
    with Renderer(load_tokenizer(checkpoint), load_config(checkpoint)) as renderer:
        ((pair,), counts) = render_pairs([tie, preference, long], renderer)
        decoded = [renderer.tokenizer.decode(each.ids[each.loss_mask].tolist()[:-1]).decode() for each in pair]
        with pytest.raises(
            TrainingError, match=r"of 2 pairs 1 have identical .* 1 do not fit into 256 .*a\.jsonl:9.*shorten them"
        ):
            render_pairs([tie, long], renderer)
        bad = BadRows(5)
        refused = read_preference(Row("a.jsonl:3", {"prompt": "<|im_end|>", "chosen": GOOD, "rejected": BAD}))
        with pytest.raises(TrainingError, match=r"all 1 pairs are bad: .*a\.jsonl:3"):
            render_pairs([refused], renderer, bad=bad)
    assert decoded == [GOOD, "No llama at all."] and pair.chosen.ids[-1] == pair.rejected.ids[-1] == 2
    assert (counts.total, counts.kept, counts.ties, counts.too_long) == (3, 1, 1, 1)
    counted = dict(line.split(": ", 1) for line in counts.describe())
    assert counted["pairs"] == "3, 1 kept" and "a.jsonl:9" in counted["too long"] and "1 pairs" in counted["ties"]


def test_both_answers_are_in_the_same_batch_once_an_epoch(checkpoint: Path) -> None:
    pairs = made_pairs(checkpoint)
    batches, seen, total = DpoBatches(pairs, 128, 2, seed=5), [], 0
    while batches.epoch == 0:
        batch = next(batches)
        assert batch.inputs.shape == (4, 128) and batch.num_targets == batch.reference.shape[1]
        for number in range(batch.num_targets):
            inside = batch.segments == number
            rows = sorted(set(np.nonzero(inside)[0]))
            assert len(rows) == 2 and rows[1] == rows[0] + 2
            sides = [(batch.inputs[row][inside[row]], batch.targets[row][inside[row]]) for row in rows]
            which = [
                index for index, pair in enumerate(pairs.pairs)
                if all(np.array_equal(ids, each.ids[:-1]) and
                       np.array_equal(targets, np.where(each.loss_mask[1:], each.ids[1:], IGNORED))
                       for (ids, targets), each in zip(sides, pair, strict=True))
            ]  # fmt: skip
            assert len(which) == 1 and np.array_equal(pairs.reference[:, which[0]], batch.reference[:, number])
            seen, total = [*seen, which[0]], total + 1
        assert ((batch.targets == IGNORED) | (batch.segments < batch.num_targets)).all()
    assert sorted(set(seen)) == list(range(40)) and total - 40 <= 8  # of the next epoch's row that fills the last batch
    assert seen != sorted(seen)


def test_order_is_a_function_of_seed_and_resumes(checkpoint: Path) -> None:
    pairs = made_pairs(checkpoint)

    def stream(batches: DpoBatches, number: int) -> list[bytes]:
        return [
            b"".join(part.tobytes() for part in next(batches) if isinstance(part, np.ndarray)) for _ in range(number)
        ]

    whole = DpoBatches(pairs, 128, 2, seed=5)
    first, state = stream(whole, 5), whole.state_dict()
    rest = stream(whole, 20)
    again = DpoBatches(pairs, 128, 2, seed=5)
    again.load_state_dict(state)
    assert stream(again, 20) == rest and whole.epoch > 0
    assert stream(DpoBatches(pairs, 128, 2, seed=6), 5) != first
    both = next(DpoBatches(pairs, 128, 2, seed=5))
    one, two = (next(DpoBatches(pairs, 128, 1, 5, rank, 2)) for rank in (0, 1))
    rows = [one.targets[0], two.targets[0], one.targets[1], two.targets[1]]
    assert np.array_equal(np.stack(rows), both.targets) and one.num_targets == two.num_targets == both.num_targets
    assert np.array_equal(np.concatenate([one.reference, two.reference], axis=1), both.reference)


def test_real_pairs(checkpoint: Path, shared_data: Path) -> None:
    """All 300 of LLaMA-Factory's example data are read; of the first 40 those that fit are compared
    whole."""
    read = list(read_preferences(shared_data / "sft" / "dpo_en_300.json"))
    assert len(read) == 300 and not any(each.is_tie for each in read)
    with Renderer(load_tokenizer(checkpoint), load_config(checkpoint), 2048) as renderer:
        pairs, counts = render_pairs(read[:40], renderer)
        for pair in pairs:
            preference = next(each for each in read if each.chosen.where == pair.chosen.where)
            for example, conversation in zip(pair, (preference.chosen, preference.rejected), strict=True):
                answer = renderer.tokenizer.decode(example.ids[example.loss_mask].tolist()[:-1]).decode()
                assert answer == conversation.turns[-1].text
    assert counts.kept + counts.too_long == 40 and counts.kept > 10


def test_keys_that_change_the_meaning_or_are_not_used() -> None:
    pair = {"question": "Who?", "chosen": GOOD, "rejected": BAD}
    history = [["Hello", "Hi."]]
    assert texts(read_preference(Row("a:1", pair | {"history": history})))[0] == ["Hello", "Hi.", "Who?"]
    messages = {"chosen": [*LONG, says(GOOD)], "rejected": [*LONG, says(BAD)]}
    for values, message in (
        (pair | {"label": False}, "label: expected true"),
        (messages | {"history": history}, "history: expected nothing"),
    ):
        with pytest.raises(SourceError, match=message):
            read_preference(Row("a:1", values))
    with_tools = read_preference(Row("a:1", pair | {"tools": [{"name": "f"}]}))
    assert with_tools.chosen.tools == with_tools.rejected.tools == [{"name": "f"}]  # see test_tools.py
    thought = read_preference(Row("a:1", pair | {"chosen": says(GOOD) | {"reasoning_content": "Hm."}}))
    assert thought.chosen.turns[-1].thought == "Hm."
    more = {"margin": 2.5, "score_chosen": 3, "source": "x", "tools": None}
    assert read_preference(Row("a:1", pair | more)).unused_keys == ("margin",)
    named = messages | {"chosen": [*LONG, says(GOOD) | {"name": "Ann"}]}
    assert read_preference(Row("a:1", named)).unused_keys == ("chosen[].name",)

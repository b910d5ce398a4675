"""benchmarks/answers.py: how answers are compared with what they should be."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[3]
sys.path.insert(0, str(ROOT / "benchmarks"))

from answers import Scores, main, read_pairs, score, table, word_f1  # noqa: E402


@pytest.mark.parametrize(
    ("answer", "reference", "expected"),
    [
        ("The cat sat.", "the cat sat.", 1.0),
        ("the cat", "the cat sat on the mat", 1.0),  # an answer that was cut off
        ("the the the", "the cat", 2 / 5),
        ("a dog", "the cat", 0.0),
        ("", "the cat", 0.0),
        ("李白是詩人", "李白是唐人", 0.8),
    ],
)
def test_f1_of_words(answer: str, reference: str, expected: float) -> None:
    assert word_f1(answer, reference) == pytest.approx(expected)


def test_terms_count_where_the_reference_names_one() -> None:
    references = ["It is dominant.", "It is recessive.", "Dominant or recessive.", "Nobody knows.", "DOMINANT"]
    answers = ["dominant", "dominant", "dominant", "dominant", "dominant or recessive"]
    found = score(answers, references, ["dominant", "recessive"])
    assert (found.asked, found.named, found.majority) == (3, pytest.approx(1 / 3), pytest.approx(2 / 3))


def test_the_answer_half_of_the_list_away_is_the_baseline() -> None:
    found = score(["a", "b", "c", "d"], ["a", "b", "c", "d"], [])
    assert found == Scores(1.0, 0.0, 0, 0.0, 0.0)
    assert score(["c", "d", "a", "b"], ["a", "b", "c", "d"], []).f1_of_others == 1.0
    assert "terms" not in table({"model": found})


def test_pairs_are_the_first_answers(tmp_path: Path) -> None:
    turns = [("system", "s"), ("user", "q"), ("assistant", "a"), ("user", "r"), ("assistant", "b")]
    rows = [
        {"messages": [{"role": role, "content": text} for role, text in turns]},
        {"question": "q2", "answer": "a2"},
    ]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert read_pairs(path) == [("q", "a"), ("q2", "a2")]


def test_models_answer_every_question(
    make_chat_model: Callable[..., Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = str(make_chat_model("chatml").path)
    questions, saved = tmp_path / "rows.jsonl", tmp_path / "answers.jsonl"
    questions.write_text("".join(json.dumps({"question": f"q{i}", "answer": f"a{i}"}) + "\n" for i in range(4)))
    more = ["--questions", str(questions), "--count", "3", "--max-new-tokens", "4", "--save", str(saved)]
    assert main([model, *more]) == 0
    assert capsys.readouterr().out.count("\n") == 3
    rows = [json.loads(line) for line in saved.read_text().splitlines()]
    assert [row["question"] for row in rows] == ["q0", "q1", "q2"]
    assert all(set(row) == {"question", "reference", model} for row in rows)


def test_a_missing_file_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["model.gguf", "--questions", str(tmp_path / "none.jsonl")]) == 1
    assert capsys.readouterr().err.count("\n") == 1

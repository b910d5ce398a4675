"""The tasks for lm-evaluation-harness: their questions, and that the harness can read them."""

from __future__ import annotations

import importlib.util
import json
import random
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="module")
def lm_eval_tasks() -> ModuleType:
    spec = importlib.util.spec_from_file_location("lm_eval_tasks", ROOT / "benchmarks" / "lm_eval_tasks.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("text", "ending"),
    [
        ("One. Two! She said: three went home.", " She said: three went home."),
        ('He ran. "Why?" she asked.\n\nThey all were happy.', "\n\nThey all were happy."),
        ("春眠不覺曉。處處聞啼鳥。夜來風雨聲，花落知多少。", "夜來風雨聲，花落知多少。"),
        ("Pi is 3.14 and e is 2.71. Nobody knows. Too short.", None),
        ("One sentence. And another sentence.", None),
    ],
)
def test_endings(lm_eval_tasks: ModuleType, text: str, ending: str | None) -> None:
    found = lm_eval_tasks.split_ending(text)
    assert (found and found[1]) == ending
    assert found is None or found[0] + found[1] == text


def test_questions_have_one_right_answer_among_four(lm_eval_tasks: ModuleType) -> None:
    texts = [f"It was day {number}. All slept. Then llama {number} woke up." for number in range(9)]
    questions = lm_eval_tasks.ask_endings(texts, "<s>", random.Random(0))
    assert len(questions) == 9 and len({question["answer"] for question in questions}) > 1
    for number, question in enumerate(questions):
        assert question["context"] == f"<s>It was day {number}. All slept."
        assert len(set(question["choices"])) == 4
        assert question["choices"][question["answer"]] == f" Then llama {number} woke up."
    assert lm_eval_tasks.ask_endings(texts[:3], "", random.Random(0)) == []


def test_files(
    lm_eval_tasks: ModuleType, make_checkpoint: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = make_checkpoint(tmp_path / "checkpoint")
    stories = [f"Day {number} came. All slept well. Then llama {number} woke up." for number in range(6)]
    (tmp_path / "texts.txt").write_text("\n<|endoftext|>\n".join(stories), encoding="utf-8")
    words = ["--model", str(checkpoint), "--out", str(tmp_path / "tasks"), "--documents", "4"]
    assert lm_eval_tasks.main([str(tmp_path / "texts.txt"), *words]) == 0
    rows = (tmp_path / "tasks" / "val_bits.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(row)["text"] for row in rows] == [stories[number] for number in (0, 1, 3, 4)]
    (question, *_) = (tmp_path / "tasks" / "endings.jsonl").read_text(encoding="utf-8").splitlines()
    assert json.loads(question)["context"] == "<|endoftext|>Day 0 came. All slept well."
    for name in ("val_bits", "endings"):
        task = (tmp_path / "tasks" / f"{name}.yaml").read_text(encoding="utf-8")
        assert f"task: {name}\n" in task and json.dumps(str(tmp_path / "tasks" / f"{name}.jsonl")) in task
    assert lm_eval_tasks.main(["no-such.txt", *words]) == 2
    assert capsys.readouterr().err.count("\n") == 1

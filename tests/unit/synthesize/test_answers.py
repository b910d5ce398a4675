"""What is taken out of a model's answer, and what the checks drop."""

from __future__ import annotations

import json
from typing import Any

import pytest

from llamita.synthesize.answers import Item, PassageIndex, check_pair, check_question, find_items
from llamita.synthesize.duplicates import Questions
from llamita.synthesize.words import language_of, names, numbers, sentences, squeezed, terms

EN = (
    "The Aaabach is a river of 1,234 kilometers in Uplandia. Its source lies 87 meters above the sea. "
    "Fishermen from Niederdorf call it the blue sister."
)
ZH = "长江是亚洲第一长河，全长约6300公里，发源于青藏高原的唐古拉山脉，最后在上海注入东海。"
ITEM = {
    "question": "How long is the Aaabach?",
    "answer": "1,234 kilometers.",
    "evidence": "a river of 1,234 kilometers",
}
ITEM_ZH = {"question": "长江全长多少公里？", "answer": "长江全长约6300公里。", "evidence": "全长约6300公里"}


def check(values: dict[str, Any], passage: str = EN, **changes: Any) -> str:
    """Why a pair is dropped, or "" """
    found = check_pair({**values, **changes}, passage, 0.6)
    return found if isinstance(found, str) else ""


def test_answers_that_the_passage_supports() -> None:
    assert check(ITEM) == "" and check(ITEM_ZH, ZH) == ""
    assert check(ITEM, answer="It is 1234 kilometers in length, in Uplandia.") == "", "one new word of four"
    assert check(ITEM, evidence="A RIVER of 1,234  kilometers, in “Uplandia”") == ""
    assert check(ITEM_ZH, ZH, answer="６３００公里。") == "", "nor does width"
    assert check(ITEM, question="Is the Aaabach a river?", answer="Yes.") == ""


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"answer": "1,235 kilometers."}, "with a number that is not in the passage"),
        ({"answer": "It is 1,234 kilometers, says Meier."}, "with a name that is not in the passage"),
        ({"question": "How long is the Aaabach in Japan?"}, "with a name that is not in the passage"),
        ({"question": "How long was the Aaabach in 1950?"}, "with a number that is not in the passage"),
        ({"question": "What is the most popular dish?"}, "about something else"),
        ({"answer": "It was invented by cheerful pirates long before."}, "with an answer that is not in the passage"),
        ({"answer": "Fishermen call it the blue sister."}, "with an answer that is not in its evidence"),
        ({"evidence": "a river of 1,234 miles"}, "with evidence that is not in the passage"),
        ({"evidence": "river"}, "with evidence that is not in the passage"),
        ({"evidence": ""}, "with evidence that is not in the passage"),
        ({"evidence": None}, "with evidence that is not in the passage"),
        ({"answer": ""}, "without an answer"),
        ({"answer": ["x"]}, "without an answer"),
        ({"answer": "how long is the aaabach"}, "without an answer"),
        ({"question": "The Aaabach is a river."}, "that ask nothing"),
        ({"question": 7}, "that ask nothing"),
        ({"question": "What is it?"}, "that name no subject"),
        ({"question": "How long is the river in the passage?"}, "about the passage itself"),
        ({"question": "What?" + "x" * 600}, "that ask nothing"),
    ],
)
def test_answers_that_it_does_not_support(changes: dict[str, Any], why: str) -> None:
    assert check(ITEM, **changes) == why


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"answer": "长江全长约6400公里。"}, "with a number that is not in the passage"),
        ({"answer": "约6300公里，流经重庆、武汉和南京等城市。"}, "with an answer that is not in the passage"),
        ({"answer": "长江叫Yangtze，约6300公里。"}, "with a name that is not in the passage"),
        ({"evidence": "全长约6300米"}, "with evidence that is not in the passage"),
        ({"question": "长江是亚洲第一长河。"}, "that ask nothing"),
        ({"question": "本文的主题是什么？"}, "about the passage itself"),
        ({"question": "这是什么？"}, "that name no subject"),
    ],
)
def test_chinese_answers_that_it_does_not_support(changes: dict[str, Any], why: str) -> None:
    assert check(ITEM_ZH, ZH, **changes) == why


def test_titles_and_turns() -> None:
    values = {**ITEM, "question": "How long is the Aaabach in Japan?"}
    assert isinstance(check_pair(values, EN, 0.6, title="Rivers of Japan"), Item)
    first = check_pair(ITEM, EN, 0.6)
    assert isinstance(first, Item)
    assert check_pair(ITEM, EN, 0.6, before=[first]) == "that were asked just before"
    later = {"question": "And how high is that?", "answer": "87 meters.", "evidence": "Its source lies 87 meters above"}
    assert isinstance(check_pair(later, EN, 0.6, before=[first]), Item), "what it is about was said before"
    assert check_pair(later, EN, 0.6) == "about something else"


def test_numbers_of_a_list_are_no_numbers() -> None:
    passage = "Wash the rice. Boil the water."
    item = {"question": "How is rice cooked?", "answer": "1. Wash the rice.\n2. Boil the water.", "evidence": passage}
    assert check(item, passage) == ""


def test_items_in_any_wrapping() -> None:
    items = [ITEM, {**ITEM, "question": "Why {this}?"}]
    text = json.dumps({"items": items})
    for wrapped in (
        text, f"Sure!\n```json\n{text}\n```", f"<think>{{\"question\": 1}}</think>{text}", json.dumps(items),
        json.dumps({"x": 1, "items": items}), "\n".join(map(json.dumps, items)), f"{{{{ {text}",
    ):  # fmt: skip
        assert find_items(wrapped) == items, wrapped
    assert find_items(text[:-40]) == items[:1], "cut off in the second"
    for wrapped in ("", "no JSON", "{", '{"a":' * 5000, "{" * 100_000, '{"items": 3}', '{"items": [1, {"a": 2}]}'):
        assert find_items(wrapped) == []


def test_questions_that_ask() -> None:
    for text in (
        "What is rice?", "Explain rice.", "Is rice white?", "Reis, was ist das?", "什么是米饭", "请介绍米饭。",
        "米是白的吗", "Τι είναι το ρύζι;",
    ):  # fmt: skip
        assert check_question(text) == "", text
    for text in ("Rice is white.", "", "米是白的。", "Whatever."):
        assert check_question(text) == "that ask nothing"


def test_an_index_knows_what_may_be_answered() -> None:
    answered = ["Which river has its source in Uplandia?", "长江在哪里注入东海？"]
    left_open = ["How long is the river Aaabach?", "Which bridge crosses the Aaabach?", "长江上有多少座大桥？"]
    index = PassageIndex([EN, ZH], [*answered, *left_open])
    assert all(map(index.may_answer, answered))
    assert not any(map(index.may_answer, left_open)), "the first may be answered, but nothing says long"


def test_duplicates() -> None:
    asked = Questions()
    assert asked.add("How long is the river Aaabach in Uplandia?")
    assert not asked.add("how long is the river AAABACH, in Uplandia")
    assert not asked.add("In Uplandia, how long is that river, the Aaabach?"), "other small words"
    assert asked.add("In Uplandia, how long is that river, the Aaabach?", exact_only=True)
    assert asked.add("How long is the river Beebach in Uplandia?")
    assert asked.add("长江全长多少公里？") and not asked.add("长江全长是多少公里呢") and asked.add("黄河全长多少公里？")
    assert asked.add("Who won in 1954 and where was it?") and asked.add("Who won in 1958 and where was it?")
    assert asked.has("请问长江全长多少公里?") and not asked.has("What else?")


def test_words() -> None:
    assert language_of(ZH) == "zh" and language_of(EN) == language_of("") == "en"
    assert language_of("これは日本語の文章です。漢字もあります。") == "en"
    assert language_of("使用 Python 3 编写程序代码") == "zh"
    assert numbers("1,234 and 5.6, ７８, 10:30, 2026-11-28") == {"1234", "5.6", "78", "10:30", "2026", "11", "28"}
    assert terms("The rivers of a River") == {"river"} and terms("中国的首都") == {"中国", "首都"}
    assert names("Yesterday Anna met Bob. She left.") == {"anna", "bob"}
    assert squeezed("A  “b”，ｃ-1!") == "abc1"
    assert sentences("One. Two! 3.5 is a number.\nx\n\n他说：“走吧。”我走了。") == [
        "One.", "Two!", "3.5 is a number.", "x", "他说：“走吧。”", "我走了。",
    ]  # fmt: skip

"""Takes questions and answers out of what a model wrote, and checks them against the passage.

What a rule can check: the quoted evidence stands in the passage word for word; every number and
every name of the question and the answer is in the passage or its title; most other words of the
answer are, some of them in the evidence; the question shares a word with the passage. What it
cannot: whether the answer means what the passage says.
"""

from __future__ import annotations

import collections
import dataclasses
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final

from llamita.synthesize.words import known_terms, language_of, names, numbers, squeezed, terms

MAX_QUESTION_CHARACTERS: Final = 500
MAX_ANSWER_CHARACTERS: Final = 4000
MAX_TEXT_CHARACTERS: Final = 200_000
MAX_TRIES: Final = 10_000  # places at which JSON may begin
MIN_EVIDENCE: Final = {"en": 12, "zh": 4}  # letters and digits
_THOUGHT = re.compile(r"^.*?</think>", re.DOTALL)
_ASKS = re.compile(
    r"[?？؟;]\W*$|^\W*(what|which|who|whom|whose|when|where|why|how|is|are|was|were|do|does|did|can|could|should|will|"
    r"would|has|have|may|must|in what|in which|at what|explain|describe|list|name|give|define|compare|summarize|tell|"
    r"outline|state|identify)\b"
    r"|什么|什麼|谁|誰|哪|几|幾|多少|多久|多大|怎|如何|为何|為何|为什么|是否|吗|嗎|呢|请|請|列出|说明|說明|解释|解釋|描述|介绍|介紹"
    r"|^\W*(写|寫|给出|給出|举|舉|总结|總結|概括|比较|比較|分析|计算|計算|判断|判斷)",
    re.IGNORECASE,
)
_ABOUT_PASSAGE = re.compile(
    r"\b(the|this|that) (given |following |above |provided )?(passage|text|excerpt|paragraph|article|document)\b"
    r"|\baccording to the (author|writer)\b|\bmentioned above\b"
    r"|本文|文中|上文|该文|該文|原文|(这|這|该|該|上面)(段|篇|份|个|個)?(文字|文章|资料|資料|材料|段落|短文)|(资料|資料|材料|作者)(中|里|裡|提到|认为|認為)",
    re.IGNORECASE,
)
_LIST_NUMBER = re.compile(r"^\s*\d+[.)、．]\s", re.MULTILINE)

Dropped = collections.Counter[str]  # why an item was dropped → how many


@dataclasses.dataclass(frozen=True)
class Item:
    question: str
    answer: str
    evidence: str


def find_items(text: str) -> list[dict[str, Any]]:
    """The JSON objects with a question in a text, those of an answer that was cut off included."""
    text = _THOUGHT.sub("", text[:MAX_TEXT_CHARACTERS])
    decoder, found, start = json.JSONDecoder(), list[dict[str, Any]](), 0
    for _ in range(MAX_TRIES):
        start = text.find("{", start)
        if start < 0:
            break
        try:
            value, start = decoder.raw_decode(text, start)
        except ValueError:
            start += 1
            continue
        except RecursionError:
            break
        found += _with_question(value)
    return found


def _with_question(value: Any) -> Iterator[dict[str, Any]]:
    """A value itself, or the objects in its list."""
    if isinstance(value, dict) and "question" in value:
        yield value
    elif isinstance(value, dict):
        for each in value.values():
            if isinstance(each, list):
                yield from (item for item in each if isinstance(item, dict) and "question" in item)


def check_pair(
    values: dict[str, Any], passage: str, min_support: float, *, title: str = "", before: Sequence[Item] = ()
) -> Item | str:
    """The question and the answer, or why they are not used. before: the turns before them."""
    question, answer, evidence = (clean_text(values.get(name)) for name in ("question", "answer", "evidence"))
    if wrong := check_question(question, is_first=not before):
        return wrong
    if any(squeezed(question) == squeezed(turn.question) for turn in before):
        return "that were asked just before"
    if not answer or len(answer) > MAX_ANSWER_CHARACTERS or squeezed(answer) == squeezed(question):
        return "without an answer"
    if _ABOUT_PASSAGE.search(answer):
        return "about the passage itself"
    quoted = squeezed(evidence)
    if len(quoted) < MIN_EVIDENCE[language_of(evidence)] or quoted not in squeezed(passage):
        return "with evidence that is not in the passage"
    source = f"{title}\n{passage}"
    if not numbers(question) | numbers(_LIST_NUMBER.sub("", answer)) <= numbers(source):
        return "with a number that is not in the passage"
    known = known_terms(source)
    if not names(question) | names(answer) <= known:
        return "with a name that is not in the passage"
    if not before and not terms(question) & known:
        return "about something else"
    added = terms(answer) - terms(question)
    if added and len(added & known) < min_support * len(added):
        return "with an answer that is not in the passage"
    if added and not added & known_terms(evidence):
        return "with an answer that is not in its evidence"
    return Item(question, answer, evidence)


def check_question(question: str, *, is_first: bool = True) -> str:
    """Why a text is no question that makes sense alone, or "". is_first: of its conversation."""
    if not question or len(question) > MAX_QUESTION_CHARACTERS or not _ASKS.search(question):
        return "that ask nothing"
    if _ABOUT_PASSAGE.search(question):
        return "about the passage itself"
    if is_first and not terms(question):
        return "that name no subject"
    return ""


def clean_text(value: Any) -> str:
    """A text of a model's JSON as a row can hold it; empty if it is none."""
    if not isinstance(value, str):
        return ""
    return value.encode("utf-8", "replace").decode().replace("\ufeff", "").replace("\r\n", "\n").strip()


class PassageIndex:
    """Which passages have which terms of some questions, to see whether one may answer them."""

    def __init__(self, passages: Iterable[str], questions: Iterable[str]) -> None:
        self._places: dict[str, set[int]] = {term: set() for question in questions for term in terms(question)}
        for number, passage in enumerate(passages if self._places else ()):
            for term in known_terms(passage) & self._places.keys():
                self._places[term].add(number)

    def may_answer(self, question: str) -> bool:
        """Whether one passage has all terms of the question, and so may answer it."""
        places = [self._places[term] for term in terms(question)]
        return not places or bool(set.intersection(*sorted(places, key=len)))

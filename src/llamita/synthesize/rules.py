"""Makes conversations of a document's structure, without a model: what is answered stands in it."""

from __future__ import annotations

import dataclasses
import hashlib
import re
import typing
from collections.abc import Iterator, Mapping, Sequence
from typing import Final

from llamita.config import RuleKind
from llamita.synthesize.passages import Text, heading_of
from llamita.synthesize.prompts import Prompts, fill
from llamita.synthesize.words import HAN, STOP_WORDS, language_of, sentences, squeezed

RULES: Final[tuple[RuleKind, ...]] = typing.get_args(RuleKind)
GAP: Final = "____"
MIN_SECTION_CHARACTERS: Final = 20
MIN_SENTENCE_CHARACTERS: Final = {"en": 40, "zh": 12}
MAX_SENTENCE_CHARACTERS: Final = 300

_ASKED = re.compile(r"(?:q|question|问|問|问题|問題|提问) ?\d{0,4} ?[:：](?P<text>.+)", re.IGNORECASE)
_ANSWERED = re.compile(r"(?:a|answer|答|答案|回答|解答) ?\d{0,4} ?[:：](?P<text>.*)", re.IGNORECASE)
_ITEM = re.compile(r"\A(?:[-*+•>]|\d+[.)、])\s+")
_EMPHASIS = re.compile(r"\*\*|__|`")

_NO_TERM = frozenset(("another", "while", "because", "although"))
_IS_A = re.compile(
    r"(?:(?:An?|The) )?(?P<term>[^\W\d_][\w'’-]*(?: [\w'’()-]+){0,4}) (?:is|are) (?:an?|the|any|one of) .+"
)
_TERM_LINE = re.compile(r"[-*•]?\s*\*\*(?P<term>[^*]{2,60}?)\s*[:：]?\*\*\s*[:：–—-]?\s*(?P<text>.{15,})")
_IS_A_ZH = re.compile(
    rf"(?:所谓|所謂)?[“「]?(?P<term>[{HAN}A-Za-z0-9·]{{2,14}})[”」]?(?:[（(][^）)]{{1,40}}[）)])?(?:，)?"
    r"(?:是一种|是一種|是一个|是一個|是一类|是一類|是一项|是一項|是一部|是一座|是一位|是指|指的是|即是|是由|属于|屬於)(?!否).+"
)
_NO_TERM_ZH = re.compile(
    "^(这|這|那|它|他|她|其|此|该|該|我|你|您|本|有|也|但|而|就|都|不|如|若|因|所以|可以|以下)"
    "|(也|就|都|不|会|會|又|还|還|只|可能|往往)$"
)


@dataclasses.dataclass(frozen=True)
class Task:
    """A question and an answer that a rule made. evidence: what of the document they stand on."""

    rule: RuleKind
    question: str
    answer: str
    evidence: str


class _Phrases:
    """The phrases of a language; which one is taken depends on the text alone."""

    def __init__(self, rules: Mapping[str, Sequence[str]]) -> None:
        self._rules = rules

    def write(self, rule: RuleKind, **values: str) -> str:
        """Empty if the rule has no phrase."""
        phrases = self._rules[rule]
        if not phrases:
            return ""
        return fill(phrases[choice("\n".join((rule, *values.values())), len(phrases))], values)


def choice(text: str, count: int) -> int:
    """A number below `count` that depends on the text alone."""
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8"), digest_size=8).digest(), "little") % count


def make_tasks(
    text: Text, prompts: Prompts, max_answer_bytes: int, per_section: int, rules: Sequence[str] = RULES
) -> list[Task]:
    """The tasks of a document. per_section: at most as many definitions, and gaps, of a section."""
    phrases = _Phrases(prompts.rules)
    found: list[Task] = []
    if "faq" in rules:
        found += _faq(text)
    answered = {squeezed(task.question) for task in found}
    for section in text.sections:
        is_short = len(section.text.encode()) <= max_answer_bytes and len(section.text) >= MIN_SECTION_CHARACTERS
        if "heading" in rules and text.origin.title and section.heading and is_short:
            question = phrases.write("heading", title=text.origin.title, heading=section.heading)
            if squeezed(section.heading) not in answered:
                found.append(Task("heading", question, section.text, section.text))
        if "definition" in rules:
            found += _definitions(section.text, phrases)[:per_section]
        if "fill_in" in rules:
            found += _gaps(section.text, phrases, per_section)
    is_short = len(text.body.encode()) <= max_answer_bytes and len(text.body) >= MIN_SECTION_CHARACTERS
    if text.origin.title and is_short:
        if "title_to_text" in rules:
            question = phrases.write("title_to_text", title=text.origin.title)
            found.append(Task("title_to_text", question, text.body, text.body))
        if "text_to_title" in rules and squeezed(text.origin.title) not in squeezed(text.body):
            found.append(
                Task("text_to_title", phrases.write("text_to_title", text=text.body), text.origin.title, text.body)
            )
    return [task for task in found if task.question and task.answer.strip()]


# ---- the rules


def _faq(text: Text) -> Iterator[Task]:
    """Questions with their answers: headings that ask, and lines such as "Q: …" and "A: …"."""
    for section in text.sections:
        if section.heading.endswith(("?", "？")):
            yield Task("faq", section.heading, section.text, section.text)
    groups = list[tuple[str, list[str]]]()  # a question, the lines of its answer
    for line in _plain(text.body).split("\n"):
        asked, answered = _ASKED.fullmatch(line.strip()), _ANSWERED.fullmatch(line.strip())
        if asked or heading_of(line):
            groups.append((asked["text"].strip() if asked else "", []))
        elif groups and groups[-1][1]:
            groups[-1][1].append(line)
        elif groups and answered:
            groups[-1][1].append(answered["text"].lstrip())
    for question, lines in groups:
        if question and (answer := "\n".join(lines).strip()):
            yield Task("faq", question, answer, f"{question}\n{answer}")


def _definitions(section: str, phrases: _Phrases) -> list[Task]:
    """Sentences that say what a term is, and list items that begin with a bold term."""
    found = []
    for line in section.split("\n"):
        if listed := _TERM_LINE.fullmatch(line.strip()):
            question = phrases.write("definition", term=listed["term"].strip())
            found.append(Task("definition", question, listed["text"].strip(), line.strip()))
    for sentence in _whole_sentences(section):
        if match := _IS_A_ZH.fullmatch(sentence):
            is_term = not _NO_TERM_ZH.search(match["term"])
        else:
            match = _IS_A.fullmatch(sentence)
            is_term = match is not None and _is_term(match["term"]) and sentence[-1] in ".!"
        if match and is_term:
            question = phrases.write("definition", term=match["term"])
            found.append(Task("definition", question, sentence, sentence))
    return found


def _is_term(text: str) -> bool:
    first, *more = text.casefold().split()
    return first not in _NO_TERM and first not in STOP_WORDS and (not more or more[-1] not in STOP_WORDS)


def _gaps(section: str, phrases: _Phrases, limit: int) -> list[Task]:
    """Sentences with a gap, chosen by their hashes. In Chinese the last clause is missing, or half a
    verse; in other text the longest word."""
    found = []
    for sentence in _whole_sentences(section):
        hidden = _last_clause(sentence) if language_of(sentence) == "zh" else _longest_word(sentence)
        if hidden is None or sentence.count(hidden) != 1:
            continue
        question = phrases.write("fill_in", text=sentence.replace(hidden, GAP))
        found.append(Task("fill_in", question, hidden, sentence))
    found.sort(key=lambda task: choice(task.evidence, 1 << 64))
    return found[:limit]


def _last_clause(sentence: str) -> str | None:
    """What stands between the last comma and the end."""
    match = re.fullmatch(rf".*[，；,;]([{HAN}]{{3,16}})[。！？!?.]?[”」』\"]?", sentence)
    return None if match is None else match[1]


def _longest_word(sentence: str) -> str | None:
    if not sentence.endswith((".", "!", "?")):
        return None
    words = [word for word in re.findall(r"[^\W\d_]{5,}", sentence) if word.casefold() not in STOP_WORDS]
    return max(words, key=len, default=None)


def _whole_sentences(section: str) -> Iterator[str]:
    """Sentences that are neither very short nor very long, without the signs of list items."""
    for sentence in sentences(_plain(section)):
        text = _ITEM.sub("", sentence)
        if MIN_SENTENCE_CHARACTERS[language_of(text)] <= len(text) <= MAX_SENTENCE_CHARACTERS:
            yield text


def _plain(text: str) -> str:
    """Without Markdown's signs of emphasis."""
    return _EMPHASIS.sub("", text)

"""Turns templates into the sentences of a story: pronouns, introductions, articles, capitals."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from random import Random
from typing import TypeVar

Item = TypeVar("Item")
Row = dict[str, str]
Text = Callable[["Story"], str]  # a compiled template: its text at this point of a story

_PRONOUNS = {
    "he": {"he": "he", "him": "him", "his": "his", "own": "his", "himself": "himself"},
    "she": {"he": "she", "him": "her", "his": "her", "own": "her", "himself": "herself"},
}
_SENTENCE_START = re.compile(r'(^"?|[.!?]"? "?)([a-z])')
_TAG = re.compile(r'[!?]" ')
_ARTICLE = re.compile(r"\b([Aa])n? (?=(\w+))")
_SOUNDS_LIKE_A_CONSONANT = ("uni", "use", "usu", "one", "eu")
_SOUNDS_LIKE_A_VOWEL = ("hour", "honest", "heir")


@dataclass(eq=False, slots=True)
class Character:
    """Someone in a story, with one name and one set of pronouns for its whole length.

    The introduction (`a small fox named Rusty`) is used once. A friend is introduced with the name
    or pronoun of the character they belong to: `her friend Ben`.
    """

    name: str
    gender: str
    kind: str
    introduction: str
    friend_of: Character | None = None
    met: bool = False


class Story:
    """One story: the values of its keys (scope), whom `he` and `she` mean, and the text so far."""

    def __init__(self, rng: Random) -> None:
        # The only random function used: its sequence is the same in every Python version.
        self.random = rng.random
        self.scope: dict[str, str | Row | Character] = {}
        self._paragraphs: list[list[str]] = [[]]
        self._meant: dict[str, Character] = {}

    def pick(self, items: Sequence[Item]) -> Item:
        """One of the items, evenly."""
        return items[int(self.random() * len(items))]

    def sample(self, items: Sequence[Item], count: int) -> list[Item]:
        """`count` different items, in random order."""
        rest = list(items)
        return [rest.pop(int(self.random() * len(rest))) for _ in range(count)]

    def say(self, sentence: str) -> None:
        """Add a sentence to the current paragraph. A later paragraph never begins with a name: names
        then always follow a space, and are the same token everywhere, which a small model copies
        far better (docs/experiments.md)."""
        opens = len(self._paragraphs) > 1 and not any(self._paragraphs[-1])
        if opens and any(sentence.startswith(who.name) for who in self.scope.values() if isinstance(who, Character)):
            sentence = f"{self.pick(('Now', 'And', 'Then'))} {sentence}"
        self._paragraphs[-1].append(sentence)

    def begin_paragraph(self) -> None:
        """Begin a paragraph, in which characters must be named before `he` and `she` are used."""
        self._paragraphs.append([])
        self._meant.clear()

    def text(self) -> str:
        """The text, a blank line between paragraphs. A second speaker starts a new one."""
        paragraphs: list[list[str]] = []
        for sentences in self._paragraphs:
            paragraphs.append([])
            for sentence in filter(None, sentences):
                if sentence[0] == '"' and any('"' in before for before in paragraphs[-1]):
                    paragraphs.append([])
                paragraphs[-1].append(sentence)
        return "\n\n".join(_polish(" ".join(sentences)) for sentences in paragraphs if sentences)

    def slot(self, key: str, attribute: str, the: bool, capital: bool) -> str:
        """The text of a slot at this point of the story."""
        value = self.scope[key]
        if isinstance(value, Character):
            word = self._refer(value, attribute)
        else:
            if isinstance(value, dict):
                value = value[attribute] if attribute else next(iter(value.values()))
            word = compile_text(value)(self) if "{" in value or "[" in value else value
            if the:
                word = "the " + word.removeprefix("a ").removeprefix("an ")
        return word[:1].upper() + word[1:] if capital else word

    def _refer(self, who: Character, attribute: str) -> str:
        """A name, or a pronoun if this was the last character named who has that pronoun."""
        if attribute == "himself" or attribute == "own":
            return _PRONOUNS[who.gender][attribute]
        if attribute == "kind":
            return who.kind
        if attribute in ("he", "him", "his"):
            if self._meant.get(who.gender) is who:
                return _PRONOUNS[who.gender][attribute]
            attribute, ending = "", "'s" if attribute == "his" else ""
        else:
            ending = ""
        owner = self._refer(who.friend_of, "his") if attribute == "first" and who.friend_of and not who.met else ""
        self._meant[who.gender] = who
        met, who.met = who.met, True
        if attribute == "a" or (attribute == "first" and not met):
            return f"{owner} friend {who.introduction}" if owner else who.introduction
        return who.name + ending


def _polish(text: str) -> str:
    """Capitalize the starts of sentences, and choose between `a` and `an`."""
    return _ARTICLE.sub(_article, _SENTENCE_START.sub(_capital, text))


def _capital(match: re.Match[str]) -> str:
    before, letter = match.groups()
    # A question or an exclamation in quotes may continue (`"Help!" cried Tom`).
    return match.group() if _TAG.fullmatch(before) else before + letter.upper()


def _article(match: re.Match[str]) -> str:
    article, word = match.groups()
    word = word.lower()
    vowel = word.startswith(_SOUNDS_LIKE_A_VOWEL) or (
        word[0] in "aeiou" and not word.startswith(_SOUNDS_LIKE_A_CONSONANT)
    )
    return f"{article}n " if vowel else f"{article} "


@cache
def compile_text(template: str) -> Text:
    """Compile a template. A syntax error is a bug in the grammar, so it asserts."""
    text, end = _compile(template, 0, "")
    assert end == len(template), f"template: unexpected {template[end]!r} at {end}: {template}"
    return text


def _compile(template: str, at: int, closers: str) -> tuple[Text, int]:
    """Compile from `at` to the next closer or the end, and return where that is."""
    parts: list[str | Text] = []
    while at < len(template) and template[at] not in closers:
        if template[at] == "[":
            alternatives: list[Text] = []
            while template[at] != "]":
                alternative, at = _compile(template, at + 1, "|]")
                assert at < len(template), f"template: a [ is never closed: {template}"
                alternatives.append(alternative)
            parts.append(_choice(alternatives))
            at += 1
        elif template[at] == "{":
            close = template.index("}", at)
            parts.append(_slot(template[at + 1 : close]))
            at = close + 1
        else:
            stop = min((i for i in (template.find(c, at) for c in "[]{}|") if i >= 0), default=len(template))
            assert stop > at, f"template: unexpected {template[at]!r} at {at}: {template}"
            parts.append(template[at:stop])
            at = stop
    return _joined(parts), at


def _joined(parts: list[str | Text]) -> Text:
    if all(isinstance(part, str) for part in parts):
        literal = "".join(map(str, parts))
        return lambda story: literal
    if len(parts) == 1 and not isinstance(parts[0], str):
        return parts[0]
    return lambda story: "".join([part if isinstance(part, str) else part(story) for part in parts])


def _choice(alternatives: list[Text]) -> Text:
    return lambda story: story.pick(alternatives)(story)


def _slot(slot: str) -> Text:
    key, _, attribute = slot.removeprefix("the ").partition(".")
    capital = key[0].isupper() or attribute[:1].isupper()
    key, attribute = key[0].lower() + key[1:], attribute[:1].lower() + attribute[1:]
    the = slot.startswith("the ")
    return lambda story: story.slot(key, attribute, the, capital)

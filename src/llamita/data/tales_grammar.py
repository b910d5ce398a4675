"""Story templates and a cast of characters to grammatical English: choices, slots, pronouns, articles, capitals.

The template language:
    [one|two|three]   one of the alternatives, which may nest and may be empty
    {key}             what the tale knows under `key`: a word, a Place, a Thing or a Character (its name)
    {key.attr}        a Place's `at`, a Thing's `noun`, a Character's `first a kind he him his own himself`
    {Key}, {key.He}   the same with a capital; sentence starts get theirs without asking
Articles are written `a` everywhere; `an` is put in where the next word asks for it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache
from random import Random
from typing import NamedTuple, TypeVar

Item = TypeVar("Item")
# A compiled template: literals, slots (key, attribute, capital) and choices (alternatives, each compiled).
Slot = tuple[str, str, bool]
Node = str | Slot | list["Node"] | list[list["Node"]]

_PRONOUNS = {
    "he": {"he": "he", "him": "him", "his": "his", "own": "his", "himself": "himself"},
    "she": {"he": "she", "him": "her", "his": "her", "own": "her", "himself": "herself"},
}
_SENTENCE_START = re.compile(r'(^"?|[.!?]"? "?)([a-z])')
_TAG = re.compile(r'[!?]" ')
_ARTICLE = re.compile(r"\b([Aa])n? (?=(\w+))")
_SOUNDS_LIKE_A_CONSONANT = ("uni", "use", "usu", "one", "eu")
_SOUNDS_LIKE_A_VOWEL = ("hour", "honest", "heir")


def table(text: str) -> tuple[tuple[str, ...], ...]:
    """Rows of cells from text: cells are divided by ` / `, and an indented line goes on with the row above."""
    rows = re.sub(r"\n +", " ", text.strip()).split("\n")
    cells = tuple(tuple(row.split(" / ")) for row in rows)
    assert len({len(row) for row in cells}) == 1, f"table: rows of different lengths: {text}"
    return cells


class Place(NamedTuple):
    """Somewhere to be: `the pond`, and how one is there: `by the pond`."""

    name: str
    at: str


class Thing(NamedTuple):
    """Something to hold: its noun, the whole phrase (`red kite`), and what can happen to it (traits)."""

    noun: str
    phrase: str
    traits: frozenset[str]


class Character:
    """Someone in a tale, with one name and one set of pronouns for its whole length.

    `a` presents them to the reader (`a small fox named Rusty`); `{key.first}` does so once and names them from then on.
    A friend (`friend_of`) is presented as somebody's: `her friend Ben`.
    """

    __slots__ = ("a", "friend_of", "gender", "kind", "met", "name")

    def __init__(self, name: str, gender: str, kind: str, a: str, friend_of: Character | None = None) -> None:
        self.name = name
        self.gender = gender
        self.kind = kind
        self.a = a
        self.friend_of = friend_of
        self.met = False


Value = str | Place | Thing | Character


class Tale:
    """One story while it is being told: what is known (scope), who is meant by `he` and `she`, and the text so far."""

    def __init__(self, rng: Random) -> None:
        self._random = rng.random  # the only source of chance: its sequence is the same in every Python version
        self.scope: dict[str, Value] = {}
        self._paragraphs: list[list[str]] = []
        self._meant: dict[str, Character] = {}

    def pick(self, items: Sequence[Item]) -> Item:
        """One of the items, evenly."""
        return items[int(self._random() * len(items))]

    def sample(self, items: Sequence[Item], count: int) -> list[Item]:
        """`count` different items, in random order."""
        rest = list(items)
        return [rest.pop(int(self._random() * len(rest))) for _ in range(count)]

    def chance(self, probability: float) -> bool:
        """True with this probability."""
        return self._random() < probability

    def let(self, **values: Value) -> None:
        """Remember values under their keys; a string may itself be a template, which is told now, once."""
        for key, value in values.items():
            self.scope[key] = self._tell(value) if isinstance(value, str) else value

    def say(self, *templates: str) -> None:
        """Add sentences to the current paragraph."""
        if not self._paragraphs:
            self._paragraphs.append([])
        self._paragraphs[-1] += [self._tell(template) for template in templates]

    def one_of(self, *templates: str) -> None:
        """Add one of these."""
        self.say(self.pick(templates))

    def maybe(self, probability: float, *templates: str) -> None:
        """Add one of these, or nothing."""
        if self.chance(probability):
            self.say(self.pick(templates))

    def paragraph(self, *templates: str) -> None:
        """Begin a new paragraph; who `he` and `she` are must be said anew."""
        if self._paragraphs and not self._paragraphs[-1]:
            self._paragraphs.pop()
        self._paragraphs.append([])
        self._meant.clear()
        self.say(*templates)

    def text(self) -> str:
        """The story: paragraphs with a blank line between them; whoever answers gets a new one."""
        paragraphs: list[list[str]] = []
        for sentences in self._paragraphs:
            paragraphs.append([])
            for sentence in filter(None, sentences):
                if sentence[0] == '"' and any('"' in before for before in paragraphs[-1]):
                    paragraphs.append([])
                paragraphs[-1].append(sentence)
        return "\n\n".join(_polish(" ".join(sentences)) for sentences in paragraphs if sentences)

    def _tell(self, template: str) -> str:
        parts: list[str] = []
        self._fill(_compile(template), parts)
        return "".join(parts)

    def _fill(self, nodes: list[Node], parts: list[str]) -> None:
        for node in nodes:
            if isinstance(node, str):
                parts.append(node)
            elif isinstance(node, tuple):
                parts.append(self._slot(*node))
            else:
                self._fill(self.pick(node), parts)  # type: ignore[arg-type]

    def _slot(self, key: str, attribute: str, capital: bool) -> str:
        value = self.scope[key]
        if isinstance(value, Character):
            word = self._refer(value, attribute)
        elif attribute:
            word = getattr(value, attribute)
        else:
            word = value if isinstance(value, str) else value[0] if isinstance(value, Place) else value[1]
        return word[0].upper() + word[1:] if capital else word

    def _refer(self, who: Character, attribute: str) -> str:
        """A character's name, or a pronoun where it can mean nobody else: the last one named with these pronouns."""
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
            return f"{owner} friend {who.a}" if owner else who.a
        return who.name + ending


def _polish(text: str) -> str:
    """Capitals at sentence starts, `an` where it belongs."""
    return _ARTICLE.sub(_article, _SENTENCE_START.sub(_capital, text))


def _capital(match: re.Match[str]) -> str:
    before, letter = match.groups()
    # A question or an exclamation in quotes may be followed by its tag (`"Help!" cried Tom`): leave it.
    return match.group() if _TAG.fullmatch(before) else before + letter.upper()


def _article(match: re.Match[str]) -> str:
    article, word = match.groups()
    word = word.lower()
    vowel = word.startswith(_SOUNDS_LIKE_A_VOWEL) or (
        word[0] in "aeiou" and not word.startswith(_SOUNDS_LIKE_A_CONSONANT)
    )
    return f"{article}n " if vowel else f"{article} "


@cache
def _compile(template: str) -> list[Node]:
    """Parse a template; its mistakes are bugs of the grammar and assert."""
    nodes, end = _sequence(template, 0, "")
    assert end == len(template), f"template: unexpected {template[end]!r} at {end}: {template}"
    return nodes


def _sequence(template: str, at: int, closers: str) -> tuple[list[Node], int]:
    nodes: list[Node] = []
    while at < len(template) and template[at] not in closers:
        if template[at] == "[":
            alternatives: list[list[Node]] = []
            while template[at] != "]":
                inner, at = _sequence(template, at + 1, "|]")
                assert at < len(template), f"template: a [ is never closed: {template}"
                alternatives.append(inner)
            nodes.append(alternatives)
            at += 1
        elif template[at] == "{":
            close = template.index("}", at)
            key, _, attribute = template[at + 1 : close].partition(".")
            capital = key[0].isupper() or attribute[:1].isupper()
            nodes.append((key[0].lower() + key[1:], attribute[:1].lower() + attribute[1:], capital))
            at = close + 1
        else:
            stop = min((i for i in (template.find(c, at) for c in "[]{}|") if i >= 0), default=len(template))
            assert stop > at, f"template: unexpected {template[at]!r} at {at}: {template}"
            nodes.append(template[at:stop])
            at = stop
    return nodes, at

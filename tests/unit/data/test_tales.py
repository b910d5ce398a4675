"""The embedded corpus: the same everywhere, all different, grammatical by every rule that a program can check."""

from __future__ import annotations

import itertools
import random
import re
from collections import Counter

import pytest

from llamita.config import PrepareConfig
from llamita.data import tales, tales_world
from llamita.data.tales import DEFAULT_NUM_TALES, MAX_WORDS, MIN_WORDS, PLOTS, generate_tale, generate_tales
from llamita.data.tales_grammar import Character, Tale, Thing

NUM_TALES = 30_000


@pytest.fixture(scope="module")
def corpus() -> list[str]:
    return list(generate_tales(NUM_TALES))


def ngrams(text: str, n: int) -> list[tuple[str, ...]]:
    words = text.split()
    return list(zip(*(words[i:] for i in range(n)), strict=False))


def offenders(corpus: list[str], pattern: str) -> list[str]:
    """Where the pattern occurs, with its surroundings."""
    found = re.compile(pattern)
    return [text[max(0, m.start() - 30) : m.end() + 30] for text in corpus for m in found.finditer(text)]


# ---------------------------------------------------------------- the corpus as a whole


def test_tale_depends_on_seed_and_index_alone(corpus: list[str]) -> None:
    assert [generate_tale(0, i) for i in (29_999, 7, 0)] == [corpus[29_999], corpus[7], corpus[0]]
    assert list(generate_tales(50)) == corpus[:50]
    assert not set(generate_tales(200, seed=1)) & set(corpus)
    assert list(generate_tales(0)) == []
    assert PrepareConfig.num_tales == DEFAULT_NUM_TALES  # config knows no data: the number is in both


def test_no_tale_is_told_twice(corpus: list[str]) -> None:
    assert len(set(corpus)) == NUM_TALES


def test_length(corpus: list[str]) -> None:
    lengths = sorted(len(text.split()) for text in corpus)
    assert lengths[0] >= MIN_WORDS == 60
    assert lengths[-1] <= MAX_WORDS == 200
    assert 120 <= lengths[NUM_TALES // 2] <= 170


def test_vocabulary_is_broad_but_learnable(corpus: list[str]) -> None:
    words = Counter(word for text in corpus for word in re.findall(r"[a-z]+", text.lower()))
    assert 1_500 <= len(words) <= 4_000
    assert sum(count < 20 for count in words.values()) < 0.05 * len(words)  # hardly a word too rare to learn


def test_openings_and_phrases_differ(corpus: list[str]) -> None:
    openings = Counter(text.split(". ")[0] for text in corpus)
    assert len(openings) > 0.5 * NUM_TALES
    assert openings.most_common(1)[0][1] < 0.01 * NUM_TALES
    endings = Counter(re.split(r"[.!?]\"? ", text)[-1] for text in corpus)
    assert len(endings) > 1_000
    phrases = Counter(itertools.chain.from_iterable(ngrams(text, 4) for text in corpus[:3_000]))
    assert len(phrases) > 0.28 * phrases.total()


def test_plots_are_many_and_none_dominates(monkeypatch: pytest.MonkeyPatch) -> None:
    assert len(PLOTS) >= 12
    told: Counter[str] = Counter()

    def counted(plot):  # type: ignore[no-untyped-def]
        def tell(tale: Tale) -> None:
            told[plot.__name__] += 1
            plot(tale)

        return tell

    monkeypatch.setattr(tales, "PLOTS", tuple(counted(plot) for plot in PLOTS))
    list(generate_tales(4_000))
    assert set(told) == {plot.__name__ for plot in PLOTS}
    assert max(told.values()) < 0.08 * told.total()


# ---------------------------------------------------------------- the grammar of each tale


def test_no_slot_is_left_open_and_no_space_is_double(corpus: list[str]) -> None:
    assert offenders(corpus, r"[\[\]{}|<>_]") == []
    assert offenders(corpus, r"  | \n|\n |\n\n\n|[^\n]\n[^\n]|\t") == []
    assert offenders(corpus, r"^\s|\s$") == []
    assert offenders(corpus, r" [.,;:!?]|,,|\.\.|[.,]{2}|[!?][.,]|,[.!?]") == []
    assert offenders(corpus, r"[^A-Za-z ,.!?:;'\"\n-]") == []  # ASCII, no digits


def test_articles_agree(corpus: list[str]) -> None:
    assert offenders(corpus, r"\b[Aa] (?!uni|use|usu|one\b|eu)[aeiou]") == []
    assert offenders(corpus, r"\b[Aa]n (?!hour|honest|heir)[^aeiou]") == []
    assert offenders(corpus, r"\b(a|an|the) (a|an|the|his|her|their|my|your)\b") == []


def test_no_word_is_said_twice_in_a_row(corpus: list[str]) -> None:
    doubled = [m for m in offenders(corpus, r"\b(\w+) \1\b") if "had had" not in m and "that that" not in m]
    assert doubled == []


def test_quotes_are_balanced_in_each_paragraph(corpus: list[str]) -> None:
    for text in corpus:
        for paragraph in text.split("\n\n"):
            assert paragraph.count('"') % 2 == 0, paragraph
            outside, inside = paragraph.split('"')[0::2], paragraph.split('"')[1::2]
            assert all(
                (piece[:1] not in ("", " ") and piece[-1] in ".,!?") or piece in ("Mine", "ours") for piece in inside
            )
            assert all(piece == "" or piece[0] in " ," for piece in outside[1:]), paragraph


def test_sentences_begin_with_capitals_and_end(corpus: list[str]) -> None:
    for text in corpus:
        for paragraph in text.split("\n\n"):
            assert re.match(r'"?[A-Z]', paragraph), paragraph
            assert re.search(r'[.!?]"?$', paragraph), paragraph
    assert offenders(corpus, r'(?<!Mr)(?<!Mrs)[.] "?[a-z]') == []
    assert offenders(corpus, r'[.!?]" [a-z]+ed\.') == []
    # After a question or an exclamation in quotes, a small letter is its tag: who asked, cried, thought.
    verbs = "asked|cried|called|said|answered|thought|shouted|whispered|wondered"
    tags = rf'[!?]" (?!({verbs}|he|she|it|they|and|a voice)\b)[a-z]\w*'
    assert offenders(corpus, tags) == []


def test_a_tale_keeps_each_name_to_one_set_of_pronouns(corpus: list[str]) -> None:
    """Where only girls, or only boys, are named in a tale, no pronoun of the others may occur."""
    girls = set(tales_world.GIRLS + tales_world.ANIMAL_GIRLS) | {"Mama", "Mother", "Mom", "Grandma", "Grandmother"}
    boys = set(tales_world.BOYS + tales_world.ANIMAL_BOYS) | {"Papa", "Father", "Dad", "Grandpa", "Grandfather"}
    elders = tales_world.VILLAGE_ELDERS + tales_world.SEASIDE_ELDERS + tales_world.FOREST_ELDERS
    girls |= {name.split()[0] for name, gender, _ in elders if gender == "she" and not name.startswith("Old")}
    boys |= {name.split()[0] for name, gender, _ in elders if gender == "he" and not name.startswith("Old")}
    girls |= {name.split()[1] for name, gender, _ in elders if gender == "she"}
    boys |= {name.split()[1] for name, gender, _ in elders if gender == "he"}
    assert not girls & boys
    others = re.compile(r"\b(mother|bird|magpie|goose|man|woman|merchant)\b")
    checked = 0
    for text in corpus:
        words = set(re.findall(r"[A-Za-z]+", text))
        lower = {word.lower() for word in words}
        if others.search(text):
            continue  # somebody without a name who is he or she
        if not words & boys:
            assert not lower & {"he", "him", "his", "himself"}, text
            checked += 1
        if not words & girls:
            assert not lower & {"she", "her", "hers", "herself"}, text
            checked += 1
    assert checked > 0.2 * NUM_TALES


# ---------------------------------------------------------------- what was chosen early has consequences


def test_the_thing_lost_is_the_thing_found() -> None:
    for seed in range(400):
        tale = Tale(random.Random(seed))
        tales.things.lost_and_found(tale)
        thing = tale.scope["thing"]
        assert isinstance(thing, Thing)
        text = tale.text()
        beginning, end = text[: len(text) // 3], text[len(text) // 2 :]
        assert thing.phrase in beginning and thing.noun in end, text


def test_the_fear_is_what_is_overcome_and_the_advice_is_followed() -> None:
    for seed in range(400):
        tale = Tale(random.Random(seed))
        tales.journeys.fear_overcome(tale)
        fear, wise = tale.scope["fear"], tale.scope["wise"]
        assert isinstance(fear, str) and isinstance(wise, Character)
        before, after = tale.text().split("\n\n", 1)
        assert fear in before + after.split("\n\n")[0]
        assert wise.name in after


# ---------------------------------------------------------------- the template language


def told(template: str, **scope: object) -> str:
    tale = Tale(random.Random(0))
    tale.scope.update(scope)  # type: ignore[arg-type]
    tale.say(template)
    return tale.text()


def test_choices_slots_and_capitals() -> None:
    assert told("[a|a] {thing} fell. [the [|]end|the end].", thing="old hat") == "An old hat fell. The end."
    assert told('"{thing}!" she cried. {Thing}', thing="a hat") == '"A hat!" she cried. A hat'


def test_pronoun_gives_way_to_the_name_where_it_could_mean_another() -> None:
    mila, nora = (
        Character("Mila", "she", "girl", "a girl named Mila"),
        Character("Nora", "she", "girl", "a girl named Nora"),
    )
    tom = Character("Tom", "he", "boy", "a boy named Tom")
    assert told("{h.first} ran. {h.He} fell.", h=mila) == "A girl named Mila ran. She fell."
    assert told("{h} saw {f}. {f.He} smiled.", h=mila, f=nora) == "Mila saw Nora. She smiled."
    assert told("{h} saw {f}. {h.He} smiled.", h=mila, f=nora) == "Mila saw Nora. Mila smiled."
    assert told("{h} saw {f}. {h.His} hat fell.", h=mila, f=nora) == "Mila saw Nora. Mila's hat fell."
    assert told("{h} saw {f}. {h.He} saw {f.him}.", h=mila, f=tom) == "Mila saw Tom. She saw him."


def test_a_friend_is_presented_once_and_as_somebodys() -> None:
    mila = Character("Mila", "she", "girl", "a girl named Mila")
    pip = Character("Pip", "he", "mouse", "Pip the mouse", friend_of=mila)
    assert told("{h} met {f.first}. {f.First} ran.", h=mila, f=pip) == "Mila met her friend Pip the mouse. Pip ran."
    pip.met = False
    mama = Character("Mama", "she", "mother", "Mama")
    assert (
        told("{h} ran. {m} met {f.first}.", h=mila, f=pip, m=mama) == "Mila ran. Mama met Mila's friend Pip the mouse."
    )


def test_whoever_answers_gets_a_new_paragraph() -> None:
    tale = Tale(random.Random(0))
    tale.say('"Who is there?" asked Tom.', '"It is I," said Mila.', "They laughed.")
    assert tale.text() == '"Who is there?" asked Tom.\n\n"It is I," said Mila. They laughed.'


@pytest.mark.parametrize("template", ["an [open choice", "a } b", "a | b", "a ] b"])
def test_a_broken_template_is_a_bug(template: str) -> None:
    with pytest.raises((AssertionError, IndexError)):
        told(template)

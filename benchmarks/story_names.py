"""Counts the stories that keep their names and pronouns, and measures how a model copies names.

    python benchmarks/story_names.py runs/demo/stories.gguf      # 50 stories that the model generates
    python benchmarks/story_names.py runs/demo/run --store runs/demo/tokens

The second form reads held-out stories. Wherever one repeats a name: accuracy is how often the most
likely token is right, leak the probability that a name is one the story has not mentioned (at
temperature 0.8). Both cost less and vary less than generated stories. Names are those of the
grammar in src/llamita/stories.
"""

from __future__ import annotations

import argparse
import functools
import re
from pathlib import Path
from typing import NamedTuple

import torch

import llamita
from llamita.checkpoint import load_model, resolve_checkpoint
from llamita.data.mixture import open_documents
from llamita.model.llama import Llama
from llamita.stories.generate import packaged_grammar
from llamita.tokenizer import Tokenizer, load_tokenizer

TEMPERATURE = 0.8
PRONOUNS = {"he": "he", "him": "he", "his": "he", "himself": "he", "she": "she", "her": "she", "herself": "she"}
# Whom stories call he or she without a name.
NOUNS = {
    "man": "he", "boy": "he", "brother": "he", "merchant": "he", "grandfather": "he", "father": "he",
    "woman": "she", "girl": "she", "sister": "she", "grandmother": "she", "mother": "she", "bird": "she",
    "magpie": "she", "goose": "she", "hen": "she",
}  # fmt: skip
PARENTS = {"Mama": "she", "Papa": "he", "Grandma": "she", "Grandpa": "he"}
INTRODUCTION = re.compile(r"\b(named|friend|Do you know|visit) $")
ELDER = re.compile(r"\b(Mrs\.|Mr\.|Miss|Aunt|Uncle|Captain|Old(?! (?:Mrs|Captain))) [A-Z][a-z]+")


@functools.cache
def character_names() -> dict[str, str]:
    """The names of children and animals, and their pronouns."""
    tables = {"girls": "she", "animal girls": "she", "boys": "he", "animal boys": "he"}
    return {row["name"]: gender for table, gender in tables.items() for _, row in packaged_grammar().tables[table]}


@functools.cache
def elder_names() -> dict[str, tuple[str, set[str]]]:
    """Elders: the pronoun, and the words that present them."""
    found: dict[str, tuple[str, set[str]]] = {}
    for table, rows in packaged_grammar().tables.items():
        for _, row in rows if table.endswith(" elders") else []:
            found.setdefault(row["name"], (row["pronoun"], set()))[1].add(row["introduction"])
    return found


def mistakes(story: str) -> list[str]:
    """What is wrong with the names and pronouns of a story: nothing if it holds together.

    A character must be presented before their name is used, and only once; he and she need somebody
    in this paragraph or the one before.
    """
    known: dict[str, str] = {}  # who was mentioned, and their pronouns
    found: list[str] = []
    before: set[str] = set()
    for paragraph in story.split("\n\n"):
        present: set[str] = set()
        for word in re.finditer(rf"{ELDER.pattern}|[A-Za-z]+", paragraph):
            name = word.group()
            gender, pronoun = _gender(name), PRONOUNS.get(name.lower())
            if pronoun and pronoun not in present | before and not _is_quoted(paragraph, word.start()):
                found.append(f"{name}: nobody who is {pronoun}")
            if gender is None:
                continue
            present.add(gender)
            if name in PARENTS or (name[0].isupper() and name.lower() not in NOUNS):
                found += _check_mention(name, gender, name in known, paragraph, word)
                known[name] = gender
        before = present
    if not known.keys() & character_names().keys():
        found.append("nobody has a name")
    return found


def _gender(name: str) -> str | None:
    """The pronoun of somebody whom this word means."""
    if name in PARENTS:
        return PARENTS[name]
    if name in elder_names():
        return elder_names()[name][0]
    if ELDER.fullmatch(name):
        return "she" if name.startswith(("Mrs", "Miss", "Aunt")) else "he"
    return character_names().get(name) or NOUNS.get(name.lower())


def _check_mention(name: str, gender: str, is_known: bool, paragraph: str, word: re.Match[str]) -> list[str]:
    presented = INTRODUCTION.search(paragraph, max(0, word.start() - 12), word.start())
    if not is_known and paragraph.startswith("'s friend ", word.end()):
        return []
    if name in PARENTS:
        return []
    if name not in character_names():
        introductions = elder_names().get(name, ("", set()))[1]
        around = paragraph[max(0, word.start() - 20) : word.end() + 30].lower()
        is_right = is_known or any(text.lower() in around for text in introductions)
        return [] if is_right else [f"{name}: unknown"]
    if is_known:
        return [f"{name}: presented twice"] if presented else []
    kind = re.search(r"(girl|boy) named $", paragraph[: word.start()])
    if kind and NOUNS[kind[1]] != gender:
        return [f"{name}: a {kind[1]}"]
    return [] if presented else [f"{name}: unknown"]


def _is_quoted(paragraph: str, at: int) -> bool:
    return paragraph.count('"', 0, at) % 2 == 1


class Copying(NamedTuple):
    """How a network continues held-out stories where they repeat a name."""

    places: int
    accuracy: float
    leak: float


def copying(model: Llama, tokenizer: Tokenizer, stories: list[list[int]], bos_id: int) -> Copying:
    """stories: token ids without BOS. A name of several tokens counts by its first one."""
    token_bytes = tokenizer.token_bytes()
    firsts = {space: {name: tokenizer.encode(space + name)[0] for name in character_names()} for space in ("", " ")}
    correct, leaks = [], []
    for ids in stories:
        logits = model(torch.tensor([[bos_id, *ids[:-1]]]))[0].float()  # [T, V]
        text, known = b"".join(token_bytes[token] for token in ids).decode("utf-8", "replace"), set[str]()
        names = {match.start(): match.group() for match in re.finditer(r"[A-Z][a-z]+", text)}
        at = 0
        for position, token in enumerate(ids):
            space = " " if text[at : at + 1] == " " else ""
            name = names.get(at + len(space))
            at += len(token_bytes[token].decode("utf-8", "replace"))
            if name not in character_names():
                continue
            if name in known:
                shares = (logits[position] / TEMPERATURE).softmax(-1)
                tokens = torch.tensor(sorted({firsts[space][other] for other in known}))
                every = torch.tensor(sorted(set(firsts[space].values())))
                leaks.append(float(1 - shares[tokens].sum() / shares[every].sum()))
                correct.append(float(logits[position].argmax() == token))
            known.add(name)
    places = max(1, len(leaks))
    return Copying(len(leaks), sum(correct) / places, sum(leaks) / places)


@torch.no_grad()
def _measure_copying(run: Path, store: Path, num_stories: int) -> None:
    data = open_documents(store)
    checkpoint = resolve_checkpoint(run)
    model = load_model(checkpoint)
    limit = model.config.max_position_embeddings
    documents = [data.val.document(i)[:limit].tolist() for i in range(min(num_stories, data.val.num_documents))]
    found = copying(model, load_tokenizer(data.tokenizer_path), documents, data.bos_id)
    print(f"{found.places} repeated names: accuracy {found.accuracy:.3f}, leak {found.leak:.4f}")


def _check_generated(path: Path, num_stories: int) -> None:
    held = 0
    with llamita.load(path) as model:
        for seed in range(num_stories):
            story = "".join(model.generate(temperature=TEMPERATURE, seed=seed)).strip()
            found = mistakes(story)
            held += not found
            print(f"seed {seed}: {'; '.join(found) or 'holds'}")
    print(f"{held} of {num_stories} stories hold")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="a .gguf, or with --store a run directory")
    parser.add_argument("--store", type=Path, help="token store with held-out stories, to measure copying")
    parser.add_argument("--stories", type=int, default=50, help="how many; seeds 0 and up (default: 50)")
    options = parser.parse_args()
    if options.store:
        _measure_copying(options.model, options.store, options.stories)
    else:
        _check_generated(options.model, options.stories)


if __name__ == "__main__":
    main()

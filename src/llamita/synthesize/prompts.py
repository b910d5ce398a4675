"""The texts that models are asked with and rules write with: files that the user can edit."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from llamita.atomic import atomic_directory
from llamita.errors import SourceError

BUILT_IN: Final = Path(__file__).with_name("prompts")
MAX_BYTES: Final = 1 << 20
_PLACEHOLDER = re.compile(r"\{(\w+)\}")
_OF_MODELS: Final = {"pairs": "count", "conversation": "turns", "refusal": "count"}
RULE_PLACEHOLDERS: Final = {
    "heading": ("title", "heading"), "definition": ("term",), "title_to_text": ("title",), "text_to_title": ("text",),
    "fill_in": ("text",),
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Prompts:
    """For one language. of_model: by kind, with {passage}, {title} and {count} or {turns}. refusals:
    what is answered to questions that the documents leave open. rules: the phrases of each rule."""

    of_model: Mapping[str, str]
    refusals: tuple[str, ...]
    rules: Mapping[str, tuple[str, ...]]


def read_prompts(folder: Path, language: str) -> Prompts:
    """The files in FOLDER/LANGUAGE. Raises SourceError."""
    place = folder / language
    of_model = {}
    for kind, number in _OF_MODELS.items():
        path = place / f"{kind}.txt"
        text = _read(path)
        _check_placeholders(text, ("passage", "title", number), str(path))
        if "{passage}" not in text:
            raise SourceError(f"cannot use {path}: expected {{passage}} where the passage goes, found none")
        of_model[kind] = text.strip()
    refusals = tuple(line.strip() for line in _read(place / "refusals.txt").splitlines() if line.strip())
    if not refusals:
        raise SourceError(f"cannot use {place / 'refusals.txt'}: expected an answer on each line, found none")
    return Prompts(of_model, refusals, _read_rules(place / "rules.txt"))


def _read_rules(path: Path) -> dict[str, tuple[str, ...]]:
    rules: dict[str, tuple[str, ...]] = dict.fromkeys(RULE_PLACEHOLDERS, ())
    for number, line in enumerate(_read(path).splitlines(), 1):
        if not line.strip():
            continue
        name, colon, phrase = line.partition(":")
        where, phrase = f"{path}:{number}", phrase.strip().replace("\\n", "\n")
        if name.strip() not in rules or not colon or not phrase:
            raise SourceError(
                f"cannot use {where}: expected RULE: PHRASE with one of the rules {', '.join(rules)}, found "
                f"{line.strip()[:60]!r}"
            )
        allowed = RULE_PLACEHOLDERS[name.strip()]
        _check_placeholders(phrase, allowed, where)
        if missing := [each for each in allowed if f"{{{each}}}" not in phrase]:
            raise SourceError(f"cannot use {where}: expected {{{missing[0]}}} in the phrase, found none")
        rules[name.strip()] += (phrase,)
    return rules  # a rule without a phrase is not applied


def fill(prompt: str, values: Mapping[str, str]) -> str:
    """The prompt with its placeholders replaced; braces in the values stay as they are."""
    return _PLACEHOLDER.sub(lambda found: values.get(found[1], found[0]), prompt)


def write_prompts(folder: Path) -> None:
    """Copy the built-in files into a new folder. Raises OutputError."""
    with atomic_directory(folder) as temporary:
        for path in sorted(BUILT_IN.glob("*/*.txt")):
            copy = temporary / path.parent.name / path.name
            copy.parent.mkdir(exist_ok=True)
            copy.write_bytes(path.read_bytes())


def _read(path: Path) -> str:
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise SourceError(
            f"cannot read {path}: {error.strerror or error}; write a folder of all prompts with --prompts NEW"
        ) from None
    if len(data) > MAX_BYTES:
        raise SourceError(f"cannot read {path}: expected at most {MAX_BYTES:,} bytes of a prompt")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise SourceError(f"cannot read {path}: byte {error.start}: expected UTF-8 text") from None


def _check_placeholders(text: str, allowed: tuple[str, ...], where: str) -> None:
    for name in _PLACEHOLDER.findall(text):
        if name not in allowed:
            known = ", ".join(f"{{{each}}}" for each in allowed)
            raise SourceError(f"cannot use {where}: expected the placeholders {known}, found {{{name[:40]}}}")

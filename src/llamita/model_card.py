"""What belongs to a model besides its weights: name, license, system prompt, sampling defaults.

In a checkpoint (a Hugging Face folder) or an adapter:
    llamita.json            name, license, description, language, system
    generation_config.json  temperature, top_p, top_k, min_p, repetition_penalty, as transformers reads them
    README.md               the same for people, with the front matter of the Hugging Face hub
A folder of another program has no llamita.json: license and language are read from its README.md.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Final

from llamita.atomic import atomic_write_bytes
from llamita.config import Option
from llamita.errors import ConfigError, FormatError
from llamita.json_file import read_json_object
from llamita.sampling import SamplingParams

NAME: Final = "llamita.json"
GENERATION: Final = "generation_config.json"
README: Final = "README.md"
MAX_TEXT: Final = 65_536  # characters of a text
_TEXTS: Final = ("name", "license", "description", "system")
_SAMPLING: Final = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelCard:
    """None and (): unknown."""

    name: str | None = None
    """Name of the model. Default: the folder's."""
    license: str | None = None
    """License of the model, by its SPDX name such as apache-2.0."""
    description: str | None = None
    """What the model is for, in a sentence."""
    language: tuple[str, ...] = ()
    """Languages of the model, such as en zh."""
    system: Annotated[str | None, Option("TEXT")] = None
    """System prompt that the model was trained with; chat uses it."""
    temperature: float | None = None
    """What run and chat use by default."""
    top_p: Annotated[float | None, Option("P")] = None
    """What run and chat use by default."""
    top_k: Annotated[int | None, Option("K")] = None
    """What run and chat use by default."""
    min_p: Annotated[float | None, Option("P")] = None
    """What run and chat use by default."""
    repetition_penalty: float | None = None
    """What run and chat use by default."""

    def __post_init__(self) -> None:
        SamplingParams(**self.sampling()).check_ranges()

    def sampling(self) -> dict[str, Any]:
        """The sampling defaults that are known, by the names of SamplingParams."""
        return {name: value for name in _SAMPLING if (value := getattr(self, name)) is not None}

    def updated(self, other: ModelCard) -> ModelCard:
        """This card, with what the other one knows."""
        known = {name: value for name, value in vars(other).items() if value not in (None, ())}
        return dataclasses.replace(self, **known)

    def save(self, folder: Path) -> None:
        """Write the files into the folder of a checkpoint or an adapter that is being written."""
        texts = {name: getattr(self, name) for name in (*_TEXTS, "language")}
        texts = {name: list(value) if name == "language" else value for name, value in texts.items() if value}
        if texts:
            _write_json(folder / NAME, texts)
            atomic_write_bytes(folder / README, self._readme().encode("utf-8"))
        if self.sampling():
            path = folder / GENERATION
            before = read_json_object(path, FormatError) if path.is_file() else {}
            _write_json(path, {**before, **self.sampling()})

    def _readme(self) -> str:
        """README.md. JSON strings are valid YAML."""
        front = [] if self.license is None else [f"license: {json.dumps(self.license)}"]
        front += [f"language: {json.dumps(list(self.language))}"] if self.language else []
        parts = ["\n".join(["---", *front, "---"])] if front else []
        parts += [f"# {self.name or 'Model'}"]
        parts += [self.description] if self.description else []
        parts += ["System prompt:", _quoted(self.system)] if self.system else []
        return "\n\n".join(parts) + "\n"


NO_CARD: Final = ModelCard()


def load_card(folder: Path) -> ModelCard:
    """The card of a checkpoint, of an adapter or of another program's folder. Raises FormatError."""
    values: dict[str, Any] = {}
    if (folder / NAME).is_file():
        found = read_json_object(folder / NAME, FormatError)
        values |= {name: found.get(name) for name in (*_TEXTS, "language")}
    elif (folder / README).is_file():
        values |= _front_matter((folder / README).read_bytes()[: 1 << 16].decode("utf-8", "replace"))
    if (folder / GENERATION).is_file():
        found = read_json_object(folder / GENERATION, FormatError)
        values |= {name: found.get(name) for name in _SAMPLING}
    return card_of(values, str(folder))


def card_of(values: Mapping[str, Any], where: str) -> ModelCard:
    """The card of values from a file, by field; None is left out. Raises FormatError."""
    known = {name: value for name, value in values.items() if value is not None}
    for name, value in known.items():
        if name == "language":
            fits = isinstance(value, (list, tuple)) and all(_is_text(each) for each in value)
        elif name in _TEXTS:
            fits = _is_text(value)
        else:
            fits = isinstance(value, int if name == "top_k" else (int, float)) and not isinstance(value, bool)
        if not fits:
            raise FormatError(f"cannot use {where}: {name}: expected another kind of value, found {str(value)[:40]!r}")
    if "language" in known:
        known["language"] = tuple(known["language"])
    try:
        return ModelCard(**known)
    except ConfigError as error:
        raise FormatError(f"cannot use {where}: {str(error).removeprefix('--')}") from error


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and len(value) <= MAX_TEXT and "\0" not in value


def _front_matter(text: str) -> dict[str, Any]:
    """license and language of a README.md on the Hugging Face hub."""
    matter = re.match(r"---\r?\n(.*?)\r?\n---", text, re.DOTALL)
    values: dict[str, Any] = {}
    for name in ("license", "language"):
        line = re.search(rf"^{name}:[ \t]*(.*)((?:\r?\n[ \t]*- .*)*)", matter[1] if matter else "", re.MULTILINE)
        if line:
            items = [each.strip().strip("\"'") for each in re.split(r"[,\n]", line[1].strip("[] \r") or line[2])]
            words = [each.removeprefix("-").strip().strip("\"'") for each in items]
            words = [word for word in words if word]
            if words:
                values[name] = words if name == "language" else words[0]
    return values


def _quoted(text: str) -> str:
    return "\n".join(f"> {line}" for line in text.splitlines())


def _write_json(path: Path, values: Mapping[str, Any]) -> None:
    atomic_write_bytes(path, (json.dumps(values, indent=2, ensure_ascii=False) + "\n").encode("utf-8"))

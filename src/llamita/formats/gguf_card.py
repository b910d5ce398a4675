"""The keys of a GGUF that hold a model card, written and read."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np

from llamita.formats.gguf import Value, read_keys
from llamita.model_card import ModelCard, card_of

SYSTEM_KEY: Final = "llamita.system_prompt"  # GGUF has no key for it
_KEYS: Final = {
    "name": "general.name",
    "license": "general.license",
    "description": "general.description",
    "language": "general.languages",
    "system": SYSTEM_KEY,
    "temperature": "general.sampling.temp",
    "top_p": "general.sampling.top_p",
    "top_k": "general.sampling.top_k",
    "min_p": "general.sampling.min_p",
    "repetition_penalty": "general.sampling.penalty_repeat",
}


def card_metadata(card: ModelCard) -> dict[str, Value]:
    """The keys of what the card knows."""
    found: dict[str, Value] = {}
    for name, key in _KEYS.items():
        value = getattr(card, name)
        if value not in (None, ()):
            found[key] = list(value) if name == "language" else value
    return found


def card_from_metadata(metadata: Mapping[str, Any], where: str) -> ModelCard:
    """Raises FormatError for a value of a wrong kind or out of its range."""
    values: dict[str, Any] = {}
    for name, key in _KEYS.items():
        value = metadata.get(key)
        if isinstance(value, float):  # float32 in the file: 0.7, not 0.699999988
            value = float(str(np.float32(value)))
        values[name] = value
    return card_of(values, where)


def card_of_gguf(path: Path) -> ModelCard:
    """The card of a GGUF file; an empty one for a file of another format. Raises FormatError."""
    with open(path, "rb") as file:
        if file.read(4) != b"GGUF":
            return ModelCard()
    return card_from_metadata(read_keys(path, _KEYS.values()), str(path))

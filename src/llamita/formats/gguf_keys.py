"""Reads keys of a GGUF by the engine's description of them, so that both read the same.

The table and this module name the keys of an architecture as those of "llama."; a file of qwen2 has
"qwen2.context_length" for "llama.context_length". Errors name the file's.

engine/src/formats/gguf_keys.h has the table and explains its columns.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np

from llamita.engine.gguf_keys import gguf_keys
from llamita.errors import FormatError

_MAX_NAMED: Final = 6  # unknown keys that a note names
PREFIX: Final = "llama."
# What the engine calls a model of each architecture, too.
_MODELS: Final = {"llama": "Llama", "qwen2": "Qwen2 model", "qwen3": "Qwen3 model", "smollm3": "SmolLM3"}


@dataclasses.dataclass(frozen=True)
class GgufKey:
    """A row of the table."""

    name: str
    kind: str
    use: str
    low: float
    high: float
    default: float
    feature: str


@functools.cache
def known_keys() -> dict[str, GgufKey]:
    """All keys that the engine knows, by name."""
    return {row[0]: GgufKey(*row) for row in gguf_keys()}


class KeyReader:
    """Reads typed values of a file's metadata. Raises FormatError for a required key that is
    missing, and for values of another kind or out of range."""

    def __init__(self, metadata: Mapping[str, Any], path: Path, architecture: str = "llama") -> None:
        """architecture: whose keys to read; keys of others are not seen."""
        self.path, self._own, self._model = path, f"{architecture}.", _MODELS[architecture]
        self.metadata = {
            PREFIX + key.removeprefix(self._own) if key.startswith(self._own) else key: value
            for key, value in metadata.items()
            if key.startswith(self._own) or not key.startswith(PREFIX)
        }

    def shown(self, key: str) -> str:
        """A key as the file spells it."""
        return self._own + key.removeprefix(PREFIX) if key.startswith(PREFIX) else key

    def wrong(self, key: str, expected: str) -> FormatError:
        found = str(self.metadata[key])[:60] if key in self.metadata else "nothing"
        return FormatError(f"cannot use {self.path}: {self.shown(key)}: expected {expected}, found {found}")

    def whole(self, key: str, default: int | None = None) -> int:
        """The number; `default` replaces the table's."""
        row = known_keys()[key]
        assert row.kind in ("whole", "layers"), row
        value = self._value(row, int(row.default) if default is None else default)
        if row.kind == "layers" and isinstance(value, np.ndarray) and value.size and value.dtype.kind in "iu":
            if not (value == value[0]).all():
                raise self.wrong(key, "the same number for every layer")
            value = int(value[0])
        if isinstance(value, bool) or not isinstance(value, int):
            raise self.wrong(key, "a whole number")
        if key in self.metadata and not row.low <= value <= row.high:
            raise self.wrong(key, f"{row.low:.0f} to {row.high:.0f}")
        return value

    def real(self, key: str) -> float:
        row = known_keys()[key]
        assert row.kind == "real", row
        value = self._value(row, row.default)
        if not isinstance(value, float):
            raise self.wrong(key, "a floating-point number")
        # In float32, as the engine: a bound of 1e-6 accepts the float32 nearest to it.
        if key in self.metadata and not np.float32(row.low) <= np.float32(value) <= np.float32(row.high):
            raise self.wrong(key, f"{row.low:g} to {row.high:g}")
        # The shortest decimal of a float32: 1e-05, not 9.999999747378752e-06.
        return float(str(np.float32(value))) if float(np.float32(value)) == value else value

    def text(self, key: str, default: str) -> str:
        row = known_keys()[key]
        assert row.kind == "text", row
        value = self._value(row, default)
        if not isinstance(value, str):
            raise self.wrong(key, "text")
        return value

    def token(self, key: str, num_tokens: int) -> int | None:
        """The id; None if there is none."""
        assert known_keys()[key].kind == "token", key
        value = self.metadata.get(key)
        if value is None or (isinstance(value, int) and value in (-1, 2**32 - 1)):
            return None
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < num_tokens:
            raise self.wrong(key, f"an id below {num_tokens}")
        return value

    def refuse_fixed(self) -> None:
        """Refuse keys that ask for what neither the network nor the engine has."""
        for row in known_keys().values():
            value = self.metadata.get(row.name, row.default)
            if row.use == "fixed" and (not isinstance(value, (int, float)) or value != row.default):
                raise FormatError(
                    f"cannot use {self.path}: {self.shown(row.name)}: expected {row.default:g}, found "
                    f"{str(self.metadata[row.name])[:40]}; {row.feature} are not supported"
                )

    def unknown_note(self) -> list[str]:
        """A note that names the architecture's keys that are not in the table; none if all are."""
        unknown = sorted(key for key in self.metadata if key.startswith(PREFIX) and key not in known_keys())
        if not unknown:
            return []
        more = f" and {len(unknown) - _MAX_NAMED} more" if len(unknown) > _MAX_NAMED else ""
        listed = ", ".join(self.shown(key)[:60] for key in unknown[:_MAX_NAMED])
        return [f"ignored keys that no {self._model} is known to have: {listed}{more}"]

    def _value(self, row: GgufKey, default: Any) -> Any:
        if row.use == "required" and row.name not in self.metadata:
            raise FormatError(
                f"cannot use {self.path}: {self.shown(row.name)} is missing; the file is damaged or not a {self._model}"
            )
        return self.metadata.get(row.name, default)

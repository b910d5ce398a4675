"""Opens the adapters of --adapter (FILE or FILE:SCALE), and warns of those that belong to another
model."""

from __future__ import annotations

import contextlib
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from llamita.engine import Adapter, Model
from llamita.errors import FormatError

USELESS = "it is useless with another checkpoint"
_SCALED = re.compile(r"(.+):([-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)", re.DOTALL)


def other_base_rows(other_base: str | None) -> list[tuple[str, str]]:
    """A warning about an adapter of another checkpoint, as rows of a table; none if it fits."""
    return [] if other_base is None else [("note", f"the adapter was made for {other_base}: {USELESS}")]


def open_adapters(model: Model, values: Sequence[str]) -> list[tuple[Adapter, float]]:
    """Open the adapters; the default scale is 1. Prints a warning on stderr for each that names
    another base than this model. Raises EngineError for a file that does not fit the model."""
    pairs = []
    for value in values:
        scaled = _SCALED.fullmatch(value)
        path, scale = (scaled[1], float(scaled[2])) if scaled else (value, 1.0)
        pairs.append((model.load_adapter(path), scale))
        base, name = base_name(Path(path)), model.info.name
        if base and name and _letters(base) != _letters(name):
            print(
                f"adapter {path}: it was made for {base!r}, and this model is {name!r}: {USELESS}",
                file=sys.stderr,
            )
    return pairs


def base_name(path: Path) -> str:
    """The model that a GGUF adapter names as its base, or ""."""
    from llamita.formats.gguf import read_keys  # slow to import, and adapters are rare

    with contextlib.suppress(FormatError):  # the engine has checked the file
        name = read_keys(path, ("general.base_model.0.name",)).get("general.base_model.0.name")
        if isinstance(name, str):
            return name
    return ""


def _letters(name: str) -> str:
    """Letters and digits only: some exporters write "SmolLM2 135M" for smollm2-135m."""
    return "".join(each for each in name.casefold() if each.isalnum())

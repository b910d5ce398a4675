"""Opens the adapters of --adapter (FILE or FILE:SCALE), and notes those that were made for another
model."""

from __future__ import annotations

import contextlib
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from llamita.engine import Adapter, Model
from llamita.errors import FormatError

_SCALED = re.compile(r"(.+):([-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)", re.DOTALL)


MEANS_NOTHING = "with another checkpoint it means nothing"


def other_base_rows(other_base: str | None) -> list[tuple[str, str]]:
    """What to say of an adapter that was made for another checkpoint, if it was, as rows of a
    table."""
    return [] if other_base is None else [("note", f"the adapter was made for {other_base}: {MEANS_NOTHING}")]


def open_adapters(model: Model, values: Sequence[str]) -> list[tuple[Adapter, float]]:
    """The adapters in their order; without a scale it is 1. A line on stderr for each that names
    another base than this model. Raises EngineError for a file that does not fit."""
    pairs = []
    for value in values:
        scaled = _SCALED.fullmatch(value)
        path, scale = (scaled[1], float(scaled[2])) if scaled else (value, 1.0)
        pairs.append((model.load_adapter(path), scale))
        base, name = base_name(Path(path)), model.info.name
        if base and name and _letters(base) != _letters(name):
            print(
                f"adapter {path}: it was made for {base!r}, and this model is {name!r}: {MEANS_NOTHING}",
                file=sys.stderr,
            )
    return pairs


def base_name(path: Path) -> str:
    """The name of the model that a GGUF adapter says it was made for, or ""."""
    from llamita.formats.gguf import read_gguf  # adapters are few

    with contextlib.suppress(FormatError):  # the engine has judged the file
        name = read_gguf(path).metadata.get("general.base_model.0.name")
        if isinstance(name, str):
            return name
    return ""


def _letters(name: str) -> str:
    """A name as its letters and digits: some exporters write "SmolLM2 135M" for smollm2-135m."""
    return "".join(each for each in name.casefold() if each.isalnum())

"""The values of --adapter (FILE or FILE:SCALE) to open adapters with their scales."""

from __future__ import annotations

import re
from collections.abc import Sequence

from llamita.engine import Adapter, Model

_SCALED = re.compile(r"(.+):([-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)", re.DOTALL)


def open_adapters(model: Model, values: Sequence[str]) -> list[tuple[Adapter, float]]:
    """The adapters in their order; without a scale it is 1. Raises EngineError for a file that does not fit."""
    pairs = []
    for value in values:
        scaled = _SCALED.fullmatch(value)
        path, scale = (scaled[1], float(scaled[2])) if scaled else (value, 1.0)
        pairs.append((model.load_adapter(path), scale))
    return pairs

"""A pickle that must not be read without care."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any


class PickleBomb:
    """Writes a file when its pickle is loaded as pickle does by default."""

    def __init__(self, written: Path) -> None:
        self._written = written

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self._written}",)

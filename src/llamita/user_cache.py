"""Turns a name into the place where this person's machine keeps what can be had again: downloads, measurements."""

from __future__ import annotations

import os
from pathlib import Path


def user_cache(name: str) -> Path:
    """$XDG_CACHE_HOME/llamita/name, else ~/.cache/llamita/name; nothing is made there."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "llamita" / name

"""Locates the user's cache directory, for downloads and measurements that can be made again."""

from __future__ import annotations

import os
from pathlib import Path


def user_cache(name: str) -> Path:
    """$XDG_CACHE_HOME/llamita/name, else ~/.cache/llamita/name. The path is not created."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "llamita" / name

"""What several tests share: where the real data lies, if it is there."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data (TinyStories, trained llama2.c models, tokenizers); without it, tests skip."""
    path = Path(os.environ.get("LLAMITA_SHARED_DATA", ROOT.parent / "shared" / "data"))
    if not (path / "INDEX.md").is_file():
        pytest.skip(f"real data not present at {path} (set LLAMITA_SHARED_DATA)")
    return path

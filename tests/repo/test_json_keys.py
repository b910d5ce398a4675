"""Holds docs/json-keys.md to the schemas of the readers."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("torch")

ROOT = Path(__file__).resolve().parents[2]


def test_page_is_current() -> None:
    code = "import sys; sys.path.insert(0, 'docs'); import write_json_keys as w; sys.stdout.write(w.page())"
    done = subprocess.run(
        [sys.executable, "-X", "utf8", "-c", code], cwd=ROOT, capture_output=True, encoding="utf-8", timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == (ROOT / "docs" / "json-keys.md").read_text(encoding="utf-8"), "run `make docs`"

"""The sources of our web pages, and what every page needs: a filled template, and a policy that
lets only its own scripts run."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Final

WEB: Final = Path(__file__).parent


def source(name: str) -> str:
    """The text of a file in this folder."""
    return (WEB / name).read_text(encoding="utf-8")


def fill(template: str, values: Mapping[str, str]) -> bytes:
    """The template with each @NAME@ replaced by its value."""
    return re.sub(r"@([A-Z]+)@", lambda match: values[match[1]], template).encode()


def policy_hash(text: str) -> str:
    """The source expression of a Content-Security-Policy that allows this inline script or style."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"

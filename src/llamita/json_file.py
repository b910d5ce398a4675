"""Reads the JSON files of other programs, with errors that name the file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from llamita.errors import LlamitaError


def read_json_object(path: Path, error_type: type[LlamitaError]) -> dict[str, Any]:
    """The object in a JSON file. Raises error_type if the file is unreadable or holds no object."""
    try:
        content = json.loads(path.read_bytes())
    except OSError as error:
        raise error_type(f"cannot read {path}: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise error_type(f"cannot read {path}: not valid JSON: {str(error)[:120]}") from error
    if not isinstance(content, dict):
        raise error_type(f"cannot read {path}: expected a JSON object, found {type(content).__name__}")
    return content

"""Writes docs/cli.md from the --help of every command; `make docs` runs it, and a test compares the
two."""

from __future__ import annotations

import contextlib
import io
import os
from pathlib import Path

from llamita.cli import COMMANDS, main

PAGE = Path(__file__).with_name("cli.md")
COLUMNS = 100


def printed(*words: str) -> str:
    """What llamita prints, COLUMNS wide and without color."""
    captured = io.StringIO()
    with contextlib.redirect_stdout(captured), contextlib.suppress(SystemExit):
        main(words)
    return captured.getvalue().strip()


def page() -> str:
    """The text of docs/cli.md."""
    os.environ["COLUMNS"] = str(COLUMNS)
    parts = [
        "# The command line\n\nWritten by `make docs` from `--help`; do not edit.",
        f"```\n{printed('--help')}\n```",
    ]
    parts += [f"## llamita {command}\n\n```\n{printed(command, '--help')}\n```" for command in COMMANDS]
    return "\n\n".join(parts) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")

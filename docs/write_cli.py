"""Writes docs/cli.md from every command's --help; `make docs` calls it and a test holds the file to it."""

from __future__ import annotations

import contextlib
import io
import os
import re
from pathlib import Path

from llamita.cli import VERBS, main

PAGE = Path(__file__).with_name("cli.md")
WIDTH_COLUMNS = 100


def help_text(command: str) -> str:
    """What `llamita command --help` prints on a terminal WIDTH_COLUMNS wide, without colors and frames."""
    captured = io.StringIO()
    with contextlib.redirect_stdout(captured), contextlib.suppress(SystemExit):
        main([command, "--help"])
    plain = re.sub(r"\x1b\[[0-9;]*m", "", captured.getvalue())
    lines = (re.sub(r"^[│╭╰]─? ?|[ ─]*[│╮╯]$", "", line).rstrip() for line in plain.splitlines())
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip()


def page() -> str:
    """The whole of docs/cli.md."""
    os.environ["COLUMNS"] = str(WIDTH_COLUMNS)
    parts = ["# The command line\n\nWritten by `make docs` from `--help`; do not edit."]
    parts += [
        f"## llamita {command}\n\n{what}\n\n```\n{help_text(command)}\n```" for command, (_, what) in VERBS.items()
    ]
    return "\n\n".join(parts) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")

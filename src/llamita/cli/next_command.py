"""The last line of a command: the command that usually comes next, ready to be copied."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TextIO

from llamita.errors import clean_line


def print_next(*commands: str, file: TextIO | None = None) -> None:
    """Print what comes next, on stderr unless the command prints its report elsewhere."""
    print(clean_line(f"next: {' && '.join(commands)}", 4000), file=file or sys.stderr)


def has_template(model: Path) -> bool:
    """Whether a checkpoint or a .gguf has a chat template."""
    if model.is_dir():
        from llamita.tokenizer import load_tokenizer

        return load_tokenizer(model).chat_template is not None
    from llamita.formats.gguf import read_keys

    return model.suffix == ".gguf" and bool(read_keys(model, ("tokenizer.chat_template",)))

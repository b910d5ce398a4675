"""The options of `llamita run` and `chat` that limit the text: a JSON Schema, a regular expression,
choices, a grammar."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated, Final

from llamita.config import Option, check
from llamita.engine import Grammar
from llamita.errors import SourceError

MAX_FILE_BYTES: Final = 1 << 20


@dataclasses.dataclass(frozen=True)
class GrammarOptions:
    """What the new text must be. It needs the extra: pip install 'llamita[grammar]'."""

    json_schema: Annotated[str | None, Option("FILE|JSON")] = None
    """JSON that is valid under this JSON Schema: a file, or the schema itself."""
    regex: Annotated[str | None, Option("PATTERN")] = None
    """A text that matches the whole regular expression."""
    choice: Annotated[tuple[str, ...], Option("TEXT", repeated=True)] = ()
    """One of these texts; give it once for each."""
    grammar: Annotated[Path | None, Option("FILE")] = None
    """A text of this grammar, in GBNF (llama.cpp's) or Lark's syntax."""

    def __post_init__(self) -> None:
        given = {"--json-schema": self.json_schema, "--regex": self.regex, "--choice": self.choice or None,
                 "--grammar": self.grammar}  # fmt: skip
        names = [name for name, value in given.items() if value is not None]
        check(len(names) < 2, f"expected one limit of the text, found {' and '.join(names)}; give one of them")


DEFAULT_GRAMMAR = GrammarOptions()


def read_grammar(options: GrammarOptions) -> Grammar | None:
    """None: any text. Raises SourceError if the file cannot be read, and EngineError for a grammar
    that is broken or cannot be enforced."""
    if options.json_schema is not None:
        given = options.json_schema
        is_text = given.strip()[:1] in ("", "{", "[") or given.strip() in ("true", "false")
        return Grammar.json_schema(given if is_text else _read(Path(given), "--json-schema"), "--json-schema")
    if options.regex is not None:
        return Grammar.regex(options.regex, "--regex")
    if options.choice:
        return Grammar.choices(options.choice, "--choice")
    if options.grammar is not None:
        return Grammar.of_text(_read(options.grammar, "--grammar"), "--grammar")
    return None


def _read(path: Path, flag: str) -> str:
    try:
        with open(path, "rb") as file:
            raw = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise SourceError(f"{flag}: cannot read {path}: {error.strerror or error}") from None
    if len(raw) > MAX_FILE_BYTES:
        raise SourceError(f"{flag}: {path}: expected at most {MAX_FILE_BYTES:,} bytes, found more")
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise SourceError(f"{flag}: {path}: expected UTF-8 text, found byte {error.start} that is none") from None

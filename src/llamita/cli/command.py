"""Shared by all commands: parse the command line, print errors and hints."""

from __future__ import annotations

import contextlib
import io
import itertools
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from llamita.cli.help import has_color, help_columns, help_text
from llamita.cli.parser import Fill, Flags, UsageError, parse_arguments
from llamita.commands import command_line
from llamita.config import RunConfig
from llamita.errors import ConfigError, clean_line

RunFlags = TypeVar("RunFlags", bound=RunConfig)

# --verify to the library's argument; None: the library decides by the size of the model.
VERIFY: dict[str, bool | None] = {"auto": None, "yes": True, "no": False}


def parse(
    flags: type[Flags],
    argv: Sequence[str],
    prog: str,
    fill: Fill | None = None,
) -> Flags:
    """Parse argv into the dataclass `flags`; --help prints the help and exits. fill: see
    `parse_arguments`. Raises ConfigError."""
    if {"-h", "--help"} & set(itertools.takewhile(lambda word: word != "--", argv)):
        print(help_text(flags, prog, help_columns(), is_bold=has_color(sys.stdout)), flush=True)
        raise SystemExit(0)
    try:
        return parse_arguments(flags, argv, fill)
    except UsageError as error:
        raise ConfigError(f"{error} (see {prog} --help)") from None


def parse_run(flags: type[RunFlags], argv: Sequence[str], prog: str) -> RunFlags:
    """Like parse; with --resume, the options of the run in --out are the defaults."""

    def fill(given: Mapping[tuple[str, ...], Any]) -> Mapping[tuple[str, ...], Any]:
        if not given.get(("resume",)) or ("out",) not in given:
            return {}
        from llamita.run_directory import options_to_continue

        found = options_to_continue(flags, {path[0]: value for path, value in given.items()})
        return {(name,): value for name, value in found.items()}

    return parse(flags, argv, prog, fill)


def card_defaults(given: Mapping[tuple[str, ...], Any]) -> Mapping[tuple[str, ...], Any]:
    """For parse: the sampling defaults and the system prompt that belong to the model."""
    from llamita.formats.gguf_card import card_of_gguf
    from llamita.model_card import ModelCard, load_card

    model = given.get(("model",), given.get(("checkpoint",)))
    card = ModelCard()
    if model is not None and model.is_file():
        card = card_of_gguf(model)
    elif model is not None and any((model / name).is_file() for name in ("config.json", "run.json")):
        from llamita.checkpoint import resolve_checkpoint

        card = load_card(resolve_checkpoint(model))
    return {("system",): card.system, **{("sampling", name): value for name, value in card.sampling().items()}}


def print_resume(command: str, run: Path, steps: int) -> None:
    """Print how to resume a run that was interrupted."""
    print(f"interrupted at step {steps}; a checkpoint is saved. To resume:", file=sys.stderr)
    print(f"  {command_line(command, '--out', run, '--resume')}", file=sys.stderr)


def fail(message: str, code: int = 2) -> int:
    """Print one line on stderr and return the exit code; 2 is a user's error."""
    with contextlib.suppress(BrokenPipeError):  # nobody reads it
        print(f"llamita: {clean_line(message)}", file=sys.stderr, flush=True)
    return code


def print_note(message: str) -> None:
    """Print one line on stderr."""
    print(f"note: {clean_line(message)}", file=sys.stderr)


def read_stdin_as_utf8() -> None:
    """Read text from stdin as UTF-8 in any locale; bytes that are not become surrogates."""
    stdin, wanted = sys.stdin, ("utf-8", "surrogateescape")
    if isinstance(stdin, io.TextIOWrapper) and (stdin.encoding.lower(), stdin.errors) != wanted:
        stdin.reconfigure(encoding=wanted[0], errors=wanted[1])  # refused after the first read


@contextlib.contextmanager
def requires_extra(extra: str) -> Iterator[None]:
    """Turn a missing package, in the imports of a command, into one line that says how to install
    it."""
    try:
        yield
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] == "llamita":
            raise  # a bug, not a missing extra
        raise ConfigError(f"this command needs the package {error.name}: pip install 'llamita[{extra}]'") from error

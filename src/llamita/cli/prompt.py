"""The prompt of `llamita run` and `llamita sample`: an argument, a file, or what is piped in."""

from __future__ import annotations

import dataclasses
import os
import re
import select
import stat
import sys
from pathlib import Path
from typing import Annotated, Final

from llamita.config import Option, check
from llamita.errors import ConfigError, SourceError

MAX_PROMPT_BYTES: Final = 64 << 20  # more than any context holds
MAX_SAMPLES: Final = 100_000
_BOM: Final = b"\xef\xbb\xbf"
# llama.cpp's escapes; others stay as they are written.
_ESCAPES: Final = {b"n": b"\n", b"r": b"\r", b"t": b"\t", b"'": b"'", b'"': b'"', b"\\": b"\\"}
_ESCAPE = re.compile(rb"\\(x[0-9a-fA-F]{1,2}|[nrt'\"\\])")


@dataclasses.dataclass(frozen=True)
class PromptOptions:
    """Where the beginning of the text comes from."""

    text: Annotated[str | None, Option("PROMPT", positional=True)] = None
    """Beginning of the text; the same as -i."""
    prompt: Annotated[str | None, Option(short="i")] = None
    """Beginning of the text; - reads stdin. Default: what is piped in, or else nothing."""
    prompt_file: Annotated[Path | None, Option(short="f")] = None
    """Read the beginning of the text from this file; - is stdin. One line end at the end is
    dropped."""
    escape: Annotated[bool, Option(short="e")] = False
    r"""Replace \n, \r, \t, \', \", \\ and \xHH in the prompt."""

    def __post_init__(self) -> None:
        given = [("PROMPT", self.text), ("--prompt", self.prompt), ("--prompt-file", self.prompt_file)]
        names = [name for name, value in given if value is not None]
        check(len(names) < 2, f"expected one prompt, found {' and '.join(names)}; give one of them")


DEFAULT_PROMPT = PromptOptions()


def read_prompt(options: PromptOptions) -> bytes:
    """The prompt. Raises SourceError if its file cannot be read, or is not UTF-8 text."""
    argument = options.prompt if options.text is None else options.text
    if options.prompt_file is not None and options.prompt_file != Path("-"):
        raw = _checked(_read_file(options.prompt_file), f"--prompt-file: {options.prompt_file}")
    elif options.prompt_file is not None or argument == "-" or (argument is None and _is_piped()):
        raw = _checked(_read_stdin(), "the prompt on stdin")
    else:
        raw = (argument or "").encode("utf-8", "surrogateescape")  # the bytes as they were given
    return _ESCAPE.sub(_unescaped, raw) if options.escape else raw


def utf8_text(raw: bytes) -> str:
    """A prompt as text. Raises ConfigError."""
    try:
        return raw.decode("utf-8")
    except UnicodeError as error:
        found = repr(raw.decode("utf-8", "surrogateescape"))[:80]
        raise ConfigError(f"--prompt: expected UTF-8 text, found {found}") from error


def check_utf8(raw: bytes, where: str) -> None:
    """Raise SourceError if these bytes are not UTF-8."""
    try:
        raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise SourceError(
            f"{where}: expected UTF-8 text, found byte 0x{raw[error.start]:02x} at offset {error.start:,}; convert it "
            "with iconv"
        ) from None


def check_num_samples(num_samples: int, seed: int | None) -> None:
    """Raise ConfigError if -N is out of range, or the last text's seed would be."""
    check(1 <= num_samples <= MAX_SAMPLES, f"--num-samples: expected 1 to {MAX_SAMPLES:,}, found {num_samples:,}")
    check(
        seed is None or seed + num_samples <= 1 << 63,
        f"--seed: expected at most 2^63 - {num_samples:,}, as each text has the next seed, found {seed}",
    )


def print_header(number: int, num_samples: int, seed: int) -> None:
    """Print the line above one of several texts; text number `number` counts from 0."""
    print(f"--- {number + 1} of {num_samples}, seed {seed} ---", flush=True)


def _is_piped() -> bool:
    """Whether stdin is a pipe or a file, and not a terminal or /dev/null."""
    try:
        mode = os.fstat(0).st_mode
    except OSError:  # closed
        return False
    return stat.S_ISFIFO(mode) or stat.S_ISREG(mode)


def _read_stdin() -> bytes:
    # Programs that start this one may leave it a pipe that nobody writes to.
    if os.name == "posix" and not select.select([0], [], [], 1.0)[0]:
        print("waiting for a prompt on stdin (-i '' starts without one)", file=sys.stderr)
    try:
        with open(0, "rb", closefd=False) as file:
            return file.read(MAX_PROMPT_BYTES + 1)
    except OSError as error:
        raise SourceError(f"cannot read the prompt on stdin: {error.strerror or error}") from None


def _read_file(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(MAX_PROMPT_BYTES + 1)
    except OSError as error:
        raise SourceError(f"--prompt-file: {path}: {error.strerror or error}") from None


def _checked(raw: bytes, where: str) -> bytes:
    """The text without a byte order mark and without the line end that editors and echo add."""
    if len(raw) > MAX_PROMPT_BYTES:
        raise SourceError(f"{where}: expected at most {MAX_PROMPT_BYTES:,} bytes, found more")
    check_utf8(raw, where)
    return raw.removeprefix(_BOM).removesuffix(b"\n").removesuffix(b"\r")


def _unescaped(match: re.Match[bytes]) -> bytes:
    what = match[1]
    return bytes([int(what[1:], 16)]) if what[:1] == b"x" else _ESCAPES[what]

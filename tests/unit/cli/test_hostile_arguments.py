"""Arguments that no use has: every command refuses them at once, with one short, clean line."""

from __future__ import annotations

import importlib
import sys
import time
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")

from llamita.cli import COMMANDS, main
from llamita.cli.parser import Argument, arguments_of, parse_arguments
from llamita.errors import LlamitaError

NUMBERS = (
    "1e308", "-1e308", "1e999", "nan", "inf", "-inf", "-1", "0", "9" * 30, "-" + "9" * 30, "9" * 400, "9" * 5000,
    "2000000000", "4294967296", "9223372036854775808", "0x10", "1e9", "", " ", "\x00", "½",
)  # fmt: skip
WORDS = ("\udcff", "a\udc80b", "\x00", "x" * 300, "x" * 100_000, "a\nb\x1b[2J", "é" * 200, "/" + "y" * 256, "")
HUGE = {int: str(10**40), float: "1e300"}


def flag_classes() -> dict[str, type[Any]]:
    """The dataclass of each command: the one that its main parses."""
    found = {}
    for command, (module, _) in COMMANDS.items():
        namespace = vars(importlib.import_module(f"llamita.cli.{module}"))
        own = [each for each in namespace.values() if isinstance(each, type) and each.__module__.endswith(module)]
        found[command] = next(each for each in own if hasattr(each, "examples"))
    return found


CLASSES = flag_classes()


def valid(flags: type[Any], but: Argument) -> list[str]:
    """The required arguments of a command except this one."""
    words = []
    for each in arguments_of(flags):
        if each.path != but.path and str(each.default).startswith("<dataclasses._MISSING"):
            words += ["x"] if each.option.positional else [each.name, "x"]
    return words


def options() -> list[tuple[str, Argument]]:
    return [(command, each) for command, flags in CLASSES.items() for each in arguments_of(flags)]


def parsed(command: str, argument: Argument, word: str) -> bool:
    """Whether the word is accepted; a refusal must be a clean line that is not too long."""
    flags = CLASSES[command]
    given = [word] if argument.option.positional else [f"{argument.name}={word}"]
    if argument.path == ("prompt", "text") and command == "run":
        given = ["model.gguf", word]  # MODEL comes first
    words = [*valid(flags, argument), *given * (argument.count or 1)]
    if (command, argument.path) == ("trace", ("store",)):
        words = [word, "x"]  # TEXT comes after it
    if argument.count is not None and argument.count > 1:
        words = [*valid(flags, argument), argument.name, *[word] * argument.count]
    start = time.monotonic()
    try:
        parse_arguments(flags, words)
    except LlamitaError as error:
        text = str(error)
        assert len(text) <= 500 and text.isprintable() and text.encode(), text
        assert len(str(error.args[0])) <= 700, "the message is cut, not what it quotes"
        return False
    finally:
        assert time.monotonic() - start < 5
    return True


@pytest.mark.parametrize(("command", "argument"), options(), ids=lambda each: getattr(each, "name", each))
def test_hostile_words(command: str, argument: Argument) -> None:
    if argument.kind is bool:
        return
    for word in NUMBERS if argument.kind in (int, float) else WORDS:
        parsed(command, argument, word)
    if argument.kind in HUGE:
        later = argument.path[-1] in ("strength", "version")  # checked by the library
        assert later or not parsed(command, argument, HUGE[argument.kind]), f"{command} {argument.name}: no limit"
    elif not argument.is_path:  # a file may be called that
        assert not parsed(command, argument, "a\udc80b")
    else:
        assert not parsed(command, argument, "a\ud800b")
    if argument.kind is Path:
        assert not parsed(command, argument, "x" * 300) and not parsed(command, argument, "a/" + "é" * 200)


@pytest.mark.parametrize("seed", ["-1", str(2**63), "12345678901234567890123"])
@pytest.mark.parametrize(("command", "argument"), [each for each in options() if each[1].name == "--seed"])
def test_seeds_out_of_range(
    command: str, argument: Argument, seed: str, capsys: pytest.CaptureFixture[str], engine_build: Path
) -> None:
    assert main([command, *valid(CLASSES[command], argument), "--seed", seed]) == 2
    assert capsys.readouterr().err.endswith(f"--seed: expected 0 to 2^63 - 1, found {seed}\n")


@pytest.mark.parametrize(
    "words",
    [
        ["train", "x", "--out", "y", "--context", "2000000000"],
        ["train", "x", "--out", "y", "--minutes", "1e308"],
        ["train", "x", "--out", "y", "--micro-batch-size", str(10**12)],
        ["finetune", "x", "y", "--out", "z" * 300],
        ["finetune", "x", "y", "--out", "z", "--context", "2000000000"],
        ["plan", "x", "--context", "2000000000"],
        ["run", "x.gguf", "--context", "2000000000"],
        ["chat", "x.gguf", "--max-new-tokens", str(10**12)],
        ["export", "x", "y" * 300 + ".gguf"],
        ["prepare", "x", "--out", "\udcff"],
        ["prepare", "x" * 300, "--out", "y"],
        ["import", "x" * 300, "--out", "y"],
        ["inspect", "x" * 300],
        ["report", "x" * 300],
        ["x" * 10_000],
        ["\udcff"],
        ["train", "--" + "x" * 10_000],
    ],
    ids=lambda words: " ".join(words)[:60].encode("ascii", "replace").decode(),
)
def test_refused_at_once(words: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    start = time.monotonic()
    assert main(words) == 2
    printed = capsys.readouterr()
    assert time.monotonic() - start < 10  # the imports of a first command take a second or two
    assert printed.out == "" and printed.err.count("\n") == 1 and len(printed.err) <= 520, printed.err
    assert printed.err[:-1].isprintable() and sys.modules

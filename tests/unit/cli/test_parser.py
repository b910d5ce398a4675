"""The parser of commands: values, one-line errors, and help that fits its width."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Annotated, Literal

import pytest
from rich.cells import cell_len

from llamita.cli import COMMANDS, main
from llamita.cli.command import parse
from llamita.cli.help import help_text
from llamita.config import Option
from llamita.errors import ConfigError


@dataclasses.dataclass(frozen=True)
class Inner:
    """A group of options."""

    rate: Annotated[float, Option(short="r")] = 1.0
    """How fast."""
    window: Annotated[int, Option("TOKENS", name="width")] = 8
    """How wide."""


OUTER_DEFAULT = Inner(rate=0.5)


@dataclasses.dataclass(frozen=True)
class Flags:
    """Do something."""

    examples = ("llamita something a.txt", "llamita something a.txt --kind b")

    source: Annotated[Path, Option(positional=True)]
    """What to read."""
    others: Annotated[tuple[str, ...], Option("OTHER...", positional=True)] = ()
    """What else to read."""
    out: Annotated[Path | None, Option(short="o")] = None
    """What to write. Default: nothing."""
    kind: Literal["a", "b"] = "a"
    """Which kind."""
    number: int | None = None
    quiet: bool = False
    names: tuple[Literal["red", "green"], ...] = ()
    pair: tuple[str, str] | None = None
    each: Annotated[tuple[str, ...], Option(repeated=True)] = ()
    inner: Annotated[Inner, Option(group="engine")] = OUTER_DEFAULT


def parsed(*words: str) -> Flags:
    return parse(Flags, words, "llamita something")


def test_values() -> None:
    assert parsed("a") == Flags(Path("a"))
    words = "a b --out=c c -o d --kind b --number=-3 --quiet --names red green --pair x y --each 1 --each 2 -r -1e-3"
    expected = Flags(
        Path("a"), ("b", "c"), Path("d"), "b", -3, True, ("red", "green"), ("x", "y"), ("1", "2"), Inner(-1e-3)
    )
    assert parsed(*words.split()) == expected
    assert parsed("--quiet", "a", "--no-quiet", "--width", "2").inner == Inner(0.5, 2)
    assert parsed("--number", "-7", "a").number == -7
    assert parsed("--", "--number", "-x") == Flags(Path("--number"), ("-x",))
    assert parsed("a", "--each=-x").each == ("-x",)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("", "missing SOURCE"),
        ("a --numbr 3", "unknown option --numbr; perhaps you meant --number"),
        ("a --num 3", "unknown option --num; perhaps you meant --number"),
        ("a --zzz", "unknown option --zzz"),
        ("a -O b", "unknown option -O; perhaps you meant -o"),
        ("a --number", "--number: expected a value, found none"),
        ("a --each", "--each: expected a value, found none; write --each=TEXT if it starts with -"),
        ("a --number ten", "--number: expected a whole number, found 'ten'"),
        ("a -r fast", "--rate: expected a number, found 'fast'"),
        ("a --kind c", "--kind: expected one of a, b, found 'c'"),
        ("a --names red gren", "--names: expected one of red, green, found 'gren'; perhaps you meant green"),
        ("a --pair x", "--pair: expected 2 values (TEXT), found 1"),
    ],
)
def test_errors_name_what_is_wrong(words: str, message: str) -> None:
    with pytest.raises(ConfigError, match=f"^{re.escape(message)} \\(see llamita something --help\\)$"):
        parsed(*words.split())


def test_help_of_a_dataclass() -> None:
    shown = help_text(Flags, "llamita something", 80)
    assert shown.splitlines()[0] == "usage: llamita something SOURCE [OTHER...] [options]"
    squeezed = re.sub(" +", " ", shown)
    assert "\n -o, --out PATH What to write. Default: nothing.\n" in squeezed
    assert "\n --kind {a,b} Which kind (default: a).\n" in squeezed
    assert "\n --names {red,green}...\n" in squeezed
    assert "\n\nengine:\n -r, --rate X How fast (default: 0.5).\n --width TOKENS How wide (default: 8).\n" in squeezed
    assert shown.endswith("  llamita something a.txt --kind b")
    assert "\x1b[1moptions:\x1b[0m" in help_text(Flags, "llamita something", 80, is_bold=True)


@pytest.mark.parametrize("columns", [60, 80, 120])
@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_every_command(
    command: str, columns: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    with pytest.raises(SystemExit) as stopped:
        main([command, "--help"])
    assert stopped.value.code == 0
    shown = capsys.readouterr().out
    assert max(map(cell_len, shown.splitlines())) <= columns
    assert "None" not in shown and "\x1b" not in shown
    usage, examples = shown.splitlines()[0], shown.partition("examples:\n")[2].splitlines()
    assert usage.startswith(f"usage: llamita {command}") and usage.endswith("[options]") and len(usage) <= 60
    assert len(examples) >= 2 and all(f"llamita {command}" in line for line in examples)
    arguments = re.split(r"\n(?=  -\w, --|      --|  [A-Z])", shown.partition("examples:\n")[0])
    assert len(arguments) > 2
    for argument in arguments[1:]:
        assert argument.lower().count("default") <= 1, argument
        assert re.search(r"\S  +\S|\n +\S", argument), f"no help: {argument}"


@pytest.mark.parametrize("command", COMMANDS)
def test_examples_can_be_parsed(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The examples in the help are command lines that the parser takes."""
    import importlib
    import shlex

    module = importlib.import_module(f"llamita.cli.{COMMANDS[command][0]}")
    flags = next(each for each in vars(module).values() if isinstance(each, type) and hasattr(each, "examples"))
    for example in flags.examples:
        words = shlex.split(example.rpartition("| ")[2])
        assert words[:2] == ["llamita", command]
        parse(flags, words[2:], f"llamita {command}")


def test_overview(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for columns in (60, 80, 120):
        monkeypatch.setenv("COLUMNS", str(columns))
        assert main([]) == 0
        shown = capsys.readouterr().out
        assert all(f"\n  {command} " in shown for command in COMMANDS)
        assert max(map(len, shown.splitlines())) <= columns
    assert main(["trian"]) == 2
    assert capsys.readouterr().err == "llamita: unknown command 'trian'; perhaps you meant train\n"

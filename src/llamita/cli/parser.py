"""Parses a command line into a dataclass whose fields are the arguments; cli/help.py prints
them."""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import os
import re
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn, TypeVar

from llamita.config import Option, options_of
from llamita.errors import ConfigError, clean_line

MAX_CHOICES = 32  # characters of {a,b,c}; help names longer lists of choices in the text
MAX_NAME_BYTES = 255  # of a file, on common systems
NUMBER = re.compile(r"-\.?\d|-(inf|nan)$")


Flags = TypeVar("Flags")
Fill = Callable[[Mapping[tuple[str, ...], Any]], Mapping[tuple[str, ...], Any]]


class UsageError(ConfigError):
    """The command line is wrong; the message is one line."""


@dataclasses.dataclass(frozen=True)
class Argument:
    """An option or a positional argument, from a field of a dataclass."""

    path: tuple[str, ...]  # ("sampling", "temperature") for a field of a nested dataclass
    kind: Any  # type of one value
    count: int | None  # number of values; 0: any number; None: one value, not in a tuple
    option: Option
    default: Any
    owner: type[Any]  # the dataclass with the field

    @property
    def name(self) -> str:
        """The long flag, or the metavar of a positional argument."""
        spelled = self.option.name or self.path[-1].replace("_", "-")
        return self.metavar if self.option.positional else f"--{spelled}"

    @property
    def flags(self) -> list[str]:
        return [*([f"-{self.option.short}"] if self.option.short else []), self.name]

    @property
    def choices(self) -> tuple[Any, ...]:
        return typing.get_args(self.kind) if typing.get_origin(self.kind) is Literal else ()

    @property
    def metavar(self) -> str:
        listed = "{" + ",".join(map(str, self.choices)) + "}"
        if self.option.metavar or self.option.positional:
            return self.option.metavar or self.path[-1].upper()
        if self.choices:
            return listed if len(listed) <= MAX_CHOICES else "NAME"
        return {bool: "", int: "N", float: "X", Path: "PATH"}.get(self.kind, "TEXT")

    def value(self, word: str | None) -> Any:
        """The value of a word. Raises UsageError."""
        if word is None:
            hint = f"; write {self.name}=TEXT if it starts with -" if self.kind is str else ""
            raise UsageError(f"{self.name}: expected a value, found none{hint}")
        text = self._checked(word)
        if self.choices:
            spelled = {str(choice): choice for choice in self.choices}
            if word not in spelled:
                found = f"found {shown(word)}{suggestion(word, spelled)}"
                raise UsageError(f"{self.name}: expected one of {', '.join(spelled)}, {found}")
            return spelled[word]
        try:
            return text if self.kind is str else self.kind(word)
        except ValueError:
            expected = "a whole number" if self.kind is int else "a number"
            raise UsageError(f"{self.name}: expected {expected}, found {shown(word)}") from None

    @property
    def is_path(self) -> bool:
        """Whether the value names files: SOURCE... is text, because it may also be a word."""
        is_source = self.option.positional and self.count is not None
        return self.kind is Path or is_source or self.option.metavar == "PATH"

    def _checked(self, word: str) -> str:
        """The word as text in any locale, but a path as the system spells it.

        Raises UsageError for what no file, text or system call could take.
        """
        try:
            raw = os.fsencode(word)
            text = word if self.is_path else raw.decode("utf-8")
        except UnicodeError:
            raise UsageError(f"{self.name}: expected UTF-8 text, found {shown(word)}") from None
        if self.is_path:
            if "\0" in word:
                raise UsageError(f"{self.name}: expected a path, found a NUL character in {shown(word)}")
            longest = max(map(len, raw.replace(b"\\", b"/").split(b"/")))
            if longest > MAX_NAME_BYTES:
                raise UsageError(
                    f"{self.name}: expected names of at most {MAX_NAME_BYTES} bytes, found one of {longest:,}"
                )
        return text

    def values(self, words: list[str | None]) -> tuple[Any, ...]:
        """The values of several words. Raises UsageError."""
        if self.count and len(words) != self.count:
            raise UsageError(f"{self.name}: expected {self.count} values ({self.metavar}), found {len(words)}")
        return tuple(map(self.value, words))


def parse_arguments(flags: type[Flags], argv: Sequence[str], fill: Fill | None = None) -> Flags:
    """Parse argv into the dataclass `flags`.

    fill: gets the values of the given arguments by path, and returns those of others.

    A bool is --name and --no-name, a tuple takes several values, a nested dataclass adds its fields
    as a group of options. Raises UsageError, which suggests the nearest option, and the errors of
    the dataclass.
    """
    arguments = arguments_of(flags)
    end = argv.index("--") if "--" in argv else len(argv)
    options, words = _option_parser(arguments).parse_known_args(argv[:end])
    _check_known(arguments, words)
    given, missing = _given(arguments, vars(options), [*words, *argv[end + 1 :]])
    if fill is not None:
        provided = {path: value for path, value in given.items() if value != ()}
        known = {argument.path for argument in arguments}
        given = {**given, **{path: value for path, value in fill(provided).items() if path in known}, **provided}
        missing = [argument for argument in missing if argument.path not in given]
    if missing:
        raise UsageError(f"missing {' and '.join(argument.name for argument in missing)}")
    return _build(flags, given)


def shown(word: str) -> str:
    """A word of the command line, quoted for a message and shortened."""
    return repr(word if len(word) <= 100 else f"{word[:100]}…")


def suggestion(word: str, known: Iterable[str]) -> str:
    """The end of an error about an unknown word: the nearest known one, if any is near."""
    nearest = difflib.get_close_matches(word.lower()[:100], list(known), n=1)
    return f"; perhaps you meant {nearest[0]}" if nearest else ""


# ---- dataclass to arguments, words to values


def arguments_of(flags: type[Any], path: tuple[str, ...] = (), defaults: Any = None, group: str = "") -> list[Argument]:
    """The arguments of a dataclass and its nested dataclasses. defaults: the default instance of a
    nested one."""
    hints = typing.get_type_hints(flags, include_extras=True)
    described = options_of(flags)
    arguments = []
    for field in dataclasses.fields(flags):
        hint, option = hints[field.name], described.get(field.name, Option())
        hint = typing.get_args(hint)[0] if typing.get_origin(hint) is Annotated else hint
        if dataclasses.is_dataclass(field.default):
            title = option.group if field.name in described else field.name
            arguments += arguments_of(hint, (*path, field.name), field.default, title)
            continue
        option = dataclasses.replace(option, group=group) if group and option.group == Option.group else option
        kind, count = _kind(hint)
        default = field.default if defaults is None else getattr(defaults, field.name)
        arguments.append(Argument((*path, field.name), kind, count, option, default, flags))
    return arguments


def _kind(hint: Any) -> tuple[Any, int | None]:
    """The type of one value, and Argument.count. Of a union, the first type but None."""
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        hint = next(each for each in typing.get_args(hint) if each is not type(None))
    if typing.get_origin(hint) is tuple:
        kinds = typing.get_args(hint)
        return kinds[0], 0 if kinds[-1] is Ellipsis else len(kinds)
    return hint, None


class _OptionParser(argparse.ArgumentParser):
    """Separates options from other words; does not convert values."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(message.removeprefix("argument "))  # such as a value for a bool


def _option_parser(arguments: Iterable[Argument]) -> argparse.ArgumentParser:
    parser = _OptionParser(add_help=False, allow_abbrev=False, argument_default=argparse.SUPPRESS)
    parser._negative_number_matcher = NUMBER  # -1e-3 is a value, not an option
    for argument in arguments:
        if argument.option.positional:
            continue
        dest = ".".join(argument.path)
        if argument.kind is bool:
            parser.add_argument(*argument.flags, dest=dest, action=argparse.BooleanOptionalAction)
        elif argument.option.repeated:
            parser.add_argument(*argument.flags, dest=dest, action="append", nargs="?")
        else:
            parser.add_argument(*argument.flags, dest=dest, nargs="?" if argument.count is None else "*")
    return parser


def _check_known(arguments: Iterable[Argument], words: Sequence[str]) -> None:
    """Raise UsageError for an unknown option."""
    known = [flag for argument in arguments if not argument.option.positional for flag in argument.flags]
    for word in words:
        if word.startswith("-") and word != "-" and " " not in word and not NUMBER.match(word):
            flag = clean_line(word.partition("=")[0], 100)
            raise UsageError(f"unknown option {flag}{suggestion(flag, [*known, '--help'])}")


def _given(
    arguments: Iterable[Argument], options: Mapping[str, Any], words: list[str | None]
) -> tuple[dict[tuple[str, ...], Any], list[Argument]]:
    """The values of the given arguments, and the required ones that are missing. Raises
    UsageError."""
    given: dict[tuple[str, ...], Any] = {}
    missing = []
    for argument in arguments:
        found = options.get(".".join(argument.path))
        if argument.option.positional:
            taken = len(words) if argument.count == 0 else 1
            found, words = words[:taken], words[taken:]
            found = found if argument.count == 0 else next(iter(found), None)
        if argument.count is not None and found is not None:
            given[argument.path] = argument.values(found)
        elif found is not None or ".".join(argument.path) in options:
            given[argument.path] = found if argument.kind is bool else argument.value(found)
        elif argument.default is dataclasses.MISSING:
            missing.append(argument)
    if words:
        raise UsageError(f"unexpected argument {words[0]!r}")
    return given, missing


def _build(flags: type[Flags], given: Mapping[tuple[str, ...], Any]) -> Flags:
    values: dict[str, Any] = {path[0]: value for path, value in given.items() if len(path) == 1}
    for name in {path[0] for path in given if len(path) > 1}:
        nested = {path[1]: value for path, value in given.items() if path[0] == name}
        values[name] = dataclasses.replace(getattr(flags, name), **nested)
    return flags(**values)

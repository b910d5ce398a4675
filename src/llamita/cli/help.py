"""The help of a command, from its dataclass: docstrings, types and defaults of the fields."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import itertools
import os
import shutil
import textwrap
from collections.abc import Sequence
from typing import Any, TextIO

from rich.cells import cell_len

from llamita.cli.parser import Argument, arguments_of

MIN_COLUMNS, MAX_COLUMNS = 40, 100
GROUPS = (  # in this order; other groups follow
    "arguments", "options", "prompt", "model", "documents", "validation", "data", "sampling", "LoRA", "preference",
    "optimization", "evaluation", "distillation", "output", "engine", "hardware", "advanced",
)  # fmt: skip


def help_text(flags: type[Any], prog: str, columns: int, *, is_bold: bool = False) -> str:
    """Format the help of a command: usage, description, arguments, groups of options, examples."""
    arguments = arguments_of(flags)
    required = [each for each in arguments if each.default is dataclasses.MISSING and not each.option.positional]
    usage = [prog, *(_usage(each) for each in arguments if each.option.positional)]
    usage += [f"{each.name} {each.metavar}" for each in required]
    groups: dict[str, list[tuple[str, str]]] = {name: [] for name in GROUPS}
    docs = {owner: _field_docs(owner) for owner in {each.owner for each in arguments}}
    for each in arguments:
        group = "arguments" if each.option.positional else each.option.group
        text = docs[each.owner].get(each.path[-1], "")
        groups.setdefault(group, []).append((_left(each), _help(each, text)))
    groups["options"].append(("-h, --help", "Show this help."))
    longest = max(cell_len(name) for rows in groups.values() for name, _ in rows)
    left = min(longest + 4, 20 if columns < 72 else 28)
    parts = [_wrapped(f"usage: {' '.join(usage)} [options]", columns, "    ")]
    parts += [_wrapped(paragraph, columns) for paragraph in inspect.cleandoc(flags.__doc__ or "").split("\n\n")]
    parts += [
        f"{_bold(f'{name}:', is_bold)}\n{in_columns(rows, columns, left)}" for name, rows in groups.items() if rows
    ]
    examples = "".join(f"\n  {example}" for example in getattr(flags, "examples", ()))
    parts += [_bold("examples:", is_bold) + examples] if examples else []
    return "\n\n".join(parts)


def in_columns(rows: Sequence[tuple[str, str]], columns: int, left: int) -> str:
    """Format rows of (name, text); a name too long for its column gets its own line."""
    lines = []
    for name, text in rows:
        wrapped = wrap(text, columns - left)
        if cell_len(name) + 4 > left:
            lines.append(f"  {name}")
        else:
            lines.append(f"  {name}{' ' * (left - 2 - cell_len(name))}{wrapped.pop(0)}")
        lines += [" " * left + line for line in wrapped]
    return "\n".join(lines).replace("\xa0", " ")


def help_columns() -> int:
    """The width of the terminal or $COLUMNS, clamped."""
    return min(max(shutil.get_terminal_size().columns, MIN_COLUMNS), MAX_COLUMNS)


def has_color(file: TextIO) -> bool:
    """Whether to print escape sequences: on a terminal, unless NO_COLOR is set."""
    return file.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def _usage(argument: Argument) -> str:
    return argument.name if argument.default is dataclasses.MISSING else f"[{argument.name}]"


def _left(argument: Argument) -> str:
    if argument.option.positional:
        return argument.name
    name = f"--no-{argument.name[2:]}" if argument.default is True else argument.name
    many = "..." if argument.count == 0 and not argument.option.repeated else ""
    short = f"-{argument.option.short}, " if argument.option.short else "    "
    return f"{short}{name} {argument.metavar}{many}".rstrip()


def _help(argument: Argument, text: str) -> str:
    """The field's docstring, with the choices and the default unless it names them."""
    default = argument.default
    if argument.choices and argument.metavar == "NAME":
        text += f" Choices: {', '.join(map(str, argument.choices))}."
    if "default" in text.lower() or default in (None, "", (), dataclasses.MISSING) or argument.kind is bool:
        return text
    shown = f"{default:g}" if argument.kind is float else str(default)
    return f"{text.removesuffix('.')} (default:\xa0{shown})."  # a no-break space


def _field_docs(flags: type[Any]) -> dict[str, str]:
    """The docstring below each field, from the source; inherited from base classes."""
    docs = {}
    for base in filter(dataclasses.is_dataclass, reversed(flags.__mro__)):
        parsed = ast.parse(textwrap.dedent(inspect.getsource(base))).body[0]
        for field, text in itertools.pairwise(getattr(parsed, "body", [])):
            if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant):
                docs[ast.unparse(field.target)] = " ".join(str(text.value.value).split())
    return docs


def _bold(text: str, is_bold: bool) -> str:
    return f"\x1b[1m{text}\x1b[0m" if is_bold else text


def _wrapped(text: str, columns: int, indent: str = "") -> str:
    return "\n".join(wrap(" ".join(text.split()), columns, indent))


def wrap(text: str, columns: int, indent: str = "") -> list[str]:
    """Whole words in lines of at most this many columns, of which a wide character takes two; at
    least one line. indent: of the lines after the first."""
    lines = [""]
    for word in text.split(" "):
        longer = f"{lines[-1]} {word}" if lines[-1].strip() else lines[-1] + word
        if cell_len(longer) > columns and lines[-1].strip():
            lines.append(indent + word)
        else:
            lines[-1] = longer
    return lines

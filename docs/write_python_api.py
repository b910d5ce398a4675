"""Writes docs/python-api.md from the docstrings of the public names; `make docs` runs it, a test compares the two."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import itertools
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import llamita
from llamita.errors import LlamitaError

PAGE = Path(__file__).with_name("python-api.md")
COLUMNS = 98
GROUPS = {
    "Running models": ("load", "Model", "Generation", "Session", "Sampler", "SamplingParams", "RuntimeOptions", "Chat"),
    "Training and converting": ("prepare", "train", "export", "import_model", "ModelConfig"),
    "Settings": ("PrepareConfig", "TrainConfig"),
    "Errors": ("LlamitaError",),
}
INTRODUCTION = """# Python API

Written by `make docs` from the docstrings; do not edit.

`import llamita` loads nothing heavy: each name is imported on first use. Running models needs only
NumPy; training needs `pip install 'llamita[train]'`. The command line has the same functions: see
[Command line](cli.md).

```python
from pathlib import Path

import llamita
from llamita.config import PrepareConfig, TrainConfig

llamita.prepare(PrepareConfig(sources=("my_texts",), out=Path("tokens")))
llamita.train(TrainConfig(data=("tokens",), out=Path("runs/mine"), minutes=10))
llamita.export(Path("runs/mine"), Path("mine.gguf"), "q8_0")
print("".join(llamita.load("mine.gguf").generate("Once upon a time")))
```"""


def find(name: str) -> Any:
    """A public name, or a class that public functions take or return; None if this version has no such name."""
    from llamita import config, engine

    return next((getattr(module, name) for module in (llamita, engine, config) if hasattr(module, name)), None)


def parameter(found: inspect.Parameter) -> str:
    """Such as `top_k: int = 0`; annotations are strings already."""
    annotated = found.name if found.annotation is inspect.Parameter.empty else f"{found.name}: {found.annotation}"
    star = {inspect.Parameter.VAR_POSITIONAL: "*", inspect.Parameter.VAR_KEYWORD: "**"}.get(found.kind, "")
    if found.default is inspect.Parameter.empty:
        return star + annotated
    return f"{annotated} = {value(found.default)}"


def value(default: Any) -> str:
    """A default as Python writes it; of a dataclass only the fields that differ from their own defaults."""
    if callable(default):
        return "..."
    if not dataclasses.is_dataclass(default) or isinstance(default, type):
        return repr(default)
    fields = ((field, getattr(default, field.name)) for field in dataclasses.fields(default))
    changed = (f"{field.name}={found!r}" for field, found in fields if found != field.default)
    return f"{type(default).__name__}({', '.join(changed)})"


def signature(name: str, function: Any) -> str:
    """The call on one line, or one parameter per line if that is longer than COLUMNS."""
    found = inspect.signature(function)
    listed = [p for p in found.parameters.values() if p.name != "self"]
    parameters = [parameter(p) for p in listed]
    kinds = [p.kind for p in listed]
    if inspect.Parameter.KEYWORD_ONLY in kinds and inspect.Parameter.VAR_POSITIONAL not in kinds:
        parameters.insert(kinds.index(inspect.Parameter.KEYWORD_ONLY), "*")
    returned = found.return_annotation
    arrow = "" if returned in (inspect.Signature.empty, None, "None") else f" -> {returned}"
    line = f"{name}({', '.join(parameters)}){arrow}"
    if len(line) <= COLUMNS:
        return line
    rows = "".join(f"    {row},\n" for row in parameters)
    return f"{name}(\n{rows}){arrow}"


def prose(thing: Any) -> str:
    """The docstring, wrapped."""
    paragraphs = (inspect.getdoc(thing) or "").replace("<", "&lt;").split("\n\n")
    return "\n\n".join(textwrap.fill(p, COLUMNS, break_on_hyphens=False, break_long_words=False) for p in paragraphs)


def code(text: str) -> str:
    return f"```python\n{text}\n```"


def is_documented(base: type) -> bool:
    """Whether a class of the engine's bindings is shown with its members; Owned only closes handles."""
    return base.__module__.startswith("llamita.engine.") and base.__name__ != "Owned"


def class_parts(name: str, kind: type) -> Iterator[str]:
    yield prose(kind)
    bases = [base for base in reversed(kind.__mro__) if is_documented(base)] or [kind]
    members = {name: value for base in bases for name, value in vars(base).items()}
    own = [member for member in members.items() if not member[0].startswith("_")]
    if issubclass(kind, LlamitaError):
        yield "\n".join(error_tree(kind))
        return
    if dataclasses.is_dataclass(kind):
        yield "\n".join(item for base in reversed(kind.__mro__) for item in fields(base))
    elif "__init__" in members and name != "Generation":
        yield code(signature(name, kind.__init__))
        yield prose(kind.__init__)
    for member, value in own:
        if isinstance(value, property):
            yield f"#### {name}.{member}\n\n{prose(value)}"
        elif inspect.isfunction(value):
            called = signature(member, value)
            shown = "" if called == f"{member}()" else f"{code(called)}\n\n"
            yield f"#### {name}.{member}()\n\n{shown}{prose(value)}"


def fields(kind: type) -> Iterator[str]:
    """A list item for each field that a dataclass adds to its bases, with the string below it in the source."""
    if not dataclasses.is_dataclass(kind):
        return
    (definition,) = ast.parse(textwrap.dedent(inspect.getsource(kind))).body
    assert isinstance(definition, ast.ClassDef)
    for node, after in itertools.pairwise([*definition.body, ast.Pass()]):
        if not isinstance(node, ast.AnnAssign) or "ClassVar" in ast.unparse(node.annotation):
            continue
        annotation = node.annotation
        if isinstance(annotation, ast.Subscript) and ast.unparse(annotation.value) == "Annotated":
            annotation = annotation.slice.elts[0]
        written = f"{ast.unparse(node.target)}: {ast.unparse(annotation)}"
        written += f" = {ast.unparse(node.value)}" if node.value else ""
        described = isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)
        text = f": {inspect.cleandoc(after.value.value)}" if described else ""
        yield textwrap.fill(f"- `{written}`{text}", COLUMNS, subsequent_indent="  ", break_on_hyphens=False)


def error_tree(kind: type) -> Iterator[str]:
    """A list item for each error below kind in llamita.errors."""
    for child in kind.__subclasses__():
        if child.__module__ == "llamita.errors":
            item = f"- `{child.__name__}`: {(inspect.getdoc(child) or '').splitlines()[0]}"
            yield textwrap.fill(item, COLUMNS, subsequent_indent="  ")
            yield from error_tree(child)


def page() -> str:
    """The text of docs/python-api.md."""
    parts = [INTRODUCTION]
    for group, names in GROUPS.items():
        parts.append(f"## {group}")
        for name in names:
            thing = find(name)
            if thing is None:
                continue
            parts.append(f"### {name}")
            if inspect.isclass(thing):
                parts += [part for part in class_parts(name, thing) if part.strip()]
            else:
                parts += [code(signature(name, thing)), prose(thing)]
    return "\n\n".join(parts) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")

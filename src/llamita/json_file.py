"""Reads JSON that other programs wrote, and checks it against a schema of its keys.

    CONFIG: Schema = {
        "hidden_size": Key("integer", required=True, minimum=1),
        "rms_norm_eps": Key("number", default=1e-6),
        "eos_token_id": Key(("integer", "list"), items=Key("integer", minimum=0)),
        "rope_parameters": Key("object", keys={"rope_type": Key("string", default="default")}),
    }
    config = read_json_object(folder / "config.json", FormatError, CONFIG)
    config["hidden_size"]  # an int of at least 1
    config["rms_norm_eps"]  # 1e-6 if the file has no such key

Whatever a file holds, the result is a dictionary of the kinds that the schema promises, or one
error of one short line: `cannot read config.json: rope_parameters.rope_type: expected a string,
found list of 2`. Without a schema only the JSON itself is checked: encoding, syntax, size, depth,
lengths of numbers, halves of surrogate pairs.
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, Literal

from llamita.errors import LlamitaError

Kind = Literal["integer", "number", "boolean", "string", "list", "object"]

MAX_BYTES: Final = 1 << 27  # four times the largest tokenizer.json in use
MAX_DEPTH: Final = 100
MAX_DIGITS: Final = 100  # of an integer; transformers writes 10^30 for "no limit"
_MAX_SHOWN: Final = 60  # characters of a value or a key in an error

_NAMES: Final[dict[Kind, str]] = {
    "integer": "an integer", "number": "a number", "boolean": "true or false", "string": "a string",
    "list": "a list", "object": "an object",
}  # fmt: skip
_SURROGATE_ESCAPE = re.compile(r"\\u[dD][89a-fA-F]")
_SURROGATE = re.compile("[\ud800-\udfff]")


@dataclasses.dataclass(frozen=True)
class Key:
    """What the value of a key must be.

    kind: one kind or several. A "number" may be written as an integer, and is finite; true and
    false are neither. A string is valid Unicode. default: the value of a missing key, which is not
    checked. required: the key must be there, and not be null. null: whether a null is allowed; it
    is returned as None. minimum, maximum: of numbers, both included. positive: numbers are greater
    than 0. choices: the strings allowed. items: what each element of a list, or each value of an object, must be. keys: the schema of an
    object. use: what the value is used for; documentation only."""

    kind: Kind | tuple[Kind, ...]
    default: Any = None
    required: bool = False
    null: bool = True
    minimum: float | None = None
    maximum: float | None = None
    positive: bool = False
    choices: tuple[str, ...] = ()
    items: Key | None = None
    keys: Mapping[str, Key] | None = None
    use: str = ""

    @property
    def kinds(self) -> tuple[Kind, ...]:
        return self.kind if isinstance(self.kind, tuple) else (self.kind,)


Schema = Mapping[str, Key]


def read_json_object(
    path: Path, error_type: type[LlamitaError], schema: Schema | None = None, *, unique_keys: bool = False
) -> dict[str, Any]:
    """The object in a JSON file: its keys, checked, and the defaults of missing ones. Keys that the
    schema does not name are returned unchecked.

    unique_keys: refuse a key that occurs twice; otherwise its last value counts. Raises error_type.
    """
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise error_type(f"cannot read {path}: {error.strerror or error}") from error
    return parse_json_object(data, str(path), error_type, schema, unique_keys=unique_keys)


def parse_json_object(
    data: bytes, where: str, error_type: type[LlamitaError], schema: Schema | None = None, *, unique_keys: bool = False
) -> dict[str, Any]:
    """`read_json_object` for bytes; `where` names them in errors."""
    content = parse_json(data, where, error_type, unique_keys=unique_keys)
    if not isinstance(content, dict):
        raise error_type(f"cannot read {where}: expected a JSON object, found {shown(content)}")
    return content if schema is None else check_object(content, schema, where, error_type)


def parse_json(data: bytes, where: str, error_type: type[LlamitaError], *, unique_keys: bool = False) -> Any:
    """Any JSON value, with or without a BOM. Raises error_type; see `read_json_object`."""
    if len(data) > MAX_BYTES:
        raise error_type(f"cannot read {where}: expected at most {MAX_BYTES:,} bytes of JSON")
    if data.startswith(b"version https://git-lfs"):
        raise error_type(f"cannot read {where}: found a Git LFS pointer; fetch the file with: git lfs pull")
    try:
        text = data.decode(json.detect_encoding(data))
        hook = _unique if unique_keys else None
        content = json.loads(text, parse_int=_integer, object_pairs_hook=hook)
        _check_nesting(content, has_surrogates=_SURROGATE_ESCAPE.search(text) is not None)
    except UnicodeDecodeError as error:
        raise error_type(f"cannot read {where}: byte {error.start}: expected UTF-8 text") from None
    except RecursionError:
        raise error_type(f"cannot read {where}: expected at most {MAX_DEPTH} levels of JSON, found more") from None
    except _JsonError as error:
        raise error_type(f"cannot read {where}: {error}") from None
    except ValueError as error:
        raise error_type(f"cannot read {where}: not valid JSON: {shortened(str(error), 120)}") from None
    return content


def check_object(values: object, schema: Schema, where: str, error_type: type[LlamitaError]) -> dict[str, Any]:
    """The object with its keys checked and defaults for missing ones.

    where: the file, and the keys that lead to the object. Raises error_type."""
    return _checked_object(values, schema, where, "", error_type)


def shown(value: object) -> str:
    """A JSON value for an error: one line, clean and short."""
    if isinstance(value, (list, tuple)):
        return f"list of {len(value)}"
    if isinstance(value, Mapping):
        return f"object of {len(value)} keys"
    if isinstance(value, str):
        return shortened(repr(value[: _MAX_SHOWN + 1]))
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return shortened(str(value)) if isinstance(value, (int, float)) else type(value).__name__


def shortened(text: str, length: int = _MAX_SHOWN) -> str:
    """A text for an error: control characters escaped, cut to a length."""
    cut = text if len(text) <= length else f"{text[: length - 1]}…"
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in cut)


class _JsonError(Exception):
    """The JSON is well-formed, but not accepted."""


def _integer(digits: str) -> int:
    if len(digits) > MAX_DIGITS:
        raise _JsonError(f"expected numbers of at most {MAX_DIGITS} digits, found {len(digits):,}")
    return int(digits)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) < len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise _JsonError(f"{shown(key)} occurs twice")
            seen.add(key)
    return result


def _check_nesting(content: Any, *, has_surrogates: bool) -> None:
    """Raise for depth, and for strings that are not Unicode text. Level by level, as Python's stack
    is limited."""
    level, depth = [content], 0
    while level:
        depth += 1
        if depth > MAX_DEPTH:
            raise RecursionError
        below: list[Any] = []
        for value in level:
            children = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
            below += [child for child in children if isinstance(child, (dict, list))]
            if has_surrogates:
                keys = value if isinstance(value, dict) else ()
                for text in (*keys, *children, value):
                    if isinstance(text, str) and _SURROGATE.search(text):
                        raise _JsonError(f"expected Unicode text, found half of a surrogate pair in {shown(text)}")
        level = below


def _checked_object(
    values: object, schema: Schema, where: str, prefix: str, error_type: type[LlamitaError]
) -> dict[str, Any]:
    if not isinstance(values, Mapping):
        place = f"{prefix.removesuffix('.')}: " if prefix else ""
        raise error_type(f"cannot read {where}: {place}expected an object, found {shown(values)}")
    result = dict(values)
    for name, key in schema.items():
        if name in values:
            result[name] = _checked(values[name], key, where, prefix + name, error_type)
        elif key.required:
            raise error_type(f"cannot read {where}: {prefix}{name} is missing")
        else:
            result[name] = key.default
    return result


def _checked(value: Any, key: Key, where: str, name: str, error_type: type[LlamitaError]) -> Any:
    if value is None:
        if key.required or not key.null:
            raise _wrong(value, key, where, name, error_type)
        return None
    if not any(_is_kind(value, kind) for kind in key.kinds):
        raise _wrong(value, key, where, name, error_type)
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        too_small = (key.minimum is not None and value < key.minimum) or (key.positive and value <= 0)
        if too_small or (key.maximum is not None and value > key.maximum):
            raise _wrong(value, key, where, name, error_type)
    if isinstance(value, str) and key.choices and value not in key.choices:
        raise _wrong(value, key, where, name, error_type)
    if isinstance(value, Mapping) and key.keys is not None:
        value = _checked_object(value, key.keys, where, f"{name}.", error_type)
    if key.items is not None and isinstance(value, (list, tuple)):
        return [_checked(item, key.items, where, f"{name}[{i}]", error_type) for i, item in enumerate(value)]
    if key.items is not None and isinstance(value, Mapping):
        known = key.keys or {}
        return {
            k: v if k in known else _checked(v, key.items, where, f"{name}.{shortened(str(k), 40)}", error_type)
            for k, v in value.items()
        }
    return value


def _is_kind(value: object, kind: Kind) -> bool:
    if isinstance(value, bool):
        return kind == "boolean"
    if isinstance(value, int):
        return kind in ("integer", "number")
    if isinstance(value, float):
        return kind == "number" and math.isfinite(value)
    if isinstance(value, str):
        return kind == "string"
    return isinstance(value, Mapping if kind == "object" else (list, tuple)) and kind in ("object", "list")


def _wrong(value: object, key: Key, where: str, name: str, error_type: type[LlamitaError]) -> LlamitaError:
    return error_type(f"cannot read {where}: {name}: expected {_expected(key)}, found {shown(value)}")


def _expected(key: Key) -> str:
    """What a key must be, in words."""
    words = []
    for kind in key.kinds:
        if kind == "string" and key.choices:
            words.append(f"one of {', '.join(key.choices)}")
            continue
        name = _NAMES[kind]
        if kind in ("integer", "number"):
            name = f"a positive {'whole number' if kind == 'integer' else 'number'}" if key.positive else name
            limit = "" if key.maximum is None else f"{key.maximum:,}" if kind == "integer" else f"{key.maximum:g}"
            if key.minimum is not None:
                name += f" from {key.minimum:g} to {limit}" if limit else f" of at least {key.minimum:g}"
            elif limit:
                name += f" of at most {limit}"
        words.append(name)
    return " or ".join(words)

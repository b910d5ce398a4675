"""Tests the reader of foreign JSON: any bytes give the promised kinds, or one short clean line."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest

from llamita.errors import FormatError
from llamita.json_file import MAX_BYTES, MAX_DEPTH, Key, Schema, check_object, parse_json, read_json_object

SCHEMA: Schema = {
    "size": Key("integer", required=True, minimum=1, maximum=1000),
    "rate": Key("number", default=0.5, minimum=0),
    "kind": Key("string", choices=("a", "b")),
    "ends": Key(("integer", "list"), items=Key("integer", minimum=0, null=False)),
    "flag": Key("boolean", default=False, null=False),
    "ids": Key("object", default={}, items=Key("integer")),
    "heads": Key("integer", default=1, positive=True, maximum=9),
    "rope": Key("object", keys={"theta": Key("number", required=True), "type": Key("string", default="default")}),
}

VALUES = [
    "null", "true", "false", "0", "-1", "7", str(10**99), "1" * 101, "1" * 5000, "0.5", "1e999", "-1e999", "NaN", '""',
    '"a"', '"x"', '"\\ud800"', '"\\udc00 \\ud83d\\ude00"', '"\\u0000\\n\\u001b[31m"', '"' + "long " * 10000 + '"',
    "[]", "[1]", "[[1]]", '["\\ud800"]', "{}", '{"a": 1}', '{"a": {"b": []}}', "[" * 1000 + "]" * 1000,
    '{"a":' * 200 + "1" + "}" * 200, "[" * 200000, "[1" + ", 1" * 1000 + "]",
]  # fmt: skip


def line(error: BaseException) -> str:
    text = str(error)
    assert len(text) < 500 and text.isprintable(), text[:600]
    assert text.encode("utf-8")
    return text


@pytest.mark.parametrize(("key", "value"), list(itertools.product(SCHEMA, VALUES)), ids=lambda value: value[:12])
def test_any_value_at_any_key(tmp_path: Path, key: str, value: str) -> None:
    content = {"size": "3"} | {key: value}
    path = tmp_path / "x.json"
    path.write_text("{" + ",".join(f'"{k}": {v}' for k, v in content.items()) + "}")
    try:
        result = read_json_object(path, FormatError, SCHEMA)
    except FormatError as error:
        assert "x.json" in line(error)
        return
    assert type(result["size"]) is int and 1 <= result["size"] <= 1000
    assert result["rate"] is None or result["rate"] >= 0
    assert result["kind"] in (None, "a", "b")
    assert type(result["flag"]) is bool
    ends = result["ends"] if isinstance(result["ends"], list) else [result["ends"]]
    assert all(end is None or type(end) is int for end in ends)
    assert result["rope"] is None or type(result["rope"]["type"]) is str


def read(text: str, schema: Schema | None = SCHEMA, **options: bool) -> dict[str, object]:
    content = parse_json(text.encode("utf-8"), "x.json", FormatError, **options)
    return content if schema is None else check_object(content, schema, "x.json", FormatError)


def test_defaults_and_unknown_keys() -> None:
    assert read('{"size": 3, "other": [1], "rope": {"theta": 1}}') == {
        "size": 3, "rate": 0.5, "kind": None, "ends": None, "flag": False, "ids": {}, "other": [1],
        "heads": 1,
        "rope": {"theta": 1, "type": "default"},
    }  # fmt: skip


@pytest.mark.parametrize(
    ("text", "message"),
    {
        "missing": ("{}", "cannot read x.json: size is missing"),
        "null": ('{"size": null}', "size: expected an integer from 1 to 1,000, found null"),
        "boolean": ('{"size": true}', "size: expected an integer from 1 to 1,000, found true"),
        "float": ('{"size": 2.0}', "size: expected an integer from 1 to 1,000, found 2.0"),
        "range": ('{"size": 1001}', "size: expected an integer from 1 to 1,000, found 1001"),
        "nan": ('{"size": 1, "rate": NaN}', "rate: expected a number of at least 0, found nan"),
        "positive": ('{"size": 1, "heads": 0}', "heads: expected a positive whole number of at most 9, found 0"),
        "choice": ('{"size": 1, "kind": "c\\n"}', "kind: expected one of a, b, found 'c\\n'"),
        "item": ('{"size": 1, "ends": [1, -2]}', "ends[1]: expected an integer of at least 0, found -2"),
        "value": ('{"size": 1, "ids": {"a": []}}', "ids.a: expected an integer, found list of 0"),
        "nested": ('{"size": 1, "rope": {"theta": {}}}', "rope.theta: expected a number, found object of 0 keys"),
        "kinds": ('{"size": 1, "ends": {}}', "ends: expected an integer or a list, found object of 0 keys"),
        "syntax": ('{"size": }', "not valid JSON: Expecting value: line 1 column 10 (char 9)"),
        "not an object": ("[3]", "expected an object, found list of 1"),
        "digits": (f'{{"size": {"9" * 5000}}}', "expected numbers of at most 100 digits, found 5,000"),
        "surrogate": ('{"size": 1, "other": ["a\\ud800"]}', "found half of a surrogate pair in 'a\\ud800'"),
        "surrogate key": ('{"size": 1, "\\udead": 1}', "found half of a surrogate pair in '\\udead'"),
        "lfs": ("version https://git-lfs.github.com/spec/v1\noid sha256:00", "found a Git LFS pointer; fetch"),
    }.values(),
)
def test_errors(text: str, message: str) -> None:
    with pytest.raises(FormatError) as caught:
        read(text)
    assert message in line(caught.value)


def test_depth() -> None:
    assert read('{"a":' * (MAX_DEPTH - 1) + "[]" + "}" * (MAX_DEPTH - 1), None)
    with pytest.raises(FormatError, match=f"expected at most {MAX_DEPTH} levels"):
        read('{"a":' * MAX_DEPTH + "[]" + "}" * MAX_DEPTH, None)


def test_keys_that_occur_twice() -> None:
    assert read('{"a": 1, "a": 2}', None) == {"a": 2}
    with pytest.raises(FormatError, match="'a' occurs twice"):
        read('{"b": [{"a": 1, "a": 2}]}', None, unique_keys=True)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_encodings_and_pairs_of_surrogates(tmp_path: Path, encoding: str) -> None:
    (tmp_path / "x.json").write_bytes('{"é": "\\ud83d\\ude00 🦙"}'.encode(encoding))
    assert read_json_object(tmp_path / "x.json", FormatError) == {"é": "😀 🦙"}


@pytest.mark.parametrize("data", [b'{"a": "\xff"}', b'{"a": "\xed\xa0\x80"}', b"\xff\xfe{\x00\x00\xd8"])
def test_wrong_encoding(data: bytes) -> None:
    with pytest.raises(FormatError, match=r"^cannot read x: byte \d+: expected UTF-8 text$"):
        parse_json(data, "x", FormatError)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "missing.json"):
        with pytest.raises(FormatError, match="cannot read"):
            read_json_object(path, FormatError)
    with (tmp_path / "large.json").open("wb") as file:
        file.truncate(MAX_BYTES + 1)
    with pytest.raises(FormatError, match="expected at most 134,217,728 bytes"):
        read_json_object(tmp_path / "large.json", FormatError)


def test_a_file_written_by_json_is_read(tmp_path: Path) -> None:
    content = {"a": [1, 2.5, None, True, "text"], "b": {"c": 10**30}}
    (tmp_path / "x.json").write_text(json.dumps(content))
    assert read_json_object(tmp_path / "x.json", FormatError) == content

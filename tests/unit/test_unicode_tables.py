"""The engine's Unicode tables: what the generator makes, and what Hugging Face's regular expressions call \\p{L}."""

from __future__ import annotations

import bisect
import importlib.util
import re
import unicodedata
from pathlib import Path
from types import ModuleType

import pytest

ENGINE = Path(__file__).resolve().parents[2] / "engine"
TABLES = ENGINE / "src" / "tokenizer" / "unicode_tables.c"
KINDS = {r"[\p{Lu}\p{Lt}]": 1, r"\p{Ll}": 2, r"[\p{Lm}\p{Lo}\p{M}]": 3, r"\p{P}": 4}  # unicode_kind
NAMES = {r"\p{L}": 1, r"\p{N}": 2, r"\s": 3}  # unicode_class


@pytest.fixture(scope="module")
def generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("unicode_tables", ENGINE / "scripts" / "unicode_tables.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def classes() -> list[int]:
    """The class of every code point, read from the C file."""
    found = re.search(r"unicode_runs\[\d+\] = \{([^}]*)\}", TABLES.read_text())
    assert found is not None
    runs = [int(entry, 16) for entry in found[1].replace("\n", " ").split(",") if entry.strip()]
    starts = [run >> 2 for run in runs]
    assert starts[0] == 0 and starts == sorted(set(starts))
    return [runs[bisect.bisect_right(starts, code_point) - 1] & 3 for code_point in range(0x110000)]


@pytest.fixture(scope="module")
def version() -> str:
    found = re.search(r'unicode_version\[\] = "(.*)"', TABLES.read_text())
    assert found is not None
    return found[1]


def test_the_file_is_what_the_script_generates(generator: ModuleType, version: str) -> None:
    database = generator.unicode_database()
    if database.unidata_version != version:
        pytest.skip(
            f"the table is Unicode {version}, this Python has {database.unidata_version}: "
            f"pip install unicodedata2=={version}"
        )
    assert generator.source(database) == TABLES.read_text()


def test_an_older_python_agrees_on_what_it_knows(generator: ModuleType, classes: list[int], version: str) -> None:
    """A character keeps its class once it has one: later versions only add characters."""
    if [int(n) for n in unicodedata.unidata_version.split(".")] > [int(n) for n in version.split(".")]:
        pytest.skip(f"the table is Unicode {version}, this Python has the later {unicodedata.unidata_version}")
    different = [
        hex(code_point)
        for code_point in range(0x110000)
        if unicodedata.category(chr(code_point)) != "Cn"
        and generator.classify(unicodedata, code_point) != classes[code_point]
    ]
    assert different == []


@pytest.mark.parametrize("pattern", NAMES)
def test_the_classes_are_those_of_hugging_face(pattern: str, classes: list[int]) -> None:
    tokenizers = pytest.importorskip("tokenizers")
    matches = tokenizers.pre_tokenizers.Split(tokenizers.Regex(pattern), "removed", invert=True)
    for first in range(0, 0x110000, 0x8000):
        text = "".join(chr(i) for i in range(first, first + 0x8000) if not 0xD800 <= i < 0xE000)
        found = {ord(c) for piece, _ in matches.pre_tokenize_str(text) for c in piece}
        assert found == {ord(c) for c in text if classes[ord(c)] == NAMES[pattern]}


@pytest.mark.parametrize("pattern", KINDS)
def test_the_kinds_are_those_of_hugging_face(pattern: str) -> None:
    tokenizers = pytest.importorskip("tokenizers")
    found = re.search(r"unicode_kind_runs\[\d+\] = \{([^}]*)\}", TABLES.read_text())
    assert found is not None
    runs = [int(entry, 16) for entry in found[1].replace("\n", " ").split(",") if entry.strip()]
    starts = [run >> 3 for run in runs]
    matches = tokenizers.pre_tokenizers.Split(tokenizers.Regex(pattern), "removed", invert=True)
    for first in range(0, 0x110000, 0x8000):
        text = "".join(chr(i) for i in range(first, first + 0x8000) if not 0xD800 <= i < 0xE000)
        theirs = {ord(c) for piece, _ in matches.pre_tokenize_str(text) for c in piece}
        ours = {ord(c) for c in text if runs[bisect.bisect_right(starts, ord(c)) - 1] & 7 == KINDS[pattern]}
        assert ours == theirs


def test_the_ascii_table_is_the_same(classes: list[int]) -> None:
    found = re.search(r"unicode_ascii\[128\] = \{([^}]*)\}", TABLES.read_text())
    assert found is not None
    assert [int(entry) for entry in found[1].replace("\n", " ").split(",") if entry.strip()] == classes[:128]

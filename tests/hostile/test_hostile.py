"""Runs the hostile files of this folder: each is refused in one line, on the command line and by
the library, with nothing left behind.

A case is a module: its docstring names the fault, `write(folder)` writes the file and returns its
path, COMMAND are the words of the command line (PATH and OUT stand for paths), EXPECTED is a regular
expression for the message.
"""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest

pytest.importorskip("torch")

from llamita.cli import main
from llamita.convert.import_model import import_model
from llamita.convert.inspect import inspect
from llamita.data.file_formats import read_rows
from llamita.engine import Model
from llamita.errors import LlamitaError

CASES = sorted(path.stem for path in Path(__file__).parent.glob("*.py") if path.stem != Path(__file__).stem)


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"hostile_{name}", Path(__file__).with_name(f"{name}.py"))
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def read(command: str, path: Path, out: Path) -> None:
    """What the command does, by the library."""
    if command == "import":
        import_model(path, out, verify=False)
    elif command == "prepare":
        for _ in read_rows(path, "text"):
            pass
    elif command == "inspect":
        inspect(path)
    else:
        Model(path)


@pytest.mark.parametrize("name", CASES)
def test_hostile(name: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    case = load(name)
    assert case.__doc__ and len(case.__doc__.splitlines()) <= 3
    folder, out = tmp_path / "files", tmp_path / "out"
    folder.mkdir()
    path = case.write(folder)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(LlamitaError, match=case.EXPECTED) as caught:
        read(case.COMMAND[0], path, out)
    assert "\n" not in str(caught.value)
    words = [{"PATH": str(path), "OUT": str(out)}.get(word, word) for word in case.COMMAND]
    assert main(words) == 2
    printed, errors = capfd.readouterr()
    assert printed == "" and errors.count("\n") == 1 and len(errors) < 600, errors
    assert re.fullmatch(r"llamita: [^\x00-\x1f\x7f]*\n", errors) and re.search(case.EXPECTED, errors), errors
    assert sorted(tmp_path.rglob("*")) == before, "something was left behind"

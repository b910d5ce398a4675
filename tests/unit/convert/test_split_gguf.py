"""A GGUF in pieces is read as one by every command; a piece that is missing, renamed or of another model is named."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")
from llamita.checkpoint import load_tensors
from llamita.convert.export import export
from llamita.convert.import_model import import_model
from llamita.convert.inspect import inspect
from llamita.convert.quantize import quantize_file
from llamita.engine import Model
from llamita.errors import ConfigError, FormatError
from llamita.formats.gguf import read_gguf, write_gguf

NUM_PIECES = 3


def piece_path(folder: Path, index: int) -> Path:
    return folder / f"cut-{index + 1:05d}-of-{NUM_PIECES:05d}.gguf"


def write_pieces(whole: Path, folder: Path, changes: dict[str, Any] | None = None, changed: int = -1) -> list[Path]:
    """Every third tensor in each piece, with the keys of gguf-split. changes: of the metadata of the piece
    `changed`."""
    folder.mkdir(exist_ok=True)
    file = read_gguf(whole)
    paths = [piece_path(folder, index) for index in range(NUM_PIECES)]
    for index, path in enumerate(paths):
        names = [name for i, name in enumerate(file.tensors) if i % NUM_PIECES == index]
        metadata = {key: file.encoded(key) for key in file.metadata} if index == 0 else {}
        split = {"split.no": index, "split.count": NUM_PIECES, "split.tensors.count": len(file.tensors)}
        metadata |= split | (changes or {} if index == changed else {})
        tensors = [(name, file.tensors[name].type, file.tensors[name].shape) for name in names]
        write_gguf(path, metadata, tensors, [file.data(name) for name in names])
    return paths


@pytest.fixture(scope="module")
def whole(make_checkpoint: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    export(make_checkpoint(folder / "checkpoint"), folder / "model.gguf", "f16", verify=False)
    return folder / "model.gguf"


def test_every_command_reads_all_pieces(whole: Path, tmp_path: Path, engine_build: Path) -> None:
    first, *others = write_pieces(whole, tmp_path / "pieces")
    import_model(whole, tmp_path / "one")
    assert import_model(first, tmp_path / "out").verification is not None
    one, out = load_tensors(tmp_path / "one"), load_tensors(tmp_path / "out")
    assert one.keys() == out.keys() and all((one[name] == out[name]).all() for name in one)
    quantize_file(first, tmp_path / "small.gguf", "q8_0")
    quantize_file(whole, tmp_path / "expected.gguf", "q8_0")
    small, expected = read_gguf(tmp_path / "small.gguf"), read_gguf(tmp_path / "expected.gguf")
    assert not any(key.startswith("split.") for key in small.metadata)
    assert all(np.array_equal(small.data(name), expected.data(name)) for name in expected.tensors)
    found = inspect(first)
    assert len(found.tensors) == len(inspect(whole).tensors)
    assert found.num_bytes == sum(path.stat().st_size for path in (first, *others))
    assert ("files", f"3, {first.name} to {others[-1].name}") in found.properties
    assert 0 < len(inspect(others[0]).tensors) < len(found.tensors)  # alone
    with Model(first) as model, Model(whole) as one_file:
        ids = list(range(3, 40))
        assert np.array_equal(model.logits(ids), one_file.logits(ids))


WRONG: dict[str, tuple[int, dict[str, Any], str]] = {
    "another place": (1, {"split.no": 2}, "expected piece 2 of 3 .* found piece 3 of 3"),
    "another count": (1, {"split.count": 4}, "found piece 2 of 4"),
    "another total": (2, {"split.tensors.count": 5}, "with 5; it belongs to another model"),
    "a wrong total": (0, {"split.tensors.count": 5}, "with 5 tensors in all, found piece 2 of 3"),
    "no number": (1, {"split.no": "x"}, "split.no: expected 0 to 999, found x"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_pieces(whole: Path, tmp_path: Path, name: str) -> None:
    changed, changes, said = WRONG[name]
    first = write_pieces(whole, tmp_path / "pieces", changes, changed)[0]
    with pytest.raises(FormatError, match=said):
        read_gguf(first)


def test_missing_and_misused_pieces(whole: Path, tmp_path: Path) -> None:
    first, second, third = write_pieces(whole, tmp_path / "pieces")
    for read in (lambda: import_model(second, tmp_path / "out"), lambda: quantize_file(second, tmp_path / "o", "q8_0")):
        with pytest.raises(FormatError, match=r"found piece 2 of 3 .* the first, whose name ends in -00001-of-00003"):
            read()
    with pytest.raises(ConfigError, match="expected another output file"):
        quantize_file(first, third, "q8_0")
    second.rename(tmp_path / "elsewhere.gguf")
    with pytest.raises(FormatError, match=r"cut-00002-of-00003\.gguf"):
        read_gguf(first)
    third.rename(second)
    with pytest.raises(FormatError, match=r"expected piece 2 of 3 .* found piece 3 of 3"):
        read_gguf(first)


def test_pieces_of_two_models(whole: Path, tmp_path: Path) -> None:
    """The same numbers, other tensors."""
    first, second, third = write_pieces(whole, tmp_path / "pieces")
    file = read_gguf(third)
    infos = [(name, info.type, info.shape) for name, info in file.tensors.items()]
    write_gguf(second, file.metadata | {"split.no": 1}, infos, [file.data(name) for name in file.tensors])
    with pytest.raises(FormatError, match="occurs in another piece too"):
        read_gguf(first)
    name = next(iter(file.tensors))
    write_gguf(third, file.metadata, infos[:1], [file.data(name)])
    write_pieces(whole, tmp_path / "again")
    (tmp_path / "again" / second.name).replace(second)
    with pytest.raises(FormatError, match=r"split\.tensors\.count: expected the \d+ tensors of all 3 pieces, found"):
        read_gguf(first)

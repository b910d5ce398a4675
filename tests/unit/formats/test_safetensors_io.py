""".safetensors files, single and sharded, exchanged with the reference library, and damaged."""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
import safetensors.numpy as safetensors_numpy  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402

from llamita.errors import FormatError  # noqa: E402
from llamita.formats.safetensors_io import (  # noqa: E402
    TensorEntry,
    checked,
    open_safetensors,
    read_header,
    write_sharded_safetensors,
)


def make() -> dict[str, torch.Tensor]:
    random = torch.Generator().manual_seed(1)
    return {
        "odd": torch.randn(3, 5, generator=random).to(torch.bfloat16),
        "norm": torch.randn(7, generator=random),
        "half": torch.randn(4, 2, generator=random).half(),
        "ids": torch.arange(3),
        "bytes": torch.arange(5, dtype=torch.uint8),
        "flag": torch.tensor([True, False, True]),
        "scalar": torch.tensor(2.5),
        "none": torch.empty(0, 4),
    }


def entries(tensors: dict[str, torch.Tensor]) -> list[TensorEntry]:
    return [TensorEntry(name, tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()]


@pytest.mark.parametrize("shard_bytes", [None, 40, 1])
def test_written_here_read_by_the_library_and_here(tmp_path: Path, shard_bytes: int | None) -> None:
    tensors = make()
    num_bytes = write_sharded_safetensors(tmp_path, entries(tensors), tensors.__getitem__, shard_bytes)
    assert num_bytes == sum(file.stat().st_size for file in tmp_path.iterdir())
    theirs: dict[str, torch.Tensor] = {}
    for file in tmp_path.glob("*.safetensors"):
        theirs |= load_file(file)
    stored = open_safetensors(tmp_path)
    assert theirs.keys() == tensors.keys() == stored.shapes.keys()
    for name, tensor in tensors.items():
        for other in (theirs[name], stored.read(name)):
            assert other.dtype == tensor.dtype and torch.equal(other, tensor), name
    if shard_bytes is not None:
        index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
        assert index["weight_map"].keys() == tensors.keys()
        assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in tensors.values())
        assert len(list(tmp_path.glob("*.safetensors"))) == (len(tensors) if shard_bytes == 1 else 4)


def test_rows_are_read_separately(tmp_path: Path) -> None:
    tensors = make()
    save_file(tensors, tmp_path / "model.safetensors")
    stored = open_safetensors(tmp_path)
    assert torch.equal(stored.read("odd", 1, 2), tensors["odd"][1:])
    assert torch.equal(stored.read("norm", 6, 1), tensors["norm"][6:])


def in_two(folder: Path) -> dict[str, str]:
    """Two shards and their index; returns its weight_map."""
    tensors = make()
    save_file({"odd": tensors["odd"], "norm": tensors["norm"]}, folder / "model-00001-of-00002.safetensors")
    save_file({"half": tensors["half"]}, folder / "model-00002-of-00002.safetensors")
    first, second = sorted(path.name for path in folder.glob("*.safetensors"))
    return {"odd": first, "norm": first, "half": second}


BAD_INDEX = {
    "no JSON": ("{", "cannot read .*index.json"),
    "a list": ("[]", "expected a JSON object, found list"),
    "no map": ("{}", "expected weight_map"),
    "empty": ('{"weight_map": {}}', "expected weight_map"),
    "a path": ('{"weight_map": {"odd": "../model.safetensors"}}', "odd: expected a file's name, found '../model"),
    "a number": ('{"weight_map": {"odd": 3}}', "weight_map.odd: expected a string, found 3"),
    "no such file": ('{"weight_map": {"odd": "model-9.safetensors"}}', "model-9.safetensors: No such file"),
}


@pytest.mark.parametrize("name", BAD_INDEX)
def test_bad_indexes(tmp_path: Path, name: str) -> None:
    in_two(tmp_path)
    content, said = BAD_INDEX[name]
    (tmp_path / "model.safetensors.index.json").write_text(content)
    with pytest.raises(FormatError, match=said) as caught:
        open_safetensors(tmp_path)
    assert "\n" not in str(caught.value)


def test_index_and_shards_must_agree(tmp_path: Path) -> None:
    weight_map = in_two(tmp_path)

    def opened(changed: dict[str, str]) -> None:
        (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": changed}))
        open_safetensors(tmp_path)

    opened(weight_map)
    with pytest.raises(FormatError, match="tensor norm: the index says it is in nowhere"):
        opened({name: file for name, file in weight_map.items() if name != "norm"})
    with pytest.raises(FormatError, match="tensor other is missing, but the index lists it"):
        opened(weight_map | {"other": weight_map["odd"]})
    with pytest.raises(FormatError, match="tensor odd: the index says it is in model-00002"):
        opened(weight_map | {"odd": weight_map["half"]})


def test_a_truncated_file_is_refused(tmp_path: Path) -> None:
    save_file(make(), tmp_path / "model.safetensors")
    stored = open_safetensors(tmp_path)
    content = (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(content[:-8])
    with pytest.raises(FormatError, match=r"expected \d+ bytes, found \d+; the file changed"):
        for name in stored.shapes:
            stored.read(name)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_non_finite_numbers_are_found_anywhere(dtype: torch.dtype) -> None:
    for bad in (float("nan"), float("inf"), -float("inf")):
        for place in ((0, 0), (6, 17), (12, 32)):
            tensor = torch.randn(13, 33).to(dtype)
            assert checked(tensor, "t", "cannot", None) is tensor
            tensor[place] = bad
            with pytest.raises(FormatError, match="cannot: tensor t: expected finite numbers"):
                checked(tensor, "t", "cannot", None)
    assert checked(torch.empty(0, 3), "t", "cannot", torch.bfloat16).dtype == torch.bfloat16


# ---------------------------------------------------------------- headers


def file(header: Any, data: bytes = b"", length: int | None = None) -> bytes:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(raw) if length is None else length) + raw + data


def tensor(start: int, end: int, dtype: str = "F32", shape: tuple[Any, ...] = (2,)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [start, end]}


def test_header_of_a_file_of_the_library(tmp_path: Path, refuses_every_prefix: Callable[..., None]) -> None:
    arrays = {"b": np.zeros((3, 4), np.float16), "a": np.ones(5, np.float32)}
    safetensors_numpy.save_file(arrays, tmp_path / "x.safetensors", {"format": "np"})
    tensors, metadata = read_header(tmp_path / "x.safetensors")
    found = {t.name: (t.dtype, t.shape, t.num_bytes) for t in tensors}
    assert found == {"a": ("F32", (5,), 20), "b": ("F16", (3, 4), 24)}
    assert metadata == {"format": "np"}
    refuses_every_prefix(tmp_path / "x.safetensors", read_header)


BAD: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "the file is empty"),
    "Git LFS": (
        b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n",
        "found a Git LFS pointer; fetch",
    ),
    "seven bytes": (b"\0" * 7, "expected a .safetensors header"),
    "length 2^64-1": (file({}, length=2**64 - 1), "header: expected 18446744073709551615 bytes"),
    "no JSON": (file(b"{"), "header: not valid JSON"),
    "no UTF-8": (file(b"\xff\xff"), "header: byte 0: expected UTF-8 text"),
    "deep JSON": (file(b"[" * 100_000), "header: expected at most 100 levels of JSON"),
    "a list": (file([]), "expected a JSON object, found list"),
    "a name twice": (file(b'{"a": {}, "a": {}}'), "'a' occurs twice"),
    "metadata of numbers": (file({"__metadata__": {"a": 1}}), "__metadata__.a: expected a string, found 1"),
    "unknown dtype": (file({"a": tensor(0, 8, "Q4")}, bytes(8)), "tensor a: expected a known dtype"),
    "negative shape": (
        file({"a": tensor(0, 8, shape=(-2,))}, bytes(8)),
        "tensor a: shape[0]: expected an integer",
    ),
    "shape of text": (file({"a": tensor(0, 8, shape=("2",))}, bytes(8)), "tensor a: shape[0]: expected an integer"),
    "no shape": (file({"a": {"dtype": "F32", "data_offsets": [0, 8]}}, bytes(8)), "tensor a: shape is missing"),
    "too short": (file({"a": tensor(0, 4)}, bytes(4)), "tensor a: expected 8 bytes, found 4"),
    "huge shape": (file({"a": tensor(0, 8, shape=(2**62, 2**62))}, bytes(8)), "tensor a: expected "),
    "shape of 4,300 digits": (
        file({"a": tensor(0, 8, shape=(10**90,) * 9)}, bytes(8)),
        "tensor a: shape[0]: expected",
    ),
    "many dimensions": (file({"a": tensor(0, 4, shape=(1,) * 9)}, bytes(4)), "expected a known dtype, a shape and two"),
    "gap": (file({"a": tensor(8, 16)}, bytes(16)), "tensor a: expected offset 0, found 8"),
    "overlap": (file({"a": tensor(0, 8), "b": tensor(4, 12)}, bytes(12)), "tensor b: expected offset 8, found 4"),
    "bytes to spare": (file({"a": tensor(0, 8)}, bytes(9)), "data: expected 8 bytes, found 9"),
    "beyond the end": (file({"a": tensor(0, 8)}, bytes(7)), "data: expected 8 bytes, found 7"),
}


@pytest.mark.parametrize("name", BAD)
def test_damaged_headers_are_refused_in_one_line(tmp_path: Path, name: str) -> None:
    content, said = BAD[name]
    path = tmp_path / "bad.safetensors"
    path.write_bytes(content)
    with pytest.raises(FormatError, match=re.escape(said)) as caught:
        read_header(path)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400


def test_a_name_twice_among_many_is_found_in_linear_time(tmp_path: Path) -> None:
    """Counting each name in turn takes minutes here."""
    path = tmp_path / "x.safetensors"
    path.write_bytes(file(b"{" + b",".join(b'"%d":0' % i for i in [*range(300_000), 299_999]) + b"}"))
    with pytest.raises(FormatError, match="'299999' occurs twice"):
        read_header(path)

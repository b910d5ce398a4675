"""The header of .safetensors: what the reference library writes is read, what does not add up is refused."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llamita.errors import FormatError
from llamita.formats.safetensors_header import read_safetensors_header

safetensors_numpy = pytest.importorskip("safetensors.numpy")


def file(header: Any, data: bytes = b"", length: int | None = None) -> bytes:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(raw) if length is None else length) + raw + data


def tensor(start: int, end: int, dtype: str = "F32", shape: tuple[Any, ...] = (2,)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [start, end]}


def test_reads_what_the_library_writes(tmp_path: Path, refuses_every_prefix: Callable[..., None]) -> None:
    arrays = {"b": np.zeros((3, 4), np.float16), "a": np.ones(5, np.float32)}
    safetensors_numpy.save_file(arrays, tmp_path / "x.safetensors", {"format": "np"})
    tensors, metadata = read_safetensors_header(tmp_path / "x.safetensors")
    found = {t.name: (t.dtype, t.shape, t.num_bytes) for t in tensors}
    assert found == {"a": ("F32", (5,), 20), "b": ("F16", (3, 4), 24)}
    assert metadata == {"format": "np"}
    refuses_every_prefix(tmp_path / "x.safetensors", read_safetensors_header)


BAD: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "the file is empty"),
    "seven bytes": (b"\0" * 7, "expected a .safetensors header"),
    "length 2^64-1": (file({}, length=2**64 - 1), "header: expected 18446744073709551615 bytes"),
    "no JSON": (file(b"{"), "header: expected JSON"),
    "no UTF-8": (file(b"\xff\xff"), "header: expected JSON"),
    "deep JSON": (file(b"[" * 100_000), "header: expected JSON"),
    "a list": (file([]), "expected a JSON object, found list"),
    "a name twice": (file(b'{"a": {}, "a": {}}'), "'a' is there twice"),
    "metadata of numbers": (file({"__metadata__": {"a": 1}}), "expected an object of strings"),
    "unknown dtype": (file({"a": tensor(0, 8, "Q4")}, bytes(8)), "tensor a: expected a known dtype"),
    "negative shape": (file({"a": tensor(0, 8, shape=(-2,))}, bytes(8)), "tensor a: expected a known dtype"),
    "shape of text": (file({"a": tensor(0, 8, shape=("2",))}, bytes(8)), "tensor a: expected a known dtype"),
    "no shape": (file({"a": {"dtype": "F32", "data_offsets": [0, 8]}}, bytes(8)), "tensor a: expected a known dtype"),
    "too short": (file({"a": tensor(0, 4)}, bytes(4)), "tensor a: expected 8 bytes, found 4"),
    "huge shape": (file({"a": tensor(0, 8, shape=(2**62, 2**62))}, bytes(8)), "tensor a: expected "),
    "gap": (file({"a": tensor(8, 16)}, bytes(16)), "tensor a: expected offset 0, found 8"),
    "overlap": (file({"a": tensor(0, 8), "b": tensor(4, 12)}, bytes(12)), "tensor b: expected offset 8, found 4"),
    "bytes to spare": (file({"a": tensor(0, 8)}, bytes(9)), "data: expected 8 bytes, found 9"),
    "beyond the end": (file({"a": tensor(0, 8)}, bytes(7)), "data: expected 8 bytes, found 7"),
}


@pytest.mark.parametrize("name", BAD)
def test_lies_are_told_in_one_line(tmp_path: Path, name: str) -> None:
    content, said = BAD[name]
    path = tmp_path / "bad.safetensors"
    path.write_bytes(content)
    with pytest.raises(FormatError, match=said.replace(".", r"\.")) as caught:
        read_safetensors_header(path)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400

"""GGUF files written, read again, and damaged in every way."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llamita.errors import FormatError
from llamita.formats.gguf import read_gguf, read_keys, write_gguf
from llamita.formats.tensor_types import quantize

METADATA: dict[str, Any] = {
    "general.architecture": "llama",
    "count": 7,
    "rate": 0.5,
    "flag": True,
    "words": ["a", "", "月🦙"],
    "numbers": np.array([1.5, -2.0], dtype=np.float32),
    "kinds": np.array([1, -3], dtype=np.int32),
    "bytes": np.array([], dtype=np.uint8),
    "text": "line\nline",
}


def write_sample(path: Path) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    arrays = {
        "a.weight": rng.standard_normal((3, 32)).astype(np.float32),
        "norm": rng.standard_normal(5).astype(np.float32),
        "b.weight": rng.standard_normal((2, 64)).astype(np.float32),
    }
    types = {"a.weight": "Q8_0", "norm": "F32", "b.weight": "Q4_0"}
    infos = [(name, types[name], array.shape) for name, array in arrays.items()]
    size = write_gguf(path, METADATA, infos, (quantize(array, types[name]) for name, array in arrays.items()))
    assert size == path.stat().st_size
    return arrays


def test_round_trip(tmp_path: Path) -> None:
    arrays = write_sample(tmp_path / "x.gguf")
    file = read_gguf(tmp_path / "x.gguf")
    assert file.version == 3
    assert list(file.metadata) == list(METADATA)
    for key, value in METADATA.items():
        if isinstance(value, np.ndarray):
            assert file.metadata[key].dtype == value.dtype and np.array_equal(file.metadata[key], value)
        else:
            assert file.metadata[key] == value and type(file.metadata[key]) is type(value)
    assert {name: info.shape for name, info in file.tensors.items()} == {n: a.shape for n, a in arrays.items()}
    assert all(info.offset % 32 == 0 for info in file.tensors.values())
    assert np.array_equal(file.dequantize("norm"), arrays["norm"])
    assert np.abs(file.dequantize("a.weight") - arrays["a.weight"]).max() < 0.02
    assert file.data("a.weight").size == 3 * 34


def test_the_same_content_gives_the_same_bytes(tmp_path: Path) -> None:
    write_sample(tmp_path / "x.gguf")
    write_sample(tmp_path / "y.gguf")
    assert (tmp_path / "x.gguf").read_bytes() == (tmp_path / "y.gguf").read_bytes()


def test_bytes_are_those_of_gguf_py(tmp_path: Path) -> None:
    gguf = pytest.importorskip("gguf")
    arrays = write_sample(tmp_path / "ours.gguf")
    writer = gguf.GGUFWriter(tmp_path / "theirs.gguf", "llama")
    writer.add_uint32("count", 7)
    writer.add_float32("rate", 0.5)
    writer.add_bool("flag", True)
    writer.add_array("words", METADATA["words"])
    for key, kind in (("numbers", gguf.GGUFValueType.FLOAT32), ("kinds", gguf.GGUFValueType.INT32)):
        writer.add_key_value(key, METADATA[key].tolist(), gguf.GGUFValueType.ARRAY, kind)
    writer.add_string("text", METADATA["text"])
    q8_0, q4_0 = gguf.GGMLQuantizationType.Q8_0, gguf.GGMLQuantizationType.Q4_0
    writer.add_tensor("a.weight", gguf.quants.quantize(arrays["a.weight"], q8_0), raw_dtype=q8_0)
    writer.add_tensor("norm", arrays["norm"])
    data = quantize(arrays["b.weight"], "Q4_0").reshape(2, -1)
    writer.add_tensor("b.weight", data, raw_dtype=q4_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    infos = [("a.weight", "Q8_0", (3, 32)), ("norm", "F32", (5,)), ("b.weight", "Q4_0", (2, 64))]
    # gguf-py leaves empty arrays out.
    metadata = {key: value for key, value in METADATA.items() if key != "bytes"}
    types = {name: kind for name, kind, _ in infos}
    write_gguf(tmp_path / "ours.gguf", metadata, infos, (quantize(a, types[n]) for n, a in arrays.items()))
    assert (tmp_path / "ours.gguf").read_bytes() == (tmp_path / "theirs.gguf").read_bytes()


def test_nothing_is_left_when_writing_fails(tmp_path: Path) -> None:
    def broken():
        yield quantize(np.ones((1, 32), np.float32), "Q8_0")
        raise FormatError("the second tensor is broken")

    (tmp_path / "x.gguf").write_bytes(b"the old one")
    with pytest.raises(FormatError, match="second"):
        write_gguf(tmp_path / "x.gguf", {}, [("a", "Q8_0", (1, 32)), ("b", "F32", (1,))], broken())
    assert [p.name for p in tmp_path.iterdir()] == ["x.gguf"]
    assert (tmp_path / "x.gguf").read_bytes() == b"the old one"


# ---------------------------------------------------------------- files that lie


def text(value: str | bytes) -> bytes:
    raw = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(raw)) + raw


def key(name: str | bytes, kind: int, payload: bytes) -> bytes:
    return text(name) + struct.pack("<I", kind) + payload


def info(name: str = "t", dims: tuple[int, ...] = (4,), kind: int = 0, offset: int = 0) -> bytes:
    return text(name) + struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, kind, offset)


def file(
    keys: list[bytes] | None = None, infos: list[bytes] | None = None, data: bytes = b"", *, version: int = 3,
    num_keys: int | None = None, num_tensors: int | None = None, magic: bytes = b"GGUF",
) -> bytes:  # fmt: skip
    keys, infos = keys or [], infos or []
    counts = (len(infos) if num_tensors is None else num_tensors, len(keys) if num_keys is None else num_keys)
    head = magic + struct.pack("<IQQ", version, *counts) + b"".join(keys) + b"".join(infos)
    return head + bytes(-len(head) % 32) + data


U32_ONE = struct.pack("<I", 1)
BAD: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "the file is empty"),
    "Git LFS": (
        b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n",
        "found a Git LFS pointer; fetch",
    ),
    "no magic": (file(magic=b"GGML"), "expected a GGUF file, found another format"),
    "version 0": (file(version=0), "version: expected 2 or 3, found 0"),
    "version 1": (file(version=1), "version: expected 2 or 3, found 1"),
    "version 4": (file(version=4), "version: expected 2 or 3, found 4"),
    "other endianness": (file(version=3 << 24), "version: expected little-endian"),
    "2^64-1 keys": (file(num_keys=2**64 - 1), "key count: expected at most"),
    "2^63 tensors": (file(num_tensors=2**63), "tensor count: expected at most"),
    "a key more than there is": (file(num_keys=1), "key 0"),
    "a tensor more than there is": (file(num_tensors=1), "name of tensor 0"),
    "empty key": (file([key("", 4, U32_ONE)]), "key 0: expected a name"),
    "key with NUL": (file([key("a\0b", 4, U32_ONE)]), "key 0: expected a name"),
    "key that is not UTF-8": (file([key(b"\xff\xfe", 4, U32_ONE)]), "key 0: expected UTF-8"),
    "key of 2^63 bytes": (file([struct.pack("<Q", 2**63)]), "length of key 0: expected at most 65535"),
    "key twice": (file([key("a", 4, U32_ONE)] * 2), "key a occurs twice"),
    "type 13": (file([key("a", 13, b"")]), "type of a: expected a value type"),
    "bool 2": (file([key("a", 7, b"\2")]), "a: expected a bool"),
    "string of 2^64-1 bytes": (file([key("a", 8, struct.pack("<Q", 2**64 - 1))]), "truncated or damaged"),
    "string beyond the end": (file([key("a", 8, struct.pack("<Q", 1000))]), "truncated or damaged"),
    "array of arrays": (file([key("a", 9, struct.pack("<IQ", 9, 1))]), "item type of a: expected a number"),
    "array of 2^62 numbers": (file([key("a", 9, struct.pack("<IQ", 10, 2**62))]), "truncated or damaged"),
    "array of 2^61 strings": (file([key("a", 9, struct.pack("<IQ", 8, 2**61))]), "no more strings than"),
    "alignment 0": (file([key("general.alignment", 4, struct.pack("<I", 0))]), "expected a power of two"),
    "alignment 3": (file([key("general.alignment", 4, struct.pack("<I", 48))]), "expected a power of two"),
    "alignment 2^31": (file([key("general.alignment", 4, struct.pack("<I", 2**31))]), "expected a power of two"),
    "alignment as text": (file([key("general.alignment", 8, text("32"))]), "expected a power of two"),
    "nameless tensor": (file(infos=[info("")], data=bytes(32)), "name of tensor 0: expected a name"),
    "long tensor name": (file(infos=[info("x" * 64)], data=bytes(32)), "at most 63 bytes, found 64"),
    "tensor twice": (file(infos=[info(), info(offset=32)], data=bytes(64)), "tensor t occurs twice"),
    "no dims": (file(infos=[info(dims=())], data=bytes(32)), "dimensions of t: expected 1 to 4, found 0"),
    "five dims": (file(infos=[info(dims=(1,) * 5)], data=bytes(32)), "expected 1 to 4, found 5"),
    "dim 0": (file(infos=[info(dims=(4, 0))], data=bytes(32)), "expected positive"),
    "dims that overflow": (file(infos=[info(dims=(2**32, 2**32))], data=bytes(32)), "at most the file's"),
    "dims that wrap to 4": (file(infos=[info(dims=(4, 2**62 + 1))], data=bytes(32)), "at most the file's"),
    "unknown type": (file(infos=[info(kind=31)], data=bytes(32)), "type of t: expected a tensor type"),
    "type 2^32-1": (file(infos=[info(kind=2**32 - 1)], data=bytes(32)), "type of t: expected a tensor type"),
    "no whole block": (
        file(infos=[info(dims=(33,), kind=8)], data=bytes(64)),
        "multiple of 32, the block size of Q8_0",
    ),
    "offset beyond the end": (file(infos=[info(offset=2**40)], data=bytes(32)), "offset of t: expected 0"),
    "offset unaligned": (file(infos=[info(offset=4)], data=bytes(64)), "offset of t: expected 0, the end"),
    "overlap": (file(infos=[info("a"), info("b")], data=bytes(64)), "offset of b: expected 32"),
    "gap": (file(infos=[info("a"), info("b", offset=64)], data=bytes(128)), "offset of b: expected 32"),
    "data missing": (file(infos=[info()], data=bytes(15)), "tensor t: expected 16 bytes"),
}


@pytest.mark.parametrize("name", BAD)
def test_damaged_files_are_refused_in_one_line(tmp_path: Path, name: str) -> None:
    content, said = BAD[name]
    path = tmp_path / "bad.gguf"
    path.write_bytes(content)
    with pytest.raises(FormatError) as caught:
        read_gguf(path)
    message = str(caught.value)
    assert said in message and str(path) in message
    assert "\n" not in message and len(message) < 400


def test_truncated_at_any_byte(tmp_path: Path, refuses_every_prefix: Callable[..., None]) -> None:
    write_sample(tmp_path / "x.gguf")
    refuses_every_prefix(tmp_path / "x.gguf", read_gguf, keep=24)  # the last padding may be missing


def test_single_keys_are_those_of_the_whole_file(tmp_path: Path, refuses_every_prefix: Callable[..., None]) -> None:
    path = tmp_path / "x.gguf"
    write_sample(path)
    metadata = read_gguf(path).metadata
    for name, value in metadata.items():
        found = read_keys(path, (name, "no.such.key"))
        assert list(found) == [name]
        np.testing.assert_array_equal(found[name], value)
    assert read_keys(path, ()) == {}
    assert any(isinstance(value, list) for value in metadata.values())  # strings, which are skipped
    strings = tmp_path / "strings.gguf"
    write_gguf(strings, {"tokens": ["a", "", "three"]}, [], [])
    refuses_every_prefix(strings, lambda file: read_keys(file, ()), keep=31)  # the padding of the header


def test_missing_file_and_folder(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="No such file"):
        read_gguf(tmp_path / "none.gguf")
    with pytest.raises(FormatError, match="expected a file, found a folder"):
        read_gguf(tmp_path)


def test_version_2_reads_too(tmp_path: Path) -> None:
    path = tmp_path / "two.gguf"
    path.write_bytes(file([key("a", 12, struct.pack("<d", 0.25))], [info()], bytes(32), version=2))
    read = read_gguf(path)
    assert read.version == 2 and read.metadata == {"a": 0.25}


def test_unread_types_are_described_but_not_computed(tmp_path: Path) -> None:
    path = tmp_path / "k.gguf"
    path.write_bytes(file(infos=[info(dims=(256, 2), kind=16)], data=bytes(132)))
    read = read_gguf(path)
    assert read.tensors["t"].type == "IQ2_XXS" and read.tensors["t"].num_bytes == 132
    with pytest.raises(FormatError, match=r"tensor t: expected type .* found IQ2_XXS"):
        read.dequantize("t")


def test_random_damage_never_escapes(tmp_path: Path) -> None:
    """Flipped bytes give a file that is read or a FormatError, never another exception."""
    write_sample(tmp_path / "x.gguf")
    good = (tmp_path / "x.gguf").read_bytes()
    header = read_gguf(tmp_path / "x.gguf").tensors["a.weight"].offset
    rng = np.random.default_rng(5)
    path = tmp_path / "damaged.gguf"
    refused = 0
    for _ in range(400):
        content = bytearray(good)
        for _ in range(rng.integers(1, 4)):
            content[rng.integers(header)] = rng.integers(256)
        path.write_bytes(content)
        try:
            read_gguf(path)
        except FormatError:
            refused += 1
    assert refused > 100

"""Reads and writes GGUF files: metadata and tensors.

    "GGUF" | u32 version | u64 tensors | u64 keys | keys: name, type, value
    | tensors: name, dims, type, offset | padding
    | data: each tensor at a multiple of the alignment, in order, zeros between

Version 3, little-endian, is written; 2 and 3 are read. The reader trusts nothing: every count,
length and offset is checked against the file's length before it is used. Tensors are mapped, not
loaded. Dims are in GGUF's order only inside the file: shapes here are PyTorch's [rows, row length].
"""

from __future__ import annotations

import dataclasses
import functools
import math
import mmap
import struct
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, Final

import numpy as np
from numpy.typing import NDArray

from llamita.atomic import atomic_file
from llamita.errors import FormatError
from llamita.formats.mmap_file import map_file
from llamita.formats.tensor_types import OTHER_TYPES, TYPES, Bytes, Floats, TensorType, dequantize

MAGIC: Final = b"GGUF"
VERSION: Final = 3
ALIGNMENT: Final = 32

# Bounds far above any real file: a hostile one is rejected before it costs time or memory.
MAX_KEYS: Final = 65_536
MAX_TENSORS: Final = 65_536
MAX_STRINGS: Final = 4_194_304  # in one array; Llama 3 has 280,147 merges
MAX_NAME_BYTES: Final = 65_535
MAX_TENSOR_NAME_BYTES: Final = 63  # llama.cpp's
MAX_DIMS: Final = 4
MAX_PIECES: Final = 1000

# The keys of a model that llama.cpp's gguf-split cut into NAME-00001-of-00003.gguf and so on.
_SPLIT_NO, _SPLIT_COUNT, _SPLIT_TENSORS = "split.no", "split.count", "split.tensors.count"
SPLIT_KEYS: Final = (_SPLIT_NO, _SPLIT_COUNT, _SPLIT_TENSORS)

_BOOL, _STRING, _ARRAY = 7, 8, 9
# Scalar value types: number -> numpy's dtype.
_SCALARS: dict[int, np.dtype[Any]] = {
    0: np.dtype("u1"), 1: np.dtype("i1"), 2: np.dtype("<u2"), 3: np.dtype("<i2"), 4: np.dtype("<u4"),
    5: np.dtype("<i4"), 6: np.dtype("<f4"), 10: np.dtype("<u8"), 11: np.dtype("<i8"), 12: np.dtype("<f8"),
}  # fmt: skip
_SCALAR_NUMBERS = {dtype: number for number, dtype in _SCALARS.items()}

QUANTIZATION_VERSION: Final = 2  # of ggml's blocks

# general.file_type: the type of most matrices, or llama.cpp's name of a mixture.
FILE_TYPES: dict[str, int] = {
    "F32": 0, "F16": 1, "Q4_0": 2, "Q4_1": 3, "Q8_0": 7, "Q5_0": 8, "Q5_1": 9, "Q2_K": 10, "Q3_K_S": 11, "Q3_K_M": 12,
    "Q3_K_L": 13, "Q4_K": 14, "Q4_K_M": 15, "Q5_K": 16, "Q5_K_M": 17, "Q6_K": 18, "IQ4_NL": 25, "IQ4_XS": 30,
    "BF16": 32, "TQ1_0": 36, "TQ2_0": 37, "MXFP4": 38,
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class EncodedValue:
    """A metadata value as stored in a file: type number and bytes."""

    raw: bytes


# A metadata value; write_gguf lists which Python type becomes which GGUF type.
Value = bool | int | float | str | Sequence[str] | NDArray[Any] | EncodedValue


@dataclasses.dataclass(frozen=True)
class TensorInfo:
    """A tensor of a GGUF file. offset: of its first byte, from the start of the file. path: of that
    file, the piece of a split model."""

    name: str
    type: str
    shape: tuple[int, ...]
    offset: int
    num_bytes: int
    path: Path


class GgufFile:
    """A GGUF file, or all pieces of one that gguf-split cut, checked and mapped. metadata: scalars
    as Python values, arrays as numpy arrays or list[str]; of pieces, the first one's. spans: the
    bytes of each value in the file, type number included. mappings: of each piece, by path."""

    def __init__(
        self,
        path: Path,
        version: int,
        metadata: dict[str, Any],
        spans: dict[str, slice],
        tensors: dict[str, TensorInfo],
        mappings: dict[Path, mmap.mmap],
    ) -> None:
        self.path, self.version, self.metadata, self.tensors = path, version, metadata, tensors
        self.pieces = tuple(mappings)
        self._spans, self._mappings = spans, mappings

    @property
    def num_bytes(self) -> int:
        """Of all pieces."""
        return sum(len(mapping) for mapping in self._mappings.values())

    def encoded(self, key: str) -> EncodedValue:
        """A metadata value that can be written unchanged."""
        return EncodedValue(self._mappings[self.path][self._spans[key]])

    def data(self, name: str) -> Bytes:
        """The mapped bytes of a tensor: read-only, and loaded from disk when accessed."""
        info = self.tensors[name]
        return np.frombuffer(self._mappings[info.path], np.uint8, info.num_bytes, info.offset)

    def release(self, name: str) -> None:
        """Drop the tensor's pages from memory. It can be read again."""
        if hasattr(mmap, "MADV_DONTNEED"):
            info = self.tensors[name]
            start = info.offset // mmap.PAGESIZE * mmap.PAGESIZE
            if info.num_bytes:
                self._mappings[info.path].madvise(mmap.MADV_DONTNEED, start, info.offset + info.num_bytes - start)

    def dequantize(self, name: str) -> Floats:
        """The tensor as a new float32 array. Raises FormatError for unsupported types."""
        info = self.tensors[name]
        if info.type not in TYPES:
            raise FormatError(
                f"cannot read {self.path}: tensor {name}: expected type {', '.join(TYPES)}, found {info.type}"
            )
        return dequantize(self.data(name), info.type, info.shape)


# ---------------------------------------------------------------- writing


def write_gguf(
    path: Path,
    metadata: Mapping[str, Value],
    tensors: Sequence[tuple[str, str, tuple[int, ...]]],
    data: Iterable[Bytes],
) -> int:
    """Write a GGUF file atomically; returns its size. The same arguments give the same bytes.

    metadata: written in this order; bool → BOOL, int → UINT32, float → FLOAT32, str → STRING, a
    list of str → ARRAY of STRING, a numpy array → ARRAY of its type; an EncodedValue is written
    unchanged. tensors: (name, type, shape). data: each tensor's bytes, in the same order, consumed
    one at a time. Raises OutputError.
    """
    with atomic_file(path) as temporary, temporary.open("wb") as file:
        return stream_gguf(file, metadata, tensors, data)


def stream_gguf(
    file: BinaryIO,
    metadata: Mapping[str, Value],
    tensors: Sequence[tuple[str, str, tuple[int, ...]]],
    data: Iterable[Bytes],
) -> int:
    """write_gguf to an open file. Raises OSError: the caller writes atomically."""
    header, sizes = encode_header(metadata, tensors), [_data_bytes(tensor) for tensor in tensors]
    file.write(header)
    for size, tensor in zip(sizes, data, strict=True):
        assert tensor.dtype == np.uint8 and tensor.size == size
        file.write(tensor.data)
        file.write(bytes(_padded(size) - size))
    return len(header) + sum(map(_padded, sizes))


def encode_header(metadata: Mapping[str, Value], tensors: Sequence[tuple[str, str, tuple[int, ...]]] = ()) -> bytes:
    """A GGUF file up to the data of its tensors. Arguments as of write_gguf."""
    head = [MAGIC, struct.pack("<IQQ", VERSION, len(tensors), len(metadata))]
    for key, value in metadata.items():
        head += [_string(key), _encode_value(value)]
    offset = 0
    for tensor in tensors:
        name, type_name, shape = tensor
        assert len(name.encode()) <= MAX_TENSOR_NAME_BYTES and len(shape) <= MAX_DIMS
        number = TYPES[type_name].number
        head.append(_string(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *reversed(shape), number, offset))
        offset += _padded(_data_bytes(tensor))
    header = b"".join(head)
    return header + bytes(_padded(len(header)) - len(header))


def _data_bytes(tensor: tuple[str, str, tuple[int, ...]]) -> int:
    _, type_name, shape = tensor
    return TYPES[type_name].num_bytes(math.prod(shape))


def _padded(size: int, alignment: int = ALIGNMENT) -> int:
    return (size + alignment - 1) // alignment * alignment


def _string(text: str) -> bytes:
    raw = text.encode("utf-8")
    return struct.pack("<Q", len(raw)) + raw


def _encode_value(value: Value) -> bytes:
    """Type number and bytes of a metadata value."""
    if isinstance(value, EncodedValue):
        return value.raw
    if isinstance(value, bool):
        return struct.pack("<IB", _BOOL, value)
    if isinstance(value, int):
        return struct.pack("<II", 4, value)
    if isinstance(value, float):
        return struct.pack("<If", 6, value)
    if isinstance(value, str):
        return struct.pack("<I", _STRING) + _string(value)
    if isinstance(value, np.ndarray):
        dtype = value.dtype.newbyteorder("<")
        return struct.pack("<IIQ", _ARRAY, _SCALAR_NUMBERS[dtype], value.size) + value.astype(dtype).tobytes()
    return struct.pack("<IIQ", _ARRAY, _STRING, len(value)) + b"".join(_string(text) for text in value)


# ---------------------------------------------------------------- reading


def read_gguf(path: Path) -> GgufFile:
    """Map a GGUF file and check everything except the weights. The first piece of a split model
    brings the others, which lie beside it; another piece is read alone. Raises FormatError."""
    first = _read_piece(Path(path))
    keys = _SplitKeys.of(first)
    if keys.count < 2 or keys.index > 0:
        return first
    if not first.path.name.endswith(keys.suffix()):
        raise FormatError(
            f"cannot read {first.path}: found the first of {keys.count} pieces of a split model; expected a name that "
            f"ends in {keys.suffix()}, to find the others; rename them, or merge them with llama-gguf-split --merge"
        )
    for index in range(1, keys.count):
        wanted = dataclasses.replace(keys, index=index)
        name = first.path.name.removesuffix(keys.suffix()) + wanted.suffix()
        piece = _read_piece(first.path.with_name(name))
        found = _SplitKeys.of(piece)
        if found != wanted:
            raise FormatError(
                f"cannot read {piece.path}: expected piece {index + 1} of {keys.count} with {keys.num_tensors} tensors "
                f"in all, found piece {found.index + 1} of {found.count} with {found.num_tensors}; it belongs to "
                "another model"
            )
        double = next((name for name in piece.tensors if name in first.tensors), None)
        if double is not None:
            raise FormatError(f"cannot read {piece.path}: tensor {double} occurs in another piece too")
        first = GgufFile(
            first.path, first.version, first.metadata, first._spans, first.tensors | piece.tensors,
            first._mappings | piece._mappings,
        )  # fmt: skip
    if len(first.tensors) != keys.num_tensors:
        raise FormatError(
            f"cannot read {first.path}: {_SPLIT_TENSORS}: expected the {len(first.tensors)} tensors of all "
            f"{keys.count} pieces, found {keys.num_tensors}; a piece belongs to another model"
        )
    return first


def read_keys(path: Path, keys: Collection[str]) -> dict[str, Any]:
    """The values of those of `keys` that a GGUF file has; of pieces, the first one's. Much faster
    than read_gguf: the tokens of a vocabulary are skipped. Raises FormatError."""
    mapping = map_file(path)
    cursor = _Cursor(mapping, Path(path))
    _read_version(cursor)
    cursor.count("tensor count", MAX_TENSORS)
    return _read_metadata(cursor, cursor.count("key count", MAX_KEYS), keys)[0]


@dataclasses.dataclass(frozen=True)
class _SplitKeys:
    """Where a piece belongs: its index from 0, and how many pieces and tensors the model has."""

    index: int
    count: int
    num_tensors: int

    @staticmethod
    def of(file: GgufFile) -> _SplitKeys:
        values = []
        for key, most in ((_SPLIT_NO, MAX_PIECES - 1), (_SPLIT_COUNT, MAX_PIECES), (_SPLIT_TENSORS, 2**31 - 1)):
            value = file.metadata.get(key, 0)
            if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= most:
                raise FormatError(
                    f"cannot read {file.path}: {key}: expected 0 to {most}, found {str(value)[:60]}; it is damaged"
                )
            values.append(value)
        return _SplitKeys(*values)

    def suffix(self) -> str:
        """The end of the piece's name."""
        return f"-{self.index + 1:05d}-of-{self.count:05d}.gguf"


def check_whole(file: GgufFile, what: str) -> None:
    """Raise FormatError(what: …) for a piece of a split model that was read alone."""
    keys = _SplitKeys.of(file)
    if keys.index > 0:
        first = dataclasses.replace(keys, index=0)
        raise FormatError(
            f"{what} {file.path}: found piece {keys.index + 1} of {keys.count} of a split model; give the first, whose "
            f"name ends in {first.suffix()}"
        )


def _read_piece(path: Path) -> GgufFile:
    mapping = map_file(path)
    cursor = _Cursor(mapping, Path(path))
    version = _read_version(cursor)
    num_tensors = cursor.count("tensor count", MAX_TENSORS)
    num_keys = cursor.count("key count", MAX_KEYS)
    metadata, spans = _read_metadata(cursor, num_keys)
    tensors = _read_tensor_infos(cursor, num_tensors, _read_alignment(metadata, cursor))
    return GgufFile(cursor.path, version, metadata, spans, tensors, {cursor.path: mapping})


class _Cursor:
    """Reads a mapping from front to back, never beyond its end."""

    def __init__(self, mapping: mmap.mmap, path: Path) -> None:
        self.mapping, self.path, self.offset, self.size = mapping, path, 0, len(mapping)

    def wrong(self, what: str, expected: str, found: object) -> FormatError:
        shown = repr(found)
        shown = shown if len(shown) <= 80 else shown[:77] + "..."
        return FormatError(f"cannot read {self.path}: {what}: expected {expected}, found {shown}")

    def take(self, num_bytes: int, what: str) -> int:
        """Skip num_bytes; returns the offset of the first."""
        if num_bytes > self.size - self.offset:
            raise FormatError(
                f"cannot read {self.path}: {what}: expected {num_bytes} bytes at offset {self.offset}, found "
                f"{self.size - self.offset} to the end of the file; it is truncated or damaged"
            )
        start = self.offset
        self.offset += num_bytes
        return start

    def skip_strings(self, count: int, what: str) -> None:
        """The same for strings, each after its length."""
        mapping, offset, size, length_at = self.mapping, self.offset, self.size, struct.Struct("<Q").unpack_from
        for _ in range(count):
            if offset + 8 > size:
                offset += 8  # which take refuses
                break
            offset += 8 + length_at(mapping, offset)[0]
        self.take(offset - self.offset, what)

    def number(self, code: str, what: str) -> int:
        value = struct.unpack_from(f"<{code}", self.mapping, self.take(struct.calcsize(f"<{code}"), what))[0]
        assert isinstance(value, int)
        return value

    def count(self, what: str, maximum: int) -> int:
        value = self.number("Q", what)
        if value > maximum:
            raise self.wrong(what, f"at most {maximum}", value)
        return value

    def text(self, what: str, max_bytes: int | None = None) -> str:
        length = self.number("Q", f"length of {what}")
        if max_bytes is not None and length > max_bytes:
            raise self.wrong(f"length of {what}", f"at most {max_bytes} bytes", length)
        start = self.take(length, what)
        raw = self.mapping[start : start + length]
        try:
            return raw.decode("utf-8")
        except UnicodeDecodeError as error:
            raise self.wrong(what, "UTF-8", raw[:40]) from error


def _read_version(cursor: _Cursor) -> int:
    magic = cursor.mapping[:4]
    if magic != MAGIC:
        raise FormatError(f"cannot read {cursor.path}: expected a GGUF file, found another format (its magic is wrong)")
    cursor.take(4, "magic")
    version = cursor.number("I", "version")
    if version & 0xFFFF == 0 and version:
        raise cursor.wrong("version", "little-endian 2 or 3", version)
    if version not in (2, 3):
        raise cursor.wrong("version", "2 or 3", version)
    return version


def _read_metadata(
    cursor: _Cursor, num_keys: int, wanted: Collection[str] | None = None
) -> tuple[dict[str, Any], dict[str, slice]]:
    """(values, their bytes in the file). wanted: skip all other keys."""
    metadata: dict[str, Any] = {}
    spans: dict[str, slice] = {}
    for index in range(num_keys):
        key = cursor.text(f"key {index}", MAX_NAME_BYTES)
        if not key or "\0" in key:
            raise cursor.wrong(f"key {index}", "a name", key)
        if key in spans:
            raise FormatError(f"cannot read {cursor.path}: key {key} occurs twice")
        start, kind = cursor.offset, cursor.number("I", f"type of {key}")
        if wanted is None or key in wanted:
            metadata[key] = _read_value(cursor, kind, key)
        elif kind == _ARRAY:
            _read_array(cursor, key, skip=True)
        else:
            _read_value(cursor, kind, key)
        spans[key] = slice(start, cursor.offset)
    return metadata, spans


def _read_value(cursor: _Cursor, kind: int, key: str) -> Any:
    if kind == _STRING:
        return cursor.text(key)
    if kind == _BOOL:
        value = cursor.number("B", key)
        if value > 1:
            raise cursor.wrong(key, "a bool, 0 or 1", value)
        return bool(value)
    if kind in _SCALARS:
        start = cursor.take(_SCALARS[kind].itemsize, key)
        return np.frombuffer(cursor.mapping, _SCALARS[kind], 1, start)[0].item()
    if kind == _ARRAY:
        return _read_array(cursor, key)
    raise cursor.wrong(f"type of {key}", "a value type of GGUF (0 to 12)", kind)


def _read_array(cursor: _Cursor, key: str, *, skip: bool = False) -> Any:
    """skip: go to its end; strings are not decoded."""
    kind, count = cursor.number("I", f"item type of {key}"), cursor.number("Q", f"length of {key}")
    if kind == _STRING:
        if count > min(MAX_STRINGS, (cursor.size - cursor.offset) // 8):
            raise cursor.wrong(f"length of {key}", "no more strings than the file holds", count)
        if skip:
            return cursor.skip_strings(count, key)
        return [cursor.text(f"{key}[{index}]") for index in range(count)]
    dtype = np.dtype("u1") if kind == _BOOL else _SCALARS.get(kind)
    if dtype is None:
        raise cursor.wrong(f"item type of {key}", "a number, bool or string", kind)
    start = cursor.take(count * dtype.itemsize, key)
    return np.frombuffer(cursor.mapping, dtype, count, start)


def _read_alignment(metadata: Mapping[str, Any], cursor: _Cursor) -> int:
    value = metadata.get("general.alignment", ALIGNMENT)
    if isinstance(value, bool) or not isinstance(value, int) or not 8 <= value <= 65_536 or value & (value - 1):
        raise cursor.wrong("general.alignment", "a power of two from 8 to 65536", value)
    return value


def _read_tensor_infos(cursor: _Cursor, num_tensors: int, alignment: int) -> dict[str, TensorInfo]:
    """Checks, as llama.cpp does, that offsets are the running sum of the padded sizes."""
    infos: dict[str, TensorInfo] = {}
    expected = 0
    for index in range(num_tensors):
        name = cursor.text(f"name of tensor {index}", MAX_TENSOR_NAME_BYTES)
        if not name:
            raise cursor.wrong(f"name of tensor {index}", "a name", name)
        if name in infos:
            raise FormatError(f"cannot read {cursor.path}: tensor {name} occurs twice")
        num_dims = cursor.number("I", f"dimensions of {name}")
        if not 1 <= num_dims <= MAX_DIMS:
            raise cursor.wrong(f"dimensions of {name}", f"1 to {MAX_DIMS}", num_dims)
        dims = [cursor.number("Q", f"dimensions of {name}") for _ in range(num_dims)]
        type_name, num_bytes = _tensor_bytes(cursor, name, cursor.number("I", f"type of {name}"), dims)
        offset = cursor.number("Q", f"offset of {name}")
        if offset != expected:
            raise cursor.wrong(f"offset of {name}", f"{expected}, the end of the previous tensor", offset)
        infos[name] = TensorInfo(name, type_name, tuple(reversed(dims)), offset, num_bytes, cursor.path)
        expected += _padded(num_bytes, alignment)
    data_start = _padded(cursor.offset, alignment)
    for info in infos.values():
        if data_start + info.offset + info.num_bytes > cursor.size:
            raise FormatError(
                f"cannot read {cursor.path}: tensor {info.name}: expected {info.num_bytes} bytes at offset "
                f"{data_start + info.offset}, found a file of {cursor.size}; it is truncated or damaged"
            )
    return {name: dataclasses.replace(info, offset=data_start + info.offset) for name, info in infos.items()}


@functools.cache
def _types_by_number() -> dict[int, TensorType]:
    return {kind.number: kind for kind in (*TYPES.values(), *OTHER_TYPES.values())}


def _tensor_bytes(cursor: _Cursor, name: str, number: int, dims: list[int]) -> tuple[str, int]:
    """(type name, bytes) of a tensor; the size is bounded by the file's length."""
    kind = _types_by_number().get(number)
    if kind is None:
        raise cursor.wrong(f"type of {name}", "a tensor type of GGUF", number)
    if min(dims) < 1:
        raise cursor.wrong(f"dimensions of {name}", "positive numbers", dims)
    if not kind.fits(dims[0]):
        expected = f"a multiple of {kind.block_elements}, the block size of {kind.name}"
        raise cursor.wrong(f"row length of {name}", expected, dims[0])
    num_bytes = kind.num_bytes(math.prod(dims))
    if num_bytes > cursor.size:
        raise cursor.wrong(f"dimensions of {name}", f"at most the file's {cursor.size} bytes", dims)
    return kind.name, num_bytes

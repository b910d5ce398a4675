"""Reads files of torch.save that contain only tensors, mapped. No code in them is executed.

Only `torch.load(weights_only=True, mmap=True)` is used, without a fallback. PyTorch before 2.10 is
refused: even so it could be made to write outside its memory (CVE-2026-24747) or to run code
(CVE-2025-32434).
"""

from __future__ import annotations

import ctypes
import mmap
import pickletools
import re
import warnings
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from llamita.errors import ConfigError, FormatError
from llamita.formats.mmap_file import map_file
from llamita.formats.safetensors_io import FLOAT_DTYPES

MIN_TORCH_VERSION: Final = (2, 10)
_CHUNK_BYTES: Final = 1 << 26  # copied from a mapping before its pages are released


def load_pickle(path: Path) -> Any:
    """The content of a PyTorch .pth, .pt or .bin, with mapped tensors. Raises FormatError,
    ConfigError (old torch).

    A pickle that contains code is refused; the error names what it would call.
    """
    _check_torch_version(torch.__version__)
    _check_container(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # torch, its unpickler and its zip reader raise many types
        called = re.search(r"GLOBAL (\S+)", str(error))
        if called:
            raise _code_error(path, called.group(1).rstrip(".")) from None
        raise FormatError(
            f"cannot read {path}: expected a PyTorch checkpoint of weights, found another kind of file or a damaged one"
        ) from None


def _code_error(path: Path, called: str) -> FormatError:
    return FormatError(
        f"cannot read {path}: the pickle contains code ({called}), which was not executed; only weights are read"
    )


def _first_call(path: Path) -> str | None:
    """The first callable in a bare pickle that is not PyTorch's, found by reading opcodes without
    running them."""
    strings: list[str] = []
    try:
        with path.open("rb") as file:
            for _ in range(5):
                for opcode, argument, _ in pickletools.genops(file):
                    if isinstance(argument, str):
                        strings = [*strings[-1:], argument]
                    name = None
                    if opcode.name == "GLOBAL":
                        name = str(argument).replace(" ", ".")
                    elif opcode.name == "STACK_GLOBAL":
                        name = ".".join(strings[-2:])
                    if name is not None and name != "collections.OrderedDict" and not name.startswith("torch."):
                        return name
    except (ValueError, OSError, MemoryError, IndexError):  # a damaged pickle
        return None
    return None


def _check_torch_version(version: str) -> None:
    numbers = tuple(int(number) for number in re.findall(r"\d+", version)[:2])
    if numbers < MIN_TORCH_VERSION:
        raise ConfigError(
            f"PyTorch {version}: reading .pth, .pt and .bin files is not safe; pip install "
            f"'torch>={MIN_TORCH_VERSION[0]}.{MIN_TORCH_VERSION[1]}'"
        )


def _check_container(path: Path) -> None:
    """Refuse anything but an uncompressed zip file, as torch.save writes: nothing expands when it
    is read."""
    mapping = map_file(path)
    head, size = mapping[:2], len(mapping)
    mapping.close()
    if head[:1] == b"\x80":  # a bare pickle; PyTorch before 1.6 wrote five of them
        called = _first_call(path)
        if called is not None:
            raise _code_error(path, called)
        raise FormatError(
            f"cannot read {path}: expected a PyTorch checkpoint in a zip file, found a bare pickle "
            "(PyTorch before 1.6 wrote those), which cannot be mapped; load and save it with a newer PyTorch"
        )
    try:
        with zipfile.ZipFile(path) as container:
            members = container.infolist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise FormatError(f"cannot read {path}: expected a PyTorch checkpoint, found no zip file ({error})") from None
    packed = any(member.compress_type != zipfile.ZIP_STORED for member in members)
    if packed or sum(member.file_size for member in members) > size:
        raise FormatError(f"cannot read {path}: expected a PyTorch checkpoint, found a compressed zip file")


def named_tensors(state: Any, path: Path, ignored: re.Pattern[str], prefix: str = "") -> dict[str, Tensor]:
    """The float tensors of a state dict, without `prefix` in their names and without names that
    match `ignored`.

    Raises FormatError for any other content, and for duplicate names.
    """
    if not isinstance(state, Mapping):
        raise FormatError(f"cannot read {path}: expected a dictionary of tensors, found {type(state).__name__}")
    tensors: dict[str, Tensor] = {}
    for key, value in state.items():
        name = str(key).removeprefix(prefix)
        if ignored.fullmatch(name):
            continue
        if not isinstance(value, Tensor):
            raise FormatError(f"cannot read {path}: {name}: expected a tensor of floats, found {type(value).__name__}")
        if value.dtype not in FLOAT_DTYPES or value.layout != torch.strided:
            found = str(value.dtype if value.layout == torch.strided else value.layout).removeprefix("torch.")
            raise FormatError(f"cannot read {path}: tensor {name}: expected floats of 16 or 32 bits, found {found}")
        if value.numel() * value.itemsize > value.untyped_storage().nbytes():
            raise FormatError(f"cannot read {path}: tensor {name}: it is larger than its storage; the file is damaged")
        if name in tensors:
            raise FormatError(f"cannot read {path}: tensor {name} occurs twice")
        tensors[name] = value
    return tensors


def copied(parts: Iterable[Tensor], shape: tuple[int, ...], axis: int) -> Tensor:
    """Concatenate mapped parts along an axis in new memory [shape]; releases the pages that were
    read."""
    parts = list(parts)
    joined = torch.empty(shape, dtype=parts[0].dtype)
    start = 0
    for part in parts:
        target = joined.narrow(axis, start, part.shape[axis])
        start += part.shape[axis]
        rows = max(1, _CHUNK_BYTES // max(1, part[0].numel() * part.itemsize))
        for first in range(0, part.shape[0], rows):
            target[first : first + rows] = part[first : first + rows]
            _release_pages(part[first : first + rows])
    assert start == shape[axis]
    return joined


def _release_pages(part: Tensor) -> None:
    """Tell the system to drop the mapped pages of this contiguous tensor; a later access reads them
    again.

    Only whole pages inside the tensor are dropped, so that nothing else is affected."""
    advise = getattr(ctypes.CDLL(None), "madvise", None) if hasattr(mmap, "MADV_DONTNEED") else None
    first = -(-part.data_ptr() // mmap.PAGESIZE) * mmap.PAGESIZE
    end = (part.data_ptr() + part.numel() * part.itemsize) // mmap.PAGESIZE * mmap.PAGESIZE
    if advise is not None and part.is_contiguous() and end > first:
        advise(ctypes.c_void_p(first), ctypes.c_size_t(end - first), mmap.MADV_DONTNEED)

"""A GGUF file to one whose matrices are of another type: metadata kept, one tensor in memory at a time."""

from __future__ import annotations

import dataclasses
import math
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from llamita.convert.quant_mix import QuantMix, assign_types, quant_mix, quant_mix_notes
from llamita.errors import ConfigError, FormatError
from llamita.formats.gguf import FILE_TYPES, QUANTIZATION_VERSION, GgufFile, TensorInfo, Value, read_gguf, write_gguf
from llamita.formats.tensor_types import TYPES, Bytes, Floats, TypeName, dequantize, quantize_chunks

# Numbers of a tensor that are in memory as float32 at a time, in whole rows.
_CHUNK_NUMBERS: Final = 1 << 22

# Called with the bytes of weights read so far and in all.
Progress = Callable[[int, int], None]


@dataclasses.dataclass(frozen=True)
class QuantizeReport:
    """What was written. num_tensors_by_type: as {"Q4_K": 36, "F32": 11}. bits_per_weight: of the tensors' bytes.

    largest_error: the largest relative error of a tensor against the source's, √(Σ(stored - x)² / Σx²), and
    worst_tensor its name; 0 and None where nothing was rounded. source_bytes: of the source's tensors. notes: what
    the user should know, one sentence each."""

    path: Path
    num_bytes: int
    source_bytes: int
    num_parameters: int
    num_tensors_by_type: dict[str, int]
    bits_per_weight: float
    largest_error: float
    worst_tensor: str | None
    notes: tuple[str, ...]
    seconds: float


def quantize_file(
    source: Path, out: Path, type: str, *, requantize: bool = False, progress: Progress | None = None
) -> QuantizeReport:
    """Write `source` as `out`, whole or not at all, its matrices in this type, one of QUANT_MIXES.

    Tensors that have their type already are copied as they are. requantize: allow matrices that are quantized already
    to be rounded once more. Every key of the metadata is kept, but general.file_type and general.quantization_version
    say what is written, and general.alignment goes: 32 is used. The same source gives the same bytes. Raises
    FormatError (not a plain Llama, damaged, quantized already), ConfigError (type; `out` is the source), OutputError.
    """
    wanted = quant_mix(type, "quantize")
    source, out = Path(source), Path(out)
    if out.exists() and out.samefile(source):
        raise ConfigError(
            f"cannot quantize {source}: expected another file to write, found the same; choose a new name"
        )
    file = read_gguf(source)
    _check_kind(file)
    shapes = {name: info.shape for name, info in file.tensors.items()}
    types = assign_types(shapes, wanted)
    again = [info for name, info in file.tensors.items() if _rounds_again(info, types[name])]
    if again and not requantize:
        raise FormatError(_why_not_again(source, again))
    errors: dict[str, float] = {}
    start = time.perf_counter()
    infos = [(name, types[name], shapes[name]) for name in file.tensors]
    num_bytes = write_gguf(out, _metadata(file, wanted), infos, _encoded(file, types, errors, progress))
    worst = max(errors, key=lambda name: errors[name])
    num_parameters = sum(math.prod(shape) for shape in shapes.values())
    return QuantizeReport(
        path=out,
        num_bytes=num_bytes,
        source_bytes=sum(info.num_bytes for info in file.tensors.values()),
        num_parameters=num_parameters,
        num_tensors_by_type=dict(Counter(types.values())),
        bits_per_weight=8 * sum(TYPES[types[n]].num_bytes(math.prod(s)) for n, s in shapes.items()) / num_parameters,
        largest_error=errors[worst],
        worst_tensor=None if errors[worst] == 0.0 else worst,
        notes=(*quant_mix_notes(shapes, wanted), *([_what_again(again)] if again else [])),
        seconds=time.perf_counter() - start,
    )


def _check_kind(file: GgufFile) -> None:
    """Which tensors may be rounded is known of plain Llamas."""
    architecture = file.metadata.get("general.architecture")
    if architecture != "llama":
        raise FormatError(f"cannot quantize {file.path}: architecture: expected llama, found {architecture}")
    pieces = file.metadata.get("split.count", 0)
    if pieces not in (0, 1):
        raise FormatError(
            f"cannot quantize {file.path}: it is one of {pieces} pieces (split.count); merge them first with "
            "llama-gguf-split --merge"
        )
    if not file.tensors:
        raise FormatError(f"cannot quantize {file.path}: expected a model, found no tensors")
    for info in file.tensors.values():
        if len(info.shape) > 2:
            raise FormatError(
                f"cannot quantize {file.path}: tensor {info.name}: expected a matrix, found shape {list(info.shape)}; "
                "mixtures of experts are not supported"
            )
        if info.type not in TYPES:
            raise FormatError(
                f"cannot quantize {file.path}: tensor {info.name}: expected type {', '.join(TYPES)}, found {info.type}"
            )


def _is_quantized(type: str) -> bool:
    return TYPES[type].block_elements > 1


def _rounds_again(info: TensorInfo, type: TypeName) -> bool:
    """Whether a rounded tensor is rounded once more. To float32 nothing is lost."""
    return _is_quantized(info.type) and type not in (info.type, "F32")


def _what_again(again: list[TensorInfo]) -> str:
    kinds = ", ".join(f"{count} {name}" for name, count in Counter(info.type for info in again).most_common())
    return f"{len(again)} tensors were quantized already ({kinds}): their new errors come on top of the old ones"


def _why_not_again(source: Path, again: list[TensorInfo]) -> str:
    return (
        f"cannot quantize {source}: expected F32, F16 or BF16 tensors, found {_what_again(again)}, which costs more "
        "quality than the type alone; start from the unquantized model, or accept that with --requantize"
    )


def _metadata(file: GgufFile, wanted: QuantMix) -> dict[str, Value]:
    metadata: dict[str, Value] = {key: file.encoded(key) for key in file.metadata if key != "general.alignment"}
    metadata["general.file_type"] = FILE_TYPES[wanted.file_type]
    metadata["general.quantization_version"] = QUANTIZATION_VERSION
    return metadata


def _encoded(
    file: GgufFile, types: dict[str, TypeName], errors: dict[str, float], progress: Progress | None
) -> Iterator[Bytes]:
    done, total = 0, sum(info.num_bytes for info in file.tensors.values())
    for name, info in file.tensors.items():
        if info.type == types[name]:
            data, errors[name] = file.data(name), 0.0
        else:
            where = f"tensor {name}"
            data, errors[name] = quantize_chunks(_chunks(file, info), math.prod(info.shape), types[name], where)
        done += info.num_bytes
        if progress is not None:
            progress(done, total)
        yield data
        file.release(name)


def _chunks(file: GgufFile, info: TensorInfo) -> Iterator[Floats]:
    """The numbers of a tensor, some rows at a time."""
    row_length = info.shape[-1]
    num_rows = math.prod(info.shape[:-1])
    data = file.data(info.name).reshape(num_rows, -1)
    step = max(1, _CHUNK_NUMBERS // row_length)
    for first in range(0, num_rows, step):
        rows = data[first : first + step]
        if info.type == "F32":
            yield rows.view("<f4")
            continue
        yield dequantize(rows.reshape(-1), info.type, (len(rows), row_length))

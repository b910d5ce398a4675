"""Writes a GGUF file's matrices in another type, with one tensor in memory at a time."""

from __future__ import annotations

import dataclasses
import math
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from llamita.convert.quant_mix import QuantMix, assign_types, quant_mix, quant_mix_notes
from llamita.errors import ConfigError, FormatError
from llamita.formats.gguf import (
    FILE_TYPES,
    QUANTIZATION_VERSION,
    SPLIT_KEYS,
    GgufFile,
    TensorInfo,
    Value,
    check_whole,
    read_gguf,
    write_gguf,
)
from llamita.formats.gguf_metadata import ARCHITECTURES
from llamita.formats.tensor_types import TYPES, Bytes, Floats, TypeName, dequantize, quantize_chunks
from llamita.progress import Progress, no_progress

# Elements of a tensor in memory as float32 at a time, rounded to whole rows.
_CHUNK_ELEMENTS: Final = 1 << 22


@dataclasses.dataclass(frozen=True)
class QuantizeReport:
    """What was written.

    num_tensors_by_type: such as {"Q4_K": 36, "F32": 11}. bits_per_weight: of tensor data alone.
    largest_error: the largest relative error of a tensor against the source, √(Σ(stored - x)² /
    Σx²), and worst_tensor its name; 0 and None if nothing was rounded. source_bytes: of the
    source's tensors. notes: one sentence each, for the user."""

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
    source: Path, out: Path, type: str, *, requantize: bool = False, progress: Progress = no_progress
) -> QuantizeReport:
    """Write `source` to `out` atomically, with matrices in this type, one of QUANT_MIXES.

    Tensors that already have their type are copied. requantize: allow rounding of matrices that are
    already quantized. All metadata is kept, except that general.file_type and
    general.quantization_version are updated, and general.alignment (32 is used) and split.* are
    dropped: the pieces of a split model become one file. The same source gives the same bytes.
    progress: counts the bytes of the source's weights. Raises FormatError (another architecture,
    damaged, already quantized), ConfigError (unknown type; `out` is the source), OutputError.
    """
    mix = quant_mix(type, "quantize")
    source, out = Path(source), Path(out)
    file = read_gguf(source)
    if out.exists() and any(out.samefile(piece) for piece in file.pieces):
        raise ConfigError(f"cannot quantize {source}: expected another output file, found the same; choose a new name")
    _check_kind(file)
    shapes = {name: info.shape for name, info in file.tensors.items()}
    types = assign_types(shapes, mix)
    again = [info for name, info in file.tensors.items() if _rounds_again(info, types[name])]
    if again and not requantize:
        raise FormatError(_requantize_error(source, again))
    errors: dict[str, float] = {}
    start = time.perf_counter()
    infos = [(name, types[name], shapes[name]) for name in file.tensors]
    num_bytes = write_gguf(out, _metadata(file, mix), infos, _encoded(file, types, errors, progress))
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
        notes=(*quant_mix_notes(shapes, mix), *([_requantize_note(again)] if again else [])),
        seconds=time.perf_counter() - start,
    )


def _check_kind(file: GgufFile) -> None:
    """Refuse other networks: of these it is known which tensors may be quantized."""
    check_whole(file, "cannot quantize")
    architecture = file.metadata.get("general.architecture")
    if architecture not in ARCHITECTURES:
        raise FormatError(
            f"cannot quantize {file.path}: architecture: expected {', '.join(ARCHITECTURES[:-1])} or "
            f"{ARCHITECTURES[-1]}, found {str(architecture)[:60]}"
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
    """Whether a quantized tensor would be rounded again. Conversion to float32 is exact."""
    return _is_quantized(info.type) and type not in (info.type, "F32")


def _type_counts(infos: list[TensorInfo]) -> str:
    return ", ".join(f"{count} {name}" for name, count in Counter(info.type for info in infos).most_common())


def _requantize_note(again: list[TensorInfo]) -> str:
    return (
        f"{len(again)} tensors were already quantized ({_type_counts(again)}): the new rounding errors add to the old "
        "ones"
    )


def _requantize_error(source: Path, again: list[TensorInfo]) -> str:
    return (
        f"cannot quantize {source}: expected F32, F16 or BF16 tensors, found {len(again)} quantized ones "
        f"({_type_counts(again)}), and rounding twice costs quality; start from the unquantized model, or accept the "
        "loss with --requantize"
    )


def _metadata(file: GgufFile, mix: QuantMix) -> dict[str, Value]:
    dropped = ("general.alignment", *SPLIT_KEYS)
    metadata: dict[str, Value] = {key: file.encoded(key) for key in file.metadata if key not in dropped}
    metadata["general.file_type"] = FILE_TYPES[mix.file_type]
    metadata["general.quantization_version"] = QUANTIZATION_VERSION
    return metadata


def _encoded(
    file: GgufFile, types: dict[str, TypeName], errors: dict[str, float], progress: Progress
) -> Iterator[Bytes]:
    done, total = 0, sum(info.num_bytes for info in file.tensors.values())
    for name, info in file.tensors.items():
        if info.type == types[name]:
            data, errors[name] = file.data(name), 0.0
        else:
            where = f"tensor {name}"
            data, errors[name] = quantize_chunks(_chunks(file, info), math.prod(info.shape), types[name], where)
        done += info.num_bytes
        progress("quantizing", done, total)
        yield data
        file.release(name)


def _chunks(file: GgufFile, info: TensorInfo) -> Iterator[Floats]:
    """A tensor as float32, some rows at a time."""
    row_length = info.shape[-1]
    num_rows = math.prod(info.shape[:-1])
    data = file.data(info.name).reshape(num_rows, -1)
    step = max(1, _CHUNK_ELEMENTS // row_length)
    for first in range(0, num_rows, step):
        rows = data[first : first + step]
        if info.type == "F32":
            yield rows.view("<f4")
            continue
        yield dequantize(rows.reshape(-1), info.type, (len(rows), row_length))

"""A checkpoint to one model file: .gguf with everything in it, or llama2.c's .bin with its tokenizer.bin beside it."""

from __future__ import annotations

import dataclasses
import difflib
import os
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from llamita.atomic import atomic_write_bytes
from llamita.checkpoint import STEP_NAME, load_config, load_tensors, resolve_checkpoint
from llamita.config import ModelConfig
from llamita.errors import ConfigError
from llamita.formats.gguf import write_gguf
from llamita.formats.gguf_metadata import model_metadata, rope_factors, tokenizer_metadata
from llamita.formats.llama2c import check_expressible, tokenizer_bin, why_no_tokenizer_bin, write_v0
from llamita.formats.quantize import TYPES, Bytes, Floats, TypeName, dequantize, quantize
from llamita.formats.rope_order import halves_to_pairs
from llamita.formats.tensor_table import GGUF_ROPE_FACTORS, TensorSpec, check_tensors, tensor_table
from llamita.tokenizer import Tokenizer, load_tokenizer

EXPORT_TYPES: dict[str, TypeName] = {"f32": "F32", "f16": "F16", "q8_0": "Q8_0", "q4_0": "Q4_0"}


@dataclasses.dataclass(frozen=True)
class ExportReport:
    """What was written. num_tensors_by_type: as {"Q8_0": 36, "F32": 11}. bits_per_weight: of the tensors' bytes.

    largest_error: the largest relative error of a tensor, √(Σ(stored - x)² / Σx²), and worst_tensor its name; 0 and
    None where every number was stored exactly. remarks: what the user should know, one sentence each."""

    path: Path
    num_bytes: int
    num_parameters: int
    num_tensors_by_type: dict[str, int]
    bits_per_weight: float
    largest_error: float
    worst_tensor: str | None
    tokenizer_path: Path | None
    remarks: tuple[str, ...]


def export(checkpoint: Path, out: Path, type: str | None = None) -> ExportReport:
    """Write the checkpoint as `out`, whole or not at all, in the format that its suffix says (.gguf or .bin).

    type: of the matrices, one of EXPORT_TYPES; None is q8_0 for .gguf, and f32 for .bin, which has no other. The same
    checkpoint, of the same name, gives the same bytes. Raises CheckpointError, FormatError, TokenizerError, ConfigError
    (suffix or type), OutputError.
    """
    out = Path(out)
    if out.suffix not in (".gguf", ".bin"):
        raise ConfigError(f"cannot export to {out}: expected a name that ends in .gguf or .bin")
    if out.name == "tokenizer.bin":
        raise ConfigError(f"cannot export to {out}: the tokenizer is written under that name; name the model otherwise")
    if type is not None and type not in EXPORT_TYPES:
        nearest = difflib.get_close_matches(type, EXPORT_TYPES, n=1, cutoff=0.3)
        hint = f"; perhaps you meant {nearest[0]}" if nearest else ""
        raise ConfigError(f"cannot export: type: expected one of {', '.join(EXPORT_TYPES)}, found {type!r}{hint}")
    if out.suffix == ".bin" and type not in (None, "f32"):
        raise ConfigError(f"cannot export to {out}: llama2.c's .bin is f32, not {type}; export to .gguf for {type}")
    directory = resolve_checkpoint(Path(checkpoint))
    config, tensors = load_config(directory), load_tensors(directory)
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    check_tensors(shapes, config, "huggingface", str(directory))
    tokenizer = load_tokenizer(directory)
    if out.suffix == ".bin":
        return _export_bin(out, config, tokenizer, tensors)
    return _export_gguf(out, config, tokenizer, tensors, EXPORT_TYPES[type or "q8_0"], _model_name(Path(checkpoint)))


def _model_name(checkpoint: Path) -> str:
    """The folder's name, or that of the run whose step it is. Only a name: where it lies is nobody's business."""
    folder = Path(os.path.abspath(checkpoint))
    is_step = STEP_NAME.fullmatch(folder.name) or folder.name in ("best", "latest")
    return (folder.parent.name if is_step else folder.name) or "model"


# ---------------------------------------------------------------- .gguf


def _export_gguf(
    out: Path, config: ModelConfig, tokenizer: Tokenizer, tensors: Mapping[str, Any], wanted: TypeName, name: str
) -> ExportReport:
    metadata = model_metadata(config, name, wanted)
    metadata |= tokenizer_metadata(tokenizer, config.vocab_size, _end_ids(config, tokenizer))
    table = tensor_table(config)
    types = {spec.gguf: _tensor_type(spec, wanted) for spec in table}
    infos: list[tuple[str, str, tuple[int, ...]]] = [(spec.gguf, types[spec.gguf], spec.shape) for spec in table]
    factors = rope_factors(config)
    if factors is not None:
        infos.insert(0, (GGUF_ROPE_FACTORS, "F32", factors.shape))
    errors: dict[str, float] = {}

    def encoded() -> Iterator[Bytes]:
        if factors is not None:
            yield quantize(factors, "F32", GGUF_ROPE_FACTORS)
        for spec in table:
            numbers = _in_pairs_order(_floats(tensors[spec.huggingface]), spec, config)
            data = quantize(numbers, types[spec.gguf], f"tensor {spec.huggingface}")
            errors[spec.huggingface] = _relative_error(numbers, data, types[spec.gguf])
            yield data

    num_bytes = write_gguf(out, metadata, infos, encoded())
    worst = max(errors, key=lambda name: errors[name])
    exact = errors[worst] == 0.0
    weight_bytes = sum(TYPES[types[spec.gguf]].num_bytes(int(np.prod(spec.shape))) for spec in table)
    return ExportReport(
        path=out,
        num_bytes=num_bytes,
        num_parameters=config.num_parameters,
        num_tensors_by_type=dict(Counter(types[spec.gguf] for spec in table)),
        bits_per_weight=8 * weight_bytes / config.num_parameters,
        largest_error=errors[worst],
        worst_tensor=None if exact else worst,
        tokenizer_path=None,
        remarks=(*_type_remarks(table, types, wanted), *_tokenizer_remarks(tokenizer)),
    )


def _tensor_type(spec: TensorSpec, wanted: TypeName) -> TypeName:
    """Norms are always F32 (runtimes demand it); rows that are not whole blocks are F16."""
    if spec.kind == "norm":
        return "F32"
    return wanted if TYPES[wanted].fits(spec.shape[-1]) else "F16"


def _type_remarks(table: tuple[TensorSpec, ...], types: Mapping[str, TypeName], wanted: TypeName) -> tuple[str, ...]:
    odd = [spec for spec in table if spec.kind != "norm" and types[spec.gguf] != wanted]
    if not odd:
        return ()
    names = sorted({spec.llama2c if spec.layer is None else spec.gguf.split(".")[2] for spec in odd})
    lengths = sorted({spec.shape[-1] for spec in odd})
    return (
        f"{len(odd)} tensors ({', '.join(names)}) are stored as F16: their rows of {', '.join(map(str, lengths))} "
        f"numbers are not whole blocks of {TYPES[wanted].block_elements}",
    )


def _tokenizer_remarks(tokenizer: Tokenizer) -> tuple[str, ...]:
    if tokenizer.kind != "llama" or not tokenizer.remove_extra_whitespaces:
        return ()
    return (
        "the tokenizer drops leading, trailing and repeated spaces; runtimes of GGUF and llama2.c keep them, so their "
        "tokens differ where a text has such spaces",
    )


def _end_ids(config: ModelConfig, tokenizer: Tokenizer) -> list[int]:
    """Every id that ends a text: the tokenizer's EOS first, then config.json's, then the tokenizer's others."""
    first = () if tokenizer.eos_id is None else (tokenizer.eos_id,)
    return list(dict.fromkeys((*first, *config.eos_token_ids, *tokenizer.end_ids)))


def _relative_error(numbers: Floats, data: Bytes, type: TypeName) -> float:
    """√(Σ(stored - x)² / Σx²); 0 for a tensor of zeros."""
    if type == "F32":
        return 0.0
    difference = (dequantize(data, type, numbers.shape) - numbers).reshape(-1)
    power = float(np.dot(numbers.reshape(-1), numbers.reshape(-1)))
    return float(np.sqrt(float(np.dot(difference, difference)) / power)) if power > 0 else 0.0


# ---------------------------------------------------------------- .bin


def _export_bin(out: Path, config: ModelConfig, tokenizer: Tokenizer, tensors: Mapping[str, Any]) -> ExportReport:
    check_expressible(config)
    remarks, reason = _tokenizer_remarks(tokenizer), why_no_tokenizer_bin(tokenizer)
    vocabulary = tokenizer_bin(tokenizer, config.vocab_size) if reason is None else b""
    tokenizer_path = out.with_name("tokenizer.bin")

    def tensor(spec: TensorSpec) -> Floats:
        numbers = _in_pairs_order(_floats(tensors[spec.huggingface]), spec, config)
        quantize(numbers, "F32", f"tensor {spec.huggingface}")  # refuses NaN and infinities
        return numbers

    num_bytes = write_v0(out, config, tensor)
    if vocabulary:
        atomic_write_bytes(tokenizer_path, vocabulary)
    return ExportReport(
        path=out,
        num_bytes=num_bytes,
        num_parameters=config.num_parameters,
        num_tensors_by_type={"F32": len(tensor_table(config))},
        bits_per_weight=32.0,
        largest_error=0.0,
        worst_tensor=None,
        tokenizer_path=tokenizer_path if vocabulary else None,
        remarks=remarks if reason is None else (*remarks, reason),
    )


# ---------------------------------------------------------------- both


def _floats(tensor: Any) -> Floats:
    """A torch tensor of any float type as float32; it may share the tensor's memory."""
    numbers: Floats = tensor.detach().float().numpy()
    return numbers


def _in_pairs_order(numbers: Floats, spec: TensorSpec, config: ModelConfig) -> Floats:
    heads = spec.rope_heads(config)
    return numbers if heads is None else halves_to_pairs(numbers, heads)

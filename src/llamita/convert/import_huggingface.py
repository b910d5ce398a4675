"""Opens a Hugging Face folder, or a model of the Hugging Face hub, as a ModelSource.

Weights are safetensors in one file or in shards, or else PyTorch pickles (pytorch_model.bin) in
either form. The tokenizer's files are checked and copied unchanged.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from llamita.checkpoint import copy_tokenizer, with_all_end_ids
from llamita.config import ModelConfig
from llamita.convert.model_source import (
    ImportOptions,
    ModelSource,
    byte_notes,
    check_fit,
    with_context,
    with_unpermuted_qk,
)
from llamita.errors import ConfigError, FormatError, NetworkError
from llamita.formats.huggingface import config_from_dict
from llamita.formats.safetensors_io import (
    FLOAT_DTYPES,
    INDEX,
    WEIGHTS,
    SafetensorsReader,
    open_safetensors,
    open_safetensors_files,
    read_index,
)
from llamita.formats.tensor_table import check_tensors, tensor_table
from llamita.formats.torch_pickle import copied, load_pickle, named_tensors
from llamita.json_file import Key, Schema, check_object, read_json_object, shortened
from llamita.model_card import load_card
from llamita.tokenizer import Tokenizer, load_tokenizer
from llamita.tokenizer.chat_templates import NO_TEMPLATE, check_template_fits
from llamita.tokenizer.load import unused_templates

_SHARD = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.safetensors")
_ADAPTER = "adapter_model.safetensors"
_ACTIVATION_SCALES = re.compile(r"\.(input_scale|input_scale_ub|activation_scale|[kv]_scale)$")
_COMPILED = "_orig_mod."  # torch.compile puts it into names
PICKLE, PICKLE_INDEX = "pytorch_model.bin", "pytorch_model.bin.index.json"
_BUFFERS = re.compile(r"(model\.)?(layers\.\d+\.self_attn\.)?rotary_emb\.inv_freq")
_EMBEDDING, _OUTPUT = "model.embed_tokens.weight", "lm_head.weight"
_ROWS: Final = 4096  # compared at a time

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
_HUB_FILES: Final = (
    "config.json", "generation_config.json", "tokenizer.json", "tokenizer.model", "tokenizer_config.json",
    "special_tokens_map.json", "added_tokens.json", "chat_template.jinja", "vocab.json", "merges.txt",
)  # fmt: skip
_HUB_WEIGHTS: Final = (
    ("model*.safetensors", INDEX), ("pytorch_model*.bin", PICKLE_INDEX), ("*.safetensors", INDEX),
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class _Weights:
    """The tensors of a folder by name. read(name, first, number or None): rows in new memory."""

    shapes: dict[str, tuple[int, ...]]
    dtype: Callable[[str], torch.dtype]
    read: Callable[[str, int, int | None], Tensor]
    kind: str


def open_huggingface(folder: Path, options: ImportOptions, name: str) -> ModelSource:
    """Open the folder and check that it is a complete model. name: as the user gave it.

    Raises FormatError, TokenizerError.
    """
    config, fp8_block = _read_config(folder, options.context_tokens)
    config = with_context(config, options.context_tokens)
    weights = _renamed(_open_weights(folder), config, folder)
    if fp8_block is not None:
        weights = _dequantized(weights, fp8_block, folder)
    shapes = {each: shape for each, shape in weights.shapes.items() if not _BUFFERS.fullmatch(each)}
    if config.tie_word_embeddings and _OUTPUT in shapes:
        _check_same(weights, folder)
        del shapes[_OUTPUT]
    check_tensors(shapes, config, "huggingface", str(folder))
    for spec in tensor_table(config):
        if weights.dtype(spec.huggingface) not in (*FLOAT_DTYPES, torch.float64):
            raise FormatError(
                f"cannot read {folder}: tensor {spec.huggingface}: expected floats of 16, 32 or 64 bits, found "
                f"{str(weights.dtype(spec.huggingface)).removeprefix('torch.')}"
            )
    tokenizer_path = options.tokenizer or folder
    tokenizer = load_tokenizer(tokenizer_path)
    check_fit(tokenizer, config, tokenizer_path, folder, exact=False)
    if options.chat_template not in (None, NO_TEMPLATE):
        check_template_fits(str(options.chat_template), tokenizer.pieces(), str(tokenizer_path))
    return ModelSource(
        folder, f"Hugging Face, {weights.kind}", config, lambda spec: weights.dtype(spec.huggingface),
        lambda spec: weights.read(spec.huggingface, 0, None), tokenizer_path,
        lambda out: _write_tokenizer(tokenizer, tokenizer_path, out),
        (*_notes(config, tokenizer, name), *_template_notes(tokenizer, tokenizer_path),
         *(() if fp8_block is None else ("FP8 weights dequantized: weight · scale",))),
        card=load_card(folder),
    )  # fmt: skip


def _notes(config: ModelConfig, tokenizer: Tokenizer, name: str) -> tuple[str, ...]:
    spare = config.vocab_size - tokenizer.vocab_size
    notes = byte_notes(tokenizer)
    if spare:
        notes.append(f"the embedding has {spare} more rows than the tokenizer has tokens")
    if tokenizer.chat_template is None and re.search(r"chat|instruct", name, re.IGNORECASE):
        notes.append("no chat template, although the name suggests a chat model (--chat-template NAME sets one)")
    return tuple(notes)


def _template_notes(tokenizer: Tokenizer, path: Path) -> list[str]:
    """A note if there are chat templates, but none is the default."""
    names = unused_templates(path if path.is_dir() else path.parent)
    if tokenizer.chat_template is not None or not names:
        return []
    listed = ", ".join(shortened(name, 40) for name in names[:6])
    return [f"no chat template: tokenizer_config.json has {listed}, and none named default (--chat-template NAME)"]


def _write_tokenizer(tokenizer: Tokenizer, path: Path, out: Path) -> None:
    """Copy the tokenizer's files if tokenizer.json is one of them; else write what was read."""
    folder = path if path.is_dir() else path.parent
    if (folder / "tokenizer.json").is_file() and path in (folder, folder / "tokenizer.json"):
        copy_tokenizer(folder, out)
    else:
        tokenizer.save(out)


# ---------------------------------------------------------------- config


def _read_config(folder: Path, context_tokens: int | None) -> tuple[ModelConfig, tuple[int, int] | None]:
    """The config, with all end ids; and the rows and columns that share a scale in blocks, if the
    weights are FP8."""
    content = read_json_object(folder / "config.json", FormatError)
    fp8_block = _fp8_block(content, str(folder / "config.json"))
    config = config_from_dict(content, str(folder / "config.json"), longest_text=context_tokens)
    return with_all_end_ids(config, folder, FormatError), fp8_block


# What is read of a quantization_config; other methods are refused by name.
QUANTIZATION: Schema = {
    "quant_method": Key("string", choices=("fp8", "fbgemm_fp8", "compressed-tensors")),
    "format": Key("string", choices=("float-quantized",), use="of compressed-tensors"),
    "weight_block_size": Key("list", items=Key("integer", null=False, positive=True, maximum=65536), use="of fp8"),
}


def _fp8_block(content: dict[str, Any], where: str) -> tuple[int, int] | None:
    """The size of FP8's blocks, if the weights are FP8; removes quantization_config then."""
    settings = content.get("quantization_config")
    if not isinstance(settings, dict):
        return None
    method, form = settings.get("quant_method"), settings.get("format")
    if not (method in ("fp8", "fbgemm_fp8") or (method == "compressed-tensors" and form == "float-quantized")):
        return None
    checked = check_object(settings, QUANTIZATION, f"{where}: quantization_config", FormatError)
    block = checked["weight_block_size"] or [128, 128]
    if len(block) != 2:
        raise FormatError(f"cannot read {where}: quantization_config: weight_block_size: expected two, found {block}")
    del content["quantization_config"]
    return block[0], block[1]


# ---------------------------------------------------------------- weights


def _open_weights(folder: Path) -> _Weights:
    if (folder / WEIGHTS).is_file() or (folder / INDEX).is_file():
        stored = open_safetensors(folder)
        return _Weights(stored.shapes, stored.dtype, stored.read, "safetensors")
    others = sorted(path.name for path in folder.glob("*.safetensors") if path.name != _ADAPTER)
    if others:
        stored = _open_without_index(folder, others)
        return _Weights(stored.shapes, stored.dtype, stored.read, "safetensors")
    if (folder / PICKLE).is_file():
        files = {PICKLE: None}
    elif (folder / PICKLE_INDEX).is_file():
        files = dict.fromkeys(sorted(set(read_index(folder / PICKLE_INDEX).values())))
    else:
        raise FormatError(
            f"cannot import {folder}: no weights next to config.json (looked for *.safetensors, {PICKLE}, "
            f"{PICKLE_INDEX})"
        )
    tensors: dict[str, Tensor] = {}
    for name in files:
        for key, tensor in named_tensors(load_pickle(folder / name), folder / name, _BUFFERS).items():
            if key in tensors:
                raise FormatError(f"cannot read {folder / name}: tensor {key} occurs twice")
            tensors[key] = tensor
    shapes = {key: tuple(tensor.shape) for key, tensor in tensors.items()}

    def read(key: str, first: int, num: int | None) -> Tensor:
        rows = tensors[key] if num is None else tensors[key][first : first + num]
        return copied([rows], tuple(rows.shape), 0)

    return _Weights(shapes, lambda key: tensors[key].dtype, read, "PyTorch pickle")


def _open_without_index(folder: Path, names: list[str]) -> SafetensorsReader:
    """One .safetensors file of any name, or all shards of a name. Raises FormatError if they are
    several models, or if a shard is missing."""
    if len(names) > 1:
        shards = [match for match in map(_SHARD.fullmatch, names) if match]
        numbers = sorted(int(shard[2]) for shard in shards)
        kinds = {(shard[1], shard[3]) for shard in shards}
        if len(shards) < len(names) or len(kinds) != 1:
            raise FormatError(
                f"cannot import {folder}: expected {WEIGHTS}, one .safetensors file, or shards of one model, found "
                f"{shortened(', '.join(names), 200)}"
            )
        count = int(next(iter(kinds))[1])
        missing = next((number for number in range(1, count + 1) if number not in numbers), None)
        if missing is not None:
            name = f"{shards[0][1]}-{missing:05d}-of-{count:05d}.safetensors"
            raise FormatError(f"cannot import {folder}: expected {count} shards, found {len(names)}: {name} is missing")
    return open_safetensors_files([folder / name for name in names])


def _renamed(weights: _Weights, config: ModelConfig, folder: Path) -> _Weights:
    """The weights under the names of LlamaForCausalLM: without the prefix of torch.compile; `model.`
    added if a LlamaModel was saved; from Meta's names of a Llama, with rows of q and k in Hugging
    Face's order."""
    names: dict[str, str] = {}
    plain = {name.replace(_COMPILED, ""): name for name in weights.shapes}
    if len(plain) < len(weights.shapes):
        raise FormatError(f"cannot read {folder}: expected unique tensor names without {_COMPILED}")
    is_meta = "tok_embeddings.weight" in plain and config.architecture == "llama"
    specs = {spec.name("llama2c"): spec for spec in tensor_table(config)} if is_meta else {}
    if is_meta and config.tie_word_embeddings and "output.weight" in plain:
        plain[_OUTPUT] = plain.pop("output.weight")
    has_prefix = any(name.startswith("model.") for name in plain)
    for name, stored in plain.items():
        if name in specs:
            names[specs[name].huggingface] = stored
        else:
            names[name if has_prefix or is_meta or name.startswith("lm_head.") else f"model.{name}"] = stored
    by_name = {spec.huggingface: spec for spec in specs.values()}

    def read(name: str, first: int, num: int | None) -> Tensor:
        tensor = weights.read(names[name], first, num)
        return with_unpermuted_qk(tensor, by_name[name], config) if name in by_name and num is None else tensor

    return _Weights(
        {name: weights.shapes[stored] for name, stored in names.items()},
        lambda name: weights.dtype(names[name]), read, weights.kind,
    )  # fmt: skip


def _dequantized(weights: _Weights, block: tuple[int, int], folder: Path) -> _Weights:
    """FP8 weights times their scales, in float32: one scale, one per row, or one per block.

    Scales of activations and of the KV cache are left out: they do not change a weight."""
    scales: dict[str, str] = {}
    for name, shape in weights.shapes.items():
        if weights.dtype(name) != torch.float8_e4m3fn:
            continue
        scale = next((name + end for end in ("_scale_inv", "_scale") if name + end in weights.shapes), None)
        blocks = tuple(-(-size // part) for size, part in zip(shape, block, strict=False))
        known = {(), (1,), (1, 1), shape[:1], (*shape[:1], 1), blocks}
        if scale is None or len(shape) != 2 or weights.shapes[scale] not in known:
            found = "none" if scale is None else str(list(weights.shapes[scale])[:4])
            raise FormatError(
                f"cannot read {folder}: tensor {shortened(name, 120)}: expected FP8 numbers with a tensor _scale or "
                f"_scale_inv of one number, one for each row, or one for each block of {block[0]} × {block[1]}, found "
                f"{found}"
            )
        scales[name] = scale

    def read(name: str, first: int, num: int | None) -> Tensor:
        tensor = weights.read(name, first, num)
        if name not in scales:
            return tensor
        scale = weights.read(scales[name], 0, None).float()
        if scale.numel() == 1:
            return tensor.float() * scale.reshape(1, 1)
        scale = scale.reshape(len(scale), -1)
        rows, columns = tensor.shape
        if scale.shape == (weights.shapes[name][0], 1):
            scale = scale[first : first + rows]
        else:
            scale = scale[torch.arange(first, first + rows) // block[0]].repeat_interleave(block[1], 1)[:, :columns]
        return tensor.float() * scale

    left_out = set(scales.values()) | {name for name in weights.shapes if _ACTIVATION_SCALES.search(name)}
    return _Weights(
        {name: shape for name, shape in weights.shapes.items() if name not in left_out},
        lambda name: torch.float32 if name in scales else weights.dtype(name), read, f"{weights.kind}, FP8",
    )  # fmt: skip


def _check_same(weights: _Weights, folder: Path) -> None:
    """Raise FormatError if a tied output matrix differs from the embedding."""
    same = weights.shapes.get(_EMBEDDING) == weights.shapes[_OUTPUT] and len(weights.shapes[_OUTPUT]) == 2
    rows = weights.shapes[_OUTPUT][0] if same else 0
    for first in range(0, rows, _ROWS):
        number = min(_ROWS, rows - first)
        same = same and torch.equal(weights.read(_EMBEDDING, first, number), weights.read(_OUTPUT, first, number))
    if not same:
        raise FormatError(
            f"cannot use {folder}: config.json sets tie_word_embeddings, but {_OUTPUT} differs from {_EMBEDDING}; "
            "set it to false if the weights are right"
        )


# ---------------------------------------------------------------- hub


def is_hub_id(text: str) -> bool:
    """Whether the text looks like OWNER/NAME, a model id of the hub."""
    return _HUB_ID.fullmatch(text) is not None and not text.endswith((".bin", ".pt", ".pth", ".gguf"))


def fetch_from_hub(name: str) -> Path:
    """Download what importing needs, preferring safetensors; returns a folder of the hub's cache.

    Raises ConfigError if huggingface_hub is not installed, NetworkError if the download fails.
    """
    try:
        import huggingface_hub
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"cannot import {name}: no such folder; to download it from the Hugging Face hub, "
            "pip install huggingface_hub"
        ) from error
    try:
        for weights in _HUB_WEIGHTS:
            folder = Path(huggingface_hub.snapshot_download(name, allow_patterns=[*_HUB_FILES, *weights]))
            if any(folder.glob(weights[0])):
                return folder
    except Exception as error:  # the hub client raises many types
        message = " ".join(str(error).split())[:200]
        raise NetworkError(
            f"cannot import {name}: no such folder, and the download from the Hugging Face hub failed: {message}"
        ) from error
    raise FormatError(f"cannot import {name}: its hub repository has neither model.safetensors nor {PICKLE}")

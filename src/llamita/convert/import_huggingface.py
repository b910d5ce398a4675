"""Opens a Hugging Face folder, or a model of the Hugging Face hub, as a ModelSource.

Weights are safetensors in one file or in shards with an index, or else PyTorch pickles
(pytorch_model.bin) in either form. The tokenizer's files are checked and copied unchanged.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from pathlib import Path
from typing import Final

import torch
from torch import Tensor

from llamita.checkpoint import copy_tokenizer
from llamita.config import ModelConfig
from llamita.convert.model_source import ImportOptions, ModelSource, byte_notes, check_fit, with_context
from llamita.errors import ConfigError, FormatError, NetworkError
from llamita.formats.huggingface import config_from_dict
from llamita.formats.safetensors_io import FLOAT_DTYPES, INDEX, WEIGHTS, open_safetensors, read_index
from llamita.formats.tensor_table import check_tensors, tensor_table
from llamita.formats.torch_pickle import copied, load_pickle, named_tensors
from llamita.json_file import read_json_object
from llamita.model_card import load_card
from llamita.tokenizer import Tokenizer, load_tokenizer
from llamita.tokenizer.chat_templates import NO_TEMPLATE, check_template_fits

PICKLE, PICKLE_INDEX = "pytorch_model.bin", "pytorch_model.bin.index.json"
_BUFFERS = re.compile(r"(model\.)?(layers\.\d+\.self_attn\.)?rotary_emb\.inv_freq")
_EMBEDDING, _OUTPUT = "model.embed_tokens.weight", "lm_head.weight"
_ROWS: Final = 4096  # compared at a time

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
_HUB_FILES: Final = (
    "config.json", "generation_config.json", "tokenizer.json", "tokenizer.model", "tokenizer_config.json",
    "special_tokens_map.json", "added_tokens.json", "chat_template.jinja",
)  # fmt: skip
_HUB_WEIGHTS: Final = (("model*.safetensors", INDEX), ("pytorch_model*.bin", PICKLE_INDEX))


@dataclasses.dataclass(frozen=True)
class _Weights:
    """The tensors of a folder by name. read(name, first, number or None): rows in new memory."""

    shapes: dict[str, tuple[int, ...]]
    dtype: Callable[[str], torch.dtype]
    read: Callable[[str, int, int | None], Tensor]
    kind: str


def open_huggingface(folder: Path, options: ImportOptions, name: str) -> ModelSource:
    """Open the folder and check that it is a complete plain Llama. name: as the user gave it.

    Raises FormatError, TokenizerError.
    """
    config = with_context(_read_config(folder, options.context_tokens), options.context_tokens)
    weights = _open_weights(folder)
    shapes = {each: shape for each, shape in weights.shapes.items() if not _BUFFERS.fullmatch(each)}
    if config.tie_word_embeddings and _OUTPUT in shapes:
        _check_same(weights, folder)
        del shapes[_OUTPUT]
    check_tensors(shapes, config, "huggingface", str(folder))
    for spec in tensor_table(config):
        if weights.dtype(spec.huggingface) not in FLOAT_DTYPES:
            raise FormatError(
                f"cannot read {folder}: tensor {spec.huggingface}: expected floats of 16 or 32 bits, found "
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
        lambda out: _write_tokenizer(tokenizer, tokenizer_path, out), _notes(config, tokenizer, name),
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


def _write_tokenizer(tokenizer: Tokenizer, path: Path, out: Path) -> None:
    """Copy the tokenizer's files if tokenizer.json is one of them; else write what was read."""
    folder = path if path.is_dir() else path.parent
    if (folder / "tokenizer.json").is_file() and path in (folder, folder / "tokenizer.json"):
        copy_tokenizer(folder, out)
    else:
        tokenizer.save(out)


# ---------------------------------------------------------------- config


def _read_config(folder: Path, context_tokens: int | None) -> ModelConfig:
    """The config of config.json, with the end ids of generation_config.json added."""
    content = read_json_object(folder / "config.json", FormatError)
    # Before the checks: a window of at least the context does not matter.
    if context_tokens is not None:
        content["max_position_embeddings"] = context_tokens
    config = config_from_dict(content, str(folder / "config.json"))
    settings = folder / "generation_config.json"
    ends = read_json_object(settings, FormatError).get("eos_token_id") if settings.is_file() else None
    more = ends if isinstance(ends, list) else [ends]
    ids = [*config.eos_token_ids]
    ids += [i for i in more if type(i) is int and 0 <= i < config.vocab_size and i not in ids]
    if not ids:
        return config
    return dataclasses.replace(config, eos_token_id=ids[0] if len(ids) == 1 else tuple(ids))


# ---------------------------------------------------------------- weights


def _open_weights(folder: Path) -> _Weights:
    if (folder / WEIGHTS).is_file() or (folder / INDEX).is_file():
        stored = open_safetensors(folder)
        return _Weights(stored.shapes, stored.dtype, stored.read, "safetensors")
    if (folder / PICKLE).is_file():
        files = {PICKLE: None}
    elif (folder / PICKLE_INDEX).is_file():
        files = dict.fromkeys(sorted(set(read_index(folder / PICKLE_INDEX).values())))
    else:
        raise FormatError(
            f"cannot import {folder}: no weights next to config.json (looked for {WEIGHTS}, {INDEX}, {PICKLE}, "
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

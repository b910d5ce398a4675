"""Opens Meta's format (params.json, consolidated.NN.pth, tokenizer.model) as a ModelSource.

A model trained on 2, 4, 8 or 16 processes has that many shards, each with a part of every tensor
(fairscale): rows of column-parallel matrices (wq, wk, wv, w1, w3, output), columns of row-parallel
ones (wo, w2), whole norms. The embedding is split by columns in Llama 1 and 2, by rows in Llama 3.
The split is found by shape: a part of a tensor [R, C] is the whole [R, C], rows [R/n, C] or columns
[R, C/n], which exclude each other. With more shards than kv heads (405B on 16), each kv head is in
several neighboring shards. Rows of q and k are interleaved (rope_order.py).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from llamita.config import ModelConfig
from llamita.convert.model_source import ImportOptions, ModelSource, check_fit, with_context, with_unpermuted_qk
from llamita.errors import ConfigError, FormatError, TokenizerError
from llamita.formats.tensor_table import MAX_LAYERS, TensorSpec, check_tensors, tensor_table
from llamita.formats.torch_pickle import copied, load_pickle, named_tensors
from llamita.json_file import ABSENT, Key, Schema, check_object, read_json_object, shortened, shown
from llamita.tokenizer import Tokenizer, load_tokenizer
from llamita.tokenizer.chat_templates import CHAT_TEMPLATES, NO_TEMPLATE, check_template_fits
from llamita.tokenizer.load import is_tiktoken_file, load_tiktoken

NUM_SHARDS: Final = (1, 2, 4, 8, 16)
_SHARD_NAME = re.compile(r"consolidated\.(\d\d)\.pth")
_BUFFERS = re.compile(r"rope\.freqs|freqs_cis|layers\.\d+\.attention\.(inner_attention\.rope\.freqs|mask)")


def _whole_key(use: str, *, required: bool = False) -> Key:
    return Key("integer", default=ABSENT, required=required, positive=True, maximum=2**31 - 1, use=use)


def _real_key(use: str, *, null: bool = False) -> Key:
    return Key("number", default=ABSENT, null=null, positive=True, maximum=1e30, use=use)


# All known keys of params.json, with what they become in config.json.
PARAMS: Schema = {
    "dim": _whole_key("hidden_size", required=True),
    "n_layers": _whole_key("num_hidden_layers", required=True),
    "n_heads": _whole_key("num_attention_heads", required=True),
    "n_kv_heads": _whole_key("num_key_value_heads"),
    "vocab_size": Key("integer", default=ABSENT, minimum=-1, maximum=2**31 - 1, use="checked; -1 or null: not known"),
    "multiple_of": _whole_key("checked against the shape of w1"),
    "ffn_dim_multiplier": _real_key("checked against the shape of w1", null=True),
    "norm_eps": _real_key("rms_norm_eps"),
    "rope_theta": _real_key(""),
    "use_scaled_rope": Key("boolean", default=ABSENT, null=False, use="RoPE scaling of Llama 3.1"),
    "rope_scaling_factor": _real_key(""),
    "rope_high_freq_factor": _real_key(""),
    **{key: Key("integer", use="ignored") for key in ("max_batch_size", "max_seq_len", "model_parallel_size")},
}

# Constants of the reference code of Llama 3.1 and 3.2 that params.json lacks. The factor is 8,
# except 32 for the small models of 3.2 (1B and 3B: dim 2048 and 3072), according to their
# config.json.
_LOW_FREQ, _HIGH_FREQ, _ORIGINAL_CONTEXT = 1.0, 4.0, 8192
_SMALL_DIM = 4096


def is_meta_folder(path: Path) -> bool:
    """Whether the folder has a params.json and weights."""
    return (path / "params.json").is_file() and any(_SHARD_NAME.fullmatch(each.name) for each in path.iterdir())


def open_meta(path: Path, options: ImportOptions) -> ModelSource:
    """Map all shards and check that together they are a complete model.

    Raises FormatError, TokenizerError, ConfigError (PyTorch is too old)."""
    params = _read_params(path / "params.json")
    shards = [named_tensors(load_pickle(file), file, _BUFFERS) for file in _shard_files(path)]
    _check_same_names(shards, path)
    tokenizer_path = options.tokenizer or _find_tokenizer(path)
    template, why = _template(path, options)
    is_llama3 = is_tiktoken_file(tokenizer_path)
    scaled = bool(params.get("use_scaled_rope", False))
    is_chat = template is not None
    if is_llama3:
        tokenizer = load_tiktoken(tokenizer_path, "3.1" if scaled else "3", is_chat=is_chat)
    else:
        tokenizer = load_tokenizer(tokenizer_path)
    tokenizer = _with_template(tokenizer, template, tokenizer_path)
    config, notes = _config(params, shards, tokenizer, path, options)
    joins = _joins(shards, config, path)
    check_fit(tokenizer, config, tokenizer_path, path, exact=False)

    def tensor(spec: TensorSpec) -> Tensor:
        axis, first, step = joins[spec.huggingface]
        parts = [shard[spec.name("llama2c")] for shard in shards[first::step]]
        return with_unpermuted_qk(copied(parts, spec.shape, axis), spec, config)

    kind = f"Meta, {len(shards)} shard{'s' if len(shards) > 1 else ''}"
    return ModelSource(
        path, kind, config, lambda spec: shards[0][spec.name("llama2c")].dtype, tensor, tokenizer_path, tokenizer.save,
        (*notes, why, *_norm_notes(shards, config)),
    )  # fmt: skip


# ---------------------------------------------------------------- files


def _read_params(path: Path) -> dict[str, Any]:
    content = read_json_object(path, FormatError)
    params = content.get("model", content)
    unknown = next((key for key in params if key not in PARAMS), None) if isinstance(params, dict) else None
    if unknown is not None:
        raise FormatError(
            f"cannot use {path}: {shortened(str(unknown))}: unknown key; a plain Llama has {', '.join([*PARAMS][:10])}"
        )
    return check_object(params, PARAMS, str(path) if params is content else f"{path}: model", FormatError)


def _shard_files(path: Path) -> list[Path]:
    """consolidated.00.pth, .01, …: none missing, in a number that Meta uses."""
    numbers = {int(match[1]) for each in path.iterdir() if (match := _SHARD_NAME.fullmatch(each.name))}
    count = max(numbers) + 1
    missing = next((number for number in range(count) if number not in numbers), None)
    if missing is None and count not in NUM_SHARDS:
        larger = next((number for number in NUM_SHARDS if number > count), count)
        missing = count if larger > count else None
    if missing is not None:
        expected = ", ".join(map(str, NUM_SHARDS))
        raise FormatError(
            f"cannot read {path}: expected {expected} shards, found {len(numbers)}: consolidated.{missing:02d}.pth is "
            "missing"
        )
    if count not in NUM_SHARDS:
        raise FormatError(f"cannot read {path}: expected {', '.join(map(str, NUM_SHARDS))} shards, found {count}")
    return [path / f"consolidated.{number:02d}.pth" for number in range(count)]


def _check_same_names(shards: Sequence[Mapping[str, Tensor]], path: Path) -> None:
    for number, shard in enumerate(shards):
        odd = shards[0].keys() ^ shard.keys()
        if odd:
            raise FormatError(
                f"cannot read {path}: tensor {min(odd)} is not in all shards: consolidated.00.pth and "
                f"consolidated.{number:02d}.pth are of different models"
            )
        for name, tensor in shard.items():
            if (tensor.dtype, tensor.ndim) != (shards[0][name].dtype, shards[0][name].ndim):
                raise FormatError(
                    f"cannot read {path}: tensor {name}: consolidated.{number:02d}.pth has a different type"
                )


def _find_tokenizer(path: Path) -> Path:
    """tokenizer.model in the folder or, as in Meta's downloads, in its parent."""
    for folder in (path, path.parent):
        if (folder / "tokenizer.model").is_file():
            return folder / "tokenizer.model"
    raise TokenizerError(
        f"cannot import {path}: no tokenizer.model in it or in {path.parent}; give one with --tokenizer FILE"
    )


def _template(path: Path, options: ImportOptions) -> tuple[str | None, str]:
    """(name of the chat template, note): from --chat-template, else from the folder's name."""
    name = path.resolve().name if path.resolve().name != "original" else path.resolve().parent.name
    if options.chat_template is not None:
        chosen = None if options.chat_template == NO_TEMPLATE else options.chat_template
        return chosen, f"chat template: {options.chat_template}, from --chat-template"
    tokenizer = options.tokenizer or _find_tokenizer(path)
    if re.search(r"chat|instruct", name, re.IGNORECASE) is None:
        return (
            None,
            f"no chat template: the folder's name, {name}, does not contain chat or instruct (--chat-template NAME)",
        )
    chosen = "llama3" if is_tiktoken_file(tokenizer) else "llama2"
    return chosen, f"chat template: {chosen}, because the folder is named {name} (--chat-template none disables it)"


def _with_template(tokenizer: Tokenizer, template: str | None, path: Path) -> Tokenizer:
    if template is not None:
        check_template_fits(template, tokenizer.pieces(), str(path))
        tokenizer.chat_template = CHAT_TEMPLATES[template]
    return tokenizer


# ---------------------------------------------------------------- config


def _config(
    params: Mapping[str, Any],
    shards: Sequence[Mapping[str, Tensor]],
    tokenizer: Tokenizer,
    path: Path,
    options: ImportOptions,
) -> tuple[ModelConfig, list[str]]:
    where = path / "params.json"
    numbers = {key: _whole(params.get(key), key, where) for key in ("dim", "n_layers", "n_heads")}
    dim, heads = numbers["dim"], numbers["n_heads"]
    if numbers["n_layers"] > MAX_LAYERS:
        raise FormatError(f"cannot use {where}: n_layers: expected at most {MAX_LAYERS}, found {numbers['n_layers']}")
    if dim % heads:
        raise FormatError(f"cannot use {where}: n_heads: expected a divisor of dim {dim}, found {heads}")
    kv_heads = params.get("n_kv_heads")
    context, scaling, notes = _context(params, tokenizer, where)
    try:
        config = ModelConfig(
            vocab_size=_vocab_size(params, shards, dim, path),
            hidden_size=dim,
            intermediate_size=_ffn_size(params, shards, dim, path),
            num_hidden_layers=numbers["n_layers"],
            num_attention_heads=heads,
            num_key_value_heads=heads if kv_heads is None else _whole(kv_heads, "n_kv_heads", where),
            head_dim=dim // heads,
            max_position_embeddings=context,
            rms_norm_eps=_real(params.get("norm_eps", 1e-5), "norm_eps", where),
            rope_theta=_real(params.get("rope_theta", 10000.0), "rope_theta", where),
            rope_scaling=scaling,
            tie_word_embeddings=_is_tied(shards),
            bos_token_id=tokenizer.bos_id,
            eos_token_id=tokenizer.end_ids if len(tokenizer.end_ids) > 1 else tokenizer.eos_id,
        )
    except ConfigError as error:
        raise FormatError(f"cannot use {where}: {error}") from error
    if options.context_tokens is None:
        return config, notes
    notes = [note for note in notes if not note.startswith("context")]
    return with_context(config, options.context_tokens), notes


def _context(
    params: Mapping[str, Any], tokenizer: Tokenizer, where: Path
) -> tuple[int, dict[str, Any] | None, list[str]]:
    """(context, RoPE scaling, notes) by the rules of transformers' converter."""
    scaled = params.get("use_scaled_rope", False)
    if scaled:
        guess = 32.0 if params["dim"] < _SMALL_DIM else 8.0
        factor = _real(params.get("rope_scaling_factor", guess), "rope_scaling_factor", where)
        high = _real(params.get("rope_high_freq_factor", _HIGH_FREQ), "rope_high_freq_factor", where)
        scaling = {
            "rope_type": "llama3", "factor": factor, "low_freq_factor": _LOW_FREQ, "high_freq_factor": high,
            "original_max_position_embeddings": _ORIGINAL_CONTEXT,
        }  # fmt: skip
        which = "3.2 (1B, 3B)" if guess == 32.0 else "3.1"
        notes = ["context: 131072 tokens, as in Llama 3.1 and later (use_scaled_rope)"]
        if "rope_scaling_factor" not in params:
            notes.append(f"RoPE scaling: factor {factor:g}, as in Llama {which}, for dim {params['dim']}")
        return 131072, scaling, notes
    if tokenizer.kind == "gpt2":
        return 8192, None, ["context: 8192 tokens, as in Llama 3 (not in params.json; --context N)"]
    if params.get("rope_theta", 10000.0) != 10000.0:
        return 16384, None, ["context: 16384 tokens, as in Code Llama, because of rope_theta (--context N)"]
    if params.get("norm_eps", 1e-5) == 1e-6:
        return 2048, None, ["context: 2048 tokens, as in Llama 1, because of norm_eps (--context N)"]
    return 4096, None, ["context: 4096 tokens, as in Llama 2; Llama 1 has 2048 (--context N)"]


def _vocab_size(params: Mapping[str, Any], shards: Sequence[Mapping[str, Tensor]], dim: int, path: Path) -> int:
    """Rows of the whole embedding, however it is split. (Llama 1 and 2 have vocab_size -1.)"""
    rows, columns = _matrix(shards[0], "tok_embeddings.weight", path).shape
    count = len(shards)
    found = rows if columns * count == dim else rows * count
    if columns not in (dim, dim // count):
        raise FormatError(
            f"cannot read {path}: tensor tok_embeddings.weight: expected rows of {dim} numbers, or of {dim // count} "
            f"in each of {count} shards, found {columns}; a shard is missing, or they are of different models"
        )
    listed = params.get("vocab_size", -1)
    if listed not in (-1, None) and _whole(listed, "vocab_size", path / "params.json") != found:
        raise FormatError(
            f"cannot use {path / 'params.json'}: vocab_size: expected {found}, the rows of the "
            f"embedding, found {listed}"
        )
    return int(found)


def _ffn_size(params: Mapping[str, Any], shards: Sequence[Mapping[str, Tensor]], dim: int, path: Path) -> int:
    """Rows of w1 in all shards, checked against params.json (FeedForward in Meta's model.py)."""
    found = int(_matrix(shards[0], "layers.0.feed_forward.w1.weight", path).shape[0]) * len(shards)
    multiple = params.get("multiple_of")
    if multiple is None:
        return found
    where = path / "params.json"
    multiple, factor = _whole(multiple, "multiple_of", where), params.get("ffn_dim_multiplier")
    size = int(2 * 4 * dim / 3)
    size = size if factor is None else int(_real(factor, "ffn_dim_multiplier", where) * size)
    expected = -(-size // multiple) * multiple
    if expected != found:
        raise FormatError(
            f"cannot use {path}: expected {expected} rows of w1 (multiple_of {multiple}, ffn_dim_multiplier {factor} "
            f"in params.json), found {found} in all shards; a shard is missing, or they are of different models"
        )
    return found


def _matrix(shard: Mapping[str, Tensor], name: str, path: Path) -> Tensor:
    if name not in shard or shard[name].ndim != 2:
        raise FormatError(f"cannot read {path}: tensor {name}: expected a matrix, found none")
    return shard[name]


def _is_tied(shards: Sequence[Mapping[str, Tensor]]) -> bool:
    """Whether there is no output matrix, or it equals the embedding (as in Llama 3.2 1B and 3B)."""
    if "output.weight" not in shards[0]:
        return True
    for shard in shards:
        output, embedding = shard["output.weight"], shard["tok_embeddings.weight"]
        if output.shape != embedding.shape or output.dtype != embedding.dtype or output.ndim != 2:
            return False
        rows = max(1, (1 << 24) // max(1, output.shape[1]))
        for first in range(0, output.shape[0], rows):
            if not torch.equal(output[first : first + rows], embedding[first : first + rows]):
                return False
    return True


def _whole(value: Any, key: str, where: Path) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 < value < 2**31:
        raise FormatError(f"cannot use {where}: {key}: expected a positive whole number, found {shown(value)}")
    return value


def _real(value: Any, key: str, where: Path) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < 1e30:
        raise FormatError(f"cannot use {where}: {key}: expected a positive number, found {shown(value)}")
    return float(value)


# ---------------------------------------------------------------- shards


def _joins(shards: Sequence[Mapping[str, Tensor]], config: ModelConfig, path: Path) -> dict[str, tuple[int, int, int]]:
    """How to join each tensor, by Hugging Face name: (axis, first shard, step between shards)."""
    joins: dict[str, tuple[int, int, int]] = {}
    shapes: dict[str, Sequence[int]] = {}
    for name, tensor in shards[0].items():
        shapes[name] = tuple(tensor.shape)
    if config.tie_word_embeddings:
        shapes.pop("output.weight", None)
    for spec in tensor_table(config):
        name = spec.name("llama2c")
        if name not in shapes:
            continue  # check_tensors reports it
        parts = [tuple(shard[name].shape) for shard in shards]
        found = _join(parts, spec.shape, _repeats(spec, config, len(shards)))
        if found is None:
            count = len(shards)
            odd = next((part for part in parts if part != parts[0]), parts[0])
            raise FormatError(
                f"cannot read {path}: tensor {name}: expected {count} shard{'s' if count > 1 else ''} that join to "
                f"{list(spec.shape)}, found {'one of ' if count > 1 else ''}{list(odd)}"
            )
        joins[spec.huggingface], shapes[name] = found, spec.shape
    check_tensors(shapes, config, "llama2c", str(path))
    return joins


def _repeats(spec: TensorSpec, config: ModelConfig, count: int) -> int:
    """Number of neighboring shards that hold the same kv head."""
    is_kv = spec.llama2c in ("wk", "wv")
    return count // config.num_key_value_heads if is_kv and count > config.num_key_value_heads else 1


def _join(parts: Sequence[Sequence[int]], whole: Sequence[int], repeats: int) -> tuple[int, int, int] | None:
    """(axis, first, step): parts[first::step] joined along axis have the whole shape; or None."""
    count, first = len(parts), tuple(parts[0])
    if any(tuple(part) != first for part in parts):
        return None
    if first == tuple(whole):  # replicated: only norms may be, and a single kv head
        return (0, 0, count) if len(whole) == 1 or repeats == count else None
    axes = [axis for axis in range(len(whole)) if first[axis] * (count // repeats) == whole[axis]]
    for axis in axes:
        others = all(first[other] == whole[other] for other in range(len(whole)) if other != axis)
        if others and (axis == 0 or repeats == 1):
            return axis, 0, repeats
    return None


def _norm_notes(shards: Sequence[Mapping[str, Tensor]], config: ModelConfig) -> list[str]:
    """A note if copies of a norm differ: processes can drift apart in training."""
    names = [spec.name("llama2c") for spec in tensor_table(config) if spec.kind == "norm"]
    differing = [name for name in names if not all(torch.equal(shard[name], shards[0][name]) for shard in shards)]
    if not differing:
        return []
    return [f"{len(differing)} norms differ between shards; those of consolidated.00.pth are used, as in transformers"]

"""Opens llama2.c's model.bin or ckpt.pt, with the tokenizer next to it, as a ModelSource."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from llamita.config import ModelConfig
from llamita.convert.model_source import ImportOptions, ModelSource, check_fit, with_context, with_unpermuted_qk
from llamita.errors import FormatError, TokenizerError
from llamita.formats.llama2c import Llama2cModel, read_bin, read_checkpoint
from llamita.formats.tensor_table import TensorSpec
from llamita.tokenizer import Tokenizer, load_tokenizer


def open_llama2c(path: Path, options: ImportOptions, *, pickled: bool) -> ModelSource:
    """Open a .bin, or a training checkpoint if `pickled`.

    --context may only shorten the context: the format's RoPE tables end there. Raises
    FormatError, TokenizerError (missing, or does not fit).
    """
    model = read_checkpoint(path) if pickled else read_bin(path)
    config = model.config
    if options.context_tokens is not None and options.context_tokens > config.max_position_embeddings:
        raise FormatError(
            f"cannot import {path} for {options.context_tokens} tokens: "
            f"expected at most {config.max_position_embeddings}, the model's context"
        )
    config = with_context(config, options.context_tokens)
    tokenizer_path = options.tokenizer or _find_tokenizer(path, config.vocab_size)
    tokenizer = load_tokenizer(tokenizer_path)
    _check_ids(tokenizer, config, tokenizer_path, path)

    def tensor(spec: TensorSpec) -> Tensor:
        return with_unpermuted_qk(torch.from_numpy(model.tensor(spec)), spec, config)

    kind = "llama2.c checkpoint" if pickled else f"llama2.c {model.version}"
    return ModelSource(
        path, kind, config, lambda spec: torch.float32, tensor, tokenizer_path, tokenizer.save, _notes(model)
    )


def _notes(model: Llama2cModel) -> tuple[str, ...]:
    if model.group_size is None:
        return ()
    return (f"int8 weights in groups of {model.group_size}, dequantized to float32",)


def _find_tokenizer(source: Path, vocab_size: int) -> Path:
    """The tokenizer next to the model, under a name that llama2.c uses."""
    names = [f"tok{vocab_size}.model", f"tok{vocab_size}.bin", "tokenizer.model", "tokenizer.bin"]
    for name in names:
        if (source.parent / name).is_file():
            return source.parent / name
    raise TokenizerError(
        f"cannot import {source}: no tokenizer next to it (looked for {', '.join(names)}); "
        "give one with --tokenizer FILE"
    )


def _check_ids(tokenizer: Tokenizer, config: ModelConfig, path: Path, source: Path) -> None:
    check_fit(tokenizer, config, path, source, exact=True)
    if (tokenizer.bos_id, tokenizer.eos_id) != (config.bos_token_id, config.eos_token_ids[0]):
        raise TokenizerError(
            f"cannot import {source} with tokenizer {path}: expected BOS {config.bos_token_id} and EOS "
            f"{config.eos_token_ids[0]}, as in llama2.c, found {tokenizer.bos_id} and {tokenizer.eos_id}"
        )

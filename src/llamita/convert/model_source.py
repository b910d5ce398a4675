"""The protocol of everything that can be imported: a model in any form to its config, its tensors, its tokenizer."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from llamita.config import ModelConfig
from llamita.errors import FormatError, TokenizerError
from llamita.formats.rope_order import unpermute_qk
from llamita.formats.tensor_table import TensorSpec
from llamita.tokenizer import Tokenizer

MAX_CONTEXT_TOKENS = 1 << 24


@dataclasses.dataclass(frozen=True)
class ImportOptions:
    """What the user says about a source that the source may not say itself.

    tokenizer: its file or folder. chat_template: a name of tokenizer/chat_templates.py, "none", or None: as the
    source says. context_tokens: the longest text to use it for, where that is not what the source says."""

    tokenizer: Path | None = None
    chat_template: str | None = None
    context_tokens: int | None = None


@dataclasses.dataclass(frozen=True)
class ModelSource:
    """A model to be imported, opened and checked: every tensor of the table is there, in its shape, and no other.

    kind: as a person says it, "llama2.c v1". dtype: of a tensor as it is stored (float32 where it is quantized).
    tensor: reads one, new memory, in Hugging Face's order of rows. write_tokenizer: puts tokenizer.json and its
    companions into a folder. notes: what was decided for the user, one sentence each."""

    path: Path
    kind: str
    config: ModelConfig
    dtype: Callable[[TensorSpec], torch.dtype]
    tensor: Callable[[TensorSpec], Tensor]
    tokenizer_path: Path
    write_tokenizer: Callable[[Path], None]
    notes: tuple[str, ...] = ()


def with_unpermuted_qk(tensor: Tensor, spec: TensorSpec, config: ModelConfig) -> Tensor:
    """Rows of q and k from pairs order to Hugging Face's; other tensors as they are. Of any float type."""
    heads = spec.rope_heads(config)
    if heads is None:
        return tensor
    same_size = {2: torch.int16, 4: torch.int32}[tensor.itemsize]  # numpy has no bfloat16
    bits = np.ascontiguousarray(tensor.contiguous().view(same_size).numpy())
    return torch.from_numpy(unpermute_qk(bits, heads)).view(tensor.dtype)


def check_fit(tokenizer: Tokenizer, config: ModelConfig, path: Path, source: Path, *, exact: bool) -> None:
    """Raise TokenizerError unless every token has a row in the embedding (`exact`: and every row a token)."""
    size = tokenizer.vocab_size
    if size > config.vocab_size or (exact and size != config.vocab_size):
        more = "" if exact else "at most "
        raise TokenizerError(
            f"cannot import {source} with tokenizer {path}: expected {more}{config.vocab_size} tokens, found {size}; "
            "they do not belong together"
        )


def with_context(config: ModelConfig, context_tokens: int | None) -> ModelConfig:
    """The config for texts of at most so many tokens (None: its own). Raises FormatError if it is out of range, so that
    a hostile source cannot ask for tables that fill the memory."""
    tokens = config.max_position_embeddings if context_tokens is None else context_tokens
    if not 0 < tokens <= MAX_CONTEXT_TOKENS:
        hint = "; say a shorter one with --context-tokens N" if context_tokens is None else ""
        raise FormatError(f"context: expected 1 to {MAX_CONTEXT_TOKENS} tokens, found {tokens}{hint}")
    return dataclasses.replace(config, max_position_embeddings=tokens)


def byte_notes(tokenizer: Tokenizer) -> list[str]:
    """What a user should know about bytes that the tokenizer cannot express."""
    missing = [byte for byte in tokenizer.missing_bytes if byte < 0xF5 and byte not in (0xC0, 0xC1)]
    if not missing:
        return []
    listed = ", ".join(f"0x{byte:02X}" for byte in missing[:12])
    return [f"the vocabulary has no token for the bytes {listed}: text that has them loses them, in every runtime"]

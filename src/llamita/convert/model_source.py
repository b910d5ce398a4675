"""The common form of every importable model: its config, its tensors and its tokenizer."""

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
from llamita.model_card import NO_CARD, ModelCard
from llamita.tokenizer import Tokenizer

MAX_CONTEXT_TOKENS = 1 << 24


@dataclasses.dataclass(frozen=True)
class ImportOptions:
    """The user's settings that override what the source specifies; None: the source's.

    tokenizer: its file or folder. chat_template: a name in tokenizer/chat_templates.py, or "none".
    context_tokens: the longest text. pre: of a GGUF's tokenizer, for tokenizer.ggml.pre."""

    tokenizer: Path | None = None
    chat_template: str | None = None
    context_tokens: int | None = None
    pre: str | None = None


@dataclasses.dataclass(frozen=True)
class ModelSource:
    """A model that was opened and checked: its tensors are exactly those of the table.

    kind: for display, such as "llama2.c v1". dtype: of a tensor as stored (float32 if quantized).
    tensor: reads one into new memory, rows in Hugging Face's order. write_tokenizer: writes
    tokenizer.json and its companions into a folder. notes: decisions that the user should know, one
    sentence each. gguf_types: of the tensors, if it is a GGUF that the engine can open, with
    gguf_pre. card: name, license, system prompt, sampling defaults."""

    path: Path
    kind: str
    config: ModelConfig
    dtype: Callable[[TensorSpec], torch.dtype]
    tensor: Callable[[TensorSpec], Tensor]
    tokenizer_path: Path
    write_tokenizer: Callable[[Path], None]
    notes: tuple[str, ...] = ()
    gguf_types: frozenset[str] = frozenset()
    gguf_pre: str | None = None
    card: ModelCard = NO_CARD


def with_unpermuted_qk(tensor: Tensor, spec: TensorSpec, config: ModelConfig) -> Tensor:
    """Rows of q and k from interleaved to Hugging Face's order; other tensors unchanged."""
    heads = spec.rope_heads(config)
    if heads is None:
        return tensor
    same_size = {2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.itemsize]  # numpy has no bfloat16
    bits = np.ascontiguousarray(tensor.contiguous().view(same_size).numpy())
    return torch.from_numpy(unpermute_qk(bits, heads)).view(tensor.dtype)


def check_fit(tokenizer: Tokenizer, config: ModelConfig, path: Path, source: Path, *, exact: bool) -> None:
    """Raise TokenizerError unless every token has an embedding row (exact: and vice versa)."""
    size = tokenizer.vocab_size
    if size > config.vocab_size or (exact and size != config.vocab_size):
        more = "" if exact else "at most "
        raise TokenizerError(
            f"cannot import {source} with tokenizer {path}: expected {more}{config.vocab_size} tokens, found {size}; "
            "they do not belong together"
        )


def with_context(config: ModelConfig, context_tokens: int | None) -> ModelConfig:
    """The config with this context length (None: unchanged). Raises FormatError if it is out of
    range, so that a hostile source cannot ask for tables that exhaust memory."""
    tokens = config.max_position_embeddings if context_tokens is None else context_tokens
    if not 0 < tokens <= MAX_CONTEXT_TOKENS:
        hint = "; set a shorter one with --context N" if context_tokens is None else ""
        raise FormatError(f"context: expected 1 to {MAX_CONTEXT_TOKENS} tokens, found {tokens}{hint}")
    is_dynamic = config.rope_scaling is not None and config.rope_scaling["rope_type"] == "dynamic"
    if is_dynamic and tokens > config.max_position_embeddings:
        raise FormatError(
            f"context: expected at most {config.max_position_embeddings} tokens, found {tokens}; beyond it RoPE "
            "scaling dynamic changes with every token, which only transformers does"
        )
    return dataclasses.replace(config, max_position_embeddings=tokens)


def byte_notes(tokenizer: Tokenizer) -> list[str]:
    """A note about bytes that the tokenizer cannot express, if there are any."""
    missing = [byte for byte in tokenizer.missing_bytes if byte < 0xF5 and byte not in (0xC0, 0xC1)]
    if not missing:
        return []
    listed = ", ".join(f"0x{byte:02X}" for byte in missing[:12])
    return [f"the vocabulary has no token for the bytes {listed}: every runtime drops them from text"]

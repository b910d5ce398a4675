"""What a person can choose, as frozen dataclasses with units and validation; the command line's flags are made from them."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any, Literal

from llamita.errors import ConfigError


def check(condition: bool, message: str) -> None:
    """Raise ConfigError(message) unless the condition holds."""
    if not condition:
        raise ConfigError(message)


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """Shape and constants of a Llama. The field names are Hugging Face's (LlamaConfig), the values are not in doubt:
    whatever the source left out has been filled in, and everything has been checked."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    max_position_embeddings: int
    rms_norm_eps: float = 1e-5
    rope_theta: float = 10000.0
    rope_scaling: dict[str, Any] | None = None
    tie_word_embeddings: bool = True
    bos_token_id: int | None = 0
    eos_token_id: int | tuple[int, ...] | None = 0
    pad_token_id: int | None = None

    def __post_init__(self) -> None:
        for name in (
            "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
            "num_key_value_heads", "head_dim", "max_position_embeddings",
        ):  # fmt: skip
            value = getattr(self, name)
            check(
                isinstance(value, int) and not isinstance(value, bool) and 0 < value < 2**31,
                f"model config: {name}: expected a positive whole number, found {value!r}",
            )
        check(self.head_dim % 2 == 0, f"model config: head_dim: RoPE needs an even number, found {self.head_dim}")
        check(
            self.num_attention_heads % self.num_key_value_heads == 0,
            f"model config: num_key_value_heads: expected a divisor of num_attention_heads "
            f"({self.num_attention_heads}), found {self.num_key_value_heads}",
        )
        for name in ("rms_norm_eps", "rope_theta"):
            value = getattr(self, name)
            check(
                isinstance(value, (int, float)) and math.isfinite(value) and value > 0,
                f"model config: {name}: expected a positive number, found {value!r}",
            )

    @property
    def num_parameters(self) -> int:
        """Number of weights; tied embeddings are counted once."""
        attention = self.hidden_size * self.head_dim * 2 * (self.num_attention_heads + self.num_key_value_heads)
        layer = attention + 3 * self.hidden_size * self.intermediate_size + 2 * self.hidden_size
        embeddings = self.vocab_size * self.hidden_size * (1 if self.tie_word_embeddings else 2)
        return embeddings + self.num_hidden_layers * layer + self.hidden_size

    @property
    def eos_token_ids(self) -> tuple[int, ...]:
        """Every id that ends a text."""
        if self.eos_token_id is None:
            return ()
        return (self.eos_token_id,) if isinstance(self.eos_token_id, int) else tuple(self.eos_token_id)


@dataclasses.dataclass(frozen=True)
class Shape:
    """A preset: a ModelConfig without what the tokenizer and the data decide."""

    num_hidden_layers: int
    hidden_size: int
    num_attention_heads: int
    num_key_value_heads: int
    intermediate_size: int
    max_position_embeddings: int


# The seed's shapes (llama2.c, doc/stories260K.md and README), and small ones for CPUs.
PRESETS: dict[str, Shape] = {
    "stories260K": Shape(5, 64, 8, 4, 172, 512),
    "stories15M": Shape(6, 288, 6, 6, 768, 256),
    "stories42M": Shape(8, 512, 8, 8, 1376, 1024),
    "stories110M": Shape(12, 768, 12, 12, 2048, 1024),
}

PresetName = Literal["stories260K", "stories15M", "stories42M", "stories110M"]


@dataclasses.dataclass(frozen=True)
class PrepareConfig:
    """Turn text into a token store: documents, a tokenizer, token shards for training and validation."""

    sources: tuple[str, ...]
    out: Path
    vocab_size: int | None = None
    tokenizer: Path | None = None
    val_fraction: float | None = None
    val: tuple[str, ...] = ()
    separator: str = "<|endoftext|>"
    split_on: Literal["separator", "blank-lines", "file"] = "separator"
    text_key: str = "text"
    num_workers: int | None = None
    seed: int = 0

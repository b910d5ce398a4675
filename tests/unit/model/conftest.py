"""Shared by the tests of the network."""

from __future__ import annotations

from typing import Any

from llamita.config import ModelConfig


def make_config(**changes: Any) -> ModelConfig:
    values = {
        "vocab_size": 61, "hidden_size": 32, "intermediate_size": 80, "num_hidden_layers": 3, "num_attention_heads": 4,
        "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 40,
    }  # fmt: skip
    return ModelConfig(**(values | changes))

"""The KV cache: keys and values of past tokens, so that a new token costs one position of work."""

from __future__ import annotations

import torch
from torch import Tensor

from llamita.config import ModelConfig


class KVCache:
    """Keys and values of up to `capacity_tokens` positions, for every layer.

    keys, values: [L, B, K, capacity, S]. num_tokens: positions filled; the network advances it once
    per pass.
    """

    def __init__(
        self,
        config: ModelConfig,
        batch_size: int,
        capacity_tokens: int,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        shape = (
            config.num_hidden_layers,
            batch_size,
            config.num_key_value_heads,
            capacity_tokens,
            config.head_dim,
        )
        self.keys = torch.empty(shape, device=device, dtype=dtype)
        self.values = torch.empty(shape, device=device, dtype=dtype)
        self.num_tokens = 0

    def append(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Store key, value [B, K, T, S] of the next T positions; returns all of them [B, K, past +
        T, S]."""
        end = self.num_tokens + key.shape[2]
        assert end <= self.keys.shape[3], (end, self.keys.shape)
        self.keys[layer, :, :, self.num_tokens : end] = key
        self.values[layer, :, :, self.num_tokens : end] = value
        return self.keys[layer, :, :, :end], self.values[layer, :, :, :end]

    def causal_mask(self, time: int) -> Tensor:
        """[T, past + T], True where query t (at position past + t) may attend."""
        position = torch.arange(self.num_tokens + time, device=self.keys.device)
        return position[None, :] <= position[self.num_tokens :, None]

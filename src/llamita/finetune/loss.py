"""Packed rows to the summed cross-entropy of what is learned, attention kept inside each conversation.

A row's conversations see nothing of one another: query i looks at key j only if j ≤ i is of the same conversation. RoPE
knows distances only, so each conversation computes what it computes alone from position 0; a test holds that.

Shape letters: B batch, T time, K kv heads, S head size.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from llamita.data.batches import IGNORED
from llamita.model.kv_cache import KVCache
from llamita.model.llama import Llama
from llamita.training.loss import summed_cross_entropy


class ConversationMask(KVCache):
    """Stands where a cache of keys and values would: it keeps none, and its mask is that of packed rows."""

    def __init__(self, segments: Tensor) -> None:
        """segments: int64 [B, T], the number of each position's conversation in its row."""
        time = segments.shape[1]
        causal = torch.ones(time, time, dtype=torch.bool, device=segments.device).tril()
        self.mask = (segments[:, None, :, None] == segments[:, None, None, :]) & causal  # [B, 1, T, T]
        self.num_tokens = 0

    def append(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """key, value [B, K, T, S], as they are."""
        return key, value

    def causal_mask(self, time: int) -> Tensor:
        """[B, 1, T, T], True where query t may look."""
        assert time == self.mask.shape[-1], (time, self.mask.shape)
        return self.mask


class ConversationLoss(nn.Module):
    """A network with its loss: inputs, targets, segments [B, T] → Σ nats over the targets that count, float32.

    Logits are computed at those targets only. compute: the type of matrix products; anything but float32 goes through
    autocast.
    """

    def __init__(self, model: Llama, compute: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.model, self.compute = model, compute

    def autocast(self) -> torch.autocast:
        """While entered, matrix products are of the type `compute`."""
        return torch.autocast(self.model.output_weight.device.type, self.compute, enabled=self.compute != torch.float32)

    def forward(self, inputs: Tensor, targets: Tensor, segments: Tensor) -> Tensor:
        with self.autocast():
            hidden = self.model.hidden_states(inputs, ConversationMask(segments))
        counts = targets != IGNORED
        return summed_cross_entropy(
            hidden[counts].to(self.compute), self.model.output_weight.to(self.compute), targets[counts]
        )

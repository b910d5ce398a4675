"""The loss of fine-tuning on conversations: summed cross-entropy of the targets in packed rows."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from llamita.model.llama import Llama
from llamita.training.loss import packed_attention, summed_cross_entropy, target_positions


class ConversationLoss(nn.Module):
    """inputs, targets, segments [B, T] → Σ nats over the targets that are not IGNORED, float32.

    Conversations in a row do not attend to one another. Without segments each row is one
    conversation. Logits are computed at the targets only. positions: see `target_positions`.
    cu_seqlens: see PackedBatch. compute: the type to compute in.
    """

    def __init__(self, model: Llama, compute: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.model, self.compute = model, compute

    def forward(
        self,
        inputs: Tensor,
        targets: Tensor,
        segments: Tensor | None = None,
        positions: Tensor | None = None,
        cu_seqlens: Tensor | None = None,
    ) -> Tensor:
        mask = None if segments is None else packed_attention(self.model, self.compute, segments, cu_seqlens)
        hidden = self.model.hidden_states(inputs, mask=mask, compute=self.compute)
        positions = target_positions(targets, positions)
        return summed_cross_entropy(
            hidden.flatten(0, 1).index_select(0, positions),
            self.model.output_weight.to(self.compute),
            targets.flatten()[positions],
        )

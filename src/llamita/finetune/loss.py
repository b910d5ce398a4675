"""The loss of fine-tuning on conversations: summed cross-entropy of the targets in packed rows."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from llamita.data.batches import IGNORED
from llamita.model.llama import Llama
from llamita.training.loss import packed_mask, summed_cross_entropy


class ConversationLoss(nn.Module):
    """inputs, targets, segments [B, T] → Σ nats over the targets that are not IGNORED, float32.

    Conversations in a row do not attend to one another. Logits are computed at the targets only.
    compute: the type of matrix products; anything but float32 goes through autocast.
    """

    def __init__(self, model: Llama, compute: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.model, self.compute = model, compute

    def autocast(self) -> torch.autocast:
        """A context in which matrix products use the type `compute`."""
        return torch.autocast(self.model.output_weight.device.type, self.compute, enabled=self.compute != torch.float32)

    def forward(self, inputs: Tensor, targets: Tensor, segments: Tensor) -> Tensor:
        with self.autocast():
            hidden = self.model.hidden_states(inputs, mask=packed_mask(segments))
        counts = targets != IGNORED
        return summed_cross_entropy(
            hidden[counts].to(self.compute), self.model.output_weight.to(self.compute), targets[counts]
        )

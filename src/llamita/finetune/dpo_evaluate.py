"""A network and pairs of answers to numbers: what it says of each before training, and which it prefers afterwards."""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from llamita.data.batches import pack_rows
from llamita.eval.bits_per_byte import TOKENS_PER_BATCH
from llamita.finetune.dpo_loss import DpoLoss, preference_losses
from llamita.finetune.dpo_packing import Pairs
from llamita.training.distributed import Ranks


class PreferenceScore(NamedTuple):
    """Means over pairs. accuracy: share of those whose better answer has the higher reward, β r(y) (arXiv 2305.18290,
    section 4), a tie counting half; margin: the better answer's reward less the worse one's."""

    loss: float
    accuracy: float
    margin: float
    chosen_reward: float
    rejected_reward: float


@torch.no_grad()
def answer_log_probabilities(
    loss: DpoLoss,
    pairs: Pairs,
    ranks: Ranks | None = None,
    *,
    num_batches: int | None = None,
    advance: Callable[[float], bool] = lambda share: True,
) -> Tensor | None:
    """float64 [2, number of pairs] on the CPU: what the network gives each better and worse answer, without dropout.

    ranks: processes that share the work, the result in all of them. num_batches: only the first few, for timing.
    advance(share done) is called after each pass and stops it with None when it returns False.
    """
    device = loss.model.output_weight.device
    if pairs.num_documents == 0:
        return torch.zeros((2, 0), dtype=torch.float64)
    context = int(pairs.lengths.max())
    rows = pack_rows(np.argsort(pairs.lengths, kind="stable"), np.sort(pairs.lengths), context, split=False)
    size = max(1, TOKENS_PER_BATCH[device.type] // (2 * context))
    rank, world_size = (0, 1) if ranks is None else (ranks.rank, ranks.world_size)
    found = torch.zeros((2, pairs.num_documents), dtype=torch.float64, device=device)
    was_training = loss.training
    loss.eval()
    stopped = False
    for index, start in enumerate(islice(range(0, len(rows), size), num_batches)):
        part = rows[start : start + size]
        if index % world_size == rank:
            documents = torch.tensor([piece.document for row in part for piece in row], device=device)
            batch = pairs.batch(part, context, len(documents))
            inputs, targets, segments = (
                torch.from_numpy(array).to(device) for array in (batch.inputs, batch.targets, batch.segments)
            )
            found[:, documents] = loss.log_probabilities(inputs, targets, segments, len(documents))[0]
        stopped = not advance(min(1.0, (start + size) / len(rows)))
        if stopped:
            break
    loss.train(was_training)
    if stopped:
        return None
    return (found if ranks is None else ranks.sum(found)).cpu()


def score_pairs(loss: DpoLoss, pairs: Pairs, log_probabilities: Tensor) -> PreferenceScore:
    """What log-probabilities [2, number of pairs] of the network in training mean beside the pairs' reference."""
    assert pairs.reference is not None, "the reference comes first"
    ratios = log_probabilities - torch.from_numpy(pairs.reference)
    chosen, rejected = loss.beta * ratios
    num_tokens = torch.from_numpy(pairs.answer_tokens)
    losses = preference_losses(ratios, num_tokens, loss.kind, loss.beta, loss.label_smoothing)
    means = (losses, ((chosen - rejected).sign() + 1) / 2, chosen - rejected, chosen, rejected)
    return PreferenceScore(*(each.mean().item() for each in means))

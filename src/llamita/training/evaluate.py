"""Turns a network and held-out documents into bits per byte."""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice

import torch

from llamita.data.batches import IGNORED, Documents
from llamita.data.scoring import Score, scoring_batches, scoring_rows
from llamita.training.distillation import DistillationLoss
from llamita.training.distributed import Ranks
from llamita.training.loss import SummedLoss

TOKENS_PER_BATCH = {"cpu": 8192, "cuda": 131072}


@torch.no_grad()
def bits_per_byte(
    loss: SummedLoss | DistillationLoss,
    documents: Documents,
    bos_id: int,
    ranks: Ranks | None = None,
    *,
    num_batches: int | None = None,
    advance: Callable[[float], bool] = lambda share: True,
) -> Score | None:
    """Score all documents: each from BOS, in rows of the model's context, every token counted, EOS included.

    ranks: processes that share the work, the sum in all of them. num_batches: only the first few, for timing.
    advance(share of tokens done) is called after each pass and stops the evaluation with None when it returns False.
    """
    config = loss.model.config
    device = loss.model.output_weight.device
    was_training = loss.training
    loss.eval()
    rows = scoring_rows(documents.lengths, config.max_position_embeddings)
    batches = scoring_batches(documents, rows, bos_id, TOKENS_PER_BATCH[device.type])
    rank, world_size = (0, 1) if ranks is None else (ranks.rank, ranks.world_size)
    nats, done, index = torch.zeros((), dtype=torch.float64, device=device), 0, -1
    for index, (inputs, targets) in enumerate(islice(batches, num_batches)):
        done += int((targets != IGNORED).sum())
        if index % world_size == rank:
            nats += loss(torch.from_numpy(inputs).to(device), torch.from_numpy(targets).to(device))
        if not advance(done / documents.num_tokens):
            loss.train(was_training)
            return None
    if ranks is not None:
        if ranks.must_join(index + 1):
            loss(torch.from_numpy(inputs).to(device), torch.from_numpy(targets).to(device))
        ranks.sum(nats)
    loss.train(was_training)
    return Score(nats.item(), documents.num_tokens, documents.num_documents, documents.text_bytes)

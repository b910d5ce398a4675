"""Bits per byte of held-out documents under a network in PyTorch."""

from __future__ import annotations

from itertools import islice
from typing import Protocol

import torch
from torch import Tensor

from llamita.data.batches import IGNORED, ScoredDocuments
from llamita.eval.scoring import Score, evenly_spaced, scoring_batches, scoring_rows
from llamita.model.device import accumulator_type
from llamita.model.llama import Llama
from llamita.progress import Progress, no_progress

TOKENS_PER_BATCH = {"cpu": 8192, "cuda": 131072, "mps": 16384}


class SummedLossModule(Protocol):
    """A module that returns the summed nats of the targets that count: ids and targets [B, T] to a
    scalar."""

    model: Llama
    training: bool

    def __call__(self, ids: Tensor, targets: Tensor, /) -> Tensor: ...

    def train(self, mode: bool = True, /) -> object: ...

    def eval(self) -> object: ...


class Workers(Protocol):
    """The processes that share an evaluation; see `training.distributed.Ranks`."""

    @property
    def rank(self) -> int: ...

    @property
    def world_size(self) -> int: ...

    def sum(self, values: Tensor) -> Tensor: ...

    def must_join(self, num_batches: int) -> bool: ...


@torch.no_grad()
def bits_per_byte(
    loss: SummedLossModule,
    documents: ScoredDocuments,
    bos_id: int,
    ranks: Workers | None = None,
    *,
    num_batches: int | None = None,
    share: float = 1.0,
    progress: Progress = no_progress,
) -> Score:
    """Score all documents: each from BOS, in rows of the model's context, every token counted, EOS
    included.

    ranks: processes that share the work, the sum in all of them. num_batches: only the first few,
    for timing. share: of the rows, for a part of the documents; the bytes of its text are estimated
    from its tokens. progress: counts the scored tokens; called after each pass.
    """
    config = loss.model.config
    device = loss.model.output_weight.device
    was_training = loss.training
    loss.eval()
    rows = scoring_rows(documents.lengths, config.max_position_embeddings)
    num_tokens, text_bytes = documents.num_tokens, documents.text_bytes
    if share < 1.0:
        rows = evenly_spaced(rows, share)
        num_tokens = sum(row.length for row in rows)
        text_bytes = max(1, round(text_bytes * num_tokens / documents.num_tokens))
    batches = scoring_batches(documents, rows, bos_id, TOKENS_PER_BATCH[device.type])
    rank, world_size = (0, 1) if ranks is None else (ranks.rank, ranks.world_size)
    nats, done, index = torch.zeros((), dtype=accumulator_type(device), device=device), 0, -1
    try:
        for index, (inputs, targets) in enumerate(islice(batches, num_batches)):
            done += int((targets != IGNORED).sum())
            if index % world_size == rank:
                nats += loss(torch.from_numpy(inputs).to(device), torch.from_numpy(targets).to(device))
            progress("evaluating", done, num_tokens)
        if ranks is not None:
            if ranks.must_join(index + 1):
                loss(torch.from_numpy(inputs).to(device), torch.from_numpy(targets).to(device))
            ranks.sum(nats)
    finally:
        loss.train(was_training)
    return Score(nats.item(), num_tokens, documents.num_documents, text_bytes)

"""Held-out examples to the mean nats of what is learned in them, and questions to how many answers are right."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import islice

import numpy as np
import numpy.typing as npt
import torch

from llamita.data.batches import IGNORED
from llamita.eval.bits_per_byte import TOKENS_PER_BATCH
from llamita.finetune.answers import Question, answer, grade
from llamita.finetune.loss import ConversationLoss
from llamita.finetune.rendering import Example
from llamita.tokenizer import Tokenizer
from llamita.training.distributed import Ranks

Ids = npt.NDArray[np.int64]
Advance = Callable[[float], bool]


@torch.no_grad()
def target_nats(
    loss: ConversationLoss, examples: Sequence[Example], ranks: Ranks, num_batches: int | None, advance: Advance
) -> tuple[float, int] | None:
    """Σ nats over the learned targets of the examples, all processes together, and how many those are; None if
    advance(share of the targets done), called after each pass, returned False. num_batches: only the first few."""
    device, was_training = ranks.device, loss.training
    loss.eval()
    nats, num_targets = torch.zeros((), dtype=torch.float64, device=device), 0
    all_targets = sum(int(each.learned[1:].sum()) for each in examples)
    try:
        for index, arrays in enumerate(islice(padded_batches(examples, TOKENS_PER_BATCH[device.type]), num_batches)):
            if index % ranks.world_size == ranks.rank:
                nats += loss(*(torch.from_numpy(array).to(device) for array in arrays))
            num_targets += int((arrays[1] != IGNORED).sum())
            if not advance(num_targets / all_targets):
                return None
    finally:
        loss.train(was_training)
    return ranks.sum(nats).item(), num_targets


def padded_batches(examples: Sequence[Example], tokens_per_batch: int) -> Iterator[tuple[Ids, Ids, Ids]]:
    """Inputs, targets and segments [B, T], an example a row, the longest first, B · T at most so many (or one row)."""
    ordered, at = sorted(examples, key=lambda each: -each.num_pairs), 0
    while at < len(ordered):
        width = ordered[at].num_pairs
        chosen = ordered[at : at + max(1, tokens_per_batch // width)]
        inputs = np.zeros((len(chosen), width), dtype=np.int64)
        targets = np.full((len(chosen), width), IGNORED, dtype=np.int64)
        for row, each in enumerate(chosen):
            inputs[row, : each.num_pairs] = each.ids[:-1]
            targets[row, : each.num_pairs] = np.where(each.learned[1:], each.ids[1:], IGNORED)
        yield inputs, targets, np.zeros_like(inputs)
        at += len(chosen)


def right_answers(
    loss: ConversationLoss, tokenizer: Tokenizer, questions: Sequence[Question], ranks: Ranks, advance: Advance
) -> tuple[int, int] | None:
    """How many greedy answers are the reference, and how many contain it, all processes together."""
    counts = torch.zeros(2, dtype=torch.float64, device=ranks.device)
    for index, question in enumerate(questions):
        if index % ranks.world_size == ranks.rank:
            with loss.autocast():
                said = answer(loss.model, tokenizer, question, 2 * question.num_tokens + 8)
            counts += torch.tensor(grade(said, question.reference), dtype=torch.float64, device=ranks.device)
        if not advance((index + 1) / len(questions)):
            return None
    ranks.sum(counts)
    return int(counts[0].item()), int(counts[1].item())

"""Log-probabilities of answers: the reference, computed once a run, and a network's score against it.

This module owns RUN/reference.npz. Its arrays are learn [2, training pairs] and val [2, held-out
pairs] (float64: log-probabilities of the chosen and the rejected answers before the first step; of
some of the pairs, evenly spaced, if there was no time for all), fingerprint (of the pairs and of
the network that they were computed with), and num_pairs (of the data: training, held-out).
"""

from __future__ import annotations

import io
import time
import zipfile
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from llamita.atomic import atomic_write_bytes
from llamita.data.batches import pack_rows
from llamita.errors import CheckpointError
from llamita.eval.bits_per_byte import TOKENS_PER_BATCH
from llamita.eval.scoring import evenly_spaced
from llamita.finetune.dpo_data import Pairs
from llamita.finetune.dpo_loss import DpoLoss, preference_losses
from llamita.model.device import accumulator_type
from llamita.progress import Progress, no_progress
from llamita.training.distributed import Ranks

NAME: Final = "reference.npz"
MIN_TIMED_PAIRS = 4
TIMED_SHARE = 0.1  # of the time that all pairs may take


@torch.no_grad()
def answer_log_probabilities(
    loss: DpoLoss,
    pairs: Pairs,
    ranks: Ranks | None = None,
    *,
    num_batches: int | None = None,
    progress: Progress = no_progress,
) -> Tensor:
    """float64 [2, number of pairs] on the CPU: log-probabilities of the chosen and the rejected
    answers, without dropout.

    ranks: processes that share the work; all get the result. num_batches: only the first few, for
    timing. progress: counts the rows; called after each batch.
    """
    device = loss.model.output_weight.device
    if pairs.num_documents == 0:
        return torch.zeros((2, 0), dtype=torch.float64)
    context = int(pairs.lengths.max())
    rows = pack_rows(np.argsort(pairs.lengths, kind="stable"), np.sort(pairs.lengths), context, split=False)
    size = max(1, TOKENS_PER_BATCH[device.type] // (2 * context))
    rank, world_size = (0, 1) if ranks is None else (ranks.rank, ranks.world_size)
    found = torch.zeros((2, pairs.num_documents), dtype=accumulator_type(device), device=device)
    was_training = loss.training
    loss.eval()
    try:
        for index, start in enumerate(islice(range(0, len(rows), size), num_batches)):
            part = rows[start : start + size]
            if index % world_size == rank:
                documents = torch.tensor([piece.document for row in part for piece in row], device=device)
                batch = pairs.batch(part, context, len(documents))
                inputs, targets, segments, positions, cu_seqlens = (
                    torch.from_numpy(array).to(device)
                    for array in (batch.inputs, batch.targets, batch.segments, batch.positions, batch.cu_seqlens)
                )
                found[:, documents] = loss.log_probabilities(
                    inputs, targets, segments, len(documents), positions, cu_seqlens
                )[0]
            progress("evaluating", min(start + size, len(rows)), len(rows))
    finally:
        loss.train(was_training)
    return (found if ranks is None else ranks.sum(found)).cpu().double()


def affordable_share(loss: DpoLoss, parts: Sequence[Pairs], ranks: Ranks, seconds: float) -> float:
    """The share of all pairs whose log-probabilities take about this many seconds.

    A few pairs are timed, then more, until the time can be trusted. All processes call this.
    """
    share = min(1.0, MIN_TIMED_PAIRS / max(1, parts[0].num_documents))
    if ranks.device.type != "cpu":  # load kernels, allocate memory
        answer_log_probabilities(loss, Pairs(evenly_spaced(parts[0].pairs, share)), ranks)
    while True:
        sample = Pairs(evenly_spaced(parts[0].pairs, share))
        start = time.monotonic()
        answer_log_probabilities(loss, sample, ranks)
        (spent,) = ranks.broadcast_from_first(time.monotonic() - start)
        needed = spent * sum(part.num_tokens for part in parts) / sample.num_tokens
        if needed <= seconds or spent >= TIMED_SHARE * seconds or share >= 1.0:
            return min(1.0, seconds / max(needed, 1e-9))  # some clocks stand still for 16 ms
        share = min(1.0, 4 * share)


# ---------------------------------------------------------------- the score


class DpoScore(NamedTuple):
    """Means over pairs. accuracy: the share of pairs whose chosen answer has the higher reward
    β r(y) (arXiv 2305.18290, section 4), ties counting half; margin: chosen minus rejected reward."""

    loss: float
    accuracy: float
    margin: float
    chosen_reward: float
    rejected_reward: float


def score_pairs(loss: DpoLoss, pairs: Pairs, log_probabilities: Tensor) -> DpoScore:
    """log_probabilities: [2, number of pairs], of the network in training."""
    assert pairs.reference is not None, "the reference must be set first"
    ratios = log_probabilities - torch.from_numpy(pairs.reference)
    chosen, rejected = loss.beta * ratios
    num_tokens = torch.from_numpy(pairs.answer_tokens)
    losses = preference_losses(ratios, num_tokens, loss.kind, loss.beta, loss.label_smoothing)
    means = (losses, ((chosen - rejected).sign() + 1) / 2, chosen - rejected, chosen, rejected)
    return DpoScore(*(each.mean().item() for each in means))


# ---------------------------------------------------------------- the reference file


class Reference(NamedTuple):
    learn: npt.NDArray[np.float64]
    val: npt.NDArray[np.float64]


def save_reference(run: Path, reference: Reference, fingerprint: str, num_pairs: tuple[int, int] | None = None) -> None:
    """Write it into a run directory, whole or not at all. num_pairs: of the data, if more than the
    reference has. Raises OutputError."""
    content, sizes = io.BytesIO(), num_pairs or tuple(array.shape[1] for array in reference)
    np.savez(
        content,
        learn=reference.learn,
        val=reference.val,
        fingerprint=np.array(fingerprint),
        num_pairs=np.array(sizes, dtype=np.int64),
    )
    atomic_write_bytes(Path(run) / NAME, content.getvalue())


def load_reference(run: Path, fingerprint: str, num_pairs: tuple[int, int]) -> Reference | None:
    """A run's reference, of all pairs or of a part, or None if it has none yet. num_pairs: of the
    data, in training and held out.

    Raises CheckpointError if the file is damaged or belongs to other pairs or another checkpoint.
    """
    path = Path(run) / NAME
    if not path.is_file():
        return None
    try:
        with np.load(path, allow_pickle=False) as arrays:
            reference = Reference(arrays["learn"], arrays["val"])
            stored, sizes = str(arrays["fingerprint"]), arrays["num_pairs"].tolist()
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise CheckpointError(f"cannot resume {run}: {NAME} is damaged: {str(error)[:200]}; start again") from error
    if stored != fingerprint:
        raise CheckpointError(
            f"cannot resume {run}: {NAME} was computed from other pairs or another checkpoint; start again with "
            "another --out"
        )
    for array, size in zip(reference, num_pairs, strict=True):
        has_shape = array.ndim == 2 and len(array) == 2 and min(1, size) <= array.shape[1] <= size
        if not has_shape or sizes != [*num_pairs] or array.dtype != np.float64 or not np.isfinite(array).all():
            raise CheckpointError(f"cannot resume {run}: {NAME} is damaged: expected {size:,} pairs; start again")
    return reference

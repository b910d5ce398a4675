"""Scores a checkpoint on data, in PyTorch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from llamita.checkpoint import load_model, resolve_checkpoint
from llamita.data.batches import ScoredDocuments
from llamita.errors import TokenizerError
from llamita.eval.bits_per_byte import SummedLossModule, Workers, bits_per_byte
from llamita.eval.score import Data, ScoredModel, first_id, other_tokenizer
from llamita.model.llama import Llama
from llamita.progress import Progress, no_progress
from llamita.tokenizer import load_tokenizer


def score_checkpoint(
    path: Path,
    data: Data,
    make_loss: Callable[[Llama], SummedLossModule],
    ranks: Workers | None = None,
    progress: Progress = no_progress,
) -> ScoredModel:
    """Score a checkpoint, or the best one of a run directory.

    make_loss puts the network on its device. Raises CheckpointError, SourceError, TokenizerError.
    """
    checkpoint = resolve_checkpoint(path)
    model, tokenizer = load_model(checkpoint), load_tokenizer(checkpoint)
    if tokenizer.vocab_size > model.config.vocab_size:
        raise TokenizerError(
            f"cannot score {checkpoint}: its tokenizer has {tokenizer.vocab_size:,} tokens, "
            f"its model only {model.config.vocab_size:,}"
        )
    store = data.open_store()
    documents: ScoredDocuments
    if store is None:
        documents = data.encode_texts(tokenizer.encode_batch, first_id(path, tokenizer.eos_id))
    elif store.tokenizer_fingerprint != tokenizer.fingerprint:
        raise other_tokenizer(path, data)
    else:
        documents = store.split(data.split)
    bos_id = first_id(path, tokenizer.bos_id, tokenizer.eos_id)
    score = bits_per_byte(make_loss(model), documents, bos_id, ranks, progress=progress)
    return ScoredModel(score, documents)

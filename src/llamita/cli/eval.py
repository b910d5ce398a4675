"""`llamita eval`: bits per byte of a checkpoint (PyTorch) or a model file (the engine) on held-out text."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import numpy.typing as npt
import tyro

from llamita.cli.command import parse, requires_extra
from llamita.data.batches import Documents
from llamita.data.scoring import EncodedTexts, Score, score_documents
from llamita.data.shards import TokenStore
from llamita.data.sources import read_documents
from llamita.engine import Model, load
from llamita.errors import CheckpointError, ConfigError, SourceError, TokenizerError

ROUND_TRIPS = 32  # documents of a store that a model file's tokenizer must give the same ids for


@dataclasses.dataclass(frozen=True)
class Flags:
    """Bits per byte of a model on held-out text: each document from BOS, non-overlapping rows of the model's context,
    every token counted. A checkpoint is scored with PyTorch, a model file with the engine; the numbers agree."""

    model: tyro.conf.Positional[Path]
    """Checkpoint or run directory, or a model file (.gguf, .bin)."""
    data: tyro.conf.Positional[Annotated[tuple[str, ...], tyro.conf.arg(metavar="DATA...")]]
    """A token store (its held-out split is scored), or text files or folders as `llamita prepare` takes them."""
    split: Literal["val", "train"] = "val"
    """Which split of a token store."""
    tokenizer: Path | None = None
    """tokenizer.bin of a llama2.c model file."""
    separator: str = "<|endoftext|>"
    """What ends a document in text files."""
    split_on: Literal["separator", "blank-lines", "file"] = "separator"
    text_key: str = "text"
    """Where the text is in .jsonl, .csv, .parquet."""
    device: str = "auto"
    """For checkpoints: auto, cpu, cuda or cuda:N."""
    threads: Annotated[int | None, tyro.conf.arg(aliases=["-j"])] = None
    json: bool = False
    """Print one line of JSON."""


def main(argv: list[str]) -> None:
    flags = parse(Flags, argv, "llamita eval")
    if not flags.data:
        raise ConfigError("eval: DATA: expected a token store or text files, found nothing")
    if flags.threads is not None and flags.threads < 1:
        raise ConfigError(f"eval: --threads: expected 1 or more, found {flags.threads}")
    start = time.monotonic()
    score = _score_file(flags) if flags.model.is_file() else _score_checkpoint(flags)
    if not math.isfinite(score.nats):
        raise CheckpointError(f"{flags.model}: its bits per byte are {score.nats}; its weights are damaged or diverged")
    seconds = time.monotonic() - start
    if flags.json:
        values = {**dataclasses.asdict(score), "bits_per_byte": score.bits_per_byte, "seconds": seconds}
        print(json.dumps(values))
        return
    print(f"{score.bits_per_byte:.4f} bits per byte")
    print(
        f"{score.nats_per_token:.4f} nats a token (perplexity {math.exp(min(score.nats_per_token, 700)):.2f}); "
        f"{score.num_documents:,} documents, {score.num_tokens:,} tokens, {score.text_bytes:,} bytes; "
        f"{score.num_tokens / seconds:,.0f} tok/s"
    )


def _score_checkpoint(flags: Flags) -> Score:
    with requires_extra("train"):
        from llamita.checkpoint import load_model, resolve_checkpoint
        from llamita.tokenizer import load_tokenizer
        from llamita.training.distributed import start_ranks
        from llamita.training.evaluate import bits_per_byte
        from llamita.training.loss import SummedLoss

    if flags.tokenizer is not None:
        raise ConfigError("eval: --tokenizer is for llama2.c model files; a checkpoint has its own")
    checkpoint = resolve_checkpoint(flags.model)
    model, tokenizer = load_model(checkpoint), load_tokenizer(checkpoint)
    if tokenizer.vocab_size > model.config.vocab_size:
        raise TokenizerError(
            f"cannot score {checkpoint}: its tokenizer has {tokenizer.vocab_size:,} tokens, "
            f"its model only {model.config.vocab_size:,}"
        )
    store = _open_store(flags)
    if store is not None and store.tokenizer_fingerprint != tokenizer.fingerprint:
        raise _other_tokenizer(flags)
    documents = _texts(flags, tokenizer.encode_batch, tokenizer.eos_id) if store is None else store.split(flags.split)
    bos_id = _border(flags, tokenizer.bos_id, tokenizer.eos_id)
    with start_ranks(flags.device, flags.threads) as ranks, _bar() as advance:

        def show(share: float) -> bool:
            advance(share)
            return True

        score = bits_per_byte(SummedLoss(model.to(ranks.device)), documents, bos_id, ranks, advance=show)
    assert score is not None
    return score


def _score_file(flags: Flags) -> Score:
    model = load(flags.model, tokenizer=flags.tokenizer)
    store = _open_store(flags)
    eos_id = model.info.eos_id if model.info.eos_id >= 0 else None
    bos_id = _border(flags, model.info.bos_id if model.info.bos_id >= 0 else None, eos_id)
    if store is None:
        documents: Documents = _texts(flags, lambda texts: [model.encode(text) for text in texts], eos_id)
    else:
        documents = store.split(flags.split)
        _check_round_trips(flags, model, documents)
    with model.session(num_threads=flags.threads or 0) as session, _bar() as advance:

        def score_row(ids: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
            session.rewind(0)
            return session.score(ids)

        return score_documents(documents, model.info.context_tokens, bos_id, score_row, advance)


def _check_round_trips(flags: Flags, model: Model, documents: Documents) -> None:
    """Raise TokenizerError unless the model file's tokenizer gives a store's documents the ids that the store has."""
    for number in np.unique(np.linspace(0, documents.num_documents - 1, ROUND_TRIPS).astype(int)):
        ids = documents.document(int(number))[:-1]
        if ids.size and (int(ids.max()) >= model.info.vocab_size or model.encode(model.decode(ids)) != ids.tolist()):
            raise _other_tokenizer(flags)


def _other_tokenizer(flags: Flags) -> TokenizerError:
    return TokenizerError(
        f"cannot score {flags.model} on {flags.data[0]}: the store was made with another tokenizer; "
        "give the text itself instead"
    )


def _open_store(flags: Flags) -> TokenStore | None:
    """The token store that DATA is, with documents in the split; None if DATA are texts."""
    if len(flags.data) != 1 or not (Path(flags.data[0]) / "store.json").is_file():
        return None
    store = TokenStore(Path(flags.data[0]))
    if store.split(flags.split).num_documents == 0:
        raise SourceError(f"cannot score on {flags.data[0]}: its {flags.split} split is empty")
    return store


def _texts(flags: Flags, encode_batch: Callable[[list[str]], Any], eos_id: int | None) -> EncodedTexts:
    found = read_documents(flags.data, separator=flags.separator, split_on=flags.split_on, text_key=flags.text_key)
    documents = EncodedTexts([document.text for document in found], encode_batch, _border(flags, eos_id, None))
    if documents.num_documents == 0:
        raise SourceError(f"cannot score on {' '.join(flags.data)}: no text in it")
    return documents


def _border(flags: Flags, first: int | None, second: int | None) -> int:
    """The first id that there is. Raises TokenizerError."""
    for border in (first, second):
        if border is not None:
            return border
    raise TokenizerError(
        f"cannot score {flags.model}: no id for the beginning and the end of a text; a llama2.c model needs --tokenizer"
    )


@contextlib.contextmanager
def _bar() -> Iterator[Callable[[float], None]]:
    """A bar on a terminal, nothing elsewhere."""
    from rich.console import Console
    from rich.progress import Progress

    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("evaluating", total=1.0)
        yield lambda share: progress.update(task, completed=share)

"""`llamita eval`: bits per byte of a checkpoint (PyTorch) or a model file (the engine) on held-out text, and how
varied, repetitive, finished and copied the texts are that it tells (the engine)."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import numpy.typing as npt
import tyro

from llamita.batch_generate import Sample
from llamita.cli.command import parse, requires_extra
from llamita.config import check
from llamita.console import print_table
from llamita.data.batches import ScoredDocuments
from llamita.data.readers import read_documents
from llamita.data.token_store import TokenStore
from llamita.engine import Model, load
from llamita.errors import CheckpointError, ConfigError, SourceError, TokenizerError
from llamita.eval.samples import SampleOptions, SampleReport, generate_and_measure, opened_in_engine
from llamita.eval.scoring import EncodedTexts, Score, score_documents

ROUND_TRIPS = 32  # documents of a store that a model file's tokenizer must give the same ids for


@dataclasses.dataclass(frozen=True)
class Flags:
    """Bits per byte of a model on held-out text: each document from BOS, non-overlapping rows of the model's context,
    every token counted. A checkpoint is scored with PyTorch, a model file with the engine; the numbers agree. With
    --samples the model also tells texts, and is measured by them: how varied they are, how much each repeats itself,
    how many come to an end, and how long their copies of the training text are beside those of held-out text."""

    model: tyro.conf.Positional[Path]
    """Checkpoint or run directory, or a model file (.gguf, .bin)."""
    data: tyro.conf.Positional[Annotated[tuple[str, ...], tyro.conf.arg(metavar="DATA...")]]
    """A token store (its held-out split is scored), or text files or folders as `llamita prepare` takes them."""
    samples: Annotated[int, tyro.conf.arg(aliases=["-n"])] = 0
    """Let the model tell so many texts and measure them; 64 or more make the shares steady."""
    prompts: Path | None = None
    """A file with the beginning of a text a line, used in turn; without it, texts begin with nothing. Only what is new
    is measured."""
    max_new_tokens: int | None = None
    """Cut a text off after so many new tokens; without it, at the context's end."""
    temperature: Annotated[float, tyro.conf.arg(aliases=["-t"])] = 0.8
    top_p: Annotated[float, tyro.conf.arg(aliases=["-p"])] = 0.95
    seed: Annotated[int, tyro.conf.arg(aliases=["-s"])] = 0
    """Of the first text; each further text has the next one: the same seed tells the same texts."""
    training: tuple[str, ...] = ()
    """What the model was trained on, a token store or texts, for the longest copies of it in the samples. Default: the
    train split where DATA is a token store."""
    save_samples: Path | None = None
    """Write the texts to this .jsonl."""
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

    def __post_init__(self) -> None:
        check(len(self.data) > 0, "eval: DATA: expected a token store or text files, found nothing")
        check(self.threads is None or self.threads >= 1, f"eval: --threads: expected 1 or more, found {self.threads}")
        check(self.samples >= 0, f"eval: --samples: expected 0 or more, found {self.samples}")
        check(
            self.max_new_tokens is None or self.max_new_tokens >= 1,
            f"eval: --max-new-tokens: expected 1 or more, found {self.max_new_tokens}",
        )
        check(0 <= self.temperature <= 1000, f"eval: --temperature: expected 0 to 1000, found {self.temperature}")
        check(0 < self.top_p <= 1, f"eval: --top-p: expected a number above 0 and up to 1, found {self.top_p}")
        check(0 <= self.seed < 1 << 63, f"eval: --seed: expected 0 to 2^63 - 1, found {self.seed}")
        check(
            self.samples > 0 or not (self.prompts or self.training or self.save_samples),
            "eval: --prompts, --training and --save-samples are about samples; say how many with --samples",
        )
        check(
            self.samples == 0 or self.split == "val",
            "eval: --samples: copies are compared with held-out text; leave --split train out",
        )


@dataclasses.dataclass(frozen=True)
class _Scored:
    """A score and what it was made of: the documents, as the model's ids."""

    score: Score
    documents: ScoredDocuments


def main(argv: list[str]) -> None:
    flags = parse(Flags, argv, "llamita eval")
    prompts = _prompts(flags)
    start = time.monotonic()
    scored = _score_file(flags) if flags.model.is_file() else _score_checkpoint(flags)
    score = scored.score
    if not math.isfinite(score.nats):
        raise CheckpointError(f"{flags.model}: its bits per byte are {score.nats}; its weights are damaged or diverged")
    seconds = time.monotonic() - start
    told = _tell(flags, prompts, scored.documents) if flags.samples else None
    perplexity = math.exp(min(score.nats_per_token, 700))
    if flags.json:
        values = {
            **dataclasses.asdict(score),
            "bits_per_byte": score.bits_per_byte,
            "nats_per_token": score.nats_per_token,
            "perplexity": perplexity,
            "seconds": seconds,
        }
        print(json.dumps(values if told is None else {**values, "samples": told.values()}))
        return
    print(f"{score.bits_per_byte:.4f} bits per byte")
    print(
        f"{score.nats_per_token:.4f} nats a token (perplexity {perplexity:.2f}); "
        f"{score.num_documents:,} documents, {score.num_tokens:,} tokens, {score.text_bytes:,} bytes; "
        f"{score.num_tokens / seconds:,.0f} tok/s"
    )
    if told is not None:
        print_table(told.rows(), sys.stdout)


def _score_checkpoint(flags: Flags) -> _Scored:
    with requires_extra("train"):
        from llamita.checkpoint import load_model, resolve_checkpoint
        from llamita.eval.bits_per_byte import bits_per_byte
        from llamita.tokenizer import load_tokenizer
        from llamita.training.distributed import start_ranks
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
    store = _open_store(flags.data, flags.split)
    if store is not None and store.tokenizer_fingerprint != tokenizer.fingerprint:
        raise _other_tokenizer(flags, flags.data[0])
    documents = (
        _texts(flags, flags.data, tokenizer.encode_batch, tokenizer.eos_id)
        if store is None
        else store.split(flags.split)
    )
    bos_id = _border(flags, tokenizer.bos_id, tokenizer.eos_id)
    with start_ranks(flags.device, flags.threads) as ranks, _bar("evaluating") as advance:

        def show(share: float) -> bool:
            advance(share)
            return True

        score = bits_per_byte(SummedLoss(model.to(ranks.device)), documents, bos_id, ranks, advance=show)
    assert score is not None
    return _Scored(score, documents)


def _score_file(flags: Flags) -> _Scored:
    model = load(flags.model, tokenizer=flags.tokenizer)
    documents = _documents(flags, model, flags.data, flags.split)
    bos_id = _border(flags, *(each if each >= 0 else None for each in (model.info.bos_id, model.info.eos_id)))
    with model.session(num_threads=flags.threads or 0) as session, _bar("evaluating") as advance:

        def score_row(ids: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
            session.rewind(0)
            return session.score(ids)

        return _Scored(score_documents(documents, model.info.context_tokens, bos_id, score_row, advance), documents)


def _documents(flags: Flags, model: Model, data: tuple[str, ...], split: Literal["val", "train"]) -> ScoredDocuments:
    """Data, a token store or texts, as the ids of the engine's model."""
    store = _open_store(data, split)
    if store is None:
        eos_id = model.info.eos_id if model.info.eos_id >= 0 else None
        return _texts(flags, data, lambda texts: [model.encode(text) for text in texts], eos_id)
    documents = store.split(split)
    _check_round_trips(flags, model, documents, data[0])
    return documents


def _check_round_trips(flags: Flags, model: Model, documents: ScoredDocuments, place: str) -> None:
    """Raise TokenizerError unless the model file's tokenizer gives a store's documents the ids that the store has."""
    for number in np.unique(np.linspace(0, documents.num_documents - 1, ROUND_TRIPS).astype(int)):
        ids = documents.document(int(number))[:-1]
        if ids.size and (int(ids.max()) >= model.info.vocab_size or model.encode(model.decode(ids)) != ids.tolist()):
            raise _other_tokenizer(flags, place)


def _other_tokenizer(flags: Flags, place: str) -> TokenizerError:
    return TokenizerError(
        f"cannot score {flags.model} on {place}: the store was made with another tokenizer; "
        "give the text itself instead"
    )


def _open_store(data: tuple[str, ...], split: Literal["val", "train"]) -> TokenStore | None:
    """The token store that data is, with documents in the split; None if they are texts."""
    if len(data) != 1 or not (Path(data[0]) / "store.json").is_file():
        return None
    store = TokenStore(Path(data[0]))
    if store.split(split).num_documents == 0:
        raise SourceError(f"cannot score on {data[0]}: its {split} split is empty")
    return store


def _texts(
    flags: Flags, data: tuple[str, ...], encode_batch: Callable[[list[str]], Any], eos_id: int | None
) -> EncodedTexts:
    found = read_documents(data, separator=flags.separator, split_on=flags.split_on, text_key=flags.text_key)
    documents = EncodedTexts([document.text for document in found], encode_batch, _border(flags, eos_id, None))
    if documents.num_documents == 0:
        raise SourceError(f"cannot score on {' '.join(data)}: no text in it")
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
def _bar(what: str) -> Iterator[Callable[[float], None]]:
    """A bar on a terminal, nothing elsewhere."""
    from rich.console import Console
    from rich.progress import Progress

    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task(what, total=1.0)
        yield lambda share: progress.update(task, completed=share)


# ---------------------------------------------------------------------- samples


def _prompts(flags: Flags) -> list[str]:
    """The lines of --prompts that are not empty; one empty prompt without it. Raises SourceError."""
    if flags.prompts is None:
        return [""]
    try:
        lines = flags.prompts.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise SourceError(f"--prompts: {flags.prompts}: {error.strerror or error}") from None
    except UnicodeError:
        raise SourceError(f"--prompts: {flags.prompts}: expected UTF-8 text, found something else") from None
    prompts = [line for line in lines if line.strip()]
    if not prompts:
        raise SourceError(f"--prompts: {flags.prompts}: expected the beginning of a text a line, found none")
    return prompts


def _tell(flags: Flags, prompts: list[str], val: ScoredDocuments) -> SampleReport:
    training = flags.training
    if not training and _open_store(flags.data, "val") is not None:
        training = flags.data
    telling = SampleOptions(
        flags.samples,
        tuple(prompts),
        flags.max_new_tokens,
        flags.temperature,
        flags.top_p,
        flags.seed,
        flags.threads or 0,
    )
    with opened_in_engine(flags.model, flags.tokenizer) as model:
        documents = _documents(flags, model, training, "train") if training else None
        with _bar("telling") as advance:
            told = generate_and_measure(model, telling, val, documents, advance)
    if flags.save_samples is not None:
        _save(flags.save_samples, told.samples)
    return told


def _save(path: Path, samples: list[Sample]) -> None:
    lines = [{"text": sample.text.decode("utf-8", "replace"), "ended": sample.ended} for sample in samples]
    try:
        path.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), encoding="utf-8")
    except OSError as error:
        raise SourceError(f"--save-samples: {path}: {error.strerror or error}") from None

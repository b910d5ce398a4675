"""`llamita eval MODEL DATA...`: scores a model on held-out text, and measures its samples."""

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

from llamita.batch_generate import Sample
from llamita.cli.command import parse, requires_extra
from llamita.config import Option, check
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
    """Measure the bits per byte of a model on held-out text, and with --samples the quality of what
    it generates.

    Each document starts at BOS, in non-overlapping rows of the model's context, and every token
    counts. Checkpoints run in PyTorch, model files in the engine; the numbers agree. Samples show
    how varied and repetitive the texts are, how many end, and how much they copy from the training
    text.
    """

    examples = (
        "llamita eval my.gguf tokens",
        "llamita eval runs/my tokens --samples 64",
    )

    model: Annotated[Path, Option(positional=True)]
    """Checkpoint or run directory, or a model file (.gguf, .bin)."""
    data: Annotated[tuple[str, ...], Option("DATA...", positional=True)]
    """Token store, for its held-out split; or text files or folders, as for `llamita prepare`."""
    samples: Annotated[int, Option(short="n", group="sampling")] = 0
    """Generate and measure this many texts; 64 or more give stable numbers."""
    prompts: Annotated[Path | None, Option(group="sampling")] = None
    """File with one prompt per line, used in turn. Only new text is measured. Default: an empty
    prompt."""
    max_new_tokens: Annotated[int | None, Option(group="sampling")] = None
    """Most new tokens in a text. Default: until the context is full."""
    temperature: Annotated[float, Option(short="t", group="sampling")] = 0.8
    """0 always takes the most probable token; higher is more random."""
    top_p: Annotated[float, Option("P", short="p", group="sampling")] = 0.95
    """Nucleus sampling: keep the smallest set of tokens with at least this probability; 1 keeps
    all."""
    seed: Annotated[int, Option(short="s", group="sampling")] = 0
    """Random seed of the first text; each further text uses the next one."""
    training: Annotated[tuple[str, ...], Option("PATH", group="sampling")] = ()
    """Training data, a token store or text, to look for copies in the samples. Default: the train
    split if DATA is a token store."""
    save_samples: Annotated[Path | None, Option(group="sampling")] = None
    """Write the texts to this .jsonl."""
    split: Annotated[Literal["val", "train"], Option()] = "val"
    """Split of a token store to score."""
    tokenizer: Annotated[Path | None, Option(group="model")] = None
    """tokenizer.bin of a llama2.c model file."""
    separator: Annotated[str, Option(group="documents")] = "<|endoftext|>"
    """What ends a document in .txt and .md files."""
    split_on: Annotated[Literal["separator", "blank-lines", "file"], Option("RULE", group="documents")] = "separator"
    """Where documents of .txt and .md files end: separator, blank-lines or file."""
    text_key: Annotated[str, Option("NAME", group="documents")] = "text"
    """Key (.jsonl, .json) or column (.csv, .parquet) that holds the text."""
    device: Annotated[str, Option("DEVICE", group="hardware")] = "auto"
    """Device for checkpoints: auto, cpu, cuda or cuda:N."""
    threads: Annotated[int | None, Option(short="j", group="hardware")] = None
    """CPU threads. Default: chosen by the size of the model and the machine."""
    json: bool = False
    """Print the results as one line of JSON."""

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
    """Raise TokenizerError unless the model file's tokenizer gives a store's documents the ids that
    the store has."""
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
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(None), TaskProgressColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task(what, total=1.0)
        yield lambda share: progress.update(task, completed=share)


# ---------------------------------------------------------------------- samples


def _prompts(flags: Flags) -> list[str]:
    """The lines of --prompts that are not empty; one empty prompt without it. Raises
    SourceError."""
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

"""`llamita eval MODEL DATA...`: scores a model on held-out text, and measures its samples."""

from __future__ import annotations

import dataclasses
import json
import math
import sys
import time
from pathlib import Path
from typing import Annotated, Literal

from llamita.atomic import check_parent
from llamita.batch_generate import SampleOptions
from llamita.cli.command import parse, print_note, requires_extra
from llamita.cli.next_command import print_next
from llamita.cli.progress import progress_bars
from llamita.commands import export_commands, use_commands
from llamita.config import MAX_VALUES, Option, check, check_at_most, check_seed
from llamita.console import print_table
from llamita.data.batches import ScoredDocuments
from llamita.data.utf8_files import Conversions
from llamita.engine import load
from llamita.errors import CheckpointError, ConfigError
from llamita.eval.samples import SampleReport, generate_and_measure, opened_in_engine, read_prompts, save_samples
from llamita.eval.score import Data, ScoredModel, encode_for_model_file, score_model_file
from llamita.sampling import MAX_TOKENS, RuntimeOptions, SamplingParams

MAX_SAMPLES = 1_000_000


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
    """What ends a document in text files, and in the text of a PDF or the like."""
    split_on: Annotated[Literal["separator", "lines", "blank-lines", "file"], Option("RULE", group="documents")] = (
        "separator"
    )
    """Where documents of these files end: separator, lines (each line is one), blank-lines or file."""
    text_key: Annotated[str, Option("NAME", group="documents")] = "text"
    """Key (.jsonl, .json) or column (.csv, .tsv, .parquet) that holds the text."""
    keep_line_ends: Annotated[bool, Option(group="documents")] = False
    """Keep CRLF and CR. Default: every line ends with LF."""
    encoding: Annotated[str | None, Option("NAME", group="documents")] = None
    """Encoding of all text files; utf-8 refuses others. Default: UTF-8, or what each file is
    recognized as."""
    skip_unknown: Annotated[bool, Option(group="documents")] = False
    """Skip files of other types in folders, instead of refusing the first."""
    device: Annotated[str, Option("DEVICE", group="hardware")] = "auto"
    """Device for checkpoints: auto, cpu, cuda, cuda:N or mps."""
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
        check_at_most("eval: --threads", self.threads, MAX_VALUES["threads"])
        check_at_most("eval: --samples", self.samples, MAX_SAMPLES)
        check_at_most("eval: --max-new-tokens", self.max_new_tokens, MAX_TOKENS)
        check(0 <= self.temperature <= 1000, f"eval: --temperature: expected 0 to 1000, found {self.temperature}")
        check(0 < self.top_p <= 1, f"eval: --top-p: expected a number above 0 and up to 1, found {self.top_p}")
        check_seed("eval: --seed", self.seed)
        check(
            self.samples > 0 or not (self.prompts or self.training or self.save_samples),
            "eval: --prompts, --training and --save-samples are about samples; say how many with --samples",
        )
        check(
            self.samples == 0 or self.split == "val",
            "eval: --samples: copies are compared with held-out text; leave --split train out",
        )


def main(argv: list[str]) -> None:
    flags = parse(Flags, argv, "llamita eval")
    if flags.save_samples is not None:
        check_parent(flags.save_samples)
    prompts = ("",) if flags.prompts is None else read_prompts(flags.prompts)
    data = Data(
        flags.data,
        flags.split,
        flags.separator,
        flags.split_on,
        flags.text_key,
        flags.keep_line_ends,
        flags.skip_unknown,
        Conversions(flags.encoding),
    )
    start = time.monotonic()
    scored = _score_model_file(flags, data) if flags.model.is_file() else _score_checkpoint(flags, data)
    score = scored.score
    if not math.isfinite(score.nats):
        raise CheckpointError(f"{flags.model}: its bits per byte are {score.nats}: its weights are corrupted")
    seconds = time.monotonic() - start
    report = _sample(flags, prompts, data, scored.documents) if flags.samples else None
    for line in data.conversions.describe():
        print_note(line)
    perplexity = math.exp(min(score.nats_per_token, 700))
    if flags.json:
        values = {
            **dataclasses.asdict(score),
            "bits_per_byte": score.bits_per_byte,
            "nats_per_token": score.nats_per_token,
            "perplexity": perplexity,
            "seconds": seconds,
        }
        print(json.dumps(values if report is None else {**values, "samples": report.values()}))
        return
    print(f"{score.bits_per_byte:.4f} bits per byte")
    documents = f"{score.num_documents:,} document{'' if score.num_documents == 1 else 's'}"
    print(
        f"{score.nats_per_token:.4f} nats per token (perplexity {perplexity:.2f}); "
        f"{documents}, {score.num_tokens:,} tokens, {score.text_bytes:,} bytes; "
        f"{score.num_tokens / seconds:,.0f} tok/s"
    )
    if counted := data.describe_documents():
        print(counted)
    if report is not None:
        print_table(report.rows(), sys.stdout)
    if flags.model.is_file():
        print_next(*use_commands(flags.model, tokenizer=flags.tokenizer))
    else:
        print_next(*export_commands(flags.model))


def _score_checkpoint(flags: Flags, data: Data) -> ScoredModel:
    with requires_extra("train"):
        from llamita.eval.score_checkpoint import score_checkpoint
        from llamita.training.distributed import start_ranks
        from llamita.training.loss import SummedLoss

    if flags.tokenizer is not None:
        raise ConfigError("eval: --tokenizer is for llama2.c model files; a checkpoint has its own")
    with start_ranks(flags.device, flags.threads) as ranks, progress_bars() as progress:
        return score_checkpoint(flags.model, data, lambda model: SummedLoss(model.to(ranks.device)), ranks, progress)


def _score_model_file(flags: Flags, data: Data) -> ScoredModel:
    model = load(flags.model, tokenizer=flags.tokenizer)
    with progress_bars() as progress:
        return score_model_file(flags.model, model, data, num_threads=flags.threads or 0, progress=progress)


def _sample(flags: Flags, prompts: tuple[str, ...], data: Data, val: ScoredDocuments) -> SampleReport:
    training = flags.training
    if not training and data.open_store() is not None:
        training = flags.data
    options = SampleOptions(
        flags.samples,
        prompts,
        flags.max_new_tokens,
        SamplingParams(flags.temperature, flags.top_p, seed=flags.seed),
        RuntimeOptions(num_threads=flags.threads or 0),
    )
    with opened_in_engine(flags.model, flags.tokenizer) as model:
        documents = None
        if training:
            source = dataclasses.replace(data, paths=training, split="train")
            documents = encode_for_model_file(flags.model, model, source)
        with progress_bars() as progress:
            report = generate_and_measure(model, options, val, documents, progress)
    if flags.save_samples is not None:
        save_samples(flags.save_samples, report.samples)
    return report

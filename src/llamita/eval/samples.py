"""Evaluates a model by the texts it generates: variety, repetition, and copies of its training
text."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from llamita.atomic import atomic_write_bytes
from llamita.batch_generate import Sample, SampleOptions, generate_batch
from llamita.data.batches import Documents
from llamita.data.utf8_files import read_lines
from llamita.engine import Model, load
from llamita.errors import SourceError
from llamita.eval.memorization import Memorization, Overlap, measure_memorization
from llamita.eval.sample_metrics import SampleMetrics, measure_samples
from llamita.progress import Progress, no_progress

MAX_SHOWN_CHARACTERS = 200  # of the longest copy

# Costs that `expected_seconds` assumes, measured on a modest core (docs/experiments.md).
LOAD_SECONDS = 0.5
TOKEN_SECONDS = 2e-4  # sampling one token, independent of model size
WEIGHTS_PER_SECOND = 7.5e9  # one token takes 2 operations per weight
SEARCHED_TOKENS_PER_SECOND = 3e6


@dataclasses.dataclass(frozen=True)
class SampleReport:
    """Samples and their metrics. memorization: None if the training text is not known."""

    options: SampleOptions
    samples: list[Sample]
    metrics: SampleMetrics
    memorization: Memorization | None

    def values(self) -> dict[str, Any]:
        """Everything except the samples, as JSON values."""
        sampling = self.options.sampling
        settings = {name: getattr(sampling, name) for name in ("temperature", "top_p", "seed")}
        settings["max_new_tokens"] = self.options.max_new_tokens
        values = {**dataclasses.asdict(self.metrics), **settings}
        found = self.memorization
        if found is not None:
            values["overlap"] = {
                **_overlap_values(found.longest),
                "median_tokens": found.median_tokens,
                "val": {**_overlap_values(found.val_longest), "median_tokens": found.val_median_tokens},
                "val_known": found.val_known,
                "memorizes": found.memorizes,
            }
        return values

    def rows(self) -> list[tuple[str, str]]:
        """Everything except the samples, as rows of a table: (name, text)."""
        sampling, metrics, found = self.options.sampling, self.metrics, self.memorization
        rows = [
            (
                "samples",
                f"{metrics.num_samples:,} texts of {metrics.mean_tokens:.1f} tokens ({metrics.mean_bytes:.1f} bytes) "
                f"on average; temperature {sampling.temperature:g}, top-p {sampling.top_p:g}, seed {sampling.seed}",
            ),
            ("ended with EOS", f"{metrics.stop_rate:.1%}"),
            ("distinct-1, -2, -3", f"{metrics.distinct_1:.3f}, {metrics.distinct_2:.3f}, {metrics.distinct_3:.3f}"),
            (
                "repetition",
                f"{metrics.repetition:.1%} of 4 words in a row (Chinese: characters) repeat within a text",
            ),
        ]
        if found is None:
            return [*rows, ("copies", "not checked: name the training text with --training")]
        longest, val = found.longest, found.val_longest
        characters = len(longest.text.decode("utf-8", "replace"))
        said = json.dumps(longest.text.decode("utf-8", "replace"), ensure_ascii=False)
        verdict = "yes: copies are clearly longer than those in held-out text" if found.memorizes else "no"
        if found.val_known > 0.5:
            verdict = "unknown: the held-out text is part of the training text"
        return [
            *rows,
            (
                "longest copy",
                f"{longest.length_tokens:,} tokens ({longest.length_bytes:,} bytes, {characters:,} characters), "
                f"median {found.median_tokens:g} per text; "
                f"held-out text: {val.length_tokens:,} tokens, median {found.val_median_tokens:g}",
            ),
            ("text of the copy", said if len(said) <= MAX_SHOWN_CHARACTERS else f"{said[:MAX_SHOWN_CHARACTERS]}…"),
            ("memorizes", verdict),
        ]


@contextlib.contextmanager
def opened_in_engine(path: Path, tokenizer: Path | None = None) -> Iterator[Model]:
    """Open a model file, or export a checkpoint or run directory to a temporary F32 file and open
    that."""
    if path.is_file():
        with load(path, tokenizer=tokenizer) as model:
            yield model
        return
    from llamita.convert.export import export  # needs torch, as checkpoints do

    with tempfile.TemporaryDirectory(prefix="llamita-") as folder:
        export(path, Path(folder) / "model.gguf", "f32", verify=False)
        with load(Path(folder) / "model.gguf") as model:
            yield model


def generate_and_measure(
    model: Model,
    options: SampleOptions,
    val: Documents,
    training: Documents | None,
    progress: Progress = no_progress,
) -> SampleReport:
    """Generate texts and measure them. training: the training documents as ids, to look for copies.

    Progress counts texts. Raises EngineError.
    """
    samples = generate_batch(model, options, progress)
    memorization = None
    if training is not None:
        memorization = measure_memorization([sample.ids for sample in samples], val, training, model.decode)
    return SampleReport(options, samples, measure_samples(samples), memorization)


def expected_seconds(num_parameters: int, num_tokens: int, training_tokens: int) -> float:
    """Estimate the seconds to load a checkpoint, generate num_tokens and search the training tokens
    for copies."""
    generating = num_tokens * (TOKEN_SECONDS + num_parameters / WEIGHTS_PER_SECOND)
    return LOAD_SECONDS + generating + training_tokens / SEARCHED_TOKENS_PER_SECOND


def read_prompts(path: Path) -> tuple[str, ...]:
    """The lines of a file that are not blank. Raises SourceError."""
    prompts = tuple(text for line in read_lines(path) if (text := line.rstrip("\r\n")).strip())
    if not prompts:
        raise SourceError(f"--prompts: {path}: expected one prompt per line, found none")
    return prompts


def save_samples(path: Path, samples: Sequence[Sample]) -> None:
    """Write samples as JSON lines. Raises OutputError."""
    lines = [{"text": sample.text.decode("utf-8", "replace"), "ended": sample.ended} for sample in samples]
    atomic_write_bytes(path, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines).encode())


def _overlap_values(overlap: Overlap) -> dict[str, Any]:
    return {**dataclasses.asdict(overlap), "text": overlap.text.decode("utf-8", "replace")}

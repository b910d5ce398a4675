"""A trained model and its documents to what the texts that it tells say of it: numbers for JSON, rows for people."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from llamita.batch_generate import Sample, generate_batch
from llamita.data.batches import Documents
from llamita.engine import Model, load
from llamita.eval.memorization import Memorization, Overlap, measure_memorization
from llamita.eval.sample_metrics import SampleMetrics, measure_samples

SHOWN_CHARACTERS = 200  # of the longest copy

# What `expected_seconds` reckons with, of a modest core (docs/experiments.md, 2026-11-24).
OPENING_SECONDS = 0.5
TOKEN_SECONDS = 2e-4  # picking one, whatever the size of the model
WEIGHTS_PER_SECOND = 7.5e9  # for one token: 2 operations a weight
SEARCHED_TOKENS_PER_SECOND = 1.5e6


@dataclasses.dataclass(frozen=True)
class SampleOptions:
    """How texts are told: see `telling.generate_batch`. num_threads 0: as many as there are cores."""

    count: int
    prompts: tuple[str, ...] = ("",)
    max_new_tokens: int | None = None
    temperature: float = 0.8
    top_p: float = 0.95
    seed: int = 0
    num_threads: int = 0


@dataclasses.dataclass(frozen=True)
class SampleReport:
    """What the samples say. memorization: None if it is not known what the model was trained on."""

    telling: SampleOptions
    samples: list[Sample]
    metrics: SampleMetrics
    memorization: Memorization | None

    def values(self) -> dict[str, Any]:
        """All of it but the samples themselves, for JSON."""
        settings = {name: getattr(self.telling, name) for name in ("temperature", "top_p", "seed", "max_new_tokens")}
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
        """All of it for people: (name, words)."""
        telling, metrics, found = self.telling, self.metrics, self.memorization
        rows = [
            (
                "samples",
                f"{metrics.num_samples:,} texts of {metrics.mean_tokens:.1f} tokens ({metrics.mean_bytes:.1f} bytes) "
                f"on average; temperature {telling.temperature:g}, top-p {telling.top_p:g}, seed {telling.seed}",
            ),
            ("ended by themselves", f"{metrics.stop_rate:.1%}"),
            ("distinct-1, -2, -3", f"{metrics.distinct_1:.3f}, {metrics.distinct_2:.3f}, {metrics.distinct_3:.3f}"),
            ("repetition", f"{metrics.repetition:.1%} of the sequences of 4 words were in the same text before"),
        ]
        if found is None:
            return [*rows, ("copies", "not looked for: --training says what the model was trained on")]
        longest, val = found.longest, found.val_longest
        said = json.dumps(longest.text.decode("utf-8", "replace"), ensure_ascii=False)
        verdict = "yes: its copies are clearly longer than those in held-out text" if found.memorizes else "no"
        if found.val_known > 0.5:
            verdict = "cannot be said: the held-out text is in the training text"
        return [
            *rows,
            (
                "longest copy",
                f"{longest.length_tokens:,} tokens ({longest.length_bytes:,} bytes), "
                f"median {found.median_tokens:g} a text; "
                f"held-out text: {val.length_tokens:,} tokens, median {found.val_median_tokens:g}",
            ),
            ("it says", said if len(said) <= SHOWN_CHARACTERS else f"{said[:SHOWN_CHARACTERS]}…"),
            ("memorizes", verdict),
        ]


@contextlib.contextmanager
def opened_in_engine(path: Path, tokenizer: Path | None = None) -> Iterator[Model]:
    """A model file, or a checkpoint or run directory as a temporary f32 file, which tells what the checkpoint tells."""
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
    telling: SampleOptions,
    val: Documents,
    training: Documents | None,
    advance: Callable[[float], None] = lambda share: None,
) -> SampleReport:
    """Let the model tell texts, and measure them; with the training documents (ids of the model) their copies too.

    advance(share of the texts) is called after each of them. Raises EngineError.
    """
    samples = generate_batch(
        model,
        telling.count,
        prompts=telling.prompts,
        max_new_tokens=telling.max_new_tokens,
        temperature=telling.temperature,
        top_p=telling.top_p,
        seed=telling.seed,
        num_threads=telling.num_threads,
        advance=advance,
    )
    memorization = None
    if training is not None:
        memorization = measure_memorization([sample.ids for sample in samples], val, training, model.decode)
    return SampleReport(telling, samples, measure_samples(samples), memorization)


def expected_seconds(num_parameters: int, num_tokens: int, training_tokens: int) -> float:
    """About how long opening a checkpoint, telling so many tokens and searching the training tokens takes."""
    telling = num_tokens * (TOKEN_SECONDS + num_parameters / WEIGHTS_PER_SECOND)
    return OPENING_SECONDS + telling + training_tokens / SEARCHED_TOKENS_PER_SECOND


def _overlap_values(overlap: Overlap) -> dict[str, Any]:
    return {**dataclasses.asdict(overlap), "text": overlap.text.decode("utf-8", "replace")}

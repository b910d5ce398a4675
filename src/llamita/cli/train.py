"""`llamita train STORE... --out DIR`: trains a checkpoint, and checks whether it memorizes its
text."""

from __future__ import annotations

import dataclasses
import shlex
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from llamita.cli.command import parse, requires_extra
from llamita.config import Option, TrainConfig
from llamita.console import print_table
from llamita.errors import LlamitaError

if TYPE_CHECKING:
    from rich.console import Console

    from llamita.eval.samples import SampleReport
    from llamita.training.task import Task
    from llamita.training.trainer import TrainResult

STARTED = time.monotonic()
NUM_SAMPLES, SAMPLE_TOKENS = 24, 200  # in the end, by the best checkpoint
SAMPLE_SHARE, SAMPLE_SECONDS = 0.03, 5.0  # of the run, or so many seconds, is not too long for telling them


@dataclasses.dataclass(frozen=True, kw_only=True)
class Train(TrainConfig):
    """Train a Llama on token stores.

    Ctrl-C saves a checkpoint; --resume continues from it. For several processes, start it with
    torchrun.
    """

    examples = (
        "llamita train tokens -o runs/my --minutes 10",
        "llamita train tokens -o runs/my --minutes 10 --resume",
    )

    data: Annotated[tuple[str, ...], Option("STORE[:WEIGHT]...", positional=True)]
    """Token stores from `llamita prepare`, all with the same tokenizer. In one epoch, documents of
    weight 2 are seen twice, of weight 0.5 half of them. Default weight: 1."""
    out: Annotated[Path, Option(short="o")]


def main(argv: list[str]) -> int:
    config = parse(Train, argv, "llamita train")
    with requires_extra("train"):
        from llamita.training.pretraining import train
    from rich.console import Console

    from llamita.report.summary import summary_rows

    result = train(config, started=STARTED, reserved_seconds=_seconds_to_keep)
    if not result.is_first or result.was_finished:
        return 0
    console = Console(stderr=True, highlight=False)
    if result.interrupted:
        words = shlex.join([word for word in argv if word != "--resume"])
        print(f"interrupted at step {result.summary['steps']}, and saved. To go on:", file=sys.stderr)
        print(f"  llamita train {words} --resume", file=sys.stderr)
        return 130
    summary, note = _with_samples(result, config.data, console)
    print_table(summary_rows(summary), console)
    if note:
        console.print(note, style="yellow", markup=False, soft_wrap=True)
    return 0


# ---------------------------------------------------------------------- what the best checkpoint tells in the end


def _seconds_to_keep(task: Task) -> float:
    """Of --minutes, for telling texts and looking for copies, if the run sees its text more than
    once."""
    if task.config.minutes is None or task.val_tokens == 0:
        return 0.0
    seconds = _expected_seconds(task.model_config.num_parameters, task.epoch_tokens)
    return seconds if seconds <= _most_seconds(60 * task.config.minutes) else 0.0


def _expected_seconds(num_parameters: int, training_tokens: int) -> float:
    from llamita.eval.samples import expected_seconds

    return expected_seconds(num_parameters, NUM_SAMPLES * SAMPLE_TOKENS, training_tokens)


def _most_seconds(run_seconds: float) -> float:
    return max(SAMPLE_SECONDS, SAMPLE_SHARE * run_seconds)


def _with_samples(result: TrainResult, stores: tuple[str, ...], console: Console) -> tuple[dict[str, Any], str]:
    """The summary, with what the best checkpoint's texts say where it may know its text by heart,
    and a note: that it does, or why this was not looked for. Writes summary.json and the report
    again. Raises OutputError."""
    from llamita.report.summary import write_report
    from llamita.training.budget import REPEATED_EPOCHS

    summary = result.summary
    if summary["epochs"] < REPEATED_EPOCHS or summary["val"] is None:
        return summary, ""
    later = f"llamita eval {result.run} STORE --samples {NUM_SAMPLES} looks for them"
    try:
        told = _tell(result, stores, console)
    except LlamitaError as error:
        return summary, f"copies of the training text: not looked for: {error}"
    except KeyboardInterrupt:
        return summary, f"copies of the training text: interrupted; {later}"
    if isinstance(told, float):
        return summary, f"copies of the training text: not looked for, as it would take about {told:.0f} s; {later}"
    summary = {**summary, "samples": told.values()}
    write_report(result.run, summary)
    assert told.memorization is not None
    if not told.memorization.memorizes:
        return summary, ""
    return summary, (
        "the model memorizes: its texts copy the training text for much longer than held-out text does; "
        f"more text or fewer epochs would help ({result.run}/report.html shows the longest copy)"
    )


def _tell(result: TrainResult, stores: tuple[str, ...], console: Console) -> SampleReport | float:
    """Texts of the best checkpoint, measured; or, where that is too long for such a run, the
    seconds that it takes."""
    from llamita.data.mixture import open_documents
    from llamita.eval.samples import SampleOptions, generate_and_measure, opened_in_engine

    data, minutes = open_documents(stores), result.config.minutes
    seconds = _expected_seconds(result.summary["num_parameters"], data.train.num_tokens)
    if seconds > _most_seconds(max(result.summary["seconds"], 60 * (minutes or 0.0))):
        return seconds
    telling = SampleOptions(NUM_SAMPLES, max_new_tokens=SAMPLE_TOKENS, num_threads=result.config.threads or 0)
    with console.status("looking for copies of the training text"), opened_in_engine(result.run) as model:
        return generate_and_measure(model, telling, data.val, data.train)

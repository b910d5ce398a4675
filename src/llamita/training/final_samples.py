"""Samples of the best checkpoint after a run that saw its text repeatedly: does it copy the
text?"""

from __future__ import annotations

from typing import Any

from llamita.batch_generate import SampleOptions
from llamita.commands import command_line
from llamita.data.mixture import open_documents
from llamita.errors import LlamitaError
from llamita.eval.samples import SampleReport, expected_seconds, generate_and_measure, opened_in_engine
from llamita.report.summary import write_report
from llamita.sampling import RuntimeOptions
from llamita.training.budget import REPEATED_EPOCHS
from llamita.training.run import TrainResult
from llamita.training.task import Task

NUM_SAMPLES, SAMPLE_TOKENS = 24, 200
MAX_SHARE, MAX_SECONDS = 0.03, 5.0  # of the run's time; the larger of the two is the limit


def reserved_seconds(task: Task) -> float:
    """The part of --minutes that final samples need, for `training.run.run_task`; 0 without
    --minutes, and where they would take too long."""
    if task.config.minutes is None or task.val_tokens == 0:
        return 0.0
    seconds = _expected_seconds(task.model_config.num_parameters, task.epoch_tokens)
    return seconds if seconds <= _max_seconds(60 * task.config.minutes) else 0.0


def add_final_samples(result: TrainResult, stores: tuple[str, ...]) -> tuple[dict[str, Any], str]:
    """Measure the best checkpoint's samples, if the run saw its text REPEATED_EPOCHS times or more.

    Returns the summary with the results, and a note for the user: that the model memorizes, or why
    this was not checked. Writes summary.json and the report again. Raises OutputError.
    """
    summary = result.summary
    if summary["epochs"] < REPEATED_EPOCHS or summary["val"] is None:
        return summary, ""
    later = f"{command_line('eval', result.run, 'STORE', '--samples', NUM_SAMPLES)} checks them"
    try:
        report = _measure(result, stores)
    except LlamitaError as error:
        return summary, f"copies of the training text: not checked: {error}"
    except KeyboardInterrupt:
        return summary, f"copies of the training text: interrupted; {later}"
    if isinstance(report, float):
        return summary, f"copies of the training text: not checked, as it would take about {report:.0f} s; {later}"
    summary = {**summary, "samples": report.values()}
    write_report(result.run, summary)
    assert report.memorization is not None
    if not report.memorization.memorizes:
        return summary, ""
    return summary, (
        "the model memorizes: its samples copy much longer passages of the training text than held-out text does; "
        f"more text or fewer epochs would help ({result.run}/report.html shows the longest copy)"
    )


def _measure(result: TrainResult, stores: tuple[str, ...]) -> SampleReport | float:
    """The samples; or the seconds that they would take, if that is too long for such a run."""
    data, minutes = open_documents(stores), result.config.minutes
    seconds = _expected_seconds(result.summary["num_parameters"], data.train.num_tokens)
    if seconds > _max_seconds(max(result.summary["seconds"], 60 * (minutes or 0.0))):
        return seconds
    runtime = RuntimeOptions(num_threads=result.config.threads or 0)
    options = SampleOptions(NUM_SAMPLES, max_new_tokens=SAMPLE_TOKENS, runtime=runtime)
    with opened_in_engine(result.run) as model:
        return generate_and_measure(model, options, data.val, data.train)


def _expected_seconds(num_parameters: int, training_tokens: int) -> float:
    return expected_seconds(num_parameters, NUM_SAMPLES * SAMPLE_TOKENS, training_tokens)


def _max_seconds(run_seconds: float) -> float:
    return max(MAX_SECONDS, MAX_SHARE * run_seconds)

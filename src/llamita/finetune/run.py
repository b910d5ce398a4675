"""The entry points of fine-tuning: choose the task that a configuration calls for, run it, or preview its data."""

from __future__ import annotations

import time

from rich.console import Console

from llamita.config import FinetuneConfig
from llamita.errors import ConfigError
from llamita.finetune.dataset import open_sft_dataset
from llamita.finetune.dpo import DpoTask, show_pairs
from llamita.finetune.preview import count_lines, preview_examples
from llamita.finetune.sft import FinetuneTask, SftTask, TextTask
from llamita.finetune.splits import is_text
from llamita.training.distributed import Ranks
from llamita.training.trainer import TrainResult, run_task


def finetune(config: FinetuneConfig, *, started: float | None = None) -> TrainResult:
    """Teach config.checkpoint with config.data, or go on with the run in config.out if config.resume.

    started: time.monotonic() when the command began, for --minutes. Raises ConfigError, SourceError (naming the example
    that cannot be used), ChatError (template), TokenizerError, TrainingError, StoreError, CheckpointError, OutputError.
    SIGINT and SIGTERM save a checkpoint and return with `interrupted`.
    """
    started = time.monotonic() if started is None else started
    return run_task(config, lambda ranks, say: open_task(config, ranks), started)


def open_task(config: FinetuneConfig, ranks: Ranks) -> FinetuneTask:
    """The task that config and its data call for."""
    if config.preference is not None:
        return DpoTask(config, ranks)
    return TextTask(config, ranks) if is_text(config.data) else SftTask(config, ranks)


def show_preview(config: FinetuneConfig, console: Console) -> None:
    """Print the first config.preview examples, what is learned and what is masked, and what became of all."""
    if is_text(config.data):
        raise ConfigError("finetune: --preview: of plain text everything is learned; it shows conversations")
    device = "cuda" if config.device.startswith("cuda") else "cpu"
    if config.preference is not None:
        show_pairs(config, device, console)
        return
    dataset = open_sft_dataset(config, device)
    preview_examples(dataset.examples, dataset.base.tokenizer, config.preview, console)
    for name, line in count_lines(dataset.counts):
        console.print(f"{name}: {line}", highlight=False, markup=False)

"""The entry points of fine-tuning: run the task of a configuration, or preview its data."""

from __future__ import annotations

from rich.console import Console

from llamita.config import FinetuneConfig
from llamita.errors import ConfigError
from llamita.finetune.dataset import is_text, open_sft_dataset
from llamita.finetune.dpo import DpoTask
from llamita.finetune.dpo_data import open_dpo_dataset
from llamita.finetune.finetune_task import FinetuneTask
from llamita.finetune.linear_4bit import check_4bit
from llamita.finetune.preview import preview_examples
from llamita.finetune.sft import SftTask, TextTask
from llamita.training.distributed import Ranks, named_device
from llamita.training.run import TrainResult, run_task


def finetune(config: FinetuneConfig, *, started: float | None = None) -> TrainResult:
    """Fine-tune config.checkpoint on config.data, or continue the run in config.out if
    config.resume.

    started: see `run_task`. SIGINT and SIGTERM save a
    checkpoint and return with `interrupted`. Raises ConfigError, SourceError (naming the example),
    ChatError (template), TokenizerError, TrainingError, StoreError, CheckpointError, OutputError.
    """
    return run_task(config, lambda config, ranks, say: open_task(config, ranks), started)


def open_task(config: FinetuneConfig, ranks: Ranks) -> FinetuneTask:
    """The task for the configuration and its kind of data."""
    if config.load_in_4bit:
        check_4bit(ranks.device)
    if config.preference is not None:
        return DpoTask(config, ranks)
    return TextTask(config, ranks) if is_text(config.data) else SftTask(config, ranks)


def show_preview(config: FinetuneConfig, console: Console) -> None:
    """Print the first config.preview examples or pairs, their masked tokens, and counts of the
    whole data."""
    if is_text(config.data):
        raise ConfigError("finetune: --preview shows conversations; every token of plain text is trained on")
    device = named_device(config.device).type
    dataset = open_sft_dataset(config, device) if config.preference is None else open_dpo_dataset(config, device)
    examples = [example for each in dataset.train[: config.preview] for example in each.examples]
    preview_examples(examples, dataset.base.tokenizer, console)
    for line in dataset.counts.describe():
        console.print(line, highlight=False, markup=False)

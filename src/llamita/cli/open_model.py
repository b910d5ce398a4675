"""Opens the model of `llamita run` and `llamita chat`: a model file, or a checkpoint or run directory
as a temporary one."""

from __future__ import annotations

import contextlib
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import llamita
from llamita.cli.command import requires_extra
from llamita.cli.generation import LoadOptions
from llamita.commands import command_line
from llamita.engine import Model
from llamita.errors import ConfigError

# Larger checkpoints are worth an export that is kept: four bytes a weight are written and read.
MAX_TEMPORARY_WEIGHTS: Final = 500_000_000


@contextlib.contextmanager
def opened_model(path: Path | None, load: LoadOptions, command: str) -> Iterator[Model]:
    """Open a model file; None: the packaged one. A folder is exported to a temporary file, exactly.

    Raises ConfigError that names the file or the command to use, if the folder is no checkpoint.
    """
    doing = "chat with" if command == "chat" else command
    later = command == "run"  # a chat waits for its user, while the file may change
    if path is not None and not path.exists():
        hint = "; a text to continue follows -i" if command == "run" else ""
        raise ConfigError(f"cannot {doing} {path}: no such file or folder{hint}")
    if path is None or not path.is_dir():
        with llamita.load(
            path, tokenizer=load.tokenizer, kernels=load.kernels, pre=load.pre, pack_later=later
        ) as model:
            if load.tokenizer is not None or model.info.has_tokenizer or not model.info.format.startswith("llama2.c"):
                yield model
                return
        # as llama2.c does
        with llamita.load(path, tokenizer="tokenizer.bin", kernels=load.kernels, pack_later=later) as model:
            yield model
        return
    _check_folder(path, command, doing)
    with tempfile.TemporaryDirectory(prefix="llamita-") as folder:
        with requires_extra("train"):
            _export(path, Path(folder) / "model.gguf", doing)
        with llamita.load(
            Path(folder) / "model.gguf", tokenizer=load.tokenizer, kernels=load.kernels, pre=load.pre, pack_later=later
        ) as model:
            yield model


def _check_folder(path: Path, command: str, doing: str) -> None:
    """Raise ConfigError for a folder of model files."""
    if (path / "config.json").is_file() or (path / "run.json").is_file() or (path / "store.json").is_file():
        return
    files = sorted(each for pattern in ("*.gguf", "*.bin") for each in path.glob(pattern))
    models = [each for each in files if each.name != "tokenizer.bin" and not each.name.startswith("adapter_model")]
    if models:
        more = f" (and {len(models) - 1:,} others)" if len(models) > 1 else ""
        raise ConfigError(
            f"cannot {doing} {path}: expected a model file, found a folder with {models[0].name}{more}; use "
            + command_line(command, models[0])
        )


def _export(path: Path, out: Path, doing: str) -> None:
    """Write a checkpoint, or an adapter merged into its base, as a model file with the same
    weights."""
    from llamita.checkpoint import load_config
    from llamita.convert.export import export
    from llamita.finetune.merge_lora import plain_checkpoint

    name = f"{path.resolve().name}.gguf"
    keep = command_line("export", path, name)
    with plain_checkpoint(path, out) as checkpoint:
        num_weights = load_config(checkpoint).num_parameters
        if num_weights > MAX_TEMPORARY_WEIGHTS:
            raise ConfigError(
                f"cannot {doing} {path}: expected a model file, or a checkpoint of at most "
                f"{MAX_TEMPORARY_WEIGHTS:,} weights, found {num_weights:,}; write a model file: {keep}"
            )
        export(checkpoint, out, "f32", verify=False)
    print(f"{path}: exported to a temporary file; this keeps one: {keep}", file=sys.stderr)

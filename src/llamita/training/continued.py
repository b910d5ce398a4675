"""What a run that goes on with new documents (`train --from`) takes from an earlier one: the model, its
options, its token stores."""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from llamita.checkpoint import load_config, open_tensors, resolve_checkpoint
from llamita.commands import command_line
from llamita.config import ModelConfig, TrainConfig, flag
from llamita.data.mixture import parse_store
from llamita.data.token_store import TokenStore
from llamita.errors import ConfigError, StoreError
from llamita.json_file import shortened
from llamita.run_directory import finished_summary, recorded_options, remembered_run
from llamita.training.cpu_dtype import inherited_dtype
from llamita.training.defaults import fill_defaults
from llamita.training.distributed import Ranks
from llamita.training.planner import CONTEXTS

# Figures of docs/experiments.md.
REPLAY_SHARE = 0.75  # of the tokens
PEAK_SHARE = 0.25  # of the run's peak learning rates
EPOCHS = 1.0
MAX_FORGETTING = 0.5  # percent

# Options of the run that hold for what follows unless others are given.
INHERITED = (
    "context", "optimizer", "dropout", "weight_decay", "token_noise", "beta1", "beta2", "grad_clip",
    "grad_accum_steps",
)  # fmt: skip
FINGERPRINT_TENSOR = "model.norm.weight"  # small, and any training changes it


@dataclasses.dataclass(frozen=True)
class Base:
    """What to go on with. options: of the run that made it; {} if that is unknown. stores: what it was
    trained on, "PATH" or "PATH:WEIGHT" each. data: the run's fingerprint of them."""

    checkpoint: Path
    model: ModelConfig
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    rows_per_step: int = 0
    stores: tuple[str, ...] = ()
    data: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def fingerprint(self) -> str:
        """sha256 (hex) that identifies the weights."""
        weight = open_tensors(self.checkpoint).read(FINGERPRINT_TENSOR)
        return hashlib.sha256(weight.float().numpy().tobytes()).hexdigest()


def open_base(run: Path) -> Base:
    """Open a finished run, or a checkpoint. Raises ConfigError, CheckpointError, FormatError."""
    recorded = remembered_run(run)
    command = "finetune" if recorded is not None and "checkpoint" in recorded["config"] else "train"
    if recorded is not None and not finished_summary(run):
        resume = command_line(command, "--out", run, "--resume")
        raise ConfigError(f"cannot train from {run}: expected a finished run; finish it first: {resume}")
    checkpoint = resolve_checkpoint(run)
    model = load_config(checkpoint)
    if recorded is None or command == "finetune":
        return Base(checkpoint, model)
    options = recorded_options(TrainConfig, run)
    data = options.get("data", ())
    stores = (*((str(data),) if isinstance(data, Path) else data), *options.get("replay_data", ()))
    return Base(checkpoint, model, options, recorded["rows_per_step"], stores, recorded["data"])


def old_stores(config: TrainConfig, base: Base) -> tuple[str, ...]:
    """The token stores with old text: as given, else those of the run; () if these are gone and nothing
    is to be replayed. Raises ConfigError, StoreError."""
    run = config.from_
    if config.replay_data or config.resume:
        return config.replay_data
    if not base.stores:
        if config.replay != 0:
            raise ConfigError(
                f"cannot train from {run}: it does not say which token stores its model was trained on, so no old text "
                "can be replayed; give some with --replay-data, or forget the old text with --replay 0"
            )
        return ()
    paths = [parse_store(text)[0] for text in base.stores]
    wrong = _find_wrong(paths, base.data)
    if wrong and config.replay != 0:
        raise StoreError(
            f"cannot replay the text of {run}: {wrong}; put it back, give others with --replay-data, or forget the "
            "old text with --replay 0"
        )
    return () if wrong else base.stores


def _find_wrong(paths: Sequence[Path], data: Mapping[str, Any]) -> str:
    """What is wrong with the stores of a run, which recorded `data`; "" if nothing is."""
    lost = next((path for path in paths if not os.path.exists(path)), None)
    if lost is not None:
        return f"{shortened(str(lost), 200)} is gone"
    splits = [TokenStore(path).split("train") for path in paths]
    found = [(split.num_documents, split.num_tokens) for split in splits]
    counts = data.get("stores", [data])
    is_known = isinstance(counts, list) and all(isinstance(each, dict) for each in counts)
    expected = [(each.get("documents"), each.get("tokens")) for each in counts] if is_known else []
    names = shortened(", ".join(map(str, paths)), 200)
    return "" if found == expected else f"{names}: expected the documents that it was trained on, found others"


def fill_from(config: TrainConfig, base: Base, ranks: Ranks) -> TrainConfig:
    """The configuration with the base's shape, steps, optimizer and rates. Raises ConfigError for
    another shape."""
    defaults = {field.name: field.default for field in dataclasses.fields(config)}
    model, options = base.model, base.options
    shape: dict[str, Any] = {
        "layers": model.num_hidden_layers,
        "hidden": model.hidden_size,
        "heads": model.num_attention_heads,
        "kv_heads": model.num_key_value_heads,
        "ffn": model.intermediate_size,
        "tie_embeddings": model.tie_word_embeddings,
        "rope_theta": model.rope_theta,
    }
    for name, expected in shape.items():
        if (given := getattr(config, name)) not in (defaults[name], expected):
            raise ConfigError(
                f"train: {flag(name)}: expected {expected}, as in --from {config.from_}, found {given}; leave it out"
            )
    limit = model.max_position_embeddings
    if config.context is not None and config.context > limit:
        raise ConfigError(
            f"train: --context: expected at most {limit:,}, as in --from {config.from_}, found {config.context:,}"
        )
    inherited = {
        name: options[name] for name in INHERITED if name in options and getattr(config, name) == defaults[name]
    }
    config = dataclasses.replace(
        config, **shape, **inherited, dtype=inherited_dtype(config, options.get("dtype"), ranks)
    )
    if config.context is None:
        config = dataclasses.replace(config, context=min(limit, CONTEXTS[ranks.device.type][1]))
    if config.micro_batch_size is None and base.rows_per_step:
        rows = max(1, base.rows_per_step // (config.grad_accum_steps * ranks.world_size))
        config = dataclasses.replace(config, micro_batch_size=rows)
    if config.minutes is None and config.steps is None and config.epochs is None:
        config = dataclasses.replace(config, epochs=EPOCHS)
    peaks, share = fill_defaults(config, ranks.device, ranks.world_size), PEAK_SHARE
    if options.get("optimizer") == config.optimizer:
        names = ("learning_rate", "embedding_lr")
        peaks = dataclasses.replace(peaks, **{name: options[name] for name in names if options.get(name)})
        share = 1.0 if options.get("from_") else PEAK_SHARE  # it was lowered already
    assert peaks.learning_rate and peaks.embedding_lr
    return dataclasses.replace(
        config,
        learning_rate=config.learning_rate or share * peaks.learning_rate,
        embedding_lr=config.embedding_lr or share * peaks.embedding_lr,
    )

"""Configurations: limits of flags, and which fields a resumed run may change."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

import pytest

from llamita.cli.finetune import Finetune
from llamita.cli.train import Train
from llamita.config import FinetuneConfig, PrepareConfig, RunConfig, TrainConfig, fields_by_resume
from llamita.errors import ConfigError


def make_config(**changes: Any) -> TrainConfig:
    return TrainConfig(data=Path("store"), out=Path("run"), **changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": 5, "minutes": 1.0}, "--minutes and --steps exclude each other"),
        ({"minutes": 0.0}, "--minutes: expected a positive number, found 0"),
        ({"minutes": math.nan}, "--minutes: expected a positive number, found nan"),
        ({"learning_rate": -1.0}, "--learning-rate: expected a positive number"),
        ({"dropout": 1.0}, "--dropout: expected a share between 0 and 1, found 1.0"),
        ({"beta2": 1.5}, "--beta2: expected a share between 0 and 1"),
        (
            {"warmup_fraction": 0.5, "decay_fraction": 0.6},
            "--warmup-fraction 0.5 and --decay-fraction 0.6: expected a sum of at most 1",
        ),
        ({"weight_decay": -0.1}, "--weight-decay: expected 0 or more"),
        ({"token_noise": 1.0}, "--token-noise: expected a share from 0 to below 1, found 1.0"),
        ({"hidden": 64}, "also needs --layers, --heads"),
        ({"seed": -1}, r"train: --seed: expected 0 to 2\^63 - 1, found -1"),
        ({"seed": 2**63}, r"train: --seed: expected 0 to 2\^63 - 1, found 9223372036854775808"),
    ],
)
def test_flags_out_of_range_are_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make_config(**changes)


@pytest.mark.parametrize("name", ["data", "out", "checkpoint", "val", "system"])
def test_names_that_are_not_utf8_are_refused_before_the_work(name: str) -> None:
    """run.json could not hold them."""
    values = {"checkpoint": Path("a"), "data": Path("b"), "out": Path("c")}
    odd = os.fsdecode(b"caf\xe9")
    with pytest.raises(ConfigError, match=rf"finetune: {name}: expected valid UTF-8, found caf\\udce9;"):
        FinetuneConfig(**{**values, name: odd if name == "system" else Path(odd)})  # type: ignore[arg-type]


def test_prepare_refuses_a_name_that_train_would_refuse() -> None:
    with pytest.raises(ConfigError, match=r"prepare: out: expected valid UTF-8, found caf\\udce9;"):
        PrepareConfig(("a.txt",), Path(os.fsdecode(b"caf\xe9")))


@pytest.mark.parametrize(
    ("command", "fields"), [(Train, {"data", "out", "compile"}), (Finetune, {"checkpoint", "val"})]
)
def test_resume_rules_survive_reannotated_fields(command: type[RunConfig], fields: set[str]) -> None:
    assert fields <= set(fields_by_resume(command, "may change"))
    assert {"seed", "steps", "learning_rate"}.isdisjoint(fields_by_resume(command, "may change"))
    assert set(fields_by_resume(command, "may grow")) == {"minutes", "steps", "epochs"}


def test_fsdp_excludes_compile() -> None:
    with pytest.raises(ConfigError, match="--compile on and --fsdp exclude each other"):
        TrainConfig(data=Path("store"), out=Path("run"), fsdp=True, compile="on")
    assert FinetuneConfig(checkpoint=Path("base"), data=Path("x"), out=Path("y"), fsdp=True).fsdp

"""Fixtures and helpers of the fine-tuning tests: small checkpoints, conversations, pairs,
configurations."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from llamita.checkpoint import load_config
from llamita.config import FinetuneConfig
from llamita.data.file_formats import Row
from llamita.finetune.conversations import Conversation, Turn
from llamita.finetune.dpo_data import (
    DpoBatch,
    Pairs,
    Preference,
    read_preference,
    render_pairs,
)
from llamita.finetune.rendering import Renderer
from llamita.run_directory import read_metrics
from llamita.tokenizer import load_tokenizer
from llamita.tokenizer.chat_templates import CHAT_TEMPLATES, replace_chat_template

ANIMALS = {"cat": "meow", "dog": "woof", "cow": "moo", "owl": "hoot", "pig": "oink"}


@pytest.fixture(scope="session")
def chat_base(make_checkpoint: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights, with ChatML as its own chat template."""
    folder = make_checkpoint(tmp_path_factory.mktemp("finetune") / "chat")
    replace_chat_template(folder, "chatml")
    return folder


@pytest.fixture(scope="session")
def plain_base(make_checkpoint: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights, no chat template."""
    return make_checkpoint(tmp_path_factory.mktemp("finetune") / "plain")


@pytest.fixture(scope="session")
def questions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """40 questions and answers of about ten tokens, eight for every animal."""
    path = tmp_path_factory.mktemp("finetune") / "questions.jsonl"
    rows = [
        {"question": f"{number}: the {animal}?", "answer": sound}
        for number in range(8)
        for animal, sound in ANIMALS.items()
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def checkpoint(make_checkpoint: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("sft") / "base", max_position_embeddings=256)


@pytest.fixture(scope="session")
def chat_checkpoint(make_checkpoint: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights, a context of 256 tokens, and ChatML as its own chat template."""
    folder = make_checkpoint(tmp_path_factory.mktemp("dpo") / "base", max_position_embeddings=256)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(settings | {"chat_template": CHAT_TEMPLATES["chatml"]}))
    return folder


def make_config(base: Path, data: Path, out: Path, **changes: Any) -> FinetuneConfig:
    values: dict[str, Any] = {"steps": 6, "eval_interval": 3, "log_interval": 2, "device": "cpu", "threads": 1}
    return FinetuneConfig(checkpoint=base, data=data, out=out, **(values | changes))


def evaluations(run: Path) -> list[dict[str, Any]]:
    return [line for line in read_metrics(run) if line["kind"] == "eval"]


def talk(*texts: str, system: str | None = None, where: str = "a.jsonl:1") -> Conversation:
    turns = [] if system is None else [Turn("system", system)]
    turns += [Turn("assistant", text, True) if n % 2 else Turn("user", text) for n, text in enumerate(texts)]
    return Conversation(tuple(turns), where)


def renderer(checkpoint: Path, context: int | None = None, template: str | None = None) -> Renderer:
    return Renderer(load_tokenizer(checkpoint), load_config(checkpoint), context, template)


WORDS = ["the", "llama", "could", "not", "sleep", "and", "counted", "sheep", "again"]


def made_preferences(number: int, seed: int = 4) -> list[Preference]:
    chosen = random.Random(seed)

    def some() -> str:
        return " ".join(chosen.choices(WORDS, k=chosen.randrange(1, 9)))

    rows = [{"prompt": some(), "chosen": some() + " yes", "rejected": some() + " no"} for _ in range(number)]
    return [read_preference(Row(f"a.jsonl:{n}", row)) for n, row in enumerate(rows, start=1)]


def made_pairs(checkpoint: Path, number: int = 40, seed: int = 4) -> Pairs:
    with Renderer(load_tokenizer(checkpoint), load_config(checkpoint)) as renderer:
        pairs, _ = render_pairs(made_preferences(number, seed), renderer)
    reference = np.random.default_rng(1).normal(-40, 3, (2, number))
    return Pairs(pairs, reference)


def tensors(batch: DpoBatch) -> list[Tensor]:
    return [torch.from_numpy(part) for part in batch if isinstance(part, np.ndarray)]

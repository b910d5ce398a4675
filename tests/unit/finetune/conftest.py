"""Fixtures of fine-tuning: checkpoints with and without a chat template, and short conversations."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from llamita.tokenizer.chat_templates import replace_chat_template

ANIMALS = {"cat": "meow", "dog": "woof", "cow": "moo", "owl": "hoot", "pig": "oink"}


@pytest.fixture(scope="session")
def chat_base(make_checkpoint: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights, and ChatML as its own template, as if it had learned it."""
    folder = make_checkpoint(tmp_path_factory.mktemp("finetune") / "chat")
    replace_chat_template(folder, "chatml")
    return folder


@pytest.fixture(scope="session")
def plain_base(make_checkpoint: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights, no chat template."""
    return make_checkpoint(tmp_path_factory.mktemp("finetune") / "plain")


@pytest.fixture(scope="session")
def questions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """40 questions and answers of some ten tokens each, of every animal eight."""
    path = tmp_path_factory.mktemp("finetune") / "questions.jsonl"
    rows = [
        {"question": f"{number}: the {animal}?", "answer": sound}
        for number in range(8)
        for animal, sound in ANIMALS.items()
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path

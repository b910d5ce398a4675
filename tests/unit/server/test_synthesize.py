"""`synthesize` asks our own server: requests with a schema, answers, errors, keys."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("llguidance")

from llamita.config import SynthesizeConfig
from llamita.errors import LlamitaError, NetworkError
from llamita.synthesize.prompts import write_prompts
from llamita.synthesize.run import synthesize

Client = Any  # conftest.Client: the tests are not a package


def config(client: Client, folder: Path, **changes: Any) -> SynthesizeConfig:
    (folder / "a.md").write_text("# Rice soup\n\nRice soup is cooked for 25 minutes.")
    options = {"sources": (str(folder / "a.md"),), "out": folder / "qa.jsonl", "model": "chatml", "val_fraction": 0.0,
               "endpoint": f"http://127.0.0.1:{client.port}/v1",
               "body": '{"max_tokens": 24, "temperature": 0}'}  # fmt: skip
    return SynthesizeConfig(**{**options, **changes})


def test_a_model_that_knows_nothing(chat_client: Client, tmp_path: Path) -> None:
    """Random weights fill the schema with noise, which is dropped. The answers are kept."""
    prompts = tmp_path / "prompts"
    write_prompts(prompts)
    for kind in ("pairs", "conversation", "refusal"):
        (prompts / "en" / f"{kind}.txt").write_text("{passage}")  # the context is short
    with pytest.raises(LlamitaError, match="no questions: all were dropped, 3 that are not in the form asked for"):
        synthesize(config(chat_client, tmp_path, prompts=prompts))
    answers = (tmp_path / "qa.jsonl.answers").read_text().splitlines()
    assert len(answers) == 5, "a head; pairs and conversations send the same, and each is sent twice"
    assert all('"text": "{' in line and '"prompt_tokens": 79' in line for line in answers[1:])


def test_a_context_that_is_too_short(chat_client: Client, tmp_path: Path) -> None:
    with pytest.raises(LlamitaError, match=r"answered 400: This model's maximum context length is .* messages\.$"):
        synthesize(config(chat_client, tmp_path))


def test_a_model_that_is_not_there(chat_client: Client, tmp_path: Path) -> None:
    with pytest.raises(NetworkError, match=r"answered 404: .*nobody.*; check --endpoint and --model"):
        synthesize(config(chat_client, tmp_path, model="nobody"))

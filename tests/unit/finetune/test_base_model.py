"""The base model: chat templates, control tokens, and tokenizers that do not fit."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from llamita.checkpoint import load_config, load_tensors
from llamita.errors import (
    ChatError,
    ConfigError,
    SourceError,
    TokenizerError,
)
from llamita.finetune.base_model import BaseModel
from llamita.finetune.dataset import open_sft_dataset
from llamita.finetune.run import finetune
from llamita.tokenizer import load_tokenizer
from llamita.tokenizer.chat_templates import CHAT_TEMPLATES
from tests.unit.finetune.conftest import make_config


def test_lora_needs_known_control_tokens(plain_base: Path, questions: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"'<\|im_start\|>' and '<\|im_end\|>'.*was not trained on.*zephyr"):
        finetune(make_config(plain_base, questions, tmp_path / "x", lora=True))
    finetune(make_config(plain_base, questions, tmp_path / "run", lora=True, chat_template="zephyr", steps=1))
    assert load_tokenizer(tmp_path / "run" / "best").chat_template == CHAT_TEMPLATES["zephyr"]


def test_the_fingerprint_is_that_of_the_checkpoint(make_checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    """`llamita new` compares it with that of a run, which has added tokens."""
    base = BaseModel(make_checkpoint(tmp_path / "base", "llama"))
    before = base.fingerprint()
    base.use_template("chatml")
    base.add_end_tokens({3})
    assert base.fingerprint() == before
    assert BaseModel(make_checkpoint(tmp_path / "other", "llama", seed=1)).fingerprint() != before


def test_new_control_tokens_get_rows(make_checkpoint: Callable[..., Path], questions: Path, tmp_path: Path) -> None:
    """A SentencePiece vocabulary without ChatML's marks: added at its end, beginning as the mean of
    the others."""
    folder = make_checkpoint(tmp_path / "base", "llama")
    size = load_config(folder).vocab_size
    with pytest.raises(ChatError, match="no chat template, and no <"):
        finetune(make_config(folder, questions, tmp_path / "x"))
    base = BaseModel(folder)
    base.use_template("chatml")
    model = base.build(0.0, torch.device("cpu"))
    base.fill(model)
    embeddings = model.output_weight.detach()
    assert embeddings.shape[0] == size + 2 == base.tokenizer.vocab_size
    mean = load_tensors(folder)["model.embed_tokens.weight"].mean(dim=0)
    assert torch.allclose(embeddings[size], mean, atol=1e-6) and torch.equal(embeddings[size], embeddings[size + 1])
    with pytest.raises(ConfigError, match="was not trained on"):
        finetune(make_config(folder, questions, tmp_path / "x", lora=True, chat_template="chatml"))
    finetune(make_config(folder, questions, tmp_path / "run", chat_template="chatml"))
    saved, tokenizer = load_config(tmp_path / "run"), load_tokenizer(tmp_path / "run" / "best")
    assert saved.vocab_size == size + 2 and saved.eos_token_ids[-1] == size + 1
    assert tokenizer.encode("<|im_end|>", parse_special=True) == [size + 1]
    assert tokenizer.encode("a llama") == load_tokenizer(folder).encode("a llama")
    roomy = make_checkpoint(tmp_path / "roomy", "llama", vocab_size=size + 4)  # slots that no token uses
    other = BaseModel(roomy)
    other.use_template("chatml")
    assert other.config.vocab_size == size + 4 and other.tokenizer.vocab_size == size + 2


def test_a_template_that_cannot_be_read(chat_base: Path, questions: Path, tmp_path: Path) -> None:
    (tmp_path / "bytes.jinja").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(SourceError, match=r"cannot read chat template .*bytes\.jinja"):
        finetune(make_config(chat_base, questions, tmp_path / "x", chat_template=str(tmp_path / "bytes.jinja")))


def test_a_tokenizer_that_does_not_fit(make_checkpoint: Callable[..., Path], questions: Path, tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "base", vocab_size=300)
    with pytest.raises(TokenizerError, match="does not fit the model: expected at most 300 tokens, found 320"):
        finetune(make_config(folder, questions, tmp_path / "x"))


def test_another_template_with_known_control_tokens(chat_base: Path, questions: Path, tmp_path: Path) -> None:
    (tmp_path / "a.jinja").write_text(CHAT_TEMPLATES["chatml"].replace("{%- for", "{{- '<|im_start|>' -}}{%- for", 1))
    dataset = open_sft_dataset(
        make_config(chat_base, questions, tmp_path / "x", lora=True, chat_template=str(tmp_path / "a.jinja")), "cpu"
    )
    assert dataset.train[0].ids[:2].tolist() == [1, 1]


def test_control_tokens_of_a_template_that_refuses_the_examples(chat_base: Path, tmp_path: Path) -> None:
    """The checkpoint's own template takes no system prompt, which every example has."""
    base, template = tmp_path / "base", CHAT_TEMPLATES["chatml"]
    shutil.copytree(chat_base, base)
    refusal = "{% if messages[0].role == 'system' %}{{ raise_exception('no system prompt') }}{% endif %}"
    (base / "chat_template.jinja").write_text(refusal + template)
    (tmp_path / "a.jinja").write_text(template)
    roles = ("system", "user", "assistant")
    rows = [{"messages": [{"role": role, "content": f"{role} {n}"} for role in roles]} for n in range(8)]
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    choices = {"lora": True, "chat_template": str(tmp_path / "a.jinja")}
    dataset = open_sft_dataset(make_config(base, tmp_path / "data.jsonl", tmp_path / "x", **choices), "cpu")
    assert dataset.train[0].ids[0] == 1


def test_texts_begin_as_in_training(make_checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    """The tokenizer of a model that learns texts begins them with BOS, also if its base's did not."""
    checkpoint = make_checkpoint(tmp_path / "base")
    content = json.loads((checkpoint / "tokenizer.json").read_text())
    (checkpoint / "tokenizer.json").write_text(json.dumps(content | {"post_processor": None}))
    base = BaseModel(checkpoint)
    for begins in (False, True):
        folder = tmp_path / f"{begins}"
        folder.mkdir()
        base.write_tokenizer(folder)
        written = load_tokenizer(folder)
        assert written.begins_with_bos == begins and written.encode("hi") == base.tokenizer.encode("hi")
        base.begin_texts_with_bos()

"""The chat templates give the text of their publishers' code, turn by turn."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from llamita.errors import ConfigError, TokenizerError
from llamita.tokenizer.chat_templates import (
    CHAT_TEMPLATES,
    check_template_fits,
    check_template_name,
    replace_chat_template,
)

sandbox = pytest.importorskip("jinja2.sandbox")

SYSTEM = {"role": "system", "content": "Be brief."}
TURNS = [
    {"role": "user", "content": "Hi "},
    {"role": "assistant", "content": "Hello!"},
    {"role": "user", "content": "Why?"},
]

# Written out from the publishers' descriptions: Llama 2 (llama's generation.py), Llama 3 (its model
# card), ChatML and Zephyr (the published templates).
EXPECTED = {
    ("llama2", False): "<s>[INST] Hi [/INST] Hello! </s><s>[INST] Why? [/INST]",
    ("llama2", True): "<s>[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\nHi [/INST] Hello! </s><s>[INST] Why? [/INST]",
    ("llama3", False): (
        "<s><|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n"
        "Hello!<|eot_id|><|start_header_id|>user<|end_header_id|>\n\nWhy?<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n"
    ),
    ("chatml", True): (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi <|im_end|>\n<|im_start|>assistant\nHello!"
        "<|im_end|>\n<|im_start|>user\nWhy?<|im_end|>\n<|im_start|>assistant\n"
    ),
    ("zephyr", True): (
        "<|system|>\nBe brief.</s>\n<|user|>\nHi </s>\n<|assistant|>\nHello!</s>\n<|user|>\nWhy?</s>\n<|assistant|>\n"
    ),
}


def render(name: str, messages: list[dict[str, str]], prompt: bool = True) -> str:
    def raise_exception(message: str) -> None:
        raise ValueError(message)

    environment = sandbox.ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    environment.globals["raise_exception"] = raise_exception
    template = environment.from_string(CHAT_TEMPLATES[name])
    return template.render(messages=messages, bos_token="<s>", eos_token="</s>", add_generation_prompt=prompt)


@pytest.mark.parametrize(("name", "system"), EXPECTED)
def test_texts(name: str, system: bool) -> None:
    assert render(name, [SYSTEM, *TURNS] if system else TURNS) == EXPECTED[name, system]


@pytest.mark.parametrize("name", CHAT_TEMPLATES)
def test_without_generation_prompt_it_is_a_prefix(name: str) -> None:
    """So that the KV cache of earlier turns can be reused."""
    answered = [*TURNS, {"role": "assistant", "content": "Because."}]
    assert render(name, answered, prompt=False).startswith(render(name, TURNS, prompt=True))


def test_llama2_needs_turns_that_alternate() -> None:
    with pytest.raises(ValueError, match="roles must alternate"):
        render("llama2", [TURNS[0], TURNS[2]])


def test_names_and_fit() -> None:
    for name in (None, "none", *CHAT_TEMPLATES):
        check_template_name(name)
    with pytest.raises(ConfigError, match="expected one of llama2, llama3, chatml, zephyr, none, found 'alpaca'"):
        check_template_name("alpaca")
    check_template_fits("chatml", ["<|im_start|>"], "x")
    check_template_fits("llama2", [], "x")
    with pytest.raises(TokenizerError, match=r"it has no token <\|start_header_id\|>"):
        check_template_fits("llama3", ["<s>"], "x")


def test_replaced_in_a_folder(tmp_path: Path) -> None:
    (tmp_path / "chat_template.jinja").write_text("old")
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": "old", "bos_token": "<s>"}))
    replace_chat_template(tmp_path, "zephyr")
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    assert config == {"bos_token": "<s>", "chat_template": CHAT_TEMPLATES["zephyr"]}
    assert not (tmp_path / "chat_template.jinja").exists()
    replace_chat_template(tmp_path, "none")
    assert json.loads((tmp_path / "tokenizer_config.json").read_text()) == {"bos_token": "<s>"}


@pytest.mark.parametrize("name", CHAT_TEMPLATES)
def test_the_engine_recognizes_them_by_their_text(
    make_checkpoint: Callable[..., Path], engine_build: Path, tmp_path: Path, name: str
) -> None:
    """engine/src/tokenizer/chat_template.c contains their text: change both together."""
    pytest.importorskip("torch")
    from llamita.convert.export import export
    from llamita.engine import Model

    checkpoint = make_checkpoint(tmp_path / "model", "gpt2")
    replace_chat_template(checkpoint, name)
    export(checkpoint, tmp_path / "model.gguf", "f16", verify=False)
    with Model(tmp_path / "model.gguf") as model:
        assert model.chat_family == name

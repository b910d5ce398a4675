"""Our checkpoints in transformers: AutoModelForCausalLM computes our logits, AutoTokenizer gives our ids; and back."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from llamita.checkpoint import load_config, load_model, load_tensors
from llamita.formats.huggingface import config_from_dict
from llamita.formats.tensor_table import check_tensors
from llamita.tokenizer import load_tokenizer, train_bpe
from tests.rope_scalings import LLAMA3, LONGROPE, YARN

pytestmark = pytest.mark.compat

TEXTS = (
    "Once upon a time",
    " two  spaces,\tand a tab\n\n\nthree lines",
    "She wasn't tired; they'll try 1024 times: 3.14!",
    "床前明月光，疑是地上霜。",
    "🦙 says “good night” 🌙 — ¡qué rico!",
    "naïve Ünïcödé 日本語 mixed_with-code(x) = {y: 'z'};",
)
MINIMAL_YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}
CONFIGS = {
    "tied-gqa": {},
    "untied-mha": {"tie_word_embeddings": False, "num_key_value_heads": 4},
    "theta": {"rope_theta": 1e6, "rms_norm_eps": 1e-3},
    "linear": {"rope_scaling": {"rope_type": "linear", "factor": 2.0}},
    "llama3": {"rope_scaling": LLAMA3, "rope_theta": 500000.0},
    "dynamic": {"rope_scaling": {"rope_type": "dynamic", "factor": 4.0}},
    "yarn": {"rope_scaling": YARN},
    "yarn-not-truncated": {"rope_scaling": YARN | {"truncate": False}},
    "longrope": {"rope_scaling": LONGROPE},
    "head-dim": {"head_dim": 32},
    "two-ends": {"eos_token_id": (0, 2), "pad_token_id": 1},
}


@pytest.fixture(scope="module")
def transformers():
    return pytest.importorskip("transformers")


@pytest.mark.parametrize("name", CONFIGS)
def test_model_loads_and_agrees(transformers, make_checkpoint: Callable[..., Path], tmp_path: Path, name: str) -> None:
    checkpoint = make_checkpoint(tmp_path / "model", **CONFIGS[name])
    theirs, info = transformers.AutoModelForCausalLM.from_pretrained(checkpoint, output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys")), info
    ours = load_model(checkpoint)
    ids = torch.randint(0, ours.config.vocab_size, (2, 100), generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        difference = (theirs(ids).logits - ours(ids)).abs().max().item()
    print(f"{name}: largest difference of logits {difference:.2e}")
    assert difference < 1e-4
    assert theirs.generation_config.eos_token_id == theirs.config.eos_token_id


@pytest.mark.parametrize(
    "scaling",
    [
        MINIMAL_YARN, MINIMAL_YARN | {"factor": None}, MINIMAL_YARN | {"mscale": 0.5, "mscale_all_dim": 2.0},
        {key: LONGROPE[key] for key in LONGROPE if key != "attention_factor"}, LONGROPE,
        {"rope_type": "dynamic", "factor": 2.0},
    ],
)  # fmt: skip
@pytest.mark.parametrize("num_tokens", [20, 64, 65, 100])  # of longrope's 64, some texts are short
def test_defaults_of_scalings(
    transformers, make_checkpoint: Callable[..., Path], tmp_path: Path, scaling: dict[str, Any], num_tokens: int
) -> None:
    checkpoint = make_checkpoint(tmp_path / "model")
    content = json.loads((checkpoint / "config.json").read_text()) | {"rope_parameters": scaling, "rope_scaling": None}
    (checkpoint / "config.json").write_text(json.dumps(content))
    theirs, ours = transformers.AutoModelForCausalLM.from_pretrained(checkpoint), load_model(checkpoint)
    ids = torch.randint(0, ours.config.vocab_size, (2, num_tokens), generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        assert (theirs(ids).logits - ours(ids)).abs().max().item() < 1e-4


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_tokenizer_gives_our_ids(transformers, make_checkpoint: Callable[..., Path], tmp_path: Path, kind: str) -> None:
    checkpoint = make_checkpoint(tmp_path / "model", kind)
    theirs, ours = transformers.AutoTokenizer.from_pretrained(checkpoint), load_tokenizer(checkpoint)
    assert (theirs.bos_token_id, theirs.eos_token_id) == (ours.bos_id, ours.eos_id)
    for text in TEXTS:
        ids = ours.encode(text)
        assert theirs.encode(text, add_special_tokens=False) == ids
        assert theirs.decode(ids) == text


@pytest.mark.parametrize("name", CONFIGS)
def test_what_transformers_saves_we_load(
    transformers, make_checkpoint: Callable[..., Path], tmp_path: Path, name: str
) -> None:
    """transformers writes its own spellings: ours must understand them, tensor for tensor."""
    checkpoint = make_checkpoint(tmp_path / "model", **CONFIGS[name])
    transformers.AutoModelForCausalLM.from_pretrained(checkpoint).save_pretrained(tmp_path / "saved")
    config = load_config(tmp_path / "saved")
    assert config == load_config(checkpoint)
    before, after = load_tensors(checkpoint), load_tensors(tmp_path / "saved")
    check_tensors({key: tuple(value.shape) for key, value in after.items()}, config, "huggingface", "saved")
    assert all(torch.equal(before[key], after[key]) for key in before)


def test_defaults_are_those_of_transformers(transformers) -> None:
    """A config.json that leaves things out means what LlamaConfig means by it."""
    theirs = transformers.LlamaConfig()
    ours = config_from_dict(
        {
            "model_type": "llama", "vocab_size": theirs.vocab_size, "hidden_size": theirs.hidden_size,
            "intermediate_size": theirs.intermediate_size, "num_hidden_layers": theirs.num_hidden_layers,
            "num_attention_heads": theirs.num_attention_heads,
        },
        "config.json",
    )  # fmt: skip
    for key in (
        "num_key_value_heads", "max_position_embeddings", "rms_norm_eps", "tie_word_embeddings", "bos_token_id",
        "eos_token_id", "pad_token_id", "head_dim",
    ):  # fmt: skip
        assert getattr(ours, key) == getattr(theirs, key), key


@pytest.mark.parametrize("tokenizer_class", ["GPT2Tokenizer", "Qwen2TokenizerFast"])
@pytest.mark.parametrize(
    "settings",
    [{}, {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>"}, {"additional_special_tokens": ["<|im_end|>"]},
     {"add_prefix_space": True}],
)  # fmt: skip
def test_vocab_and_merges_are_read_as_by_transformers(
    tmp_path: Path, tokenizer_class: str, settings: dict[str, Any]
) -> None:
    if "add_prefix_space" in settings and tokenizer_class != "GPT2Tokenizer":
        pytest.skip("refused")
    model = json.loads(train_bpe(["the cat sat on the mat; they'll try 1024"] * 9, 270).to_json())["model"]
    (tmp_path / "vocab.json").write_text(json.dumps(model["vocab"]))
    (tmp_path / "merges.txt").write_text("#version: 0.2\n" + "\n".join(" ".join(each) for each in model["merges"]))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": tokenizer_class, **settings}))
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    from transformers import AutoTokenizer

    theirs, ours = AutoTokenizer.from_pretrained(tmp_path), load_tokenizer(tmp_path)
    assert (ours.bos_id, ours.eos_id) == (theirs.bos_token_id, theirs.eos_token_id)
    for text in (*TEXTS, "a<|im_end|>b <|endoftext|>", "<|im_start|>user\nHi", "e\u0301"):
        assert ours.encode(text, parse_special=True) == theirs.encode(text, add_special_tokens=False), text

"""config.json in the spellings of transformers 4 and 5; unsupported features are refused by
name."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import pytest

from llamita.config import ModelConfig
from llamita.errors import FormatError
from llamita.formats.huggingface import SMALL_MODELS, config_from_dict, config_to_dict

CONFIG = ModelConfig(
    vocab_size=320, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2, head_dim=16, max_position_embeddings=128, rms_norm_eps=1e-6, rope_theta=5e5,
)  # fmt: skip
LLAMA3 = {
    "rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}  # fmt: skip
LINEAR = {"rope_type": "linear", "factor": 4.0}
DYNAMIC = {"rope_type": "dynamic", "factor": 4.0}
YARN = {
    "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32, "attention_factor": 1.1,
    "beta_fast": 32.0, "beta_slow": 1.0,
}  # fmt: skip
LONGROPE = {
    "rope_type": "longrope", "short_factor": [1.0, 1.1, 1.2, 1.3, 1.4, 1.5, 1.6, 1.7],
    "long_factor": [2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0], "original_max_position_embeddings": 32,
    "attention_factor": 1.2,
}  # fmt: skip


@pytest.mark.parametrize(
    "changes",
    [
        {}, {"tie_word_embeddings": False}, {"eos_token_id": (0, 2)}, {"bos_token_id": None, "eos_token_id": None},
        {"head_dim": 32}, {"rope_scaling": LLAMA3}, {"rope_scaling": LINEAR}, {"pad_token_id": 3},
        {"rope_scaling": DYNAMIC}, {"rope_scaling": YARN}, {"rope_scaling": YARN | {"truncate": False}},
        {"rope_scaling": LONGROPE},
    ],
)  # fmt: skip
def test_written_and_read_again(changes: dict[str, Any]) -> None:
    config = dataclasses.replace(CONFIG, **changes)
    written = json.loads(json.dumps(config_to_dict(config)))
    assert config_from_dict(written, "config.json") == config
    version_4 = {key: value for key, value in written.items() if key != "rope_parameters"}
    version_5 = {key: value for key, value in written.items() if key not in ("rope_theta", "rope_scaling")}
    assert config_from_dict(version_4, "config.json") == config
    assert config_from_dict(version_5, "config.json") == config


def test_parameters_of_scalings_are_completed_as_in_transformers() -> None:
    def scaling(**given: Any) -> dict[str, Any] | None:
        return config_from_dict(plain(rope_scaling=given), "c").rope_scaling

    recommended = 0.1 * math.log(4) + 1
    yarn = YARN | {"attention_factor": recommended}
    assert scaling(rope_type="yarn", factor=4, original_max_position_embeddings=32) == yarn
    assert scaling(type="yarn", factor=None, original_max_position_embeddings=32, beta_fast=None) == yarn
    deep = scaling(rope_type="yarn", factor=4, original_max_position_embeddings=32, mscale=0.5, mscale_all_dim=2.0)
    assert deep is not None
    assert deep["attention_factor"] == (0.05 * math.log(4) + 1) / (0.2 * math.log(4) + 1)
    given = {key: LONGROPE[key] for key in ("rope_type", "short_factor", "long_factor")}
    outside = plain(rope_scaling=given, original_max_position_embeddings=32)
    found = config_from_dict(outside, "c").rope_scaling
    assert found == LONGROPE | {"attention_factor": math.sqrt(1 + math.log(4) / math.log(32))}
    assert scaling(**given) == LONGROPE | {"attention_factor": 1.0, "original_max_position_embeddings": 128}


def plain(**changes: Any) -> dict[str, Any]:
    """A config.json as transformers 4 writes it for a small Llama."""
    values = config_to_dict(CONFIG) | changes
    if "rope_parameters" not in changes:
        del values["rope_parameters"]
    return {key: value for key, value in values.items() if value is not ...}


def test_nulls_and_missing_keys_mean_the_same_as_in_transformers() -> None:
    config = config_from_dict(plain(head_dim=None, num_key_value_heads=None, rope_theta=..., rms_norm_eps=...), "c")
    assert (config.head_dim, config.num_key_value_heads, config.rope_theta, config.rms_norm_eps) == (16, 4, 1e4, 1e-6)
    config = config_from_dict(plain(bos_token_id=..., eos_token_id=..., tie_word_embeddings=...), "c")
    assert (config.bos_token_id, config.eos_token_id, config.tie_word_embeddings) == (1, 2, False)
    assert config_from_dict(plain(bos_token_id=None, eos_token_id=[1, 2]), "c").eos_token_ids == (1, 2)
    assert config_from_dict(plain(pad_token_id=-1), "c").pad_token_id is None
    assert config_from_dict(plain(rope_scaling={"type": "linear", "factor": 2}), "c").rope_scaling == {
        "rope_type": "linear", "factor": 2.0,
    }  # fmt: skip
    assert config_from_dict(plain(rope_scaling={"rope_type": "default"}), "c").rope_scaling is None
    assert config_from_dict(plain(unknown_key=1, pretraining_tp=2, use_cache=True), "c") == CONFIG


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "another architecture": (plain(architectures=["MistralForCausalLM"]), "expected LlamaForCausalLM, found Mistral"),
    "another model type": (
        plain(model_type="qwen3_moe"), "model_type: expected llama, .*Qwen3-0.6B.*found 'qwen3_moe'; it would need exp",
    ),
    "no model type": (plain(model_type=...), "model_type: expected llama, .*, found None"),
    "attention biases": (plain(attention_bias=True), "attention_bias: True is not supported"),
    "mlp biases": (plain(mlp_bias=True), "mlp_bias: True is not supported"),
    "gelu": (plain(hidden_act="gelu"), "hidden_act: gelu is not supported"),
    "quantized": (plain(quantization_config={"bits": 4}), "quantization_config: dict is not supported"),
    "a scaling of tomorrow": (
        plain(rope_scaling={"rope_type": "proportional"}), "rope_type: expected one of .*found 'proportional'",
    ),
    "a list as rope_type": (plain(rope_scaling={"rope_type": ["yarn"]}), "rope_type: expected a string"),
    "yarn without factor": (
        plain(rope_parameters={"rope_type": "yarn", "original_max_position_embeddings": 256}), "factor: expected at",
    ),
    "yarn of no range": (plain(rope_scaling=YARN | {"beta_fast": 1e-5}), "expected beta_fast above beta_slow"),
    "yarn cut by text": (plain(rope_scaling=YARN | {"truncate": "no"}), "truncate: expected true or false"),
    "longrope without lists": (plain(rope_scaling={"rope_type": "longrope"}), "short_factor: expected a list of 8"),
    "longrope of another head": (
        plain(rope_scaling=LONGROPE | {"long_factor": [1.0] * 9}), "long_factor: expected a list of 8 numbers",
    ),
    "longrope of zeros": (plain(rope_scaling=LONGROPE | {"long_factor": [0.0] * 8}), "long_factor: expected positive"),
    "a context of text": (
        plain(rope_scaling=YARN | {"original_max_position_embeddings": "8"}), "original_max_position_embeddings: exp",
    ),
    "half a context": (
        plain(rope_scaling=YARN | {"original_max_position_embeddings": 8.5}), "expected a positive whole number",
    ),
    "partial rotation": (plain(rope_parameters={"partial_rotary_factor": 0.5}), "partial_rotary_factor: 0.5"),
    "llama3 without factor": (
        plain(rope_scaling={k: v for k, v in LLAMA3.items() if k != "factor"}), "'llama3': factor is missing",
    ),
    "llama3 upside down": (plain(rope_scaling=LLAMA3 | {"low_freq_factor": 4.0}), "high_freq_factor: expected more"),
    "factor as text": (plain(rope_scaling=LINEAR | {"factor": "4"}), "factor: expected a positive number"),
    "scaling as text": (plain(rope_scaling="linear"), "rope_scaling: expected an object"),
    "two thetas": (plain(rope_parameters={"rope_type": "default", "rope_theta": 1e6}), "rope_theta: expected the"),
    "two scalings": (
        plain(rope_parameters={"rope_theta": 5e5, **LINEAR}, rope_scaling=LLAMA3), "rope_scaling: expected the same",
    ),
    "no hidden size": (plain(hidden_size=...), "hidden_size is missing"),
    "hidden size as text": (plain(hidden_size="64"), "hidden_size: expected a positive whole number of .*, found '64'"),
    "hidden size true": (plain(hidden_size=True), "hidden_size: expected a positive whole number"),
    "zero layers": (plain(num_hidden_layers=0), "num_hidden_layers: expected a positive whole number of .*, found 0"),
    "absurdly many layers": (plain(num_hidden_layers=2**31 - 1), "num_hidden_layers: expected at most"),
    "huge vocabulary": (plain(vocab_size=10**400), "vocab_size: expected a positive whole number"),
    "heads that do not divide": (plain(head_dim=None, num_attention_heads=5), "expected a divisor of hidden_size"),
    "odd heads": (plain(head_dim=15), "RoPE needs an even number"),
    "kv heads that do not divide": (plain(num_key_value_heads=3), "num_key_value_heads: expected a divisor"),
    "theta 0": (plain(rope_theta=0), "rope_theta: expected a positive number"),
    "theta infinite": (plain(rope_theta=float("inf")), "rope_theta: expected a positive number"),
    "theta huge": (plain(rope_theta=10**400), "rope_theta: expected a positive number"),
    "eps NaN": (plain(rms_norm_eps=float("nan")), "rms_norm_eps: expected a positive number"),
    "eps null": (plain(rms_norm_eps=None), "rms_norm_eps: expected a positive number"),
    "tie as text": (plain(tie_word_embeddings="yes"), "tie_word_embeddings: expected true or false"),
    "bos outside": (plain(bos_token_id=320), r"bos_token_id: expected a token id below vocab_size \(320\)"),
    "eos outside": (plain(eos_token_id=[0, 320]), "eos_token_id: expected a token id below"),
    "eos empty": (plain(eos_token_id=[]), "eos_token_id: expected an id or a list of ids"),
    "eos as text": (plain(eos_token_id="</s>"), "eos_token_id: expected an integer or a list"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_unsupported_features_are_refused_by_name(name: str) -> None:
    values, said = BAD[name]
    with pytest.raises(FormatError, match=said) as caught:
        config_from_dict(values, "model/config.json")
    assert "model/config.json" in str(caught.value) and "\n" not in str(caught.value) and len(str(caught.value)) < 300


@pytest.mark.parametrize("values", [[], None, "llama", 3])
def test_a_config_must_be_an_object(values: Any) -> None:
    with pytest.raises(FormatError, match="expected a JSON object"):
        config_from_dict(values, "config.json")


def test_the_page_lists_the_small_models_that_errors_name() -> None:
    page = (Path(__file__).resolve().parents[3] / "docs" / "formats.md").read_text(encoding="utf-8")
    for languages, names in SMALL_MODELS.items():
        assert f"- {languages}: {names}\n" in page

"""Qwen2, Qwen3 and SmolLM3: what each adds to a Llama, in the network, in training and in files.
tests/parity/test_architectures_stock.py compares them with stock runtimes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from llamita.checkpoint import load_config, load_model, load_tensors
from llamita.config import TrainConfig
from llamita.convert.export import export
from llamita.convert.import_model import import_model
from llamita.convert.inspect import inspect
from llamita.convert.quantize import quantize_file
from llamita.engine import Model
from llamita.errors import CheckpointError, ConfigError, EngineError, FormatError
from llamita.finetune.adapter import load_adapter, save_adapter
from llamita.finetune.adapter_gguf import export_adapter
from llamita.finetune.lora import LoraConfig, add_lora, lora_layers, updates_of
from llamita.finetune.merge_lora import merge_adapter
from llamita.formats.gguf import read_gguf, write_gguf
from llamita.formats.huggingface import config_from_dict, config_to_dict
from llamita.formats.tensor_table import tensor_table
from llamita.model.kv_cache import KVCache
from llamita.model.llama import Llama
from llamita.training.activation_checkpointing import checkpoint_activations
from llamita.training.fused_cpu import can_fuse
from llamita.training.loss import SummedLoss
from llamita.training.optimizer import build_optimizer
from tests.rope_scalings import LLAMA3
from tests.unit.model.conftest import make_config

MakeCheckpoint = Callable[..., Path]
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "qwen2": {"architecture": "qwen2", "attention_bias": True},
    "qwen3": {"architecture": "qwen3", "use_qk_norm": True, "head_dim": 32},
    "smollm3": {"architecture": "smollm3", "no_rope_layers": (3,), "num_hidden_layers": 5},
}


def make_model(**changes: Any) -> Llama:
    """Weights far enough from their first values for each to matter."""
    random = torch.Generator().manual_seed(0)
    model = Llama(make_config(**changes)).initialize(random).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=random), alpha=0.2)
    return model


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_table_network_and_config_agree(name: str, tied: bool) -> None:
    model = make_model(**ARCHITECTURES[name], tie_word_embeddings=tied)
    shapes = {key: tuple(tensor.shape) for key, tensor in model.state_dict().items()}
    table = tensor_table(model.config)
    assert shapes == {spec.huggingface: spec.shape for spec in table}
    assert sum(p.numel() for p in model.parameters()) == model.config.num_parameters
    assert len({spec.gguf for spec in table}) == len(table)
    assert config_from_dict(json.loads(json.dumps(config_to_dict(model.config))), "c") == model.config


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_cache_changes_nothing(name: str) -> None:
    model, ids = make_model(**ARCHITECTURES[name]), torch.arange(24).view(2, 12)
    with torch.no_grad():
        whole, cache = model(ids), KVCache(model.config, 2, 12)
        parts = [model(part, cache) for part in ids.split([5, 1, 6], dim=1)]
    torch.testing.assert_close(torch.cat(parts, dim=1), whole, atol=1e-5, rtol=1e-4)


def test_without_rope_the_order_of_the_past_does_not_matter() -> None:
    ids, mixed = torch.tensor([[1, 2, 3, 4, 5]]), torch.tensor([[3, 1, 4, 2, 5]])
    for layers, same in (((0,), True), ((), False)):
        model = make_model(architecture="smollm3", no_rope_layers=layers, num_hidden_layers=1)
        with torch.no_grad():
            assert torch.allclose(model(ids)[0, -1], model(mixed)[0, -1], atol=1e-5) == same


def test_norms_take_the_size_from_queries_and_keys() -> None:
    model, ids = make_model(**ARCHITECTURES["qwen3"]), torch.arange(12).view(1, 12)
    with torch.no_grad():
        before = model(ids)
        for layer in model.model.layers:
            layer.self_attn.q_proj.weight.mul_(3)
            layer.self_attn.k_proj.weight.mul_(0.5)
        torch.testing.assert_close(model(ids), before, atol=1e-4, rtol=1e-4)
        model.model.layers[0].self_attn.q_norm.weight.mul_(2)
        assert not torch.allclose(model(ids), before, atol=1e-3)


def test_a_bias_of_values_passes_attention_unchanged() -> None:
    """The weights of attention sum to 1."""
    model, x = make_model(**ARCHITECTURES["qwen2"]), torch.randn(1, 7, 32)
    attention, (cos, sin) = model.model.layers[0].self_attn, model.rope_rows(0, 7)
    with torch.no_grad():
        bias = attention.v_proj.bias.clone()
        whole = attention(x, cos, sin, None, None)
        attention.v_proj.bias.zero_()
        added = attention.o_proj(bias.view(2, 8).repeat_interleave(2, 0).flatten())
        torch.testing.assert_close(whole, attention(x, cos, sin, None, None) + added, atol=1e-5, rtol=1e-4)
        attention.q_proj.bias.zero_()
        assert not torch.allclose(whole, attention(x, cos, sin, None, None) + added, atol=1e-3)


def test_biases_begin_at_zero() -> None:
    model = Llama(make_config(**ARCHITECTURES["qwen2"])).initialize()
    biases = [p for name, p in model.named_parameters() if name.endswith(".bias")]
    assert len(biases) == 9 and all(not bias.any() for bias in biases)


# ---------------------------------------------------------------- training


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_plain_passes_train_every_weight(name: str) -> None:
    """The fused passes do not know these networks; recomputed layers give the same gradients."""
    ids, results = torch.arange(24).view(2, 12), []
    for recomputes in (False, True):
        model = make_model(**ARCHITECTURES[name]).train()
        assert not can_fuse(model)
        if recomputes:
            checkpoint_activations(model)
        loss = SummedLoss(model)(ids, ids.flip(0))
        loss.backward()
        results.append({key: parameter.grad for key, parameter in model.named_parameters()})
    for key, gradient in results[0].items():
        assert gradient.abs().max() > 1e-6, key
        torch.testing.assert_close(results[1][key], gradient, msg=key)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_biases_and_norms_do_not_decay(name: str, optimizer: str) -> None:
    model = make_model(**ARCHITECTURES[name])
    config = TrainConfig(
        data=Path("store"), out=Path("run"), optimizer=optimizer, learning_rate=1e-2, beta2=0.95, weight_decay=0.1
    )
    decays = {
        id(parameter): group["weight_decay"]
        for group in build_optimizer(model, config).groups()
        for parameter in group["params"]
    }
    for key, parameter in model.named_parameters():
        is_matrix = parameter.ndim == 2 and "embed_tokens" not in key
        assert decays[id(parameter)] == (0.1 if is_matrix else 0.0), key


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_lora_keeps_biases_and_merges(make_checkpoint: MakeCheckpoint, tmp_path: Path, name: str) -> None:
    base, ids = make_checkpoint(tmp_path / "base", **ARCHITECTURES[name]), torch.arange(40).view(1, 40)
    model = add_lora(load_model(base), LoraConfig(rank=4), torch.Generator().manual_seed(1)).eval()
    with torch.no_grad():
        assert torch.equal(model(ids), load_model(base).eval()(ids))
        for _, layer in lora_layers(model):
            layer.lora_B.weight.normal_(0, 0.05, generator=torch.Generator().manual_seed(2))
    assert {key for key, p in model.named_parameters() if p.requires_grad} == {
        key for key in model.state_dict() if "lora_" in key
    }
    save_adapter(tmp_path / "adapter", updates_of(model), LoraConfig(rank=4), str(base), base)
    merge_adapter(base, tmp_path / "adapter", tmp_path / "merged")
    with torch.no_grad():
        torch.testing.assert_close(load_model(tmp_path / "merged").eval()(ids), model(ids), atol=2e-3, rtol=1e-3)
    export_adapter(tmp_path / "adapter", base, tmp_path / "adapter.gguf")
    file = read_gguf(tmp_path / "adapter.gguf")
    assert file.metadata["general.architecture"] == name
    update, rows = updates_of(model)["model.layers.0.self_attn.q_proj"].b, file.dequantize("blk.0.attn_q.weight.lora_b")
    assert bool((torch.from_numpy(rows) == update).all()) == (name != "smollm3"), "Qwen's rows stay, SmolLM3's move"


def test_an_adapter_cannot_replace_a_bias(make_checkpoint: MakeCheckpoint, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    base = make_checkpoint(tmp_path / "base", **ARCHITECTURES["qwen2"])
    model = add_lora(load_model(base), LoraConfig(rank=4))
    save_adapter(tmp_path / "adapter", updates_of(model), LoraConfig(rank=4), str(base), base)
    weights = tmp_path / "adapter" / "adapter_model.safetensors"
    bias = {"base_model.model.model.layers.0.self_attn.q_proj.bias.weight": torch.ones(64)}
    save_file(load_file(weights) | bias, weights)
    with pytest.raises(CheckpointError, match="expected a linear layer"):
        load_adapter(tmp_path / "adapter", load_config(base))


# ---------------------------------------------------------------- files


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_gguf_and_back(make_checkpoint: MakeCheckpoint, engine_build: Path, tmp_path: Path, name: str) -> None:
    """Bit-equal, with the keys and names of the architecture; also quantized, inspected and open in
    the engine, whose logits export and import compare."""
    checkpoint = make_checkpoint(tmp_path / "model", **ARCHITECTURES[name], eos_token_id=(0, 2))
    assert export(checkpoint, tmp_path / "model.gguf", "f32").verification is not None
    file = read_gguf(tmp_path / "model.gguf")
    assert file.metadata["general.architecture"] == name
    assert f"{name}.context_length" in file.metadata and not any(key.startswith("llama.") for key in file.metadata)
    names = {each.split(".", 2)[-1] for each in file.tensors if each.startswith("blk.")}
    assert ("attn_v.bias" in names, "attn_q_norm.weight" in names) == (name == "qwen2", name == "qwen3")
    assert import_model(tmp_path / "model.gguf", tmp_path / "back").verification is not None
    assert load_config(tmp_path / "back") == load_config(checkpoint)
    before, after = load_tensors(checkpoint), load_tensors(tmp_path / "back")
    assert before.keys() == after.keys() and all(torch.equal(before[each], after[each]) for each in before)
    quantize_file(tmp_path / "model.gguf", tmp_path / "small.gguf", "q8_0")
    kinds = {each.type for each in read_gguf(tmp_path / "small.gguf").tensors.values() if len(each.shape) == 1}
    assert kinds == {"F32"}
    with Model(tmp_path / "small.gguf") as model:
        assert model.info.architecture == name and model.info.weight_type == "Q8_0"
        assert model.info.num_parameters == load_config(checkpoint).num_parameters
    shown = dict(inspect(checkpoint).properties)
    assert shown["architecture"] == name and shown["no_rope_layers"] == ("3" if name == "smollm3" else "none")


def test_errors_name_the_files_keys(make_checkpoint: MakeCheckpoint, engine_build: Path, tmp_path: Path) -> None:
    """In the importer and in the engine."""
    checkpoint = make_checkpoint(tmp_path / "model", **ARCHITECTURES["qwen3"])
    export(checkpoint, tmp_path / "model.gguf", "f32", verify=False)
    file = read_gguf(tmp_path / "model.gguf")
    infos = [(each.name, each.type, each.shape) for each in file.tensors.values()]
    for changes, message in (
        ({"qwen3.attention.scale": 2.0}, r"qwen3\.attention\.scale: expected 0, found 2"),
        ({"qwen3.block_count": 0}, r"qwen3\.block_count: expected 1 to"),
        (
            {"qwen3.context_length": ..., "llama.context_length": 64},
            r"qwen3\.context_length is missing.* a Qwen3 model",
        ),
        ({"qwen3.attention.sliding_window": 8}, r"qwen3\.attention\.sliding_window: expected 0 or at least"),
        ({"general.architecture": "qwen2"}, r"qwen2\.\w+\S* is missing"),
        ({"general.architecture": "qwen35"}, "expected llama, qwen2, qwen3 or smollm3.*, found qwen35"),
    ):
        path = tmp_path / "bad.gguf"
        metadata = {key: value for key, value in (file.metadata | changes).items() if value is not ...}
        write_gguf(path, metadata, infos, [file.data(each) for each, _, _ in infos])
        with pytest.raises(FormatError, match=message):
            import_model(path, tmp_path / "out", verify=False)
        with pytest.raises(EngineError, match=message):
            Model(path)


def test_what_other_formats_cannot_express(make_checkpoint: MakeCheckpoint, tmp_path: Path) -> None:
    odd = make_checkpoint(tmp_path / "odd", architecture="smollm3", no_rope_layers=(0,))
    with pytest.raises(FormatError, match=r"no_rope_layers: expected every layer .* multiple of 4, found \(0,\); GGUF"):
        export(odd, tmp_path / "odd.gguf", "f32")
    with pytest.raises(FormatError, match=r"llama2.c's .bin: architecture: .* assume llama, the model has smollm3"):
        export(odd, tmp_path / "odd.bin")
    scaled = make_checkpoint(tmp_path / "scaled", **ARCHITECTURES["qwen3"], rope_scaling=LLAMA3)
    with pytest.raises(FormatError, match="rope_scaling: expected none, linear or yarn for qwen3, found llama3"):
        export(scaled, tmp_path / "scaled.gguf", "f32")


BAD_CONFIGS: dict[str, tuple[dict[str, Any], str]] = {
    "an unknown one": ({"architecture": "gpt2"}, "architecture: expected one of llama, qwen2, .*, found 'gpt2'"),
    "a Llama with biases": ({"attention_bias": True}, "attention_bias: expected False for llama, found True"),
    "a Qwen2 without": ({"architecture": "qwen2"}, "attention_bias: expected True for qwen2, found False"),
    "a Qwen3 without norms": ({"architecture": "qwen3"}, "use_qk_norm: expected True for qwen3, found False"),
    "a Llama without RoPE": ({"no_rope_layers": (1,)}, "no_rope_layers: expected none for llama, found 1"),
    "a layer too many": ({"architecture": "smollm3", "no_rope_layers": (3,)}, "increasing indices below 3, found"),
    "a layer twice": ({"architecture": "smollm3", "no_rope_layers": (1, 1)}, "increasing indices below 3, found"),
}


@pytest.mark.parametrize("name", BAD_CONFIGS)
def test_contradictions_are_refused(name: str) -> None:
    changes, message = BAD_CONFIGS[name]
    with pytest.raises(ConfigError, match=message):
        make_config(**changes)


def written(name: str, **changes: Any) -> dict[str, Any]:
    values = config_to_dict(make_config(**ARCHITECTURES[name])) | changes
    return {key: value for key, value in values.items() if value is not ...}


SLIDING = {"use_sliding_window": True, "sliding_window": 16}
BAD_FILES: dict[str, tuple[dict[str, Any], str]] = {
    "windows": (written("qwen2", **SLIDING, layer_types=..., max_window_layers=2), "sliding_window: expected none, or"),
    "a window in a list": (
        written("qwen3", **SLIDING, layer_types=["full_attention", "sliding_attention", "full_attention"]),
        r"sliding_window: expected none, or at least .* \(40\), found 16",
    ),
    "windows without RoPE": (written("smollm3", **SLIDING, layer_types=...), "sliding_window: expected none, or"),
    "another kind of layer": (
        written("qwen3", layer_types=["linear_attention"] * 3), "layer_types: expected full_attention .* 'linear_att",
    ),
    "too few kinds": (written("qwen3", layer_types=["full_attention"]), "for each of 3 layers, found '1 of them'"),
    "too few layers": (written("smollm3", no_rope_layers=[1]), "no_rope_layers: expected a number for each of 5"),
    "not 0 or 1": (written("smollm3", no_rope_layers=[1, 1, 1, 3, 1]), "no_rope_layers"),
    "biases": (written("qwen3", attention_bias=True), "attention_bias: True is not supported"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_FILES)
def test_what_is_not_supported_is_refused(name: str) -> None:
    content, message = BAD_FILES[name]
    with pytest.raises(FormatError, match=message):
        config_from_dict(content, "config.json")


def test_unused_windows_and_missing_keys_mean_what_they_mean_in_transformers() -> None:
    for changes in (
        {"sliding_window": 16}, SLIDING | {"layer_types": ..., "max_window_layers": 3},
        SLIDING | {"layer_types": ["full_attention"] * 3}, SLIDING | {"sliding_window": 40, "layer_types": ...},
    ):  # fmt: skip
        assert config_from_dict(written("qwen2", **changes), "c") == make_config(**ARCHITECTURES["qwen2"])
    missing = dict.fromkeys(("rope_theta", "rope_parameters", "bos_token_id", "eos_token_id", "head_dim"), ...)
    found = config_from_dict(written("qwen2", **missing), "c")
    assert (found.rope_theta, found.bos_token_id, found.eos_token_id) == (1e4, None, None)
    assert config_from_dict(written("qwen3", **missing), "c").head_dim == 128
    del missing["bos_token_id"], missing["eos_token_id"]
    smollm = config_from_dict(written("smollm3", **missing, no_rope_layers=..., layer_types=...), "c")
    assert (smollm.rope_theta, smollm.no_rope_layers) == (2e6, (3,))
    every = config_from_dict(written("smollm3", no_rope_layers=..., layer_types=..., no_rope_layer_interval=2), "c")
    assert every.no_rope_layers == (1, 3)

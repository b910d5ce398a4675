"""Our adapters in peft and in llama.cpp, and peft's here: the same logits everywhere."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

import llamita
from llamita.checkpoint import load_config, load_model
from llamita.convert.export import export
from llamita.errors import CheckpointError
from llamita.finetune.adapter import load_adapter, save_adapter
from llamita.finetune.adapter_gguf import export_adapter
from llamita.finetune.lora import LINEAR_LAYERS, LoraConfig, add_lora, attach_updates, lora_layers, updates_of
from llamita.finetune.merge_lora import merge_adapter

pytestmark = pytest.mark.compat

IDS = torch.randint(3, 300, (2, 48), generator=torch.Generator().manual_seed(3))
CASES = {
    "all-layers": (LoraConfig(rank=4, alpha=6.0), {}),
    "rslora": (LoraConfig(rank=4, alpha=3.0, rslora=True), {}),
    "attention-untied": (LoraConfig(rank=3, layers=("q_proj", "v_proj")), {"tie_word_embeddings": False}),
    "every-head-its-own": (LoraConfig(rank=2), {"num_key_value_heads": 4}),
}


def make_adapter(make_checkpoint: Callable[..., Path], folder: Path, name: str):
    """(the checkpoint, the adapter's folder, the network with it)"""
    config, shape = CASES[name]
    checkpoint = make_checkpoint(folder / "base", **shape)
    generator = torch.Generator().manual_seed(1)
    model = add_lora(load_model(checkpoint), config, generator).eval()
    with torch.no_grad():
        for _, layer in lora_layers(model):
            layer.lora_B.weight.normal_(0, 0.1, generator=generator)
    save_adapter(folder / "adapter", updates_of(model), config, str(checkpoint), checkpoint)
    return checkpoint, folder / "adapter", model


@pytest.mark.parametrize("name", CASES)
def test_peft_computes_with_ours(make_checkpoint: Callable[..., Path], tmp_path: Path, name: str) -> None:
    transformers, peft = pytest.importorskip("transformers"), pytest.importorskip("peft")
    checkpoint, adapter, model = make_adapter(make_checkpoint, tmp_path, name)
    base = transformers.AutoModelForCausalLM.from_pretrained(checkpoint)
    theirs = peft.PeftModel.from_pretrained(base, adapter)
    with torch.inference_mode():
        difference = (theirs(IDS).logits - model(IDS)).abs().max().item()
        changed = (load_model(checkpoint)(IDS) - model(IDS)).abs().max().item()
    print(f"{name}: peft - ours {difference:.2e}; the adapter changes {changed:.2f}")
    assert difference < 1e-5 and changed > 0.1


@pytest.mark.parametrize("rslora", [False, True])
def test_we_compute_with_pefts(make_checkpoint: Callable[..., Path], tmp_path: Path, rslora: bool) -> None:
    transformers, peft = pytest.importorskip("transformers"), pytest.importorskip("peft")
    checkpoint = make_checkpoint(tmp_path / "base")
    settings = peft.LoraConfig(
        r=4, lora_alpha=6, use_rslora=rslora, target_modules=list(LINEAR_LAYERS), task_type="CAUSAL_LM",
        init_lora_weights=False, rank_pattern={"v_proj": 2}, alpha_pattern={"model.layers.1.mlp.up_proj": 9},
    )  # fmt: skip
    torch.manual_seed(5)
    theirs = peft.get_peft_model(transformers.AutoModelForCausalLM.from_pretrained(checkpoint), settings).eval()
    theirs.save_pretrained(tmp_path / "adapter")
    loaded = load_adapter(tmp_path / "adapter", load_config(checkpoint))
    ours = attach_updates(load_model(checkpoint), loaded.updates).eval()
    merge_adapter(checkpoint, tmp_path / "adapter", tmp_path / "merged")
    with torch.inference_mode():
        expected = theirs(IDS).logits
        scale = expected.abs().max()  # random weights make wild logits: 1e-5 of the largest
        assert (ours(IDS) - expected).abs().max() < 1e-5 * scale
        assert (load_model(tmp_path / "merged")(IDS) - expected).abs().max() < 1e-5 * scale


# What else an adapter of PEFT can train: settings of LoraConfig.
BEYOND_LAYERS: dict[str, dict[str, object]] = {
    "embedding and head": {"modules_to_save": ["embed_tokens", "lm_head"]},
    "embedding": {"modules_to_save": ["embed_tokens"]},
    "head": {"modules_to_save": ["lm_head"]},
    "kept tied": {"modules_to_save": ["embed_tokens"], "ensure_weight_tying": True},
    "norms": {"modules_to_save": ["norm", "input_layernorm"]},
    "mlp": {"modules_to_save": ["mlp"]},
    "LoRA of both": {"target_modules": ["q_proj", "embed_tokens", "lm_head"], "use_rslora": True},
    "LoRA of the embedding": {"target_modules": ["q_proj", "embed_tokens"]},
    "LoRA, kept tied": {"target_modules": ["q_proj", "embed_tokens"], "ensure_weight_tying": True},
    "tokens": {"trainable_token_indices": [5, 9]},
    "tokens, kept tied": {"trainable_token_indices": [5, 9], "ensure_weight_tying": True},
    "tokens of each": {"trainable_token_indices": {"embed_tokens": [5, 9], "lm_head": [7]}},
    "layers only": {},
}


@pytest.mark.parametrize("num_new_tokens", [0, 3])
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("name", BEYOND_LAYERS)
@pytest.mark.filterwarnings("ignore")
def test_merging_what_peft_trains_beyond_layers(
    make_checkpoint: Callable[..., Path], tmp_path: Path, name: str, tied: bool, num_new_tokens: int
) -> None:
    """Also with rows added to the vocabulary: the logits of the merged checkpoint are PEFT's."""
    transformers, peft = pytest.importorskip("transformers"), pytest.importorskip("peft")
    checkpoint = make_checkpoint(tmp_path / "base", tie_word_embeddings=tied)
    base = transformers.AutoModelForCausalLM.from_pretrained(checkpoint)
    if num_new_tokens:
        base.resize_token_embeddings(base.config.vocab_size + num_new_tokens)
    settings = peft.LoraConfig(
        r=4, lora_alpha=6, init_lora_weights=False, task_type="CAUSAL_LM",
        **({"target_modules": ["q_proj"]} | BEYOND_LAYERS[name]),
    )  # fmt: skip
    torch.manual_seed(5)
    theirs = peft.get_peft_model(base, settings).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            if parameter.requires_grad:
                parameter += 0.1 * torch.randn(parameter.shape)
    theirs.save_pretrained(tmp_path / "adapter")
    if num_new_tokens and not tied and name in ("LoRA of the embedding", "LoRA, kept tied"):
        with pytest.raises(CheckpointError, match=r"as many rows in lm_head .*save_embedding_layers"):
            merge_adapter(checkpoint, tmp_path / "adapter", tmp_path / "merged")
        return
    report = merge_adapter(checkpoint, tmp_path / "adapter", tmp_path / "merged")
    ours, stock = (
        load_model(tmp_path / "merged"),
        transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "merged"),
    )
    with torch.inference_mode():
        expected = theirs(IDS).logits
        scale = expected.abs().max()
        assert (load_model(checkpoint)(IDS) - expected[..., : load_config(checkpoint).vocab_size]).abs().max() > 0.01
        assert expected.shape[-1] == load_config(checkpoint).vocab_size + num_new_tokens
        assert (ours(IDS) - expected).abs().max() < 1e-5 * scale
        assert (stock(IDS).logits - expected).abs().max() < 1e-5 * scale
    assert report.num_new_tokens == num_new_tokens and report.config == load_config(tmp_path / "merged")
    if name not in ("layers only", "norms", "mlp"):
        with pytest.raises(CheckpointError, match="merge the adapter: llamita merge CHECKPOINT"):
            export_adapter(tmp_path / "adapter", checkpoint, tmp_path / "adapter.gguf")


@pytest.mark.parametrize("init", ["gaussian", "orthogonal", "mica", "eva", "pissa", "pissa_niter_4", "olora"])
def test_initializations_of_peft(make_checkpoint: Callable[..., Path], tmp_path: Path, init: str) -> None:
    """Those that leave the base weights alone give the same logits; the others are refused."""
    transformers, peft = pytest.importorskip("transformers"), pytest.importorskip("peft")
    checkpoint = make_checkpoint(tmp_path / "base")
    settings = peft.LoraConfig(
        r=4, target_modules=list(LINEAR_LAYERS), task_type="CAUSAL_LM", init_lora_weights=init,
        eva_config=peft.EvaConfig() if init == "eva" else None,
    )  # fmt: skip
    theirs = peft.get_peft_model(transformers.AutoModelForCausalLM.from_pretrained(checkpoint), settings).eval()
    torch.manual_seed(5)
    for name, weight in theirs.named_parameters():
        if "lora_" in name:
            weight.data += 0.02 * torch.randn_like(weight)
    theirs.save_pretrained(tmp_path / "adapter")
    if init in ("pissa", "pissa_niter_4", "olora"):
        with pytest.raises(CheckpointError, match=f"init_lora_weights: .*found '{init}'"):
            load_adapter(tmp_path / "adapter", load_config(checkpoint))
        return
    loaded = load_adapter(tmp_path / "adapter", load_config(checkpoint))
    ours = attach_updates(load_model(checkpoint), loaded.updates).eval()
    with torch.inference_mode():
        expected = theirs(IDS).logits
        assert (ours(IDS) - expected).abs().max() < 1e-5 * expected.abs().max()


def logits_of_llama_cpp(path: Path, ids: list[int], adapter: Path | None = None) -> np.ndarray:
    llama_cpp = pytest.importorskip("llama_cpp")
    llama = llama_cpp.Llama(
        str(path), n_ctx=128, n_batch=128, n_ubatch=1, n_threads=1, n_threads_batch=1, logits_all=True, verbose=False,
        type_k=llama_cpp.GGML_TYPE_F32, type_v=llama_cpp.GGML_TYPE_F32,
        lora_path=None if adapter is None else str(adapter),
    )  # fmt: skip
    llama.eval(ids)
    logits = np.array(llama.scores[: len(ids)], dtype=np.float32)
    llama.close()
    return logits


@pytest.mark.parametrize("name", CASES)
def test_llama_cpp_applies_ours(
    make_checkpoint: Callable[..., Path], tmp_path: Path, engine_build: Path, name: str
) -> None:
    checkpoint, adapter, model = make_adapter(make_checkpoint, tmp_path, name)
    export_adapter(adapter, checkpoint, tmp_path / "adapter.gguf")
    export(checkpoint, tmp_path / "base.gguf", "f32", verify=False)
    merge_adapter(checkpoint, adapter, tmp_path / "merged")
    export(tmp_path / "merged", tmp_path / "merged.gguf", "f32", verify=False)
    ids = IDS[0].tolist()
    base = logits_of_llama_cpp(tmp_path / "base.gguf", ids)
    merged = logits_of_llama_cpp(tmp_path / "merged.gguf", ids)
    applied = logits_of_llama_cpp(tmp_path / "base.gguf", ids, tmp_path / "adapter.gguf")
    with llamita.load(tmp_path / "base.gguf") as engine:
        ours = engine.logits(ids, kv_type="f32", adapters=[engine.load_adapter(tmp_path / "adapter.gguf")])
    scale = np.abs(merged).max()
    assert np.abs(ours - applied).max() < 1e-4 * scale
    print(f"{name}: applied - merged {np.abs(applied - merged).max():.2e} of {scale:.1f}")
    assert np.abs(applied - merged).max() < 1e-4 * scale
    assert np.abs(base - merged).max() > 0.05 * scale
    with torch.inference_mode():
        assert np.abs(applied - model(IDS[:1])[0].numpy()).max() < 1e-4 * scale

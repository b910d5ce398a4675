"""Qwen2, Qwen3 and SmolLM3: transformers, PEFT and llama.cpp compute what the network and the engine
compute, on tiny models that transformers makes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from llamita.checkpoint import load_config, load_model
from llamita.convert.export import export
from llamita.convert.import_model import import_model
from llamita.convert.quantize import quantize_file
from llamita.convert.verify import torch_logits
from llamita.engine import Model
from llamita.finetune.adapter import load_adapter, save_adapter
from llamita.finetune.adapter_gguf import export_adapter
from llamita.finetune.lora import LoraConfig, add_lora, attach_updates, updates_of
from llamita.finetune.merge_lora import merge_adapter
from llamita.model.generate import generate

pytestmark = [pytest.mark.compat, pytest.mark.usefixtures("engine_build")]

transformers = pytest.importorskip("transformers")

IDS = [1, *range(5, 60, 2), 7, 7, 300]
TOLERANCE = 1e-5  # of the largest logit, float32
F32 = 0  # ggml's number of the type of the KV cache: float16 may change a token of a random model
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "qwen2": ("Qwen2", {"tie_word_embeddings": False}),
    "qwen2 tied": ("Qwen2", {"tie_word_embeddings": True, "num_key_value_heads": 4}),
    "qwen3": ("Qwen3", {"tie_word_embeddings": False, "head_dim": 32}),
    "qwen3 tied": ("Qwen3", {"tie_word_embeddings": True, "head_dim": 16}),
    "smollm3": ("SmolLM3", {"tie_word_embeddings": False}),
    "smollm3 tied": ("SmolLM3", {"tie_word_embeddings": True}),
}


def saved(folder: Path, tokenizer: Path, kind: str, **more: Any) -> Any:
    """A random model of transformers' own, with biases and norms that matter, and a tokenizer."""
    name, changes = KINDS[kind]
    values: dict[str, Any] = {
        "vocab_size": 320, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 5, "num_attention_heads": 4,
        "num_key_value_heads": 2, "max_position_embeddings": 128, "bos_token_id": 0, "eos_token_id": [0, 2],
        "pad_token_id": None, "initializer_range": 0.2, "rope_theta": 1e6, "rms_norm_eps": 1e-6,
    }  # fmt: skip
    torch.manual_seed(5)
    model = getattr(transformers, f"{name}ForCausalLM")(
        getattr(transformers, f"{name}Config")(**(values | changes | more))
    )
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(torch.randn_like(parameter), alpha=0.3)
    model.save_pretrained(folder)
    for file in ("tokenizer.json", "tokenizer_config.json"):
        (folder / file).write_bytes((tokenizer / file).read_bytes())
    return model.eval()


def loaded(folder: Path) -> Any:
    model, info = transformers.AutoModelForCausalLM.from_pretrained(
        folder, output_loading_info=True, dtype=torch.float32
    )
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys")), info
    return model.eval()


def logits_of(model: Any) -> np.ndarray:
    with torch.no_grad():
        return model(torch.tensor([IDS])).logits[0].numpy()


def close(ours: np.ndarray, theirs: np.ndarray, tolerance: float = TOLERANCE) -> None:
    assert float(np.abs(ours - theirs).max()) <= tolerance * float(np.abs(theirs).max())


def greedy_of_llama_cpp(path: Path, ids: list[int], number: int, lora: Path | None = None) -> list[int]:
    llama_cpp = pytest.importorskip("llama_cpp")
    llama = llama_cpp.Llama(
        str(path), n_ctx=128, n_threads=1, verbose=False, type_k=F32, type_v=F32, flash_attn=False,
        lora_path=None if lora is None else str(lora),
    )  # fmt: skip
    found: list[int] = []
    for token in llama.generate(list(ids), temp=0.0, reset=True):
        found.append(token)
        if len(found) == number:
            return found
    return found


def greedy_of_engine(model: Model, ids: list[int], number: int) -> list[int]:
    found: list[int] = []
    with model.session(kv_type="f32") as session:
        session.feed(ids)
        while len(found) < number:
            logits = session.logits
            assert logits is not None
            found.append(int(logits.argmax()))
            session.feed(found[-1:])
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_import_and_export_to_transformers(tiny_tokenizers: dict[str, Path], tmp_path: Path, kind: str) -> None:
    expected = logits_of(saved(tmp_path / "source", tiny_tokenizers["gpt2"], kind))
    report = import_model(tmp_path / "source", tmp_path / "out")
    assert report.config.architecture == kind.split()[0]
    assert report.config.no_rope_layers == ((3,) if "smollm3" in kind else ())
    close(torch_logits(load_model(tmp_path / "out"), IDS), expected)
    export(tmp_path / "out", tmp_path / "folder")
    close(logits_of(loaded(tmp_path / "folder")), expected)
    before, after = (json.loads((tmp_path / each / "config.json").read_text()) for each in ("source", "folder"))
    for key in ("architectures", "model_type", "layer_types", "no_rope_layers", "use_sliding_window"):
        assert before.get(key) == after.get(key), key


def test_layers_without_rope_anywhere(tiny_tokenizers: dict[str, Path], tmp_path: Path) -> None:
    """transformers takes any list, or an interval; GGUF only every fourth layer."""
    listed = [0, 1, 1, 0, 1]
    expected = logits_of(saved(tmp_path / "source", tiny_tokenizers["gpt2"], "smollm3", no_rope_layers=listed))
    assert import_model(tmp_path / "source", tmp_path / "out").config.no_rope_layers == (0, 3)
    close(torch_logits(load_model(tmp_path / "out"), IDS), expected)
    close(logits_of(loaded(tmp_path / "out")), expected)


@pytest.mark.parametrize("kind", KINDS)
def test_gguf_in_llama_cpp(tiny_tokenizers: dict[str, Path], tmp_path: Path, kind: str) -> None:
    """llama.cpp's greedy tokens are PyTorch's and the engine's, whose logits are those of transformers;
    imported again, the file gives the checkpoint's logits."""
    expected = logits_of(saved(tmp_path / "source", tiny_tokenizers["gpt2"], kind))
    import_model(tmp_path / "source", tmp_path / "model")
    export(tmp_path / "model", tmp_path / "model.gguf", "f32")
    model = load_model(tmp_path / "model")
    ours = list(generate(model, IDS, 24, temperature=0.0))
    assert greedy_of_llama_cpp(tmp_path / "model.gguf", IDS, 24) == ours
    for kernels in ("auto", "scalar"):
        with Model(tmp_path / "model.gguf", kernels=kernels) as engine:
            close(engine.logits(IDS, kv_type="f32"), expected)
            assert engine.info.architecture == kind.split()[0]
            assert greedy_of_engine(engine, IDS, 24) == ours
    assert import_model(tmp_path / "model.gguf", tmp_path / "again").verification is not None
    assert load_config(tmp_path / "again") == load_config(tmp_path / "model")
    close(torch_logits(load_model(tmp_path / "again"), IDS), torch_logits(model, IDS))
    quantize_file(tmp_path / "model.gguf", tmp_path / "q8.gguf", "q8_0")
    assert len(greedy_of_llama_cpp(tmp_path / "q8.gguf", IDS, 4)) == 4


@pytest.mark.parametrize("type", ["f16", "q8_0", "q4_0", "q4_k_m", "q6_k"])
@pytest.mark.parametrize("kind", ["qwen2", "qwen3", "smollm3 tied"])
def test_types(tiny_tokenizers: dict[str, Path], tmp_path: Path, kind: str, type: str) -> None:
    """The engine computes what PyTorch does with the weights in the file, which export compares."""
    sizes = {"hidden_size": 256, "intermediate_size": 512, "initializer_range": 0.06}
    saved(tmp_path / "source", tiny_tokenizers["gpt2"], kind, **sizes)
    import_model(tmp_path / "source", tmp_path / "model")
    report = export(tmp_path / "model", tmp_path / "model.gguf", type, verify=True)
    assert report.verification is not None
    with Model(tmp_path / "model.gguf") as engine:
        assert engine.info.num_parameters == load_config(tmp_path / "model").num_parameters
    assert len(greedy_of_llama_cpp(tmp_path / "model.gguf", IDS, 4)) == 4


@pytest.mark.parametrize("kind", ["qwen2", "qwen3 tied", "smollm3"])
def test_lora(tiny_tokenizers: dict[str, Path], tmp_path: Path, kind: str) -> None:
    """An adapter in PEFT, merged, and as a GGUF beside its base in llama.cpp and in the engine."""
    peft = pytest.importorskip("peft")
    saved(tmp_path / "source", tiny_tokenizers["gpt2"], kind)
    import_model(tmp_path / "source", tmp_path / "base")
    settings = LoraConfig(rank=4)
    model = add_lora(load_model(tmp_path / "base"), settings, torch.Generator().manual_seed(1))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0, 0.03, generator=torch.Generator().manual_seed(2))
    ours = torch_logits(model, IDS)
    save_adapter(tmp_path / "adapter", updates_of(model), settings, str(tmp_path / "base"))
    theirs = peft.PeftModel.from_pretrained(loaded(tmp_path / "base"), str(tmp_path / "adapter"))
    close(ours, logits_of(theirs.eval()))
    adapter = load_adapter(tmp_path / "adapter", load_config(tmp_path / "base"))
    close(torch_logits(attach_updates(load_model(tmp_path / "base"), adapter.updates), IDS), ours)
    merge_adapter(tmp_path / "base", tmp_path / "adapter", tmp_path / "merged")
    merged = load_model(tmp_path / "merged")
    close(torch_logits(merged, IDS), ours)
    close(logits_of(loaded(tmp_path / "merged")), ours)
    export(tmp_path / "base", tmp_path / "base.gguf", "f32")
    export_adapter(tmp_path / "adapter", tmp_path / "base", tmp_path / "adapter.gguf")
    found = greedy_of_llama_cpp(tmp_path / "base.gguf", IDS, 16, tmp_path / "adapter.gguf")
    assert found == list(generate(merged, IDS, 16, temperature=0.0))
    with Model(tmp_path / "base.gguf") as engine:
        use = engine.load_adapter(tmp_path / "adapter.gguf")
        close(engine.logits(IDS, kv_type="f32", adapters=[use]), ours)

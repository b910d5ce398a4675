"""QLoRA: frozen weights in four bits, their gradients, memory, runs, and machines without
bitsandbytes."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from llamita.checkpoint import load_config
from llamita.cli import main
from llamita.config import ModelConfig
from llamita.errors import ConfigError
from llamita.finetune import linear_4bit
from llamita.finetune.adapter import load_adapter
from llamita.finetune.base_model import BaseModel
from llamita.finetune.defaults import fitting_tokens, frozen_bytes
from llamita.finetune.linear_4bit import Linear4bit, check_4bit, dequantize
from llamita.finetune.lora import LoraConfig, add_lora, lora_layers
from llamita.finetune.merge_lora import merge_adapter
from llamita.finetune.run import finetune
from llamita.model.llama import Llama
from llamita.training.activation_checkpointing import checkpoint_activations
from tests.unit.finetune.conftest import evaluations, make_config

CPU = torch.device("cpu")
IDS = torch.randint(0, 300, (2, 40), generator=torch.Generator().manual_seed(3))
# arXiv 2305.14314, appendix E, rounded
NF4 = (-1.0, -0.6962, -0.5251, -0.3949, -0.2844, -0.1848, -0.0911, 0.0, 0.0796, 0.1609, 0.2461, 0.3379, 0.4407, 0.5626,
       0.7230, 1.0)  # fmt: skip


def needs_bitsandbytes() -> None:
    pytest.importorskip("bitsandbytes", reason="QLoRA needs bitsandbytes: pip install 'llamita[qlora]'")


@pytest.fixture(scope="module", params=[False, True], ids=["plain", "biases"])
def base(request: Any, make_checkpoint: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> BaseModel:
    changes = {"architecture": "qwen2", "attention_bias": True} if request.param else {}
    return BaseModel(make_checkpoint(tmp_path_factory.mktemp("qlora") / "base", **changes))


def in_4bit(base: BaseModel, compute: torch.dtype = torch.float32) -> Llama:
    needs_bitsandbytes()
    model = base.build(0.0, CPU, compute, in_4bit=True)
    base.fill(model)
    return model


def quantized(model: Llama) -> dict[str, Linear4bit]:
    return {name: module for name, module in model.named_modules() if isinstance(module, Linear4bit)}


def nearest(weight: torch.Tensor) -> torch.Tensor:
    """The nearest values of NF4, in blocks of 64: the slow and obvious way."""
    blocks = weight.reshape(-1, 64)
    largest = blocks.abs().amax(1, keepdim=True)
    values = torch.tensor(NF4)
    chosen = values[(blocks[..., None] / largest[..., None] - values).abs().argmin(-1)]
    return (chosen * largest).view(weight.shape)


def test_the_weights_are_those_of_nf4(base: BaseModel) -> None:
    """And of transformers, which quantizes with the same library's parameters."""
    layers = quantized(in_4bit(base))
    parameters = pytest.importorskip("bitsandbytes").nn.Params4bit
    assert len(layers) == 7 * base.config.num_hidden_layers
    for name, layer in layers.items():
        weight = base._read(f"{name}.weight")
        found = dequantize(layer.weight, layer.quant_state, layer.in_features)
        theirs = parameters(weight, requires_grad=False, quant_type="nf4").to("cpu")
        assert torch.equal(layer.weight, theirs.data) and found.shape == weight.shape
        assert torch.equal(layer.quant_state.absmax, theirs.quant_state.absmax)
        off = (found - nearest(weight)).norm() / weight.norm()
        assert off < 0.02, f"{name}: the scales in 8 bits cost {off:.3f}"
        assert (found - weight).norm() > 0.05 * weight.norm()


@pytest.mark.parametrize("checkpointed", [False, True])
def test_losses_and_gradients_are_those_of_the_dequantized_weights(base: BaseModel, checkpointed: bool) -> None:
    """A network whose float matrices are the dequantized ones computes the same, to rounding."""
    small = in_4bit(base)
    plain = base.build(0.0, CPU)
    base.fill(plain)
    with torch.no_grad():
        for name, layer in quantized(small).items():
            plain.get_submodule(name).weight.copy_(dequantize(layer.weight, layer.quant_state, layer.in_features))
    found = []
    for model in (plain, small):
        # some layers without an update, others with one that is far from nothing
        add_lora(model, LoraConfig(rank=4, layers=("q_proj", "down_proj")), torch.Generator().manual_seed(1))
        generator = torch.Generator().manual_seed(2)
        with torch.no_grad():
            for _, update in lora_layers(model):
                update.lora_B.weight.normal_(0, 0.1, generator=generator)
        if checkpointed and model is small:
            checkpoint_activations(model)
        loss = torch.nn.functional.cross_entropy(model(IDS[:, :-1]).flatten(0, 1), IDS[:, 1:].flatten())
        loss.backward()
        found.append((loss, {name: p.grad for name, p in model.named_parameters() if p.requires_grad}))
    torch.testing.assert_close(found[0][0], found[1][0])
    assert found[0][1].keys() == found[1][1].keys() and all("lora_" in name for name in found[0][1])
    for name, gradient in found[0][1].items():
        torch.testing.assert_close(gradient, found[1][1][name], rtol=1e-4, atol=1e-6)
    half = in_4bit(base, torch.bfloat16)(IDS, compute=torch.bfloat16)
    assert half.dtype == torch.bfloat16 and torch.isfinite(half).all()


@pytest.mark.parametrize("compute", [torch.float32, torch.bfloat16])
def test_the_memory_is_what_was_counted(make_checkpoint: Callable[..., Path], tmp_path: Path, compute: Any) -> None:
    """Of matrices that fill their blocks: 4.13 bits a weight."""
    needs_bitsandbytes()
    base = BaseModel(make_checkpoint(tmp_path / "base", hidden_size=256, intermediate_size=512, head_dim=64))
    num_bytes = []
    for is_small in (True, False):
        model = base.build(0.0, CPU, compute, in_4bit=is_small)
        base.fill(model)
        tensors = list(model.parameters())
        for layer in quantized(model).values():
            state = layer.quant_state
            tensors += [state.absmax, state.state2.absmax]
        num_bytes.append(sum(each.numel() * each.element_size() for each in tensors))
        assert num_bytes[-1] == pytest.approx(frozen_bytes(base.config, compute.itemsize, in_4bit=is_small), rel=0.002)
    assert num_bytes[0] < num_bytes[1]


def test_what_fits_a_gpu() -> None:
    """The weights of an 8B leave nothing of 16 GB in bfloat16, and half of it in 4 bits."""
    eight = ModelConfig(128256, 4096, 14336, 32, 32, 8, 128, 8192, tie_word_embeddings=False)
    plain, small = (
        make_config(Path("base"), Path("data"), Path("run"), lora=True, dtype="bfloat16", load_in_4bit=small)
        for small in (False, True)
    )
    assert 3.5e9 < frozen_bytes(eight, 2, in_4bit=True) - 2 * 4 * 128256 * 4096 < 3.7e9
    assert fitting_tokens(16e9, eight, plain) == 0 and fitting_tokens(16e9, eight, small) > 500


def test_a_run(chat_base: Path, questions: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """The loss falls, and the adapter is PEFT's, and merges into the checkpoint's float32 weights.
    test_finetune_resume.py kills and resumes one."""
    needs_bitsandbytes()
    options: dict[str, Any] = {"lora": True, "load_in_4bit": True, "learning_rate": 2e-2, "prompt": "the cat?"}
    run = tmp_path / "run"
    finetune(make_config(chat_base, questions, run, **options, steps=8, eval_interval=8))
    losses = [line["loss"] for line in evaluations(run)]
    assert losses[-1] < losses[0] - 0.5, losses
    assert "frozen weights: 0 MB, the layers' matrices in 4 bits (NF4)" in capfd.readouterr().err
    settings = json.loads((run / "best/adapter_config.json").read_text())
    assert settings["peft_type"] == "LORA" and settings["base_model_name_or_path"] == str(chat_base)
    assert len(load_adapter(run / "best", load_config(chat_base)).updates) == 14
    assert merge_adapter(chat_base, run / "best", tmp_path / "merged").largest_change > 0


# ---------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--load-in-4bit"], "finetune: --load-in-4bit is a setting of --lora; give both"),
        (["--load-in-4bit", "--lora", "--fsdp"], "finetune: --load-in-4bit and --fsdp exclude each other; drop one"),
        (["--load-in-4bit=nf4", "--lora"], "--load-in-4bit"),
    ],
)
def test_options_that_exclude_it(
    flags: list[str], message: str, chat_base: Path, questions: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(["finetune", str(chat_base), str(questions), "--out", str(tmp_path / "run"), *flags]) == 2
    error = capfd.readouterr().err
    assert message in error and error.count("\n") == 1


def test_without_bitsandbytes(
    chat_base: Path, questions: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    words = ["finetune", str(chat_base), str(questions), "--out", str(tmp_path / "run"), "--device=cpu", "--lora"]
    assert main([*words, "--load-in-4bit"]) == 2
    expected = "llamita: finetune: --load-in-4bit needs the package bitsandbytes: pip install 'llamita[qlora]'\n"
    assert capfd.readouterr().err == expected and not (tmp_path / "run").exists()


def test_a_device_that_it_does_not_compute_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """It raises errors of many types, or returns nonsense."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)

    def refuse(*arguments: Any) -> Any:
        raise NotImplementedError("no kernel for 'mps'\nMore lines")

    monkeypatch.setattr(linear_4bit, "quantize", refuse)
    expected = "finetune: --load-in-4bit: bitsandbytes does not compute on cpu: no kernel for 'mps'; leave the"
    with pytest.raises(ConfigError) as found:
        check_4bit(CPU)
    assert str(found.value).startswith(expected) and "\n" not in str(found.value)
    monkeypatch.setattr(linear_4bit, "quantize", lambda weight, compute: (weight, None))
    monkeypatch.setattr(linear_4bit, "dequantize", lambda packed, state, in_features: 0 * packed)
    with pytest.raises(ConfigError, match="does not compute on cpu: wrong results"):
        check_4bit(CPU)

"""--qat: near its end a run computes with the weights that the exporter writes."""

from __future__ import annotations

import typing
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from llamita.checkpoint import load_model  # noqa: E402
from llamita.config import FinetuneConfig, ModelConfig, QuantizedType, TrainConfig  # noqa: E402
from llamita.convert.export import export  # noqa: E402
from llamita.convert.quant_mix import QUANT_MIXES  # noqa: E402
from llamita.errors import ConfigError  # noqa: E402
from llamita.formats.gguf import read_gguf  # noqa: E402
from llamita.formats.rope_order import unpermute_qk  # noqa: E402
from llamita.formats.tensor_table import tensor_table  # noqa: E402
from llamita.formats.tensor_types import TYPES  # noqa: E402
from llamita.model.llama import Llama  # noqa: E402
from llamita.training import trainer as trainer_module  # noqa: E402
from llamita.training.divergence import DivergenceError  # noqa: E402
from llamita.training.pretraining import train  # noqa: E402
from llamita.training.weight_rounding import WeightRounding  # noqa: E402

SHAPE = ModelConfig(64, 256, 512, 3, 4, 2, 64, 32)


def network() -> Llama:
    return Llama(SHAPE).initialize(torch.Generator().manual_seed(0))


def test_types_are_those_of_export() -> None:
    quantized = {name for name, mix in QUANT_MIXES.items() if TYPES[mix.main].block_elements > 1}
    assert set(typing.get_args(QuantizedType)) == quantized


def test_weights_are_those_of_the_file(story_store: Path, tmp_path: Path) -> None:
    config = TrainConfig(
        data=story_store, out=tmp_path / "run", layers=3, hidden=256, heads=4, kv_heads=2, ffn=512, context=32,
        micro_batch_size=1, steps=1, device="cpu", threads=1,
    )  # fmt: skip
    train(config)
    export(tmp_path / "run", tmp_path / "model.gguf", "q4_k_m")
    file, model = read_gguf(tmp_path / "model.gguf"), load_model(tmp_path / "run")
    exact = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    with WeightRounding(model, model.config, "q4_k_m").applied(0):
        for spec in tensor_table(model.config):
            stored = file.dequantize(spec.gguf)
            if (heads := spec.rope_heads(model.config)) is not None:
                stored = unpermute_qk(stored, heads)
            found = model.get_parameter(spec.huggingface).detach()
            assert torch.equal(found, torch.from_numpy(stored.copy()).view(spec.shape)), spec.gguf
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, exact[name])


def test_the_gradient_is_that_of_the_rounded_weights() -> None:
    """It changes the exact ones, which come back after an error too."""
    model, rounded = network(), network()
    weight, ids = model.model.layers[0].mlp.up_proj.weight, torch.arange(8)[None]
    rounding = WeightRounding(model, SHAPE, "q4_0")
    with rounding.applied(0):
        rounded.load_state_dict(model.state_dict())
        model(ids).square().sum().backward()
    rounded(ids).square().sum().backward()
    exact = network().model.layers[0].mlp.up_proj.weight
    assert torch.equal(weight, exact) and not torch.equal(weight, rounded.model.layers[0].mlp.up_proj.weight)
    assert torch.equal(weight.grad, rounded.model.layers[0].mlp.up_proj.weight.grad)
    with pytest.raises(KeyError), rounding.applied(0):
        raise KeyError
    assert torch.equal(weight, exact)


def test_a_weight_that_is_no_number_is_divergence() -> None:
    model = network()
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[3, 5] = torch.nan
    with pytest.raises(DivergenceError, match="step 7: "), WeightRounding(model, SHAPE, "q8_0").applied(7):
        pass
    assert torch.equal(model.model.layers[0].mlp.up_proj.weight, network().model.layers[0].mlp.up_proj.weight)


def test_the_last_fifth_is_rounded(story_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps and the evaluation at the end, not the one before."""
    steps: list[int] = []

    class Noted(WeightRounding):
        def applied(self, step: int) -> typing.Any:
            steps.append(step)
            return super().applied(step)

    monkeypatch.setattr(trainer_module, "WeightRounding", Noted)
    config = TrainConfig(
        data=story_store, out=tmp_path / "run", layers=1, hidden=32, heads=2, ffn=64, context=32, micro_batch_size=2,
        steps=10, eval_interval=5, device="cpu", threads=1, qat="q8_0",
    )  # fmt: skip
    train(config)
    assert steps == [8, 9, 10]


def test_not_with_lora(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--qat: --lora does not train the weights that are rounded"):
        FinetuneConfig(checkpoint=tmp_path, data=tmp_path, out=tmp_path / "run", lora=True, qat="q4_0")

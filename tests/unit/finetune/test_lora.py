"""LoRA on a network: which weights learn, that none is copied, and that an adapter comes back as it
was written."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from llamita.checkpoint import TrainingState, load_config, load_model, load_tensors
from llamita.errors import CheckpointError, ConfigError, OutputError
from llamita.finetune.adapter import CONFIG, WEIGHTS, load_adapter, save_adapter
from llamita.finetune.finetune_task import FinetuneTask
from llamita.finetune.lora import LoraConfig, add_lora, attach_updates, lora_layers, lora_scale, updates_of
from llamita.finetune.merge_lora import merge_adapter
from llamita.model.llama import Llama
from llamita.model_card import ModelCard

IDS = torch.randint(0, 300, (2, 40), generator=torch.Generator().manual_seed(3))


def trained(checkpoint: Path, config: LoraConfig, seed: int = 1) -> Llama:
    """A network whose updates are far from nothing."""
    generator = torch.Generator().manual_seed(seed)
    model = add_lora(load_model(checkpoint), config, generator)
    with torch.no_grad():
        for _, layer in lora_layers(model):
            layer.lora_B.weight.normal_(0, 0.1, generator=generator)
    return model.eval()


@pytest.fixture(scope="module")
def checkpoint(make_checkpoint: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("lora") / "base")


def saved(checkpoint: Path, folder: Path, config: LoraConfig) -> tuple[Llama, Path]:
    model = trained(checkpoint, config)
    save_adapter(folder, updates_of(model), config, str(checkpoint), checkpoint)
    return model, folder


def test_beginning_changes_nothing_and_copies_nothing(checkpoint: Path) -> None:
    model = load_model(checkpoint)
    before, places = model(IDS), {name: p.data_ptr() for name, p in model.named_parameters()}
    names = set(model.state_dict())
    add_lora(model, LoraConfig(rank=4, dropout=0.5))
    assert torch.equal(model.eval()(IDS), before)
    assert {name: p.data_ptr() for name, p in model.named_parameters() if "lora_" not in name} == places
    assert {name for name in model.state_dict() if "lora_" not in name} == names
    assert len(list(lora_layers(model))) == 7 * model.config.num_hidden_layers


def test_only_the_updates_learn_and_only_they_have_state(checkpoint: Path) -> None:
    model = add_lora(load_model(checkpoint), LoraConfig(rank=4), torch.Generator().manual_seed(0))
    base = {name: p.clone() for name, p in model.named_parameters() if "lora_" not in name}
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    losses = []
    for _ in range(8):
        loss = torch.nn.functional.cross_entropy(model(IDS[:, :-1]).flatten(0, 1), IDS[:, 1:].flatten())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.1
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad == ("lora_" in name)
        if name in base:
            assert parameter.grad is None and torch.equal(parameter, base[name])
    states = sum(t.numel() for state in optimizer.state.values() for t in state.values() if t.ndim)
    assert states == 2 * sum(update.a.numel() + update.b.numel() for update in updates_of(model).values())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gradients_are_those_of_the_sum(checkpoint: Path, dtype: torch.dtype) -> None:
    """Of A and B, by the chain rule from the gradient of the merged weight."""
    model = trained(checkpoint, LoraConfig(rank=3, alpha=5.0)).to(torch.float64)
    layer = model.get_submodule("model.layers.1.mlp.down_proj")
    model(IDS).square().mean().backward()
    plain = load_model(checkpoint).to(torch.float64)
    with torch.no_grad():
        for name, update in updates_of(model).items():
            plain.get_submodule(name).weight += update.b @ update.a * update.scale
    plain(IDS).square().mean().backward()
    whole = plain.get_submodule("model.layers.1.mlp.down_proj").weight.grad
    a, b, scale = layer.lora_A.weight, layer.lora_B.weight, layer.scale
    assert torch.allclose(a.grad, scale * b.T @ whole, rtol=1e-6, atol=1e-12)
    assert torch.allclose(b.grad, scale * whole @ a.T, rtol=1e-6, atol=1e-12)
    low = trained(checkpoint, LoraConfig(rank=3, alpha=5.0))
    for _, each in lora_layers(low):
        each.weight.data = each.weight.data.to(dtype)  # a base in its own type, updates in float32
        x = torch.randn(2, 5, each.weight.shape[1]).to(dtype)
        assert each(x).dtype == dtype


def test_scales() -> None:
    assert LoraConfig(rank=8).scale == 2.0
    assert LoraConfig(rank=16, alpha=8, rslora=True).scale == 2.0
    assert lora_scale(8.0, 16, False) == 0.5


@pytest.mark.parametrize("rslora", [False, True])
def test_merged_is_unmerged(checkpoint: Path, tmp_path: Path, rslora: bool) -> None:
    config = LoraConfig(rank=4, alpha=6.0, rslora=rslora)
    model, adapter = saved(checkpoint, tmp_path / "adapter", config)
    report = merge_adapter(checkpoint, adapter, tmp_path / "merged")
    expected = model(IDS)
    difference = ((load_model(tmp_path / "merged")(IDS) - expected).abs().max() / expected.abs().max()).item()
    print(f"rslora {rslora}: merged - unmerged {difference:.2e}, largest change {report.largest_change:.3f}")
    assert difference < 1e-5  # of the largest logit
    assert (model(IDS) - load_model(checkpoint)(IDS)).abs().max() > 0.1
    assert report.num_layers == 14 and (tmp_path / "merged" / "tokenizer.json").is_file()
    half = merge_adapter(checkpoint, adapter, tmp_path / "half", strength=0.5, dtype="bfloat16")
    assert half.largest_change == pytest.approx(report.largest_change / 2, rel=1e-5)
    base, halved = load_tensors(checkpoint), load_tensors(tmp_path / "half")
    name = "model.layers.0.self_attn.q_proj"
    weight = base[f"{name}.weight"] + 0.5 * updates_of(model)[name].delta()
    assert torch.equal(halved[f"{name}.weight"], weight.bfloat16())


def test_adapter_comes_back(checkpoint: Path, tmp_path: Path) -> None:
    config = LoraConfig(rank=4, dropout=0.25, layers=("q_proj", "down_proj"))
    model, folder = saved(checkpoint, tmp_path / "adapter", config)
    loaded = load_adapter(folder, load_config(checkpoint))
    assert loaded.dropout == 0.25 and len(loaded.updates) == 4
    again = attach_updates(load_model(checkpoint), loaded.updates).eval()
    assert torch.equal(again(IDS), model(IDS))
    with pytest.raises(OutputError, match="exists already"):
        save_adapter(folder, updates_of(model), config, None)


def change_settings(folder: Path, **changes: object) -> None:
    path = folder / CONFIG
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"peft_type": "IA3"}, "expected LORA, found 'IA3'"),
        ({"use_dora": True}, "DoRA is not supported"),
        ({"bias": "all"}, "trained biases"),
        (
            {"modules_to_save": ["lm_head"]},
            "says that lm_head was trained, and adapter_model",
        ),
        ({"modules_to_save": ["mlp"]}, "says that mlp was trained"),
        ({"modules_to_save": "lm_head"}, "modules_to_save: expected a list"),
        ({"target_modules": ["q_proj", "lm_head"]}, r"says that lm_head was trained \(target_modules\), and adapter_m"),
        ({"target_modules": 3}, "target_modules: expected a list or a string, found 3"),
        ({"r": 5}, "expected rank 5 as in adapter_config.json, found 4"),
        ({"lora_alpha": "x"}, "lora_alpha: expected a positive number"),
        ({"alpha_pattern": {"(a+)+": 3}}, "alpha_pattern: expected module names"),
        ({"rank_pattern": [1]}, "rank_pattern: expected an object"),
        ({"use_rslora": "false"}, "use_rslora: expected true or false, found 'false'"),
        ({"lora_bias": True}, "a bias of lora_B"),
        ({"fan_in_fan_out": True}, "transposed weights"),
        ({"trainable_token_indices": [1]}, "says that embed_tokens was trained"),
        *(
            ({"trainable_token_indices": bad}, "trainable_token_indices: expected")
            for bad in (3, ["x"], {"lm_head": [True]})
        ),
        ({"layer_replication": [[0, 1]]}, "repeated layers"),
        ({"target_parameters": ["x"]}, "updates of bare parameters"),
        ({"alora_invocation_tokens": [1]}, "aLoRA"),
        ({"use_qalora": True}, "QALoRA"),
        *(
            ({key: {"x": 1}}, f"{key}: expected null")
            for key in ("use_bdlora", "arrow_config", "kasa_config", "velora_config", "monteclora_config")
        ),
        *(
            ({"init_lora_weights": name}, f"init_lora_weights: .*found '{name}'.*path_initial_model")
            for name in ("pissa", "pissa_niter_16", "olora", "corda", "OLoRA")
        ),
        *(
            ({"init_lora_weights": name}, f"init_lora_weights: .*found '{name}'.*peft \\(merge_and_unload")
            for name in ("loftq", "lora_ga", "new_one")
        ),
        ({"init_lora_weights": 3}, "init_lora_weights: expected true or false or a string, found 3"),
        *(
            ({"new_setting": value}, "'new_setting': expected a setting that llamita knows")
            for value in (True, 2, 0.5, "x", [1], {"a": 1})
        ),
    ],
)
def test_settings_are_refused(checkpoint: Path, tmp_path: Path, changes: dict[str, object], message: str) -> None:
    _, folder = saved(checkpoint, tmp_path / "adapter", LoraConfig(rank=4))
    change_settings(folder, **changes)
    with pytest.raises(CheckpointError, match=message):
        load_adapter(folder, load_config(checkpoint))


@pytest.mark.parametrize(
    "changes",
    [
        *({"init_lora_weights": value} for value in (True, False, None, "gaussian", "eva", "orthogonal", "mica")),
        *({"new_setting": value} for value in (None, False, "", [], {})),
        {"loftq_config": {"loftq_bits": 4}, "eva_config": {"rho": 2.0}, "corda_config": {"verbose": False}},
        {"auto_mapping": {"unsloth_fixed": True}, "revision": "main", "layers_to_transform": [0, 1]},
        {"lora_dtype": "bfloat16", "lorap_lr_ratio": 16.0, "lorap_emb_lr": 1e-6},
    ],
)
def test_harmless_settings_change_nothing(checkpoint: Path, tmp_path: Path, changes: dict[str, object]) -> None:
    model, folder = saved(checkpoint, tmp_path / "adapter", LoraConfig(rank=4))
    change_settings(folder, **changes)
    loaded = load_adapter(folder, load_config(checkpoint))
    assert torch.equal(attach_updates(load_model(checkpoint), loaded.updates).eval()(IDS), model(IDS))


def test_a_lost_layer_is_named(checkpoint: Path, tmp_path: Path) -> None:
    """PEFT applies what is left and warns; without the warning it is another model."""
    _, folder = saved(checkpoint, tmp_path / "adapter", LoraConfig(rank=4, layers=("q_proj", "v_proj")))
    tensors = load_file(folder / WEIGHTS)
    lost = {name: tensor for name, tensor in tensors.items() if "layers.1.self_attn.v_proj" in name}
    save_file({name: tensor for name, tensor in tensors.items() if name not in lost}, folder / WEIGHTS)

    def num_updates(**changes: object) -> int:
        change_settings(folder, **changes)
        return len(load_adapter(folder, load_config(checkpoint)).updates)

    assert len(lost) == 2
    with pytest.raises(CheckpointError, match=r"says that model\.layers\.1\.self_attn\.v_proj was trained"):
        num_updates()
    with pytest.raises(CheckpointError, match=r"layers\.1\.self_attn\.v_proj was trained"):
        num_updates(layers_to_transform=[1], layers_pattern="layers")
    assert num_updates(layers_to_transform=0) == 3
    assert num_updates(layers_to_transform=None, exclude_modules=["layers.1.self_attn.v_proj"]) == 3
    assert num_updates(exclude_modules=None, target_modules=r".*\.(q_proj|v_proj)") == 3
    assert num_updates(target_modules=["q_proj", "model.layers.0.self_attn.v_proj", "experts"]) == 3


@pytest.mark.compat
def test_every_setting_of_peft_is_known(checkpoint: Path, tmp_path: Path) -> None:
    """PEFT's defaults are accepted, and a new version's settings are seen here first."""
    peft = pytest.importorskip("peft")
    _, folder = saved(checkpoint, tmp_path / "adapter", LoraConfig(rank=4))
    defaults = peft.LoraConfig(r=4, lora_alpha=8, task_type="CAUSAL_LM", target_modules=["q_proj"])
    defaults.save_pretrained(tmp_path)
    change_settings(folder, **json.loads((tmp_path / CONFIG).read_text()))
    load_adapter(folder, load_config(checkpoint))


def test_patterns_choose_a_layers_alpha(checkpoint: Path, tmp_path: Path) -> None:
    _, folder = saved(checkpoint, tmp_path / "adapter", LoraConfig(rank=4))
    change_settings(folder, alpha_pattern={"layers.0.self_attn.q_proj": 2, "v_proj": 4})
    scales = {name: update.scale for name, update in load_adapter(folder, load_config(checkpoint)).updates.items()}
    assert scales["model.layers.0.self_attn.q_proj"] == 0.5 and scales["model.layers.1.self_attn.q_proj"] == 2.0
    assert scales["model.layers.1.self_attn.v_proj"] == 1.0


def test_adapters_that_do_not_fit(checkpoint: Path, make_checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    _, folder = saved(checkpoint, tmp_path / "adapter", LoraConfig(rank=4))
    shallow = load_config(make_checkpoint(tmp_path / "shallow", num_hidden_layers=1))
    with pytest.raises(CheckpointError, match=r"model\.layers\.1.*made for another model"):
        load_adapter(folder, shallow)
    wide = load_config(make_checkpoint(tmp_path / "wide", intermediate_size=128))
    with pytest.raises(CheckpointError, match=r"mlp.*lora_[AB].*expected shape \["):
        load_adapter(folder, wide)
    with pytest.raises(CheckpointError, match=r"adapter_config\.json is missing"):
        load_adapter(checkpoint, shallow)
    (folder / CONFIG).write_text("[")
    with pytest.raises(CheckpointError, match="cannot read"):
        load_adapter(folder, shallow)


def test_damaged_weights(checkpoint: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    _, folder = saved(checkpoint, tmp_path / "adapter", LoraConfig(rank=4))
    config, path = load_config(checkpoint), folder / WEIGHTS
    tensors = load_file(path)
    name = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
    for changed, message in (
        ({k: v for k, v in tensors.items() if k != name}, "q_proj.lora_A.weight is missing"),
        (tensors | {name: torch.full_like(tensors[name], torch.nan)}, "expected finite numbers"),
        (tensors | {name: tensors[name].long()}, "expected floats"),
        (tensors | {"base_model.model.lm_head.lora_A.weight": torch.ones(4, 64)}, "lm_head.lora_B.weight is missing"),
        (tensors | {"x": torch.ones(1)}, "unknown tensor x"),
        ({}, "has no tensors"),
    ):
        save_file(changed, path)
        with pytest.raises(CheckpointError, match=message):
            load_adapter(folder, config)
    path.write_bytes(b"\xff" * 20)
    with pytest.raises(CheckpointError, match="cannot read"):
        load_adapter(folder, config)
    path.unlink()
    with pytest.raises(CheckpointError, match="is missing"):
        load_adapter(folder, config)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"rank": 0}, "rank: expected"),
        ({"alpha": -1.0}, "alpha: expected"),
        ({"dropout": 1.0}, "dropout: expected"),
        ({"layers": ("lm_head",)}, "found lm_head"),
        ({"layers": ()}, "at least one"),
    ],
)
def test_choices_are_checked(values: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        LoraConfig(**values)


def test_merge_refuses_another_tokenizer(checkpoint: Path, tiny_tokenizers: dict[str, Path], tmp_path: Path) -> None:
    model = trained(checkpoint, LoraConfig(rank=4))
    save_adapter(tmp_path / "adapter", updates_of(model), LoraConfig(rank=4), None, tiny_tokenizers["llama"])
    with pytest.raises(CheckpointError, match="found another one"):
        merge_adapter(checkpoint, tmp_path / "adapter", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    for changes, message in (({"strength": float("nan")}, "strength"), ({"dtype": "int8"}, "dtype")):
        with pytest.raises(ConfigError, match=message):
            merge_adapter(checkpoint, tmp_path / "adapter", tmp_path / "out", **changes)


def with_tensors(folder: Path, **tensors: torch.Tensor) -> None:
    """Add tensors to an adapter, as PEFT names them."""
    from safetensors.torch import load_file, save_file

    named = {f"base_model.model.{name}": tensor.clone() for name, tensor in tensors.items()}
    save_file(load_file(folder / WEIGHTS) | named, folder / WEIGHTS)


def test_merge_with_tokens_added(checkpoint: Path, tmp_path: Path, engine_build: Path) -> None:
    """An adapter for more tokens: the merged checkpoint has their rows, the adapter's tokenizer, and
    a head of its own if only the embedding was trained."""
    from llamita.convert.export import export
    from llamita.tokenizer import load_tokenizer

    config, tokenizer = load_config(checkpoint), load_tokenizer(checkpoint)
    _, folder = saved(checkpoint, tmp_path / "adapter", LoraConfig(rank=4))
    tokens = ["<|user|>", "<|assistant|>"]
    tokenizer.with_control_tokens(tokens).save(folder)
    num_rows = tokenizer.vocab_size + 2
    with pytest.raises(CheckpointError, match="as many as the embedding has rows"):
        merge_adapter(checkpoint, folder, tmp_path / "refused")
    embedding, head = torch.randn(2, num_rows, config.hidden_size)
    with_tensors(folder, **{"model.embed_tokens.weight": embedding, "lm_head.weight": embedding})
    report = merge_adapter(checkpoint, folder, tmp_path / "tied")
    assert (report.num_new_tokens, report.untied, report.config.vocab_size) == (2, False, num_rows)
    with_tensors(folder, **{"lm_head.modules_to_save.weight": head, "lm_head.original_module.weight": embedding})
    report = merge_adapter(checkpoint, folder, tmp_path / "merged")
    assert (report.num_new_tokens, report.untied) == (2, True)
    assert report.replaced == ("model.embed_tokens", "lm_head")
    merged = load_tensors(tmp_path / "merged")
    assert torch.equal(merged["model.embed_tokens.weight"], embedding) and torch.equal(merged["lm_head.weight"], head)
    assert torch.equal(merged["model.norm.weight"], load_tensors(checkpoint)["model.norm.weight"])
    assert load_tokenizer(tmp_path / "merged").pieces()[-2:] == tokens
    export(tmp_path / "merged", tmp_path / "merged.gguf", "f32", verify=True)
    with pytest.raises(ConfigError, match=r"strength: expected 1, found .*: a trained model"):
        merge_adapter(checkpoint, folder, tmp_path / "half", strength=0.5)


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"model.embed_tokens.weight": (300, 63)}, r"embed_tokens.weight: expected shape .*, found \[300, 63\]"),
        ({"model.norm.weight": (63,)}, r"norm.weight: expected shape \[64\], found \[63\]"),
        ({"model.norm.base_layer.weight": (64,)}, "norm.base_layer.weight is not supported"),
        ({"model.embed_tokens.lora_A.weight": (4, 64)}, "embed_tokens.lora_A.weight is not supported"),
        ({"model.embed_tokens.lora_embedding_A": (4, 300)}, "embed_tokens.lora_embedding_B is missing"),
        (
            {"model.embed_tokens.lora_embedding_A": (4, 9), "model.embed_tokens.lora_embedding_B": (64, 4)},
            r"expected an update of \d+ rows of 64, found \[4, 9\] and \[64, 4\]",
        ),
        (
            {"model.embed_tokens.token_adapter.trainable_tokens_delta": (2, 64)},
            r"a row of 64 for each id of trainable_token_indices, .* found shape \[2, 64\] and 0 ids",
        ),
        (
            {"lm_head.weight": (300, 64), "lm_head.base_layer.weight": (300, 64), "lm_head.lora_A.weight": (4,)},
            "lm_head.lora_B.weight is missing",
        ),
        ({"model.rotary.weight": (4,)}, "model.rotary: expected a linear layer"),
        (
            {
                "lm_head.base_layer.weight": (300, 64),
                "lm_head.token_adapter.base_layer.weight": (300, 64),
            },
            "lm_head: expected one tensor base, found two",
        ),
    ],
)
def test_trained_tensors_that_do_not_fit(
    checkpoint: Path, tmp_path: Path, tensors: dict[str, tuple[int, ...]], message: str
) -> None:
    _, folder = saved(checkpoint, tmp_path / "adapter", LoraConfig(rank=4))
    with_tensors(folder, **{name: torch.ones(shape) for name, shape in tensors.items()})
    with pytest.raises(CheckpointError, match=message):
        load_adapter(folder, load_config(checkpoint))


def test_a_checkpoint_holds_the_copies(checkpoint: Path, tmp_path: Path) -> None:
    """A thread writes the adapter while the network goes on being trained."""
    model = trained(checkpoint, LoraConfig(2))
    copies = {name: torch.randn_like(weight) for name, weight in model.named_parameters() if weight.requires_grad}
    base = SimpleNamespace(directory=checkpoint, write_tokenizer=lambda folder: None)
    task: Any = SimpleNamespace(lora=LoraConfig(2), model=model, base=base, card=ModelCard)
    FinetuneTask.save(task, tmp_path / "step", copies, TrainingState({}, {}))
    found = load_adapter(tmp_path / "step", model.config).updates
    for name, _ in lora_layers(model):
        assert torch.equal(found[name].a, copies[f"{name}.lora_A.weight"])
        assert torch.equal(found[name].b, copies[f"{name}.lora_B.weight"])

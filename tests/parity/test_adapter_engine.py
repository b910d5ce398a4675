"""Adapters in the engine: the merged model's logits, alone, together and with scales, and back to the base."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

import llamita
from llamita.checkpoint import load_model
from llamita.cli import main
from llamita.convert.export import export
from llamita.errors import EngineError
from llamita.finetune.adapter import save_adapter
from llamita.finetune.adapter_gguf import export_adapter
from llamita.finetune.lora import LoraConfig, add_lora, lora_layers, updates_of
from llamita.finetune.merge_lora import merge_adapter
from llamita.formats.gguf import read_gguf, write_gguf

pytestmark = pytest.mark.usefixtures("engine_build")

IDS = np.random.default_rng(3).integers(3, 300, 90)
CONFIGS = {"first": LoraConfig(rank=4, alpha=6.0), "second": LoraConfig(rank=3, layers=("q_proj", "v_proj"))}


@pytest.fixture(scope="module")
def files(make_checkpoint: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with base.gguf, NAME.gguf of each adapter, and merged.gguf: the base with `first`."""
    folder = tmp_path_factory.mktemp("adapters")
    checkpoint = make_checkpoint(folder / "base")
    for name, config in CONFIGS.items():
        generator = torch.Generator().manual_seed(len(name))
        model = add_lora(load_model(checkpoint), config, generator)
        with torch.no_grad():
            for _, layer in lora_layers(model):
                layer.lora_B.weight.normal_(0, 0.1, generator=generator)
        save_adapter(folder / name, updates_of(model), config, str(checkpoint), checkpoint)
        export_adapter(folder / name, checkpoint, folder / f"{name}.gguf")
    export(checkpoint, folder / "base.gguf", "f32", verify=False)
    merge_adapter(checkpoint, folder / "first", folder / "merged")
    export(folder / "merged", folder / "merged.gguf", "f32", verify=False)
    return folder


def test_applied_is_merged(files: Path) -> None:
    with llamita.load(files / "base.gguf") as model, llamita.load(files / "merged.gguf") as merged:
        adapter = model.load_adapter(files / "first.gguf")
        assert adapter.info.rank == 4 and adapter.info.num_matrices == 14 and adapter.info.alpha == 6
        expected = merged.logits(IDS, kv_type="f32")
        scale = np.abs(expected).max()
        applied = model.logits(IDS, kv_type="f32", adapters=[adapter])
        assert np.abs(applied - expected).max() < 1e-4 * scale
        assert np.abs(model.logits(IDS, kv_type="f32") - expected).max() > 0.05 * scale


def test_bits_do_not_depend_on_how(files: Path) -> None:
    """Any threads, any pieces, both kernels, and any adapters before: the same bits; without adapters the base's."""
    with llamita.load(files / "base.gguf") as model, llamita.load(files / "base.gguf", kernels="scalar") as scalar:
        base = model.logits(IDS)
        pair = [
            (model.load_adapter(files / f"{name}.gguf"), scale)
            for name, scale in zip(CONFIGS, (0.8, -0.5), strict=True)
        ]
        expected = model.logits(IDS, num_threads=1, adapters=pair)
        assert not np.array_equal(expected, base)
        other = [
            (scalar.load_adapter(files / f"{name}.gguf"), scale)
            for name, scale in zip(CONFIGS, (0.8, -0.5), strict=True)
        ]
        np.testing.assert_array_equal(scalar.logits(IDS, adapters=other), expected)
        for num_threads in (2, 4):
            with model.session(num_threads=num_threads) as session:
                session.feed(IDS[:20])
                session.set_adapters(pair)
                assert session.position == 0
                pieces = [session.feed_logits(part) for part in np.split(IDS, [1, 4, 37])]
                np.testing.assert_array_equal(np.concatenate(pieces), expected)
                session.set_adapters([])
                np.testing.assert_array_equal(session.feed_logits(IDS), base)


def test_sequences_with_different_adapters(files: Path) -> None:
    with llamita.load(files / "base.gguf") as model, model.session(num_sequences=3) as session:
        adapters = [(), [model.load_adapter(files / "first.gguf")], [(model.load_adapter(files / "second.gguf"), 2.0)]]
        for sequence, uses in enumerate(adapters):
            session.sequence_set_adapters(sequence, uses)
        rows = session.decode([(sequence, IDS[:9], 1) for sequence in range(3)])
        for row, uses in zip(rows, adapters, strict=True):
            np.testing.assert_array_equal(row, model.logits(IDS[:9], adapters=uses)[-1])
        with pytest.raises(EngineError, match="expected the same adapters"):
            session.sequence_share(0, 1, 5)


def test_lifetimes(files: Path) -> None:
    model = llamita.load(files / "base.gguf")
    adapter = model.load_adapter(files / "first.gguf")
    expected = model.logits(IDS, adapters=[adapter])
    with model.session(adapters=[adapter]) as session:
        adapter.close()
        np.testing.assert_array_equal(session.feed_logits(IDS), expected)  # the session holds it
        with pytest.raises(EngineError, match="adapter: it has been closed"):
            session.set_adapters([adapter])
    with pytest.raises(EngineError, match="expected a model, found an adapter; open the model"):
        llamita.load(files / "first.gguf")
    with pytest.raises(EngineError, match="expected adapter, found"):
        model.load_adapter(files / "base.gguf")
    model.close()


def test_run_generates_what_the_merged_model_generates(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["-i", "Once", "-n", "12", "-t", "0", "--kv", "f32"]
    assert main(["run", str(files / "merged.gguf"), *words]) == 0
    expected = capsys.readouterr().out
    assert main(["run", str(files / "base.gguf"), *words, "--adapter", str(files / "first.gguf")]) == 0
    printed = capsys.readouterr()
    assert printed.out == expected and "made for" not in printed.err
    assert main(["run", str(files / "base.gguf"), *words, "--adapter", f"{files / 'first.gguf'}:0"]) == 0
    base = capsys.readouterr().out
    assert base != expected
    assert main(["run", str(files / "base.gguf"), *words, "--adapter", str(files / "gone.gguf:0.5")]) == 2
    assert "cannot open adapter" in capsys.readouterr().err


def test_another_base_of_the_same_shape_gives_a_warning(
    files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Once for each adapter; not where only the spelling differs, or where one of the two has no name."""
    assert read_gguf(files / "first.gguf").metadata["general.base_model.0.name"] == "base"
    shutil.copytree(files / "base", tmp_path / "Ba-se")
    for name, checkpoint in {"other": files / "merged", "same": tmp_path / "Ba-se"}.items():
        made = shutil.copytree(files / "second", tmp_path / name)
        settings = json.loads((made / "adapter_config.json").read_text())
        (made / "adapter_config.json").write_text(json.dumps(settings | {"base_model_name_or_path": str(checkpoint)}))
        report = export_adapter(made, files / "base", tmp_path / f"{name}.gguf")
        assert report.other_base == str(checkpoint), "what the adapter says counts, not the checkpoint beside it"
    file = read_gguf(tmp_path / "other.gguf")
    unnamed = {key: value for key, value in file.metadata.items() if "base_model" not in key}
    infos = [(tensor.name, "F32", tensor.shape) for tensor in file.tensors.values()]
    write_gguf(tmp_path / "unnamed.gguf", unnamed, infos, (file.data(name) for name in file.tensors))
    adapters = [f"--adapter={tmp_path / name}.gguf:0.5" for name in ("other", "same", "unnamed")]
    assert main(["run", str(files / "base.gguf"), "-n", "2", "-s", "1", *adapters]) == 0
    warnings = [line for line in capsys.readouterr().err.splitlines() if "made for" in line]
    assert warnings == [
        f"adapter {tmp_path / 'other.gguf'}: it was made for 'merged', and this model is 'base': it is "
        "useless with another checkpoint"
    ]


def test_the_program_generates_the_same(files: Path, engine_build: Path) -> None:
    def generated(model: str, *words: str) -> tuple[int, str]:
        command = [engine_build / "run", files / model, "-i", "Once", "-n", "12", "-t", "0", "--kv", "f32", *words]
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=60)
        return done.returncode, done.stdout if done.returncode == 0 else done.stderr

    adapter = f"--adapter={files / 'first.gguf'}"
    assert generated("base.gguf", adapter) == generated("merged.gguf")
    assert generated("base.gguf", f"{adapter}:0.5", f"{adapter}:0.5") == generated("merged.gguf")
    assert generated("base.gguf", f"{adapter}:0") == generated("base.gguf") != generated("merged.gguf")
    code, line = generated("base.gguf", f"{adapter}:1e39")
    assert code == 2 and "scale of adapter 0: expected a finite number" in line
    code, line = generated("base.gguf", "--adapter", str(files / "base.gguf"))
    assert code == 2 and "expected adapter, found" in line


def test_an_adapter_of_the_embedding_is_refused_by_name(files: Path, tmp_path: Path) -> None:
    """What llama.cpp's converter writes for a trained embedding: the engine names it, and the way out."""
    file = read_gguf(files / "first.gguf")
    rows = load_model(files / "base").config.vocab_size
    infos = [(tensor.name, tensor.type, tensor.shape) for tensor in file.tensors.values()]
    infos += [("token_embd.weight.lora_a", "F32", (4, 64)), ("token_embd.weight.lora_b", "F32", (rows, 4))]
    data = [*(file.data(name) for name in file.tensors), np.zeros((4, 64), "<f4"), np.zeros((rows, 4), "<f4")]
    write_gguf(tmp_path / "more.gguf", file.metadata, infos, (np.ascontiguousarray(x).view(np.uint8) for x in data))
    expected = r"token_embd\.weight\.lora_a: .*trains other tensors: merge it \(llamita merge\)"
    with llamita.load(files / "base.gguf") as model, pytest.raises(EngineError, match=expected):
        model.load_adapter(tmp_path / "more.gguf")

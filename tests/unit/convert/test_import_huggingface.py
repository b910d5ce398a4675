"""Imported Hugging Face folders: shards, pickles, old and new spellings; unsupported features."""

from __future__ import annotations

import json
import shutil
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from safetensors.torch import save_file  # noqa: E402

from llamita.checkpoint import load_config, load_tensors  # noqa: E402
from llamita.convert import import_huggingface  # noqa: E402
from llamita.convert.export import export  # noqa: E402
from llamita.convert.import_huggingface import is_hub_id  # noqa: E402
from llamita.convert.import_model import import_model  # noqa: E402
from llamita.errors import ConfigError, FormatError, LlamitaError, NetworkError, TokenizerError  # noqa: E402
from llamita.formats.rope_order import permute_qk  # noqa: E402
from llamita.formats.tensor_table import tensor_table  # noqa: E402
from llamita.tokenizer import load_tokenizer  # noqa: E402
from tests.pickle_bomb import PickleBomb  # noqa: E402

MakeCheckpoint = Callable[..., Path]


def same_weights(ours: Path, theirs: Path, dtype: Any = None) -> None:
    found, expected = load_tensors(ours), load_tensors(theirs)
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor if dtype is None else tensor.to(dtype)), name


def as_pickles(folder: Path, num_files: int, change: Callable[[dict[str, Any]], object] | None = None) -> None:
    """Replace model.safetensors by pytorch_model.bin, or by shards of it and their index."""
    tensors = load_tensors(folder)
    if change is not None:
        change(tensors)
    (folder / "model.safetensors").unlink()
    if num_files == 1:
        torch.save(tensors, folder / "pytorch_model.bin")
        return
    names, weight_map = sorted(tensors), {}
    for number in range(num_files):
        file = f"pytorch_model-{number + 1:05d}-of-{num_files:05d}.bin"
        part = {name: tensors[name] for name in names[number::num_files]}
        torch.save(part, folder / file)
        weight_map |= dict.fromkeys(part, file)
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": weight_map}))


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("kind", ["one file", "shards", "pickle", "pickles"])
def test_weights_in_every_packing(make_checkpoint: MakeCheckpoint, tmp_path: Path, kind: str, tied: bool) -> None:
    checkpoint = make_checkpoint(tmp_path / "original", tie_word_embeddings=tied, head_dim=32)
    source = tmp_path / "source"
    if kind == "shards":
        export(checkpoint, source, shard_bytes=60_000)
        assert len(list(source.glob("model-*.safetensors"))) > 2
    else:
        shutil.copytree(checkpoint, source)
        if kind.startswith("pickle"):
            as_pickles(source, 1 if kind == "pickle" else 3)
    report = import_model(source, tmp_path / "out")
    assert report.kind == f"Hugging Face, {'PyTorch pickle' if kind.startswith('pickle') else 'safetensors'}"
    same_weights(tmp_path / "out", checkpoint)
    assert load_config(tmp_path / "out") == load_config(checkpoint)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (tmp_path / "out" / name).read_bytes() == (checkpoint / name).read_bytes()
    assert not list(tmp_path.glob("out/*.bin"))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_types_are_kept(make_checkpoint: MakeCheckpoint, tmp_path: Path, dtype: Any) -> None:
    name = str(dtype).removeprefix("torch.")
    checkpoint = make_checkpoint(tmp_path / "original")
    export(checkpoint, tmp_path / "typed", dtype=name)
    assert import_model(tmp_path / "typed", tmp_path / "out").num_tensors_by_type == {name: 20}
    same_weights(tmp_path / "out", checkpoint, dtype)
    assert json.loads((tmp_path / "out" / "config.json").read_text())["torch_dtype"] == name


def change_config(folder: Path, name: str = "config.json", **changes: Any) -> None:
    content = json.loads((folder / name).read_text()) | changes
    (folder / name).write_text(json.dumps({key: value for key, value in content.items() if value is not ...}))


def test_tokenizer_files_are_kept(make_checkpoint: MakeCheckpoint, tmp_path: Path) -> None:
    checkpoint = make_checkpoint(tmp_path / "model", eos_token_id=0)
    (checkpoint / "chat_template.jinja").write_text("{{ messages }}")
    (checkpoint / "special_tokens_map.json").write_text("{}")
    (checkpoint / "README.md").write_text("no")
    (checkpoint / "code.py").write_text("raise SystemExit")
    change_config(checkpoint, "generation_config.json", eos_token_id=[0, 2, 9999])
    assert load_config(checkpoint).eos_token_ids == (0, 2), "a folder that is used as it is"
    import_model(checkpoint, tmp_path / "out")
    assert load_config(tmp_path / "out").eos_token_ids == (0, 2)
    assert load_tokenizer(tmp_path / "out").chat_template == "{{ messages }}"
    assert not (tmp_path / "out" / "README.md").exists() and not (tmp_path / "out" / "code.py").exists()
    assert (tmp_path / "out" / "special_tokens_map.json").is_file()
    import_model(checkpoint, tmp_path / "other", chat_template="chatml")
    assert "im_start" in str(load_tokenizer(tmp_path / "other").chat_template)


def test_a_sentencepiece_model_alone_becomes_tokenizer_json(
    make_checkpoint: MakeCheckpoint, tmp_path: Path, tiny_tokenizers: dict[str, Path]
) -> None:
    checkpoint = make_checkpoint(tmp_path / "model", "llama")
    (checkpoint / "tokenizer.json").unlink()
    (checkpoint / "tokenizer_config.json").unlink()
    import_model(checkpoint, tmp_path / "out")
    assert load_tokenizer(tmp_path / "out").fingerprint == load_tokenizer(tiny_tokenizers["llama"]).fingerprint
    (checkpoint / "tokenizer.model").unlink()
    refuse(checkpoint, tmp_path / "none", "no tokenizer in", TokenizerError)
    import_model(checkpoint, tmp_path / "named", tiny_tokenizers["llama"])
    assert (tmp_path / "named" / "tokenizer.json").is_file()


def test_a_tiktoken_companion_is_ignored(make_meta: Callable[..., Any], tmp_path: Path, tiktoken_ranks: bytes) -> None:
    """Folders of Llama 3 have tokenizer.json and, in some, Meta's tokenizer.model too."""
    import_model(make_meta(tmp_path, 1, "3").path, tmp_path / "source")
    (tmp_path / "source" / "tokenizer.model").write_bytes(tiktoken_ranks)
    import_model(tmp_path / "source", tmp_path / "out")
    assert load_tokenizer(tmp_path / "out").fingerprint == load_tokenizer(tmp_path / "source").fingerprint
    assert (tmp_path / "out" / "tokenizer.model").read_bytes() == tiktoken_ranks
    (tmp_path / "source" / "tokenizer.json").unlink()  # the ranks alone will do
    import_model(tmp_path / "source", tmp_path / "alone")
    assert load_tokenizer(tmp_path / "alone").merges() == load_tokenizer(tmp_path / "out").merges()


def test_mistral_is_a_llama_within_its_window(make_checkpoint: MakeCheckpoint, tmp_path: Path) -> None:
    checkpoint = make_checkpoint(tmp_path / "model")
    mistral = {"model_type": "mistral", "architectures": ["MistralForCausalLM"]}
    for number, window in enumerate((None, 128, 4096)):
        change_config(checkpoint, **mistral, sliding_window=window)
        import_model(checkpoint, tmp_path / f"out{number}")
        config = json.loads((tmp_path / f"out{number}" / "config.json").read_text())
        assert config["architectures"] == ["LlamaForCausalLM"] and "sliding_window" not in config
    change_config(checkpoint, sliding_window=64)
    refuse(checkpoint, tmp_path / "out", r"sliding_window: expected none, or .* \(128\), found 64; windowed attention")
    import_model(checkpoint, tmp_path / "shorter", context_tokens=64)
    assert load_config(tmp_path / "shorter").max_position_embeddings == 64
    change_config(checkpoint, sliding_window=..., max_position_embeddings=8192)
    # What MistralConfig takes when it is missing.
    refuse(checkpoint, tmp_path / "out", "sliding_window: .* found 4096")


def refuse(source: Path | str, out: Path, said: str, error: type[LlamitaError] = FormatError, **options: Any) -> None:
    before = sorted(out.parent.iterdir())
    with pytest.raises(error, match=said) as caught:
        import_model(source, out, **options)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 500
    assert sorted(out.parent.iterdir()) == before


def edit(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    from safetensors.torch import save_file

    tensors = load_tensors(folder)
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


Q = "model.layers.0.self_attn.q_proj"
BAD: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "missing": (lambda t: t.pop("model.norm.weight"), r"tensor model\.norm\.weight is missing"),
    "unknown": (lambda t: t.update(extra=torch.ones(2)), "unknown tensor extra; plain Llamas have no such"),
    "a bias": (lambda t: t.update({f"{Q}.bias": torch.ones(64)}), "q_proj.bias; plain Llamas have no biases"),
    "qk norms": (
        lambda t: t.update({"model.layers.0.self_attn.q_norm.weight": torch.ones(16)}), "no norms on queries and keys",
    ),
    "another shape": (lambda t: t.update({f"{Q}.weight": torch.ones(64, 65)}), r"expected shape \[64, 64\]"),
    "whole numbers": (
        lambda t: t.update({f"{Q}.weight": torch.ones(64, 64).long()}), "16, 32 or 64 bits, found int64",
    ),
    "doubles": (lambda t: t.update({f"{Q}.weight": torch.ones(64, 64).double()}), "found float64"),
    "NaN": (lambda t: t[f"{Q}.weight"].fill_(float("nan")), "expected finite numbers"),
    "infinite": (lambda t: t[f"{Q}.weight"][3, 4].fill_(float("inf")), "expected finite numbers"),
    "tied, another output": (
        lambda t: t.update({"lm_head.weight": torch.ones(320, 64)}), "sets tie_word_embeddings, but lm_head.weight",
    ),
    "tied, another output's shape": (lambda t: t.update({"lm_head.weight": torch.ones(3)}), "tie_word_embeddings"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_tensors_that_do_not_belong(make_checkpoint: MakeCheckpoint, tmp_path: Path, name: str) -> None:
    checkpoint = make_checkpoint(tmp_path / "model")
    change, said = BAD[name]
    edit(checkpoint, change)
    refuse(checkpoint, tmp_path / "out", said)


def test_harmless_extras(make_checkpoint: MakeCheckpoint, tmp_path: Path) -> None:
    """Buffers of old versions of transformers, and a copy of a tied embedding."""
    checkpoint = make_checkpoint(tmp_path / "model")
    original = load_tensors(checkpoint)
    extras = {
        "model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(8),
        "lm_head.weight": original["model.embed_tokens.weight"].clone(),
    }
    edit(checkpoint, lambda tensors: tensors.update(extras))
    import_model(checkpoint, tmp_path / "out")
    assert load_tensors(tmp_path / "out").keys() == original.keys()
    as_pickles(checkpoint, 2)
    import_model(checkpoint, tmp_path / "pickled")
    same_weights(tmp_path / "pickled", tmp_path / "out")


def test_pickles_with_code_or_duplicates(make_checkpoint: MakeCheckpoint, tmp_path: Path) -> None:
    checkpoint = make_checkpoint(tmp_path / "model")
    as_pickles(checkpoint, 1, lambda tensors: tensors.update(bomb=PickleBomb(tmp_path / "ran")))
    refuse(checkpoint, tmp_path / "out", r"pickle contains code \((posix|nt)\.system\)")
    assert not (tmp_path / "ran").exists()
    other = make_checkpoint(tmp_path / "other")
    as_pickles(other, 2)
    path = other / "pytorch_model-00002-of-00002.bin"
    torch.save(torch.load(path, weights_only=True) | {"model.norm.weight": torch.ones(64)}, path)
    first = torch.load(other / "pytorch_model-00001-of-00002.bin", weights_only=True)
    torch.save(first | {"model.norm.weight": torch.ones(64)}, other / "pytorch_model-00001-of-00002.bin")
    refuse(other, tmp_path / "out", r"tensor model\.norm\.weight occurs twice")
    path.unlink()
    refuse(other, tmp_path / "out", "No such file")


def test_incomplete_folders(make_checkpoint: MakeCheckpoint, tmp_path: Path) -> None:
    checkpoint = make_checkpoint(tmp_path / "model")
    change_config(checkpoint, vocab_size=300)
    refuse(checkpoint, tmp_path / "out", r"embed_tokens\.weight: expected shape \[300, 64\], found \[320, 64\]")
    change_config(checkpoint, vocab_size=320, model_type="minicpm", architectures=["MiniCPMForCausalLM"])
    refuse(checkpoint, tmp_path / "out", "model_type: expected llama, .*found 'minicpm'; it would need scaled emb")
    change_config(checkpoint, model_type="llama", architectures=["LlamaForSequenceClassification"])
    refuse(checkpoint, tmp_path / "out", "architectures: expected LlamaForCausalLM, found LlamaForSequence")
    change_config(checkpoint, architectures=["LlamaForCausalLM"])
    (checkpoint / "config.json").rename(checkpoint / "configuration.json")
    refuse(checkpoint, tmp_path / "out", r"expected a folder with config\.json")
    (checkpoint / "configuration.json").rename(checkpoint / "config.json")
    refuse(checkpoint / "model.safetensors", tmp_path / "out", "it contains only weights; import its folder")
    (checkpoint / "model.safetensors").unlink()
    refuse(checkpoint, tmp_path / "out", r"no weights next to config\.json")


def test_context_out_of_range(make_checkpoint: MakeCheckpoint, tmp_path: Path) -> None:
    checkpoint = make_checkpoint(tmp_path / "model")
    for tokens in (0, -3, 1 << 40):
        refuse(checkpoint, tmp_path / "out", "expected", context_tokens=tokens)
    # Tables that would fill the memory.
    change_config(checkpoint, max_position_embeddings=2**31 - 1)
    refuse(checkpoint, tmp_path / "out", "context: expected 1 to 16777216 tokens, found 2147483647; set a shorter one")
    import_model(checkpoint, tmp_path / "out", context_tokens=50)


# ---------------------------------------------------------------- the hub, without a network


def fake_hub(monkeypatch: pytest.MonkeyPatch, answer: Callable[..., str]) -> None:
    module = types.ModuleType("huggingface_hub")
    module.snapshot_download = answer  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "huggingface_hub", module)


def test_hub_ids(make_checkpoint: MakeCheckpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = make_checkpoint(tmp_path / "model")
    asked: list[list[str]] = []

    def answer(name: str, allow_patterns: list[str]) -> str:
        assert name == "someone/tiny-llama-chat"
        asked.append(allow_patterns)
        return str(checkpoint)

    fake_hub(monkeypatch, answer)
    report = import_model("someone/tiny-llama-chat", tmp_path / "out")
    same_weights(tmp_path / "out", checkpoint)
    assert len(asked) == 1 and "model*.safetensors" in asked[0] and not any("py" in name for name in asked[0])
    assert any("the name suggests a chat model" in note for note in report.notes)
    as_pickles(checkpoint, 1)
    import_model("someone/tiny-llama-chat", tmp_path / "pickled")
    assert "pytorch_model*.bin" in asked[-1]


def test_hub_without_the_package_or_the_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(name: str, allow_patterns: list[str]) -> str:
        raise OSError("cannot\nreach it")

    fake_hub(monkeypatch, fail)
    refuse("some/model", tmp_path / "out", "the download from the Hugging Face hub failed: cannot reach it",
           NetworkError)  # fmt: skip
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    refuse("some/model", tmp_path / "out", "pip install huggingface_hub", ConfigError)


def test_what_looks_like_a_hub_id() -> None:
    assert is_hub_id("meta-llama/Llama-3.2-1B") and is_hub_id("a/b")
    for text in ("model", "a/b/c", "./a/b", "/a/b", "../b", "a/b.gguf", "models/x.bin", "a b/c", "a/"):
        assert not is_hub_id(text), text


# ---------------------------------------------------------------- weights in other places, under other names


def rewrite(folder: Path, change: Callable[[dict[str, Any]], dict[str, Any]], name: str = "model.safetensors") -> None:
    """Replace the weights of a folder by changed ones in a file of this name."""
    tensors = load_tensors(folder)
    (folder / "model.safetensors").unlink()
    save_file({key: tensor.contiguous() for key, tensor in change(tensors).items()}, folder / name)


def test_shards_without_an_index(make_checkpoint: MakeCheckpoint, tmp_path: Path) -> None:
    checkpoint = make_checkpoint(tmp_path / "original")
    export(checkpoint, tmp_path / "source", shard_bytes=60_000)
    (tmp_path / "source" / "model.safetensors.index.json").unlink()
    import_model(tmp_path / "source", tmp_path / "out")
    same_weights(tmp_path / "out", checkpoint)
    second = sorted((tmp_path / "source").glob("model-*.safetensors"))[1]
    shutil.copyfile(second, tmp_path / "source" / "copy.safetensors")
    refuse(tmp_path / "source", tmp_path / "two", "or shards of one model, found copy.safetensors")
    (tmp_path / "source" / "copy.safetensors").unlink()
    second.unlink()
    refuse(tmp_path / "source", tmp_path / "missing", f"expected . shards, found .: {second.name} is missing")


@pytest.mark.parametrize("name", ["consolidated.safetensors", "anything.safetensors"])
def test_one_file_of_another_name(make_checkpoint: MakeCheckpoint, tmp_path: Path, name: str) -> None:
    checkpoint = make_checkpoint(tmp_path / "original")
    source = Path(shutil.copytree(checkpoint, tmp_path / "source"))
    (source / "model.safetensors").rename(source / name)
    import_model(source, tmp_path / "out")
    same_weights(tmp_path / "out", checkpoint)


@pytest.mark.parametrize("tied", [True, False])
def test_names_of_meta_in_safetensors(make_checkpoint: MakeCheckpoint, tmp_path: Path, tied: bool) -> None:
    """As in Mistral's consolidated.safetensors: rows of q and k are interleaved."""
    checkpoint = make_checkpoint(tmp_path / "original", tie_word_embeddings=tied)
    config = load_config(checkpoint)
    source = Path(shutil.copytree(checkpoint, tmp_path / "source"))

    def to_meta(tensors: dict[str, Any]) -> dict[str, Any]:
        result = {}
        for spec in tensor_table(config):
            tensor, heads = tensors[spec.huggingface], spec.rope_heads(config)
            result[spec.name("llama2c")] = (
                tensor if heads is None else torch.from_numpy(permute_qk(tensor.numpy(), heads))
            )
        if tied:
            result["output.weight"] = result["tok_embeddings.weight"].clone()
        return result

    rewrite(source, to_meta, "consolidated.safetensors")
    import_model(source, tmp_path / "out")
    same_weights(tmp_path / "out", checkpoint)


def test_names_of_compiled_and_of_base_models(make_checkpoint: MakeCheckpoint, tmp_path: Path) -> None:
    checkpoint = make_checkpoint(tmp_path / "original", tie_word_embeddings=True)
    for number, change in enumerate(
        (
            lambda tensors: {f"_orig_mod.{name}": tensor for name, tensor in tensors.items()},
            lambda tensors: {name.replace("model.", "model._orig_mod."): tensor for name, tensor in tensors.items()},
            lambda tensors: {name.removeprefix("model."): tensor for name, tensor in tensors.items()},
        )
    ):
        source = Path(shutil.copytree(checkpoint, tmp_path / f"source{number}"))
        rewrite(source, change)
        if number == 2:
            change_config(source, architectures=["LlamaModel"])
        import_model(source, tmp_path / f"out{number}")
        same_weights(tmp_path / f"out{number}", checkpoint)
    source = Path(shutil.copytree(checkpoint, tmp_path / "source"))
    rewrite(source, lambda t: t | {"_orig_mod.model.norm.weight": t["model.norm.weight"].clone()})
    refuse(source, tmp_path / "out", "expected unique tensor names without _orig_mod")


def test_float64_needs_a_type(make_checkpoint: MakeCheckpoint, tmp_path: Path) -> None:
    source = make_checkpoint(tmp_path / "source")
    expected = load_tensors(source)
    rewrite(source, lambda tensors: {name: tensor.double() for name, tensor in tensors.items()})
    refuse(source, tmp_path / "none", "expected weights of 16 or 32 bits, found float64; give a type with --dtype")
    import_model(source, tmp_path / "out", dtype="float32")
    found = load_tensors(tmp_path / "out")
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


def test_a_list_of_chat_templates_without_default_is_noted(make_checkpoint: MakeCheckpoint, tmp_path: Path) -> None:
    source = make_checkpoint(tmp_path / "source")
    templates = [{"name": "tool_use", "template": "t"}, {"name": "rag", "template": "r"}]
    change_config(source, "tokenizer_config.json", chat_template=templates)
    (note,) = [note for note in import_model(source, tmp_path / "out").notes if "template" in note]
    assert note.startswith("no chat template: tokenizer_config.json has rag, tool_use, and none named default")


@pytest.mark.parametrize("method", ["gptq", "bitsandbytes", "compressed-tensors"])
def test_quantized_weights_are_refused_by_name(make_checkpoint: MakeCheckpoint, tmp_path: Path, method: str) -> None:
    source = make_checkpoint(tmp_path / "source")
    change_config(source, quantization_config={"quant_method": method})
    refuse(source, tmp_path / "out", f"quantization_config: quantization by {method} is not supported")


BLOCKS: dict[str, tuple[dict[str, Any], Callable[[Any], Any], str]] = {
    "one": ({"quant_method": "fp8"}, lambda w: w.abs().max().reshape(1), "_scale"),
    "rows": ({"quant_method": "fbgemm_fp8"}, lambda w: w.abs().amax(1, keepdim=True), "_scale"),
    "rows, compressed-tensors": (
        {"quant_method": "compressed-tensors", "format": "float-quantized"},
        lambda w: w.abs().amax(1, keepdim=True).bfloat16(), "_scale",
    ),
    "blocks": (
        {"quant_method": "fp8", "weight_block_size": [48, 40]},
        lambda w: torch.stack([torch.stack([part.abs().max() for part in rows.split(40, 1)]) for rows in w.split(48)]),
        "_scale_inv",
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", BLOCKS)
def test_fp8_weights(make_checkpoint: MakeCheckpoint, tmp_path: Path, kind: str) -> None:
    """weight · scale, in float32, with one scale, one for each row, or one for each block."""
    source = make_checkpoint(tmp_path / "source")
    settings, scale_of, suffix = BLOCKS[kind]
    expected: dict[str, Any] = {}

    def to_fp8(tensors: dict[str, Any]) -> dict[str, Any]:
        result = {"model.layers.0.self_attn.k_scale": torch.ones(1)}
        for name, tensor in tensors.items():
            if not name.endswith("_proj.weight"):
                result[name] = expected[name] = tensor
                continue
            scale = scale_of(tensor) / 448
            whole = torch.empty_like(tensor)
            for row in range(tensor.shape[0]):
                for column in range(tensor.shape[1]):
                    at = (
                        (row // 48, column // 40) if kind == "blocks" else (row, 0) if kind.startswith("rows") else (0,)
                    )
                    whole[row, column] = scale[at].float()
            result[name] = (tensor / whole).to(torch.float8_e4m3fn)
            result[name + suffix] = scale
            expected[name] = result[name].float() * whole
        return result

    rewrite(source, to_fp8)
    change_config(source, quantization_config=settings)
    report = import_model(source, tmp_path / "out")
    found = load_tensors(tmp_path / "out")
    assert found.keys() == expected.keys() and report.kind == "Hugging Face, safetensors, FP8"
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name
    assert any("FP8 weights dequantized" in note for note in report.notes)
    parts = import_huggingface._dequantized(import_huggingface._open_weights(source), (48, 40), source)
    for first in range(0, 60, 7):  # large matrices are read by rows
        assert torch.equal(parts.read(f"{Q}.weight", first, 7), expected[f"{Q}.weight"][first : first + 7])
    change_config(source, quantization_config={"quant_method": "fp8", "weight_block_size": [7]})
    refuse(source, tmp_path / "bad", "weight_block_size: expected two")
    change_config(source, quantization_config=...)
    refuse(source, tmp_path / "none", "unknown tensor|found float8_e4m3fn")


def test_fp8_without_scales_is_refused(make_checkpoint: MakeCheckpoint, tmp_path: Path) -> None:
    source = make_checkpoint(tmp_path / "source")
    rewrite(source, lambda t: t | {f"{Q}.weight": t[f"{Q}.weight"].to(torch.float8_e4m3fn)})
    change_config(source, quantization_config={"quant_method": "fp8"})
    refuse(source, tmp_path / "out", f"tensor {Q}.weight: expected FP8 numbers with a tensor _scale .* found none")

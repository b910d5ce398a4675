"""Imported GGUF files: weights, settings and tokenizer survive; other models are refused."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from llamita.checkpoint import load_config, load_tensors  # noqa: E402
from llamita.convert.export import export  # noqa: E402
from llamita.convert.import_model import import_model  # noqa: E402
from llamita.engine import Model  # noqa: E402
from llamita.errors import ConfigError, EngineError, FormatError, LlamitaError, TokenizerError  # noqa: E402
from llamita.formats import gguf_metadata  # noqa: E402
from llamita.formats.gguf import GgufFile, read_gguf, write_gguf  # noqa: E402
from llamita.formats.gguf_keys import GgufKey, known_keys  # noqa: E402
from llamita.tokenizer import load_tokenizer  # noqa: E402
from llamita.tokenizer.chat_templates import CHAT_TEMPLATES  # noqa: E402
from llamita.tokenizer.gguf import tokenizer_from_gguf  # noqa: E402
from tests.rope_scalings import LLAMA3  # noqa: E402

MakeCheckpoint = Callable[..., Path]


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
@pytest.mark.parametrize(
    "changes",
    [
        {}, {"tie_word_embeddings": False}, {"head_dim": 32}, {"rope_theta": 5e5, "rms_norm_eps": 1e-6},
        {"rope_scaling": {"rope_type": "linear", "factor": 4.0}}, {"rope_scaling": LLAMA3, "head_dim": 64},
        {"num_key_value_heads": 4}, {"vocab_size": 448},
    ],
)  # fmt: skip
def test_round_trip_is_bit_equal(
    make_checkpoint: MakeCheckpoint, tmp_path: Path, kind: str, changes: dict[str, Any]
) -> None:
    checkpoint = make_checkpoint(tmp_path / "model", kind, **changes)
    export(checkpoint, tmp_path / "model.gguf", "f32", verify=False)
    report = import_model(tmp_path / "model.gguf", tmp_path / "out")
    assert report.kind == "GGUF version 3" and report.tokenizer_path == tmp_path / "model.gguf"
    before, after = load_tensors(checkpoint), load_tensors(tmp_path / "out")
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)
    old, new = load_config(checkpoint), load_config(tmp_path / "out")
    assert dataclasses.replace(new, eos_token_id=None) == dataclasses.replace(old, eos_token_id=None)
    assert set(new.eos_token_ids) >= set(old.eos_token_ids)
    ours, theirs = load_tokenizer(tmp_path / "out"), load_tokenizer(checkpoint)
    text = "Once upon a time, 1024 llamas\n\n床前明月光 🦙 don't \t<|im_start|> <s>"
    assert ours.encode(text) == theirs.encode(text)
    assert ours.encode(text, parse_special=True) == theirs.encode(text, parse_special=True)
    assert (ours.bos_id, ours.eos_id, set(ours.end_ids)) == (theirs.bos_id, theirs.eos_id, set(theirs.end_ids))
    assert (ours.kind, ours.split) == (theirs.kind, theirs.split)
    assert ours.pieces() == theirs.pieces()


@pytest.mark.parametrize(
    ("type", "dtype"),
    [
        ("f16", "float16"), ("bf16", "bfloat16"), ("q8_0", "float32"), ("q4_0", "float32"), ("q5_1", "float32"),
        ("q6_k", "float32"), ("q4_k_m", "float32"),
    ],
)  # fmt: skip
def test_types(make_checkpoint: MakeCheckpoint, engine_build: Path, tmp_path: Path, type: str, dtype: str) -> None:
    """Plain types come back bit for bit, quantized ones are dequantized."""
    checkpoint = make_checkpoint(tmp_path / "model", hidden_size=256, intermediate_size=512, head_dim=64)
    export(checkpoint, tmp_path / "model.gguf", type, verify=False)
    report = import_model(tmp_path / "model.gguf", tmp_path / "out")
    assert report.num_tensors_by_type[dtype] >= 15
    file, tensors = read_gguf(tmp_path / "model.gguf"), load_tensors(tmp_path / "out")
    assert np.array_equal(file.dequantize("blk.1.ffn_up.weight"), tensors["model.layers.1.mlp.up_proj.weight"].float())
    assert any("dequantized" in note for note in report.notes) == type.startswith("q")
    if not type.startswith("q"):
        export(tmp_path / "out", tmp_path / "again.gguf", type, verify=False)
        again = read_gguf(tmp_path / "again.gguf")
        for name in file.tensors:
            assert np.array_equal(again.data(name), file.data(name)), name


def test_chat_templates_are_kept(make_checkpoint: MakeCheckpoint, tmp_path: Path) -> None:
    checkpoint = make_checkpoint(tmp_path / "model")
    path = checkpoint / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"chat_template": CHAT_TEMPLATES["chatml"]}))
    export(checkpoint, tmp_path / "model.gguf", "f16", verify=False)
    import_model(tmp_path / "model.gguf", tmp_path / "out")
    assert load_tokenizer(tmp_path / "out").chat_template == CHAT_TEMPLATES["chatml"]


def test_tokenizer_option_replaces_the_files_own(
    make_checkpoint: MakeCheckpoint, tmp_path: Path, tiny_tokenizers: dict[str, Path]
) -> None:
    export(make_checkpoint(tmp_path / "model", "llama"), tmp_path / "model.gguf", "f16", verify=False)
    import_model(tmp_path / "model.gguf", tmp_path / "out", tiny_tokenizers["llama"])
    assert (tmp_path / "out" / "tokenizer.model").is_file()


# ---------------------------------------------------------------- refusals


@pytest.fixture(scope="module")
def original(make_checkpoint: MakeCheckpoint, tmp_path_factory: pytest.TempPathFactory) -> dict[str, GgufFile]:
    folder = tmp_path_factory.mktemp("gguf")
    for kind in ("gpt2", "llama"):
        export(make_checkpoint(folder / kind, kind), folder / f"{kind}.gguf", "f16", verify=False)
    return {kind: read_gguf(folder / f"{kind}.gguf") for kind in ("gpt2", "llama")}


def rewrite(file: GgufFile, path: Path, changes: dict[str, Any], tensors: dict[str, Any] | None = None) -> Path:
    """The file with other metadata (... removes a key) and other tensors (float32 arrays; None
    removes one)."""
    metadata = {key: value for key, value in (file.metadata | changes).items() if value is not ...}
    infos = {name: (name, info.type, info.shape) for name, info in file.tensors.items()}
    data = {name: file.data(name) for name in file.tensors}
    for name, array in (tensors or {}).items():
        infos.pop(name, None)
        data.pop(name, None)
        if array is not None:
            infos[name] = (name, "F32", array.shape)
            data[name] = np.ascontiguousarray(array, np.float32).reshape(-1).view(np.uint8)
    write_gguf(path, metadata, list(infos.values()), [data[name] for name in infos])
    return path


def refuse(path: Path, out: Path, said: str, error: type[LlamitaError] = FormatError) -> None:
    before = sorted(out.parent.iterdir())
    with pytest.raises(error, match=said) as caught:
        import_model(path, out)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 500
    assert sorted(out.parent.iterdir()) == before


def divisors(*values: float) -> np.ndarray:
    return np.array(values, np.float32)


BAD_MODELS: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "another architecture": (
        {"general.architecture": "qwen3moe"}, {}, "expected llama, .*Qwen3-0.6B.*found qwen3moe; it would need",
    ),
    "a renamed piece": (
        {"split.count": 3}, {}, "found the first of 3 pieces of a split model; expected a name .* -00001-of-00003.gguf",
    ),
    "a later piece": (
        {"split.count": 3, "split.no": 1, "general.architecture": ...}, {}, "found piece 2 of 3 .* give the first",
    ),
    "pieces without number": ({"split.count": "3"}, {}, "split.count: expected 0 to 1000, found 3"),
    "too many pieces": ({"split.count": 1001}, {}, "split.count: expected 0 to 1000, found 1001"),
    "no architecture": ({"general.architecture": ...}, {}, "expected llama, qwen2, qwen3 or smollm3 .*, found None"),
    "experts": (
        {"llama.expert_count": 8}, {}, "llama.expert_count: expected 0, found 8; mixtures of experts are not supported",
    ),
    "no heads": ({"llama.attention.head_count": 0}, {}, "head_count: expected 1 to 2147483647, found 0"),
    "heads as text": ({"llama.attention.head_count": "4"}, {}, "head_count: expected a whole number, found 4"),
    "heads that do not divide": ({"llama.attention.head_count": 5}, {}, "head_count: expected a divisor"),
    "kv heads that do not divide": ({"llama.attention.head_count_kv": 3}, {}, "num_key_value_heads: expected a div"),
    "kv heads of each layer": (
        {"llama.attention.head_count_kv": np.array([2, 4], np.int32)}, {}, "head_count_kv: expected the same number",
    ),
    "no context": ({"llama.context_length": ...}, {}, "llama.context_length is missing; the file is damaged"),
    "absurdly many layers": ({"llama.block_count": 2**31 - 1}, {}, "block_count: expected at most 1024"),
    "one layer more": ({"llama.block_count": 3}, {}, r"tensor blk\.2\.\S+ is missing"),
    "eps NaN": (
        {"llama.attention.layer_norm_rms_epsilon": float("nan")}, {}, "epsilon: expected 1e-30 to 0.5, found nan",
    ),
    "theta infinite": ({"llama.rope.freq_base": float("inf")}, {}, "freq_base: expected 1 to 1e\\+30, found inf"),
    "part of a head": (
        {"llama.rope.dimension_count": 8}, {}, "dimension_count: expected the head size 16, as partial .* found 8",
    ),
    "values of another size": ({"llama.attention.value_length": 8}, {}, "value_length: expected the head size 16"),
    "dynamic": (
        {"llama.rope.scaling.type": "dynamic"}, {}, "expected none, linear, yarn or longrope, found dynamic",
    ),
    "type of scaling as a number": ({"llama.rope.scaling.type": 1}, {}, "scaling.type: expected text, found 1"),
    "yarn that shrinks": (
        {"llama.rope.scaling.type": "yarn", "llama.rope.scaling.factor": 0.5}, {}, "factor: expected at least 1",
    ),
    "yarn beside Llama 3's rule": (
        {"llama.rope.scaling.type": "yarn"}, {"rope_freqs.weight": np.ones(8)}, "none beside RoPE scaling yarn",
    ),
    "yarn of no range": (
        {"llama.rope.scaling.type": "yarn", "llama.rope.scaling.yarn_beta_fast": 1e-5}, {}, "beta_fast above beta_slow",
    ),
    "longrope without factors": (
        {"llama.rope.scaling.type": "longrope"}, {}, r"rope_factors_short\.weight is missing; longrope needs it",
    ),
    "longrope of zeros": (
        {"llama.rope.scaling.type": "longrope"},
        {"rope_factors_short.weight": np.zeros(8), "rope_factors_long.weight": np.ones(8)},
        r"rope_factors_short\.weight: expected positive numbers",
    ),
    "an attention factor of its own": (
        {"llama.rope.scaling.attn_factor": 2.0}, {}, "attn_factor: expected 1 without yarn or longrope",
    ),
    "capped logits": (
        {"llama.final_logit_softcapping": 30.0}, {}, "softcapping: expected 0, found 30.0; capped logits are not supp",
    ),
    "a negative factor": ({"llama.rope.scaling.factor": -2.0}, {}, r"scaling.factor: expected 0 to 1e\+30, found -2"),
    "a factor of each layer": (
        {"llama.rope.scaling.factor": np.zeros(2, np.float32)}, {}, "scaling.factor: expected a floating-point number",
    ),
    "windows": ({"llama.attention.sliding_window": 127}, {}, "expected 0 or at least the context of 128 tokens"),
    "windows of each layer": (
        {"llama.attention.sliding_window": np.array([0, 64], np.int32)}, {}, "sliding_window: expected a whole number",
    ),
    "no mask": ({"llama.attention.causal": False}, {}, "causal: expected 1, found False; models without"),
    "scaled attention": ({"llama.attention.scale": 0.5}, {}, "scale: expected 0, found 0.5; attention scales"),
    "scaled logits": ({"llama.logit_scale": 0.5}, {}, "logit_scale: expected 1, found 0.5; scaled logits"),
    "a context of each layer": (
        {"llama.context_length": np.array([64, 64], np.int32)}, {}, "context_length: expected a whole number",
    ),
    "another width": (
        {"llama.embedding_length": 128, "llama.attention.head_count": 8}, {}, r"token_embd\.weight: expected shape",
    ),
    "a bias": ({}, {"blk.0.attn_q.bias": np.ones(64)}, "unknown tensor blk.0.attn_q.bias; plain Llamas have no biases"),
    "no embedding": ({}, {"token_embd.weight": None}, "token_embd.weight: expected a matrix, found none"),
    "no norm": ({}, {"output_norm.weight": None}, "tensor output_norm.weight is missing"),
    "NaN": ({}, {"output_norm.weight": np.full(64, np.nan)}, "model.norm.weight: expected finite numbers"),
    "a rope rule of its own": (
        {}, {"rope_freqs.weight": divisors(1, 2, 3, 4, 5, 6, 7, 8)}, "divisors of the RoPE .* do not follow Llama 3's",
    ),
    "rope divisors NaN": ({}, {"rope_freqs.weight": divisors(*[float("nan")] * 8)}, "do not follow Llama 3's rule"),
    "rope divisors 0": ({}, {"rope_freqs.weight": np.zeros(8)}, "do not follow Llama 3's rule"),
    "too few rope divisors": ({}, {"rope_freqs.weight": divisors(1, 1)}, r"rope_freqs\.weight: expected F32 \[8\]"),
    "eos outside": ({"tokenizer.ggml.eos_token_id": 320}, {}, "eos_token_id: expected an id below 320, found 320"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_MODELS)
def test_models_that_are_not_plain_llamas(original: dict[str, GgufFile], tmp_path: Path, name: str) -> None:
    changes, tensors, said = BAD_MODELS[name]
    refuse(rewrite(original["gpt2"], tmp_path / "bad.gguf", changes, tensors), tmp_path / "out", said)


def test_harmless_variants(original: dict[str, GgufFile], tmp_path: Path) -> None:
    """As other programs write: kv heads as an array, divisors of 1, keys with default values."""
    variant = rewrite(
        original["gpt2"], tmp_path / "variant.gguf",
        {
            "llama.attention.head_count_kv": np.array([2, 2], np.int32), "llama.expert_count": 0,
            "llama.rope.dimension_count": ..., "llama.vocab_size": ..., "general.file_type": ...,
            "tokenizer.ggml.add_bos_token": ..., "llama.rope.freq_base": ...,
        },
        {"rope_freqs.weight": np.ones(8)},
    )  # fmt: skip
    config = import_model(variant, tmp_path / "out").config
    assert (config.num_key_value_heads, config.rope_theta, config.rope_scaling) == (2, 10000.0, None)


def test_engine_and_importer_read_what_llama_cpp_reads(
    original: dict[str, GgufFile], engine_build: Path, tmp_path: Path
) -> None:
    variant = rewrite(
        original["gpt2"], tmp_path / "variant.gguf",
        {
            "llama.attention.head_count_kv": np.array([2, 2], np.int32), "llama.vocab_size": 1000,
            "llama.attention.causal": True, "llama.attention.scale": 0.0, "llama.logit_scale": 1.0,
            "llama.attention.sliding_window": 0, "tokenizer.ggml.eos_token_id": 2**32 - 1,
            "tokenizer.ggml.padding_token_id": 5000,
        },
    )  # fmt: skip
    with open(variant, "ab") as file:
        file.write(b"x" * 1000)
    report = import_model(variant, tmp_path / "out", verify=True)
    assert report.config.pad_token_id is None and report.config.vocab_size == 320
    with Model(variant) as model:
        assert (model.info.eos_id, load_tokenizer(tmp_path / "out").eos_id) == (-1, None)


LINEAR4 = {"rope_type": "linear", "factor": 4.0}
TYPE, FACTOR, OLD_FACTOR = "llama.rope.scaling.type", "llama.rope.scaling.factor", "llama.rope.scale_linear"


@pytest.mark.parametrize(
    ("keys", "scaling"),
    [
        ({FACTOR: 4.0}, LINEAR4), ({OLD_FACTOR: 4.0}, LINEAR4), ({TYPE: "linear", OLD_FACTOR: 4.0}, LINEAR4),
        ({TYPE: "linear", FACTOR: 4.0, OLD_FACTOR: 2.0}, LINEAR4), ({TYPE: "linear"}, None), ({TYPE: "none"}, None),
        ({TYPE: "none", OLD_FACTOR: 4.0}, None), ({TYPE: "none", FACTOR: 4.0}, None), ({FACTOR: 1.0}, None),
        ({TYPE: "linear", FACTOR: 0.0}, None), ({FACTOR: 0.0, OLD_FACTOR: 4.0}, None),
    ],
)  # fmt: skip
def test_rope_scaling_follows_llama_cpp(
    original: dict[str, GgufFile], engine_build: Path, tmp_path: Path, keys: dict[str, Any],
    scaling: dict[str, Any] | None,
) -> None:  # fmt: skip
    """The verification compares with the engine, so both read the same."""
    variant = rewrite(original["gpt2"], tmp_path / "variant.gguf", keys)
    assert import_model(variant, tmp_path / "out", verify=True).config.rope_scaling == scaling


def test_misread_scaling_is_caught(
    original: dict[str, GgufFile], engine_build: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    variant = rewrite(original["gpt2"], tmp_path / "variant.gguf", {FACTOR: 4.0})
    monkeypatch.setattr(gguf_metadata, "_rope_scaling", lambda *_: None)
    with pytest.raises(FormatError, match=r"its logits differ from those of .*variant\.gguf in the engine"):
        import_model(variant, tmp_path / "out", verify=True)
    assert not (tmp_path / "out").exists()


BAD_TOKENIZERS: dict[str, tuple[str, dict[str, Any], str]] = {
    "none": ("gpt2", {"tokenizer.ggml.model": ...}, "tokenizer.ggml.model: expected llama or gpt2, found None"),
    "unigram": ("gpt2", {"tokenizer.ggml.model": "t5"}, "expected llama or gpt2, found t5"),
    "no tokens": ("gpt2", {"tokenizer.ggml.tokens": ...}, "tokens: expected an array of strings"),
    "tokens are numbers": ("gpt2", {"tokenizer.ggml.tokens": np.ones(3, np.int32)}, "expected an array of strings"),
    "no merges": ("gpt2", {"tokenizer.ggml.merges": ...}, "merges: expected an array of strings"),
    "a merge of nothing": ("gpt2", {"tokenizer.ggml.merges": ["a", "b c"]}, "merge 0: expected two tokens that"),
    "another split": ("gpt2", {"tokenizer.ggml.pre": "kimi-k2"}, "pre: expected qwen2, .* found kimi-k2; if"),
    "no split": ("gpt2", {"tokenizer.ggml.pre": ...}, r"pre: expected .* found none; .* --pre NAME \(Llama 3: "),
    "too few types": ("gpt2", {"tokenizer.ggml.token_type": np.ones(3, np.int32)}, "token_type: expected 320 types"),
    "types out of range": (
        "gpt2", {"tokenizer.ggml.token_type": np.full(320, 9, np.int32)}, "token_type: expected 320 types from 1 to 6",
    ),
    "bos of no kind": ("gpt2", {"tokenizer.ggml.bos_token_id": 100}, "bos_token_id: expected a control token"),
    "add_bos as a number": ("gpt2", {"tokenizer.ggml.add_bos_token": 1}, "add_bos_token: expected true or false"),
    "no scores": ("llama", {"tokenizer.ggml.scores": ...}, "scores: expected 420 numbers"),
    "scores NaN": ("llama", {"tokenizer.ggml.scores": np.full(420, np.nan, np.float32)}, "has no finite score"),
    "unknown outside": ("llama", {"tokenizer.ggml.unknown_token_id": 999}, "unknown_token_id: expected an id below"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_TOKENIZERS)
def test_incomplete_tokenizers(original: dict[str, GgufFile], tmp_path: Path, name: str) -> None:
    kind, changes, said = BAD_TOKENIZERS[name]
    refuse(rewrite(original[kind], tmp_path / "bad.gguf", changes), tmp_path / "out", said, TokenizerError)


def test_pre_says_how_the_tokenizer_splits(
    original: dict[str, GgufFile], make_checkpoint: MakeCheckpoint, engine_build: Path, tmp_path: Path
) -> None:
    """In place of a missing name and of a wrong one, in the importer, its verification and the engine."""
    expected = tokenizer_from_gguf(original["gpt2"].metadata, "original")
    text = "I'LL   count 12345 sheep"
    for number, stated in enumerate((..., "kimi-k2", "tekken")):
        path = rewrite(original["gpt2"], tmp_path / f"{number}.gguf", {"tokenizer.ggml.pre": stated})
        report = import_model(path, tmp_path / str(number), pre="qwen2", verify=True)
        assert load_tokenizer(report.path).encode(text) == expected.encode(text)
        with Model(path, pre="qwen2") as model:
            assert model.encode(text) == expected.encode(text)
        if stated != "tekken":
            with pytest.raises(EngineError, match=r"tokenizer\.ggml\.pre: expected llama-bpe, .* --pre NAME"):
                Model(path)
    with pytest.raises(EngineError, match=r"pre-tokenizer: expected llama-bpe, .* found qwen9; if you know"):
        Model(path, pre="qwen9")
    with pytest.raises(TokenizerError, match=r"tokenizer.ggml.pre: expected qwen2, .* found qwen9; if you know"):
        import_model(path, tmp_path / "out", pre="qwen9")
    with pytest.raises(ConfigError, match="pre: it only applies to a GGUF"):
        import_model(make_checkpoint(tmp_path / "folder"), tmp_path / "out", pre="qwen2")


def test_unknown_keys_are_noted_once(original: dict[str, GgufFile], tmp_path: Path) -> None:
    keys = {f"llama.of_tomorrow_{i}": i for i in range(8)} | {"other.key": 1, "llama.vocab_size": 9}
    report = import_model(rewrite(original["gpt2"], tmp_path / "new.gguf", keys), tmp_path / "out", verify=False)
    notes = [note for note in report.notes if "ignored keys" in note]
    assert len(notes) == 1 and "llama.of_tomorrow_5 and 2 more" in notes[0]
    assert "other.key" not in notes[0] and "vocab_size" not in notes[0]
    plain = import_model(rewrite(original["gpt2"], tmp_path / "old.gguf", {}), tmp_path / "plain", verify=False)
    assert not any("ignored keys" in note for note in plain.notes)


FIXED_KEYS = [key for key in known_keys().values() if key.use == "fixed"]


@pytest.mark.parametrize("key", FIXED_KEYS, ids=lambda key: key.name)
def test_engine_and_importer_refuse_the_same_keys(
    original: dict[str, GgufFile], engine_build: Path, tmp_path: Path, key: GgufKey
) -> None:
    """By name and feature; the default is accepted by both."""
    bad = rewrite(original["gpt2"], tmp_path / "bad.gguf", {key.name: key.default + 0.5})
    refuse(bad, tmp_path / "out", f"{key.name}: expected {key.default:g}, found .*; {key.feature} are not supported")
    with pytest.raises(EngineError, match=f"{key.name}: expected {key.default:g}, found .*; {key.feature} are not"):
        Model(bad)
    fine = rewrite(original["gpt2"], tmp_path / "fine.gguf", {key.name: float(key.default)})
    assert import_model(fine, tmp_path / "fine", verify=True).verification is not None


RANGED_KEYS = [
    key for key in known_keys().values()
    if key.use in ("required", "optional") and key.kind in ("whole", "layers", "real") and key.name.startswith("llama.")
]  # fmt: skip


@pytest.mark.parametrize("key", RANGED_KEYS, ids=lambda key: key.name)
def test_engine_and_importer_have_the_same_ranges(
    original: dict[str, GgufFile], engine_build: Path, tmp_path: Path, key: GgufKey
) -> None:
    """Both refuse a number below the range, a text, and the absence of a required key."""
    below: Any = np.array([0, 0], np.int32) if key.kind == "layers" else -1.0 if key.kind == "real" else -1
    values = ["text", ...] if key.use == "required" else ["text"]
    if key.kind != "whole":  # write_gguf writes no negative integers
        values.append(below)
    for number, value in enumerate(values):
        bad = rewrite(original["gpt2"], tmp_path / f"{number}.gguf", {key.name: value})
        refuse(bad, tmp_path / "out", f"{key.name}(:| is missing)")
        with pytest.raises(EngineError, match=f"key {key.name}(:| is missing)"):
            Model(bad)


def test_duplicate_tokens(original: dict[str, GgufFile], tmp_path: Path) -> None:
    for kind in ("gpt2", "llama"):
        tokens = list(original[kind].metadata["tokenizer.ggml.tokens"])
        tokens[-1] = tokens[-2]
        path = rewrite(original[kind], tmp_path / f"{kind}.gguf", {"tokenizer.ggml.tokens": tokens})
        refuse(path, tmp_path / "out", "occurs twice|same piece|a third", TokenizerError)


def test_byte_tokens_need_two_hexadecimal_digits(original: dict[str, GgufFile], tmp_path: Path) -> None:
    tokens = list(original["llama"].metadata["tokenizer.ggml.tokens"])
    tokens[tokens.index("<0x41>")] = "<0x-1>"
    path = rewrite(original["llama"], tmp_path / "bad.gguf", {"tokenizer.ggml.tokens": tokens})
    refuse(path, tmp_path / "out", "expected byte pieces <0x00> to <0xFF>, found 256", TokenizerError)


def test_truncated_files(original: dict[str, GgufFile], tmp_path: Path) -> None:
    content = original["gpt2"].path.read_bytes()
    for length in [0, 3, 4, 23, 24, *range(25, len(content) - 1, len(content) // 60)]:
        (tmp_path / "cut.gguf").write_bytes(content[:length])
        refuse(tmp_path / "cut.gguf", tmp_path / "out", r"cannot read .*cut\.gguf")

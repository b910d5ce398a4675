"""Imported Meta folders: shards joined along the axis of each tensor; inconsistent ones refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from llamita.checkpoint import load_config, load_model, load_tensors  # noqa: E402
from llamita.convert.import_model import import_model  # noqa: E402
from llamita.convert.verify import torch_logits  # noqa: E402
from llamita.errors import ConfigError, FormatError, LlamitaError, TokenizerError  # noqa: E402
from llamita.formats import torch_pickle  # noqa: E402
from llamita.tokenizer import load_tokenizer  # noqa: E402
from tests.pickle_bomb import PickleBomb  # noqa: E402

MakeMeta = Callable[..., Any]


def same_weights(ours: Path, theirs: Path, dtype: Any = None) -> None:
    found, expected = load_tensors(ours), load_tensors(theirs)
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor if dtype is None else tensor.to(dtype)), name


@pytest.mark.parametrize("rules", ["2", "3"])
@pytest.mark.parametrize("shards", [1, 2, 4, 8, 16])
def test_shards_are_joined(make_meta: MakeMeta, tmp_path: Path, shards: int, rules: str) -> None:
    """Bit for bit the weights that were cut, and so the same logits; with 16 shards each kv head is
    in two of them."""
    made = make_meta(tmp_path, shards, rules, rope_theta=5e5 if rules == "3" else 1e4)
    report = import_model(made.path, tmp_path / "out")
    assert report.kind == f"Meta, {shards} shard{'s' if shards > 1 else ''}"
    same_weights(tmp_path / "out", made.checkpoint)
    config, original = load_config(tmp_path / "out"), load_config(made.checkpoint)
    assert (config.vocab_size, config.intermediate_size) == (original.vocab_size, original.intermediate_size)
    assert (config.rope_theta, config.rms_norm_eps) == (original.rope_theta, original.rms_norm_eps)
    assert (config.num_key_value_heads, config.head_dim) == (8, 8)
    ids = list(range(3, 40))
    ours = torch_logits(load_model(tmp_path / "out"), ids)
    assert np.array_equal(ours, torch_logits(load_model(made.checkpoint), ids))
    assert report.verification is not None and report.verification.largest_difference == 0


def test_types_are_kept_or_changed(make_meta: MakeMeta, tmp_path: Path) -> None:
    made = make_meta(tmp_path, 2, dtype=torch.bfloat16)
    assert import_model(made.path, tmp_path / "kept").num_tensors_by_type == {"bfloat16": 21}
    same_weights(tmp_path / "kept", made.checkpoint, torch.bfloat16)
    assert json.loads((tmp_path / "kept" / "config.json").read_text())["torch_dtype"] == "bfloat16"
    import_model(made.path, tmp_path / "wide", dtype="float32")
    assert {tensor.dtype for tensor in load_tensors(tmp_path / "wide").values()} == {torch.float32}


def test_grouped_queries(make_meta: MakeMeta, tmp_path: Path) -> None:
    """n_kv_heads, of which a shard has one (as the 70B has) or a shared one."""
    for shards, kv_heads in ((2, 2), (8, 4), (4, 1)):
        made = make_meta(tmp_path / f"{shards}{kv_heads}", shards, num_key_value_heads=kv_heads)
        import_model(made.path, tmp_path / f"out{shards}{kv_heads}")
        same_weights(tmp_path / f"out{shards}{kv_heads}", made.checkpoint)


SCALED = {"use_scaled_rope": True}


@pytest.mark.parametrize(
    ("rules", "params", "config", "context", "factor"),
    [
        ("2", {}, {}, 4096, None),
        ("2", {}, {"rms_norm_eps": 1e-6}, 2048, None),
        ("2", {"rope_theta": 1e6}, {"rope_theta": 1e6}, 16384, None),
        ("3", {}, {"rope_theta": 5e5}, 8192, None),
        ("3", SCALED, {"rope_theta": 5e5}, 131072, 32.0),
        ("3", SCALED | {"rope_scaling_factor": 8.0}, {"rope_theta": 5e5}, 131072, 8.0),
    ],
)
def test_context_and_scaling(
    make_meta: MakeMeta, tmp_path: Path, rules: str, params: dict[str, Any], config: dict[str, Any], context: int,
    factor: float | None,
) -> None:  # fmt: skip
    made = make_meta(tmp_path, 1, rules, params, **config)
    report = import_model(made.path, tmp_path / "out")
    found = load_config(tmp_path / "out")
    assert (found.max_position_embeddings, found.rope_theta) == (context, config.get("rope_theta", 1e4))
    scaling = found.rope_scaling
    assert (None if scaling is None else scaling["factor"]) == factor
    if scaling is not None:
        assert (scaling["low_freq_factor"], scaling["high_freq_factor"]) == (1.0, 4.0)
        assert scaling["original_max_position_embeddings"] == 8192
    assert any(note.startswith(f"context: {context} tokens") for note in report.notes)
    import_model(made.path, tmp_path / "shorter", context_tokens=100)
    assert load_config(tmp_path / "shorter").max_position_embeddings == 100


def test_a_saved_copy_of_the_embedding_is_tied(make_meta: MakeMeta, tmp_path: Path) -> None:
    """As in Llama 3.2's small models; and models without an output matrix."""
    made = make_meta(tmp_path, 2, "3", tie_word_embeddings=True)
    same = import_model(made.path, tmp_path / "none")
    assert same.config.tie_word_embeddings
    for number in range(2):
        path = made.path / f"consolidated.{number:02d}.pth"
        state = torch.load(path, weights_only=True)
        state["output.weight"] = state["tok_embeddings.weight"].clone()
        torch.save(state, path)
    assert import_model(made.path, tmp_path / "copy").config.tie_word_embeddings
    same_weights(tmp_path / "copy", tmp_path / "none")


def test_ffn_multiplier(make_meta: MakeMeta, tmp_path: Path) -> None:
    """multiple_of·⌈multiplier·⌊8·dim/3⌋ / multiple_of⌉: 1.3·170 = 221 → 224."""
    made = make_meta(tmp_path, 2, params={"ffn_dim_multiplier": 1.3}, intermediate_size=224)
    assert import_model(made.path, tmp_path / "out").config.intermediate_size == 224
    params = json.loads((made.path / "params.json").read_text())
    (made.path / "params.json").write_text(json.dumps(params | {"ffn_dim_multiplier": 1.5}))
    with pytest.raises(FormatError, match=r"expected 256 rows of w1 .*found 224 in all shards"):
        import_model(made.path, tmp_path / "wrong")


# ---------------------------------------------------------------- tokenizers and chat


def test_the_tokenizer_may_be_in_the_parent_folder(make_meta: MakeMeta, tmp_path: Path) -> None:
    made = make_meta(tmp_path, 1)
    (made.path / "tokenizer.model").rename(tmp_path / "tokenizer.model")
    assert import_model(made.path, tmp_path / "out").tokenizer_path == tmp_path / "tokenizer.model"
    assert load_tokenizer(tmp_path / "out").kind == "llama"
    (tmp_path / "tokenizer.model").rename(tmp_path / "elsewhere.model")
    with pytest.raises(TokenizerError, match=r"no tokenizer\.model in it or in .*--tokenizer FILE"):
        import_model(made.path, tmp_path / "none")
    import_model(made.path, tmp_path / "named", tmp_path / "elsewhere.model")


@pytest.mark.parametrize(
    ("rules", "name", "template", "ends"),
    [
        ("2", "llama-2-7b-chat", "llama2", ["</s>"]),
        ("2", "llama-2-7b", None, ["</s>"]),
        ("3", "Meta-Llama-3-8B-Instruct", "llama3", ["<|eot_id|>", "<|end_of_text|>"]),
        ("3", "Meta-Llama-3-8B", None, ["<|end_of_text|>", "<|eot_id|>"]),
    ],
)
def test_chat_models_are_known_by_their_folder(
    make_meta: MakeMeta, tmp_path: Path, rules: str, name: str, template: str | None, ends: list[str]
) -> None:
    made = make_meta(tmp_path, 1, rules)
    made.path.rename(tmp_path / name)
    report = import_model(tmp_path / name, tmp_path / "out")
    tokenizer = load_tokenizer(tmp_path / "out")
    assert (tokenizer.chat_template is not None) == (template is not None)
    assert [tokenizer.pieces()[i] for i in tokenizer.end_ids] == ends
    assert load_config(tmp_path / "out").eos_token_ids == tokenizer.end_ids
    assert any("chat template" in note and name in note for note in report.notes)
    import_model(tmp_path / name, tmp_path / "without", chat_template="none")
    assert load_tokenizer(tmp_path / "without").chat_template is None
    import_model(tmp_path / name, tmp_path / "other", chat_template="zephyr")
    assert "<|assistant|>" in str(load_tokenizer(tmp_path / "other").chat_template)


def test_names_of_special_tokens_follow_the_version(make_meta: MakeMeta, tmp_path: Path) -> None:
    for params, name in (({}, "<|reserved_special_token_4|>"), (SCALED, "<|eom_id|>")):
        made = make_meta(tmp_path / name[2:5], 1, "3", params)
        import_model(made.path, tmp_path / f"out{name[2:5]}")
        pieces = load_tokenizer(tmp_path / f"out{name[2:5]}").pieces()
        first = pieces.index("<|begin_of_text|>")
        assert len(pieces) == first + 256 and pieces[first + 8] == name
        assert pieces[first + 9] == "<|eot_id|>" and pieces[first + 1] == "<|end_of_text|>"


# ---------------------------------------------------------------- refusals


def refuse(path: Path, out: Path, said: str, error: type[LlamitaError] = FormatError, **options: Any) -> None:
    before = sorted(out.parent.iterdir())
    with pytest.raises(error, match=said) as caught:
        import_model(path, out, **options)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 500
    assert sorted(out.parent.iterdir()) == before


@pytest.fixture(scope="module")
def two_shards(make_meta: MakeMeta, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_meta(tmp_path_factory.mktemp("two"), 2).path


@pytest.fixture
def meta(two_shards: Path, tmp_path: Path) -> Path:
    """A fresh copy of a model in two shards."""
    return Path(shutil.copytree(two_shards, tmp_path / "meta"))


def change(path: Path, **changes: Any) -> None:
    params = json.loads((path / "params.json").read_text()) | changes
    params = {key: value for key, value in params.items() if value is not ...}
    (path / "params.json").write_text(json.dumps(params))


BAD_PARAMS: dict[str, tuple[dict[str, Any], str]] = {
    "no dim": ({"dim": ...}, "dim is missing"),
    "dim as text": ({"dim": "64"}, "dim: expected a positive whole number"),
    "dim huge": ({"dim": 10**30}, "dim: expected a positive whole number"),
    "another dim": ({"dim": 128}, r"tok_embeddings\.weight: expected rows of 128"),
    "no layers": ({"n_layers": 0}, "n_layers: expected a positive"),
    "absurdly many layers": ({"n_layers": 2**30}, "n_layers: expected at most 1024"),
    "one layer fewer": ({"n_layers": 1}, r"unknown tensor layers\.1\."),
    "one layer more": ({"n_layers": 3}, r"layers\.2\..* is missing and 8 more"),
    "heads that do not divide": ({"n_heads": 7}, "n_heads: expected a divisor of dim 64"),
    "kv heads that do not divide": ({"n_kv_heads": 3}, "num_key_value_heads: expected a divisor"),
    "other kv heads": ({"n_kv_heads": 4}, r"attention\.wk\.weight: expected 2 shards that join to \[32, 64\]"),
    "another vocabulary": ({"vocab_size": 500}, "vocab_size: expected 432, the rows of the embedding, found 500"),
    "eps NaN": ({"norm_eps": float("nan")}, "norm_eps: expected a positive number"),
    "theta 0": ({"rope_theta": 0}, "rope_theta: expected a positive number"),
    "scaled as text": ({"use_scaled_rope": "yes"}, "use_scaled_rope: expected true or false"),
    "experts": ({"moe": {"num_experts": 8}}, "moe: unknown key"),
    "quantized": ({"quantization_args": {"scheme": "x"}}, "quantization_args: unknown key"),
    "multiple_of 0": ({"multiple_of": 0}, "multiple_of: expected a positive"),
}


@pytest.mark.parametrize("name", BAD_PARAMS)
def test_bad_params(meta: Path, tmp_path: Path, name: str) -> None:
    changes, said = BAD_PARAMS[name]
    change(meta, **changes)
    refuse(meta, tmp_path / "out", said)


@pytest.mark.parametrize("text", ["", "{", "[]", "3", '{"model": 3}', "[" * 100_000])
def test_params_must_be_an_object(meta: Path, tmp_path: Path, text: str) -> None:
    (meta / "params.json").write_text(text)
    refuse(meta, tmp_path / "out", "params.json")


def edit(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    state = torch.load(path, weights_only=True)
    change(state)
    torch.save(state, path)


def drop(name: str) -> Callable[[dict[str, Any]], object]:
    return lambda state: state.pop(name)


def put(name: str, value: Any) -> Callable[[dict[str, Any]], object]:
    return lambda state: state.update({name: value})


WQ = "layers.0.attention.wq.weight"
BAD_SHARDS: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "missing": (drop(WQ), r"wq\.weight is not in all shards"),
    "unknown": (put("layers.0.extra.weight", torch.ones(2)), r"extra\.weight is not in all shards"),
    "a bias": (put("layers.0.attention.wq.bias", torch.ones(2)), r"wq\.bias is not in all shards"),
    "another shape": (
        put(WQ, torch.ones(16, 64)), r"wq\.weight: expected 2 shards that join to \[64, 64\], found one of",
    ),
    "another type": (put(WQ, torch.ones(32, 64).half()), r"wq\.weight: consolidated\.01\.pth has a different type"),
    "whole numbers": (put(WQ, torch.ones(32, 64).long()), r"wq\.weight: expected floats of 16 or 32 bits, found int64"),
    "doubles": (put(WQ, torch.ones(32, 64).double()), r"wq\.weight: expected floats of 16 or 32 bits, found float64"),
    "no tensor": (put(WQ, "weights"), r"wq\.weight: expected a tensor of floats, found str"),
    "sparse": (put(WQ, torch.ones(32, 64).to_sparse()), r"wq\.weight: expected floats .* found sparse_coo"),
    "expanded": (put(WQ, torch.ones(1).expand(32, 64)), r"wq\.weight: it is larger than its storage"),
    "NaN": (put(WQ, torch.full((32, 64), float("nan"))), r"q_proj\.weight: expected finite numbers"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_SHARDS)
def test_bad_shards(meta: Path, tmp_path: Path, name: str) -> None:
    changed, said = BAD_SHARDS[name]
    edit(meta / "consolidated.01.pth", changed)
    refuse(meta, tmp_path / "out", said)


def test_unknown_and_missing_everywhere(meta: Path, tmp_path: Path) -> None:
    for path in meta.glob("*.pth"):
        edit(path, put("layers.0.attention.wq.bias", torch.ones(32)))
    refuse(meta, tmp_path / "out", r"tensor layers\.0\.attention\.wq\.bias.*bias")
    for path in meta.glob("*.pth"):
        edit(path, lambda state: (state.pop("layers.0.attention.wq.bias"), state.pop("norm.weight")))
    refuse(meta, tmp_path / "out", r"tensor norm\.weight is missing")


def test_missing_and_superfluous_shards(meta: Path, tmp_path: Path) -> None:
    (meta / "consolidated.01.pth").rename(meta / "consolidated.02.pth")
    refuse(meta, tmp_path / "out", r"consolidated\.01\.pth is missing")
    shutil.copy(meta / "consolidated.00.pth", meta / "consolidated.01.pth")
    refuse(meta, tmp_path / "out", r"found 3: consolidated\.03\.pth is missing")
    (meta / "consolidated.02.pth").unlink()
    (meta / "consolidated.01.pth").unlink()
    refuse(meta, tmp_path / "out", "expected rows of 64 .* found 32; a shard is missing")
    refuse(meta / "consolidated.00.pth", tmp_path / "out", "it contains only weights; import its folder")


def test_differing_norms_are_noted(meta: Path, tmp_path: Path) -> None:
    edit(meta / "consolidated.01.pth", put("norm.weight", torch.ones(64)))
    assert any("1 norms differ" in note for note in import_model(meta, tmp_path / "out").notes)


@pytest.mark.parametrize("zipped", [True, False])
def test_code_is_refused_by_name_and_not_run(meta: Path, tmp_path: Path, zipped: bool) -> None:
    path = meta / "consolidated.01.pth"
    state = torch.load(path, weights_only=True) | {"bomb": PickleBomb(tmp_path / "ran")}
    torch.save(state, path, _use_new_zipfile_serialization=zipped)
    refuse(meta, tmp_path / "out", r"pickle contains code \((posix|nt)\.system\), which was not executed; only weights")
    assert not (tmp_path / "ran").exists()


def test_files_that_are_not_checkpoints(meta: Path, tmp_path: Path) -> None:
    path = meta / "consolidated.00.pth"
    content = path.read_bytes()
    for bad in (b"", b"PK", b"PK\3\4" + bytes(100), b"\x80\2", b"\x80\4junk", b"hello", content[:1000], content[:-1]):
        path.write_bytes(bad)
        refuse(meta, tmp_path / "out", r"consolidated\.00\.pth")
    torch.save({"a": torch.ones(2)}, path, _use_new_zipfile_serialization=False)
    refuse(meta, tmp_path / "out", r"a bare pickle \(PyTorch before 1\.6 wrote those\)")
    torch.save([torch.ones(2)], path)
    refuse(meta, tmp_path / "out", "expected a dictionary of tensors, found list")


def test_old_torch_is_refused(meta: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch_pickle.torch, "__version__", "2.9.1+cu128")
    refuse(meta, tmp_path / "out", r"reading \.pth, \.pt and \.bin files is not safe.*2\.10", ConfigError)


def test_chat_template_needs_its_tokens(meta: Path, tmp_path: Path) -> None:
    refuse(meta, tmp_path / "out", r"it has no token <\|im_start\|>", TokenizerError, chat_template="chatml")
    refuse(meta, tmp_path / "out", "chat template: expected one of llama2", ConfigError, chat_template="vicuna")


def test_weights_that_are_too_large_for_a_type(meta: Path, tmp_path: Path) -> None:
    edit(meta / "consolidated.00.pth", put("norm.weight", torch.full((64,), 1e6)))
    refuse(meta, tmp_path / "out", r"model\.norm\.weight: its largest number, 1e\+06, is too large for float16",
           dtype="float16")  # fmt: skip

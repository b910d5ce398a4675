"""Exported checkpoints: every tensor correct, the same bytes each time, and bad input refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from llamita.checkpoint import load_config, load_tensors, save_checkpoint  # noqa: E402
from llamita.convert.export import export  # noqa: E402
from llamita.convert.import_model import import_model  # noqa: E402
from llamita.engine import Model  # noqa: E402
from llamita.engine.generation import encode_prompt  # noqa: E402
from llamita.errors import CheckpointError, ConfigError, FormatError, OutputError, TokenizerError  # noqa: E402
from llamita.formats.gguf import read_gguf  # noqa: E402
from llamita.formats.llama2c import read_bin  # noqa: E402
from llamita.formats.rope_order import permute_qk, unpermute_qk  # noqa: E402
from llamita.formats.tensor_table import tensor_table  # noqa: E402
from llamita.model.llama import rope_frequencies  # noqa: E402
from llamita.model_card import ModelCard  # noqa: E402
from llamita.tokenizer import load_tokenizer  # noqa: E402
from tests.rope_scalings import LLAMA3  # noqa: E402

MakeCheckpoint = Callable[..., Path]
# The largest relative error of a tensor of normal noise, with room.
LARGEST_ERROR = {"f32": 0.0, "f16": 3e-4, "q8_0": 8e-3, "q4_0": 0.11}


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("type", ["f32", "f16", "q8_0", "q4_0"])
def test_every_tensor_is_exported(make_checkpoint: MakeCheckpoint, tmp_path: Path, type: str, tied: bool) -> None:
    checkpoint = make_checkpoint(tmp_path / "model", tie_word_embeddings=tied)
    report = export(checkpoint, tmp_path / "model.gguf", type, verify=False)
    file, config, tensors = read_gguf(tmp_path / "model.gguf"), load_config(checkpoint), load_tensors(checkpoint)
    assert set(file.tensors) == {spec.gguf for spec in tensor_table(config)}
    output = "token_embd.weight" if tied else "output.weight"
    worst = 0.0
    for spec in tensor_table(config):
        heads = spec.rope_heads(config)
        numbers = file.dequantize(spec.gguf)
        numbers = numbers if heads is None else unpermute_qk(numbers, heads)
        original = tensors[spec.huggingface].numpy()
        error = float(np.linalg.norm(numbers - original) / np.linalg.norm(original))
        worst = max(worst, error)
        # Q8_0: rows of 64 are not whole blocks of Q6_K.
        few_bits = spec.gguf == output and type == "q4_0"
        matrix = "Q8_0" if few_bits else type.upper()
        assert file.tensors[spec.gguf].type == ("F32" if spec.kind == "norm" else matrix)
        if spec.kind == "norm" or type == "f32":
            assert np.array_equal(numbers, original)
    assert worst <= LARGEST_ERROR[type]
    assert report.largest_error == pytest.approx(worst, rel=1e-3)
    assert (report.worst_tensor is None) == (type == "f32")
    assert report.num_bytes == (tmp_path / "model.gguf").stat().st_size
    assert report.num_parameters == config.num_parameters
    assert sum(report.num_tensors_by_type.values()) == len(tensor_table(config))
    assert len(report.notes) == (1 if type == "q4_0" else 0)


def test_metadata(make_checkpoint: MakeCheckpoint, tmp_path: Path) -> None:
    checkpoint = make_checkpoint(tmp_path / "stories", rope_theta=5e5, head_dim=32, eos_token_id=(0, 2))
    export(checkpoint, tmp_path / "model.gguf")
    metadata, tokenizer = read_gguf(tmp_path / "model.gguf").metadata, load_tokenizer(checkpoint)
    expected = {
        "general.architecture": "llama", "general.name": "stories", "general.file_type": 7,
        "general.quantization_version": 2, "llama.context_length": 128, "llama.embedding_length": 64,
        "llama.block_count": 2, "llama.feed_forward_length": 96, "llama.attention.head_count": 4,
        "llama.attention.head_count_kv": 2, "llama.rope.dimension_count": 32, "llama.rope.freq_base": 5e5,
        "llama.vocab_size": tokenizer.vocab_size, "llama.attention.key_length": 32,
        "llama.attention.value_length": 32, "tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "qwen2",
        "tokenizer.ggml.tokens": tokenizer.pieces(), "tokenizer.ggml.merges": tokenizer.merges(),
        "tokenizer.ggml.bos_token_id": 0, "tokenizer.ggml.eos_token_id": 0, "tokenizer.ggml.eot_token_id": 2,
        "tokenizer.ggml.add_bos_token": True, "tokenizer.ggml.add_eos_token": False,
    }  # fmt: skip
    assert {key: metadata.get(key) for key in expected} == expected
    assert metadata["llama.attention.layer_norm_rms_epsilon"] == pytest.approx(1e-5)
    assert metadata["tokenizer.ggml.token_type"].tolist() == tokenizer.types()
    assert "tokenizer.ggml.scores" not in metadata and "llama.rope.scaling.type" not in metadata
    assert not any(str(tmp_path) in str(value) for value in metadata.values())


def test_metadata_of_a_sentencepiece_tokenizer(make_checkpoint: MakeCheckpoint, tmp_path: Path) -> None:
    checkpoint = make_checkpoint(tmp_path / "model", "llama")
    export(checkpoint, tmp_path / "model.gguf")
    metadata, tokenizer = read_gguf(tmp_path / "model.gguf").metadata, load_tokenizer(checkpoint)
    assert metadata["tokenizer.ggml.model"] == "llama"
    assert metadata["tokenizer.ggml.scores"].tolist() == tokenizer.scores()
    assert metadata["tokenizer.ggml.unknown_token_id"] == 0
    assert metadata["tokenizer.ggml.add_space_prefix"] is True
    assert "tokenizer.ggml.merges" not in metadata


def test_llama3_scaling_becomes_factors(make_checkpoint: MakeCheckpoint, tmp_path: Path) -> None:
    """theta^(-2i/S) divided by the factors is what the network itself computes."""
    checkpoint = make_checkpoint(tmp_path / "model", rope_scaling=LLAMA3, head_dim=32, rope_theta=5e5)
    export(checkpoint, tmp_path / "model.gguf", "q8_0")
    file, config = read_gguf(tmp_path / "model.gguf"), load_config(checkpoint)
    factors = file.dequantize("rope_freqs.weight")
    plain = 5e5 ** -(np.arange(0, 32, 2) / 32)
    assert np.allclose(plain / factors, rope_frequencies(config).numpy(), rtol=1e-5)
    assert factors.min() == 1.0 and factors.max() == 8.0


def test_linear_scaling_becomes_keys(make_checkpoint: MakeCheckpoint, tmp_path: Path) -> None:
    checkpoint = make_checkpoint(tmp_path / "model", rope_scaling={"rope_type": "linear", "factor": 4.0})
    export(checkpoint, tmp_path / "model.gguf")
    file = read_gguf(tmp_path / "model.gguf")
    assert file.metadata["llama.rope.scaling.type"] == "linear" and file.metadata["llama.rope.scaling.factor"] == 4.0
    assert "rope_freqs.weight" not in file.tensors


def test_rows_that_are_not_whole_blocks_become_f16(make_checkpoint: MakeCheckpoint, tmp_path: Path) -> None:
    checkpoint = make_checkpoint(tmp_path / "model", intermediate_size=172)
    report = export(checkpoint, tmp_path / "model.gguf", "q4_0", verify=False)
    assert report.num_tensors_by_type == {"Q8_0": 1, "Q4_0": 12, "F32": 5, "F16": 2}
    assert report.notes == (
        "stored as Q8_0 instead of Q6_K: 1 tensors (token_embd), whose rows of 64 weights are not whole blocks of 256",
        "stored as F16 instead of Q4_0: 2 tensors (ffn_down), whose rows of 172 weights are not whole blocks of 32",
    )
    assert read_gguf(tmp_path / "model.gguf").tensors["blk.1.ffn_down.weight"].type == "F16"


@pytest.mark.parametrize("name", ["model.gguf", "model.bin"])
def test_the_same_checkpoint_gives_the_same_bytes(make_checkpoint: MakeCheckpoint, tmp_path: Path, name: str) -> None:
    checkpoint = make_checkpoint(tmp_path / "model", "llama")
    contents = []
    for folder in ("one", "two"):
        shutil.copytree(checkpoint, tmp_path / folder / "model")
        export(tmp_path / folder / "model", tmp_path / folder / name)
        contents.append((tmp_path / folder / name).read_bytes())
    assert contents[0] == contents[1]


def test_the_vocabulary_is_padded_or_refused(make_checkpoint: MakeCheckpoint, tmp_path: Path) -> None:
    checkpoint = make_checkpoint(tmp_path / "larger", vocab_size=352)
    export(checkpoint, tmp_path / "model.gguf")
    metadata = read_gguf(tmp_path / "model.gguf").metadata
    assert metadata["tokenizer.ggml.tokens"][319:322:2] == [load_tokenizer(checkpoint).pieces()[319], "[PAD321]"]
    assert metadata["tokenizer.ggml.token_type"][320:].tolist() == [5] * 32
    for name in ("smaller.gguf", "smaller.bin"):
        kind = "gpt2" if name.endswith("gguf") else "llama"
        checkpoint = make_checkpoint(tmp_path / f"smaller-{kind}", kind, vocab_size=300)
        with pytest.raises(TokenizerError, match=r"the tokenizer has \d+ tokens, the model 300"):
            export(checkpoint, tmp_path / name)


@pytest.mark.parametrize("tied", [True, False])
def test_bin_and_back_is_bit_equal(make_checkpoint: MakeCheckpoint, tmp_path: Path, tied: bool) -> None:
    checkpoint = make_checkpoint(tmp_path / "model", "llama", tie_word_embeddings=tied)
    report = export(checkpoint, tmp_path / "out" / "model.bin")
    assert report.tokenizer_path == tmp_path / "out" / "tokenizer.bin"
    assert report.num_bytes == (tmp_path / "out" / "model.bin").stat().st_size
    import_model(tmp_path / "out" / "model.bin", tmp_path / "again")
    before, after = load_tensors(checkpoint), load_tensors(tmp_path / "again")
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)
    assert load_config(tmp_path / "again").tie_word_embeddings == tied
    text = "Once upon a time 床前明月光 🦙"
    assert load_tokenizer(tmp_path / "again").encode(text) == load_tokenizer(checkpoint).encode(text)


def test_a_bin_without_tokenizer_has_a_note(make_checkpoint: MakeCheckpoint, tmp_path: Path) -> None:
    report = export(make_checkpoint(tmp_path / "model"), tmp_path / "out" / "model.bin", verify=False)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["model.bin"]
    assert report.tokenizer_path is None
    assert "byte-level BPE" in report.notes[0] and "run model.bin -z model.gguf" in report.notes[0]


def test_run_directories_are_named_by_the_run(make_checkpoint: MakeCheckpoint, tmp_path: Path) -> None:
    make_checkpoint(tmp_path / "stories" / "step-00000100")
    (tmp_path / "stories" / "latest").symlink_to("step-00000100")
    for given in ("stories", "stories/latest", "stories/step-00000100"):
        export(tmp_path / given, tmp_path / "model.gguf")
        assert read_gguf(tmp_path / "model.gguf").metadata["general.name"] == "stories"


# ---------------------------------------------------------------- llama2.c's versions 1 and 2


def same_weights(ours: Path, theirs: Path, dtype: Any = None) -> None:
    found, expected = load_tensors(ours), load_tensors(theirs)
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor if dtype is None else tensor.to(dtype)), name


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("version", [0, 1])
def test_versions_0_and_1_come_back_bit_equal(
    make_checkpoint: MakeCheckpoint, tmp_path: Path, version: int, tied: bool
) -> None:
    checkpoint = make_checkpoint(tmp_path / "model", "llama", tie_word_embeddings=tied, intermediate_size=172)
    report = export(checkpoint, tmp_path / "out" / "model.bin", version=version, verify=False)
    assert report.num_bytes == (tmp_path / "out" / "model.bin").stat().st_size
    assert import_model(tmp_path / "out" / "model.bin", tmp_path / "again").kind == f"llama2.c v{version}"
    same_weights(tmp_path / "again", checkpoint)


def quantize_q80(weight: Any, group_size: int) -> tuple[Any, Any]:
    """llama2.c's export.py, in PyTorch."""
    groups = weight.float().reshape(-1, group_size)
    scale = groups.abs().max(dim=1).values / 127.0
    return torch.round(groups / scale[:, None]).to(torch.int8).reshape(-1), scale


@pytest.mark.parametrize(
    ("hidden", "ffn", "group_size"), [(64, 128, 64), (64, 96, 32), (64, 172, 4), (96, 1376, 32), (64, 86, 2)]
)
def test_version_2_has_groups_that_divide_every_row(
    make_checkpoint: MakeCheckpoint, tmp_path: Path, hidden: int, ffn: int, group_size: int
) -> None:
    """llama2.c's export asks only whether they divide dim, and its runq then drops the end of w2's
    rows. (64, 172) is stories260K, and 1376 the ffn of stories42M."""
    checkpoint = make_checkpoint(
        tmp_path / "model", "llama", hidden_size=hidden, intermediate_size=ffn, head_dim=hidden // 4
    )
    report = export(checkpoint, tmp_path / "out" / "model.bin", version=2, verify=False)
    assert any(f"groups of {group_size} " in note for note in report.notes) == (group_size < 64)
    assert report.num_tensors_by_type == {"INT8": 15, "F32": 5}
    model = read_bin(tmp_path / "out" / "model.bin")
    assert (model.version, model.group_size) == ("v2", group_size)
    tensors = load_tensors(checkpoint)
    for spec in tensor_table(model.config):
        weight = tensors[spec.huggingface]
        heads = spec.rope_heads(model.config)
        if heads is not None:
            weight = torch.from_numpy(permute_qk(weight.numpy(), heads))
        if spec.kind != "norm":
            codes, scale = quantize_q80(weight, group_size)
            weight = (codes.reshape(-1, group_size).float() * scale[:, None]).reshape(weight.shape)
        assert np.array_equal(model.tensor(spec), weight.numpy()), spec.llama2c


def test_groups_of_zeros_stay_zeros(make_checkpoint: MakeCheckpoint, tmp_path: Path) -> None:
    """llama2.c divides them by zero."""
    checkpoint = make_checkpoint(tmp_path / "model", "llama")
    name = "model.layers.1.mlp.up_proj.weight"
    zeros = change_tensors(checkpoint, tmp_path / "zeros", lambda tensors: tensors[name].zero_())
    export(zeros, tmp_path / "out" / "model.bin", version=2, verify=False)
    import_model(tmp_path / "out" / "model.bin", tmp_path / "again")
    assert not load_tensors(tmp_path / "again")[name].any()


# ---------------------------------------------------------------- folders


@pytest.mark.parametrize("dtype", [None, "float32", "bfloat16", "float16"])
def test_folders(make_checkpoint: MakeCheckpoint, tmp_path: Path, dtype: str | None) -> None:
    checkpoint = make_checkpoint(tmp_path / "model", "llama", tie_word_embeddings=False)
    (checkpoint / "chat_template.jinja").write_text("{{ messages }}")
    report = export(checkpoint, tmp_path / "out", dtype=dtype, shard_bytes=40_000)
    wanted = dtype or "float32"
    assert report.num_tensors_by_type == {wanted: 21} and report.verification is not None
    files = sorted(tmp_path.glob("out/model-*.safetensors"))
    assert len(files) > 2 and report.num_bytes == sum(
        path.stat().st_size for path in [*files, tmp_path / "out" / "model.safetensors.index.json"]
    )
    same_weights(tmp_path / "out", checkpoint, getattr(torch, wanted))
    assert load_config(tmp_path / "out") == load_config(checkpoint)
    assert load_tokenizer(tmp_path / "out").fingerprint == load_tokenizer(checkpoint).fingerprint
    assert (tmp_path / "out" / "chat_template.jinja").read_text() == "{{ messages }}"
    with pytest.raises(OutputError, match="exists already"):
        export(checkpoint, tmp_path / "out")


@pytest.mark.parametrize("name", ["model.gguf", "model.bin", "folder"])
def test_shards_export_as_one_file_does(make_checkpoint: MakeCheckpoint, tmp_path: Path, name: str) -> None:
    checkpoint = make_checkpoint(tmp_path / "whole" / "model", "llama")
    export(checkpoint, tmp_path / "cut" / "model", shard_bytes=30_000)
    type = "f16" if name.endswith("gguf") else None
    contents = []
    for kind in ("whole", "cut"):
        export(tmp_path / kind / "model", tmp_path / kind / name, type, verify=False)
        written = tmp_path / kind / name
        contents.append((written / "model.safetensors" if written.is_dir() else written).read_bytes())
    assert contents[0] == contents[1]


def test_types_of_the_checkpoint_do_not_matter_to_the_file(make_checkpoint: MakeCheckpoint, tmp_path: Path) -> None:
    """A bfloat16 checkpoint exports the same as a float32 one with the same numbers."""
    checkpoint = make_checkpoint(tmp_path / "a" / "model")
    export(checkpoint, tmp_path / "b" / "model", dtype="bfloat16")
    import_model(tmp_path / "b" / "model", tmp_path / "c" / "model", dtype="float32")
    for folder in ("b", "c"):
        export(tmp_path / folder / "model", tmp_path / folder / "model.gguf", "f16", verify=False)
    assert (tmp_path / "b" / "model.gguf").read_bytes() == (tmp_path / "c" / "model.gguf").read_bytes()


def test_progress_ends_at_all_bytes(make_checkpoint: MakeCheckpoint, tmp_path: Path) -> None:
    checkpoint = make_checkpoint(tmp_path / "model", "llama")
    total = sum(tensor.nbytes for tensor in load_tensors(checkpoint).values())
    for name in ("model.gguf", "model.bin", "folder"):
        calls: list[tuple[str, int, int]] = []
        type = "f32" if name.endswith("gguf") else None
        export(checkpoint, tmp_path / name, type, verify=False, progress=lambda *call, c=calls: c.append(call))
        assert calls[-1] == ("exporting", total, total) and calls == sorted(calls) and len(calls) == 20


# ---------------------------------------------------------------- refusals: nothing is left behind


def refuse(checkpoint: Path, out: Path, error: type[Exception], said: str, type: str | None = None) -> None:
    before = sorted(out.parent.iterdir()) if out.parent.exists() else []
    with pytest.raises(error, match=said) as caught:
        export(checkpoint, out, type)
    assert "\n" not in str(caught.value)
    assert (sorted(out.parent.iterdir()) if out.parent.exists() else []) == before


def test_wrong_names_and_types(make_checkpoint: MakeCheckpoint, tmp_path: Path) -> None:
    checkpoint = make_checkpoint(tmp_path / "model")
    refuse(checkpoint, tmp_path / "model.ggml", ConfigError, r"ends in \.gguf or \.bin")
    refuse(checkpoint, tmp_path / "model.gguf", ConfigError, "found 'q8'; perhaps you meant q8_0", "q8")
    refuse(checkpoint, tmp_path / "model.bin", ConfigError, "is f32 .*, not q8_0", "q8_0")
    refuse(tmp_path / "none", tmp_path / "model.gguf", CheckpointError, "no such folder")


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("name", ["model.gguf", "model.bin"])
def test_broken_weights(make_checkpoint: MakeCheckpoint, tmp_path: Path, name: str, bad: float) -> None:
    checkpoint = make_checkpoint(tmp_path / "model", "llama")
    tensors = load_tensors(checkpoint)
    tensors["model.layers.1.mlp.up_proj.weight"][3, 4] = bad
    save_checkpoint(tmp_path / "broken", load_config(checkpoint), tensors, checkpoint)
    refuse(tmp_path / "broken", tmp_path / name, FormatError, r"model\.layers\.1\.mlp\.up_proj\.weight.*finite")


def change_tensors(checkpoint: Path, out: Path, change: Callable[[dict[str, Any]], object]) -> Path:
    tensors = load_tensors(checkpoint)
    change(tensors)
    save_checkpoint(out, load_config(checkpoint), tensors, checkpoint)
    return out


def test_tensors_that_do_not_belong(make_checkpoint: MakeCheckpoint, tmp_path: Path) -> None:
    checkpoint, out = make_checkpoint(tmp_path / "model"), tmp_path / "model.gguf"
    changed = change_tensors(checkpoint, tmp_path / "a", lambda t: t.pop("model.norm.weight"))
    refuse(changed, out, FormatError, r"model\.norm\.weight is missing")
    changed = change_tensors(checkpoint, tmp_path / "b", lambda t: t.update({"model.layers.0.x.bias": torch.ones(2)}))
    refuse(changed, out, FormatError, r"unknown tensor model\.layers\.0\.x\.bias")
    changed = change_tensors(checkpoint, tmp_path / "c", lambda t: t.update({"model.norm.weight": torch.ones(65)}))
    refuse(changed, out, FormatError, r"model\.norm\.weight: expected shape \[64\], found \[65\]")


def test_settings_that_do_not_apply_are_refused(make_checkpoint: MakeCheckpoint, tmp_path: Path) -> None:
    checkpoint = make_checkpoint(tmp_path / "model", "llama")
    before = sorted(tmp_path.iterdir())
    for name, settings, said in (
        ("model.gguf", {"version": 1}, r"version: it only applies to \.bin"),
        ("folder", {"version": 1}, r"version: it only applies to \.bin"),
        ("model.bin", {"version": 2, "type": "f32"}, r"is f32 \(version 0, 1\) or int8 \(version 2\), not f32"),
        ("model.bin", {"version": 3}, "version: expected one of 0, 1, 2, found 3"),
        ("model.gguf", {"dtype": "bfloat16"}, "dtype: it only applies to a folder"),
        ("folder", {"dtype": "int8"}, "dtype: expected one of float32, bfloat16, float16, found 'int8'"),
        ("model.bin", {"shard_bytes": 5}, "shard size: it only applies to a folder"),
        ("folder", {"shard_bytes": 0}, "shard size: expected a positive number of bytes"),
        ("folder", {"type": "f16"}, r"type: it only applies to \.gguf or \.bin"),
        ("model.bin", {"card": ModelCard(license="mit")}, r"model card: it only applies to \.gguf or a folder"),
        ("tokenizer.bin", {}, "that name is reserved for the tokenizer"),
    ):  # fmt: skip
        with pytest.raises(ConfigError, match=said):
            export(checkpoint, tmp_path / name, **settings)
    assert sorted(tmp_path.iterdir()) == before


def test_config_that_bin_cannot_express(make_checkpoint: MakeCheckpoint, tmp_path: Path) -> None:
    checkpoint = make_checkpoint(tmp_path / "model", "llama", rope_theta=5e5)
    refuse(checkpoint, tmp_path / "model.bin", FormatError, "rope_theta: the format has no place for it")


def test_too_many_end_ids(make_checkpoint: MakeCheckpoint, tmp_path: Path) -> None:
    checkpoint = make_checkpoint(tmp_path / "model", eos_token_id=(0, 2, 7, 9, 11))
    said = r"4 ids that end a text need a key \(0, 7, 9, 11\), GGUF has 3; shorten eos_token_id"
    refuse(checkpoint, tmp_path / "model.gguf", TokenizerError, said)


def test_end_ids_known_by_name_need_no_key(make_checkpoint: MakeCheckpoint, engine_build: Path, tmp_path: Path) -> None:
    """As of a Llama 3.1 fine-tuned with ChatML: more ends than GGUF has keys."""
    checkpoint = make_checkpoint(tmp_path / "model", eos_token_id=(0, 7))
    path = checkpoint / "tokenizer.json"
    path.write_text(path.read_text().replace("<|im_start|>", "<|eot_id|>"))
    ends = load_tokenizer(checkpoint).end_ids
    assert set(ends) == {0, 1, 2, 7}
    export(checkpoint, tmp_path / "model.gguf", "f32", verify=True)
    metadata = read_gguf(tmp_path / "model.gguf").metadata
    assert metadata["tokenizer.ggml.eos_token_id"] == 0 and metadata["tokenizer.ggml.eot_token_id"] == 7
    with Model(tmp_path / "model.gguf") as model:
        assert {i for i in range(model.info.vocab_size) if model.token_ends(i)} == set(ends)


def test_checkpoint_without_tokenizer(make_checkpoint: MakeCheckpoint, tmp_path: Path) -> None:
    checkpoint = make_checkpoint(tmp_path / "model")
    (checkpoint / "tokenizer.json").unlink()
    refuse(checkpoint, tmp_path / "model.gguf", TokenizerError, "no tokenizer in")


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_texts_begin_with_bos_if_tokenizer_json_says_so(
    make_checkpoint: MakeCheckpoint, tmp_path: Path, engine_build: Path, kind: str
) -> None:
    """Not if only bos_token has a value; and an import and an export of a .gguf keep what it says."""
    for begins in (True, False):
        checkpoint = make_checkpoint(tmp_path / f"{begins}", kind)
        content = json.loads((checkpoint / "tokenizer.json").read_text())
        (checkpoint / "tokenizer.json").write_text(json.dumps(content | ({} if begins else {"post_processor": None})))
        tokenizer = load_tokenizer(checkpoint)
        assert tokenizer.begins_with_bos == begins and tokenizer.bos_id is not None
        first, second = checkpoint / "1.gguf", checkpoint / "2.gguf"
        export(checkpoint, first)
        import_model(first, checkpoint / "again")
        export(checkpoint / "again", second)
        for path in (first, second):
            assert read_gguf(path).metadata["tokenizer.ggml.add_bos_token"] is begins
            with Model(path) as model:
                bos = [tokenizer.bos_id] if begins else []
                assert encode_prompt(model, "hi") == [*bos, *tokenizer.encode("hi")]
                assert encode_prompt(model, "") == [tokenizer.bos_id]


def test_tokens_that_the_engine_does_not_open_are_refused(make_checkpoint: MakeCheckpoint, tmp_path: Path) -> None:
    checkpoint = make_checkpoint(tmp_path / "model", vocab_size=321)
    content = json.loads((checkpoint / "tokenizer.json").read_text())
    for length, is_refused in ((1024, False), (1025, True)):
        token = {"id": 320, "content": "x" * length, "special": False, "normalized": False}
        token |= dict.fromkeys(("single_word", "lstrip", "rstrip"), False)
        (checkpoint / "tokenizer.json").write_text(
            json.dumps(content | {"added_tokens": [*content["added_tokens"], token]})
        )
        if is_refused:
            message = r"cannot export the tokenizer: token 320 .*expected at most 1,024 bytes.*found 1,025"
            refuse(checkpoint, tmp_path / "model.gguf", TokenizerError, message)
        else:
            export(checkpoint, tmp_path / "model.gguf", verify=True)


def test_unknown_split(make_checkpoint: MakeCheckpoint, tmp_path: Path) -> None:
    """An unknown regular expression is refused: runtimes would split text differently."""
    checkpoint = make_checkpoint(tmp_path / "model")
    content = json.loads((checkpoint / "tokenizer.json").read_text())
    text = json.dumps(content["pre_tokenizer"])
    assert "{1,3}" not in text
    content["pre_tokenizer"] = json.loads(text.replace(r"\\p{N}", r"\\p{N}{1,2}"))
    (checkpoint / "tokenizer.json").write_text(json.dumps(content))
    refuse(checkpoint, tmp_path / "model.gguf", TokenizerError, "GGUF runtimes do not have its regular expression")


def test_full_disk_and_forbidden_places(make_checkpoint: MakeCheckpoint, tmp_path: Path) -> None:
    checkpoint = make_checkpoint(tmp_path / "model")
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot write"):
        export(checkpoint, tmp_path / "file" / "model.gguf")
    resource = pytest.importorskip("resource")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
    try:
        refuse(checkpoint, tmp_path / "model.gguf", OutputError, "cannot write .*nothing was left behind")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.mark.parametrize("name", ["model.gguf", "model.bin", "folder"])
def test_a_full_disk_names_the_file_that_was_asked_for(
    make_checkpoint: Callable[..., Path], tmp_path: Path, name: str
) -> None:
    resource = pytest.importorskip("resource")
    checkpoint = make_checkpoint(tmp_path / "checkpoint", "llama")
    out = tmp_path / "out" / name
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))  # like a full disk: a write fails halfway
    try:
        with pytest.raises(OutputError) as caught:
            export(checkpoint, out)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert str(caught.value) == f"cannot write {out}: File too large; nothing was left behind"
    assert not list(out.parent.iterdir())

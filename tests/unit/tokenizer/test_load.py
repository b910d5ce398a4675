"""tokenizer.json files of other programs: their kind and split, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llamita.errors import TokenizerError
from llamita.tokenizer import load_tokenizer, train_bpe
from llamita.tokenizer.gguf import tokenizer_metadata
from llamita.tokenizer.load import unused_templates
from llamita.tokenizer.pre_tokenizers import known_splits, pre_tokenizer

Sections = dict[str, Any]
HF_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
HF_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


def byte_level(use_regex: bool = False) -> Sections:
    return {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": use_regex}


def cut_by(pattern: str) -> Sections:
    split = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
    return {"type": "Sequence", "pretokenizers": [split, byte_level()]}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    train_bpe(["the cat sat on the mat, the cat sat"] * 9, 262).save(tmp_path)
    return tmp_path


def change(folder: Path, edit: Callable[[Sections], object]) -> Path:
    path = folder / "tokenizer.json"
    sections = json.loads(path.read_text())
    edit(sections)
    path.write_text(json.dumps(sections))
    return path


@pytest.mark.parametrize(
    ("pre_tokenizer", "split"),
    [
        (cut_by(HF_WORDS + r"\p{N}" + HF_REST), "qwen2"),
        (cut_by(HF_WORDS + r"\p{N}{1,3}" + HF_REST), "dbrx"),  # without ignore_merges
        (byte_level(use_regex=True), "gpt-2"),
        (
            {
                "type": "Sequence",
                "pretokenizers": [{"type": "Digits", "individual_digits": True}, byte_level(use_regex=True)],
            },
            "smollm",
        ),
        (cut_by(r"\w+|\W+"), None),
        (byte_level(use_regex=False), None),
    ],
)
def test_splits_of_known_tokenizers(folder: Path, pre_tokenizer: Sections, split: str | None) -> None:
    tokenizer = load_tokenizer(change(folder, lambda s: s.update(pre_tokenizer=pre_tokenizer)))
    assert tokenizer.kind == "gpt2" and tokenizer.split == split
    assert tokenizer.decode(tokenizer.encode("I'll take 1234 of the  cats")) == b"I'll take 1234 of the  cats"


def test_llama_bpe_is_its_regular_expression_with_ignore_merges(folder: Path) -> None:
    def edit(sections: Sections) -> None:
        sections.update(pre_tokenizer=cut_by(HF_WORDS + r"\p{N}{1,3}" + HF_REST))
        sections["model"].update(ignore_merges=True)

    tokenizer = load_tokenizer(change(folder, edit))
    assert tokenizer.split == "llama-bpe" and tokenizer.engine_obstacle is None


@pytest.mark.parametrize("name", sorted({known.written for known in known_splits().values()}))
def test_every_split_is_written_and_recognized(folder: Path, name: str) -> None:
    def edit(sections: Sections) -> None:
        sections.update(pre_tokenizer=pre_tokenizer(name))
        sections["model"].update(ignore_merges=known_splits()[name].ignore_merges)

    tokenizer = load_tokenizer(change(folder, edit))
    assert tokenizer.split == name and tokenizer.engine_obstacle is None


def test_truncation_and_padding_of_the_file_are_ignored(folder: Path) -> None:
    truncation = {"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0}
    padding = {
        "strategy": {"Fixed": 50}, "direction": "Right", "pad_to_multiple_of": None,
        "pad_id": 0, "pad_type_id": 0, "pad_token": "<|endoftext|>",
    }  # fmt: skip
    before = load_tokenizer(folder).encode("the cat sat on the mat")
    after = load_tokenizer(change(folder, lambda s: s.update(truncation=truncation, padding=padding)))
    assert after.encode("the cat sat on the mat") == before and len(before) > 2


def test_ids_without_a_token_are_unused(folder: Path) -> None:
    token = {"id": 270, "content": "<tool>", "single_word": False, "lstrip": False, "rstrip": False}
    path = change(folder, lambda s: s["added_tokens"].append({**token, "normalized": False, "special": False}))
    tokenizer = load_tokenizer(path)
    if tokenizer.vocab_size == 271:  # else the library gave it the next free id
        assert tokenizer.types()[262:] == [5] * 8 + [4]
    assert tokenizer.decode(tokenizer.encode("a<tool>b")) == b"a<tool>b"


def test_tokenizer_config_names_the_special_tokens(folder: Path) -> None:
    (folder / "tokenizer_config.json").write_text(
        json.dumps(
            {
                "bos_token": None,
                "eos_token": {"content": "<|im_end|>"},
                "chat_template": [{"name": "tool_use", "template": "x"}, {"name": "default", "template": "y"}],
            }
        )
    )
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [2, 259]}))
    tokenizer = load_tokenizer(folder)
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.end_ids) == (None, 2, (2, 259, 0))
    assert tokenizer.chat_template == "y"
    (folder / "chat_template.jinja").write_text("z")
    assert load_tokenizer(folder).chat_template == "z"


def test_tokenizer_json_alone_is_searched_for_the_usual_names(folder: Path) -> None:
    (folder / "tokenizer_config.json").unlink()
    tokenizer = load_tokenizer(folder)
    assert (tokenizer.bos_id, tokenizer.eos_id) == (0, 0)


def write(path: Path, content: Sections) -> None:
    path.write_text(json.dumps(content))


BARE: Sections = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": 2048}
MAP: Sections = {"bos_token": "<|im_start|>", "eos_token": {"content": "<|im_end|>", "lstrip": False}}
DECODER: Sections = {
    str(i): {"content": name, "lstrip": False, "rstrip": False, "single_word": False, "normalized": False,
             "special": True}
    for i, name in enumerate(("<|endoftext|>", "<|im_start|>", "<|im_end|>"))
}  # fmt: skip
NAMED: Sections = {"bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>"}
# tokenizer_config.json, special_tokens_map.json, config.json, BOS and EOS
NAMES: list[tuple[Sections | None, Sections | None, Sections | None, tuple[int | None, int | None]]] = [
    (BARE, MAP, None, (1, 2)),
    (None, MAP, None, (1, 2)),
    (BARE | NAMED, MAP, None, (1, 2)),
    (BARE | NAMED | {"added_tokens_decoder": DECODER}, MAP, None, (0, 0)),
    (BARE | {"bos_token": None, "eos_token": "<|im_end|>"}, None, {"bos_token_id": 1, "eos_token_id": 0}, (None, 2)),
    (BARE, MAP, {"bos_token_id": 0, "eos_token_id": 0}, (1, 2)),
    (BARE, None, None, (None, None)),
]


@pytest.mark.parametrize(("settings", "special_map", "config", "expected"), NAMES)
def test_files_that_name_bos_and_eos(
    folder: Path, settings: Sections | None, special_map: Sections | None, config: Sections | None,
    expected: tuple[int | None, int | None],
) -> None:  # fmt: skip
    (folder / "tokenizer_config.json").unlink()
    names = ("tokenizer_config.json", "special_tokens_map.json", "config.json")
    for name, content in zip(names, (settings, special_map, config), strict=True):
        if content is not None:
            write(folder / name, content)
    tokenizer = load_tokenizer(folder)
    assert (tokenizer.bos_id, tokenizer.eos_id) == expected


@pytest.mark.compat
@pytest.mark.parametrize(("settings", "special_map", "config", "expected"), NAMES)
def test_transformers_finds_the_same_bos_and_eos(
    folder: Path, settings: Sections | None, special_map: Sections | None, config: Sections | None,
    expected: tuple[int | None, int | None],
) -> None:  # fmt: skip
    from transformers import PreTrainedTokenizerFast

    (folder / "tokenizer_config.json").unlink()
    for name, content in (("tokenizer_config.json", settings), ("special_tokens_map.json", special_map)):
        if content is not None:
            write(folder / name, content)
    theirs = PreTrainedTokenizerFast.from_pretrained(folder)
    assert (theirs.bos_token_id, theirs.eos_token_id) == expected


def test_bos_and_eos_of_config_json(folder: Path, tmp_path: Path) -> None:
    """The last resort, if they are special tokens; a copy without config.json keeps them."""
    pytest.importorskip("torch")
    from llamita.checkpoint import copy_tokenizer

    write(folder / "tokenizer_config.json", BARE)
    write(folder / "config.json", {"bos_token_id": 1, "eos_token_id": [200, 2]})
    tokenizer = load_tokenizer(folder)
    assert (tokenizer.bos_id, tokenizer.eos_id) == (1, 2)
    (tmp_path / "copy").mkdir()
    copy_tokenizer(folder, tmp_path / "copy")
    assert load_tokenizer(tmp_path / "copy").fingerprint == tokenizer.fingerprint
    write(folder / "config.json", {"bos_token_id": 300, "eos_token_id": None})
    assert load_tokenizer(folder).bos_id is None


def remove_byte(sections: Sections) -> None:
    del sections["model"]["vocab"]["!"]


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (remove_byte, "bytes have no token"),
        (lambda s: s.update(pre_tokenizer=None), "neither byte level"),
        (lambda s: s["model"].update(dropout=0.1), "dropout"),
        (lambda s: s.update(model={"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "a"}), "WordLevel"),
        (lambda s: s["model"]["vocab"].update({"far": 4_000_000_000}), "far above"),
        (lambda s: s["model"].update(merges=[["x", "nothing"]]), "tokenizer.json"),
        (lambda s: s.pop("model"), "tokenizer.json"),
    ],
)
def test_unusable_tokenizer_json(folder: Path, edit: Callable[[Sections], object], message: str) -> None:
    with pytest.raises(TokenizerError, match=message) as caught:
        load_tokenizer(change(folder, edit))
    assert "\n" not in str(caught.value)


def test_damaged_settings(folder: Path) -> None:
    (folder / "tokenizer_config.json").write_text('{"eos_token": "</s>"}')
    with pytest.raises(TokenizerError, match="eos_token to '</s>'"):
        load_tokenizer(folder)
    (folder / "tokenizer_config.json").write_text("{")
    with pytest.raises(TokenizerError, match="not valid JSON"):
        load_tokenizer(folder)


def test_cut_tokenizer_json(folder: Path) -> None:
    path = folder / "tokenizer.json"
    data = path.read_bytes()
    for size in range(0, len(data) - 2, 997):
        path.write_bytes(data[:size])
        with pytest.raises(TokenizerError):
            load_tokenizer(path)


def test_what_is_not_a_tokenizer(tmp_path: Path) -> None:
    with pytest.raises(TokenizerError, match="no tokenizer in"):
        load_tokenizer(tmp_path)
    with pytest.raises(TokenizerError, match="No such file"):
        load_tokenizer(tmp_path / "missing.model")
    ranks = tmp_path / "tokenizer.model"
    ranks.write_bytes(b"IQ== 0\nIg== 1\n")
    with pytest.raises(TokenizerError, match="no token for byte 0"):
        load_tokenizer(ranks)
    ranks.write_bytes(b"no model\n")
    with pytest.raises(TokenizerError, match="neither a SentencePiece model nor tiktoken ranks"):
        load_tokenizer(ranks)
    (tmp_path / "words.txt").write_bytes(b"hello")
    with pytest.raises(TokenizerError, match=r"expected a tokenizer\.json"):
        load_tokenizer(tmp_path / "words.txt")


def test_a_ggufs_sentencepiece_vocabulary_is_the_models(shared_data: Path, random_texts: list[str]) -> None:
    """Llama 2's in llama.cpp's vocabulary file, against its tokenizer.model."""
    from llamita.formats.gguf import read_gguf
    from llamita.tokenizer.gguf import tokenizer_from_gguf

    path = shared_data / "tokenizers" / "ggml-vocab-llama-spm.gguf"
    found = tokenizer_from_gguf(read_gguf(path).metadata, str(path))
    expected = load_tokenizer(shared_data / "tokenizers" / "llama2_tokenizer.model")
    assert found.pieces() == expected.pieces() and found.types() == expected.types()
    assert (found.bos_id, found.eos_id, found.unknown_id) == (1, 2, 0)
    texts = random_texts[:3000]
    assert found.encode_batch(texts) == expected.encode_batch(texts)


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer.model"])
def test_git_lfs_pointers(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n")
    with pytest.raises(TokenizerError, match="found a Git LFS pointer; fetch the file with: git lfs pull"):
        load_tokenizer(tmp_path)


def test_add_prefix_space_is_known(folder: Path) -> None:
    prefixed = byte_level(use_regex=True) | {"add_prefix_space": True}
    tokenizer = load_tokenizer(change(folder, lambda s: s.update(pre_tokenizer=prefixed)))
    assert tokenizer.add_space_prefix
    assert tokenizer.decode(tokenizer.encode("the cat")) == b"the cat"
    assert tokenizer.decode([tokenizer.encode("a")[-1], *tokenizer.encode("the")]) == b"a the"
    assert tokenizer.engine_obstacle == "it prepends a space to text (add_prefix_space)"
    with pytest.raises(TokenizerError, match=r"it prepends a space to text \(add_prefix_space\), and GGUF runtimes"):
        tokenizer_metadata(tokenizer, tokenizer.vocab_size, [])


def write_merges(folder: Path, config: dict[str, Any], merges: str | None = None) -> Path:
    """The folder's tokenizer as vocab.json and merges.txt."""
    model = json.loads((folder / "tokenizer.json").read_text())["model"]
    (folder / "tokenizer.json").unlink()
    (folder / "vocab.json").write_text(json.dumps(model["vocab"]))
    lines = ["#version: 0.2", *(" ".join(merge) for merge in model["merges"])]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n" if merges is None else merges)
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


def test_vocab_and_merges_without_tokenizer_json(folder: Path) -> None:
    tokenizer = load_tokenizer(
        write_merges(folder, {"tokenizer_class": "GPT2TokenizerFast", "eos_token": "<|im_end|>"})
    )
    assert (tokenizer.split, tokenizer.bos_id, tokenizer.eos_id) == ("gpt-2", 0, 2)
    assert tokenizer.encode("<|im_end|>", parse_special=True) == [2]
    assert tokenizer.decode(tokenizer.encode("the cats  sat")) == b"the cats  sat"


@pytest.mark.parametrize(
    ("config", "merges", "message"),
    [
        ({}, None, "tokenizer_class: expected one of GPT2Tokenizer, Qwen2Tokenizer.*found null; load the folder in"),
        ({"tokenizer_class": "RobertaTokenizer"}, None, "tokenizer_class: expected .* found 'RobertaTokenizer'"),
        (
            {"tokenizer_class": "GPT2Tokenizer"},
            "#version\nt h e\n",
            "merges.txt: line 2: expected two pieces, found 't",
        ),
        ({"tokenizer_class": "GPT2Tokenizer"}, "日 本\n", "vocab.json: Token `日` out of vocabulary"),
        ({"tokenizer_class": "Qwen2Tokenizer", "add_prefix_space": True}, None, "add_prefix_space: expected false"),
    ],
)
def test_vocab_and_merges_that_do_not_say_enough(
    folder: Path, config: dict[str, Any], merges: str | None, message: str
) -> None:
    with pytest.raises(TokenizerError, match=message):
        load_tokenizer(write_merges(folder, config, merges))


def test_a_byte_order_mark_is_no_part_of_the_json(folder: Path) -> None:
    tokens = load_tokenizer(folder).pieces()
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_bytes(b"\xef\xbb\xbf" + (folder / name).read_bytes())
    assert load_tokenizer(folder).pieces() == tokens


def test_chat_templates_by_name(folder: Path) -> None:
    def load(*names: str) -> str | None:
        content = {"chat_template": [{"name": name, "template": f"text of {name}"} for name in names]}
        (folder / "tokenizer_config.json").write_text(json.dumps(content))
        return load_tokenizer(folder).chat_template

    assert load("rag", "default") == "text of default" and unused_templates(folder) == []
    assert load("tool_use", "rag") is None and unused_templates(folder) == ["rag", "tool_use"]
    (folder / "chat_template.jinja").write_bytes(b"\xef\xbb\xbfhello")
    assert load_tokenizer(folder).chat_template == "hello" and unused_templates(folder) == []
    (folder / "chat_template.jinja").write_bytes(b"caf\xe9")
    with pytest.raises(TokenizerError, match=r"chat_template.jinja: byte 3: expected UTF-8 text"):
        load_tokenizer(folder)


@pytest.mark.parametrize(
    "name",
    ["tokenizer.json", "tokenizer_config.json", "tokenizer.model", "tokenizer.bin", "chat_template.jinja",
     "special_tokens_map.json", "generation_config.json", "config.json"],
)  # fmt: skip
def test_a_git_lfs_pointer_is_named(folder: Path, name: str) -> None:
    (folder / "tokenizer_config.json").write_text("{}")
    (folder / name).write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n")
    with pytest.raises(TokenizerError, match=f"{name}: found a Git LFS pointer; fetch the file with: git lfs pull"):
        load_tokenizer(folder)

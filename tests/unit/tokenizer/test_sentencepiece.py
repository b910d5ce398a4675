"""SentencePiece models and llama2.c's tokenizer.bin encode as the sentencepiece library does."""

from __future__ import annotations

import io
import json
import random
import struct
from pathlib import Path
from typing import Any

import pytest
import sentencepiece

from llamita.errors import TokenizerError
from llamita.tokenizer import Tokenizer, load_tokenizer

ENDS = ("", "er", "ish", "ing", "ful")
THINGS = [a + b + c for a in ("ball", "app", "pebb") for b in ("le", "oon", "est") for c in ENDS]
TEXT = [
    f'Once upon a time {name} had {i} {thing}s, and the {THINGS[-i]}s were good. "Oh, {name}!" said Mum.\n天下{i}詩'
    for i in range(10)
    for name, thing in zip(("Lily", "Ben", "Sue") * 15, THINGS, strict=True)
]
MODELS = [
    "models/stories260K/tok512.model",
    "models/babyllama105/tok105.model",
    "tokenizers/llama2_tokenizer.model",
    "tokenizers/mistral_v1_tokenizer.model",
]


def random_texts(count: int, seed: int = 0) -> list[str]:
    """Runs of spaces and letters, words, digits, controls, Chinese, emoji; no U+2581, which means a
    space."""
    choose = random.Random(seed)
    alphabet = "aaabbb ,.  \n\t1239éü唐詩🦙x\u3000\u00a0\r" + "thequickbrownfox"
    texts = ["".join(choose.choices(alphabet, k=choose.randrange(60))) for _ in range(count)]
    words = ["ab", "ba", "aab", "the ", "lo", "...", "--", "  ", "Lily "]
    texts += [choose.choice(words) * choose.randrange(30) for _ in range(count // 5)]
    return texts + [character * n for n in range(40) for character in "a \n"]


def train(directory: Path, **settings: object) -> Path:
    out = io.BytesIO()
    defaults: dict[str, object] = {
        "model_type": "bpe", "vocab_size": 400, "byte_fallback": True, "character_coverage": 1.0,
        "normalization_rule_name": "identity", "remove_extra_whitespaces": False, "split_digits": True,
        "allow_whitespace_only_pieces": True, "minloglevel": 2, "num_threads": 1,
    }  # fmt: skip
    sentencepiece.SentencePieceTrainer.train(sentence_iterator=iter(TEXT), model_writer=out, **{**defaults, **settings})
    path = directory / "trained.model"
    path.write_bytes(out.getvalue())
    return path


def check_equal(model: Path, texts: list[str]) -> Tokenizer:
    theirs = sentencepiece.SentencePieceProcessor(model_file=str(model))
    ours = load_tokenizer(model)
    for text, expected, found in zip(texts, theirs.encode(texts), ours.encode_batch(texts), strict=True):
        assert found == expected, repr(text)
        if theirs.unk_id() not in expected:
            assert ours.decode(found).decode() == theirs.decode(expected), repr(text)
    assert ours.pieces() == [theirs.id_to_piece(i) for i in range(theirs.vocab_size())]
    assert ours.scores() == pytest.approx([theirs.get_score(i) for i in range(theirs.vocab_size())])
    assert (ours.bos_id, ours.eos_id, ours.unknown_id) == (theirs.bos_id(), theirs.eos_id(), theirs.unk_id())
    return ours


@pytest.mark.parametrize(
    "settings",
    [{}, {"add_dummy_prefix": False}, {"remove_extra_whitespaces": True}, {"byte_fallback": False, "vocab_size": 160}],
    ids=["as llama2.c", "no added space", "extra spaces removed", "no byte fallback"],
)
def test_a_model_trained_here_encodes_as_sentencepiece(tmp_path: Path, settings: dict[str, object]) -> None:
    ours = check_equal(train(tmp_path, **settings), random_texts(3000) + TEXT)
    assert ours.kind == "llama" and ours.split is None
    assert ours.add_space_prefix == settings.get("add_dummy_prefix", True)
    assert ours.remove_extra_whitespaces == settings.get("remove_extra_whitespaces", False)


@pytest.mark.parametrize("name", MODELS)
def test_real_models_encode_as_sentencepiece(shared_data: Path, name: str) -> None:
    stories = (shared_data / "tinystories/valid.txt").read_text().split("<|endoftext|>")[:200]
    poems = (shared_data / "text/tang_poems_zh_hant.txt").read_text().split("\n\n")[:200]
    recipes = (shared_data / "text/based_cooking_recipes.txt").read_text().split("---")[:100]
    check_equal(shared_data / name, stories + poems + recipes + random_texts(2000))


@pytest.mark.parametrize(
    "name", ["models/stories260K/tok512", "models/babyllama105/tok105", "tokenizers/llama2_tokenizer"]
)
def test_llama2c_file_is_its_model(shared_data: Path, name: str) -> None:
    theirs, ours = load_tokenizer(shared_data / f"{name}.model"), load_tokenizer(shared_data / f"{name}.bin")
    assert ours.pieces() == theirs.pieces() and ours.types() == theirs.types()
    assert ours.scores() == theirs.scores() and ours.merges() == theirs.merges()
    assert not ours.remove_extra_whitespaces  # the file does not say; llama2.c's run.c keeps them


def test_saved_folder_keeps_the_file_and_its_scores(tmp_path: Path) -> None:
    model = train(tmp_path)
    tokenizer = load_tokenizer(model)
    tokenizer.save(tmp_path / "kept")
    assert (tmp_path / "kept/tokenizer.model").read_bytes() == model.read_bytes()
    kept = load_tokenizer(tmp_path / "kept")
    assert kept.fingerprint == tokenizer.fingerprint and kept.scores() == tokenizer.scores()
    (tmp_path / "kept/tokenizer.model").unlink()
    bare = load_tokenizer(tmp_path / "kept")
    assert bare.fingerprint == tokenizer.fingerprint and bare.add_space_prefix
    assert (bare.bos_id, bare.eos_id, bare.end_ids) == (1, 2, (2,))
    order = sorted(range(259, bare.vocab_size), key=lambda i: -(tokenizer.scores() or [])[i])
    assert order == sorted(range(259, bare.vocab_size), key=lambda i: -(bare.scores() or [])[i])


def test_a_model_with_other_pieces_than_tokenizer_json(tmp_path: Path) -> None:
    load_tokenizer(train(tmp_path)).save(tmp_path / "kept")
    other = train(tmp_path, vocab_size=402)
    (tmp_path / "kept/tokenizer.model").write_bytes(other.read_bytes())
    with pytest.raises(TokenizerError, match="different pieces"):
        load_tokenizer(tmp_path / "kept")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"model_type": "unigram", "vocab_size": 330}, "of type unigram"),
        ({"model_type": "char", "vocab_size": 330}, "of type char"),
        ({"normalization_rule_name": "nmt_nfkc"}, "normalizes text"),
        ({"user_defined_symbols": ["<tool>"]}, "user-defined symbols"),
        ({"treat_whitespace_as_suffix": True}, "suffixes"),
    ],
)
def test_models_that_no_llama_runtime_can_reproduce(tmp_path: Path, settings: dict[str, object], message: str) -> None:
    with pytest.raises(TokenizerError, match=message):
        load_tokenizer(train(tmp_path, **settings))


def test_a_truncated_model_is_refused(tmp_path: Path) -> None:
    data = train(tmp_path).read_bytes()
    path = tmp_path / "cut.model"
    for size in range(0, len(data) - 1, 37):
        path.write_bytes(data[:size])
        with pytest.raises(TokenizerError, match=r"cut\.model"):
            load_tokenizer(path)


def llama2c_file(pieces: list[bytes], longest: int = 8, score: float = 0.0) -> bytes:
    entries = [struct.pack("<fI", score, len(piece)) + piece for piece in pieces]
    return struct.pack("<I", longest) + b"".join(entries)


HEAD = [b"<unk>", b"\n<s>\n", b"\n</s>\n"]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "empty"),
        (b"\0\0", "only 2 bytes"),
        (llama2c_file(HEAD)[:-1], "piece 2"),
        (llama2c_file(HEAD) + b"\0\0\0", "ends inside piece 3"),
        (llama2c_file(HEAD, longest=5), "length 6"),
        (llama2c_file(HEAD) + struct.pack("<fI", 0, 0xFFFFFFFF), "length 4,294,967,295"),
        (llama2c_file([b"a", b"b", b"c"]), "expected <unk>"),
        (llama2c_file([*HEAD, b" ", b"\xff"]), "not UTF-8"),
        (llama2c_file([*HEAD, b"a", b"a"]), "same piece"),
        (llama2c_file([*HEAD, b""]), "empty"),
        (llama2c_file([*HEAD, b"ab"]), "that is not a piece"),
        (llama2c_file([*HEAD, b"a"], score=float("nan")), "no finite score"),
        (llama2c_file([*HEAD, b"a", b"a" * 1025], longest=1025), "piece 4: expected at most 1,024 bytes, found 1,025"),
    ],
)
def test_damaged_llama2c_files(tmp_path: Path, data: bytes, message: str) -> None:
    path = tmp_path / "tokenizer.bin"
    path.write_bytes(data)
    with pytest.raises(TokenizerError, match=message):
        load_tokenizer(path)


# ---------------------------------------------------------------- JSON files beside a tokenizer.model

CHATML = "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"


def companions(tmp_path: Path, *, decoder: bool) -> Path:
    """A tokenizer.model with ChatML's tokens added, as fine-tunes of Llama 2 were published."""
    folder = tmp_path / "model"
    folder.mkdir()
    train(tmp_path).rename(folder / "tokenizer.model")
    count = load_tokenizer(folder).vocab_size
    names = {"<|im_start|>": count, "<|im_end|>": count + 1, "<tool>": count + 2}
    settings: dict[str, Any] = {
        "tokenizer_class": "LlamaTokenizer", "legacy": True, "chat_template": CHATML, "eos_token": "<|im_end|>",
    }  # fmt: skip
    if decoder:
        flags = {"lstrip": False, "rstrip": False, "single_word": False}
        listed = {"<unk>": 0, "<s>": 1, "</s>": 2, **names}
        settings["added_tokens_decoder"] = {
            str(i): {"content": name, "special": name != "<tool>", "normalized": name == "<tool>", **flags}
            for name, i in listed.items()
        }
    else:
        special: dict[str, Any] = {"bos_token": "<s>", "eos_token": {"content": "<|im_end|>"}}
        special["additional_special_tokens"] = ["<|im_start|>"]
        (folder / "special_tokens_map.json").write_text(json.dumps(special))
    (folder / "added_tokens.json").write_text(json.dumps(names))
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


@pytest.mark.parametrize("decoder", [True, False])
def test_the_json_files_beside_a_model_are_used(tmp_path: Path, decoder: bool) -> None:
    folder = companions(tmp_path, decoder=decoder)
    tokenizer = load_tokenizer(folder)
    assert tokenizer.pieces()[-3:] == ["<|im_start|>", "<|im_end|>", "<tool>"]
    assert tokenizer.types()[-3:] == [3, 3, 4]
    assert (tokenizer.bos_id, tokenizer.eos_id) == (1, tokenizer.vocab_size - 2)
    assert tokenizer.chat_template == CHATML
    assert tokenizer.encode("<|im_start|>user", parse_special=True)[0] == tokenizer.vocab_size - 3
    tokenizer.save(tmp_path / "saved")
    again = load_tokenizer(tmp_path / "saved")
    assert again.fingerprint == tokenizer.fingerprint and again.chat_template == CHATML


@pytest.mark.compat
@pytest.mark.parametrize("decoder", [True, False])
def test_transformers_reads_the_same_from_these_files(tmp_path: Path, decoder: bool) -> None:
    pytest.importorskip("google.protobuf")
    from transformers import AutoTokenizer

    folder = companions(tmp_path, decoder=decoder)
    theirs, ours = AutoTokenizer.from_pretrained(folder), load_tokenizer(folder)
    assert (theirs.bos_token_id, theirs.eos_token_id) == (ours.bos_id, ours.eos_id)
    messages = [{"role": "user", "content": "Lily had <tool>balls"}, {"role": "assistant", "content": "Oh, Ben!"}]
    text = str(theirs.apply_chat_template(messages, tokenize=False))
    # No space after an added token: transformers' Metaspace then adds none, SentencePiece does.
    for each in (text, "a<tool>b", "Once <tool>upon", "<s>Once</s>\nupon<|im_end|><|im_start|>a"):
        assert ours.encode(each, parse_special=True) == theirs.encode(each, add_special_tokens=False), each


@pytest.mark.parametrize(
    ("added", "message"),
    [
        ({"<a>": 9999}, "must follow them without a gap"),
        ({"<a>": 5}, "must follow them without a gap"),
        ({"<a>": "5"}, "<a>: expected an integer of at least 0, found '5'"),
    ],
)
def test_impossible_added_tokens(tmp_path: Path, added: dict[str, Any], message: str) -> None:
    train(tmp_path).rename(tmp_path / "tokenizer.model")
    (tmp_path / "added_tokens.json").write_text(json.dumps(added))
    with pytest.raises(TokenizerError, match=message):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize("decoder", [[], {"x": {"content": "a"}}, {"400": "a"}, {"400": {"content": 1}}])
def test_damaged_added_tokens_decoder(tmp_path: Path, decoder: object) -> None:
    train(tmp_path).rename(tmp_path / "tokenizer.model")
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"added_tokens_decoder": decoder}))
    with pytest.raises(TokenizerError, match=r"added_tokens_decoder(\.400(\.content)?)?: expected"):
        load_tokenizer(tmp_path)

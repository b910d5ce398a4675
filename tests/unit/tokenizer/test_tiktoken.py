"""tiktoken rank files (Llama 3's tokenizer.model): the same ids as tiktoken; damage is named."""

from __future__ import annotations

import base64
from pathlib import Path

import pytest

from llamita.errors import TokenizerError
from llamita.tokenizer import Tokenizer, load_tokenizer
from llamita.tokenizer.load import load_tiktoken
from llamita.tokenizer.tiktoken import special_tokens

# Llama 3's, as its reference tokenizer.py states it.
PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)


def same_ids(tokenizer: Tokenizer, ranks: Path, texts: list[str]) -> None:
    tiktoken = pytest.importorskip("tiktoken")
    lines = [line.split() for line in ranks.read_bytes().splitlines()]
    mergeable = {base64.b64decode(token): int(rank) for token, rank in lines}
    special = {name: len(mergeable) + i for i, name in enumerate(special_tokens("3.1"))}
    theirs = tiktoken.Encoding("x", pat_str=PATTERN, mergeable_ranks=mergeable, special_tokens=special)
    expected = theirs.encode_ordinary_batch(texts)
    for text, ids, ours in zip(texts, expected, tokenizer.encode_batch(texts), strict=True):
        assert ours == ids, text
        assert tokenizer.decode(ids) == text.encode()
    text = "<|begin_of_text|>Hi<|eot_id|><|start_header_id|>user<|end_header_id|>"
    assert tokenizer.encode(text, parse_special=True) == theirs.encode(text, allowed_special="all")
    assert tokenizer.encode(text) == theirs.encode_ordinary(text)


@pytest.fixture
def ranks(tiktoken_ranks: bytes, tmp_path: Path) -> Path:
    (tmp_path / "tokenizer.model").write_bytes(tiktoken_ranks)
    return tmp_path / "tokenizer.model"


def test_small_ranks_encode_as_tiktoken(ranks: Path, random_texts: list[str]) -> None:
    tokenizer = load_tokenizer(ranks)
    assert (tokenizer.kind, tokenizer.split) == ("gpt2", "llama-bpe")
    same_ids(tokenizer, ranks, random_texts)


def test_saved_and_loaded_it_encodes_the_same(ranks: Path, tmp_path: Path, random_texts: list[str]) -> None:
    load_tokenizer(ranks).save(tmp_path / "saved")
    again = load_tokenizer(tmp_path / "saved")
    assert again.fingerprint == load_tokenizer(ranks).fingerprint
    same_ids(again, ranks, random_texts[:1000])


def test_llama3_encodes_as_tiktoken(shared_data: Path, random_texts: list[str]) -> None:
    path = shared_data / "tokenizers" / "llama3_tokenizer.model"
    tokenizer = load_tokenizer(path)
    assert (tokenizer.vocab_size, tokenizer.bos_id, tokenizer.eos_id) == (128256, 128000, 128001)
    assert len(tokenizer.merges()) == 280147  # as in the published tokenizer.json
    assert tokenizer.end_ids == (128001, 128008, 128009)
    same_ids(tokenizer, path, random_texts)


def test_special_tokens_of_both_versions() -> None:
    old, new = special_tokens("3"), special_tokens("3.1")
    assert len(set(old)) == len(set(new)) == 256
    assert (old[0], old[1], old[6], old[7], old[9]) == (new[0], new[1], new[6], new[7], new[9])
    assert (old[8], new[8], new[4], new[10]) == (
        "<|reserved_special_token_4|>", "<|eom_id|>", "<|finetune_right_pad_id|>", "<|python_tag|>",
    )  # fmt: skip
    assert (old[10], old[255]) == ("<|reserved_special_token_5|>", "<|reserved_special_token_250|>")
    assert (new[5], new[11], new[255]) == (
        "<|reserved_special_token_2|>", "<|reserved_special_token_3|>", "<|reserved_special_token_247|>",
    )  # fmt: skip


def test_chat_models_end_at_the_turn(ranks: Path) -> None:
    base, chat = load_tiktoken(ranks, "3"), load_tiktoken(ranks, "3", is_chat=True)
    assert base.pieces()[base.eos_id or 0] == "<|end_of_text|>"
    assert chat.pieces()[chat.eos_id or 0] == "<|eot_id|>"


def lines(content: bytes) -> list[bytes]:
    return content.splitlines()


def test_damage_is_named(ranks: Path, tiktoken_ranks: bytes) -> None:
    good = lines(tiktoken_ranks)
    bad = {
        "line 3: expected at most 1,024 bytes, found 1,025": [
            *good[:2], base64.b64encode(b"a" * 1025) + b" 2", *good[3:],
        ],
        "line 3: expected base64 and a rank": [*good[:2], b"????", *good[3:]],
        "line 4: expected base64 and a rank, found b'Aw== three'": [*good[:3], b"Aw== three", *good[4:]],
        "line 5: rank 3 occurs twice": [*good[:4], good[3], *good[4:]],
        "expected the ranks 0 to": [*good[:-1], b"cXF4eQ== 9000"],
        "two ranks have the same bytes": [*good[:-1], good[0].split()[0] + b" " + good[-1].split()[1]],
        "no token for byte 255": good[:255],
    }  # fmt: skip
    for said, content in bad.items():
        ranks.write_bytes(b"\n".join(content))
        with pytest.raises(TokenizerError) as caught:
            load_tokenizer(ranks)
        assert said in str(caught.value) and "\n" not in str(caught.value)


def test_truncated_anywhere_is_refused_or_smaller(ranks: Path, tiktoken_ranks: bytes) -> None:
    """A cut after a whole line is a smaller vocabulary; all others are named. (Cuts in every tenth
    byte.)"""
    whole = load_tokenizer(ranks).vocab_size
    for length in range(0, len(tiktoken_ranks) - 1, 10):
        ranks.write_bytes(tiktoken_ranks[:length])
        try:
            assert load_tokenizer(ranks).vocab_size <= whole
        except TokenizerError as error:
            assert "\n" not in str(error)

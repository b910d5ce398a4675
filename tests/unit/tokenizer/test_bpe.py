"""Our byte-level BPE: ids, determinism, errors, and decoding that restores the bytes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llamita.errors import TokenizerError
from llamita.tokenizer import SPECIAL_TOKENS, Tokenizer, VocabularyTooLarge, load_tokenizer, train_bpe

WORDS = [a + b + c for a in ("ber", "riv", "fo", "gar", "mil") for b in ("ri", "es", "den") for c in ("", "ly", "ing")]
TEXTS = [
    f"Once there was a fox number {i} who liked {word} and the {WORDS[-i]}.\n\nShe said: 'I'll go!' 狐狸喜歡{word}。"
    for i in range(4)
    for word in WORDS
]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_bpe(TEXTS, 384)


def test_ids_are_special_tokens_then_bytes_then_merges(tokenizer: Tokenizer) -> None:
    pieces = tokenizer.pieces()
    assert tokenizer.vocab_size == len(pieces) == 384
    assert tuple(pieces[:3]) == SPECIAL_TOKENS
    assert [tokenizer.decode([i]) for i in range(3)] == [b"", b"", b""]
    assert {tokenizer.decode([i]) for i in range(3, 259)} == {bytes([b]) for b in range(256)}
    assert pieces[259:] == [merge.replace(" ", "") for merge in tokenizer.merges()]
    assert tokenizer.types() == [3] * 3 + [1] * 381
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.end_ids) == (0, 0, (0, 2))
    assert (tokenizer.kind, tokenizer.split, tokenizer.scores(), tokenizer.unknown_id) == ("gpt2", "qwen2", None, None)


def test_same_text_in_any_order_gives_the_same_tokenizer(tokenizer: Tokenizer) -> None:
    assert train_bpe(reversed(TEXTS), 384).to_json() == tokenizer.to_json()
    assert train_bpe(TEXTS, 385).fingerprint != tokenizer.fingerprint


@settings(deadline=None, max_examples=200)
@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=80))
def test_decoding_restores_the_bytes(text: str) -> None:
    tokenizer = _shared()
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text.encode()
    assert tokenizer.encode_batch([text, text]) == [ids, ids]


_cache: list[Tokenizer] = []


def _shared() -> Tokenizer:
    if not _cache:
        _cache.append(train_bpe(TEXTS, 384))
    return _cache[0]


def test_digits_stand_alone_and_merges_never_cross_words(tokenizer: Tokenizer) -> None:
    assert [tokenizer.decode([i]) for i in tokenizer.encode("1234")] == [b"1", b"2", b"3", b"4"]
    for piece in tokenizer.pieces()[259:]:
        assert "Ġ" not in piece[1:] or set(piece) <= set("ĠĊ"), piece


def test_control_tokens_in_text_are_text_by_default(tokenizer: Tokenizer) -> None:
    assert 0 not in tokenizer.encode("<|endoftext|>")
    assert tokenizer.decode(tokenizer.encode("<|endoftext|>")) == b"<|endoftext|>"
    assert tokenizer.encode("a<|im_end|>", parse_special=True)[-1] == 2
    assert 2 not in tokenizer.encode("a<|im_end|>")


def test_too_large_a_vocabulary_names_the_supported_size() -> None:
    with pytest.raises(VocabularyTooLarge, match=r"vocabulary of 4,000: the text supports at most \d+") as caught:
        train_bpe(TEXTS, 4000)
    assert train_bpe(TEXTS, caught.value.supported).vocab_size == caught.value.supported
    with pytest.raises(VocabularyTooLarge):
        train_bpe(TEXTS, caught.value.supported + 1)


@pytest.mark.parametrize("size", [-1, 0, 258, 1 << 21])
def test_vocabulary_size_out_of_range(size: int) -> None:
    with pytest.raises(TokenizerError, match="expected 259"):
        train_bpe(TEXTS, size)


def test_errors_of_the_texts_pass_through() -> None:
    def texts():  # type: ignore[no-untyped-def]
        yield "one"
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        train_bpe(texts(), 300)


def test_saved_and_loaded_is_the_same(tokenizer: Tokenizer, tmp_path: Path) -> None:
    tokenizer.chat_template = "{{ messages }}"
    tokenizer.save(tmp_path)
    for path in (tmp_path, tmp_path / "tokenizer.json"):
        loaded = load_tokenizer(path)
        assert loaded.fingerprint == tokenizer.fingerprint
        assert (loaded.bos_id, loaded.eos_id, loaded.end_ids) == (0, 0, (0, 2))
        assert loaded.chat_template == "{{ messages }}"
        assert loaded.encode_batch(TEXTS[:9]) == tokenizer.encode_batch(TEXTS[:9])
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    assert config["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert config["bos_token"] == config["eos_token"] == "<|endoftext|>"
    assert config["clean_up_tokenization_spaces"] is False


@pytest.mark.compat
def test_transformers_loads_what_is_saved(tokenizer: Tokenizer, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    tokenizer.save(tmp_path)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    for text in [*TEXTS[:20], "  two  spaces\r\n", "🦙 1234"]:
        assert theirs(text)["input_ids"] == [0, *tokenizer.encode(text)]
        assert theirs.decode(tokenizer.encode(text)) == text
    assert (theirs.bos_token_id, theirs.eos_token_id, len(theirs)) == (0, 0, 384)


def test_decoding_an_id_outside_the_vocabulary(tokenizer: Tokenizer) -> None:
    for bad in (-1, 384):
        with pytest.raises(TokenizerError, match="has 384 tokens"):
            tokenizer.decode([bad])

"""Many documents in one call of the engine: the ids of the tokenizers library, document by document."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest

from llamita.data.document_encoder import EngineEncoder, open_engine_encoder
from llamita.engine import DocumentTokenizer
from llamita.errors import EngineError
from llamita.formats.gguf import encode_header
from llamita.tokenizer import Tokenizer, load_tokenizer
from llamita.tokenizer.gguf import tokenizer_metadata

pytestmark = pytest.mark.usefixtures("engine_build")


def opened(tokenizer: Tokenizer, sample: list[str]) -> EngineEncoder:
    encoder = open_engine_encoder(tokenizer, np.dtype(np.uint32), sample)
    assert isinstance(encoder, EngineEncoder), encoder
    return encoder


def assert_same(tokenizer: Tokenizer, texts: list[str]) -> None:
    ids, lengths = opened(tokenizer, texts[:50]).encode([text.encode() for text in texts])
    expected = tokenizer.encode_batch(texts)
    assert lengths.tolist() == [len(each) + 1 for each in expected]
    assert ids.tolist() == [i for each in expected for i in (*each, tokenizer.eos_id)]


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_ids_are_the_librarys(kind: str, tiny_tokenizers: dict[str, Path], random_texts: list[str]) -> None:
    """Texts of all planes, and texts that repeat words of earlier ones; control tokens written out stay text."""
    tokenizer = load_tokenizer(tiny_tokenizers[kind])
    texts = ["<|endoftext|> and </s>", *(text.replace("\x00", "") for text in random_texts[:4000])]
    assert_same(tokenizer, [text for text in texts if text.strip()])


@pytest.mark.parametrize("name", ["llama2_tokenizer.model", "llama3_tokenizer.model", "mistral_v1_tokenizer.model"])
def test_published_vocabularies(name: str, shared_data: Path) -> None:
    tokenizer = load_tokenizer(shared_data / "tokenizers" / name)
    stories = (shared_data / "tinystories/valid.txt").read_text(encoding="utf-8")[:300_000].split("<|endoftext|>")
    poems = (shared_data / "text/tang_poems_zh_hant.txt").read_text(encoding="utf-8")[:50_000].split("\n\n")
    assert_same(tokenizer, [text.strip() for text in (*stories, *poems) if text.strip()])


def test_sentencepiece_that_drops_spaces(tmp_path: Path, random_texts: list[str]) -> None:
    """remove_extra_whitespaces, SentencePiece's own default."""
    sentencepiece = pytest.importorskip("sentencepiece")
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["the moon and the sun, a llama counted 12 sheep"] * 9),
        model_prefix=str(tmp_path / "own"),
        vocab_size=310, model_type="bpe", byte_fallback=True, normalization_rule_name="identity", minloglevel=2,
    )  # fmt: skip
    tokenizer = load_tokenizer(tmp_path / "own.model")
    assert tokenizer.remove_extra_whitespaces
    texts = [text.replace("\x00", "") for text in random_texts[:2000]]
    assert_same(tokenizer, [*texts, "  a   b \n  c\t ", " ", "\u2581 \u2581x"])


def test_documents_that_cannot_be(tiny_tokenizers: dict[str, Path]) -> None:
    tokenizer = load_tokenizer(tiny_tokenizers["gpt2"])
    header = encode_header(tokenizer_metadata(tokenizer, tokenizer.vocab_size, [0]))
    engine = DocumentTokenizer(header, "tiny")
    ids, ends = engine.encode(b"", np.zeros(0, np.uint64), 0)
    assert ids.size == ends.size == 0
    ids, ends = engine.encode(b"", np.zeros(3, np.uint64), 0)  # empty documents: their ends
    assert ids.tolist() == [0, 0, 0] and ends.tolist() == [1, 2, 3]
    with pytest.raises(EngineError, match="expected ends in ascending order, found 2 after 3"):
        engine.encode(b"ab", np.array([3, 2], np.uint64), 0)
    with pytest.raises(EngineError, match=f"last_id: expected -1 to {tokenizer.vocab_size - 1}, found 99999"):
        engine.encode(b"ab", np.array([2], np.uint64), 99999)
    with pytest.raises(EngineError, match="tiny"):
        DocumentTokenizer(header[: len(header) // 2], "tiny")
    with pytest.raises(EngineError, match=r"cannot open tokenizer tiny: expected the key tokenizer\.ggml\.model"):
        DocumentTokenizer(encode_header({"general.architecture": "llama"}), "tiny")


def test_tokenizers_that_are_left_to_the_library(tiny_tokenizers: dict[str, Path], tmp_path: Path) -> None:
    content = json.loads((tiny_tokenizers["gpt2"] / "tokenizer.json").read_text())
    for change, reason in (
        ({"normalizer": {"type": "NFKC"}}, r"it normalizes text \(NFKC\)"),
        ({"model": content["model"] | {"ignore_merges": True}}, "whole words"),
        ({"pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True}}, "add_prefix_space"),
    ):
        (tmp_path / "tokenizer.json").write_text(json.dumps(content | change))
        found = open_engine_encoder(load_tokenizer(tmp_path), np.dtype(np.uint16), ["a text"])
        assert isinstance(found, str) and re.search(reason, found), found


def test_a_disagreement_is_found(tiny_tokenizers: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = load_tokenizer(tiny_tokenizers["gpt2"])
    monkeypatch.setattr(Tokenizer, "encode_batch", lambda self, texts: [[5] for _ in texts])
    found = open_engine_encoder(tokenizer, np.dtype(np.uint16), ["the moon"])
    assert isinstance(found, str) and "other ids than the tokenizers library for 'the moon'" in found

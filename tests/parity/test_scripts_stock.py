"""Texts of all scripts get the same ids from the engine, the tokenizers library, transformers and
llama.cpp, whatever the vocabulary was learned on."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llamita.convert.export import export
from llamita.engine import BpeUnit, DocumentTokenizer, Model
from llamita.formats.gguf import encode_header
from llamita.tokenizer import Tokenizer, load_tokenizer, train_bpe
from llamita.tokenizer.gguf import tokenizer_metadata

NUM_TEXTS = 10_000
# Code points by script; of the last line, characters that join or change their neighbors.
RANGES = {
    "han": [(0x4E00, 0x9FFF)], "common han": [(0x4E00, 0x51FF)], "rare han": [(0x3400, 0x4DBF), (0x20000, 0x2A6DF)],
    "compatibility": [(0xF900, 0xFAFF), (0x2E80, 0x2FDF)], "symbols": [(0x4DC0, 0x4DFF), (0x3000, 0x303F)],
    "kana": [(0x3040, 0x30FF)], "hangul": [(0xAC00, 0xD7A3), (0x1100, 0x11FF)], "thai": [(0x0E01, 0x0E5B)],
    "arabic": [(0x0621, 0x064A)], "devanagari": [(0x0900, 0x097F)], "cyrillic": [(0x0410, 0x044F)],
    "latin": [(0x61, 0x7A), (0x41, 0x5A), (0xC0, 0x17F)], "digits": [(0x30, 0x39), (0xFF10, 0xFF19), (0x0660, 0x0669)],
    "full width": [(0xFF01, 0xFF5E)], "punctuation": [(0x21, 0x2F), (0x2010, 0x2027), (0x3001, 0x3011)],
    "emoji": [(0x1F300, 0x1F64F), (0x1F900, 0x1F9FF)], "spaces": [(0x20, 0x20), (0x0A, 0x0A), (0x3000, 0x3000)],
    "joining": [(0x0300, 0x036F), (0x200D, 0x200D), (0xFE00, 0xFE0F), (0x1F3FB, 0x1F3FF), (0x3099, 0x309A)],
}  # fmt: skip
CORPUS = [
    "，春眠不覺曉。處處聞啼鳥", "床前明月光，疑是地上霜。", "白日依山尽，黄河入海流。",
    "《論語》：「學而時習之，不亦說乎？」",
    "使用 PyTorch 2.4 训练模型，准确率达到 98.7%。", "ひらがなとカタカナを書く、漢字も",
    "안녕하세요 세계", "สวัสดีชาวโลก",
    "Hello, world! It's 2024.", "def f(x):\n    return {'a': x}", "👩‍👩‍👧 emoji 🦙🦙",
]  # fmt: skip
MARKS = (" ", "  ", "\n", "\n\n", " \n ", "\t", "'s", "，", "。", "!", "...", "\r\n")
LEADS = (0xE4, 0xE9, 0xE5, 0x80, 0xBF, 0xEA, 0xE3, 0xF0)


def texts_of_scripts() -> list[str]:
    rng = random.Random(13)
    learned = sorted(set("".join(CORPUS)))

    def letters(script: str) -> str:
        low, high = rng.choice(RANGES[script])
        return "".join(chr(rng.randint(low, high)) for _ in range(rng.randrange(1, 6)))

    def piece() -> str:
        kind = rng.random()
        if kind < 0.5:
            return letters(rng.choice(list(RANGES)))
        if kind < 0.8:
            return "".join(rng.choices(learned, k=rng.randrange(1, 8)))
        return rng.choice((*MARKS, rng.choice(CORPUS)))

    return ["".join(piece() for _ in range(rng.randrange(1, 9))) for _ in range(NUM_TEXTS)]


@pytest.fixture(scope="module")
def texts() -> list[str]:
    return texts_of_scripts()


def learned(unit: BpeUnit) -> Tokenizer:
    return train_bpe(CORPUS * 4, 400, unit)


def engine_ids(tokenizer: Tokenizer, texts: list[bytes]) -> list[list[int]]:
    metadata = tokenizer_metadata(tokenizer, tokenizer.vocab_size, [0])
    encoder = DocumentTokenizer(encode_header(metadata), "the test's")
    ends = np.cumsum([len(text) for text in texts], dtype=np.uint64)
    ids, token_ends = encoder.encode(b"".join(texts), ends, -1)
    return [part.tolist() for part in np.split(ids, token_ends[:-1].astype(np.int64))]


@pytest.mark.parametrize("unit", ["word", "character"])
def test_engine_and_tokenizers(engine_build: Path, texts: list[str], unit: BpeUnit) -> None:
    tokenizer = learned(unit)
    found = engine_ids(tokenizer, [text.encode() for text in texts])
    for text, ids, expected in zip(texts, found, tokenizer.encode_batch(texts), strict=True):
        assert ids == expected, text
        assert tokenizer.decode(ids) == text.encode()


def test_bytes_that_are_no_text(engine_build: Path) -> None:
    """With a vocabulary of characters the engine encodes each character apart; a further merge of
    two that never meet turns that off, and must change nothing."""
    rng = random.Random(5)
    tokenizer = learned("character")
    found = json.loads(tokenizer._backend.to_str())
    left, right = (tokenizer._backend.id_to_token(tokenizer.encode(letter)[0]) for letter in "春曉")
    found["model"]["vocab"][left + right] = tokenizer.vocab_size
    found["model"]["merges"].append([left, right])
    joined = Tokenizer(type(tokenizer._backend).from_str(json.dumps(found)), bos_id=0, eos_id=0, where="joined")
    pieces = [letter.encode() for letter in sorted(set("".join(CORPUS)) - {"曉"})]
    damaged = []
    for _ in range(3000):
        text = bytearray(b"".join(rng.choices(pieces, k=rng.randrange(1, 20))))
        for _ in range(rng.randrange(4)):
            at = rng.randrange(len(text))
            if rng.random() < 0.5:
                del text[at : at + 1]
            else:
                text[at : at + 1] = bytes([rng.choice((*LEADS, rng.randrange(256)))])
            text = text or bytearray(b"a")
        if "曉".encode() not in text:
            damaged.append(bytes(text))
    assert engine_ids(tokenizer, damaged) == engine_ids(joined, damaged)


@pytest.mark.compat
@pytest.mark.parametrize("unit", ["word", "character"])
def test_transformers_and_llama_cpp(
    engine_build: Path, make_checkpoint: Callable[..., Path], tmp_path: Path, texts: list[str], unit: BpeUnit
) -> None:
    transformers, llama_cpp = pytest.importorskip("transformers"), pytest.importorskip("llama_cpp")
    tokenizer = learned(unit)
    checkpoint = make_checkpoint(tmp_path / "checkpoint", vocab_size=tokenizer.vocab_size)
    for path in checkpoint.glob("tokenizer*"):
        path.unlink()
    tokenizer.save(tmp_path / "own")
    for path in (tmp_path / "own").iterdir():
        (checkpoint / path.name).write_bytes(path.read_bytes())
    export(checkpoint, tmp_path / "model.gguf", "f16", verify=False)
    expected = load_tokenizer(checkpoint).encode_batch(texts)
    stock = transformers.AutoTokenizer.from_pretrained(checkpoint)
    llama: Any = llama_cpp.Llama(str(tmp_path / "model.gguf"), vocab_only=True, verbose=False)
    with Model(tmp_path / "model.gguf") as model:
        for text, ids in zip(texts, expected, strict=True):
            assert model.encode(text) == ids, text
            assert stock(text, add_special_tokens=False)["input_ids"] == ids, text
            assert stock.decode(ids, clean_up_tokenization_spaces=False) == text
            assert llama.tokenize(text.encode(), add_bos=False, special=False) == ids, text
            assert model.decode(ids) == text.encode()

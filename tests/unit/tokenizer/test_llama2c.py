"""llama2.c's tokenizer.bin: written, read again, and refused for tokenizers it cannot express."""

from __future__ import annotations

import struct
from pathlib import Path

from llamita.tokenizer import load_tokenizer
from llamita.tokenizer.llama2c import tokenizer_bin, why_no_tokenizer_bin


def test_tokenizer_bin_of_a_sentencepiece_tokenizer(tiny_tokenizers: dict[str, Path]) -> None:
    tokenizer = load_tokenizer(tiny_tokenizers["llama"])
    content = tokenizer_bin(tokenizer, tokenizer.vocab_size)
    longest, offset, pieces = struct.unpack_from("<I", content)[0], 4, []
    while offset < len(content):
        _, length = struct.unpack_from("<fI", content, offset)
        pieces.append(content[offset + 8 : offset + 8 + length])
        offset += 8 + length
    assert len(pieces) == tokenizer.vocab_size and max(map(len, pieces)) == longest
    assert pieces[:4] == [b"<unk>", b"\n<s>\n", b"\n</s>\n", b"<0x00>"]
    assert [piece.replace(b" ", "\u2581".encode()).decode() for piece in pieces[3:]] == tokenizer.pieces()[3:]


def test_tokenizer_bin_read_again_is_the_same(tiny_tokenizers: dict[str, Path], tmp_path: Path) -> None:
    tokenizer = load_tokenizer(tiny_tokenizers["llama"])
    (tmp_path / "tokenizer.bin").write_bytes(tokenizer_bin(tokenizer, tokenizer.vocab_size))
    again = load_tokenizer(tmp_path / "tokenizer.bin")
    assert again.pieces() == tokenizer.pieces() and again.scores() == tokenizer.scores()
    assert tokenizer_bin(again, again.vocab_size) == tokenizer_bin(tokenizer, tokenizer.vocab_size)


def test_byte_level_bpe_has_no_tokenizer_bin(tiny_tokenizers: dict[str, Path]) -> None:
    tokenizer = load_tokenizer(tiny_tokenizers["gpt2"])
    reason = why_no_tokenizer_bin(tokenizer)
    assert reason is not None and "byte-level BPE" in reason and "run model.bin -z model.gguf" in reason

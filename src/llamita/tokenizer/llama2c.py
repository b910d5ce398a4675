"""llama2.c's tokenizer.bin, read and written.

u32 longest piece, then for each id f32 score, u32 length, bytes. There is no count: the file ends
after the last piece. The format holds SentencePiece pieces with scores and nothing else. Ids are
fixed: 0 <unk>, 1 BOS, 2 EOS, then the 256 byte pieces if there is a byte fallback.
"""

from __future__ import annotations

import struct

from llamita.errors import TokenizerError
from llamita.tokenizer.sentencepiece import (
    BYTE,
    BYTE_PIECES,
    CONTROL,
    NORMAL,
    SPACE,
    UNKNOWN,
    PieceTable,
    check_table,
)
from llamita.tokenizer.tokenizer import Tokenizer

BOS_ID, EOS_ID = 1, 2


def read_llama2c(data: bytes, where: str) -> PieceTable:
    """Parse the content of a tokenizer.bin; `where` names it in errors. Raises TokenizerError."""
    if len(data) < 4:
        raise TokenizerError(f"cannot read tokenizer {where}: not llama2.c's tokenizer.bin: only {len(data)} bytes")
    (longest,) = struct.unpack_from("<I", data)
    pieces: list[str] = []
    scores: list[float] = []
    offset = 4
    while offset < len(data):
        if len(data) - offset < 8:
            raise TokenizerError(
                f"cannot read tokenizer {where}: the file ends inside piece {len(pieces)} (byte {offset})"
            )
        score, length = struct.unpack_from("<fI", data, offset)
        offset += 8
        if length > longest or length > len(data) - offset:
            raise TokenizerError(
                f"cannot read tokenizer {where}: piece {len(pieces)} (byte {offset - 4}): length {length:,}, but the "
                f"header says at most {longest:,} and {len(data) - offset:,} bytes are left"
            )
        try:
            pieces.append(data[offset : offset + length].decode("utf-8").replace(" ", SPACE))
        except UnicodeDecodeError:
            raise TokenizerError(
                f"cannot read tokenizer {where}: piece {len(pieces)} (byte {offset}) is not UTF-8; expected a "
                "llama2.c tokenizer.bin made from a SentencePiece model"
            ) from None
        scores.append(score)
        offset += length
    for token_id, name in ((0, "<unk>"), (1, "<s>"), (2, "</s>")):
        if token_id >= len(pieces) or pieces[token_id].strip("\n") != name:
            found = repr(pieces[token_id]) if token_id < len(pieces) else "nothing"
            raise TokenizerError(
                f"cannot read tokenizer {where}: id {token_id}: expected {name}, found {found}; "
                "not a llama2.c tokenizer.bin of a SentencePiece model"
            )
        pieces[token_id] = name
    has_bytes = pieces[3:259] == BYTE_PIECES
    types = [UNKNOWN, CONTROL, CONTROL] + [BYTE if has_bytes and i < 256 else NORMAL for i in range(len(pieces) - 3)]
    table = PieceTable(pieces, scores, types, BOS_ID, EOS_ID, 0, add_space_prefix=True, remove_extra_whitespaces=False)
    check_table(table, where)
    return table


def tokenizer_bin(tokenizer: Tokenizer, vocab_size: int) -> bytes:
    """The content of a tokenizer.bin with vocab_size tokens, for an expressible tokenizer.

    Raises TokenizerError if the tokenizer has more than vocab_size tokens.
    """
    scores = tokenizer.scores()
    assert scores is not None and why_no_tokenizer_bin(tokenizer) is None
    pieces, _ = tokenizer.padded_pieces(vocab_size)
    pieces[BOS_ID], pieces[EOS_ID] = f"\n{pieces[BOS_ID]}\n", f"\n{pieces[EOS_ID]}\n"
    raw = [piece.replace(SPACE, " ").encode("utf-8") for piece in pieces]
    scores = scores + [0.0] * (len(raw) - len(scores))
    entries = [struct.pack("<fI", score, len(piece)) + piece for score, piece in zip(scores, raw, strict=True)]
    return struct.pack("<I", max(map(len, raw))) + b"".join(entries)


def why_no_tokenizer_bin(tokenizer: Tokenizer) -> str | None:
    """Why the format cannot express this tokenizer; None if it can."""
    if tokenizer.kind == "gpt2":
        return (
            "no tokenizer.bin was written: the format cannot express a byte-level BPE; export to .gguf, or use "
            "the tokenizer of a .gguf (run model.bin -z model.gguf)"
        )
    if (tokenizer.bos_id, tokenizer.eos_id) != (BOS_ID, EOS_ID):
        return (
            f"no tokenizer.bin was written: its readers assume BOS {BOS_ID} and EOS {EOS_ID}, the tokenizer has "
            f"{tokenizer.bos_id} and {tokenizer.eos_id}; export to .gguf"
        )
    return None

"""Reads tiktoken ranks (Llama 3's tokenizer.model: lines of base64 and rank) into a tokenizer.json.

Among all neighbors whose bytes together are a token, tiktoken joins the pair with the lowest rank.
BPE with a list of merges does the same if the list contains every pair of tokens that join to a
third, ordered by the rank of the third.
"""

from __future__ import annotations

import base64
import binascii
from typing import Any, Final, Literal

from llamita.errors import TokenizerError
from llamita.tokenizer.byte_level import BYTE_OF_SYMBOL, MAX_PIECE_BYTES, byte_level_json
from llamita.tokenizer.pre_tokenizers import LLAMA_BPE_NAME

Version = Literal["3", "3.1"]

NUM_SPECIAL: Final = 256
BOS, END_OF_TEXT, END_OF_TURN, END_OF_MESSAGE = "<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>", "<|eom_id|>"

# The named special tokens of each version; the others are reserved. Their ids follow the ranks.
_NAMED: Final[dict[Version, tuple[str | None, ...]]] = {
    "3": (BOS, END_OF_TEXT, None, None, None, None, "<|start_header_id|>", "<|end_header_id|>", None, END_OF_TURN),
    "3.1": (
        BOS, END_OF_TEXT, None, None, "<|finetune_right_pad_id|>", None, "<|start_header_id|>", "<|end_header_id|>",
        END_OF_MESSAGE, END_OF_TURN, "<|python_tag|>",
    ),
}  # fmt: skip


def special_tokens(version: Version) -> list[str]:
    """Llama 3's 256 special tokens by id; unnamed ones are numbered as reserved."""
    names, reserved = [], 0
    for i in range(NUM_SPECIAL):
        name = _NAMED[version][i] if i < len(_NAMED[version]) else None
        if name is None:
            name = f"<|reserved_special_token_{reserved}|>"
            reserved += 1
        names.append(name)
    return names


def is_tiktoken(data: bytes) -> bool:
    """Whether the first line is base64, a space and a number."""
    first = data[:200].partition(b"\n")[0].split(b" ")
    return len(first) == 2 and first[1].strip().isdigit() and len(first[0]) % 4 == 0 and first[0] != b""


def read_tiktoken(data: bytes, where: str) -> list[bytes]:
    """The tokens by rank. Raises TokenizerError if a rank or a byte is missing."""
    tokens: dict[int, bytes] = {}
    for number, line in enumerate(data.splitlines(), 1):
        if not line:
            continue
        try:
            encoded, rank_text = line.split()
            token, rank = base64.b64decode(encoded, validate=True), int(rank_text)
        except (ValueError, binascii.Error):
            raise TokenizerError(
                f"cannot read tokenizer {where}: line {number}: expected base64 and a rank, found {line[:40]!r}"
            ) from None
        if len(token) > MAX_PIECE_BYTES:
            raise TokenizerError(
                f"cannot read tokenizer {where}: line {number}: expected at most {MAX_PIECE_BYTES:,} bytes, found "
                f"{len(token):,}"
            )
        if rank in tokens or not token:
            raise TokenizerError(
                f"cannot read tokenizer {where}: line {number}: rank {rank} occurs twice, or its token is empty"
            )
        tokens[rank] = token
    ranked = [tokens[rank] for rank in range(len(tokens)) if rank in tokens]
    if len(ranked) != len(tokens):
        raise TokenizerError(f"cannot read tokenizer {where}: expected the ranks 0 to {len(tokens) - 1}, found others")
    known = set(ranked)
    if len(known) != len(ranked):
        raise TokenizerError(f"cannot read tokenizer {where}: two ranks have the same bytes")
    missing = next((byte for byte in range(256) if bytes([byte]) not in known), None)
    if missing is not None:
        raise TokenizerError(f"cannot read tokenizer {where}: no token for byte {missing}, so some text would be lost")
    return ranked


def tiktoken_json(tokens: list[bytes], version: Version) -> dict[str, Any]:
    """The tokenizer.json with Llama 3's special tokens and split, and every merge."""
    rank_of = {token: rank for rank, token in enumerate(tokens)}
    symbols = {byte: symbol for symbol, byte in BYTE_OF_SYMBOL.items()}
    text = [token.decode("latin-1").translate(symbols) for token in tokens]
    merges: list[tuple[str, str]] = []
    for token in tokens:
        if len(token) > 1:
            ways = []
            for cut in range(1, len(token)):
                left, right = rank_of.get(token[:cut]), rank_of.get(token[cut:])
                if left is not None and right is not None:
                    ways.append((left, right))
            merges += [(text[left], text[right]) for left, right in sorted(ways)]
    added = {name: (len(tokens) + i, True) for i, name in enumerate(special_tokens(version))}
    return byte_level_json({piece: i for i, piece in enumerate(text)}, merges, LLAMA_BPE_NAME, added, BOS)

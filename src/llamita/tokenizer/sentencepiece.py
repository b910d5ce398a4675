"""Reads SentencePiece .model files, and converts a table of pieces to a tokenizer.json."""

from __future__ import annotations

import dataclasses
import math
import struct
from collections.abc import Iterator
from typing import Any

from llamita.errors import TokenizerError
from llamita.json_file import shown
from llamita.tokenizer.byte_level import MAX_PIECE_BYTES, bos_template

OUTER_SPACES = r"\A +| +\z"  # as the `tokenizers` library spells it
SPACE = "\u2581"  # SentencePiece's symbol for a space
# SentencePiece's numbers, also used by GGUF.
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
BYTE_PIECES = [f"<0x{byte:02X}>" for byte in range(256)]


@dataclasses.dataclass(frozen=True)
class PieceTable:
    """The pieces of a SentencePiece BPE by id, and how text is normalized."""

    pieces: list[str]
    scores: list[float]
    types: list[int]
    bos_id: int | None
    eos_id: int | None
    unknown_id: int
    add_space_prefix: bool
    remove_extra_whitespaces: bool

    @property
    def byte_fallback(self) -> bool:
        return BYTE in self.types


def read_sentencepiece(data: bytes, where: str) -> PieceTable:
    """Parse a ModelProto (sentencepiece_model.proto), as far as BPE needs it.

    Raises TokenizerError if the bytes are damaged, or if no Llama runtime can reproduce the model
    (unigram, normalization tables, user-defined symbols after an added space).
    """
    pieces: list[str] = []
    scores: list[float] = []
    types: list[int] = []
    trainer: dict[int, int | bytes] = {}
    normalizer: dict[int, int | bytes] = {}
    try:
        for field, value in _fields(data):
            if field == 1 and isinstance(value, bytes):
                piece = dict(_fields(value))
                pieces.append(_as_bytes(piece.get(1, b"")).decode("utf-8"))
                scores.append(struct.unpack("<f", _as_bytes(piece.get(2, b"\0\0\0\0")))[0])
                types.append(_as_int(piece.get(3, NORMAL)))
            elif field == 2 and isinstance(value, bytes):
                trainer = dict(_fields(value))
            elif field == 3 and isinstance(value, bytes):
                normalizer = dict(_fields(value))
    except (ValueError, IndexError, struct.error) as error:
        raise TokenizerError(f"cannot read tokenizer {where}: not a complete SentencePiece model ({error})") from None
    if not pieces or not trainer:
        raise TokenizerError(f"cannot read tokenizer {where}: not a SentencePiece model (no pieces or no settings)")
    _refuse_settings(where, trainer, normalizer, types)
    special = {  # proto field numbers of unk_id, bos_id, eos_id, with their defaults; -1: none
        name: _signed(_as_int(trainer.get(number, default)))
        for name, number, default in (("unknown", 40, 0), ("bos", 41, 1), ("eos", 42, 2))
    }
    table = PieceTable(
        pieces,
        scores,
        types,
        bos_id=special["bos"] if special["bos"] >= 0 else None,
        eos_id=special["eos"] if special["eos"] >= 0 else None,
        unknown_id=special["unknown"],
        add_space_prefix=bool(normalizer.get(3, 1)),
        remove_extra_whitespaces=bool(normalizer.get(4, 1)),
    )
    check_table(table, where)
    return table


def tokenizer_json(table: PieceTable, where: str) -> dict[str, Any]:
    """The `tokenizers` library's BPE with byte fallback that encodes as SentencePiece does.

    Normalizer and decoder are those that transformers gives a Llama (convert_slow_tokenizer.py,
    LlamaConverter).
    """
    normalizers: list[dict[str, Any]] = []
    if table.remove_extra_whitespaces:
        normalizers.append(_replace({"Regex": OUTER_SPACES}, ""))
        normalizers.append(_replace({"Regex": " {2,}"}, " "))
    if table.add_space_prefix:
        normalizers.append({"type": "Prepend", "prepend": SPACE})
    normalizers.append(_replace({"String": " "}, SPACE))
    steps: list[dict[str, Any]] = [_replace({"String": SPACE}, " "), {"type": "ByteFallback"}, {"type": "Fuse"}]
    if table.add_space_prefix:
        steps.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    added = [
        {
            "id": i, "content": piece, "single_word": False, "lstrip": False, "rstrip": False,
            "normalized": False, "special": table.types[i] != USER_DEFINED,
        }
        for i, piece in enumerate(table.pieces)
        if table.types[i] in (UNKNOWN, CONTROL, USER_DEFINED)
    ]  # fmt: skip
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": {"type": "Sequence", "normalizers": normalizers},
        "pre_tokenizer": None,
        "post_processor": None if table.bos_id is None else bos_template(table.pieces[table.bos_id], table.bos_id),
        "decoder": {"type": "Sequence", "decoders": steps},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": table.pieces[table.unknown_id],
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": True,
            "byte_fallback": table.byte_fallback,
            "ignore_merges": False,
            "vocab": {piece: i for i, piece in enumerate(table.pieces)},
            "merges": merges_from_scores(table, where),
        },
    }


def merges_from_scores(table: PieceTable, where: str) -> list[list[str]]:
    """All pairs that join to a third piece, best score first: BPE by rank is then BPE by score."""
    ids = {piece: i for i, piece in enumerate(table.pieces) if table.types[i] == NORMAL}
    ranked: list[tuple[float, int, int, int]] = []
    for piece, i in ids.items():
        if len(piece) > 1 and any(character not in ids for character in piece):
            raise TokenizerError(
                f"cannot convert tokenizer {where}: piece {i} ({shown(piece)}) contains a character that is not a piece"
            )
        for cut in range(1, len(piece)):
            left, right = ids.get(piece[:cut]), ids.get(piece[cut:])
            if left is not None and right is not None:
                ranked.append((-table.scores[i], i, left, right))
    return [[table.pieces[left], table.pieces[right]] for _, _, left, right in sorted(ranked)]


def _replace(pattern: dict[str, str], content: str) -> dict[str, Any]:
    return {"type": "Replace", "pattern": pattern, "content": content}


def _refuse_settings(
    where: str, trainer: dict[int, int | bytes], normalizer: dict[int, int | bytes], types: list[int]
) -> None:
    """Refuse what GGUF runtimes cannot reproduce. Field numbers are from
    sentencepiece_model.proto."""
    kind = _as_int(trainer.get(3, 1))
    if kind != 2:
        name = {1: "unigram", 3: "word", 4: "char"}.get(kind, str(kind))
        raise TokenizerError(
            f"cannot use tokenizer {where}: a SentencePiece model of type {name}; Llama's are bpe (--model_type=bpe)"
        )
    if normalizer.get(2, b"") not in (b"", None):
        rule = _as_bytes(normalizer.get(1, b"?")).decode("utf-8", "replace")
        raise TokenizerError(
            f"cannot use tokenizer {where}: it normalizes text ({rule}), which Llama runtimes do not; "
            "train it with --normalization_rule_name=identity"
        )
    if trainer.get(24, 0):
        raise TokenizerError(f"cannot use tokenizer {where}: it writes spaces as suffixes, which Llama runtimes do not")
    if UNUSED in types or (USER_DEFINED in types and normalizer.get(3, 1)):
        raise TokenizerError(
            f"cannot use tokenizer {where}: unused pieces, or user-defined symbols together with add_dummy_prefix, "
            "cannot be reproduced outside SentencePiece; train it without them"
        )


def check_table(table: PieceTable, where: str) -> None:
    """Raise TokenizerError unless ids are in range, pieces unique, scores finite, and bytes
    complete or absent."""
    count = len(table.pieces)
    for name, token_id in (("unknown", table.unknown_id), ("BOS", table.bos_id), ("EOS", table.eos_id)):
        if token_id is not None and not 0 <= token_id < count:
            raise TokenizerError(f"cannot read tokenizer {where}: {name} id {token_id} is outside 0..{count - 1}")
    seen: dict[str, int] = {}
    for i, piece in enumerate(table.pieces):
        if piece in seen:
            same = f"ids {seen[piece]} and {i} are the same piece {shown(piece)}"
            raise TokenizerError(f"cannot read tokenizer {where}: {same}")
        seen[piece] = i
        if not piece:
            raise TokenizerError(f"cannot read tokenizer {where}: piece {i} is empty")
        num_bytes = len(piece.encode("utf-8"))
        if num_bytes > MAX_PIECE_BYTES:
            raise TokenizerError(
                f"cannot read tokenizer {where}: piece {i}: expected at most {MAX_PIECE_BYTES:,} bytes, found "
                f"{num_bytes:,}"
            )
        if not math.isfinite(table.scores[i]):
            raise TokenizerError(f"cannot read tokenizer {where}: piece {i} ({shown(piece)}) has no finite score")
        if not NORMAL <= table.types[i] <= BYTE:
            raise TokenizerError(f"cannot read tokenizer {where}: piece {i} ({shown(piece)}) has type {table.types[i]}")
    bytes_found = sorted(piece for piece, kind in zip(table.pieces, table.types, strict=True) if kind == BYTE)
    if bytes_found and bytes_found != sorted(BYTE_PIECES):
        found = len(bytes_found)
        raise TokenizerError(f"cannot read tokenizer {where}: expected byte pieces <0x00> to <0xFF>, found {found}")


def _fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """The fields of a protobuf message: number, and int or bytes. Raises ValueError."""
    offset = 0
    while offset < len(data):
        key, offset = _varint(data, offset)
        wire = key & 7
        if wire == 0:
            value, offset = _varint(data, offset)
            yield key >> 3, value
            continue
        if wire == 2:
            length, offset = _varint(data, offset)
        elif wire in (1, 5):
            length = 8 if wire == 1 else 4
        else:
            raise ValueError(f"wire type {wire} at byte {offset}")
        if length > len(data) - offset:
            raise ValueError(f"a field of {length:,} bytes at byte {offset}, but {len(data) - offset:,} are left")
        yield key >> 3, data[offset : offset + length]
        offset += length


def _varint(data: bytes, offset: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        byte = data[offset]
        offset += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, offset
    raise ValueError(f"an unterminated varint at byte {offset}")


def _signed(value: int) -> int:
    """A protobuf int32: negative values are stored as 64-bit two's complement."""
    return value - (1 << 64) if value >= 1 << 63 else value


def _as_int(value: int | bytes) -> int:
    if not isinstance(value, int):
        raise ValueError("expected a number")
    return value


def _as_bytes(value: int | bytes) -> bytes:
    if not isinstance(value, bytes):
        raise ValueError("expected bytes")
    return value

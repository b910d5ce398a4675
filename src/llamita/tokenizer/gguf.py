"""GGUF's tokenizer.* keys: read as a Tokenizer that gives the same ids as llama.cpp, and
written."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import tokenizers

from llamita.errors import TokenizerError
from llamita.json_file import shown
from llamita.tokenizer.byte_level import MAX_PIECE_BYTES, byte_level_json
from llamita.tokenizer.load import backend_errors
from llamita.tokenizer.pre_tokenizers import known_splits, written_names
from llamita.tokenizer.sentencepiece import (
    BYTE,
    CONTROL,
    NORMAL,
    UNKNOWN,
    UNUSED,
    USER_DEFINED,
    PieceTable,
    check_table,
    tokenizer_json,
)
from llamita.tokenizer.tokenizer import Tokenizer

_PREFIX = "tokenizer.ggml."
MAX_TOKENS = 1 << 20
# GGUF has three keys for ids that end a text: end of document, of turn, of message.
END_KEYS = ("tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id", "tokenizer.ggml.eom_token_id")


# ---------------------------------------------------------------- reading


def tokenizer_from_gguf(metadata: Mapping[str, Any], where: str, pre: str | None = None) -> Tokenizer:
    """The tokenizer of a GGUF file. pre: instead of the file's tokenizer.ggml.pre. Raises
    TokenizerError if missing, damaged or unsupported."""
    if pre is not None:
        metadata = {**metadata, f"{_PREFIX}pre": pre}
    read = _Keys(metadata, where)
    kind = metadata.get(f"{_PREFIX}model")
    if kind not in ("llama", "gpt2"):
        raise TokenizerError(
            f"cannot use tokenizer {where}: tokenizer.ggml.model: expected llama or gpt2, found {str(kind)[:40]}; give "
            "another one with --tokenizer FILE"
        )
    pieces = read.texts("tokens")
    if not 0 < len(pieces) <= MAX_TOKENS:
        raise TokenizerError(f"cannot use tokenizer {where}: expected 1 to {MAX_TOKENS} tokens, found {len(pieces)}")
    types = read.numbers("token_type", len(pieces), NORMAL)
    # Padding, not tokens.
    while types and types[-1] == UNUSED and pieces[-1] == f"[PAD{len(pieces) - 1}]":
        types, pieces = types[:-1], pieces[:-1]
    content = _sentencepiece(read, pieces, types) if kind == "llama" else _byte_level(read, pieces, types)
    with backend_errors(where):
        backend = tokenizers.Tokenizer.from_str(json.dumps(content))
    template = metadata.get("tokenizer.chat_template")
    ends = [read.token(key.removeprefix(_PREFIX), len(pieces)) for key in END_KEYS]
    return Tokenizer(
        backend,
        bos_id=read.token("bos_token_id", len(pieces)),
        eos_id=ends[0],
        end_ids=[i for i in ends if i is not None],
        chat_template=template if isinstance(template, str) else None,
        where=where,
    )


def _sentencepiece(read: _Keys, pieces: list[str], types: list[int]) -> dict[str, Any]:
    scores = read.metadata.get(f"{_PREFIX}scores")
    if scores is None or isinstance(scores, str) or len(scores) < len(pieces):
        raise read.wrong("scores", f"{len(pieces)} numbers")
    unknown = read.token("unknown_token_id", len(pieces))
    if unknown is None:
        unknown = types.index(UNKNOWN) if UNKNOWN in types else None
    if unknown is None:
        raise read.wrong("unknown_token_id", "the id of the unknown token")
    table = PieceTable(
        pieces,
        [float(score) for score in scores[: len(pieces)]],
        types,
        bos_id=read.token("bos_token_id", len(pieces)) if read.flag("add_bos_token", True) else None,
        eos_id=read.token("eos_token_id", len(pieces)),
        unknown_id=unknown,
        add_space_prefix=read.flag("add_space_prefix", True),
        remove_extra_whitespaces=read.flag("remove_extra_whitespaces", False),
    )
    check_table(table, read.where)
    return tokenizer_json(table, read.where)


def _byte_level(read: _Keys, pieces: list[str], types: list[int]) -> dict[str, Any]:
    name = read.metadata.get(f"{_PREFIX}pre")
    known = known_splits().get(name) if isinstance(name, str) else None
    if known is None:
        raise TokenizerError(
            f"cannot use tokenizer {read.where}: tokenizer.ggml.pre: expected {', '.join(written_names())} or a "
            "name that llama.cpp has for one of these, found "
            f"{'none' if name is None else str(name)[:40]}; if you know how the "
            "tokenizer splits text, say it with --pre NAME (Llama 3: llama-bpe)"
        )
    split = known.written
    if len(set(pieces)) != len(pieces):
        double = next(piece for i, piece in enumerate(pieces) if piece in pieces[:i])
        raise TokenizerError(f"cannot use tokenizer {read.where}: token {double[:40]!r} occurs twice")
    merges = []
    vocab = {piece: i for i, piece in enumerate(pieces) if types[i] in (NORMAL, BYTE)}
    for number, merge in enumerate(read.texts("merges")):
        left, _, right = merge.partition(" ")
        if left not in vocab or right not in vocab or left + right not in vocab:
            raise TokenizerError(
                f"cannot use tokenizer {read.where}: merge {number}: expected two tokens that join to a third, found "
                f"{merge[:40]!r}"
            )
        merges.append((left, right))
    added = {piece: (i, types[i] != USER_DEFINED) for i, piece in enumerate(pieces)
             if types[i] in (CONTROL, USER_DEFINED, UNKNOWN)}  # fmt: skip
    if len(vocab) != 1 + max(vocab.values(), default=-1) or [i for i, _ in added.values()] != [
        *range(len(vocab), len(vocab) + len(added))
    ]:  # the library numbers added tokens outside the vocabulary from its end on
        vocab |= {piece: i for piece, (i, _) in added.items()}
    bos_id = read.token("bos_token_id", len(pieces))
    begins = read.flag("add_bos_token", known.add_bos) and bos_id is not None
    bos = pieces[bos_id] if bos_id is not None and begins else None
    if bos is not None and bos not in added:
        raise read.wrong("bos_token_id", "a control token")
    return byte_level_json(vocab, merges, split, added, bos)


class _Keys:
    """Reads typed values of the tokenizer's keys. Raises TokenizerError for an invalid one."""

    def __init__(self, metadata: Mapping[str, Any], where: str) -> None:
        self.metadata, self.where = metadata, where

    def wrong(self, key: str, expected: str) -> TokenizerError:
        found = str(self.metadata.get(f"{_PREFIX}{key}", "nothing"))[:60]
        return TokenizerError(f"cannot use tokenizer {self.where}: {_PREFIX}{key}: expected {expected}, found {found}")

    def texts(self, key: str) -> list[str]:
        value = self.metadata.get(f"{_PREFIX}{key}")
        if not isinstance(value, list):
            raise self.wrong(key, "an array of strings")
        return value

    def numbers(self, key: str, count: int, default: int) -> list[int]:
        value = self.metadata.get(f"{_PREFIX}{key}")
        if value is None:
            return [default] * count
        kind = getattr(getattr(value, "dtype", None), "kind", "")
        if kind not in ("i", "u") or len(value) != count or not all(NORMAL <= each <= BYTE for each in value.tolist()):
            raise self.wrong(key, f"{count} types from {NORMAL} to {BYTE}")
        numbers: list[int] = value.tolist()
        return numbers

    def flag(self, key: str, default: bool) -> bool:
        value = self.metadata.get(f"{_PREFIX}{key}", default)
        if not isinstance(value, bool):
            raise self.wrong(key, "true or false")
        return value

    def token(self, key: str, count: int) -> int | None:
        value = self.metadata.get(f"{_PREFIX}{key}")
        if value is None or value == 2**32 - 1:
            return None
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < count:
            raise self.wrong(key, f"an id below {count}")
        return value


# ---------------------------------------------------------------- writing


def tokenizer_metadata(tokenizer: Tokenizer, vocab_size: int, end_ids: Sequence[int]) -> dict[str, Any]:
    """The tokenizer's keys. end_ids: all ids that end a text, the most common first.

    Raises TokenizerError if the tokenizer does not fit the model, or if GGUF runtimes would
    tokenize differently.
    """
    pieces, types = tokenizer.padded_pieces(vocab_size)
    metadata: dict[str, Any] = {"tokenizer.ggml.model": tokenizer.kind}
    long = next((i for i, piece in enumerate(pieces) if len(piece.encode()) > MAX_PIECE_BYTES), None)
    if long is not None:
        raise TokenizerError(
            f"cannot export the tokenizer: token {long} ({shown(pieces[long])}): expected at most {MAX_PIECE_BYTES:,} "
            f"bytes, which the engine can open, found {len(pieces[long].encode()):,}"
        )
    scores = tokenizer.scores()
    if tokenizer.kind == "gpt2":
        if tokenizer.add_space_prefix:
            raise TokenizerError(
                "cannot export the tokenizer: it prepends a space to text (add_prefix_space), and GGUF runtimes do so "
                "for SentencePiece only; if the model was trained without, set it to false in tokenizer.json"
            )
        if tokenizer.split is None:
            raise TokenizerError(
                "cannot export the tokenizer: GGUF runtimes do not have its regular expression "
                f"(the engine has {', '.join(written_names())}), so they would split text differently"
            )
        metadata["tokenizer.ggml.pre"] = tokenizer.split
    else:
        metadata["tokenizer.ggml.pre"] = "default"
    metadata["tokenizer.ggml.tokens"] = pieces
    if scores is not None:
        padding = [0.0] * (vocab_size - len(scores))
        metadata["tokenizer.ggml.scores"] = np.array(scores + padding, dtype=np.float32)
    metadata["tokenizer.ggml.token_type"] = np.array(types, dtype=np.int32)
    if tokenizer.kind == "gpt2":
        metadata["tokenizer.ggml.merges"] = tokenizer.merges()
    metadata |= _special_ids(tokenizer, end_ids)
    metadata["tokenizer.ggml.add_bos_token"] = tokenizer.begins_with_bos
    metadata["tokenizer.ggml.add_eos_token"] = False
    if tokenizer.kind == "llama":
        metadata["tokenizer.ggml.add_space_prefix"] = tokenizer.add_space_prefix
        metadata["tokenizer.ggml.remove_extra_whitespaces"] = tokenizer.remove_extra_whitespaces
    if tokenizer.chat_template is not None:
        metadata["tokenizer.chat_template"] = tokenizer.chat_template
    return metadata


def gguf_obstacle(tokenizer: Tokenizer) -> str | None:
    """Why a model with this tokenizer cannot be exported as .gguf; None if it can."""
    first = () if tokenizer.eos_id is None else (tokenizer.eos_id,)
    try:
        tokenizer_metadata(tokenizer, tokenizer.vocab_size, list(dict.fromkeys((*first, *tokenizer.end_ids))))
    except TokenizerError as error:
        return str(error).removeprefix("cannot export the tokenizer: ").removeprefix("cannot export: ")
    return None


def _special_ids(tokenizer: Tokenizer, end_ids: Sequence[int]) -> dict[str, Any]:
    if len(end_ids) > len(END_KEYS):  # runtimes find some without a key, by their names
        eos_id, *others = end_ids
        others.sort(key=tokenizer.ends_by_name)
        need = [eos_id, *(i for i in others if not tokenizer.ends_by_name(i))]
        if len(need) > len(END_KEYS):
            raise TokenizerError(
                f"cannot export: {len(need)} ids that end a text need a key ({', '.join(map(str, need))}), GGUF has "
                f"{len(END_KEYS)}; shorten eos_token_id in config.json and generation_config.json"
            )
        end_ids = [eos_id, *others][: len(END_KEYS)]
    ids: dict[str, Any] = {}
    if tokenizer.bos_id is not None:
        ids["tokenizer.ggml.bos_token_id"] = tokenizer.bos_id
    ids |= dict(zip(END_KEYS, end_ids, strict=False))
    if tokenizer.unknown_id is not None:
        ids["tokenizer.ggml.unknown_token_id"] = tokenizer.unknown_id
    return ids

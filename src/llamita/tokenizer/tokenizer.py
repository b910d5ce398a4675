"""The Tokenizer class: text to token ids and back, over the `tokenizers` library."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import tokenizers

from llamita.atomic import atomic_write_bytes
from llamita.errors import TokenizerError
from llamita.tokenizer.byte_level import BYTE_OF_SYMBOL, bos_template
from llamita.tokenizer.pre_tokenizers import known_splits, split_name, written_names
from llamita.tokenizer.sentencepiece import (
    BYTE,
    CONTROL,
    NORMAL,
    OUTER_SPACES,
    SPACE,
    UNKNOWN,
    UNUSED,
    USER_DEFINED,
    PieceTable,
)

# Control tokens that end a text or a turn (llama.cpp's end-of-generation tokens).
_END_TOKENS = frozenset(
    ("<|endoftext|>", "<|end_of_text|>", "</s>", "<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<|end|>", "<end_of_turn>")
)
# Bytes that a byte-level vocabulary must have. Published ones (SmolLM2's) lack some control
# characters and the lead bytes of unused planes (0xF1, 0xF2, 0xF4); 0xC0, 0xC1 and 0xF5 to 0xFF do
# not occur in UTF-8.
_BYTES_OF_TEXT = frozenset((9, 10, 13, *range(32, 127), *range(0x80, 0xC0), *range(0xC2, 0xF1)))
_UNKNOWN_TEXT = " \u2047 "  # SentencePiece's default unk_surface


@dataclasses.dataclass(frozen=True)
class Origin:
    """The file of a SentencePiece tokenizer, saved next to tokenizer.json for its scores."""

    name: str  # "tokenizer.model" or "tokenizer.bin"
    data: bytes
    table: PieceTable


class Tokenizer:
    """A BPE tokenizer that Llama runtimes support: "gpt2" (byte level) or "llama"
    (SentencePiece)."""

    def __init__(
        self,
        backend: tokenizers.Tokenizer,
        *,
        bos_id: int | None,
        eos_id: int | None,
        end_ids: Sequence[int] = (),
        chat_template: str | None = None,
        origin: Origin | None = None,
        where: str,
    ) -> None:
        backend.no_truncation()
        backend.no_padding()
        self._backend = backend
        self._where = where
        self._origin = origin
        self._sections: dict[str, Any] = json.loads(backend.to_str())
        self._model: dict[str, Any] = self._sections["model"]
        self.chat_template = chat_template
        self.kind: Literal["gpt2", "llama"] = self._find_kind()
        self.split: str | None = self._find_split() if self.kind == "gpt2" else None
        self._pieces, self._types = self._list_pieces()
        self.vocab_size = len(self._pieces)
        self.bos_id = self._checked("BOS", bos_id)
        self.eos_id = self._checked("EOS", eos_id)
        self._check_pieces()
        named = [i for i in range(self.vocab_size) if self.ends_by_name(i)]
        ends = [*([] if eos_id is None else [eos_id]), *end_ids, *named]
        self.end_ids: tuple[int, ...] = tuple(dict.fromkeys(i for i in ends if 0 <= i < self.vocab_size))

    def ends_by_name(self, id: int) -> bool:
        """Whether GGUF runtimes know by its name that this token ends a text."""
        return id < self.vocab_size and self._types[id] == CONTROL and self._pieces[id] in _END_TOKENS

    @functools.cached_property
    def begins_with_bos(self) -> bool:
        """Whether a text begins with BOS in transformers: the post_processor of tokenizer.json says
        so, whatever bos_token is."""
        return self.bos_id is not None and self._backend.encode("a").ids[:1] == [self.bos_id]

    # ---- text and ids

    def encode(self, text: str, *, parse_special: bool = False) -> list[int]:
        """The ids of `text`, without BOS or EOS. Control tokens spelled in it are plain text unless
        `parse_special`."""
        self._backend.encode_special_tokens = not parse_special
        ids: list[int] = self._backend.encode(text, add_special_tokens=False).ids
        return ids

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """`encode` of each text, in parallel threads."""
        self._backend.encode_special_tokens = True
        return [each.ids for each in self._backend.encode_batch_fast(list(texts), add_special_tokens=False)]

    def decode(self, ids: Sequence[int]) -> bytes:
        """The bytes of the ids, without control tokens and SentencePiece's prepended space."""
        parts = []
        at_start = True
        for token_id in ids:
            if not 0 <= token_id < self.vocab_size:
                raise TokenizerError(f"cannot decode id {token_id}: {self._where} has {self.vocab_size:,} tokens")
            part = self._token_bytes[token_id]
            if at_start and self.add_space_prefix and part.startswith(b" "):
                part = part[1:]
            parts.append(part)
            at_start = token_id == self.bos_id or (at_start and self._types[token_id] == CONTROL)
        return b"".join(parts)

    def token_bytes(self) -> list[bytes]:
        """The bytes that each id adds after the start of a text."""
        return list(self._token_bytes)

    def byte_lengths(self) -> list[int]:
        """Bytes that each id adds after the start of a text."""
        return [len(part) for part in self._token_bytes]

    def adds_first_space(self) -> list[bool]:
        """By id: whether a text that starts with it starts with the prepended space."""
        return [self.add_space_prefix and part.startswith(b" ") for part in self._token_bytes]

    # ---- tables for model files

    def pieces(self) -> list[str]:
        """Every token by id as in GGUF: in GPT-2's byte alphabet, or with U+2581 for a space."""
        return list(self._pieces)

    def types(self) -> list[int]:
        """Every token's GGUF type by id: 1 normal, 2 unknown, 3 control, 4 user-defined, 5 unused,
        6 byte."""
        return list(self._types)

    def padded_pieces(self, vocab_size: int) -> tuple[list[str], list[int]]:
        """Pieces and types for an embedding of vocab_size rows; extra rows are unused [PADn].

        Raises TokenizerError if the tokenizer has more than vocab_size tokens.
        """
        if self.vocab_size > vocab_size:
            raise TokenizerError(
                f"cannot export: the tokenizer has {self.vocab_size} tokens, the model {vocab_size}; "
                "they do not belong together"
            )
        padding = [f"[PAD{i}]" for i in range(self.vocab_size, vocab_size)]
        return self._pieces + padding, self._types + [UNUSED] * len(padding)

    def merges(self) -> list[str]:
        """Every merge as "left right", best first."""
        return [" ".join(merge) for merge in self._merge_pairs]

    def scores(self) -> list[float] | None:
        """A SentencePiece tokenizer's scores by id; None for byte level.

        Without the original file they are derived from merge ranks, with the same encoding.
        """
        if self.kind == "gpt2":
            return None
        if self._origin is not None:
            scores = list(self._origin.table.scores)
            return scores + [0.0] * (self.vocab_size - len(scores))
        rank: dict[str, int] = {}
        last = ""
        for left, right in self._merge_pairs:
            piece = left + right
            if piece in rank and piece != last:
                raise TokenizerError(
                    f"cannot give {self._where} scores: its merges into {piece!r} are not adjacent, unlike "
                    "SentencePiece's; provide its tokenizer.model"
                )
            rank.setdefault(piece, len(rank))
            last = piece
        later = len(rank)
        scores = []
        for piece, kind in zip(self._pieces, self._types, strict=True):
            if kind == NORMAL and piece not in rank:
                rank[piece] = later
                later += 1
            scores.append(-float(rank[piece]) if kind == NORMAL else 0.0)
        return scores

    @functools.cached_property
    def missing_bytes(self) -> tuple[int, ...]:
        """Bytes without a token in a byte-level vocabulary: every runtime drops them from text."""
        if self.kind != "gpt2":
            return ()
        return tuple(sorted(byte for symbol, byte in BYTE_OF_SYMBOL.items() if symbol not in self._model["vocab"]))

    @property
    def unknown_id(self) -> int | None:
        """The id of the unknown token (SentencePiece only)."""
        return self._types.index(UNKNOWN) if UNKNOWN in self._types else None

    @functools.cached_property
    def add_space_prefix(self) -> bool:
        """Whether a space is prepended to text (SentencePiece's add_dummy_prefix), or to text that
        does not begin with one (a byte-level add_prefix_space)."""
        if self._origin is not None:
            return self._origin.table.add_space_prefix
        steps = _steps(self._sections["normalizer"], "normalizers")
        if any(step["type"] == "Prepend" and step.get("prepend") == SPACE for step in steps):
            return True
        steps = _steps(self._sections["pre_tokenizer"], "pretokenizers")
        if any(step["type"] == "ByteLevel" and step.get("add_prefix_space") for step in steps):
            return True
        return any(step["type"] == "Metaspace" and step.get("prepend_scheme", "always") != "never" for step in steps)

    @property
    def remove_extra_whitespaces(self) -> bool:
        """Whether leading, trailing and repeated spaces are dropped before encoding (a
        SentencePiece setting)."""
        steps = _steps(self._sections["normalizer"], "normalizers")
        return any(step["type"] == "Replace" and step["pattern"] == {"Regex": " {2,}"} for step in steps)

    def _find_split(self) -> str | None:
        return split_name(self._sections["pre_tokenizer"], ignore_merges=bool(self._model.get("ignore_merges")))

    @functools.cached_property
    def engine_obstacle(self) -> str | None:
        """Why the engine cannot reproduce this tokenizer, in one line; None if it can."""
        if self.missing_bytes:
            return f"{len(self.missing_bytes)} bytes have no token, and the tokenizers library drops them"
        normalizers = _steps(self._sections["normalizer"], "normalizers")
        if self.kind == "gpt2":
            if normalizers:
                return f"it normalizes text ({normalizers[0]['type']})"
            if self.add_space_prefix:
                return "it prepends a space to text (add_prefix_space)"
            if self.split is None:
                return f"the engine does not have its regular expression (it has {', '.join(written_names())})"
            if bool(self._model.get("ignore_merges")) != known_splits()[self.split].ignore_merges:
                return "it and the engine differ in whether whole words that are tokens are merged"
        else:
            replaced = [step["pattern"] for step in normalizers if step["type"] == "Replace"]
            known: list[dict[str, str]] = [{"String": " "}]
            known += [{"Regex": OUTER_SPACES}, {"Regex": " {2,}"}] if self.remove_extra_whitespaces else []
            foreign = any(step["type"] not in ("Prepend", "Replace") for step in normalizers)
            if (
                foreign
                or any(pattern not in replaced for pattern in known[1:])
                or any(p not in known for p in replaced)
            ):
                return "it normalizes text in an unsupported way"
        if any(self._model.get(key) for key in ("continuing_subword_prefix", "end_of_word_suffix")):
            return "its pieces have prefixes or suffixes"
        for token in self._sections["added_tokens"]:
            if not token["special"] and _has_conditions(token):
                return f"its token {token['content']!r} strips the spaces around it, or matches only single words"
        return None

    @property
    def control_token_obstacle(self) -> str | None:
        """Why the engine encodes chats differently, in one line; None if it does not. In documents,
        control tokens are text."""
        named = [
            token["content"] for token in self._sections["added_tokens"] if token["special"] and _has_conditions(token)
        ]
        if not named:
            return None
        more = f" and {len(named) - 1} more" if len(named) > 1 else ""
        return f"its control token {named[0]!r}{more} strips the spaces around it, or matches only single words"

    @functools.cached_property
    def fingerprint(self) -> str:
        """sha256 (hex) of what determines ids: pieces, types, merges, normalization, BOS and
        EOS."""
        content = {
            "kind": self.kind,
            "split": self.split or self._sections["pre_tokenizer"],
            "normalizer": self._sections["normalizer"],
            "pieces": self._pieces,
            "types": self._types,
            "merges": self._merge_pairs,
            "ids": [self.bos_id, self.eos_id],
        }
        return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()

    def to_json(self) -> str:
        """The content of tokenizer.json."""
        return self._backend.to_str(pretty=False)

    def save(self, directory: Path) -> None:
        """Write tokenizer.json and tokenizer_config.json for transformers' AutoTokenizer, and the
        tokenizer.model or tokenizer.bin that this tokenizer came from. Raises OutputError."""
        config: dict[str, Any] = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": None if self.bos_id is None else self._pieces[self.bos_id],
            "eos_token": None if self.eos_id is None else self._pieces[self.eos_id],
            "unk_token": None if self.unknown_id is None else self._pieces[self.unknown_id],
            "clean_up_tokenization_spaces": False,
            # Transformers' value for "no limit"; the limit is in the model's config.json.
            "model_max_length": 10**30,
        }
        if self.chat_template is not None:
            config["chat_template"] = self.chat_template
        directory = Path(directory)
        atomic_write_bytes(directory / "tokenizer.json", self._backend.to_str(pretty=True).encode("utf-8"))
        text = json.dumps(config, indent=2, ensure_ascii=False) + "\n"
        atomic_write_bytes(directory / "tokenizer_config.json", text.encode("utf-8"))
        if self._origin is not None:
            atomic_write_bytes(directory / self._origin.name, self._origin.data)

    def beginning_with_bos(self) -> Tokenizer:
        """This tokenizer for texts that begin with BOS, if it has one; the ids of texts do not
        change."""
        if self.bos_id is None or self.begins_with_bos:
            return self
        content = json.loads(self.to_json())
        content["post_processor"] = bos_template(self._pieces[self.bos_id], self.bos_id)
        return self._with_backend(tokenizers.Tokenizer.from_str(json.dumps(content)))

    def with_control_tokens(self, tokens: Sequence[str]) -> Tokenizer:
        """This tokenizer with these control tokens appended; the ids of texts do not change."""
        backend = tokenizers.Tokenizer.from_str(self.to_json())
        backend.add_special_tokens([tokenizers.AddedToken(token, special=True, normalized=False) for token in tokens])
        found = [backend.token_to_id(token) for token in tokens]
        assert found == list(range(self.vocab_size, self.vocab_size + len(tokens))), found
        return self._with_backend(backend)

    def _with_backend(self, backend: tokenizers.Tokenizer) -> Tokenizer:
        return Tokenizer(
            backend, bos_id=self.bos_id, eos_id=self.eos_id, end_ids=self.end_ids, chat_template=self.chat_template,
            origin=self._origin, where=self._where,
        )  # fmt: skip

    # ---- reading the sections of tokenizer.json

    def _find_kind(self) -> Literal["gpt2", "llama"]:
        if self._model.get("type") != "BPE":
            raise TokenizerError(
                f"cannot use tokenizer {self._where}: a {self._model.get('type')} model; Llama's tokenizers are BPE"
            )
        if self._model.get("dropout"):
            raise TokenizerError(f"cannot use tokenizer {self._where}: BPE dropout makes ids random")
        splits = [step["type"] for step in _steps(self._sections["pre_tokenizer"], "pretokenizers")]
        if "ByteLevel" in splits:
            return "gpt2"
        normalizers = [step["type"] for step in _steps(self._sections["normalizer"], "normalizers")]
        if self._model.get("byte_fallback") or "Metaspace" in splits or "Prepend" in normalizers:
            return "llama"
        raise TokenizerError(
            f"cannot use tokenizer {self._where}: a BPE that is neither byte level (a ByteLevel pre-tokenizer) nor "
            "SentencePiece's (byte fallback)"
        )

    def _list_pieces(self) -> tuple[list[str], list[int]]:
        """Pieces and types by id; ids without a token get unused [PADn], as in llama.cpp."""
        vocabulary: dict[str, int] = self._model["vocab"]
        added = self._sections["added_tokens"]
        size = 1 + max([*vocabulary.values(), *(token["id"] for token in added)], default=-1)
        pieces = [f"[PAD{i}]" for i in range(size)]
        types = [UNUSED] * size
        byte_pieces = {f"<0x{byte:02X}>" for byte in range(256)} if self._model.get("byte_fallback") else set()
        for piece, i in vocabulary.items():
            pieces[i] = piece
            types[i] = BYTE if piece in byte_pieces else NORMAL
        for token in added:
            pieces[token["id"]] = token["content"]
            types[token["id"]] = CONTROL if token["special"] else USER_DEFINED
        unknown = self._model.get("unk_token")
        if unknown is not None and unknown in vocabulary:
            types[vocabulary[unknown]] = UNKNOWN
        return pieces, types

    def _check_pieces(self) -> None:
        """Refuse a tokenizer that would silently drop characters."""
        if self.kind == "gpt2":
            needed = [byte for byte in self.missing_bytes if byte in _BYTES_OF_TEXT]
            if needed:
                raise TokenizerError(
                    f"cannot use tokenizer {self._where}: {len(needed)} of the 256 bytes have no token "
                    f"(the first: 0x{needed[0]:02X}), so some text would be lost"
                )
        elif self._model.get("byte_fallback"):
            if self._types.count(BYTE) != 256:
                raise TokenizerError(
                    f"cannot use tokenizer {self._where}: byte fallback with {self._types.count(BYTE)} of the 256 bytes"
                )
        elif self.unknown_id is None:
            raise TokenizerError(f"cannot use tokenizer {self._where}: neither byte fallback nor an unknown token")
        if self._origin is not None:
            table = self._origin.table
            if table.pieces != self._pieces[: len(table.pieces)]:
                raise TokenizerError(
                    f"cannot use tokenizer {self._where}: its tokenizer.json and its {self._origin.name} have "
                    "different pieces; delete the wrong one"
                )

    def _checked(self, name: str, token_id: int | None) -> int | None:
        if token_id is not None and not 0 <= token_id < self.vocab_size:
            raise TokenizerError(
                f"cannot use tokenizer {self._where}: {name} id {token_id}, but it has {self.vocab_size:,} tokens"
            )
        return token_id

    @functools.cached_property
    def _merge_pairs(self) -> list[list[str]]:
        return [m.split(" ", 1) if isinstance(m, str) else list(m) for m in self._model["merges"]]

    @functools.cached_property
    def _token_bytes(self) -> list[bytes]:
        """The bytes that each id adds to a text."""
        return [self._bytes_of(piece, kind) for piece, kind in zip(self._pieces, self._types, strict=True)]

    def _bytes_of(self, piece: str, kind: int) -> bytes:
        if kind in (CONTROL, UNUSED):
            return b""
        if kind == UNKNOWN:
            return _UNKNOWN_TEXT.encode()
        if kind == BYTE:
            return bytes([int(piece[3:5], 16)])
        if kind == USER_DEFINED:
            return piece.encode("utf-8")
        if self.kind == "llama":
            return piece.replace(SPACE, " ").encode("utf-8")
        return bytes(BYTE_OF_SYMBOL[symbol] for symbol in piece if symbol in BYTE_OF_SYMBOL)


def _has_conditions(added_token: dict[str, Any]) -> bool:
    """Whether what surrounds an added token matters: the engine has no such tokens."""
    return bool(added_token["lstrip"] or added_token["rstrip"] or added_token["single_word"])


def _steps(section: dict[str, Any] | None, key: str) -> list[dict[str, Any]]:
    """The steps of a section of tokenizer.json: none, one, or a sequence."""
    if section is None:
        return []
    return list(section[key]) if section.get("type") == "Sequence" else [section]

"""Loads a tokenizer: tokenizer.json, a SentencePiece or tiktoken .model, or tokenizer.bin."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import tokenizers

from llamita.errors import TokenizerError
from llamita.json_file import read_json_object
from llamita.tokenizer.llama2c import read_llama2c
from llamita.tokenizer.sentencepiece import read_sentencepiece, tokenizer_json
from llamita.tokenizer.tiktoken import (
    BOS,
    END_OF_TEXT,
    END_OF_TURN,
    Version,
    is_tiktoken,
    read_tiktoken,
    special_tokens,
    tiktoken_json,
)
from llamita.tokenizer.tokenizer import Origin, Tokenizer

# Names of BOS and EOS, tried in order, for a tokenizer.json without tokenizer_config.json.
_BOS_NAMES = ("<s>", "<|begin_of_text|>", "<|endoftext|>")
_EOS_NAMES = ("</s>", "<|end_of_text|>", "<|endoftext|>", "<|im_end|>")


def load_tokenizer(path: Path) -> Tokenizer:
    """Load a tokenizer.json, tokenizer.model or tokenizer.bin, or the first of them in a folder.

    Raises TokenizerError if there is none, if it is damaged, or if no Llama runtime supports it.
    """
    path = Path(path)
    if path.is_dir():
        for name in ("tokenizer.json", "tokenizer.model", "tokenizer.bin"):
            if (path / name).is_file():
                return load_tokenizer(path / name)
        raise TokenizerError(f"no tokenizer in {path}: expected tokenizer.json, tokenizer.model or tokenizer.bin")
    data = _read(path)
    if not data:
        raise TokenizerError(f"cannot read tokenizer {path}: the file is empty")
    if data.startswith(b"version https://git-lfs"):
        raise TokenizerError(
            f"cannot read tokenizer {path}: found a Git LFS pointer; fetch the file with: git lfs pull"
        )
    if path.suffix == ".json" or data[:1] == b"{":
        return _from_json(data, path)
    if is_tiktoken(data):
        return load_tiktoken(path)
    origin = _origin(path, data)
    with backend_errors(path):
        backend = tokenizers.Tokenizer.from_str(json.dumps(tokenizer_json(origin.table, str(path))))
    return Tokenizer(backend, bos_id=origin.table.bos_id, eos_id=origin.table.eos_id, origin=origin, where=str(path))


def is_tiktoken_file(path: Path) -> bool:
    """Whether the content of a tokenizer file is tiktoken ranks (Llama 3)."""
    return path.is_file() and is_tiktoken(_read(path)[:200])


def load_tiktoken(path: Path, version: Version = "3.1", *, is_chat: bool = False) -> Tokenizer:
    """Load Llama 3's tokenizer.model. Raises TokenizerError.

    version: decides the special tokens. is_chat: EOS is the end of a turn, not of a text."""
    tokens = read_tiktoken(_read(path), str(path))
    with backend_errors(path):
        backend = tokenizers.Tokenizer.from_str(json.dumps(tiktoken_json(tokens, version)))
    ids = {name: len(tokens) + i for i, name in enumerate(special_tokens(version))}
    eos_id = ids[END_OF_TURN if is_chat else END_OF_TEXT]
    return Tokenizer(backend, bos_id=ids[BOS], eos_id=eos_id, where=str(path))


def _origin(path: Path, data: bytes) -> Origin:
    """Parse a SentencePiece model (a protobuf that starts with a piece) or a tokenizer.bin."""
    if path.suffix == ".model" or (data[:1] == b"\n" and path.suffix != ".bin"):
        if not data.startswith(b"\n"):
            raise TokenizerError(f"cannot read tokenizer {path}: neither a SentencePiece model nor tiktoken ranks")
        return Origin("tokenizer.model", data, read_sentencepiece(data, str(path)))
    if path.suffix == ".bin":
        return Origin("tokenizer.bin", data, read_llama2c(data, str(path)))
    raise TokenizerError(
        f"cannot read tokenizer {path}: expected a tokenizer.json, a SentencePiece .model or llama2.c's tokenizer.bin"
    )


def _check_ids(text: str, path: Path) -> None:
    """Raise TokenizerError for huge ids, before memory is allocated for them."""
    try:
        sections = json.loads(text)
        vocabulary = sections["model"]["vocab"]
        ids = [*vocabulary.values(), *(token["id"] for token in sections["added_tokens"])]
        highest = max(ids, default=0)
        fits = highest <= 2 * len(ids) + 65536
    except (ValueError, RecursionError) as error:
        raise TokenizerError(f"cannot read tokenizer {path}: not JSON ({error})") from None
    except (KeyError, TypeError, AttributeError):
        raise TokenizerError(
            f"cannot read tokenizer {path}: not a BPE tokenizer.json (model.vocab: pieces to ids; added_tokens: a list)"
        ) from None
    if not fits:
        raise TokenizerError(f"cannot use tokenizer {path}: id {highest:,} is far above its {len(ids):,} tokens")


def _from_json(data: bytes, path: Path) -> Tokenizer:
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise TokenizerError(f"cannot read tokenizer {path}: byte {error.start}: not UTF-8") from None
    _check_ids(text, path)
    with backend_errors(path):
        backend = tokenizers.Tokenizer.from_str(text)
    folder = path.parent
    config = _settings(folder / "tokenizer_config.json")
    ids = {"bos": _token_id(backend, config, "bos_token", path), "eos": _token_id(backend, config, "eos_token", path)}
    if not config:
        special = {token.content: i for i, token in backend.get_added_tokens_decoder().items() if token.special}
        ids["bos"] = next((special[name] for name in _BOS_NAMES if name in special), None)
        ids["eos"] = next((special[name] for name in _EOS_NAMES if name in special), None)
    origin = None
    for name in ("tokenizer.model", "tokenizer.bin"):
        if origin is None and path.name == "tokenizer.json" and (folder / name).is_file():
            companion = _read(folder / name)
            origin = None if is_tiktoken(companion) else _origin(folder / name, companion)
    more_ends = _settings(folder / "generation_config.json").get("eos_token_id", [])
    ends = [more_ends] if isinstance(more_ends, int) else more_ends
    return Tokenizer(
        backend,
        bos_id=ids["bos"],
        eos_id=ids["eos"],
        end_ids=[i for i in ends if isinstance(i, int)] if isinstance(ends, list) else [],
        chat_template=_chat_template(folder, config),
        origin=origin,
        where=str(path),
    )


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise TokenizerError(f"cannot read tokenizer {path}: {error.strerror or error}") from None


def _settings(path: Path) -> dict[str, Any]:
    """A JSON object beside tokenizer.json; empty if there is no such file."""
    return read_json_object(path, TokenizerError) if path.is_file() else {}


def _token_id(backend: tokenizers.Tokenizer, config: dict[str, Any], key: str, path: Path) -> int | None:
    """The id of a token in tokenizer_config.json: a string, or an object with its content."""
    token = config.get(key)
    if isinstance(token, dict):
        token = token.get("content")
    if token is None:
        return None
    token_id: int | None = backend.token_to_id(token) if isinstance(token, str) else None
    if token_id is None:
        raise TokenizerError(
            f"cannot use tokenizer {path}: tokenizer_config.json sets {key} to {token!r}, which is "
            "not in the vocabulary"
        )
    return token_id


def _chat_template(folder: Path, config: dict[str, Any]) -> str | None:
    """chat_template.jinja, else tokenizer_config.json's: a string, or `default` in a list."""
    if (folder / "chat_template.jinja").is_file():
        return _read(folder / "chat_template.jinja").decode("utf-8", "replace")
    template = config.get("chat_template")
    if isinstance(template, list):
        named = {each.get("name"): each.get("template") for each in template if isinstance(each, dict)}
        template = named.get("default")
    return template if isinstance(template, str) else None


@contextlib.contextmanager
def backend_errors(where: Path | str) -> Iterator[None]:
    """Converts exceptions and Rust panics of the `tokenizers` library to TokenizerError."""
    try:
        yield
    except TokenizerError:
        raise
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        message = " ".join(str(error).split())
        raise TokenizerError(f"cannot read tokenizer {where}: {message[:300]}") from None

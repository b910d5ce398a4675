"""Loads a tokenizer: tokenizer.json, a SentencePiece or tiktoken .model, or tokenizer.bin."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import tokenizers

from llamita.errors import TokenizerError
from llamita.json_file import (
    ABSENT,
    Key,
    Schema,
    check_object,
    check_value,
    parse_json_object,
    read_json_object,
    shortened,
    shown,
)
from llamita.tokenizer.byte_level import byte_level_json
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

# Names of BOS and EOS, tried in order, for a tokenizer.json whose folder does not name them.
_BOS_NAMES = ("<s>", "<|begin_of_text|>", "<|endoftext|>")
_EOS_NAMES = ("</s>", "<|end_of_text|>", "<|endoftext|>", "<|im_end|>")
_FLAGS = ("lstrip", "rstrip", "single_word", "special")

_ID = Key("integer", null=False, minimum=0)
_TOKEN = Key(("string", "object"), default=ABSENT, keys={"content": Key("string", required=True)})
_IDS = Key(("integer", "list"), items=Key("integer"))

# What is read of each file. The `tokenizers` library checks the other keys of tokenizer.json.
TOKENIZER_JSON: Schema = {
    "model": Key("object", required=True, keys={
        "type": Key("string", choices=("BPE",), use="other models are refused"),
        "vocab": Key("object", required=True, items=_ID),
        "merges": Key("list", required=True),
        "continuing_subword_prefix": Key("string", use="refused unless empty"),
    }),
    "added_tokens": Key("list", default=(), items=Key("object", null=False, keys={
        "id": dataclasses.replace(_ID, required=True), "content": Key("string", required=True),
    })),
}  # fmt: skip
TOKENIZER_CONFIG: Schema = {
    "bos_token": _TOKEN,
    "eos_token": _TOKEN,
    "added_tokens_decoder": Key("object", default=ABSENT, items=Key("object", null=False, keys={
        "content": Key("string", required=True), **{flag: Key("boolean", default=False) for flag in _FLAGS},
    }), use="added tokens by id; for a folder without tokenizer.json"),
    "chat_template": Key(("string", "list", "object"), items=Key(("object", "string"), null=False, keys={
        "name": Key("string"), "template": Key("string"),
    }), use="of several, the one named default"),
    "tokenizer_class": Key("string", use="how vocab.json and merges.txt split text"),
    "add_prefix_space": Key("boolean", use="of vocab.json and merges.txt"),
}  # fmt: skip
SPECIAL_TOKENS_MAP: Schema = {"bos_token": _TOKEN, "eos_token": _TOKEN}
MODEL_CONFIG: Schema = {"bos_token_id": _IDS, "eos_token_id": _IDS}
GENERATION_CONFIG: Schema = {"eos_token_id": _IDS}
_SCHEMAS: dict[str, Schema] = {
    "tokenizer_config.json": TOKENIZER_CONFIG,
    "special_tokens_map.json": SPECIAL_TOKENS_MAP,
    "config.json": MODEL_CONFIG,
    "generation_config.json": GENERATION_CONFIG,
}


def load_tokenizer(path: Path) -> Tokenizer:
    """Load a tokenizer.json, tokenizer.model or tokenizer.bin, or the first of them in a folder.

    Raises TokenizerError if there is none, if it is damaged, or if no Llama runtime supports it.
    """
    path = Path(path)
    if path.is_dir():
        for name in ("tokenizer.json", "tokenizer.model", "tokenizer.bin"):
            if (path / name).is_file():
                return load_tokenizer(path / name)
        if (path / "vocab.json").is_file() and (path / "merges.txt").is_file():
            return _from_merges(path)
        raise TokenizerError(
            f"no tokenizer in {path}: expected tokenizer.json, tokenizer.model, "
            "tokenizer.bin, or vocab.json with merges.txt"
        )
    data = _read(path)
    if not data:
        raise TokenizerError(f"cannot read tokenizer {path}: the file is empty")
    if path.suffix == ".json" or data[:1] == b"{":
        return _from_json(data, path)
    if is_tiktoken(data):
        return load_tiktoken(path)
    return _from_pieces(_origin(path, data), path)


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


def _checked_json(data: bytes, path: Path) -> str:
    """The text of a tokenizer.json. Raises TokenizerError for keys of a wrong kind, and for huge
    ids before memory is allocated for them."""
    sections = parse_json_object(data, f"tokenizer {path}", TokenizerError, TOKENIZER_JSON)
    ids = [*sections["model"]["vocab"].values(), *(token["id"] for token in sections["added_tokens"] or ())]
    highest = max(ids, default=0)
    if highest > 2 * len(ids) + 65536:
        raise TokenizerError(f"cannot use tokenizer {path}: id {highest:,} is far above its {len(ids):,} tokens")
    prefix = sections["model"]["continuing_subword_prefix"]
    if prefix:  # the library cuts pieces at its length, inside characters too, and aborts the process
        raise TokenizerError(
            f"cannot use tokenizer {path}: model.continuing_subword_prefix: expected none, found {shown(prefix)}; "
            "Llama's tokenizers have none"
        )
    return data.decode(json.detect_encoding(data))


def _from_json(data: bytes, path: Path, usual: Mapping[str, tuple[str, ...]] | None = None) -> Tokenizer:
    """usual: names of BOS and EOS, tried in order, if the files beside it name none; None: known
    ones, if there is no tokenizer_config.json."""
    text = _checked_json(data, path)
    with backend_errors(path):
        backend = tokenizers.Tokenizer.from_str(text)
    folder = path.parent
    config = _settings(folder / "tokenizer_config.json")
    special = {token.content: i for i, token in backend.get_added_tokens_decoder().items() if token.special}
    ids: dict[str, int | None] = {}
    if usual is None:
        has_config = (folder / "tokenizer_config.json").is_file()
        usual = {} if has_config else {"bos_token": _BOS_NAMES, "eos_token": _EOS_NAMES}
    for key in ("bos_token", "eos_token"):
        by_name = next((special[name] for name in usual.get(key, ()) if name in special), None)
        ids[key] = _token_id(backend, folder, key, path, _config_id(folder, key, special.values(), by_name))
    origin = None
    for name in ("tokenizer.model", "tokenizer.bin"):
        if origin is None and path.name == "tokenizer.json" and (folder / name).is_file():
            companion = _read(folder / name)
            origin = None if is_tiktoken(companion) else _origin(folder / name, companion)
    return Tokenizer(
        backend,
        bos_id=ids["bos_token"],
        eos_id=ids["eos_token"],
        end_ids=_ids(_settings(folder / "generation_config.json").get("eos_token_id")),
        chat_template=_chat_template(folder, config),
        origin=origin,
        where=str(path),
    )


def _from_pieces(origin: Origin, path: Path) -> Tokenizer:
    """A SentencePiece model or tokenizer.bin. Of a tokenizer.model, the JSON files of its folder are
    used as transformers uses them: added tokens, BOS and EOS, chat template."""
    table = origin.table
    sections = tokenizer_json(table, str(path))
    folder = path.parent if path.name == "tokenizer.model" else None
    added = {} if folder is None else _added_tokens(folder, path)
    known = {token["id"] for token in sections["added_tokens"]}
    sections["added_tokens"] += [added[i] for i in sorted(added) if i not in known]
    with backend_errors(path):
        backend = tokenizers.Tokenizer.from_str(json.dumps(sections))
    for i, token in added.items():
        if backend.token_to_id(token["content"]) != i:
            raise TokenizerError(
                f"cannot use tokenizer {path}: the files beside it add {shown(token['content'])} as id {i}, but it has "
                f"{len(table.pieces):,} pieces, and added tokens must follow them without a gap"
            )
    if folder is None:
        return Tokenizer(backend, bos_id=table.bos_id, eos_id=table.eos_id, origin=origin, where=str(path))
    return Tokenizer(
        backend,
        bos_id=_token_id(backend, folder, "bos_token", path, table.bos_id),
        eos_id=_token_id(backend, folder, "eos_token", path, table.eos_id),
        end_ids=_ids(_settings(folder / "generation_config.json").get("eos_token_id")),
        chat_template=_chat_template(folder, _settings(folder / "tokenizer_config.json")),
        origin=origin,
        where=str(path),
    )


# tokenizer_class → how it splits text.
_SPLIT_OF_CLASS = {"GPT2Tokenizer": "gpt-2", "Qwen2Tokenizer": "qwen2"}
# Both classes add this token, and use it where tokenizer_config.json names no other.
_DEFAULT_TOKEN = "<|endoftext|>"


def _from_merges(folder: Path) -> Tokenizer:
    """vocab.json and merges.txt: the byte-level BPE of GPT-2, if tokenizer_config.json says whose."""
    config, path = _settings(folder / "tokenizer_config.json"), folder / "vocab.json"
    kind = str(config["tokenizer_class"]).removesuffix("Fast")
    if kind not in _SPLIT_OF_CLASS:
        raise TokenizerError(
            f"cannot use tokenizer {path}: tokenizer_config.json: tokenizer_class: expected one of "
            f"{', '.join(_SPLIT_OF_CLASS)}, which says how text is split, found {shown(config['tokenizer_class'])}; "
            "load the folder in transformers (AutoTokenizer) and save it: that writes tokenizer.json"
        )
    vocab, added = added_ids(path), _added_tokens(folder, path)
    for content in {_DEFAULT_TOKEN} | _special_tokens(config | _settings(folder / "special_tokens_map.json")):
        i = vocab.get(content)
        if i is not None and i not in added:
            added[i] = {
                "id": i,
                "content": content,
                "normalized": False,
                **dict.fromkeys(_FLAGS, False),
                "special": True,
            }
    sections = byte_level_json(vocab, _merges(folder / "merges.txt"), _SPLIT_OF_CLASS[kind], {}, None)
    sections["added_tokens"] = [added[i] for i in sorted(added)]
    if kind == "Qwen2Tokenizer":
        if config["add_prefix_space"]:
            raise TokenizerError(
                f"cannot use tokenizer {path}: tokenizer_config.json: add_prefix_space: expected false"
            )
        sections["normalizer"] = {"type": "NFC"}
        return _from_json(json.dumps(sections).encode("utf-8"), path, {"eos_token": (_DEFAULT_TOKEN,)})
    sections["pre_tokenizer"]["add_prefix_space"] = bool(config["add_prefix_space"])
    usual = dict.fromkeys(("bos_token", "eos_token"), (_DEFAULT_TOKEN,))
    return _from_json(json.dumps(sections).encode("utf-8"), path, usual)


def _merges(path: Path) -> list[list[str]]:
    """The merges of a merges.txt, best first. Its first line may be a comment."""
    try:
        lines = _read(path).decode("utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise TokenizerError(f"cannot read tokenizer {path}: byte {error.start}: expected UTF-8 text") from None
    merges = []
    for number, line in enumerate(lines, 1):
        pair = line.rstrip("\r").split(" ")
        if line.strip() == "" or (number == 1 and line.startswith("#version")):
            continue
        if len(pair) != 2:
            raise TokenizerError(
                f"cannot read tokenizer {path}: line {number}: expected two pieces, found {shown(line)}"
            )
        merges.append(pair)
    return merges


def _added_tokens(folder: Path, path: Path) -> dict[int, dict[str, Any]]:
    """The added tokens of a folder by id, as in tokenizer.json: tokenizer_config.json's
    added_tokens_decoder, else added_tokens.json, where those that special_tokens_map.json or
    tokenizer_config.json name are special.

    Never normalized: here the space before a text comes from the normalizer, in transformers from
    the pre-tokenizer, which does not see added tokens."""
    config = _settings(folder / "tokenizer_config.json")
    tokens: dict[int, dict[str, Any]] = {}
    decoder = config.get("added_tokens_decoder")
    if decoder is None:
        named = _special_tokens(config | _settings(folder / "special_tokens_map.json"))
        for content, i in added_ids(folder / "added_tokens.json").items():
            flags = dict.fromkeys(_FLAGS, False) | {"special": content in named}
            tokens[i] = {"id": i, "content": content, "normalized": False, **flags}
        return tokens
    for key, token in decoder.items():
        if not (key.isdecimal() and len(key) < 10):
            raise TokenizerError(
                f"cannot read {folder / 'tokenizer_config.json'}: added_tokens_decoder: expected ids, found "
                f"{shown(key)}"
            )
        flags = {flag: token[flag] is True for flag in _FLAGS}
        tokens[int(key)] = {"id": int(key), "content": token["content"], "normalized": False, **flags}
    return tokens


def added_ids(path: Path) -> dict[str, int]:
    """The tokens of an added_tokens.json or vocab.json by their text. Raises TokenizerError."""
    if not path.is_file():
        return {}
    content = read_json_object(path, TokenizerError)
    ids: dict[str, int] = check_value(content, Key("object", items=_ID), str(path), TokenizerError)
    return ids


def _special_tokens(settings: dict[str, Any]) -> set[str]:
    """The contents of all tokens that *_token and *_special_tokens name."""
    named: list[Any] = []
    for key, value in settings.items():
        if key.endswith("_token"):
            named.append(value)
        elif key.endswith("_special_tokens") and isinstance(value, list):
            named += value
    contents = (token.get("content") if isinstance(token, dict) else token for token in named)
    return {token for token in contents if isinstance(token, str)}


def _read(path: Path) -> bytes:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise TokenizerError(f"cannot read tokenizer {path}: {error.strerror or error}") from None
    if data.startswith(b"version https://git-lfs"):
        raise TokenizerError(
            f"cannot read tokenizer {path}: found a Git LFS pointer; fetch the file with: git lfs pull"
        )
    return data


def _settings(path: Path) -> dict[str, Any]:
    """A JSON object beside tokenizer.json; empty if there is no such file."""
    schema = _SCHEMAS[path.name]
    return (
        read_json_object(path, TokenizerError, schema)
        if path.is_file()
        else check_object({}, schema, "", TokenizerError)
    )


def _ids(value: object) -> list[int]:
    """The ids of a setting that is one id, a list of ids, or missing."""
    return [i for i in (value if isinstance(value, list) else [value]) if type(i) is int]


def _token_id(backend: tokenizers.Tokenizer, folder: Path, key: str, path: Path, default: int | None) -> int | None:
    """The id of the bos_token or eos_token that the folder's files name; default: if none does."""
    is_set, token, file = _named_token(folder, key)
    if not is_set:
        return default
    if token is None:
        return None
    token_id: int | None = backend.token_to_id(token)
    if token_id is None:
        raise TokenizerError(
            f"cannot use tokenizer {path}: {file} sets {key} to {shown(token)}, which is not in the vocabulary"
        )
    return token_id


def _named_token(folder: Path, key: str) -> tuple[bool, Any, str]:
    """(whether a file names the token or says that there is none, the token, the file).

    As in transformers, special_tokens_map.json counts more than a tokenizer_config.json without
    added_tokens_decoder, and less than one with it."""
    names = ["tokenizer_config.json", "special_tokens_map.json"]
    files = {name: _settings(folder / name) for name in names}
    if "added_tokens_decoder" not in files[names[0]]:
        names.reverse()
    for name in names:
        token = files[name].get(key)
        if token is not None:
            return True, token.get("content") if isinstance(token, dict) else token, name
    return key in files["tokenizer_config.json"], None, ""


def needs_model_config(folder: Path) -> bool:
    """Whether BOS or EOS of the folder's tokenizer.json are named by the model's config.json alone."""
    if not ((folder / "tokenizer.json").is_file() and (folder / "config.json").is_file()):
        return False
    config = _settings(folder / "config.json")
    keys = ("bos_token", "eos_token")
    return any(not _named_token(folder, key)[0] and _ids(config.get(f"{key}_id")) for key in keys)


def _config_id(folder: Path, key: str, special: Iterable[int], default: int | None) -> int | None:
    """The first bos_token_id or eos_token_id of config.json that is a special token."""
    ids = _ids(_settings(folder / "config.json").get(f"{key}_id"))
    return next((i for i in ids if i in set(special)), default)


def _chat_template(folder: Path, config: dict[str, Any]) -> str | None:
    """chat_template.jinja, else tokenizer_config.json's: a string, or `default` of several."""
    path = folder / "chat_template.jinja"
    if path.is_file():
        try:
            return _read(path).decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise TokenizerError(f"cannot read {path}: byte {error.start}: expected UTF-8 text") from None
    template = config["chat_template"]
    return template if isinstance(template, str) else _named_templates(template).get("default")


def _named_templates(templates: list[Any] | dict[str, Any] | None) -> dict[str, str]:
    """Several chat templates by name, as transformers writes them: a list, or an object."""
    if isinstance(templates, dict):
        return {name: text for name, text in templates.items() if isinstance(text, str)}
    pairs = [(each.get("name"), each.get("template")) for each in templates or () if isinstance(each, dict)]
    return {name: text for name, text in pairs if isinstance(name, str) and isinstance(text, str)}


def unused_templates(folder: Path) -> list[str]:
    """The names of a folder's chat templates if there are several, and none named default."""
    template = _settings(folder / "tokenizer_config.json")["chat_template"]
    if isinstance(template, str) or (folder / "chat_template.jinja").is_file():
        return []
    names = _named_templates(template)
    return [] if "default" in names else sorted(names)


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
        message = shortened(" ".join(str(error).split()), 200)
        raise TokenizerError(f"cannot read tokenizer {where}: {message}") from None

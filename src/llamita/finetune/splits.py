"""A fine-tuning's DATA to what is learned and what is held out: conversations by a hash, or texts' documents."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from llamita.data.batches import Documents
from llamita.data.readers import read_documents
from llamita.data.records import SUFFIXES as EXAMPLE_SUFFIXES
from llamita.data.token_store import TokenStore
from llamita.errors import ConfigError, SourceError, StoreError, TrainingError
from llamita.eval.scoring import EncodedTexts
from llamita.finetune.conversations import Conversation
from llamita.tokenizer import Tokenizer, load_tokenizer

TEXT_SUFFIXES: Final = (".txt", ".md")
DEFAULT_FRACTION: Final = 0.1
MAX_HELD_OUT: Final = 64  # conversations, where no fraction is given
GENERAL_TOKENS: Final = 8192  # of general text: about as much as what is held out
GENERAL_CHARACTERS: Final = 32768  # of one document of it: a book is one


class TextSplits(NamedTuple):
    train: Documents
    val: Documents


def is_store(path: Path) -> bool:
    return (path / "store.json").is_file()


def is_text(path: Path) -> bool:
    """Whether DATA is plain text: a token store, a .txt or .md, or a folder of those. Raises SourceError for a folder
    that also holds examples."""
    if is_store(path):
        return True
    if not path.is_dir():
        return path.suffix.lower() in TEXT_SUFFIXES
    names = sorted(each.name for each in path.iterdir() if not each.name.startswith("."))
    texts = [name for name in names if Path(name).suffix.lower() in TEXT_SUFFIXES]
    examples = [name for name in names if Path(name).suffix.lower() in EXAMPLE_SUFFIXES]
    if texts and examples:
        raise SourceError(
            f"cannot fine-tune on {path}: it holds texts ({texts[0]}) and examples ({examples[0]}); name one kind"
        )
    return bool(texts)


def hold_out(keys: Sequence[str], fraction: float | None, most: int | None) -> npt.NDArray[np.bool_]:
    """Which of the contents are held out: those of the smallest hashes, so that equal ones are on one side, and few
    change sides as the data grows. At least one unless the fraction is 0, at most half of the different ones."""
    hashes = [hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest() for key in keys]
    different = sorted(set(hashes))
    count = round(len(different) * (DEFAULT_FRACTION if fraction is None else fraction))
    if fraction != 0:
        count = max(1, count)
    if fraction is None and most is not None:
        count = min(count, most)
    chosen = set(different[: min(count, len(different) // 2)])
    return np.array([each in chosen for each in hashes], dtype=np.bool_)


def split_conversations(
    conversations: Sequence[Conversation], fraction: float | None
) -> tuple[list[Conversation], list[Conversation]]:
    """Those to learn from and those held out, in their order."""
    keys = [json.dumps([(turn.role, turn.text) for turn in each.turns]) for each in conversations]
    val = hold_out(keys, fraction, MAX_HELD_OUT)
    pairs = list(zip(conversations, val.tolist(), strict=True))
    return [each for each, held in pairs if not held], [each for each, held in pairs if held]


def open_texts(data: Path, val: Path | None, fraction: float | None, tokenizer: Tokenizer, eos_id: int) -> TextSplits:
    """Documents of plain text by the tokenizer. A token store has its own split. Raises SourceError, StoreError,
    ConfigError."""
    if is_store(data):
        if val is not None or fraction is not None:
            raise ConfigError(f"finetune: {data} is a token store, which has held-out documents; leave --val* out")
        store = TokenStore(data)
        if store.tokenizer_fingerprint != tokenizer.fingerprint:
            raise StoreError(
                f"cannot fine-tune on {data}: its tokenizer is not the checkpoint's; make it anew: llamita prepare "
                "SOURCE --tokenizer CHECKPOINT"
            )
        splits = TextSplits(store.split("train"), store.split("val"))
    elif val is not None:
        splits = TextSplits(
            encode_texts(read_texts(data), tokenizer, eos_id), encode_texts(read_texts(val), tokenizer, eos_id)
        )
    else:
        texts = read_texts(data)
        flags = hold_out(texts, fraction, None).tolist()
        kept = [text for text, held in zip(texts, flags, strict=True) if not held]
        held = [text for text, is_held in zip(texts, flags, strict=True) if is_held]
        splits = TextSplits(encode_texts(kept, tokenizer, eos_id), encode_texts(held, tokenizer, eos_id))
    if splits.train.num_documents == 0:
        raise TrainingError(f"cannot fine-tune on {data}: there is no text to learn from; give more")
    return splits


def read_texts(path: Path) -> list[str]:
    """The documents of a text file or a folder of them. Raises SourceError."""
    texts = [document.text for document in read_documents([str(path)])]
    if not texts:
        raise SourceError(f"cannot fine-tune on {path}: no text in it")
    return texts


def encode_texts(texts: Sequence[str], tokenizer: Tokenizer, eos_id: int) -> EncodedTexts:
    return EncodedTexts(texts, tokenizer.encode_batch, eos_id)


def open_general_text(path: Path, tokenizer: Tokenizer, eos_id: int) -> EncodedTexts:
    """The first documents of a text, a folder or a token store (of any tokenizer), GENERAL_TOKENS of them or a little
    more, of each its beginning. Raises SourceError, StoreError."""
    whole = _store_texts(path) if is_store(path) else read_texts(path)
    texts = [text[:GENERAL_CHARACTERS] for text in whole]
    chosen, num_tokens = 0, 0
    while chosen < len(texts) and num_tokens < GENERAL_TOKENS:
        num_tokens += len(tokenizer.encode(texts[chosen])) + 1
        chosen += 1
    return encode_texts(texts[:chosen], tokenizer, eos_id)


def _store_texts(path: Path) -> list[str]:
    """The first held-out documents of a store (those to train on where none is held out), as texts."""
    store, tokenizer = TokenStore(path), load_tokenizer(path)
    split = store.split("val") if store.split("val").num_documents else store.split("train")
    first = range(min(split.num_documents, GENERAL_TOKENS))  # each has a token at least
    texts = [tokenizer.decode(split.document(i)[:-1].tolist()).decode("utf-8", "replace") for i in first]
    if not texts:
        raise SourceError(f"cannot use {path} as general text: it is empty")
    return texts


def digest_ids(documents: Sequence[npt.NDArray[Any]]) -> str:
    """sha256 (hex) of ids or masks, and where each ends."""
    digest = hashlib.sha256()
    for each in documents:
        digest.update(len(each).to_bytes(8, "little"))
        digest.update(np.ascontiguousarray(each, dtype=np.int64).tobytes())
    return digest.hexdigest()

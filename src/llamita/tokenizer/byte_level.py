"""Byte-level BPE: GPT-2's byte alphabet, and the tokenizer.json for given pieces and merges."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from llamita.tokenizer.pre_tokenizers import known_splits, pre_tokenizer

# The engine's limit too (MAX_PIECE_BYTES). Finding the merges into a piece takes time quadratic in
# its length.
MAX_PIECE_BYTES: Final = 1024


def byte_level_json(
    vocab: Mapping[str, int],
    merges: Sequence[Sequence[str]],
    split: str,
    added: Mapping[str, tuple[int, bool]],
    bos: str | None,
) -> dict[str, Any]:
    """The content of a tokenizer.json.

    vocab: pieces in GPT-2's byte alphabet. merges: [left, right], best first. split: GGUF's name of
    the regular expression. added: tokens matched before the text is split, each with its id and
    whether it is a control token. bos: the added token that Hugging Face prepends to a prompt."""
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {
                "id": i, "content": content, "single_word": False, "lstrip": False, "rstrip": False,
                "normalized": False, "special": special,
            }
            for content, (i, special) in sorted(added.items(), key=lambda item: item[1][0])
        ],
        "normalizer": None,
        "pre_tokenizer": pre_tokenizer(split),
        "post_processor": None if bos is None else bos_template(bos, added[bos][0]),
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": known_splits()[split].ignore_merges,  # a word that is a token is not merged
            "vocab": dict(vocab),
            "merges": [list(merge) for merge in merges],
        },
    }  # fmt: skip


def bos_template(bos: str, bos_id: int) -> dict[str, Any]:
    """The post_processor that prepends BOS to a prompt, as in the model's training data."""

    def special(part: int) -> dict[str, Any]:
        return {"SpecialToken": {"id": bos, "type_id": part}}

    def text(name: str, part: int) -> dict[str, Any]:
        return {"Sequence": {"id": name, "type_id": part}}

    return {
        "type": "TemplateProcessing",
        "single": [special(0), text("A", 0)],
        "pair": [special(0), text("A", 0), special(1), text("B", 1)],
        "special_tokens": {bos: {"id": bos, "ids": [bos_id], "tokens": [bos]}},
    }


def _byte_symbols() -> dict[str, int]:
    """GPT-2's alphabet: printable bytes map to themselves, the others to U+0100 onward
    (encoder.py)."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    symbols = {chr(byte): byte for byte in printable}
    others = [byte for byte in range(256) if byte not in printable]
    symbols.update({chr(256 + i): byte for i, byte in enumerate(others)})
    return symbols


BYTE_OF_SYMBOL = _byte_symbols()

"""The regular expressions that split text into words before byte-level BPE, by their GGUF names."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

from llamita.engine.pre_tokenizers import pre_tokenizers

# Each pattern as in llama.cpp (llama-vocab.cpp, llm_tokenizer_bpe), then as in Hugging Face. They
# are equivalent, except that (?i:'s) also matches U+017F (long s). gpt-4o and tekken are the models'
# own: llama.cpp takes every letter but a to z and A to Z for both cases.
QWEN2 = (
    r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN2_HF = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)" + QWEN2[QWEN2.index("|[^") :]
_LLAMA_BPE = QWEN2.replace(r"|\p{N}|", r"|\p{N}{1,3}|")
_LLAMA_BPE_HF = _QWEN2_HF.replace(r"|\p{N}|", r"|\p{N}{1,3}|")
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)"
_GPT2_HF = _GPT2 + r"|\s+"

_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_PREFIX = r"[^\r\n\p{L}\p{N}]?"
_CONTRACTION = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
_CASED_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_TEKKEN = rf"{_PREFIX}{_UPPER}*{_LOWER}+|{_PREFIX}{_UPPER}+{_LOWER}*|\p{{N}}{_CASED_REST}"
_GPT4O = (
    rf"{_PREFIX}{_UPPER}*{_LOWER}+{_CONTRACTION}|{_PREFIX}{_UPPER}+{_LOWER}*{_CONTRACTION}|\p{{N}}{{1,3}}{_CASED_REST}"
)
# One after the other, each on the pieces of the one before.
_DEFAULT = (r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", "[0-9][0-9][0-9]")

LLAMA_BPE_NAME = "llama-bpe"


@dataclasses.dataclass(frozen=True)
class KnownSplit:
    """A value of tokenizer.ggml.pre. written: the name that is written for it. ignore_merges: words
    that are tokens are not merged. add_bos: texts begin with BOS where the file does not say."""

    name: str
    written: str
    ignore_merges: bool
    add_bos: bool


@functools.cache
def known_splits() -> dict[str, KnownSplit]:
    """The values that the engine knows (engine/src/tokenizer/pre_tokenizer.h), which splits by
    hand-written rules."""
    return {row[0]: KnownSplit(*row) for row in pre_tokenizers()}


def written_names() -> tuple[str, ...]:
    """The names that are written."""
    return tuple(dict.fromkeys(known.written for known in known_splits().values()))


_NAME_OF_PATTERN = {
    QWEN2: "qwen2",
    _QWEN2_HF: "qwen2",
    _LLAMA_BPE: "llama-bpe",
    _LLAMA_BPE_HF: "llama-bpe",
    _GPT2: "gpt-2",
    _GPT2_HF: "gpt-2",
    _GPT4O: "gpt-4o",
    _TEKKEN: "tekken",
}


def split_name(pre_tokenizer: dict[str, Any] | None, *, ignore_merges: bool = True) -> str | None:
    """GGUF's name (tokenizer.ggml.pre) for the pre_tokenizer section of a tokenizer.json, or None.

    dbrx has llama-bpe's regular expression, and merges words that are tokens. smollm is single
    digits, then GPT-2's pattern: Digits(individual) + ByteLevel(use_regex).
    """
    if pre_tokenizer is None:
        return None
    steps = pre_tokenizer["pretokenizers"] if pre_tokenizer.get("type") == "Sequence" else [pre_tokenizer]
    kinds = [step.get("type") for step in steps]
    if not kinds or kinds[-1] != "ByteLevel" or steps[-1].get("add_prefix_space"):
        return None
    uses_regex = steps[-1].get("use_regex", True)
    if kinds == ["ByteLevel"]:
        return "gpt-2" if uses_regex else None
    if kinds == ["Digits", "ByteLevel"]:
        return "smollm" if uses_regex and steps[0].get("individual_digits") else None
    splits = steps[:-1]
    if uses_regex or any(kind != "Split" for kind in kinds[:-1]):
        return None
    if any(step.get("invert") or step.get("behavior") != "Isolated" for step in splits):
        return None
    patterns = tuple(step.get("pattern", {}).get("Regex", "") for step in splits)
    if patterns == _DEFAULT:
        return "default"
    name = _NAME_OF_PATTERN.get(patterns[0]) if len(patterns) == 1 else None
    return "dbrx" if name == LLAMA_BPE_NAME and not ignore_merges else name


def pre_tokenizer(name: str) -> dict[str, Any]:
    """The pre_tokenizer section for a name that split_name returns."""

    def byte_level(*, use_regex: bool) -> dict[str, Any]:
        return {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": use_regex}

    if name == "gpt-2":
        return byte_level(use_regex=True)
    if name == "smollm":
        steps: list[dict[str, Any]] = [{"type": "Digits", "individual_digits": True}, byte_level(use_regex=True)]
    else:
        patterns = {
            "qwen2": (_QWEN2_HF,), "llama-bpe": (_LLAMA_BPE_HF,), "dbrx": (_LLAMA_BPE_HF,), "gpt-4o": (_GPT4O,),
            "tekken": (_TEKKEN,), "default": _DEFAULT,
        }[name]  # fmt: skip
        steps = [
            {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
            for pattern in patterns
        ]
        steps.append(byte_level(use_regex=False))
    return {"type": "Sequence", "pretokenizers": steps}

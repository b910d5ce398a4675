"""The regular expressions that split text into words before byte-level BPE, by their GGUF names."""

from __future__ import annotations

from typing import Any

# Each pattern as in llama.cpp (llama-vocab.cpp, llm_tokenizer_bpe), then as in Hugging Face. They
# are equivalent, except that (?i:'s) also matches U+017F (long s).
QWEN2 = (
    r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN2_HF = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)" + QWEN2[QWEN2.index("|[^") :]
_LLAMA_BPE = QWEN2.replace(r"|\p{N}|", r"|\p{N}{1,3}|")
_LLAMA_BPE_HF = _QWEN2_HF.replace(r"|\p{N}|", r"|\p{N}{1,3}|")
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)"
_GPT2_HF = _GPT2 + r"|\s+"

LLAMA_BPE_NAME = "llama-bpe"

# Names in GGUF files (tokenizer.ggml.pre) → our name. engine/src/formats/gguf_tokenizer.c has
# the same list; engine/src/tokenizer/pre_tokenizer.c splits by hand-written rules.
SPLIT_NAMES = {
    "qwen2": "qwen2", "llama-bpe": "llama-bpe", "llama3": "llama-bpe", "llama-v3": "llama-bpe", "gpt-2": "gpt-2",
    "smollm": "smollm",
}  # fmt: skip

_NAME_OF_PATTERN = {
    QWEN2: "qwen2",
    _QWEN2_HF: "qwen2",
    _LLAMA_BPE: "llama-bpe",
    _LLAMA_BPE_HF: "llama-bpe",
    _GPT2: "gpt-2",
    _GPT2_HF: "gpt-2",
}


def split_name(pre_tokenizer: dict[str, Any] | None) -> str | None:
    """GGUF's name (tokenizer.ggml.pre) for the pre_tokenizer section of a tokenizer.json, or None.

    smollm is single digits, then GPT-2's pattern: Digits(individual) + ByteLevel(use_regex).
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
    if kinds == ["Split", "ByteLevel"] and not uses_regex:
        if steps[0].get("invert") or steps[0].get("behavior") != "Isolated":
            return None
        return _NAME_OF_PATTERN.get(steps[0].get("pattern", {}).get("Regex", ""))
    return None


def pre_tokenizer(name: str) -> dict[str, Any]:
    """The pre_tokenizer section for a name that split_name returns."""

    def byte_level(*, use_regex: bool) -> dict[str, Any]:
        return {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": use_regex}

    if name == "gpt-2":
        return byte_level(use_regex=True)
    if name == "smollm":
        steps: list[dict[str, Any]] = [{"type": "Digits", "individual_digits": True}, byte_level(use_regex=True)]
    else:
        pattern = {"qwen2": _QWEN2_HF, "llama-bpe": _LLAMA_BPE_HF}[name]
        split = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
        steps = [split, byte_level(use_regex=False)]
    return {"type": "Sequence", "pretokenizers": steps}

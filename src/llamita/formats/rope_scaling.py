"""RoPE scaling: the parameters of each rope_type, checked and completed, and the formulas that every
format and network shares.

The types and their defaults are those of transformers (modeling_rope_utils.py). A checked scaling
has all its parameters, so no reader has defaults of its own.

"dynamic" scales only texts longer than max_position_embeddings. No text here is, so within the
context it is no scaling, in every runtime.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Final

from llamita.config import ModelConfig
from llamita.errors import FormatError

ROPE_TYPES: Final = ("default", "linear", "dynamic", "llama3", "yarn", "longrope")
BETA_FAST: Final = 32.0
BETA_SLOW: Final = 1.0


def normalize_rope_scaling(
    scaling: Mapping[str, Any] | None, where: str, context: int, head_dim: int
) -> dict[str, Any] | None:
    """rope_type and all its parameters, as floats, ints and lists; None for no scaling.

    context: max_position_embeddings, the default of original_max_position_embeddings. Raises
    FormatError for parameters that are missing or out of range.
    """
    if scaling is None:
        return None
    read = _Parameters(scaling, where)
    rope_type = scaling.get("rope_type", scaling.get("type", "default"))
    if not isinstance(rope_type, str) or rope_type not in ROPE_TYPES:
        raise FormatError(
            f"cannot use {where}: rope_type: expected one of {', '.join(ROPE_TYPES)}, found {rope_type!r:.60}"
        )
    if rope_type == "default":
        return None
    if rope_type in ("linear", "dynamic"):
        return {"rope_type": rope_type, "factor": read.number("factor")}
    if rope_type == "llama3":
        return _llama3(read)
    return _yarn(read, context) if rope_type == "yarn" else _longrope(read, context, head_dim)


def attention_factor(config: ModelConfig) -> float:
    """The factor of cos and sin: of yarn and longrope, else 1."""
    scaling = config.rope_scaling
    return 1.0 if scaling is None else float(scaling.get("attention_factor", 1.0))


def yarn_range(config: ModelConfig) -> tuple[float, float]:
    """(low, high): yarn keeps the frequencies of pairs up to low, divides those from high on by the
    factor, and mixes those between (arXiv 2309.00071, section 3.2). Raises FormatError if no such
    range exists."""
    scaling = config.rope_scaling
    assert scaling is not None and scaling["rope_type"] == "yarn"
    original, size = scaling["original_max_position_embeddings"], config.head_dim

    def pair(turns: float) -> float:
        return size * math.log(original / (turns * 2 * math.pi)) / (2 * math.log(config.rope_theta))

    try:
        low, high = pair(scaling["beta_fast"]), pair(scaling["beta_slow"])
    except (ArithmeticError, ValueError):  # rope_theta 1, or out of all bounds
        low, high = math.inf, -math.inf
    if scaling.get("truncate", True) and math.isfinite(low) and math.isfinite(high):
        low, high = float(math.floor(low)), float(math.ceil(high))
    low, high = max(low, 0.0), min(high, size - 1.0)
    if low > high:
        raise FormatError(
            f"yarn: expected beta_fast above beta_slow and an original context in which some pairs turn that often, "
            f"found {scaling['beta_fast']:g}, {scaling['beta_slow']:g} and {original} tokens"
        )
    return low, high


def yarn_attention_factor(factor: float, scale: float = 1.0) -> float:
    """The factor of cos and sin that yarn's paper recommends (section 3.4)."""
    return 1.0 if factor <= 1 else 0.1 * scale * math.log(factor) + 1.0


def _llama3(read: _Parameters) -> dict[str, Any]:
    low, high = read.number("low_freq_factor"), read.number("high_freq_factor")
    if not low < high:
        raise read.wrong("high_freq_factor", f"more than low_freq_factor ({low})")
    return {
        "rope_type": "llama3",
        "factor": read.number("factor"),
        "low_freq_factor": low,
        "high_freq_factor": high,
        "original_max_position_embeddings": read.whole("original_max_position_embeddings"),
    }


def _yarn(read: _Parameters, context: int) -> dict[str, Any]:
    original = read.whole("original_max_position_embeddings", context)
    factor = read.number("factor", context / original)
    if factor < 1:
        raise read.wrong("factor", "at least 1 for yarn")
    scale, scale_all = read.number("mscale", 0.0), read.number("mscale_all_dim", 0.0)
    recommended = yarn_attention_factor(factor)
    if scale and scale_all:
        recommended = yarn_attention_factor(factor, scale) / yarn_attention_factor(factor, scale_all)
    truncate = read.scaling.get("truncate", True)
    if not isinstance(truncate, bool):
        raise read.wrong("truncate", "true or false")
    return {
        "rope_type": "yarn",
        "factor": factor,
        "original_max_position_embeddings": original,
        "attention_factor": read.number("attention_factor", recommended),
        "beta_fast": read.number("beta_fast", BETA_FAST),
        "beta_slow": read.number("beta_slow", BETA_SLOW),
    } | ({} if truncate else {"truncate": False})


def _longrope(read: _Parameters, context: int, head_dim: int) -> dict[str, Any]:
    original = read.whole("original_max_position_embeddings", context)
    factor = read.number("factor", context / original)
    recommended = 1.0
    if factor > 1 and original > 1:
        recommended = math.sqrt(1 + math.log(factor) / math.log(original))
    return {
        "rope_type": "longrope",
        "short_factor": read.numbers("short_factor", head_dim // 2),
        "long_factor": read.numbers("long_factor", head_dim // 2),
        "original_max_position_embeddings": original,
        "attention_factor": read.number("attention_factor", recommended),
    }


class _Parameters:
    """Reads typed parameters of a scaling. Without a default, a missing one is an error; null is
    missing."""

    def __init__(self, scaling: Mapping[str, Any], where: str) -> None:
        if not isinstance(scaling, Mapping):
            raise FormatError(
                f"cannot use {where}: rope_scaling: expected an object or null, found {str(scaling)[:80]!r}"
            )
        self.scaling, self.where = scaling, where

    def wrong(self, key: str, expected: str) -> FormatError:
        return FormatError(f"cannot use {self.where}: {key}: expected {expected}, found {str(self._value(key))[:80]!r}")

    def _value(self, key: str) -> Any:
        return self.scaling.get(key)

    def number(self, key: str, default: float | None = None) -> float:
        value = self._value(key)
        if value is None and default is not None:
            return default
        if value is None and key not in self.scaling:
            kind = self.scaling.get("rope_type", self.scaling.get("type"))
            raise FormatError(f"cannot use {self.where}: rope_type {kind!r}: {key} is missing")
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < 1e30:
            raise self.wrong(key, "a positive number")
        return float(value)

    def whole(self, key: str, default: int | None = None) -> int:
        value = self.number(key, default)
        if value >= 2**31 or value != int(value) or isinstance(self._value(key), float):
            raise self.wrong(key, "a positive whole number")
        return int(value)

    def numbers(self, key: str, count: int) -> list[float]:
        values = self._value(key)
        if not isinstance(values, list) or len(values) != count:
            raise self.wrong(key, f"a list of {count} numbers, one for each pair of head_dim")
        if any(isinstance(each, bool) or not isinstance(each, (int, float)) or not 0 < each < 1e30 for each in values):
            raise self.wrong(key, "positive numbers")
        return [float(each) for each in values]

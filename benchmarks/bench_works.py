"""What `make bench` measures, and the numbers that are to be reached.

A work is a name ("decode 15M Q8_0"), a kind, a model, how much of it a measurement does, and its goal. Tokens are
chosen so that a measurement takes a tenth of a second to a second on two cores; all of it takes some ten minutes.
"""

from __future__ import annotations

import dataclasses
import fnmatch
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Literal, cast

from bench_models import SMOLLM2

from llamita.formats.tensor_types import TypeName

KindName = Literal["decode", "prompt", "batch", "start", "program", "memory", "sample", "size"]

# Groups that ours is compared with.
OURS, LLAMA_CPP, READING, REFERENCE, ALONE = "ours", "llama.cpp", "reading", "reference/run.c", "one by one"

DEPTH_TOKENS = 32  # in the context before decoding is measured
PROMPT_TOKENS = 512
NUM_PICKS = 200
VOCAB_SIZE = 32000


@dataclasses.dataclass(frozen=True)
class Kind:
    """The unit that a kind is told in. A measurement's cost is in seconds or bytes: less is better. As a speed the
    unit is amount / cost, else it is cost / amount (each times the factor)."""

    unit: str
    is_speed: bool
    factor: float

    def value(self, cost: float, amount: float) -> float:
        return self.factor * (amount / cost if self.is_speed else cost / amount)


KINDS: Mapping[KindName, Kind] = MappingProxyType(
    {
        "decode": Kind("tok/s", True, 1.0),
        "prompt": Kind("GMAC/s", True, 1e-9),
        "batch": Kind("tok/s", True, 1.0),
        "start": Kind("ms", False, 1e3),
        "program": Kind("ms", False, 1e3),
        "memory": Kind("MB", False, 1e-6),
        "sample": Kind("µs", False, 1e6),
        "size": Kind("KB", False, 1e-3),
    }
)


@dataclasses.dataclass(frozen=True)
class Goal:
    """ratios: group → how many times better ours is to be (for reading: the share of the bandwidth). at_most: in the
    kind's unit."""

    ratios: Mapping[str, float] = dataclasses.field(default_factory=dict)
    at_most: float | None = None


@dataclasses.dataclass(frozen=True)
class Work:
    """num_tokens: in each sequence (picks, for sample); num_repeats: as often in a measurement, where a context has too
    little room."""

    name: str
    kind: KindName
    model: str
    type: TypeName
    num_tokens: int
    num_sequences: int = 1
    goal: Goal = dataclasses.field(default_factory=Goal)

    @property
    def num_repeats(self) -> int:
        return _DECODE_REPEATS.get(self.model, 1) if self.kind == "decode" else 1


def _goal(peer: float | None = None, *, reading: float | None = None, reference: float | None = None,
          alone: float | None = None, at_most: float | None = None) -> Goal:  # fmt: skip
    ratios = {LLAMA_CPP: peer, READING: reading, REFERENCE: reference, ALONE: alone}
    return Goal({group: ratio for group, ratio in ratios.items() if ratio is not None}, at_most)


GOALS: Mapping[str, Goal] = MappingProxyType(
    {
        "decode stories260K F32": _goal(5.0),
        "decode 15M Q8_0": _goal(2.0),
        "decode 15M Q4_0": _goal(2.0),
        "decode 15M F32": _goal(1.1, reference=1.2),
        "decode 42M Q8_0": _goal(1.7),
        "decode 42M Q4_0": _goal(1.6),
        "decode 110M Q8_0": _goal(1.5, reading=0.9),
        "decode 110M Q4_0": _goal(1.5),
        "decode 110M F32": _goal(1.1, reference=1.2),
        "decode SmolLM2-135M Q4_1": _goal(2.0),
        "decode 1.1B Q8_0": _goal(1.3, reading=0.9),
        "decode 1.1B Q4_0": _goal(1.4, reading=0.8),
        "prompt 110M Q8_0": _goal(1.5),
        "prompt 110M Q4_0": _goal(1.3),
        "prompt 110M F32": _goal(1.0),
        "batch 8 110M Q8_0": _goal(1.5, alone=4.0),
        "start 15M Q8_0": _goal(10.0, at_most=10.0),
        "start 110M Q8_0": _goal(10.0, at_most=40.0),
        "sample top-p 0.9 of 32000": _goal(3.0, at_most=20.0),
        "size run": _goal(at_most=400.0),
    }
)

# Tokens of a decoding measurement.
_DECODE_TOKENS = {"stories260K": 400, "15M": 128, "42M": 96, "110M": 48, SMOLLM2: 48, "1.1B": 12}
# So often, for the smallest: shorter measurements told how a pause before them ends, not how fast decoding is.
_DECODE_REPEATS = {"stories260K": 20, "15M": 6, "42M": 2}
_DECODE_TYPES: Mapping[str, tuple[TypeName, ...]] = MappingProxyType(
    {
        "stories260K": ("F32",),
        "15M": ("Q8_0", "Q4_0", "F32"),
        "42M": ("Q8_0", "Q4_0"),
        "110M": ("Q8_0", "Q4_0", "F32"),
        SMOLLM2: ("Q4_1",),
        "1.1B": ("Q8_0", "Q4_0"),
    }
)
_PROMPTS = ("15M Q8_0", "42M Q8_0", "110M Q8_0", "110M Q4_0", "110M F32")
_BATCHES = (1, 2, 4, 8)
_STARTS = ("15M Q8_0", "110M Q8_0")


def all_works() -> tuple[Work, ...]:
    """Everything, what uses one model file together, small ones first."""
    works = [work("size run", "size", "", "F32", 0)]
    for model, types in _DECODE_TYPES.items():
        for type in types:
            works.append(work(f"decode {model} {type}", "decode", model, type, _DECODE_TOKENS[model]))
            if f"{model} {type}" in _PROMPTS:
                works.append(work(f"prompt {model} {type}", "prompt", model, type, PROMPT_TOKENS))
            if (model, type) == ("110M", "Q8_0"):
                works += [work(f"batch {n} {model} {type}", "batch", model, type, 24, n) for n in _BATCHES]
            if f"{model} {type}" in _STARTS:
                works.append(work(f"start {model} {type}", "start", model, type, 1))
                works.append(work(f"program {model} {type}", "program", model, type, 1))
                works.append(work(f"memory {model} {type}", "memory", model, type, PROMPT_TOKENS))
            if (model, type) == ("15M", "Q8_0"):
                works.append(work(f"sample top-p 0.9 of {VOCAB_SIZE}", "sample", model, type, NUM_PICKS))
    return tuple(works)


def work(
    name: str, kind: str, model: str, type: TypeName, num_tokens: int, num_sequences: int = 1
) -> Work:  # the goal comes by the name
    return Work(name, cast(KindName, kind), model, type, num_tokens, num_sequences, GOALS.get(name, Goal()))


def choose_works(works: Sequence[Work], globs: Sequence[str], *, quick: bool) -> list[Work]:
    """Those whose names match one of the globs (none: all). quick: a quarter of the tokens, to try it out."""
    chosen = [w for w in works if not globs or any(fnmatch.fnmatchcase(w.name, glob) for glob in globs)]
    return [dataclasses.replace(w, num_tokens=max(1, w.num_tokens // 4)) for w in chosen] if quick else chosen

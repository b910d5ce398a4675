"""How text is generated: SamplingParams says how tokens are chosen, RuntimeOptions how the engine
computes them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from llamita.config import Option, check, check_at_most, check_seed

MAX_TOP_K = 2**31 - 1
MAX_TOKENS = 2**24  # of a context, or a text


@dataclasses.dataclass(frozen=True)
class SamplingParams:
    """How the next token is chosen: penalty, temperature, softmax, top-k, top-p, min-p, then a
    random draw."""

    temperature: Annotated[float, Option(short="t")] = 1.0
    """0 always takes the most probable token; higher is more random."""
    top_p: Annotated[float, Option("P", short="p")] = 0.9
    """Nucleus sampling: keep the smallest set of tokens with at least this probability; 1 keeps
    all."""
    top_k: Annotated[int, Option("K", short="k")] = 0
    """Keep the K most probable tokens; 0 keeps all."""
    min_p: Annotated[float, Option("P")] = 0.0
    """Keep tokens with at least this share of the highest probability; 0 keeps all."""
    repetition_penalty: float = 1.0
    """Above 1, recent tokens become less likely."""
    repetition_window: Annotated[int, Option("TOKENS")] = 64
    """How many of the last tokens count as recent."""
    seed: Annotated[int | None, Option(short="s")] = None
    """Random seed: the same seed gives the same text. Default: random."""

    def check_ranges(self) -> None:
        """Raise ConfigError that names the flag of a value out of its range."""
        check(0 <= self.temperature <= 1000, f"--temperature: expected 0 to 1000, found {self.temperature}")
        check(0 < self.top_p <= 1, f"--top-p: expected a number above 0 and up to 1, found {self.top_p}")
        check(self.top_k >= 0, f"--top-k: expected 0 or more, found {self.top_k}")
        check_at_most("--top-k", self.top_k, MAX_TOP_K)
        check(0 <= self.min_p <= 1, f"--min-p: expected a number from 0 to 1, found {self.min_p}")
        check(
            0.01 <= self.repetition_penalty <= 100,
            f"--repetition-penalty: expected 0.01 to 100, found {self.repetition_penalty}",
        )
        check(self.repetition_window >= 0, f"--repetition-window: expected 0 or more, found {self.repetition_window}")
        check_at_most("--repetition-window", self.repetition_window, MAX_TOKENS)
        if self.seed is not None:
            check_seed("--seed", self.seed)


@dataclasses.dataclass(frozen=True)
class ComputeOptions:
    """How the engine computes. The text does not depend on num_threads."""

    num_threads: Annotated[int, Option(short="j", name="threads")] = 0
    """CPU threads; 0 chooses by the size of the model and the machine."""
    context_tokens: Annotated[int, Option("TOKENS", short="c", name="context")] = 0
    """Room for prompt and new text together; 0 is the model's context."""
    kv_type: Annotated[Literal["f16", "f32", "q8"], Option(name="kv")] = "f16"
    """Type of the KV cache."""


@dataclasses.dataclass(frozen=True)
class RuntimeOptions(ComputeOptions):
    """How a session of the engine computes. The text does not depend on num_threads or
    speculation."""

    speculation: Literal["auto", "off", "always"] = "auto"
    """Speculative decoding by prompt lookup; never changes the text."""


DEFAULT_SAMPLING, DEFAULT_COMPUTE, DEFAULT_RUNTIME = SamplingParams(), ComputeOptions(), RuntimeOptions()


def with_overrides(
    sampling: SamplingParams, runtime: RuntimeOptions, overrides: Mapping[str, Any]
) -> tuple[SamplingParams, RuntimeOptions]:
    """Both, with the fields that `overrides` names replaced. Raises TypeError for a name that
    neither has."""
    computing = {field.name for field in dataclasses.fields(RuntimeOptions)} & overrides.keys()
    choosing = {name: value for name, value in overrides.items() if name not in computing}
    return (
        dataclasses.replace(sampling, **choosing),
        dataclasses.replace(runtime, **{name: overrides[name] for name in computing}),
    )

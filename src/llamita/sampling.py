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
class BasicSamplingParams:
    """How the next token is chosen, as PyTorch and the engine can: repetition penalty, temperature,
    softmax, top-k, top-p, min-p, then a random draw."""

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


_ADVANCED = "more sampling"


@dataclasses.dataclass(frozen=True)
class SamplingParams(BasicSamplingParams):
    """How the engine chooses the next token: penalties (repetition, frequency, presence, DRY),
    temperature, softmax, top-k, typical-p, top-p, min-p, XTC, then a random draw. Mirostat replaces
    the steps after softmax. Each step is llama.cpp's."""

    presence_penalty: Annotated[float, Option(group=_ADVANCED)] = 0.0
    """Subtract this from the logit of each recent token."""
    frequency_penalty: Annotated[float, Option(group=_ADVANCED)] = 0.0
    """Subtract this from the logit of a recent token for each time that it comes."""
    typical_p: Annotated[float, Option("P", group=_ADVANCED)] = 1.0
    """Locally typical sampling: keep tokens with at least this probability together, those whose
    surprise is nearest to the entropy; 1 keeps all."""
    xtc_probability: Annotated[float, Option("P", group=_ADVANCED)] = 0.0
    """XTC: how often to drop the most probable tokens, all but the least probable one that reaches
    --xtc-threshold; 0 never does."""
    xtc_threshold: Annotated[float, Option("P", group=_ADVANCED)] = 0.1
    """XTC: the probability that counts; above 0.5 nothing is dropped."""
    mirostat_tau: Annotated[float, Option("BITS", group=_ADVANCED)] = 0.0
    """Mirostat 2.0: keep the surprise of the text near this many bits a token, instead of top-k,
    typical-p, top-p, min-p and XTC; 5 is usual, 0 is off."""
    mirostat_eta: Annotated[float, Option("RATE", group=_ADVANCED)] = 0.1
    """Mirostat: how fast it adapts."""
    dry_multiplier: Annotated[float, Option(group=_ADVANCED)] = 0.0
    """DRY: subtract multiplier * base^(n - allowed length) from the logit of a token that would
    continue a repetition of n tokens; 0.8 is usual, 0 is off. No repetition goes beyond a line end,
    a colon, a quotation mark or an asterisk."""
    dry_base: Annotated[float, Option(group=_ADVANCED)] = 1.75
    """DRY: growth of the penalty with each token."""
    dry_allowed_length: Annotated[int, Option("TOKENS", group=_ADVANCED)] = 2
    """DRY: shortest repetition that is penalized."""
    dry_window: Annotated[int, Option("TOKENS", group=_ADVANCED)] = 4096
    """DRY: how many of the last tokens are searched for repetitions."""

    def check_ranges(self) -> None:
        """Raise ConfigError that names the flag of a value out of its range."""
        super().check_ranges()
        for name, (low, high) in SAMPLING_RANGES.items():
            value, flag = getattr(self, name), "--" + name.replace("_", "-")
            check(low <= value <= high, f"{flag}: expected {low:g} to {high:g}, found {value}")


# Of the fields that the engine alone has, by name.
SAMPLING_RANGES: dict[str, tuple[float, float]] = {
    "presence_penalty": (-1e6, 1e6),
    "frequency_penalty": (-1e6, 1e6),
    "typical_p": (0, 1),
    "xtc_probability": (0, 1),
    "xtc_threshold": (0, 1),
    "mirostat_tau": (0, 100),
    "mirostat_eta": (0, 1),
    "dry_multiplier": (0, 1e6),
    "dry_base": (1, 1e6),
    "dry_allowed_length": (1, MAX_TOKENS),
    "dry_window": (1, MAX_TOKENS),
}


@dataclasses.dataclass(frozen=True)
class ComputeOptions:
    """How the engine computes. The text does not depend on num_threads."""

    num_threads: Annotated[int, Option(short="j", name="threads")] = 0
    """CPU threads; 0 chooses by the size of the model and the machine."""
    context_tokens: Annotated[int, Option("TOKENS", short="c", name="context")] = 0
    """Room for prompt and new text together; 0 is the model's context."""
    kv_type: Annotated[Literal["f16", "f32", "q8"], Option(name="kv")] = "f16"
    """Type of the KV cache."""
    rope_scaling: Literal["none", "linear", "ntk", "yarn"] | None = None
    """RoPE beyond the context that the model was trained with. Default: the model's."""
    rope_scale: Annotated[float, Option("N")] = 0.0
    """How many times the trained context --context may be; 0: the model's."""
    rope_freq_base: float = 0.0
    """RoPE base; 0: the model's."""
    yarn_orig_ctx: Annotated[int, Option("TOKENS")] = 0
    """yarn: the trained context; 0: the model's."""

    @property
    def has_rope(self) -> bool:
        """Whether RoPE differs from the model's."""
        return self.rope_scaling is not None or bool(self.rope_scale or self.rope_freq_base or self.yarn_orig_ctx)


@dataclasses.dataclass(frozen=True)
class RuntimeOptions(ComputeOptions):
    """How a session of the engine computes. The text does not depend on num_threads or
    speculation."""

    speculation: Literal["auto", "off", "always"] = "auto"
    """Speculative decoding by prompt lookup; never changes the text."""


DEFAULT_BASIC_SAMPLING = BasicSamplingParams()
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

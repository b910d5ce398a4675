"""The options that `llamita run` and `llamita chat` share."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated

from llamita.config import Option, check, check_at_most
from llamita.engine import Model
from llamita.sampling import MAX_TOKENS, ComputeOptions, RuntimeOptions, SamplingParams


@dataclasses.dataclass(frozen=True)
class LoadOptions:
    """How the model is opened."""

    tokenizer: Annotated[Path | None, Option(short="z")] = None
    """Take the tokenizer from this tokenizer.bin or GGUF, not from the model."""
    pre: Annotated[str | None, Option("NAME")] = None
    """How the tokenizer splits text, for a GGUF whose tokenizer.ggml.pre is missing or wrong:
    llama-bpe (Llama 3), qwen2, gpt-2, smollm, gpt-4o, tekken, dbrx, default."""
    adapter: Annotated[tuple[str, ...], Option("FILE[:SCALE]", repeated=True)] = ()
    """GGUF adapter (LoRA) to apply; give it several times to add several."""
    kernels: Annotated[str, Option("NAME", group="engine")] = "auto"
    """Compute kernels: auto, scalar, avx2, avxvnni, avx512, amx, or on ARM neon, dotprod, i8mm.
    Default: the fastest."""


DEFAULT_LOAD = LoadOptions()


def check_generation(max_new_tokens: int, sampling: SamplingParams, runtime: RuntimeOptions) -> None:
    """Raise ConfigError that names the flag of a value out of its range."""
    engine_sampling(sampling).check_ranges()
    check(max_new_tokens >= 0, f"--max-new-tokens: expected 0 or more, found {max_new_tokens}")
    check_at_most("--max-new-tokens", max_new_tokens, MAX_TOKENS)
    check_runtime(runtime)


def check_runtime(runtime: ComputeOptions) -> None:
    """Raise ConfigError that names the flag of a value out of its range."""
    check(0 <= runtime.num_threads <= 1024, f"--threads: expected 0 to 1024, found {runtime.num_threads}")
    check(runtime.context_tokens >= 0, f"--context: expected 0 or more, found {runtime.context_tokens}")
    check_at_most("--context", runtime.context_tokens, MAX_TOKENS)
    scale, base, original = runtime.rope_scale, runtime.rope_freq_base, runtime.yarn_orig_ctx
    check(scale == 0 or 1 <= scale <= 1e4, f"--rope-scale: expected 1 to 10,000, or 0 (the model's), found {scale}")
    check(base == 0 or 1 <= base <= 1e30, f"--rope-freq-base: expected 1 to 1e30, or 0 (the model's), found {base}")
    check(original >= 0, f"--yarn-orig-ctx: expected 0 or more, found {original}")
    check_at_most("--yarn-orig-ctx", original, MAX_TOKENS)


def check_context(model: Model, runtime: ComputeOptions) -> None:
    """Raise ConfigError if --context is more than the model's. RoPE options may allow more, if they suit
    the model: else raise EngineError."""
    if runtime.has_rope:
        given = {field.name: getattr(runtime, field.name) for field in dataclasses.fields(ComputeOptions)}
        model.session(**{**given, "num_threads": 1}).close()
        return
    limit = model.info.context_tokens
    check(
        runtime.context_tokens <= limit,
        f"--context: expected at most {limit:,}, the model's context, found {runtime.context_tokens:,}; --rope-scaling "
        "allows more",
    )


def engine_sampling(sampling: SamplingParams) -> SamplingParams:
    """The parameters for the engine; --top-p 0 keeps all tokens, as in llama2.c."""
    return dataclasses.replace(sampling, top_p=sampling.top_p or 1.0)

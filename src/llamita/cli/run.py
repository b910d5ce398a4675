"""`llamita run MODEL`: generates text with the C engine; text on stdout, speed on stderr."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Annotated

import llamita
from llamita.cli.adapters import open_adapters
from llamita.cli.command import card_defaults, check_is_file, parse
from llamita.cli.generation import DEFAULT_LOAD, LoadOptions, check_generation, engine_sampling
from llamita.config import Option
from llamita.engine import Generation, Model
from llamita.sampling import DEFAULT_RUNTIME, DEFAULT_SAMPLING, RuntimeOptions, SamplingParams


@dataclasses.dataclass(frozen=True)
class RunFlags:
    """Generate text with a GGUF or llama2.c model, in the C engine."""

    examples = ("llamita run -i 'Once upon a time'", "llamita run my.gguf -i 'One day' -n 100 -t 0.7 -s 1")

    model: Annotated[Path | None, Option(positional=True)] = None
    """Model file. Default: the story model that comes with llamita."""
    prompt: Annotated[str, Option(short="i")] = ""
    """Beginning of the text."""
    num_tokens: Annotated[int, Option(short="n")] = 256
    """New tokens to generate; 0: until the context is full."""
    load: Annotated[LoadOptions, Option(group="model")] = DEFAULT_LOAD
    sampling: SamplingParams = DEFAULT_SAMPLING
    runtime: Annotated[RuntimeOptions, Option(group="engine")] = DEFAULT_RUNTIME

    def __post_init__(self) -> None:
        check_generation(self.num_tokens, self.runtime)


def main(argv: list[str]) -> int | None:
    flags = parse(RunFlags, argv, "llamita run", card_defaults)
    with _open(flags) as model:
        generation = model.generate(
            flags.prompt,
            engine_sampling(flags.sampling),
            flags.runtime,
            max_new_tokens=flags.num_tokens or None,
            adapters=open_adapters(model, flags.load.adapter),
        )
        interrupted = _stream(model, generation)
        status = (
            f"stopped by Ctrl-C after {len(generation.ids)} tokens" if interrupted else f"stopped: {generation.stop}"
        )
        if flags.sampling.seed is None and flags.sampling.temperature > 0:
            status += f"; -s {generation.seed} gives the same text"
        print(f"{status}\n{generation.speed_line()}", file=sys.stderr)
    return 130 if interrupted else 0


def _open(flags: RunFlags) -> Model:
    """Open the model; for a llama2.c model without -z, with tokenizer.bin from the current folder,
    as llama2.c does."""
    if flags.model is not None:
        check_is_file(flags.model, "run")
    load = flags.load
    model = llamita.load(flags.model, tokenizer=load.tokenizer, kernels=load.kernels)
    if load.tokenizer is None and not model.info.has_tokenizer and model.info.format.startswith("llama2.c"):
        model.close()
        return llamita.load(flags.model, tokenizer="tokenizer.bin", kernels=load.kernels)
    return model


def _stream(model: Model, generation: Generation) -> bool:
    """Print the prompt and the text as it is generated; True if Ctrl-C stopped it."""
    prompt = model.decode(generation.prompt_ids).decode("utf-8", "replace")
    interrupted = False
    try:
        for piece in generation:
            print(prompt + piece, end="", flush=True)
            prompt = ""
    except KeyboardInterrupt:
        generation.close()
        interrupted = True
    print(prompt)
    return interrupted

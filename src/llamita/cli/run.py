"""`llamita run MODEL`: generates text with the C engine; text on stdout, speed on stderr."""

from __future__ import annotations

import dataclasses
import secrets
import sys
from pathlib import Path
from typing import Annotated, Literal

from llamita.batch_generate import SampleOptions, generate_batch
from llamita.cli.adapters import open_adapters
from llamita.cli.command import card_defaults, parse
from llamita.cli.generation import DEFAULT_LOAD, LoadOptions, check_context, check_generation, engine_sampling
from llamita.cli.grammar import DEFAULT_GRAMMAR, GrammarOptions, read_grammar
from llamita.cli.open_model import opened_model
from llamita.cli.progress import progress_bars
from llamita.cli.prompt import DEFAULT_PROMPT, PromptOptions, check_num_samples, print_header, read_prompt
from llamita.cli.tracing import TextTracer
from llamita.config import Option, check, check_at_most
from llamita.engine import AdapterUses, Generation, Grammar, Model, encode_prompt, text_pieces
from llamita.sampling import DEFAULT_RUNTIME, DEFAULT_SAMPLING, MAX_TOKENS, RuntimeOptions, SamplingParams


@dataclasses.dataclass(frozen=True)
class RunFlags:
    """Generate text with a GGUF or llama2.c model, in the C engine.

    A checkpoint or a run directory is exported to a temporary model file first.
    """

    examples = (
        "llamita run -i 'Once upon a time'",
        "llamita run my.gguf 'One day' -n 100 -t 0.7 -s 1",
        "llamita run my.gguf -f prompt.txt -N 10",
        "llamita run -i 'Is it red? ' --choice yes --choice no",
    )

    model: Annotated[Path | None, Option(positional=True)] = None
    """Model file, checkpoint or run directory. Default: the story model that comes with llamita."""
    max_new_tokens: Annotated[int, Option(short="n")] = 256
    """New tokens to generate; 0: no limit but a full context."""
    num_samples: Annotated[int, Option(short="N")] = 1
    """Number of texts; each has the next seed. They are computed together and printed at the
    end."""
    trace: Annotated[Path | None, Option("STORE")] = None
    """Print on stderr where the new text stands word for word in this token store; see `llamita
    index`."""
    prompt: Annotated[PromptOptions, Option(group="prompt")] = DEFAULT_PROMPT
    grammar: Annotated[GrammarOptions, Option(group="grammar")] = DEFAULT_GRAMMAR
    load: Annotated[LoadOptions, Option(group="model")] = DEFAULT_LOAD
    sampling: SamplingParams = DEFAULT_SAMPLING
    runtime: Annotated[RuntimeOptions, Option(group="engine")] = DEFAULT_RUNTIME
    prompt_cache: Annotated[Path | None, Option("FILE", group="engine")] = None
    """Keep the computed prompt in this file, and do not compute again what a prompt shares with
    it."""
    context_full: Annotated[Literal["stop", "shift"], Option(group="engine")] = "stop"
    """A full context ends the text, or is shifted: the older half of what is not kept is dropped."""
    keep: Annotated[int | None, Option("TOKENS", group="engine")] = None
    """How much of the prompt is never dropped, besides BOS; -1: all. Default: nothing else."""

    def __post_init__(self) -> None:
        check_generation(self.max_new_tokens, self.sampling, self.runtime)
        check(self.prompt_cache is None or self.num_samples == 1, "--prompt-cache: only for one text, without -N")
        shifts = self.context_full == "shift"
        check(not shifts or self.num_samples == 1, "--context-full shift: only for one text, without -N")
        check(shifts or self.keep is None, "--keep: only with --context-full shift")
        check(
            self.keep is None or self.keep >= -1, f"--keep: expected -1 (all of the prompt) or more, found {self.keep}"
        )
        check_at_most("--keep", self.keep or 0, MAX_TOKENS)
        check_num_samples(self.num_samples, self.sampling.seed)


def main(argv: list[str]) -> int | None:
    flags = parse(RunFlags, argv, "llamita run", card_defaults)
    tracer = TextTracer(flags.trace)
    with opened_model(flags.model, flags.load, "run") as model:
        check_context(model, flags.runtime)
        prompt, adapters = read_prompt(flags.prompt), open_adapters(model, flags.load.adapter)
        grammar = read_grammar(flags.grammar)
        if flags.num_samples > 1:
            _print_samples(model, prompt, flags, adapters, grammar, tracer)
            return 0
        generation = model.generate(
            prompt,
            engine_sampling(flags.sampling),
            flags.runtime,
            max_new_tokens=flags.max_new_tokens or None,
            adapters=adapters,
            grammar=grammar,
            prompt_cache=flags.prompt_cache,
            context_full=flags.context_full,
            keep=flags.keep or 0,
        )
        interrupted = _stream(model, generation, tracer)
        status = (
            f"stopped by Ctrl-C after {generation.num_new_tokens} tokens"
            if interrupted
            else f"stopped: {generation.stop}"
        )
        if flags.sampling.seed is None and flags.sampling.temperature > 0:
            status += f"; -s {generation.seed} gives the same text"
        print(f"{status}\n{generation.speed_line()}", file=sys.stderr)
        tracer.print_trace()
    return 130 if interrupted else 0


def _print_samples(
    model: Model, prompt: bytes, flags: RunFlags, adapters: AdapterUses, grammar: Grammar | None, tracer: TextTracer
) -> None:
    """Generate several texts side by side; text i is what seed + i gives alone."""
    seed = secrets.randbits(62) if flags.sampling.seed is None else flags.sampling.seed
    sampling = dataclasses.replace(engine_sampling(flags.sampling), seed=seed)
    options = SampleOptions(flags.num_samples, (prompt,), flags.max_new_tokens or None, sampling, flags.runtime)
    with progress_bars() as progress:
        samples = generate_batch(model, options, progress, adapters=adapters, grammar=grammar)
    start = model.decode(encode_prompt(model, prompt))
    for number, sample in enumerate(samples):
        print_header(number, flags.num_samples, seed + number)
        print("".join(text_pieces([start + sample.text])), end="\n\n", flush=True)
        tracer.add("".join(text_pieces([sample.text])))
        tracer.print_trace()
    cut = sum(not sample.ended for sample in samples)
    if grammar is not None and cut:
        print(f"{cut} of {len(samples)} texts were cut off: they do not fit yet; raise -n", file=sys.stderr)


def _stream(model: Model, generation: Generation, tracer: TextTracer) -> bool:
    """Print the prompt and the text as it is generated; True if Ctrl-C stopped it."""
    prompt = model.decode(generation.prompt_ids).decode("utf-8", "replace")
    interrupted = False
    try:
        for piece in generation:
            print(prompt + piece, end="", flush=True)
            tracer.add(piece)
            prompt = ""
    except KeyboardInterrupt:
        generation.close()
        interrupted = True
    print(prompt)
    return interrupted

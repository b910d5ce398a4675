"""llamita run: a model file and a prompt to text, with the C engine; text on stdout, the speed on stderr."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Annotated

import tyro

import llamita
from llamita.cli.adapters import open_adapters
from llamita.cli.command import check_is_file, parse
from llamita.config import check
from llamita.engine import Generation, Model


@dataclasses.dataclass(frozen=True)
class RunFlags:
    """Tell a text with a GGUF or llama2.c model; the letters are those of the program `run`, and llama2.c's."""

    model: tyro.conf.Positional[Path | None] = None
    """The model file; without one, the story model that comes with llamita."""
    prompt: Annotated[str, tyro.conf.arg(aliases=["-i"])] = ""
    """How the text begins."""
    num_tokens: Annotated[int, tyro.conf.arg(aliases=["-n"])] = 256
    """How many new tokens, the prompt's not counted; 0: to the context's end."""
    temperature: Annotated[float, tyro.conf.arg(aliases=["-t"])] = 1.0
    """0: always the most probable token; above 1: bolder."""
    top_p: Annotated[float, tyro.conf.arg(aliases=["-p"])] = 0.9
    """Pick from the smallest set with this share of the probability; 0 or 1: off."""
    top_k: Annotated[int, tyro.conf.arg(aliases=["-k"])] = 0
    """Pick from the K most probable tokens; 0: off."""
    min_p: float = 0.0
    """Pick from those with this share of the best one's probability; 0: off."""
    repetition_penalty: float = 1.0
    """Above 1: avoid recent tokens."""
    repetition_window: int = 64
    """How many tokens are recent."""
    seed: Annotated[int | None, tyro.conf.arg(aliases=["-s"])] = None
    """The same seed tells the same text; without one it is drawn, and told at the end."""
    tokenizer: Annotated[Path | None, tyro.conf.arg(aliases=["-z"])] = None
    """tokenizer.bin or a GGUF to take it from; without one the model's own (for llama2.c models tokenizer.bin)."""
    adapter: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """A GGUF adapter of the model's, FILE or FILE:SCALE; several times for several, which act together."""
    threads: Annotated[int, tyro.conf.arg(aliases=["-j"])] = 0
    """0: chosen by the model's size and the machine."""
    context: Annotated[int, tyro.conf.arg(aliases=["-c"])] = 0
    """Keep room for this many tokens; 0: the model's context."""
    kv: str = "f16"
    """How keys and values are kept: f16, f32 or q8."""
    speculation: str = "auto"
    """Computing along what repetitions make probable, with the same text: auto, off or always."""
    kernels: str = "auto"
    """auto, scalar, avx2, avxvnni, or on ARM neon, dotprod."""

    def __post_init__(self) -> None:
        check(self.num_tokens >= 0, f"--num-tokens: expected 0 or more, found {self.num_tokens}")
        check(0 <= self.threads <= 1024, f"--threads: expected 0 to 1024, found {self.threads}")
        check(self.context >= 0, f"--context: expected 0 or more, found {self.context}")


def main(argv: list[str]) -> int | None:
    flags = parse(RunFlags, argv, "llamita run")
    with _open(flags) as model:
        generation = model.generate(
            flags.prompt,
            max_new_tokens=flags.num_tokens or None,
            temperature=flags.temperature,
            top_p=flags.top_p or 1.0,
            top_k=flags.top_k,
            min_p=flags.min_p,
            repetition_penalty=flags.repetition_penalty,
            repetition_window=flags.repetition_window,
            seed=flags.seed,
            num_threads=flags.threads,
            context_tokens=flags.context,
            kv_type=flags.kv,
            speculation=flags.speculation,
            adapters=open_adapters(model, flags.adapter),
        )
        interrupted = _stream(model, generation)
        told = f"stopped by Ctrl-C after {len(generation.ids)} tokens" if interrupted else f"stopped: {generation.stop}"
        if flags.seed is None and flags.temperature > 0:
            told += f"; -s {generation.seed} tells it again"
        print(f"{told}\n{generation.speed_line()}", file=sys.stderr)
    return 130 if interrupted else 0


def _open(flags: RunFlags) -> Model:
    """The model; one of llama2.c's without -z takes the tokenizer.bin of this folder, as llama2.c does."""
    if flags.model is not None:
        check_is_file(flags.model, "run")
    model = llamita.load(flags.model, tokenizer=flags.tokenizer, kernels=flags.kernels)
    if flags.tokenizer is None and not model.info.has_tokenizer and model.info.format.startswith("llama2.c"):
        model.close()
        return llamita.load(flags.model, tokenizer="tokenizer.bin", kernels=flags.kernels)
    return model


def _stream(model: Model, generation: Generation) -> bool:
    """Print the prompt and the text as it comes; True if Ctrl-C ended it."""
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

"""llamita sample CHECKPOINT: let a checkpoint tell a text in PyTorch, slowly and obviously."""

from __future__ import annotations

import codecs
import dataclasses
import os
import sys
from pathlib import Path
from typing import Annotated

import tyro

from llamita.cli.command import parse, requires_extra
from llamita.config import check
from llamita.errors import ConfigError


@dataclasses.dataclass(frozen=True)
class SampleFlags:
    """Tell a text with a checkpoint in PyTorch. The engine (`llamita run`) does the same from a model file, fast."""

    checkpoint: tyro.conf.Positional[Path]
    """A checkpoint (a Hugging Face folder) or a run directory."""
    prompt: Annotated[str, tyro.conf.arg(aliases=["-i"])] = ""
    """How the text begins."""
    max_new_tokens: Annotated[int | None, tyro.conf.arg(aliases=["-n"])] = None
    """Stop after this many new tokens; without it, at the end token or the context's end."""
    temperature: Annotated[float, tyro.conf.arg(aliases=["-t"])] = 1.0
    """0 is greedy."""
    top_p: Annotated[float, tyro.conf.arg(aliases=["-p"])] = 0.9
    """Keep the smallest set of tokens with at least this probability; 1 is off."""
    top_k: Annotated[int, tyro.conf.arg(aliases=["-k"])] = 0
    """Keep the k most probable tokens; 0 is off."""
    min_p: float = 0.0
    """Keep tokens with at least this share of the best one's probability; 0 is off."""
    repetition_penalty: float = 1.0
    """Above 1: recent tokens become less likely."""
    seed: Annotated[int | None, tyro.conf.arg(aliases=["-s"])] = None
    """The same seed tells the same text."""
    ids: bool = False
    """Print the token ids instead of the text."""

    def __post_init__(self) -> None:
        check(0 <= self.temperature <= 1000, f"--temperature: expected 0 to 1000, found {self.temperature}")
        check(0 < self.top_p <= 1, f"--top-p: expected a number above 0 and up to 1, found {self.top_p}")
        check(self.top_k >= 0, f"--top-k: expected 0 or more, found {self.top_k}")
        check(0 <= self.min_p <= 1, f"--min-p: expected a number from 0 to 1, found {self.min_p}")
        check(
            0.01 <= self.repetition_penalty <= 100,
            f"--repetition-penalty: expected 0.01 to 100, found {self.repetition_penalty}",
        )
        check(self.seed is None or 0 <= self.seed < 1 << 63, f"--seed: expected 0 to 2^63 - 1, found {self.seed}")
        check(
            self.max_new_tokens is None or self.max_new_tokens > 0,
            f"--max-new-tokens: expected 1 or more, found {self.max_new_tokens}",
        )


def main(argv: list[str]) -> None:
    flags = parse(SampleFlags, argv, "llamita sample")
    with requires_extra("train"):
        from llamita.checkpoint import load_model, resolve_checkpoint
        from llamita.model.generate import generate
        from llamita.tokenizer import load_tokenizer
    directory = resolve_checkpoint(flags.checkpoint)
    model, tokenizer = load_model(directory), load_tokenizer(directory)
    ids = ([] if tokenizer.bos_id is None else [tokenizer.bos_id]) + tokenizer.encode(_prompt_text(flags.prompt))
    context = model.config.max_position_embeddings
    check(bool(ids), f"cannot start: {directory} has no BOS token; give a --prompt")
    check(len(ids) < context, f"the prompt has {len(ids)} tokens, the context only {context}; shorten the prompt")
    new_ids = generate(
        model,
        ids,
        flags.max_new_tokens,
        temperature=flags.temperature,
        top_k=flags.top_k,
        top_p=flags.top_p,
        min_p=flags.min_p,
        repetition_penalty=flags.repetition_penalty,
        seed=flags.seed,
        end_ids=model.config.eos_token_ids,
    )
    if flags.ids:
        print(" ".join(str(i) for i in new_ids))
        return
    characters = codecs.getincrementaldecoder("utf-8")(errors="replace")
    told = tokenizer.decode(ids)
    sys.stdout.write(characters.decode(told))
    for new in new_ids:
        ids.append(new)
        so_far = tokenizer.decode(ids)
        sys.stdout.write(characters.decode(so_far[len(told) :]))
        sys.stdout.flush()
        told = so_far
    sys.stdout.write(characters.decode(b"", final=True) + "\n")


def _prompt_text(argument: str) -> str:
    """A command-line word as the UTF-8 text that it is, whatever the locale took it for. Raises ConfigError."""
    try:
        return os.fsencode(argument).decode("utf-8")
    except UnicodeError as error:
        raise ConfigError(f"--prompt: expected UTF-8 text, found {argument!r}") from error

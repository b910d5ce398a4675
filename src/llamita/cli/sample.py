"""`llamita sample CHECKPOINT`: generates text with a checkpoint, by the simple PyTorch loop."""

from __future__ import annotations

import codecs
import dataclasses
import os
import sys
from pathlib import Path
from typing import Annotated

from llamita.cli.command import card_defaults, parse, requires_extra
from llamita.cli.next_command import export_commands, print_next
from llamita.config import Option, check
from llamita.errors import ConfigError
from llamita.sampling import DEFAULT_SAMPLING, SamplingParams


@dataclasses.dataclass(frozen=True)
class SampleFlags:
    """Generate text with a checkpoint in PyTorch; `llamita run` does the same from a model file,
    fast."""

    examples = ("llamita sample runs/my -i 'One day'", "llamita sample runs/my -n 100 -t 0.7 -s 1")

    checkpoint: Annotated[Path, Option(positional=True)]
    """Checkpoint (a Hugging Face folder) or run directory."""
    prompt: Annotated[str, Option(short="i")] = ""
    """Beginning of the text."""
    max_new_tokens: Annotated[int | None, Option(short="n")] = None
    """New tokens to generate. Default: until an end token, or until the context is full."""
    ids: bool = False
    """Print token ids instead of text."""
    sampling: SamplingParams = DEFAULT_SAMPLING

    def __post_init__(self) -> None:
        self.sampling.check_ranges()
        check(
            self.max_new_tokens is None or self.max_new_tokens > 0,
            f"--max-new-tokens: expected 1 or more, found {self.max_new_tokens}",
        )


def main(argv: list[str]) -> None:
    flags = parse(SampleFlags, argv, "llamita sample", card_defaults)
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
        **dataclasses.asdict(flags.sampling),
        end_ids=model.config.eos_token_ids,
    )
    if flags.ids:
        print(" ".join(str(i) for i in new_ids))
        return
    characters = codecs.getincrementaldecoder("utf-8")(errors="replace")
    printed = tokenizer.decode(ids)
    sys.stdout.write(characters.decode(printed))
    for new in new_ids:
        ids.append(new)
        so_far = tokenizer.decode(ids)
        sys.stdout.write(characters.decode(so_far[len(printed) :]))
        sys.stdout.flush()
        printed = so_far
    sys.stdout.write(characters.decode(b"", final=True) + "\n")
    sys.stdout.flush()
    print_next(*export_commands(flags.checkpoint, can_chat=tokenizer.chat_template is not None))


def _prompt_text(argument: str) -> str:
    """A command-line argument as UTF-8 text in any locale. Raises ConfigError."""
    try:
        return os.fsencode(argument).decode("utf-8")
    except UnicodeError as error:
        raise ConfigError(f"--prompt: expected UTF-8 text, found {argument!r}") from error

"""`llamita sample CHECKPOINT`: generates text with a checkpoint, by the simple PyTorch loop."""

from __future__ import annotations

import codecs
import dataclasses
import secrets
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from llamita.cli.command import card_defaults, parse, requires_extra
from llamita.cli.next_command import print_next
from llamita.cli.prompt import DEFAULT_PROMPT, PromptOptions, check_num_samples, print_header, read_prompt, utf8_text
from llamita.commands import export_commands
from llamita.config import Option, check, check_at_most
from llamita.sampling import DEFAULT_BASIC_SAMPLING, MAX_TOKENS, BasicSamplingParams

if TYPE_CHECKING:
    from llamita.tokenizer import Tokenizer


@dataclasses.dataclass(frozen=True)
class SampleFlags:
    """Generate text with a checkpoint in PyTorch; `llamita run` does the same from a model file,
    fast."""

    examples = ("llamita sample runs/my 'One day'", "llamita sample runs/my -n 100 -t 0.7 -s 1 -N 10")

    checkpoint: Annotated[Path, Option(positional=True)]
    """Checkpoint (a Hugging Face folder) or run directory."""
    max_new_tokens: Annotated[int | None, Option(short="n")] = None
    """New tokens to generate. Default: until an end token, or until the context is full."""
    num_samples: Annotated[int, Option(short="N")] = 1
    """Number of texts; each has the next seed."""
    ids: bool = False
    """Print token ids instead of text."""
    prompt: Annotated[PromptOptions, Option(group="prompt")] = DEFAULT_PROMPT
    sampling: BasicSamplingParams = DEFAULT_BASIC_SAMPLING

    def __post_init__(self) -> None:
        self.sampling.check_ranges()
        check_num_samples(self.num_samples, self.sampling.seed)
        check(
            self.max_new_tokens is None or self.max_new_tokens > 0,
            f"--max-new-tokens: expected 1 or more, found {self.max_new_tokens}",
        )
        check_at_most("--max-new-tokens", self.max_new_tokens, MAX_TOKENS)


def main(argv: list[str]) -> None:
    flags = parse(SampleFlags, argv, "llamita sample", card_defaults)
    with requires_extra("train"):
        from llamita.checkpoint import load_model, resolve_checkpoint
        from llamita.model.generate import generate
        from llamita.tokenizer import load_tokenizer
    directory = resolve_checkpoint(flags.checkpoint)
    model, tokenizer = load_model(directory), load_tokenizer(directory)
    text = utf8_text(read_prompt(flags.prompt))
    bos_id = tokenizer.bos_id if tokenizer.begins_with_bos or text == "" else None
    ids = ([] if bos_id is None else [bos_id]) + tokenizer.encode(text)
    context = model.config.max_position_embeddings
    check(bool(ids), f"cannot start: {directory} has no BOS token; give a --prompt")
    check(len(ids) < context, f"the prompt has {len(ids)} tokens, the context only {context}; shorten the prompt")
    seed = flags.sampling.seed
    if seed is None and flags.num_samples > 1:
        seed = secrets.randbits(62)
    for number in range(flags.num_samples):
        sampling = dataclasses.replace(flags.sampling, seed=None if seed is None else seed + number)
        new_ids = generate(
            model, ids, flags.max_new_tokens, **dataclasses.asdict(sampling), end_ids=model.config.eos_token_ids
        )
        if seed is not None and flags.num_samples > 1:
            print_header(number, flags.num_samples, seed + number)
        if flags.ids:
            print(" ".join(str(i) for i in new_ids))
        else:
            _print_text(tokenizer, list(ids), new_ids)
        if flags.num_samples > 1:
            print()
    if not flags.ids:
        sys.stdout.flush()
        print_next(*export_commands(flags.checkpoint, can_chat=tokenizer.chat_template is not None))


def _print_text(tokenizer: Tokenizer, ids: list[int], new_ids: Iterable[int]) -> None:
    """Print the text of the ids, then that of the new ones as they come."""
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

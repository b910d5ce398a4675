"""`finetune --preview`: shows which tokens of an example are trained on and which are masked."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

from rich.console import Console
from rich.text import Text

from llamita.finetune.rendering import Example
from llamita.tokenizer import Tokenizer
from llamita.tokenizer.sentencepiece import CONTROL

TARGET_STYLE, MASKED_STYLE = "bold green", "dim"
OPEN, CLOSE = "«", "»"  # around targets, where there are no colors


def preview_examples(examples: Sequence[Example], tokenizer: Tokenizer, console: Console) -> None:
    """Print examples with their control tokens. Without colors, targets are between « and »."""
    colored = console.color_system is not None
    legend = (
        Text.assemble(("trained on", TARGET_STYLE), " ", ("masked", MASKED_STYLE))
        if colored
        else f"{OPEN}trained on{CLOSE}"
    )
    console.print(legend, highlight=False)
    for example in examples:
        title = f"{example.where}: {example.num_targets} of {example.length} tokens are trained on"
        if example.removed_turns:
            title += f", {example.removed_turns} turns removed"
        console.print(Text(title, style="bold"), soft_wrap=True)
        line = Text()
        for text, is_target in masked_spans(example, tokenizer):
            if colored:
                line.append(text, style=TARGET_STYLE if is_target else MASKED_STYLE)
            else:
                line.append(f"{OPEN}{text}{CLOSE}" if is_target else text)
        console.print(line, soft_wrap=True)


def masked_spans(example: Example, tokenizer: Tokenizer) -> Iterator[tuple[str, bool]]:
    """The example's text, control tokens included, in spans that are all targets or all masked."""
    pieces, types = tokenizer.pieces(), tokenizer.types()
    marked = zip(example.ids.tolist(), example.loss_mask.tolist(), strict=True)
    for is_target, span in itertools.groupby(marked, key=lambda pair: pair[1]):
        text = ""
        ids = [token_id for token_id, _ in span]
        for is_control, run in itertools.groupby(ids, key=lambda token_id: types[token_id] == CONTROL):
            same = list(run)
            text += (
                "".join(pieces[i] for i in same) if is_control else tokenizer.decode(same).decode("utf-8", "replace")
            )
        yield text, is_target

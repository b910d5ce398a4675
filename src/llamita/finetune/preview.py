"""Rendered examples to what a person looks at before training: what is learned stands out, what is masked is dim."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

from rich.console import Console
from rich.text import Text

from llamita.finetune.rendering import Example, RenderCounts
from llamita.tokenizer import Tokenizer
from llamita.tokenizer.sentencepiece import CONTROL

LEARNED_STYLE, MASKED_STYLE = "bold green", "dim"
OPEN, CLOSE = "«", "»"  # around what is learned, where there are no colors


def preview_examples(examples: Sequence[Example], tokenizer: Tokenizer, number: int, console: Console) -> None:
    """Print the first examples, control tokens written out; without colors what is learned stands between « and »."""
    colored = console.color_system is not None
    legend = (
        Text.assemble(("learned", LEARNED_STYLE), " ", ("masked", MASKED_STYLE)) if colored else f"{OPEN}learned{CLOSE}"
    )
    console.print(legend, highlight=False)
    for example in examples[:number]:
        title = f"{example.where}: {int(example.learned[1:].sum())} of {example.num_pairs} tokens are learned"
        if example.cut_turns:
            title += f", {example.cut_turns} turns cut off"
        console.print(Text(title, style="bold"), soft_wrap=True)
        line = Text()
        for text, learned in stretches(example, tokenizer):
            if colored:
                line.append(text, style=LEARNED_STYLE if learned else MASKED_STYLE)
            else:
                line.append(f"{OPEN}{text}{CLOSE}" if learned else text)
        console.print(line, soft_wrap=True)


def stretches(example: Example, tokenizer: Tokenizer) -> Iterator[tuple[str, bool]]:
    """The example's text, control tokens written out, cut where it begins or ends to be learned."""
    pieces, types = tokenizer.pieces(), tokenizer.types()
    marked = list(zip(example.ids.tolist(), example.learned.tolist(), strict=True))
    for learned, stretch in itertools.groupby(marked, key=lambda pair: pair[1]):
        text = ""
        ids = [token_id for token_id, _ in stretch]
        for is_control, run in itertools.groupby(ids, key=lambda token_id: types[token_id] == CONTROL):
            same = list(run)
            text += (
                "".join(pieces[i] for i in same) if is_control else tokenizer.decode(same).decode("utf-8", "replace")
            )
        yield text, learned


def count_lines(counts: RenderCounts) -> list[tuple[str, str]]:
    """What became of the conversations, as rows of a table."""
    return [
        ("conversations", f"{counts.conversations:,}, {counts.kept:,} kept"),
        ("tokens", f"{counts.tokens:,}, {counts.learned_tokens:,} of them learned"),
        *loss_lines(counts),
    ]


def loss_lines(counts: RenderCounts) -> list[tuple[str, str]]:
    """What of the conversations is not used, and why."""
    rows = []
    if counts.cut:
        rows.append(("cut", f"{counts.cut:,} conversations at a turn's end, {counts.cut_turns:,} turns left out"))
    if counts.too_long:
        rows.append(("too long", f"{counts.too_long:,} left out, the first: {counts.first_too_long}"))
    if counts.unanswered:
        rows.append(("unanswered", f"{counts.unanswered:,} last questions without an answer left out"))
    return rows

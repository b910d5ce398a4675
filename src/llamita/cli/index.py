"""`llamita index STORE`: makes the index of a token store, in which `llamita trace` finds sentences."""

from __future__ import annotations

import dataclasses
import sys
import time
from pathlib import Path
from typing import Annotated

from llamita.cli.command import parse, requires_extra
from llamita.cli.next_command import print_next
from llamita.cli.progress import progress_bars
from llamita.commands import command_line
from llamita.config import Option, check
from llamita.console import format_bytes
from llamita.errors import clean_line

MIN_MEMORY, MAX_MEMORY = 1, 1 << 20


@dataclasses.dataclass(frozen=True)
class IndexFlags:
    """Index a token store, so that `llamita trace` finds any sentence in it.

    The index is written to STORE/index, about one byte for each byte of text. All tokens are checked
    on the way. The store is not changed.
    """

    examples = ("llamita index tokens", "llamita index tokens --memory 4000")

    store: Annotated[Path, Option(positional=True)]
    """Token store of `llamita prepare`."""
    memory: Annotated[int, Option("MB")] = 1024
    """Memory to use at most, besides the store. A larger text becomes several parts, and a search
    takes as many times as long."""

    def __post_init__(self) -> None:
        check(
            MIN_MEMORY <= self.memory <= MAX_MEMORY,
            f"--memory: expected {MIN_MEMORY} to {MAX_MEMORY:,}, found {str(self.memory)[:60]}",
        )


def main(argv: list[str]) -> None:
    flags = parse(IndexFlags, argv, "llamita index")
    with requires_extra("train"):
        from llamita.data.store_index import FOLDER, IndexPlan, build_store_index

    def announce(plan: IndexPlan) -> None:
        print(
            f"{plan.num_tokens:,} tokens of {plan.text_bytes:,} bytes: {plan.num_shards:,} "
            f"part{'' if plan.num_shards == 1 else 's'}, at most {format_bytes(plan.memory_bytes)} of memory, "
            f"{format_bytes(plan.disk_bytes)} on disk",
            file=sys.stderr,
        )

    started = time.monotonic()
    with progress_bars() as progress:
        made = build_store_index(flags.store, max_memory_bytes=flags.memory << 20, announce=announce, progress=progress)
    seconds = max(time.monotonic() - started, 1e-3)
    each = made.disk_bytes / max(made.num_tokens, 1)
    print(
        clean_line(
            f"{flags.store / FOLDER}: written in {seconds:.1f} s ({made.text_bytes / 1e6 / seconds:.1f} MB/s): "
            f"{format_bytes(made.disk_bytes)}, {each:.2f} bytes per token"
        )
    )
    print_next(command_line("trace", flags.store, "A sentence."), file=sys.stdout)

"""`llamita prepare SOURCE... --out DIR`: turns text into a token store, with progress and a
summary."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from llamita.cli.command import parse, requires_extra
from llamita.config import Option, PrepareConfig
from llamita.user_cache import user_cache

if TYPE_CHECKING:
    from llamita.data.prepare import PrepareReport, SplitReport

Show = Callable[[str, int, int], None]  # what is being done, bytes done, bytes in all


@dataclasses.dataclass(frozen=True)
class Flags(PrepareConfig):
    """Turn text into a token store: a tokenizer, and the tokens of training and held-out
    documents."""

    examples = (
        "llamita prepare my.txt -o tokens",
        "llamita prepare books/ --val-fraction 0.1 -o tokens",
    )

    sources: Annotated[tuple[str, ...], Option("SOURCE...", positional=True)]
    out: Annotated[Path, Option(short="o")]
    download_dir: Annotated[Path | None, Option(group="advanced")] = None
    """Where to keep the downloaded tinystories. Default: llamita/tinystories in the user's
    cache."""
    endpoint: Annotated[str | None, Option("URL", group="advanced")] = None
    """Hugging Face endpoint for tinystories. Default: $HF_ENDPOINT, else https://huggingface.co."""


def main(argv: list[str]) -> None:
    """Prepare, and print what went in and what came out."""
    flags = parse(Flags, argv, "llamita prepare")
    with requires_extra("train"):
        from llamita.data.prepare import prepare
    config = PrepareConfig(**{field.name: getattr(flags, field.name) for field in dataclasses.fields(PrepareConfig)})
    with progress_bars() as show:
        if flags.sources == ("tinystories",):
            config = dataclasses.replace(config, **_tinystories(flags, show))
        report = prepare(config, show)
    print("\n".join(summary(report)))
    for leftover in sorted(config.out.parent.glob(f".{config.out.name}.*.partial")):
        print(f"note: {leftover} was left by a run that was killed, or is being written; it can go", file=sys.stderr)


def summary(report: PrepareReport) -> list[str]:
    """What went in and what came out, in lines."""
    if report.reused:
        first = f"{report.out} is there already, made from the same text with the same flags; nothing was done"
    else:
        speed = report.source_bytes / 1e6 / report.seconds
        first = f"{report.out}: token store, made in {report.seconds:.1f} s ({speed:.1f} MB/s)"
    where = _count(report.files, "file") if report.files else "generated stories"
    hidden = f" ({report.hidden_files:,} hidden ones passed over)" if report.hidden_files else ""
    return [
        first,
        f"  vocabulary  {report.vocab_size:,} tokens: {report.vocabulary}; encoded by {report.encoded_by}",
        f"  source      {report.source_bytes:,} bytes in {where}{hidden}: {_count(report.documents, 'document')}",
        _split_line("train", report.train),
        _split_line("val", report.val),
        f"  dropped     {_count(report.duplicate_documents, 'duplicate')} ({report.duplicate_bytes:,} bytes), "
        f"{report.empty_documents:,} empty",
        f"  not text    {report.separator_bytes:,} bytes of separators, {report.whitespace_bytes:,} of whitespace "
        f"around documents, {report.container_bytes:,} of file format",
    ]


def _split_line(name: str, split: SplitReport) -> str:
    return (
        f"  {name:<10}  {_count(split.documents, 'document')}, {split.tokens:,} tokens, {split.text_bytes:,} bytes: "
        f"{split.text_bytes / split.tokens:.2f} bytes a token"
    )


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}" + ("" if number == 1 else "s")


def _tinystories(flags: Flags, show: Show) -> dict[str, Any]:
    """Download what is not there yet; returns the configuration's fields that follow: sources,
    val."""
    from llamita.config import check
    from llamita.data.tinystories import ENDPOINT, download_tinystories

    check(
        not flags.val and flags.val_fraction is None,
        "prepare tinystories: --val and --val-fraction do not go with it: the data set has its own held-out file",
    )
    directory = flags.download_dir or user_cache("tinystories")
    endpoint = flags.endpoint or os.environ.get("HF_ENDPOINT") or ENDPOINT
    train, val = download_tinystories(directory, endpoint=endpoint, progress=show)
    return {"sources": (str(train),), "val": (str(val),)}


@contextlib.contextmanager
def progress_bars() -> Iterator[Show]:
    """Progress bars on stderr, one for each step; nothing if stderr is not a terminal."""
    from rich.console import Console

    from llamita.cli.byte_progress import byte_bars

    with byte_bars(Console(stderr=True), transient=False) as progress:
        tasks: dict[str, Any] = {}

        def show(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = progress.add_task(what, total=total)
            progress.update(tasks[what], completed=done, total=total)

        yield show

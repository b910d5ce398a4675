"""`llamita prepare SOURCE... --out DIR`: turns text into a token store."""

from __future__ import annotations

import dataclasses
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from llamita.cli.command import parse, print_note, requires_extra
from llamita.cli.next_command import print_next
from llamita.cli.progress import progress_bars
from llamita.commands import train_commands
from llamita.config import Option, PrepareConfig, check
from llamita.console import count_of
from llamita.data.personal_data import LABELS
from llamita.errors import clean_line
from llamita.progress import Progress
from llamita.user_cache import user_cache

if TYPE_CHECKING:
    from llamita.data.prepare import PrepareReport, SplitReport


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
    flags = parse(Flags, argv, "llamita prepare")
    with requires_extra("train"):
        from llamita.data.prepare import prepare
    config = PrepareConfig(**{field.name: getattr(flags, field.name) for field in dataclasses.fields(PrepareConfig)})
    if flags.tokenizer is not None:
        _note_obstacle(flags.tokenizer)
    with progress_bars(in_bytes=True, transient=False) as progress:
        if flags.sources == ("tinystories",):
            config = dataclasses.replace(config, **_tinystories(flags, progress))
        report = prepare(config, progress)
    print("\n".join(map(clean_line, summary(report))))
    print_next(*train_commands([config.out], config.out.resolve().name), file=sys.stdout)


def _note_obstacle(path: Path) -> None:
    """Say before the work that models with this tokenizer cannot become a .gguf."""
    from llamita.tokenizer import load_tokenizer
    from llamita.tokenizer.gguf import gguf_obstacle

    if obstacle := gguf_obstacle(load_tokenizer(path)):
        print_note(f"a model with tokenizer {path} cannot be exported as .gguf: {obstacle}")


def summary(report: PrepareReport) -> list[str]:
    """What was read and what was written, one line per item."""
    if report.reused:
        first = f"{report.out} exists already, made from the same text with the same options; nothing to do"
    else:
        speed = report.source_bytes / 1e6 / report.seconds
        first = f"{report.out}: token store, written in {report.seconds:.1f} s ({speed:.1f} MB/s)"
    cleaned = []
    if report.line_ends:
        cleaned.append(f"  line ends   {report.line_ends:,} CRLF or CR became LF (--keep-line-ends keeps them)")
    if report.dropped_lines:
        cleaned.append(
            f"  lines       {count_of(report.dropped_lines, 'line')} of --drop-lines removed "
            f"({report.dropped_line_bytes:,} bytes)"
        )
    if masked := [f"{LABELS[kind]}: {count:,}" for kind in LABELS if (count := getattr(report, f"masked_{kind}"))]:
        change = f"{abs(report.masked_bytes):,} bytes {'fewer' if report.masked_bytes >= 0 else 'more'}"
        cleaned.append(f"  masked      {', '.join(masked)} ({change})")
    if report.byte_order_marks:
        cleaned.append(f"  BOMs        {count_of(report.byte_order_marks, 'byte order mark')} inside files removed")
    if report.converted:
        cleaned.append(f"  encoding    {report.converted}; --encoding names another")
    if report.damaged:
        cleaned.append(f"  damaged     {report.damaged}")
    if report.document_files:
        cleaned.append(f"  documents   text of {report.document_files}")
    if report.unread:
        cleaned.append(f"  not read    {report.unread_bytes:,} bytes: {report.unread[0]}")
        cleaned += [f"              {line}" for line in report.unread[1:]]
    if report.left_out:
        cleaned.append(f"  left out    {report.left_out}")
    near = ""
    if report.near_duplicates == "drop":
        held_out = f", {report.near_held_out:,} of held-out documents" if report.near_held_out else ""
        count = count_of(report.near_duplicate_documents, "near-duplicate")
        near = f"{count} ({report.near_duplicate_bytes:,} bytes{held_out}), "
    if report.near_duplicates == "report":
        cleaned.append(f"  near-dup.   {_near_line(report)}")
    where = count_of(report.files, "file") if report.files else "generated stories"
    hidden = f" ({report.hidden_files:,} hidden ones skipped)" if report.hidden_files else ""
    lines = [
        first,
        f"  vocabulary  {report.vocab_size:,} tokens: {report.vocabulary}; encoded by {report.encoded_by}",
        f"  source      {report.source_bytes:,} bytes in {where}{hidden}: {count_of(report.documents, 'document')}",
        _split_line("train", report.train),
        _split_line("val", report.val),
        f"  dropped     {count_of(report.duplicate_documents, 'duplicate')} ({report.duplicate_bytes:,} bytes), "
        f"{near}{report.empty_documents:,} empty",
        f"  not text    {report.separator_bytes:,} bytes of separators, {report.whitespace_bytes:,} of whitespace "
        f"around documents, {_format_bytes(report.container_bytes)}",
        *cleaned,
    ]
    if report.skipped_files:
        more = report.skipped_files - len(report.skipped_paths)
        names = ", ".join(report.skipped_paths) + (f" and {more:,} more" if more else "")
        lines.append(f"  skipped     {count_of(report.skipped_files, 'file')} of unknown types: {names}")
    return lines


def _split_line(name: str, split: SplitReport) -> str:
    return (
        f"  {name:<10}  {count_of(split.documents, 'document')}, {split.tokens:,} tokens, {split.text_bytes:,} bytes: "
        f"{split.text_bytes / split.tokens:.2f} bytes per token"
    )


def _near_line(report: PrepareReport) -> str:
    """What --near-duplicates report found."""
    found = f"{count_of(report.near_duplicates_kept, 'document')} repeat another for the most part"
    if not report.near_held_out:
        return f"{found}, but no training document a held-out one"
    return (
        f"{found}, {report.near_held_out:,} of them training documents a held-out one: the held-out loss will look "
        "too good; --near-duplicates drop"
    )


def _format_bytes(container_bytes: int) -> str:
    if container_bytes >= 0:
        return f"{container_bytes:,} of file format"
    return f"{-container_bytes:,} fewer in the files, compressed or in other encodings, than as UTF-8"


def _tinystories(flags: Flags, progress: Progress) -> dict[str, Any]:
    """Download the files that are missing; returns the fields of PrepareConfig that name them."""
    from llamita.data.tinystories import ENDPOINT, download_tinystories

    check(
        not flags.val and flags.val_fraction is None,
        "prepare tinystories: --val and --val-fraction do not apply: the data set has its own held-out file",
    )
    directory = flags.download_dir or user_cache("tinystories")
    endpoint = flags.endpoint or os.environ.get("HF_ENDPOINT") or ENDPOINT
    train, val = download_tinystories(directory, endpoint=endpoint, progress=progress)
    return {"sources": (str(train),), "val": (str(val),)}

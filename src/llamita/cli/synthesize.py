"""`llamita synthesize DATA... --out FILE`: makes conversations for fine-tuning of documents."""

from __future__ import annotations

import dataclasses
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from llamita.cli.command import parse, print_note, requires_extra
from llamita.cli.progress import progress_bars
from llamita.config import Option, SynthesizeConfig
from llamita.console import print_table
from llamita.errors import clean_line

if TYPE_CHECKING:
    from llamita.synthesize.ask import Estimate
    from llamita.synthesize.run import Result

KEY_VARIABLE = "OPENAI_API_KEY"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Flags(SynthesizeConfig):
    """Make conversations for fine-tuning of documents: by the model behind an endpoint, or by
    rules.

    Each row has the file and the passage that it was made of. Answers are checked against the
    passage.
    """

    examples = (
        "llamita synthesize docs -o qa.jsonl --rules",
        "llamita synthesize docs -o qa.jsonl --endpoint URL -m NAME",
    )

    sources: Annotated[tuple[str, ...], Option("DATA...", positional=True)]
    out: Annotated[Path, Option(short="o")]
    api_key_file: Annotated[Path | None, Option("PATH", group="model")] = None
    """File with the API key. Default: $OPENAI_API_KEY, if it is set."""


def main(argv: list[str]) -> int:
    flags = parse(Flags, argv, "llamita synthesize")
    config = SynthesizeConfig(
        **{field.name: getattr(flags, field.name) for field in dataclasses.fields(SynthesizeConfig)}
    )
    config.check_complete()
    from llamita.synthesize.prompts import write_prompts
    from llamita.synthesize.run import cache_of, synthesize

    if config.prompts is not None and not os.path.lexists(config.prompts):
        write_prompts(config.prompts)
        print(clean_line(f"{config.prompts}: the built-in prompts; edit them, and run the same command again"))
        return 0
    api_key = None if config.rules else _api_key(flags)
    try:
        with requires_extra("train"), progress_bars() as progress:  # a token store's tokenizer
            result = synthesize(
                config,
                api_key=api_key,
                progress=progress,
                before=lambda result, estimate: _print_estimate(config, result, estimate),
            )
    except KeyboardInterrupt:
        if config.rules or not cache_of(config.out).exists():
            raise
        print(
            f"interrupted; the answers so far are in {clean_line(str(cache_of(config.out)))}: the same command goes on",
            file=sys.stderr,
        )
        return 130
    for note in result.notes:
        print_note(note)
    if config.dry_run and not config.rules:
        return 0
    print_table(_summary(config, result), sys.stdout)
    if failed := result.asked.failed:
        print_note(f"{len(failed):,} requests failed; the same command asks again; the first: {failed[0]}")
    return 0


def _api_key(flags: Flags) -> str | None:
    if flags.api_key_file is not None:
        from llamita.cli.serve import read_keys

        return read_keys(flags.api_key_file)[0]
    return os.environ.get(KEY_VARIABLE) or None


def _print_estimate(config: SynthesizeConfig, result: Result, estimate: Estimate) -> None:
    """What will be asked, before it is."""
    new = estimate.requests - estimate.cached
    cost = _cost(config, estimate.prompt_tokens, estimate.max_completion_tokens)
    print(
        f"asking {new:,} of {estimate.requests:,} requests about {result.passages:,} passages; "
        f"{estimate.cached:,} are answered in {clean_line(str(config.out))}.answers",
        f"about {estimate.prompt_tokens:,} tokens to read, at most {estimate.max_completion_tokens:,} to write"
        + (f", at most {cost} to pay" if cost else ""),
        sep="\n",
        file=sys.stderr,
        flush=True,
    )


def _cost(config: SynthesizeConfig, read: int, written: int) -> str:
    if config.price is None:
        return ""
    return f"{(read * config.price[0] + written * config.price[1]) / 1e6:,.4f}"


def _summary(config: SynthesizeConfig, result: Result) -> list[tuple[str, str]]:
    documents = result.documents
    rows = [
        (title, f"{counts.total():,} in {path}: {_listed(counts)}")
        for title, path, counts in (("rows", config.out, result.rows), ("held out", config.val_out, result.val_rows))
        if path is not None
    ]
    rows += [
        ("documents", f"{documents.documents:,}, {documents.held_out:,} held out, {documents.duplicates:,} duplicates"),
    ]
    if not config.rules:
        asked = result.asked
        about = "" if asked.usage_known else "about "
        cost = _cost(config, asked.prompt_tokens, asked.completion_tokens)
        requests = (
            f"{asked.requests:,} answered, {asked.retries:,} sent again, {len(asked.failed):,} failed, "
            f"{asked.cached:,} in the cache"
        )
        tokens = f"{about}{asked.prompt_tokens:,} read, {about}{asked.completion_tokens:,} written"
        rows += [
            ("passages", f"{result.passages:,}"),
            ("requests", requests),
            ("tokens", tokens + (f"; cost {about}{cost}" if cost else "")),
        ]
    if result.damaged_lines:
        rows.append(("cache", f"{result.damaged_lines:,} damaged lines left out"))
    rows.append(("asked before", f"{result.duplicates:,} dropped; {result.held_out_questions:,} that are held out"))
    rows += [("dropped", f"{count:,} {why}") for why, count in result.dropped.most_common()]
    return rows


def _listed(counts: dict[str, int]) -> str:
    return ", ".join(f"{count:,} {kind}" for kind, count in sorted(counts.items()))

"""`llamita inspect PATH`: shows what a model file, a checkpoint, a tokenizer, a token store or text
contains."""

from __future__ import annotations

import dataclasses
import json
import sys
import typing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from llamita.atomic import atomic_write_bytes
from llamita.cli.command import parse, requires_extra
from llamita.cli.next_command import print_next
from llamita.cli.progress import progress_bars
from llamita.commands import command_line, export_commands, train_commands, use_commands
from llamita.config import Architecture, Option, check
from llamita.console import count_of, print_table
from llamita.errors import clean_line

if TYPE_CHECKING:
    from llamita.convert.inspect import Inspection
    from llamita.data.survey import Survey


@dataclasses.dataclass(frozen=True)
class InspectFlags:
    """Show what text, a token store, a GGUF, a llama2.c file, a checkpoint, a .safetensors or a
    tokenizer contains.

    Of text: languages, lengths, duplicates and near-duplicates, lines that repeat, odd characters
    and personal data.
    """

    examples = (
        "llamita inspect my_texts --html data.html",
        "llamita inspect my.gguf",
        "llamita inspect runs/my --tensors",
    )

    paths: Annotated[tuple[str, ...], Option("PATH...", positional=True)]
    """File or folder; of text, also several, as for `llamita prepare`."""
    tensors: bool = False
    """List every tensor with its type, shape and size in bytes."""
    html: Annotated[Path | None, Option("FILE", group="text")] = None
    """Write a page about the text, or the documents of a token store."""
    lines: Annotated[Path | None, Option("FILE", group="text")] = None
    """Write the lines that repeat over documents, for `llamita prepare --drop-lines`."""
    json: Annotated[bool, Option(group="text")] = False
    """Print the numbers about the text as one line of JSON."""
    separator: Annotated[str, Option(group="text")] = "<|endoftext|>"
    """What ends a document in text files, and in the text of a PDF or the like."""
    split_on: Annotated[Literal["separator", "lines", "blank-lines", "file"], Option("RULE", group="text")] = (
        "separator"
    )
    """Where documents of these files end: separator, lines (each line is one), blank-lines or file."""
    text_key: Annotated[str, Option("NAME", group="text")] = "text"
    """Key (.jsonl, .json) or column (.csv, .tsv, .parquet) that holds the text. Of rows without it,
    all text is read."""
    encoding: Annotated[str | None, Option("NAME", group="text")] = None
    """Encoding of all files. Default: UTF-8, or what each file is recognized as."""

    def __post_init__(self) -> None:
        check(len(self.paths) > 0, "inspect: no PATH given: expected a file or a folder")
        check(
            self.html is None or self.html.suffix.lower() in (".html", ".htm"),
            f"inspect: --html: expected a name that ends with .html, found {self.html}",
        )


def main(argv: list[str]) -> None:
    flags = parse(InspectFlags, argv, "llamita inspect")
    from llamita.data.survey import is_text

    paths = [Path(path) for path in flags.paths]
    text = [is_text(path) for path in paths]
    if all(text):
        check(not flags.tensors, f"inspect: --tensors: {paths[0]} is text, which has no tensors")
        _inspect_text(flags)
        return
    check(len(paths) == 1, f"inspect: expected one PATH, or several of text; {paths[text.index(False)]} is no text")
    from llamita.convert.inspect import inspect

    with requires_extra("train"):  # for folders and tokenizers
        found = inspect(paths[0])
    is_store = found.kind == "token store"
    is_about_text = flags.html is not None or flags.lines is not None or flags.json
    check(is_store or not is_about_text, f"inspect: --html, --lines, --json: {paths[0]} is no text")
    if flags.json:
        _inspect_text(flags, paths[0])
        return
    print(clean_line(f"{found.path}: {found.kind}, {found.num_bytes:,} bytes"))
    print_table(found.properties, sys.stdout)
    if is_about_text:
        _inspect_text(flags, paths[0])
    if found.tensors:
        _print_tensors(found, flags.tensors)
    if commands := _next_commands(found):
        print_next(*commands, file=sys.stdout)


# ---- text


def _inspect_text(flags: InspectFlags, store: Path | None = None) -> None:
    from llamita.data.survey import survey, survey_store

    with requires_extra("train"), progress_bars(in_bytes=store is None) as progress:
        if store is not None:
            found = survey_store(store, progress)
        else:
            found = survey(
                flags.paths,
                text_key=flags.text_key,
                separator=flags.separator,
                split_on=flags.split_on,
                encoding=flags.encoding,
                progress=progress,
            )
    rows = text_rows(found)
    if flags.html is not None:
        from llamita.report.data_page import write_data_page

        write_data_page(found, flags.html)
        rows.append(("page", str(flags.html)))
    if flags.lines is not None:
        atomic_write_bytes(flags.lines, "".join(f"{line}\n" for line, _ in found.lines).encode("utf-8"))
        rows.append(("lines", f"{flags.lines}: {len(found.lines):,}; delete what should stay"))
    if flags.json:
        print(json.dumps(dataclasses.asdict(found)))
        return
    if store is None:
        print(
            clean_line(f"{', '.join(found.paths)}: text, {found.file_bytes:,} bytes in {count_of(found.files, 'file')}")
        )
    print_table(rows, sys.stdout)
    if store is None:
        print_next(*_commands_for_text(flags, found), file=sys.stdout)


def text_rows(found: Survey) -> list[tuple[str, str]]:
    """A survey as a table for the terminal."""
    shortest, low, median, high, longest = found.quantiles
    rows = [
        ("documents", f"{found.documents:,}, {found.num_bytes:,} bytes of text; {found.empty_documents:,} empty"),
        ("what", ", ".join(f"{name} ({count:,})" for name, count in found.forms.items())),
        ("languages", ", ".join(_parts(found))),
        ("characters", f"median {median:,}; nine in ten {low:,} to {high:,}; all {shortest:,} to {longest:,}"),
        ("duplicates", f"{found.duplicates.documents:,} exact, {found.duplicates.num_bytes:,} bytes"),
        ("", f"{found.near_duplicates.documents:,} near, {found.near_duplicates.num_bytes:,} bytes"),
        ("lines", f"{len(found.lines):,} that repeat over documents" + _first_line(found)),
        ("personal", ", ".join(f"{each.name}: {each.count:,}" for each in found.personal) or "none found"),
        ("odd", ", ".join(f"{each.name}: {each.count:,}" for each in found.odd_characters[:4]) or "no odd characters"),
    ]
    if found.near_held_out:
        rows.insert(6, ("", f"{found.near_held_out:,} of them in training, of a held-out document"))
    if found.skipped_files:
        rows.append(("skipped", f"{count_of(found.skipped_files, 'file')}, hidden or of unknown types"))
    rows += [("problem", problem) for problem in found.problems[:MAX_PROBLEMS]]
    if len(found.problems) > MAX_PROBLEMS:
        rows.append(("", f"{len(found.problems) - MAX_PROBLEMS:,} more"))
    return rows


MAX_PROBLEMS = 8


def _parts(found: Survey) -> list[str]:
    shares = found.languages[:6]
    return [f"{share.name} {100 * share.num_bytes / found.num_bytes:.3g} %" for share in shares]


def _first_line(found: Survey) -> str:
    return f", such as {found.lines[0][0][:60]!r} in {found.lines[0][1]:,}" if found.lines else ""


def _commands_for_text(flags: InspectFlags, found: Survey) -> tuple[str, ...]:
    if found.main_form in ("conversations", "preferences", "questions and answers"):
        more = ("--preference", "dpo") if found.main_form == "preferences" else ()
        return (command_line("finetune", "CHECKPOINT", *flags.paths, *more, "--out", "RUN"),)
    more = ("--near-duplicates", "drop") if found.near_duplicates.documents else ()
    if found.personal:
        more = (*more, "--mask-personal-data")
    if flags.lines is not None and found.lines:
        more = (*more, "--drop-lines", str(flags.lines))
    if flags.split_on != "separator":
        more = (*more, "--split-on", flags.split_on)
    return (command_line("prepare", *flags.paths, *more, "--out", "tokens"),)


# ---- models


def _next_commands(found: Inspection) -> tuple[str, ...]:
    if found.kind == "token store":
        return train_commands([found.path], found.path.resolve().name)
    if found.kind == "checkpoint":
        return export_commands(found.path)
    known = dict(found.properties)
    tokenizer = found.path.with_name("tokenizer.bin")
    if found.kind.startswith("llama2.c model") and tokenizer.is_file():
        return use_commands(found.path, tokenizer=tokenizer)
    if known.get("general.architecture") in typing.get_args(Architecture):
        is_adapter = known.get("general.type") == "adapter"
        return () if is_adapter else use_commands(found.path, can_chat="tokenizer.chat_template" in known)
    return ()


def _print_tensors(found: Inspection, each: bool) -> None:
    from llamita.convert.inspect import type_counts

    print(f"{len(found.tensors):,} tensors, {found.num_parameters:,} elements")
    if each:
        rows = [(t.name, t.type, " × ".join(f"{n:,}" for n in t.shape), f"{t.num_bytes:,}") for t in found.tensors]
    else:
        rows = [
            (name, f"{count:,} tensors", f"{size:,} bytes", f"{8 * size / numbers:.2f} bits per element")
            for name, count, size, numbers in type_counts(found.tensors)
        ]
    print_table(rows, sys.stdout)

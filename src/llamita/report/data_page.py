"""data.html: one self-contained page about text, from a survey."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path

from llamita.atomic import atomic_write_bytes
from llamita.commands import command_line
from llamita.console import format_count
from llamita.data.survey import MAX_LISTED, Found, Share, Survey
from llamita.report.page import lang, page, tiles

_MAX_ROWS = 20  # of a table of shares


def write_data_page(survey: Survey, out: Path) -> None:
    """Write the page. Raises OutputError."""
    atomic_write_bytes(out, build_data_page(survey).encode("utf-8", "replace"))


def build_data_page(survey: Survey) -> str:
    """The whole page."""
    body = [
        f'<p class="soft">{escape(_describe_files(survey))}</p>',
        _tiles(survey),
        "<main>",
        '<div class="columns">',
        _shares("Languages", "language", survey.languages, survey.num_bytes),
        _shares("Lengths", "characters", _lengths(survey.lengths), survey.num_bytes),
        "</div>",
        _shares("Sources", "from", survey.sources, survey.num_bytes),
        _problems(survey),
        _near_duplicates(survey),
        _lines(survey),
        _found(
            "Personal data",
            "kind",
            survey.personal,
            "<code>prepare --mask-personal-data</code> replaces it by masks such as [EMAIL].",
        ),
        _found("Odd characters", "character", survey.odd_characters, ""),
        _samples(survey),
        "</main>",
    ]
    return page(", ".join(survey.paths), body, command_line("inspect", *survey.paths, "--html", "data.html"))


def _describe_files(survey: Survey) -> str:
    kinds = ", ".join(f"{share.documents:,} {share.name}" for share in survey.kinds)
    skipped = f"{survey.skipped_files:,} hidden or of unknown types skipped" if survey.skipped_files else ""
    return " · ".join(filter(None, (f"{survey.file_bytes:,} bytes in files: {kinds}" if kinds else "", skipped)))


def _tiles(survey: Survey) -> str:
    _, low, median, high, _ = survey.quantiles
    repeated = survey.duplicates.documents, survey.near_duplicates.documents
    found = [
        (format_count(survey.documents), "documents"),
        (format_count(survey.num_bytes), "bytes of text, UTF-8"),
        (f"{median:,}", f"characters, median ({low:,} to {high:,} for nine in ten)"),
        (_percent(repeated[0], survey.documents), f"exact duplicates ({repeated[0]:,})"),
        (_percent(repeated[1], survey.documents), f"near-duplicates ({repeated[1]:,})"),
        (format_count(sum(each.count for each in survey.personal)), "pieces of personal data"),
    ]
    return tiles(found)


def _percent(part: int, whole: int) -> str:
    return f"{100 * part / whole:.2g} %" if part else "0"


def _lengths(shares: Sequence[Share]) -> list[Share]:
    """With ranges as names."""
    return [
        Share(f"{int(share.name):,} to {2 * int(share.name) - 1:,}", share.documents, share.num_bytes)
        for share in shares
    ]


def _shares(title: str, what: str, shares: Sequence[Share], num_bytes: int) -> str:
    rows = [
        f"<tr><td>{escape(share.name)}</td><td>{share.documents:,}</td><td>{share.num_bytes:,}</td>"
        f'<td class="bar"><i style="width:{100 * share.num_bytes / num_bytes:.2f}%"></i></td></tr>'
        for share in shares[:_MAX_ROWS]
    ]
    if len(shares) > _MAX_ROWS:
        rest = shares[_MAX_ROWS:]
        documents, size = sum(share.documents for share in rest), sum(share.num_bytes for share in rest)
        rows.append(
            f'<tr class="soft"><td>{len(rest):,} more</td><td>{documents:,}</td><td>{size:,}</td><td></td></tr>'
        )
    head = f"<tr><th>{what}</th><th>documents</th><th>bytes of text</th><th></th></tr>"
    return f"<section><h2>{title}</h2>{_table(head, rows)}</section>"


def _table(head: str, rows: Iterable[str]) -> str:
    return f'<div class="scroll"><table class="numbers shares"><thead>{head}</thead>{"".join(rows)}</table></div>'


def _problems(survey: Survey) -> str:
    if not survey.problems:
        return ""
    items = "".join(f"<li>{escape(problem)}</li>" for problem in survey.problems[:MAX_LISTED])
    more = len(survey.problems) - MAX_LISTED
    return f'<h2 class="warn">Not read, or converted</h2><ul>{items}</ul>' + (
        f"<p>{more:,} more</p>" if more > 0 else ""
    )


def _near_duplicates(survey: Survey) -> str:
    title = "<h2>Near-duplicates</h2>"
    if not survey.near_duplicates.documents:
        return f"{title}<p>No document repeats another for the most part.</p>"
    across = ""
    if survey.near_held_out:
        across = (
            f'<p class="warn">{survey.near_held_out:,} training documents repeat a held-out one: the held-out loss '
            "looks better than it is.</p>"
        )
    about = (
        f"<p>{survey.near_duplicates.documents:,} documents ({survey.near_duplicates.num_bytes:,} bytes) share most of "
        "their phrases with another. <code>prepare --near-duplicates drop</code> keeps one of each group, and "
        "of a group with a held-out document a held-out one.</p>"
    )
    groups = "".join(
        f'<details><summary><span class="when"><b>{group.documents:,}</b> like</span>'
        f'<span class="start"{lang(group.start)}>{escape(" ".join(group.start.split()))}</span></summary>'
        f'<div class="side-by-side"><div class="sample"{lang(group.start)}>{escape(group.start)} …</div>'
        f'<div class="sample"{lang(group.like)}>{escape(group.like)} …</div></div></details>'
        for group in survey.groups
    )
    return title + across + about + groups


def _lines(survey: Survey) -> str:
    if not survey.lines:
        return ""
    rows = [
        f"<tr><td{lang(line)}>{escape(line)}</td><td>{count:,}</td></tr>" for line, count in survey.lines[:MAX_LISTED]
    ]
    more = len(survey.lines) - MAX_LISTED
    command = command_line("inspect", *survey.paths, "--lines", "lines.txt")
    return (
        "<h2>Lines that repeat</h2><p>Menus and notices teach nothing; headings belong to the form. "
        f"<code>{escape(command)}</code> writes the list; delete from it what should stay, and "
        "<code>prepare --drop-lines lines.txt</code> removes the rest.</p>"
        + _table("<tr><th>line</th><th>documents</th></tr>", rows)
        + (f'<p class="soft">{more:,} more</p>' if more > 0 else "")
    )


def _found(title: str, what: str, found: Sequence[Found], advice: str) -> str:
    if not found:
        return f"<h2>{title}</h2><p>None found.</p>"
    rows = [
        f"<tr><td>{escape(each.name)}</td><td>{each.count:,}</td><td>{each.documents:,}</td>"
        f"<td>{escape(', '.join(each.examples))}</td></tr>"
        for each in found
    ]
    examples = "such as" if any(each.examples for each in found) else ""
    head = f"<tr><th>{what}</th><th>found</th><th>documents</th><th>{examples}</th></tr>"
    return f"<h2>{title}</h2>" + (f"<p>{advice}</p>" if advice else "") + _table(head, rows)


def _samples(survey: Survey) -> str:
    items = "".join(
        f'<details{" open" if index == 0 else ""}><summary><span class="when">{escape(sample.source)} · '
        f'{sample.characters:,} characters</span><span class="start"{lang(sample.text)}>'
        f"{escape(' '.join(sample.text[:160].split()))}</span></summary>"
        f'<div class="sample"{lang(sample.text)}>{escape(sample.text)}{" …" * (sample.characters > len(sample.text))}'
        "</div></details>"
        for index, sample in enumerate(survey.samples)
    )
    return f"<h2>Samples, chosen at random</h2>{items}"

"""What all pages share: the frame with style and script, large numbers, languages of text."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from importlib.resources import files

from llamita import __version__
from llamita.data.languages import is_simplified


def page(title: str, body: Sequence[str], command: str) -> str:
    """A self-contained page with the style and script of all reports. command: writes it again."""
    body = [
        f"<h1>{escape(title)}</h1>",
        *body,
        f"<footer>Written by llamita {__version__}. To update: <code>{escape(command)}</code></footer>",
    ]
    style, script = (_asset(name) for name in ("page.css", "page.js"))
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)} · llamita</title>\n<style>\n{style}</style>\n</head>\n<body>\n"
        + "\n".join(part for part in body if part)
        + f"\n<script>\n{script}</script>\n</body>\n</html>\n"
    )


def _asset(name: str) -> str:
    return files("llamita.report").joinpath(name).read_text(encoding="utf-8")


def tiles(found: Sequence[tuple[str, str]]) -> str:
    """Large numbers, each with what it is."""
    shown = "".join(
        f'<div class="tile"><b>{escape(value)}</b><span>{escape(what)}</span></div>' for value, what in found
    )
    return f'<div class="tiles">{shown}</div>' if found else ""


def lang(text: str) -> str:
    """The attribute that chooses the shapes of Chinese, Japanese and Korean characters; else ""."""
    han = [letter for letter in text if "\u3400" <= letter <= "\u9fff"]
    if any("\u3041" <= letter <= "\u30ff" for letter in text):
        return ' lang="ja"'
    if sum("\uac00" <= letter <= "\ud7af" for letter in text) > len(han):
        return ' lang="ko"'
    if not han:
        return ""
    return ' lang="zh-Hans"' if is_simplified("".join(han)) else ' lang="zh-Hant"'

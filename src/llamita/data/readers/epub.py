"""Reads books: the chapters of an .epub in reading order, without its table of contents."""

from __future__ import annotations

import posixpath
import urllib.parse
from collections.abc import Iterator

from llamita.data.readers.content import ReaderError, Text, decode, join_blocks
from llamita.data.readers.html import html_text
from llamita.data.readers.package import Package, local

_CONTAINER = "META-INF/container.xml"
_PAGES = ("application/xhtml+xml", "text/html", "application/x-dtbook+xml")


def read_epub(data: bytes) -> Iterator[Text]:
    """All chapters as one text. Raises ReaderError."""
    package = Package(data, ".epub")
    if "META-INF/rights.xml" in package:
        raise ReaderError("it is encrypted (DRM); its text can be read only by the shop's own programs")
    main = next((each.get("full-path") for each in package.xml(_CONTAINER).iter() if local(each) == "rootfile"), None)
    if not main:
        raise ReaderError(f"{_CONTAINER} names no book")
    root = package.xml(main)
    items = {each.get("id"): each for each in root.iter() if local(each) == "item"}
    chapters = []
    for each in root.iter():
        item = items.get(each.get("idref")) if local(each) == "itemref" else None
        if item is None or item.get("media-type") not in _PAGES or "nav" in (item.get("properties") or "").split():
            continue
        href = urllib.parse.unquote(item.get("href") or "")
        place = posixpath.normpath(posixpath.join(posixpath.dirname(main), href))
        chapters.append(html_text(decode(package.read(place)), whole=True))
    yield Text(join_blocks(chapters))

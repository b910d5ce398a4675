"""Reads the text of web pages: what an article says, without menus, banners and scripts."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from llamita.data.readers.content import ReaderError, Text, clean, decode, join_blocks, join_cells

_DECLARED = re.compile(
    rb"<(?:meta|\?xml)[^>]{0,200}?(?:charset|encoding)\s*=\s*[\"']?\s*([\w.:-]{2,40})", re.IGNORECASE
)
_UNSEEN = frozenset((
    "script", "style", "noscript", "template", "svg", "iframe", "object", "embed", "canvas", "audio", "video", "head",
    "button", "select", "input", "textarea", "datalist", "dialog", "rp", "rt", "map",
))  # fmt: skip
_BLOCKS = frozenset((
    "address", "article", "aside", "blockquote", "body", "center", "dd", "details", "div", "dl", "dt", "fieldset",
    "figcaption", "figure", "footer", "form", "h1", "h2", "h3", "h4", "h5", "h6", "header", "hr", "html", "legend",
    "li", "main", "nav", "ol", "p", "pre", "section", "summary", "table", "tbody", "tfoot", "thead", "tr", "ul",
    "caption", "title",
))  # fmt: skip
_LISTS = frozenset(("ul", "ol", "dl"))
_ROLES = frozenset((
    "navigation", "banner", "contentinfo", "search", "complementary", "dialog", "alertdialog", "menu", "menubar",
    "toolbar", "tooltip",
))  # fmt: skip
_FURNITURE = re.compile(
    r"(?:^|[\s_-])(?:nav|navbar|navbox|navigation|menu|sidebar|breadcrumbs?|cookies?|consent|footer|masthead|share|"
    r"sharing|social|related|newsletter|subscribe|popup|modal|advert|advertisement|ads|promo|pagination|pager|toc|"
    r"skip|skiplink|editsection|jump|comments?|noprint|catlinks)(?:$|[\s_-])",
    re.IGNORECASE,
)
_HIDDEN = re.compile(r"display\s*:\s*none|visibility\s*:\s*hidden", re.IGNORECASE)
_PAGE_PARTS = frozenset(("nav", "aside", "header", "footer"))
_MIN_MAIN_SHARE = 0.25  # of a page's text, for its main part to be taken alone
_MAX_LINK_SHARE = 0.75  # of the text of a list that is no menu
_MIN_MENU_ITEMS = 3


def read_html(data: bytes) -> Iterator[Text]:
    """The main text of a page. Raises ReaderError."""
    declared = _DECLARED.search(data[:4096])
    yield Text(html_text(decode(data, declared[1].decode("ascii") if declared else None)))


def html_text(source: str, *, whole: bool = False) -> str:
    """The text of a page's source. whole: of a book or a mail, where nothing is a menu. Raises
    ReaderError."""
    import lxml.etree

    parser = lxml.etree.HTMLParser(
        encoding="utf-8", remove_comments=True, remove_pis=True, no_network=True, huge_tree=True
    )
    if not source.strip():
        return ""
    try:
        root = lxml.etree.fromstring(source.replace("\0", "").encode("utf-8", "replace"), parser)
    except lxml.etree.LxmlError as error:
        why = " ".join(str(error).split())[:120]
        if why.startswith("unknown error"):  # what libxml2 says without memory
            raise ReaderError("its reader needs more memory than it may have; split it") from None
        raise ReaderError(f"it is no HTML: {why}") from None
    if root is None:  # nothing but comments
        return ""
    body = root.find("body")
    body = root if body is None else body
    if whole:
        return _Walker(whole=True).text(body)
    return _Walker().text(_main(body)) or _Walker(whole=True).text(body)


def _main(body: Any) -> Any:
    """The element that holds the article, or the whole body."""
    whole = len("".join(body.itertext()))
    for path in (".//main", ".//*[@role='main']", ".//article", ".//*[@id='content']"):
        found = body.findall(path)
        if len(found) == 1 and len("".join(found[0].itertext())) >= _MIN_MAIN_SHARE * whole:
            return found[0]
    return body


class _Walker:
    """Collects paragraphs, headings, list items and rows of tables in the order of the page."""

    def __init__(self, *, whole: bool = False) -> None:
        self._whole = whole
        self._blocks: list[str] = []
        self._line: list[str] = []  # the paragraph in progress
        self._linked = 0  # characters in links
        self._links = 0  # depth
        self._rows: list[list[list[str]]] = []  # per open table its rows, and their cells
        self._lists: list[tuple[int, int, int]] = []  # per open list: blocks, linked and items before it
        self._items = 0
        self._preserved = 0
        self._cells: list[int] = []  # per open cell the blocks before it

    def text(self, top: Any) -> str:
        """Walks without recursion: pages may be nested as deeply as they like."""
        node, is_entering = top, True
        while True:
            if is_entering:
                if isinstance(node.tag, str) and not self._is_left_out(node, top):
                    self._enter(node)
                    if len(node):
                        node = node[0]
                        continue
                    self._leave(node)
            else:
                self._leave(node)
            if node is top:
                break
            self._add(node.tail)
            following = node.getnext()
            node, is_entering = (following, True) if following is not None else (node.getparent(), False)
        self._end_block()
        return join_blocks(self._blocks)

    def _is_left_out(self, node: Any, top: Any) -> bool:
        tag = node.tag
        if tag in _UNSEEN:
            return True
        if node.get("hidden") is not None or _HIDDEN.search(node.get("style") or ""):
            return True
        if self._whole or node is top:
            return False
        if node.get("aria-hidden") == "true" or node.get("role") in _ROLES:
            return True
        if tag in _PAGE_PARTS:
            # The header of an article has its title.
            return tag in ("nav", "aside") or not any(each.tag in ("article", "main") for each in node.iterancestors())
        if tag in _BLOCKS or tag == "span":
            names = f"{node.get('class') or ''} {node.get('id') or ''}"
            return tag not in ("body", "main", "article", "html") and _FURNITURE.search(names) is not None
        return False

    def _enter(self, node: Any) -> None:
        tag = node.tag
        if tag == "table":
            self._end_block()
            self._rows.append([])
        elif tag == "tr" and self._rows:
            self._end_block()
            self._rows[-1].append([])
        elif tag in ("td", "th") and self._rows:
            self._end_block()
            self._cells.append(len(self._blocks))
        elif tag == "br":
            self._line.append("\n")
        elif tag in _BLOCKS:
            self._end_block()
            if tag in _LISTS:
                self._lists.append((len(self._blocks), self._linked, self._items))
            elif tag in ("li", "dt"):
                self._items += 1
        if tag == "pre":
            self._preserved += 1
        if tag == "a" and node.get("href"):
            self._links += 1
        if tag == "li":
            self._line.append("- ")
        self._add(node.text)

    def _leave(self, node: Any) -> None:
        tag = node.tag
        if tag == "a" and node.get("href"):
            self._links -= 1
        if tag in ("td", "th") and self._rows:
            self._end_block()
            start = self._cells.pop()
            if self._rows[-1]:
                cell = "\n".join(self._blocks[start:]).removeprefix("- ")
                self._rows[-1][-1].append(cell.replace("\n- ", "; ").replace("\n", " "))
                del self._blocks[start:]
        elif tag == "table":
            self._end_block()
            self._end_table(self._rows.pop())
        elif tag in _BLOCKS:
            self._end_block()
            if tag in _LISTS:
                self._end_list()
        if tag == "pre":
            self._preserved -= 1

    def _add(self, text: str | None) -> None:
        if text:
            if self._links:
                self._linked += len(text.strip())
            self._line.append(text if self._preserved else " ".join(text.split("\n")))

    def _end_block(self) -> None:
        if not self._line:
            return
        joined = "".join(self._line)
        self._line.clear()
        if self._preserved:
            block = joined.strip("\n").rstrip()
        else:
            block = "\n".join(filter(None, map(clean, joined.split("\n"))))
        if block in ("", "-"):
            return
        self._blocks.append(block)

    def _end_table(self, rows: list[list[str]]) -> None:
        """A table with one column is a layout: its cells are paragraphs."""
        if all(len(row) <= 1 for row in rows):
            self._blocks += [cell for row in rows for cell in row if cell]
        elif lines := list(filter(None, map(join_cells, rows))):
            self._blocks.append("\n".join(lines))

    def _end_list(self) -> None:
        """Items become lines of one block; a list of links is a menu."""
        start, linked, items = self._lists.pop()
        blocks = self._blocks[start:]
        del self._blocks[start:]
        size = sum(map(len, blocks))
        if (
            not (self._whole or self._cells)
            and self._items - items >= _MIN_MENU_ITEMS
            and self._linked - linked > _MAX_LINK_SHARE * size
        ):
            return
        if blocks:
            self._blocks.append("\n".join(blocks))

"""Which reader reads which kind of document."""

from __future__ import annotations

import codecs
import contextlib
import encodings.aliases
import importlib
from collections.abc import Iterator

from llamita.data.readers.content import Member, Reader, Text, decode
from llamita.data.readers.html import read_html
from llamita.data.readers.office import read_docx, read_pptx, read_xlsx
from llamita.data.readers.pdf import read_pdf


def read_plain(data: bytes) -> Iterator[Text | Member]:
    """A text file in an archive."""
    yield Text(decode(data).replace("\0", ""))


READERS: dict[str, Reader] = {
    ".pdf": read_pdf,
    ".docx": read_docx,
    ".pptx": read_pptx,
    ".xlsx": read_xlsx,
    ".html": read_html,
    ".htm": read_html,
    ".xhtml": read_html,
    ".txt": read_plain,
    ".md": read_plain,
}
_XML = (".docx", ".pptx", ".xlsx")
_ALL_MODULES = ("lxml.etree", "lxml.html", "pypdfium2.raw")
_MODULES = {".pdf": _ALL_MODULES[2:], **dict.fromkeys(_XML, _ALL_MODULES[:1])}


def find_kind(name: str) -> str | None:
    """The suffix of a member of an archive that can be read, or None."""
    lowered = name.lower()
    return next((suffix for suffix in READERS if lowered.endswith(suffix)), None)


def load(suffix: str) -> None:
    """Import what the reader imports late."""
    for module in _MODULES.get(suffix, _ALL_MODULES):
        with contextlib.suppress(ImportError):
            importlib.import_module(module)
    names = {"cp437"} if suffix in _MODULES else set(encodings.aliases.aliases.values())  # cp437: names in ZIP
    for name in names:
        with contextlib.suppress(LookupError, ImportError):  # some are of Windows
            codecs.lookup(name)

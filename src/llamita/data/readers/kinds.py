"""Which reader reads which kind of document."""

from __future__ import annotations

import codecs
import contextlib
import encodings.aliases
import importlib

from llamita.data.readers.archive import read_eml, read_zip
from llamita.data.readers.content import Reader
from llamita.data.readers.epub import read_epub
from llamita.data.readers.html import read_html
from llamita.data.readers.odt import read_odt
from llamita.data.readers.office import read_docx, read_pptx, read_xlsx
from llamita.data.readers.pdf import read_pdf
from llamita.data.readers.plain import read_notebook, read_subtitles, read_text
from llamita.data.readers.rtf import read_rtf

READERS: dict[str, Reader] = {
    ".pdf": read_pdf,
    ".docx": read_docx,
    ".pptx": read_pptx,
    ".xlsx": read_xlsx,
    ".html": read_html,
    ".htm": read_html,
    ".xhtml": read_html,
    ".epub": read_epub,
    ".odt": read_odt,
    ".rtf": read_rtf,
    ".ipynb": read_notebook,
    ".srt": read_subtitles,
    ".eml": read_eml,
    ".zip": read_zip,
    ".txt": read_text,  # in an archive
    ".md": read_text,
}
_XML = (".docx", ".pptx", ".xlsx", ".odt")
_ALL_MODULES = ("lxml.etree", "pypdfium2.raw", "llamita.data.file_formats")  # the last for rows in archives
_MODULES = {".pdf": _ALL_MODULES[1:2], **dict.fromkeys(_XML, _ALL_MODULES[:1])}


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

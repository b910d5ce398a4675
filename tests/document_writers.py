"""Writes small documents of every kind, for tests of their readers."""

from __future__ import annotations

import io
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from xml.sax.saxutils import escape

WORD = "http://schemas.openxmlformats.org/wordprocessingml/2006/main"
RELATIONS = "http://schemas.openxmlformats.org/officeDocument/2006/relationships"
PACKAGE = "http://schemas.openxmlformats.org/package/2006/relationships"


def zip_of(members: Mapping[str, bytes | str]) -> bytes:
    """A ZIP file."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as package:
        for name, data in members.items():
            package.writestr(name, data)
    return stream.getvalue()


def relations(*targets: tuple[str, str]) -> str:
    """A .rels part of (kind, target), with the ids r1, r2, …"""
    entries = "".join(
        f'<Relationship Id="r{i}" Type="{RELATIONS}/{kind}" Target="{target}"/>'
        for i, (kind, target) in enumerate(targets, start=1)
    )
    return f'<?xml version="1.0" encoding="UTF-8"?><Relationships xmlns="{PACKAGE}">{entries}</Relationships>'


def docx(body: str, notes: Mapping[str, str] | None = None) -> bytes:
    """A Word document with this body (XML), and footnotes by their ids."""
    members = {
        "[Content_Types].xml": "<Types/>",
        "_rels/.rels": relations(("officeDocument", "word/document.xml")),
        "word/document.xml": f'<w:document xmlns:w="{WORD}"><w:body>{body}</w:body></w:document>',
        "word/_rels/document.xml.rels": relations(("header", "header1.xml"), ("footnotes", "footnotes.xml")),
        "word/header1.xml": f'<w:hdr xmlns:w="{WORD}">{paragraph("A header")}</w:hdr>',
    }
    if notes is not None:
        found = "".join(f'<w:footnote w:id="{number}">{paragraph(text)}</w:footnote>' for number, text in notes.items())
        members["word/footnotes.xml"] = (
            f'<w:footnotes xmlns:w="{WORD}"><w:footnote w:type="separator" w:id="-1"/>{found}</w:footnotes>'
        )
    return zip_of(members)


def paragraph(*runs: str, properties: str = "") -> str:
    """A paragraph of Word, one run for each text; a run that begins with < is XML."""
    inner = "".join(
        f"<w:r>{run}</w:r>" if run.startswith("<") else f'<w:r><w:t xml:space="preserve">{escape(run)}</w:t></w:r>'
        for run in runs
    )
    return f"<w:p><w:pPr>{properties}</w:pPr>{inner}</w:p>"


def word_table(rows: Sequence[Sequence[str]]) -> str:
    """A table of Word."""
    return (
        "<w:tbl>"
        + "".join(f"<w:tr>{''.join(f'<w:tc>{paragraph(cell)}</w:tc>' for cell in row)}</w:tr>" for row in rows)
        + "</w:tbl>"
    )


def pdf(pages: Sequence[Sequence[tuple[float, float, str] | tuple[float, float, str, float]]]) -> bytes:
    """A PDF of A4 pages (595 × 842 points) of texts at (x, y) from the lower left corner, 10 points
    high or as given. ASCII is in Helvetica; other text in a Chinese font that is not embedded."""
    objects: list[bytes] = [
        b"<</Type/Catalog/Pages 2 0 R>>",
        b"",  # the pages
        b"<</Type/Font/Subtype/Type1/BaseFont/Helvetica/Encoding/WinAnsiEncoding>>",
        b"<</Type/Font/Subtype/Type0/BaseFont/STSong-Light/Encoding/UniGB-UCS2-H/DescendantFonts[5 0 R]>>",
        b"<</Type/Font/Subtype/CIDFontType0/BaseFont/STSong-Light/DW 1000/FontDescriptor 6 0 R"
        b"/CIDSystemInfo<</Registry(Adobe)/Ordering(GB1)/Supplement 2>>>>",
        b"<</Type/FontDescriptor/FontName/STSong-Light/Flags 6/FontBBox[0 -200 1000 900]/ItalicAngle 0"
        b"/Ascent 800/Descent -200/CapHeight 700/StemV 80>>",
    ]
    kids = []
    for texts in pages:
        drawn = b"".join(_shown(*text) for text in texts)
        packed = zlib.compress(drawn)
        objects.append(b"<</Length %d/Filter/FlateDecode>>stream\n%s\nendstream" % (len(packed), packed))
        place = b"/Parent 2 0 R/MediaBox[0 0 595 842]/Contents %d 0 R" % len(objects)
        objects.append(b"<</Type/Page%s/Resources<</Font<</F1 3 0 R/F2 4 0 R>>>>>>" % place)
        kids.append(b"%d 0 R" % len(objects))
    objects[1] = b"<</Type/Pages/Count %d/Kids[%s]>>" % (len(kids), b" ".join(kids))
    data = bytearray(b"%PDF-1.5\n")
    places = []
    for number, content in enumerate(objects, start=1):
        places.append(len(data))
        data += b"%d 0 obj\n%s\nendobj\n" % (number, content)
    start = len(data)
    data += b"xref\n0 %d\n0000000000 65535 f \n" % (len(objects) + 1)
    data += b"".join(b"%010d 00000 n \n" % place for place in places)
    data += b"trailer<</Size %d/Root 1 0 R>>\nstartxref\n%d\n%%%%EOF\n" % (len(objects) + 1, start)
    return bytes(data)


def _shown(x: float, y: float, text: str, size: float = 10) -> bytes:
    try:
        raw = text.encode("cp1252")
        font, shown = b"F1", b"(" + raw.replace(b"\\", b"\\\\").replace(b"(", b"\\(").replace(b")", b"\\)") + b")"
    except UnicodeEncodeError:
        font, shown = b"F2", b"<" + text.encode("utf-16-be").hex().encode() + b">"
    return b"BT /%s %g Tf %g %g Td %s Tj ET\n" % (font, size, x, y, shown)


def lines(
    text: str, x: float, y: float, size: float = 10, leading: float = 13
) -> list[tuple[float, float, str, float]]:
    """The lines of a text, for `pdf`: the first one at (x, y)."""
    return [(x, y - 13 * i, line, size) for i, line in enumerate(text.split("\n"))]

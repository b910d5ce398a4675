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


def pptx(slides: Sequence[Sequence[str]], notes: str = "") -> bytes:
    """Slides, each of shapes of text (a line is a paragraph), in the order given, not in that of their
    parts; notes of the first one. Each slide has a number."""
    spaces = f'xmlns:a="urn:a" xmlns:p="urn:p" xmlns:r="{RELATIONS}"'

    def shape(text: str, kind: str = "") -> str:
        paragraphs = "".join(f"<a:p><a:r><a:t>{escape(line)}</a:t></a:r></a:p>" for line in text.split("\n"))
        place = f'<p:nvSpPr><p:nvPr><p:ph type="{kind}"/></p:nvPr></p:nvSpPr>' if kind else ""
        return f"<p:sp>{place}<p:txBody>{paragraphs}</p:txBody></p:sp>"

    parts = [f"slides/slide{len(slides) - i}.xml" for i in range(len(slides))]
    order = "".join(f'<p:sldId id="{256 + i}" r:id="r{i}"/>' for i in range(1, len(slides) + 1))
    members = {
        "_rels/.rels": relations(("officeDocument", "ppt/presentation.xml")),
        "ppt/presentation.xml": f"<p:presentation {spaces}><p:sldIdLst>{order}</p:sldIdLst></p:presentation>",
        "ppt/_rels/presentation.xml.rels": relations(*(("slide", part) for part in parts)),
    }
    for part, shapes in zip(parts, slides, strict=True):
        drawn = "".join(map(shape, shapes)) + shape("12", "sldNum")
        members[f"ppt/{part}"] = f"<p:sld {spaces}><p:cSld><p:spTree>{drawn}</p:spTree></p:cSld></p:sld>"
    if notes:
        members[f"ppt/slides/_rels/{parts[0].removeprefix('slides/')}.rels"] = relations(("notesSlide", "../notes.xml"))
        members["ppt/notes.xml"] = f"<p:notes {spaces}>{shape(notes, 'body')}{shape('x', 'sldImg')}</p:notes>"
    return zip_of(members)


def xlsx(sheets: Mapping[str, str], strings: Sequence[str] = (), formats: Sequence[int] = (0,)) -> bytes:
    """A workbook: sheets with their rows (XML), shared strings, and the number formats of cell styles."""
    spaces = f'xmlns="urn:x" xmlns:r="{RELATIONS}"'
    names = "".join(f'<sheet name="{escape(name)}" sheetId="{i}" r:id="r{i}"/>' for i, name in enumerate(sheets, 1))
    targets = [("worksheet", f"sheet{i}.xml") for i in range(1, len(sheets) + 1)]
    styles = "".join(f'<xf numFmtId="{number}"/>' for number in formats)
    shared = "".join(f"<si><t>{escape(text)}</t></si>" for text in strings)
    members = {
        "_rels/.rels": relations(("officeDocument", "xl/workbook.xml")),
        "xl/workbook.xml": f"<workbook {spaces}><sheets>{names}</sheets></workbook>",
        "xl/_rels/workbook.xml.rels": relations(*targets, ("sharedStrings", "strings.xml"), ("styles", "styles.xml")),
        "xl/strings.xml": f"<sst {spaces}>{shared}</sst>",
        "xl/styles.xml": f"<styleSheet {spaces}><cellXfs>{styles}</cellXfs></styleSheet>",
    }
    for i, rows in enumerate(sheets.values(), 1):
        members[f"xl/sheet{i}.xml"] = f"<worksheet {spaces}><sheetData>{rows}</sheetData></worksheet>"
    return zip_of(members)


def epub(chapters: Sequence[str]) -> bytes:
    """A book of chapters (the bodies of pages), with a table of contents."""
    items = "".join(
        f'<item id="c{i}" href="text/%E7%AB%A0{i}.xhtml" media-type="application/xhtml+xml"/>'
        for i in range(len(chapters))
    )
    order = "".join(f'<itemref idref="c{i}"/>' for i in range(len(chapters)))
    order = f"<spine><itemref idref='n'/>{order}</spine>"
    nav = '<item id="n" href="nav.xhtml" media-type="application/xhtml+xml" properties="nav"/>'
    members = {
        "mimetype": "application/epub+zip",
        "META-INF/container.xml": '<container><rootfiles><rootfile full-path="OPS/book.opf"/></rootfiles></container>',
        "OPS/book.opf": f"<package><manifest>{items}{nav}</manifest>{order}</package>",
        "OPS/nav.xhtml": "<html><body><p>Contents</p></body></html>",
    }
    for i, chapter in enumerate(chapters):
        head = '<?xml version="1.0" encoding="utf-8"?><html xmlns="http://www.w3.org/1999/xhtml">'
        members[f"OPS/text/章{i}.xhtml"] = f"{head}<head><title>t</title></head><body>{chapter}</body></html>"
    return zip_of(members)


def odt(body: str, *, is_encrypted: bool = False) -> bytes:
    """A document of OpenDocument with this body (XML)."""
    spaces = " ".join(f'xmlns:{name}="urn:{name}"' for name in ("office", "text", "table", "draw", "m"))
    inner = "<m:encryption-data/>" if is_encrypted else ""
    return zip_of(
        {
            "META-INF/manifest.xml": f"<m:manifest {spaces}>{inner}</m:manifest>",
            "content.xml": f"<office:document-content {spaces}><office:body><office:text>{body}</office:text>"
            "</office:body></office:document-content>",
        }
    )

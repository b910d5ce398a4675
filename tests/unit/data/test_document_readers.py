"""The text of documents: reading order, headers, tables, notes, what is no text, and what is wrong."""

from __future__ import annotations

import email.message
import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest

pytest.importorskip("lxml")
pytest.importorskip("pypdfium2")

from llamita.data.readers.content import Member, ReaderError, ScanError, Text, clean, decode
from llamita.data.readers.html import html_text, read_html
from llamita.data.readers.kinds import READERS, find_kind
from llamita.data.readers.office import read_docx
from llamita.data.readers.pdf import read_pdf
from tests.document_writers import WORD, docx, epub, lines, odt, paragraph, pdf, pptx, word_table, xlsx, zip_of

PROSE = """\
The quick brown fox jumps over the lazy dog and then it goes home to eat, sleep and dream of transfor-
mation in the long night. After that the story begins again with another fox that lives in a house on the
other side of the hill. It has (few) friends.
    A second paragraph begins with an indent and goes on over two lines of the page, as the well-
known paragraphs of books do. Such well-known things repeat."""
PROSE_TEXT = (
    "The quick brown fox jumps over the lazy dog and then it goes home to eat, sleep and dream of transformation in "
    "the long night. After that the story begins again with another fox that lives in a house on the other side of the "
    "hill. It has (few) friends.\n\n"
    "A second paragraph begins with an indent and goes on over two lines of the page, as the well-known paragraphs of "
    "books do. Such well-known things repeat."
)
CHINESE = (
    "春天来了，小狐狸从洞里走出来，看见外面的世界一片绿色，\n心里非常高兴。它跑到河边，遇见了一只老乌龟。\n故事完了。"
)


def text(reader: Callable[[bytes], Iterator[Any]], data: bytes) -> str:
    (found,) = reader(data)
    assert isinstance(found, Text) and found.name == ""
    return found.text


# ---- PDF


def test_pdf_paragraphs_are_unwrapped() -> None:
    assert text(read_pdf, pdf([lines(PROSE, 50, 700)])) == PROSE_TEXT
    unwrapped = CHINESE.replace("\n", "", 1)
    assert text(read_pdf, pdf([lines(CHINESE, 50, 700)])) == unwrapped


def test_pdf_hyphens_of_compounds_stay() -> None:
    """Where both halves are words of the document, and the whole is not."""
    wide = "The risk is high, and a high risk is what nobody wants to take if there is no need for a high-"
    assert "a high-risk thing" in text(read_pdf, pdf([lines(f"{wide}\nrisk thing", 50, 700)])).replace("for ", "")
    wide = wide.replace("risk", "odds").replace("high-", "trans-")
    assert "a transport thing" in text(read_pdf, pdf([lines(f"{wide}\nport thing", 50, 700)])).replace("for ", "")


def test_pdf_a_poem_keeps_its_lines() -> None:
    poem = "床前明月光，\n疑是地上霜。\n举头望明月，\n低头思故乡。"
    assert text(read_pdf, pdf([lines(f"静夜思\n{poem}", 50, 700)])) == f"静夜思\n{poem}"


def test_pdf_edges_are_left_out_and_paragraphs_join_over_pages() -> None:
    words = [f"word{i}" for i in range(300)]
    pages = []
    for number in range(3):
        part = words[number * 100 : number * 100 + 100]
        body = "\n".join(" ".join(part[i : i + 12]).ljust(88, ".") for i in range(0, 96, 12))
        header, footer = (50, 805, f"Chapter {number + 1} of the Book"), (290, 30, f"- {number + 1} -")
        pages.append([header, *lines(body, 50, 600), footer, (400, 30, "Confidential draft")])
    found = text(read_pdf, pdf(pages))
    assert "Chapter" not in found and "Confidential" not in found and "- 1 -" not in found
    assert found.count("word") == 3 * 96 and found.count("\n") <= 2


def test_pdf_columns_and_what_is_wide_between() -> None:
    def column(x: float, y: float, word: str) -> list[Any]:
        return lines("\n".join(f"{word} column line {i} is about forty letters" for i in range(8)), x, y)

    page = [
        (150, 760, "A title across both of the columns of this page", 14),
        *column(310, 700, "Right"), *column(50, 700, "Left"),
        (50, 580, "A caption that is as wide as both of the columns together, and more than that by a word or two."),
        *column(50, 550, "Third"), *column(310, 550, "Fourth"),
    ]  # fmt: skip
    found = text(read_pdf, pdf([page]))
    order = [found.index(word) for word in ("A title", "Left", "Right", "A caption", "Third", "Fourth")]
    assert order == sorted(order) and found.rindex("Left") < found.index("Right")
    assert "|" not in found


def test_pdf_tables_are_rows() -> None:
    rows = [("Name", "Price", "Count"), ("Apple", "1.20", "7"), ("Pear tree", "12.00", "1"), ("苹果", "3", "22")]
    page = [(x, 700 - 15 * i, row[j]) for i, row in enumerate(rows) for j, x in enumerate((50, 200, 300))]
    assert text(read_pdf, pdf([page])) == "\n".join(map(" | ".join, rows))


def test_pdf_lists_and_footnotes() -> None:
    items = [(50, 700 - 13 * i, "•") for i in range(2)] + [(65, 700, "first thing"), (65, 687, "second thing")]
    line = "A line {} that goes on to fill the width of the page with words and no end of"
    body = lines("\n".join(map(line.format, range(4))), 50, 640)
    note = [(50, 90, "1 A footnote in small letters.", 7)]
    more = lines("them, until the sentence ends at last on the second page.", 50, 700)
    found = text(read_pdf, pdf([[*items, *body, *note], more]))
    assert found.startswith("• first thing\n• second thing\n\nA line 0")
    assert found.endswith(
        "no end of them, until the sentence ends at last on the second page.\n\n1 A footnote in small letters."
    )


def test_pdf_ligatures_and_spaces() -> None:
    assert clean("ﬁne\u00a0 oﬀer\u00ad\u200b\tx\x07") == "fine offer x"


def test_pdf_without_text() -> None:
    with pytest.raises(ScanError, match="it has no text, only pictures on 2 pages"):
        list(read_pdf(pdf([[], []])))
    (found,) = read_pdf(pdf([[(50, 700, "text")], []]))
    assert isinstance(found, Text) and found.notes == ("1 of 2 pages without text",)


def test_pdf_that_is_broken() -> None:
    whole = pdf([[(50, 700, "text")]])
    for data in (b"", b"%PDF-1.7\n", whole[:60], b"text"):
        with pytest.raises(ReaderError, match="it is no complete PDF; copy it again"):
            list(read_pdf(data))
    keys = b"/O<" + b"00" * 32 + b">/U<" + b"11" * 32 + b">"
    lock = b"/Root 1 0 R/ID[<00><00>]/Encrypt<</Filter/Standard/V 1/R 2/P -4" + keys + b">>"
    encrypted = whole.replace(b"/Root 1 0 R", lock)
    with pytest.raises(ReaderError, match="it is encrypted; save it without a password"):
        list(read_pdf(encrypted))


# ---- web pages


def test_html_main_text() -> None:
    page = """<!DOCTYPE html><html><head><title>T</title><style>p {}</style></head><body>
    <header><a href="/">Home</a></header><nav><ul><li><a href="a">A</a></ul></nav>
    <div class="cookie-banner">We use cookies</div><h1>The  fox</h1><script>alert("no")</script>
    <p>It was a <b>red</b>&nbsp;fox,<br>and an&shy;other &#29392;狐.
    <p hidden>Unseen</p><ul><li>one<li>two <a href=x>with a link</a></ul>
    <ul class=links><li><a href=1>Menu entry</a><li><a href=2>Another entry</a><li><a href=3>More</a></ul>
    <table><tr><th>Name<th>Count<tr><td>Apple<td><p>7</p></table><pre>a = 1
      b</pre><footer>Imprint</footer></body></html>"""
    assert text(read_html, page.encode()) == (
        "The fox\n\nIt was a red fox,\nand another 狐狐.\n\n- one\n- two with a link\n\n"
        "Name | Count\nApple | 7\n\na = 1\n      b"
    )


def test_html_article_alone() -> None:
    page = f"<body><p>Teaser</p><main><h1>Title</h1><p>{'An article. ' * 9}</p></main><p>Other</p></body>"
    assert text(read_html, page.encode()) == f"Title\n\n{'An article. ' * 9}".strip()
    assert html_text(page, whole=True).startswith("Teaser")
    only_menu = "<ul><li><a href=1>One</a><li><a href=2>Two</a><li><a href=3>Three</a></ul>"
    assert html_text(only_menu) == "- One\n- Two\n- Three"  # better than nothing


@pytest.mark.parametrize(
    ("head", "encoding"),
    [
        ("", "utf-8"), ('<meta charset="gb2312">', "gb18030"), ("", "gb18030"), ('<meta charset="utf-8">', "utf-16"),
        ('<meta http-equiv=a content="text/html; charset=big5">', "big5"), ("<meta charset=Shift_JIS>", "cp932"),
    ],
)  # fmt: skip
def test_html_encodings(head: str, encoding: str) -> None:
    body = "春眠不覺曉，處處聞啼鳥。夜來風雨聲，花落知多少。中文的日本" * 5
    assert text(read_html, f"<html><head>{head}</head><p>{body}</p></html>".encode(encoding)) == body


@pytest.mark.parametrize(
    "page",
    [
        b"", b" ", b"<!-- -->", b"<p>", b"<div>" * 50_000 + b"x", b"<table>" * 3000, b"</td></table></ul>" * 9,
        b"<td>a<tr><td>b</table><li>c</ul>", b"\0<p>\0</p>", b"<svg><p>",
        b"<?xml version='1.0' encoding='UTF-8'?><html/>",
    ],
    ids=range(11),
)  # fmt: skip
def test_html_that_is_broken(page: bytes) -> None:
    assert len(text(read_html, page)) < 20


def test_encodings_that_nothing_decides() -> None:
    assert decode("né".encode("cp1252"), "iso-8859-1") == "né"
    with pytest.raises(ReaderError, match="its encoding is unknown: byte 1 is not UTF-8"):
        decode(b"n\xe9 and more" * 3)


# ---- office


def test_docx() -> None:
    number = '<w:numPr><w:numId w:val="1"/></w:numPr>'
    cites = '<w:footnoteReference w:id="7"/>'
    body = (
        paragraph("Title", properties='<w:pStyle w:val="Heading1"/>')
        + paragraph("Hello ", "<w:t>world,</w:t><w:tab/><w:t>狐狸</w:t>", cites, "<w:br/><w:t>next</w:t>")
        + paragraph("one", properties=number) + paragraph("two", properties=number) + paragraph("")
        + word_table([["a", "b"], ["c", "狐"], ["", ""]])
        + "<w:sdt><w:sdtPr/><w:sdtContent>" + paragraph("In a control.") + "</w:sdtContent></w:sdt>"
        + "<w:p><w:del><w:r><w:delText>gone</w:delText></w:r></w:del><w:ins><w:r><w:t>new</w:t></w:r></w:ins></w:p>"
        + "<w:sectPr/>"
    )  # fmt: skip
    assert text(read_docx, docx(body, {"7": "A note.", "8": "never cited"})) == (
        "Title\n\nHello world, 狐狸[1]\nnext\n\n- one\n- two\n\na | b\nc | 狐\n\nIn a control.\n\nnew\n\n[1] A note."
    )


def test_docx_text_boxes_of_old_versions() -> None:
    """Once, although newer versions write both."""
    box = f"<w:txbxContent>{paragraph('In a box.')}</w:txbxContent>"
    old = f"<w:r><w:pict><w:shape><w:textbox>{box}</w:textbox></w:shape></w:pict></w:r>"
    both = f"<w:AlternateContent><w:Choice>{box}</w:Choice><w:Fallback>{old}</w:Fallback></w:AlternateContent>"
    for drawn in (old, both):
        assert text(read_docx, docx(paragraph("Text.", drawn), {})) == "Text.\n\nIn a box."


def test_docx_that_is_broken() -> None:
    whole = docx(paragraph("text"))
    for data, message in (
        (b"", "no complete .docx: its ZIP directory is missing"),
        (whole[:-30], "no complete .docx"),
        (
            b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(600),
            "it is encrypted, or a file of an old Office; save it as .docx",
        ),
        (zip_of({"a": "b"}), "no complete .docx: word/document.xml is missing"),
        (zip_of({"word/document.xml": "<a><b></a>"}), "word/document.xml is broken XML"),
        (zip_of({"word/document.xml": b"<a>\xff</a>"}), "word/document.xml is broken XML"),
    ):
        with pytest.raises(ReaderError, match=message):
            list(read_docx(data))
    deep = "<w:tbl><w:tr><w:tc>" * 70 + "</w:tc></w:tr></w:tbl>" * 70
    assert text(read_docx, docx(deep)) == ""


def test_xml_entities_are_not_expanded() -> None:
    bomb = '<!DOCTYPE a [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;&a;&a;&a;">]>'
    outside = '<!DOCTYPE a [<!ENTITY b SYSTEM "file:///etc/hostname">]>'
    for kind in (bomb, outside):
        body = f"<w:body>{paragraph('x', '<w:t>&b;</w:t>')}</w:body>"
        part = f'{kind}<w:document xmlns:w="{WORD}">{body}</w:document>'
        assert text(read_docx, zip_of({"word/document.xml": part})) == "x"


def test_pptx() -> None:
    data = pptx([["Title", "one\ntwo"], ["第二页"]], notes="Say hello.")
    assert text(READERS[".pptx"], data) == "Title\n\none\ntwo\n\nSay hello.\n\n第二页"


def test_xlsx() -> None:
    rows = (
        '<row><c r="A1" t="s"><v>0</v></c><c r="C1" t="s"><v>1</v></c></row><row/>'
        '<row><c r="A3" t="inlineStr"><is><t>in</t></is></c><c r="B3"><v>0.1000000000000001</v></c>'
        '<c r="C3" s="1"><v>45000</v></c>'
        '<c r="D3" s="1"><v>45000.5</v></c><c r="E3" t="b"><v>1</v></c><c r="F3" t="e"><v>#N/A</v></c><c r="G3"/></row>'
        '<row><c t="s"><v>99</v></c><c r="A99999999999" t="s"><v>x</v></c><c s="1"><v>9e99</v></c></row>'
    )
    found = text(
        READERS[".xlsx"], xlsx({"一": rows, "empty": "", "b": "<row><c><v>7</v></c></row>"}, ["狐狸", "b"], (0, 14))
    )
    assert found == "一\n狐狸 |  | b\nin | 0.1 | 2023-03-15 | 2023-03-15 12:00 | TRUE | #N/A\n|  | 9e99\n\nb\n7"


def test_epub() -> None:
    data = epub(["<h1>第一章</h1><p>One.</p>", "<nav><p>in the book</p></nav><ul><li><a href='#'>x</a></li></ul>"])
    assert text(READERS[".epub"], data) == "第一章\n\nOne.\n\nin the book\n\n- x"
    for members, message in (
        ({"META-INF/container.xml": "<a/>"}, "META-INF/container.xml names no book"),
        ({"META-INF/rights.xml": ""}, r"encrypted \(DRM\)"),
    ):
        with pytest.raises(ReaderError, match=message):
            list(READERS[".epub"](zip_of(members)))


def test_odt() -> None:
    body = (
        "<text:h>Title</text:h><text:tracked-changes><text:p>gone</text:p></text:tracked-changes>"
        '<text:p>Hello<text:s text:c="3"/><text:span>狐狸</text:span>'
        "<text:note><text:note-citation>1</text:note-citation>"
        "<text:note-body><text:p>A note.</text:p></text:note-body></text:note><text:line-break/>next</text:p>"
        "<text:list><text:list-item><text:p>one</text:p></text:list-item><text:list-item><text:p>two</text:p></text:list-item>"
        "</text:list><text:section><table:table><table:table-header-rows><table:table-row><table:table-cell><text:p>a</text:p>"
        "</table:table-cell><table:table-cell><text:p>b</text:p></table:table-cell></table:table-row></table:table-header-rows>"
        "</table:table></text:section><text:p><draw:frame><draw:text-box><text:p>box</text:p></draw:text-box></draw:frame></text:p>"
    )
    assert text(READERS[".odt"], odt(body)) == (
        "Title\n\nHello 狐狸[1]\nnext\n\n- one\n- two\n\na | b\n\nbox\n\n[1] A note."
    )
    with pytest.raises(ReaderError, match="it is encrypted"):
        list(READERS[".odt"](odt(body, is_encrypted=True)))
    assert text(READERS[".odt"], odt("<text:section>" * 200 + "</text:section>" * 200)) == ""


def test_rtf() -> None:
    data = (
        rb"{\rtf1\ansi\ansicpg1252\uc1{\fonttbl{\f0\fcharset0 A;}{\f1\fcharset134 B;}}{\*\generator x;}{\header no}"
        rb"\f0 Caf\'e9 {\b bold}\u29392?\u29432 ?\line next\par{\f1 \'ba\'fc\'c0\'ea}{\v hidden}"
        rb"\'93q\'94\emdash\~x\{\}\par"
        rb"{\field{\*\fldinst HYPERLINK x}{\fldrslt link}}{\footnote A {\i note}.}.\u-10179?\u-8704?\par"
        rb"\trowd\cellx1 a\cell b\par c\cell\row\trowd d\cell e\cell\row\pard end}"
    )
    expected = "Café bold狐狸\nnext\n\n狐狸“q”— x{}\n\nlink[1].😀\n\na | b c\nd | e\n\nend\n\n[1] A note."
    assert text(READERS[".rtf"], data) == expected
    for bad, message in (
        (b"text", "it is no RTF"),
        (rb"{\rtf1 \bin9 123}", "binary pictures"),
        (b"{\\rtf1" + b"{" * 20_000, "nested"),
    ):
        with pytest.raises(ReaderError, match=message):
            list(READERS[".rtf"](bad))
    assert text(READERS[".rtf"], rb"{\rtf1}}}} \u99999999999 \u-70000 \'zz \f99 x") != ""


def test_notebook() -> None:
    cells = [
        {"cell_type": "markdown", "source": ["# 标题\n", "text"]},
        {"cell_type": "code", "source": "print(1)\n", "outputs": [{"text": "no"}]},
        {"cell_type": "code", "source": []}, 7, {"source": 8},
    ]  # fmt: skip
    assert text(READERS[".ipynb"], json.dumps({"cells": cells}).encode()) == "# 标题\ntext\n\n```\nprint(1)\n```"
    old = {"worksheets": [{"cells": [{"cell_type": "code", "input": ["x"]}]}]}
    assert text(READERS[".ipynb"], json.dumps(old).encode()) == "```\nx\n```"
    for bad, message in (
        (b"{", "broken JSON"),
        (b"[]", "it has no cells"),
        (b'{"cells": {}}', "no cells"),
        (b"[" * 10**5, "JSON"),
    ):
        with pytest.raises(ReaderError, match=message):
            list(READERS[".ipynb"](bad))


def test_subtitles() -> None:
    data = (
        "\ufeff1\r\n00:00:01,000 --> 00:00:02,500\r\n<i>The fox went</i>\r\n\r\n2\r\n"
        "00:00:03,000 --> 00:00:04,000\r\nhome.\r\n\r\n"
        "3\r\n00:00:05,000 --> 00:00:06,000 X1:5\r\n- Who?\r\n- 我是\r\n\r\n4\r\n"
        "00:00:07,000 --> 00:00:08,000\r\n狐狸。\r\n"
    )
    assert text(READERS[".srt"], data.encode()) == "The fox went home.\n- Who?\n- 我是狐狸。"
    with pytest.raises(ReaderError, match="it has no subtitles"):
        list(READERS[".srt"](b"text"))


def test_mail() -> None:
    mail = email.message.EmailMessage()
    mail["Subject"], mail["From"] = "关于狐狸", "a@example.org"
    mail.set_content("Hello,\n\n> quoted\n> more\nnew text\n-- \nsignature\n")
    mail.add_alternative("<p>Hello in HTML</p>", subtype="html")
    mail.add_attachment(docx(paragraph("attached")), maintype="application", subtype="x", filename="附件.docx")
    body, attached = READERS[".eml"](mail.as_bytes())
    assert body == Text("关于狐狸\n\nHello,\n\nnew text")
    assert isinstance(attached, Member) and attached.name == "附件.docx"
    page = b"Subject: x\nContent-Type: text/html; charset=gb2312\n\n" + "<p>网页</p>".encode("gb2312")
    assert text(READERS[".eml"], page) == "x\n\n网页"
    japanese = "昔々、ある所に".encode("iso-2022-jp")
    for kind in ("; charset=ISO-2022-JP", ""):  # without: by its escapes
        mail = b"Subject: x\nContent-Type: text/plain" + kind.encode() + b"\n\n" + japanese
        assert text(READERS[".eml"], mail) == "x\n\n昔々、ある所に"
    hz = b"Subject: x\nContent-Type: text/plain; charset=hz-gb-2312\n\n" + "网页".encode("hz")
    assert text(READERS[".eml"], hz) == "x\n\n网页"
    with pytest.raises(ReaderError, match="it is no mail"):
        list(READERS[".eml"](b"text"))


def test_zip() -> None:
    members = {"a.txt": "one", "文/b.docx": docx(paragraph("two")), "__MACOSX/x.txt": "", ".hidden.txt": "", "c/": ""}
    found = [member.name for member in READERS[".zip"](zip_of(members)) if isinstance(member, Member)]
    assert found == ["a.txt", "文/b.docx"]
    dotted = {"./a.txt": "one", "./.hidden.txt": "", "./b/c.txt": "two"}
    assert [member.name for member in READERS[".zip"](zip_of(dotted))] == ["a.txt", "b/c.txt"]
    gbk = zip_of({"abcd.txt": "x"}).replace(b"abcd", "狐狸".encode("gbk"))
    (member,) = READERS[".zip"](gbk)
    assert isinstance(member, Member) and member.name == "狐狸.txt"
    damaged = bytearray(zip_of({"a.txt": "x" * 99, "b.txt": "y"}))
    damaged[36] ^= 255
    first, second = READERS[".zip"](bytes(damaged))
    assert isinstance(first, Member) and "a.txt is damaged" in first.error
    assert isinstance(second, Member) and second.data == b"y"
    locked = bytearray(zip_of({"a.txt": "x"}))
    locked[6] |= 1
    locked[locked.index(b"PK\x01\x02") + 8] |= 1
    (member,) = READERS[".zip"](bytes(locked))
    assert isinstance(member, Member) and "it is encrypted" in member.error


# ---- all


def test_every_reader_refuses_what_it_cannot_read() -> None:
    """Anything is text, nothing, or one ReaderError: no other exception."""
    for suffix, reader in READERS.items():
        for data in (
            b"",
            b"\0" * 99,
            b"text",
            bytes(range(256)),
            zip_of({"a": "b"}),
            pdf([[(9, 9, "x")]])[:-99],
            b"{}",
        ):
            try:
                for found in reader(data):
                    assert isinstance(found, Text | Member), suffix
            except ReaderError as error:
                assert 0 < len(str(error)) < 300 and "\n" not in str(error), suffix


def test_kinds() -> None:
    assert find_kind("folder/A.PDF") == ".pdf" and find_kind("a.exe") is None

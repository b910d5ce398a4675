"""Personal data: what is masked, and the numbers that look like it and stay; lines that are removed."""

from __future__ import annotations

from pathlib import Path

import pytest

from llamita.config import PrepareConfig
from llamita.data.documents import SourceCounts
from llamita.data.personal_data import mask
from llamita.data.prepare import prepare
from llamita.data.scrub import Scrubber
from llamita.errors import SourceError


def masked(text: str) -> str:
    return mask(text, lambda kind, piece: None)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Write to jane.doe+x@mail.example.co.uk, please.", "Write to [EMAIL], please."),
        ("邮箱zhang_3@qq.com请回复", "邮箱[EMAIL]请回复"),
        ("身份证号11010519491231002X。", "身份证号[ID]。"),
        ("110105 19491231 002x", "[ID]"),
        ("身份证１１０１０５１９４９１２３１００２Ｘ号", "身份证[ID]号"),
        ("身分證A123456789", "身分證[ID]"),
        ("HKID A123456(3), Ａ１２３４５６（３）", "HKID [ID], [ID]"),
        ("电话号码是1234567，phone no. 555 1234", "电话号码是[PHONE]，phone no. [PHONE]"),
        ("SSN 536-22-8726.", "SSN [ID]."),
        ("卡号6222 0212 3456 7890 128付款", "卡号[ACCOUNT]付款"),
        ("Visa 4111-1111-1111-1111", "Visa [ACCOUNT]"),
        ("IBAN DE89 3704 0044 0532 0130 00.", "IBAN [ACCOUNT]."),
        ("手机13812345678,+86 138-1234-5678", "手机[PHONE],[PHONE]"),
        ("电话010-62345678或(0755)2345678", "电话[PHONE]或[PHONE]"),
        ("Call (212) 555-0123 or 1-800-555-0199 or 212.555.0123.", "Call [PHONE] or [PHONE] or [PHONE]."),
        ("+49 30 901820 and +442079460123", "[PHONE] and [PHONE]"),
        ("Tel.: 030 1234567, fax 06 12 34 56 78", "Tel.: [PHONE], fax [PHONE]"),
    ],
)
def test_masked(text: str, expected: str) -> None:
    assert masked(text) == expected
    assert masked(expected) == expected


@pytest.mark.parametrize(
    "text",
    [
        "110105194912310021 is an ID with a wrong check digit",
        "11010519491331002X has month 13",
        "A123456788 and A123456(4)",
        "4111 1111 1111 1112 has a wrong check digit",
        "DE89 3704 0044 0532 0130 01",
        "In 1999-2000 and on 2024-05-01 at 12:30:45, 3.14159265358979 of 1,234,567,890 bytes",
        "ISBN 978-3-16-148410-0, order 20240501123456, version 10.0.19045.3803",
        "1234567890123456789012345678",
        "user@localhost, @name, a@b, 5 @ 3.50",
        "192.168.100.200 and 0.13812345678",
        "000-12-3456 and 123-00-4567",
        "+1 2 3",
        "phone 12345",
    ],
)
def test_stays(text: str) -> None:
    assert masked(text) == text


def test_long_runs_take_linear_time() -> None:
    for text in ("a." * 100_000 + "@", "1" * 200_000, "+1 " * 60_000, "1-" * 100_000, "tel " * 50_000, "(" * 100_000):
        masked(f"{text} x@y")


def test_kinds_and_pieces() -> None:
    found: list[tuple[str, str]] = []
    mask("a@b.org 13812345678", lambda kind, piece: found.append((kind, piece)))
    assert found == [("mail", "a@b.org"), ("phone", "13812345678")]


# ---- in documents


def test_scrubber_accounts_for_every_byte(tmp_path: Path) -> None:
    lines = tmp_path / "lines.txt"
    lines.write_text("Home | About\r\n\n  返回首页  \n", encoding="utf-8")
    texts = [text.encode() for text in ("Home | About\nOne a@b.org\n 返回首页", "返回首页\n\nHome | About", "Two")]
    size = sum(map(len, texts))
    counts = SourceCounts(documents=3, document_bytes=size)
    kept = Scrubber(lines, mask=True).scrub(texts, counts)
    assert kept == [b"One [EMAIL]", b"Two"]
    assert (counts.documents, counts.empty_documents, counts.dropped_lines, counts.masked_mail) == (2, 1, 4, 1)
    assert counts.document_bytes == sum(map(len, kept)) == size - counts.dropped_line_bytes - counts.masked_bytes


def test_prepare_masks_and_counts(tmp_path: Path) -> None:
    source, lines = tmp_path / "a.txt", tmp_path / "lines.txt"
    lines.write_text("notice\n")
    texts = [f"notice\nNumber {i} writes to user{i}@example.org or 138{i:08} about the old mill." for i in range(400)]
    source.write_text("\n<|endoftext|>\n".join(texts))
    report = prepare(
        PrepareConfig(
            sources=(str(source),), out=tmp_path / "store", vocab_size=280, drop_lines=lines, mask_personal_data=True
        )
    )
    assert (report.masked_mail, report.masked_phone, report.masked_id) == (400, 400, 0)
    assert (report.dropped_lines, report.dropped_line_bytes) == (400, 400 * len("notice\n"))
    assert report.source_bytes == (
        report.text_bytes + report.separator_bytes + report.whitespace_bytes + report.dropped_line_bytes
        + report.masked_bytes
    )  # fmt: skip


@pytest.mark.parametrize(("content", "message"), [("", "it has no lines"), (None, "No such file")])
def test_wrong_line_files(tmp_path: Path, content: str | None, message: str) -> None:
    if content is not None:
        (tmp_path / "lines.txt").write_text(content)
    with pytest.raises(SourceError, match=message):
        Scrubber(tmp_path / "lines.txt", mask=False)

"""Opens archives and mails: .zip and .eml, whose files are read as any others."""

from __future__ import annotations

import contextlib
import email
import email.message
import email.parser
import email.policy
import posixpath
import re
from collections.abc import Iterator

from llamita.data.readers.content import Member, ReaderError, Text, clean, decode, join_blocks
from llamita.data.readers.html import html_text
from llamita.data.readers.package import Package

_HIDDEN = re.compile(r"(?:^|/)(?:\.|__MACOSX/|Thumbs\.db$|desktop\.ini$)", re.IGNORECASE)
_QUOTED = re.compile(r"(?:^>.*\n?)+", re.MULTILINE)
_SIGNATURE = re.compile(r"^-- \n.*\Z", re.MULTILINE | re.DOTALL)
_MAX_PARTS = 1000


def read_zip(data: bytes) -> Iterator[Text | Member]:
    """The files, without hidden ones. Raises ReaderError."""
    package = Package(data, ".zip")
    for member in package.members:
        name = posixpath.normpath(_name(member.filename, is_utf8=bool(member.flag_bits & 0x800)))  # ./a.txt
        if member.is_dir() or _HIDDEN.search(name):
            continue
        try:
            yield Member(name, package.read(member))
        except ReaderError as error:
            if package.is_exhausted:
                raise
            yield Member(name, error=str(error))


def _name(name: str, *, is_utf8: bool) -> str:
    """The name of a member. Programs for Chinese Windows write it in GBK and do not say so."""
    if not is_utf8 and not name.isascii():
        with contextlib.suppress(UnicodeEncodeError):
            raw = name.encode("cp437")
            for codec in ("utf-8", "gb18030", "cp932"):
                with contextlib.suppress(UnicodeDecodeError):
                    return raw.decode(codec)
    return name


def read_eml(data: bytes) -> Iterator[Text | Member]:
    """Subject and text of a mail, without quotes of earlier ones and the signature; then the attached
    files. Raises ReaderError."""
    mail = email.message_from_bytes(data, policy=email.policy.default)
    if not mail.keys() or ("from" not in mail and "subject" not in mail and "date" not in mail):
        raise ReaderError("it is no mail: it has no From, Subject or Date")
    plain: list[str] = []
    pages: list[str] = []
    attached: list[Member] = []
    for number, part in enumerate(mail.walk()):
        if number > _MAX_PARTS:
            raise ReaderError(f"it has more than {_MAX_PARTS:,} parts")
        if part.is_multipart():
            continue
        kind, name = part.get_content_type(), _attachment(part)
        content = part.get_payload(decode=True)
        if not isinstance(content, bytes):
            continue
        if name is not None:
            attached.append(Member(name, content))
        elif kind == "text/plain":
            plain.append(decode(content, part.get_content_charset()).replace("\r\n", "\n"))
        elif kind == "text/html":
            pages.append(html_text(decode(content, part.get_content_charset()), whole=True))
    body = [_SIGNATURE.sub("", _QUOTED.sub("", text)) for text in plain] if any(map(str.strip, plain)) else pages
    yield Text(join_blocks([clean(str(mail["subject"] or "")), *body]))
    yield from attached


def _attachment(part: email.message.Message) -> str | None:
    """The name of an attached file, or None for a part of the mail's own text."""
    name = part.get_filename()
    is_attached = part.get_content_disposition() == "attachment" or part.get_content_maintype() != "text"
    return clean(name or "attachment") if name or is_attached else None

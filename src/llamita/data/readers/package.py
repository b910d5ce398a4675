"""Opens ZIP files and the XML in them, within limits: archives, office documents, books."""

from __future__ import annotations

import contextlib
import gzip
import io
import lzma
import posixpath
import zipfile
import zlib
from typing import Any

from llamita.data.readers.content import ReaderError

# Text shrinks 3 to 20 times; XML of spreadsheets 100 times.
MAX_RATIO, MIN_BYTES, MAX_BYTES = 200, 64 << 20, 512 << 20
MAX_MEMBERS = 20_000
_DAMAGE = (zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, ValueError, RuntimeError)
_OLE = b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1"


class Package:
    """A ZIP file, whose members may unpack to MAX_BYTES in all."""

    def __init__(self, data: bytes, what: str) -> None:
        """what: the kind of file, for messages. Raises ReaderError."""
        self._what = what
        if data.startswith(_OLE):
            raise ReaderError(f"it is encrypted, or a file of an old Office; save it as {what} without a password")
        try:
            self._zip = zipfile.ZipFile(io.BytesIO(data))
        except (zipfile.BadZipFile, ValueError, NotImplementedError):
            raise ReaderError(
                f"it is no complete {what}: its ZIP directory is missing or damaged; copy it again"
            ) from None
        self._left = min(MAX_BYTES, max(MIN_BYTES, MAX_RATIO * len(data)))
        self.members = self._zip.infolist()
        if len(self.members) > MAX_MEMBERS:
            raise ReaderError(f"it has {len(self.members):,} members, expected at most {MAX_MEMBERS:,}; unpack it")
        self._names = {member.filename for member in self.members}

    def __contains__(self, name: str) -> bool:
        return name in self._names

    @property
    def is_exhausted(self) -> bool:
        """Whether more was unpacked than allowed."""
        return self._left < 0

    def read(self, name: str | zipfile.ZipInfo) -> bytes:
        """The bytes of a member. Raises ReaderError."""
        shown = name if isinstance(name, str) else name.filename
        try:
            member = self._zip.getinfo(name) if isinstance(name, str) else name
            if member.flag_bits & 1:
                raise ReaderError("it is encrypted; save it without a password")
            with self._zip.open(member) as stream:
                data = stream.read(self._left + 1)
        except KeyError:
            raise ReaderError(f"it is no complete {self._what}: {shown} is missing") from None
        except (*_DAMAGE, OSError) as error:  # OSError: of bz2
            if isinstance(error, OSError) and error.errno is not None:
                raise
            why = " ".join(str(error).split())[:80]
            raise ReaderError(f"{shown} is damaged ({why}); copy the file again") from None
        self._left -= len(data)
        if self._left < 0:
            raise ReaderError(f"it unpacks to more than {MAX_RATIO} times its size, as a ZIP bomb does")
        return data

    def xml(self, name: str) -> Any:
        """The root element of a member. Raises ReaderError."""
        return parse_xml(self.read(name), name)

    def related(self, part: str) -> dict[str, tuple[str, str]]:
        """The relations of a part of an office document: id → (last word of the type, part)."""
        folder, name = posixpath.split(part)
        place = posixpath.join(folder, "_rels", f"{name}.rels")
        if place not in self:
            return {}
        found = {}
        for each in self.xml(place):
            target = each.get("Target") or ""
            if each.get("TargetMode") == "External":
                continue
            path = target[1:] if target.startswith("/") else posixpath.normpath(posixpath.join(folder, target))
            found[each.get("Id") or ""] = ((each.get("Type") or "").rsplit("/", 1)[-1], path)
        return found


def unpack_gzip(data: bytes) -> bytes:
    """The content of a gzip file. Raises ReaderError."""
    limit = min(MAX_BYTES, max(MIN_BYTES, MAX_RATIO * len(data)))
    try:
        with gzip.GzipFile(fileobj=io.BytesIO(data)) as stream:
            unpacked = stream.read(limit + 1)
    except (EOFError, zlib.error, gzip.BadGzipFile):
        raise ReaderError("it is no complete gzip file; copy it again") from None
    if len(unpacked) > limit:
        raise ReaderError(f"it unpacks to more than {MAX_RATIO} times its size")
    return unpacked


def parse_xml(data: bytes, where: str) -> Any:
    """The root element. Entities of a document type stay unexpanded. Raises ReaderError."""
    import lxml.etree

    parser = lxml.etree.XMLParser(
        resolve_entities=False, no_network=True, load_dtd=False, huge_tree=False, remove_comments=True,
        remove_pis=True, recover=False,
    )  # fmt: skip
    try:
        return lxml.etree.fromstring(data, parser)
    except (lxml.etree.LxmlError, ValueError) as error:
        raise ReaderError(f"{where} is broken XML: {' '.join(str(error).split())[:120]}") from None


def local(element: Any) -> str:
    """The name of an element without its namespace; "" for what is no element."""
    tag = element.tag
    return tag.rpartition("}")[2] if isinstance(tag, str) else ""


def attribute(element: Any, name: str) -> str | None:
    """An attribute by its name without the namespace."""
    with contextlib.suppress(AttributeError):
        for key, value in element.attrib.items():
            if key.rpartition("}")[2] == name:
                return str(value)
    return None

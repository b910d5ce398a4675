"""Encodings are recognized and converted, or refused where they are unsure; mojibake is named."""

from __future__ import annotations

import gzip
import json
import tracemalloc
from pathlib import Path

import pytest

from llamita.data import utf8_files
from llamita.data.documents import SourceCounts, read_documents
from llamita.data.encodings import Found, Unsure, describe_mojibake, detect, find_codec
from llamita.data.file_formats import BadRows, read_rows
from llamita.data.utf8_files import Conversions, read_lines, utf8_chunks
from llamita.errors import ConfigError, SourceError

SIMPLIFIED = "从前，山里有一座小庙，庙里住着一个老和尚和一个小和尚。有一天，他们下山去买米。\n"
TRADITIONAL = "從前，山裡有一座小廟，廟裡住著一個老和尚和一個小和尚。有一天，他們下山去買米。\n"
JAPANESE = "昔々、ある所におじいさんとおばあさんが住んでいました。おじいさんは山へ行きました。\n"
KOREAN = "옛날 옛적에 어느 마을에 할아버지와 할머니가 살고 있었습니다. 할아버지는 산으로 갔습니다.\n"
GERMAN = "Die Füchse über Köln hören schöne Lieder, müde Bären gähnen, und Mäuse sägen Bäume.\n"
FRENCH = "L'été dernier, élèves et maîtres étaient déjà là, à côté de la forêt où chante le hérisson.\n"
RUSSIAN = "Жили-были старик со старухой, и была у них курочка ряба. Снесла курочка яичко.\n"

ENCODED = [
    (SIMPLIFIED, "gb18030", "GB18030"),
    (SIMPLIFIED, "gbk", "GB18030"),
    (TRADITIONAL, "gb18030", "GB18030"),
    (TRADITIONAL, "big5", "Big5"),
    (JAPANESE, "shift-jis", "Shift-JIS"),
    (JAPANESE, "euc-jp", "EUC-JP"),
    (JAPANESE, "iso-2022-jp", "ISO-2022-JP"),
    (KOREAN, "euc-kr", "EUC-KR"),
    (KOREAN, "cp949", "EUC-KR"),
    *((text, f"utf-16-{end}", f"UTF-16{end.upper()}") for end in ("le", "be") for text in
      (SIMPLIFIED, TRADITIONAL, JAPANESE, KOREAN, GERMAN, RUSSIAN, "hello\n")),
]  # fmt: skip


def write(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


@pytest.mark.parametrize(("text", "encoding", "name"), ENCODED)
def test_recognized(text: str, encoding: str, name: str, tmp_path: Path) -> None:
    """Once and many times, alone and behind a page of ASCII."""
    utf16 = encoding.startswith("utf-16")
    for content in (text, text * 40, "A page of plain words. " * (1 if utf16 else 30) + text):
        conversions = Conversions()
        path = write(tmp_path / "a.txt", content.encode(encoding))
        counts = SourceCounts()
        (found,) = read_documents([str(path)], counts=counts, conversions=conversions)
        assert found.text == content.strip() and conversions.converted == {str(path): name}
        assert counts.source_bytes == path.stat().st_size
        assert counts.source_bytes == counts.document_bytes + counts.whitespace_bytes + counts.container_bytes
        assert conversions.describe_converted() == f"1 file converted from {name} ({path})"


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be"])
def test_utf16_with_a_byte_order_mark(encoding: str, tmp_path: Path) -> None:
    data = ("" if encoding == "utf-16" else "\ufeff").encode(encoding) + "狐 a\r\n".encode(encoding)
    for content in (data, data[:2]):
        path = write(tmp_path / "a.txt", content)
        assert "".join(read_lines(path)) == ("狐 a\r\n" if content == data else "")


@pytest.mark.parametrize(
    ("text", "encoding"),
    [
        (GERMAN, "cp1252"),
        (FRENCH, "latin-1"),
        (RUSSIAN, "cp1251"),
        (RUSSIAN, "koi8-r"),
        ("¡Él comió ñandú!", "latin-1"),
    ],
)
def test_one_byte_encodings_are_never_taken_for_another(text: str, encoding: str, tmp_path: Path) -> None:
    """They are refused: bytes do not say which of them it is. --encoding does."""
    for content in (text, text * 50, *(text[i : i + 12] for i in range(0, len(text) - 12, 3))):
        data = content.encode(encoding)
        if data.isascii() or not data[-3:].isascii():  # as if a character of UTF-8 was cut
            continue
        assert isinstance(detect(data), Unsure)
        path = write(tmp_path / "a.txt", data)
        with pytest.raises(SourceError, match=r"is not UTF-8; it looks like .*say which with --encoding"):
            list(utf8_chunks(path))
        assert b"".join(utf8_chunks(path, Conversions(encoding))).decode() == content


def test_short_text_is_refused_with_candidates(tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt", "价格".encode("gbk"))
    with pytest.raises(SourceError, match=r"byte 0 is not UTF-8; it looks like .*GB18030.*--encoding") as caught:
        list(utf8_chunks(path))
    assert "\n" not in str(caught.value)
    assert b"".join(utf8_chunks(path, Conversions("gbk"))).decode() == "价格"


def test_a_damaged_character_is_no_other_encoding(tmp_path: Path) -> None:
    raw = (SIMPLIFIED * 50).encode()
    path = write(tmp_path / "a.txt", raw[:3000] + raw[3001:])
    for conversions in (Conversions(), Conversions("utf-8")):
        with pytest.raises(SourceError, match=r"is not UTF-8; the rest near it is UTF-8: this character is damaged"):
            list(utf8_chunks(path, conversions))


def test_the_user_decides(tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt", SIMPLIFIED.encode("gbk"))
    with pytest.raises(SourceError, match="byte 0 is not UTF-8; it looks like GB18030: say so with --encoding gb18030"):
        list(utf8_chunks(path, Conversions("utf-8")))
    utf16 = write(tmp_path / "b.txt", SIMPLIFIED.encode("utf-16"))
    with pytest.raises(SourceError, match="byte 0: expected UTF-8 text, found UTF-16 text"):
        list(utf8_chunks(utf16, Conversions("utf-8")))
    assert b"".join(utf8_chunks(utf16, Conversions("utf-16"))).decode() == SIMPLIFIED
    for name in ("klingon", "base64", "", "x" * 500):
        with pytest.raises(ConfigError, match="--encoding: expected the name of an encoding") as caught:
            Conversions(name)
        assert len(str(caught.value)) < 300
    assert find_codec("GB2312") == Found("gb18030", "GB18030")


def test_words_that_begin_binary_files_may_begin_a_text(tmp_path: Path) -> None:
    """And an escape that is no Japanese stays."""
    for text in ("GGUF is a file format.\n", "PAR1 of the rules:\n", "A\x1b$ and \x1b$Bz\n"):
        assert b"".join(utf8_chunks(write(tmp_path / "a.txt", text.encode()))).decode() == text
    for data, kind in ((b"GGUF\x03\0\0\0more", "a GGUF model"), (b"PAR1\x15\x04\x15", "a parquet file")):
        with pytest.raises(SourceError, match=f"expected UTF-8 text, found {kind}"):
            list(utf8_chunks(write(tmp_path / "a.txt", data)))


def test_utf8_with_a_bad_byte_is_not_converted(tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt", SIMPLIFIED.encode() + b"\xff" + SIMPLIFIED.encode())
    with pytest.raises(SourceError, match=f"byte {len(SIMPLIFIED.encode())} is not UTF-8"):
        list(utf8_chunks(path))


@pytest.mark.parametrize("size", [1, 3, 1 << 10, 1 << 20])
def test_offsets_are_those_of_the_file(size: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(utf8_files, "_CHUNK_BYTES", size)
    good = ("abc\n" + SIMPLIFIED * 4).encode("gbk") + b" " * (1 << 17)
    path = write(tmp_path / "a.txt", good + b"\xff\xff" + SIMPLIFIED.encode("gbk"))
    with pytest.raises(SourceError, match=f"byte {len(good):,} is not GB18030") as caught:
        list(utf8_chunks(path))
    assert "--encoding NAME" in str(caught.value)


@pytest.mark.parametrize("encoding", ["gb18030", "utf-16-le", "shift-jis", "iso-2022-jp"])
def test_no_chunk_boundary_matters(encoding: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = "a page\n" + (JAPANESE * 3 if encoding in ("shift-jis", "iso-2022-jp") else SIMPLIFIED * 3 + "𠮷")
    path = write(tmp_path / "a.txt", text.encode(encoding))
    for size in (1, 2, 3, 7, 64, 1 << 20):
        monkeypatch.setattr(utf8_files, "_CHUNK_BYTES", size)
        assert b"".join(utf8_chunks(path)).decode() == text


def test_a_large_file_is_a_stream(tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt", SIMPLIFIED.encode("gbk") * 300_000)  # 24 MB
    tracemalloc.start()
    total = sum(map(len, utf8_chunks(path)))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert total == len(SIMPLIFIED.encode()) * 300_000 and peak < 12 << 20


def test_rows(tmp_path: Path) -> None:
    """Every format of text rows, also packed."""
    row = json.dumps({"text": SIMPLIFIED.strip()}, ensure_ascii=False)
    files = {
        "a.jsonl": row + "\n",
        "a.json": f"[{row}]",
        "a.csv": f"text\n{SIMPLIFIED}",
        "a.tsv": f"text\n{SIMPLIFIED}",
    }
    for name, content in files.items():
        for suffix, pack in (("", bytes), (".gz", gzip.compress)):
            path = write(tmp_path / f"{name}{suffix}", pack(content.encode("gbk")))
            bad = BadRows()
            assert [each.values["text"] for each in read_rows(path, bad=bad)] == [SIMPLIFIED.strip()]
            assert bad.conversions.converted == {str(path): "GB18030"}


def test_real_texts(shared_data: Path) -> None:
    poems = (shared_data / "text" / "tang_poems_zh_hant.txt").read_text(encoding="utf-8").split("\n\n")[::2000]
    for poem in poems:
        for encoding in ("big5", "gb18030"):
            found = detect(data := poem.encode(encoding, "ignore"))
            assert isinstance(found, Unsure) or data.decode(found.codec) == data.decode(encoding)
    whole = "\n\n".join(poems).encode("big5", "ignore")
    assert detect(whole) == Found("cp950", "Big5")
    table = (shared_data / "documents" / "test_mskanji.csv").read_bytes()
    assert detect(table) == Found("cp932", "Shift-JIS")


MOJIBAKE = [
    (SIMPLIFIED.encode().decode("gb18030", "replace"), "UTF-8 that was read as GBK"),
    (SIMPLIFIED.encode().decode("latin-1"), "UTF-8 that was read as Latin-1"),
    ((GERMAN * 2).encode().decode("cp1252"), "UTF-8 that was read as Latin-1"),
    (SIMPLIFIED.encode("gbk").decode("latin-1"), "GB18030 that was read as Latin-1"),
    (SIMPLIFIED.encode().decode("ascii", "replace"), "replacement characters (U+FFFD)"),
    ("锟斤拷锟斤拷", "锟斤拷"),
]


@pytest.mark.parametrize(("text", "what"), MOJIBAKE)
def test_mojibake_is_named(text: str, what: str, tmp_path: Path) -> None:
    conversions = Conversions()
    path = write(tmp_path / "a.txt", text.encode())
    assert b"".join(utf8_chunks(path, conversions)).decode() == text
    assert what in conversions.describe_damaged() and str(path) in conversions.describe_damaged()


@pytest.mark.parametrize(
    "text", [SIMPLIFIED, TRADITIONAL, JAPANESE, KOREAN, GERMAN, FRENCH, RUSSIAN, "Ã is a letter", "水平分割垂直分割"]
)
def test_good_text_is_no_mojibake(text: str) -> None:
    assert describe_mojibake(text * 20) is None


@pytest.mark.parametrize(("encoding", "name"), [("gb18030", "GB18030"), ("big5", "Big5"), ("shift-jis", "Shift-JIS"),
                                                ("euc-kr", "EUC-KR")])  # fmt: skip
@pytest.mark.parametrize("utf8_lines", [range(3), range(37, 40), range(1, 40, 2), range(39)])
def test_two_encodings_in_one_file(encoding: str, name: str, utf8_lines: range, tmp_path: Path) -> None:
    """Files that were joined from several: never half of it as nonsense, and the reason is named."""
    text = {"gb18030": SIMPLIFIED, "big5": TRADITIONAL, "shift-jis": JAPANESE, "euc-kr": KOREAN}[encoding]
    lines = [text.encode("utf-8" if number in utf8_lines else encoding) for number in range(40)]
    path = write(tmp_path / "a.txt", b"".join(lines))
    for asked in (None, encoding):
        with pytest.raises(SourceError, match=f"{name}.*UTF-8|UTF-8.*{name}") as raised:
            list(utf8_chunks(path, Conversions(asked)))
        assert "mixes" in str(raised.value) and "convert its parts separately" in str(raised.value)

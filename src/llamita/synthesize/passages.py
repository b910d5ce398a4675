"""Documents as the passages that questions are asked about, with what must stay held out left out."""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from llamita.config import SynthesizeConfig
from llamita.data.documents import Document, list_sources, read_documents
from llamita.data.file_formats import PLAIN_SUFFIXES, find_suffix
from llamita.data.split_plan import DEFAULT_VAL_FRACTION, document_hashes
from llamita.data.token_store import TokenStore
from llamita.data.utf8_files import Conversions
from llamita.errors import SourceError
from llamita.finetune.conversations import read_conversations
from llamita.synthesize.words import HAN, cut_sentences, language_of

MIN_PASSAGE_BYTES: Final = 24
_BLANK_LINES = re.compile(r"\n[ \t\u3000]*(?:\n[ \t\u3000]*)+")
_FENCE = re.compile(r"\s*(```|~~~)")
_NUMERALS: Final = "一二三四五六七八九十百零〇"
_HEADING = re.compile(
    r"#{1,6}[ \t]+(?P<hashes>.+)"
    r"|(?P<numbered>\d+(?:\.\d+)+\.?[ \t]+[^\W\d_].{0,70}[^.!?:;,。！？：；，])"
    rf"|(?P<chinese>(?:第[{_NUMERALS}\d]+[章节節篇部回卷条條]|[{_NUMERALS}]+、|（[{_NUMERALS}]+）).{{0,40}}[^。！？：；，、])"
    r"|【(?P<bracketed>.{1,30})】"
)
_IMAGE = re.compile(r"!\[[^\]\n]{0,300}\]\([^)\n]{0,1000}\)")
_RULE = re.compile(r"(?:-{3,}|\*{3,}|_{3,}|={3,})")
_TITLE_KEY = re.compile(r"title[ \t]*:[ \t]*(.+)", re.IGNORECASE)
MAX_TITLE_CHARACTERS: Final = 80
MAX_LINE_CHARACTERS: Final = 300  # of a heading
_NO_TITLE_END: Final = (".", "。", "，", ",", ";", "；", ":", "：", "!", "！", "、", "-")


@dataclasses.dataclass(frozen=True)
class Section:
    """The text below a heading, up to the next one; heading: "" before the first."""

    heading: str
    text: str


@dataclasses.dataclass(frozen=True)
class Origin:
    """Where a row comes from. document_id: the hash of the document, which also decides whether it
    is held out. position: as in `Document`."""

    source: str
    position: int
    document_id: str
    title: str
    is_held_out: bool = False


@dataclasses.dataclass(frozen=True)
class Text:
    """A document. body: the text below the title, of which the sections are."""

    origin: Origin
    body: str
    sections: tuple[Section, ...]
    language: str


@dataclasses.dataclass(frozen=True)
class Passage:
    """A part of a document, of whole paragraphs or sentences."""

    origin: Origin
    text: str
    language: str


@dataclasses.dataclass
class DocumentCounts:
    documents: int = 0
    duplicates: int = 0
    held_out: int = 0


def read_texts(config: SynthesizeConfig, counts: DocumentCounts, conversions: Conversions) -> Iterator[Text]:
    """Every document once; none that is held out, except for --val-out. Raises SourceError,
    StoreError."""
    held_out_texts = _held_out_hashes(config)
    fraction = config.val_fraction
    if fraction is None:
        fraction = 0.0 if config.held_out else DEFAULT_VAL_FRACTION
    threshold = int(fraction * 2**64)
    seen: set[bytes] = set()
    for document in read_documents(
        list_sources(config.sources, skip_unknown=config.skip_unknown),
        separator=config.separator,
        split_on=config.split_on,
        text_key=config.text_key,
        conversions=conversions,
    ):
        text = document.text.encode("utf-8")
        (digest,) = document_hashes([text], config.seed)
        counts.documents += 1
        if digest in seen:
            counts.duplicates += 1
            continue
        seen.add(digest)
        is_val = int.from_bytes(digest[:8], "little") < threshold  # as in SplitPlan
        is_held_out = is_val or document_hashes([text], 0)[0] in held_out_texts
        counts.held_out += is_held_out
        if not is_held_out or config.val_out is not None:
            yield _text_of(document, digest.hex(), is_held_out)
    if not counts.documents:
        unread = conversions.document_files.describe_unread()
        raise SourceError(f"no text in {', '.join(config.sources)}: {unread[0] if unread else 'it is empty'}")


def _is_store(path: Path) -> bool:
    return (path / "store.json").is_file()


def _is_text(path: Path) -> bool:
    """A text, a document, or a folder of these."""
    if path.is_dir():
        return any(find_suffix(each) in PLAIN_SUFFIXES for each in path.glob("*"))
    return find_suffix(path) in PLAIN_SUFFIXES


def _held_out_hashes(config: SynthesizeConfig) -> set[bytes]:
    """The hashes of held-out documents: of the token stores and texts among --held-out."""
    hashes: set[bytes] = set()
    for path in config.held_out:
        if _is_store(path):
            from llamita.tokenizer import load_tokenizer  # needs packages that nothing else here needs

            split, tokenizer = TokenStore(path).split("val"), load_tokenizer(path)
            ids = (split.document(number)[:-1].tolist() for number in range(split.num_documents))
            hashes.update(document_hashes([tokenizer.decode(each) for each in ids], 0))
        elif _is_text(path):
            found = read_documents(
                [str(path)], separator=config.separator, split_on=config.split_on, text_key=config.text_key,
                conversions=Conversions(config.encoding),
            )  # fmt: skip
            hashes.update(document_hashes([each.text.encode("utf-8") for each in found], 0))
    return hashes


def held_out_questions(config: SynthesizeConfig) -> Iterator[str]:
    """What users ask in the files of examples among --held-out. Raises SourceError."""
    for path in config.held_out:
        if not path.exists():
            raise SourceError(f"--held-out: no such file or folder: {path}")
        if not _is_store(path) and not _is_text(path):
            for conversation in read_conversations(path):
                yield from (turn.text for turn in conversation.turns if turn.role == "user")


# ---- structure


def _text_of(document: Document, document_id: str, is_held_out: bool) -> Text:
    title, body, sections = split_sections(document.text)
    source = os.fsencode(document.source).decode("utf-8", "backslashreplace")
    origin = Origin(source, document.position, document_id, title, is_held_out)
    return Text(origin, body, sections, language_of(document.text))


def split_sections(text: str) -> tuple[str, str, tuple[Section, ...]]:
    """The title, the text below it, and its sections, without Markdown's images and rules. A title
    is that of a front matter, a heading in the first line, or a short first line that does not end
    like a sentence."""
    title, lines = "", _IMAGE.sub("", text).split("\n")
    if lines[0].strip() == "---" and "---" in (line.strip() for line in lines[1:]):
        end = [line.strip() for line in lines].index("---", 1)
        found = [match[1].strip(" \"'") for line in lines[1:end] if (match := _TITLE_KEY.fullmatch(line.strip()))]
        title, lines = next(iter(found), ""), lines[end + 1 :]
    lines = lines[next((number for number, line in enumerate(lines) if line.strip()), len(lines)) :]
    if lines and not title:
        heading = heading_of(lines[0])
        underlined = len(lines) > 1 and re.fullmatch(r"={3,}|-{3,}", lines[1].strip())
        if heading or _is_title(lines):
            title = heading or lines[0].strip()
            lines = lines[2 if underlined else 1 :]
    lines = [line for line in lines if not _RULE.fullmatch(line.strip())]
    sections, heading, kept, is_code = [], "", list[str](), False
    for line in lines:
        is_code ^= _FENCE.match(line) is not None
        found_heading = "" if is_code else heading_of(line)
        if found_heading:
            sections.append(Section(heading, "\n".join(kept).strip()))
            heading, kept = found_heading, []
        else:
            kept.append(line)
    sections.append(Section(heading, "\n".join(kept).strip()))
    return title, "\n".join(lines).strip(), tuple(each for each in sections if each.text)


def heading_of(line: str) -> str:
    """The heading that a line is, or ""."""
    found = _HEADING.fullmatch(line.strip()) if len(line) <= MAX_LINE_CHARACTERS else None
    if found is None or found.lastgroup is None:
        return ""
    return found[found.lastgroup].rstrip(" \t#").strip(" *_")


def _is_title(lines: list[str]) -> bool:
    first = lines[0].strip()
    width = len(first) + len(re.findall(f"[{HAN}]", first))
    return len(lines) > 1 and 0 < width <= MAX_TITLE_CHARACTERS and not first.endswith(_NO_TITLE_END)


def cut_passages(text: Text, limit_bytes: int) -> Iterator[Passage]:
    """The text below the title in passages of at most `limit_bytes` (UTF-8)."""
    kept, size = list[str](), 0
    for piece, boundary in _pieces(text.body, limit_bytes):
        more = len(boundary.encode()) + len(piece.encode())
        if kept and size + more > limit_bytes:
            yield from _passage(text.origin, kept)
            kept, size = [], 0
        kept += [boundary, piece] if kept else [piece]
        size += more
    yield from _passage(text.origin, kept)


def _passage(origin: Origin, kept: list[str]) -> Iterator[Passage]:
    joined = "".join(kept).strip()
    if len(joined.encode()) >= MIN_PASSAGE_BYTES:
        yield Passage(origin, joined, language_of(joined))


def _pieces(body: str, limit_bytes: int) -> Iterator[tuple[str, str]]:
    """Paragraphs, or the sentences of those that are too long, each with what stands before it."""
    for paragraph in _BLANK_LINES.split(body):
        if len(paragraph.encode()) <= limit_bytes:
            yield paragraph, "\n\n"
            continue
        boundary = "\n\n"
        for sentence in cut_sentences(paragraph):
            for part in _parts(sentence, limit_bytes):
                yield part, boundary
                boundary = ""


def _parts(sentence: str, limit_bytes: int) -> Iterator[str]:
    """A sentence in parts of at most `limit_bytes`, cut at spaces where there are any."""
    data, start = sentence.encode(), 0
    while start < len(data):
        part = data[start : start + limit_bytes].decode("utf-8", "ignore")
        at_space = part.rfind(" ") if start + limit_bytes < len(data) else 0
        part = part[:at_space] if 2 * at_space > len(part) else part
        yield part
        start += len(part.encode())

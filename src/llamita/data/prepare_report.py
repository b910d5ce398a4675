"""What `prepare` read, dropped and wrote: the report that it returns and keeps in store.json."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llamita.data.documents import SourceCounts
from llamita.data.token_store import read_store_info
from llamita.data.utf8_files import Conversions
from llamita.errors import StoreError
from llamita.json_file import Key, Schema, check_object

MAX_SKIPPED_PATHS = 8


@dataclasses.dataclass(frozen=True)
class SplitReport:
    """The size of one split."""

    documents: int
    tokens: int  # EOS included
    text_bytes: int


@dataclasses.dataclass(frozen=True)
class PrepareReport:
    """What was read and written. The counts add up exactly:

    source_bytes = train.text_bytes + val.text_bytes + duplicate_bytes + near_duplicate_bytes
    + whitespace_bytes + separator_bytes + container_bytes + unread_bytes + dropped_line_bytes
    + masked_bytes;
    documents = train.documents + val.documents + duplicate_documents + near_duplicate_documents
    + empty_documents.
    """

    out: Path
    files: int
    hidden_files: int
    source_bytes: int
    documents: int
    train: SplitReport
    val: SplitReport
    duplicate_documents: int
    duplicate_bytes: int
    near_duplicate_documents: int  # dropped
    near_duplicate_bytes: int
    near_duplicates: str  # what --near-duplicates asked for
    near_duplicates_kept: int
    near_held_out: int  # near-duplicates among training documents of a held-out one, dropped or kept
    empty_documents: int
    whitespace_bytes: int
    separator_bytes: int
    container_bytes: int
    vocab_size: int
    vocabulary: str  # where it came from, and why it has this size
    reused: bool  # the store existed, made from the same sources with the same flags
    seconds: float
    encoded_by: str
    line_ends: int  # CRLF and CR that became LF; the bytes of their CR are container_bytes
    byte_order_marks: int  # removed inside files
    dropped_lines: int  # --drop-lines
    dropped_line_bytes: int
    masked_mail: int  # pieces of personal data
    masked_phone: int
    masked_id: int
    masked_account: int
    masked_bytes: int  # how much shorter masks made the text; negative if longer
    converted: str  # which files were in other encodings, "" if none
    damaged: str  # which files were converted wrongly before, "" if none
    document_files: str  # how many files of each kind were read as documents, such as PDF; "" if none
    unread: tuple[str, ...]  # lines about documents that could not be read
    unread_bytes: int
    left_out: str  # of documents that were read, "" if nothing
    skipped_files: int  # of unknown types
    skipped_paths: tuple[str, ...]  # the first MAX_SKIPPED_PATHS of them

    @property
    def tokens(self) -> int:
        return self.train.tokens + self.val.tokens

    @property
    def text_bytes(self) -> int:
        return self.train.text_bytes + self.val.text_bytes

    @property
    def bytes_per_token(self) -> float:
        return self.text_bytes / self.tokens


_ELSEWHERE = ("out", "train", "val", "vocab_size", "reused", "seconds")  # not in "report"
_COUNTS = (
    "byte_order_marks", "dropped_lines", "dropped_line_bytes", "masked_mail", "masked_phone", "masked_id",
    "masked_account", "masked_bytes",
)  # fmt: skip
_KEYS = {
    "int": Key("integer", required=True, minimum=-(2**53), maximum=2**53),  # negative: packed files
    "str": Key("string", required=True),
    "tuple[str, ...]": Key("list", required=True, items=Key("string", required=True)),
}
REPORT: Schema = {
    field.name: _KEYS[str(field.type)] for field in dataclasses.fields(PrepareReport) if field.name not in _ELSEWHERE
}


def report_entry(
    counts: SourceCounts,
    *,
    vocabulary: str,
    encoded_by: str,
    hidden_files: int = 0,
    skipped: Sequence[str] = (),
    conversions: Conversions | None = None,
    duplicate_documents: int = 0,
    duplicate_bytes: int = 0,
    near_duplicates: str = "keep",
    near_duplicate_documents: int = 0,
    near_duplicate_bytes: int = 0,
    near_duplicates_kept: int = 0,
    near_held_out: int = 0,
) -> dict[str, Any]:
    """The "report" in store.json: the fields of PrepareReport that are not in its other entries."""
    found = conversions or Conversions()
    return {
        "files": counts.files,
        "hidden_files": hidden_files,
        "converted": found.describe_converted(),
        "damaged": found.describe_damaged(),
        "document_files": found.document_files.describe_read(),
        "unread": found.document_files.describe_unread(),
        "left_out": found.document_files.describe_notes(),
        "skipped_files": len(skipped),
        "skipped_paths": list(skipped[:MAX_SKIPPED_PATHS]),
        "source_bytes": counts.source_bytes,
        "documents": counts.documents + counts.empty_documents,
        "duplicate_documents": duplicate_documents,
        "duplicate_bytes": duplicate_bytes,
        "near_duplicates": near_duplicates,
        "near_duplicate_documents": near_duplicate_documents,
        "near_duplicate_bytes": near_duplicate_bytes,
        "near_duplicates_kept": near_duplicates_kept,
        "near_held_out": near_held_out,
        "empty_documents": counts.empty_documents,
        "whitespace_bytes": counts.whitespace_bytes,
        "separator_bytes": counts.separator_bytes,
        "container_bytes": counts.container_bytes,
        "unread_bytes": counts.unread_bytes,
        "vocabulary": vocabulary,
        "encoded_by": encoded_by,
        "line_ends": counts.line_ends,
        **{name: getattr(counts, name) for name in _COUNTS},
    }


def read_report(out: Path, seconds: float, *, reused: bool) -> PrepareReport:
    """The report of the store at `out`. Raises StoreError."""
    info = read_store_info(out)
    report = check_object(info["report"], REPORT, f"{Path(out) / 'store.json'}: report", StoreError)
    splits = {
        name: SplitReport(split["documents"], split["tokens"], split["text_bytes"])
        for name, split in info["splits"].items()
    }
    values: dict[str, Any] = {name: report[name] for name in REPORT}
    for name in ("skipped_paths", "unread"):
        values[name] = tuple(values[name])
    return PrepareReport(
        out=out,
        train=splits["train"],
        val=splits["val"],
        vocab_size=info["tokenizer"]["vocab_size"],
        reused=reused,
        seconds=seconds,
        **values,
    )

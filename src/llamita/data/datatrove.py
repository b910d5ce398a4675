"""Makes a token store from files of datatrove's DocumentTokenizer (NAME.ds, NAME.ds.index).

The store links to them. Each file is read once, to check what training relies on: ids are in the
vocabulary, every document ends with EOS, no token is masked (NAME.ds.loss), and, on a sample, that
the tokenizer is the one that made the tokens.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from llamita.console import shorten
from llamita.data.document_origins import DocumentOrigins
from llamita.data.token_store import SPLITS, StoreWriter, id_type
from llamita.errors import SourceError
from llamita.progress import Progress
from llamita.tokenizer import Tokenizer

_CHUNK_DOCUMENTS = 1 << 16
_CHUNK_TOKENS = 1 << 23
_SAMPLED_DOCUMENTS, _SAMPLED_TOKENS = 16, 512  # of a file are decoded and encoded again
_SAMPLED_FILES = 64  # of which this is done
_MIN_ALIKE = 0.9  # of these; llamita encodes a control token that is written in a text differently


@dataclasses.dataclass(frozen=True)
class TokenFile:
    """A .ds file and its index. They are memory-mapped when they are read: there may be many."""

    path: Path
    dtype: np.dtype[Any]
    num_tokens: int
    num_documents: int

    @property
    def num_bytes(self) -> int:
        """Bytes of the .ds file."""
        return self.num_tokens * self.dtype.itemsize

    def map(self) -> TokenArrays:
        """Open both files, until the arrays are dropped."""
        return TokenArrays(
            np.memmap(self.path, dtype=self.dtype, mode="r", shape=(self.num_tokens,)),
            np.memmap(self.index_path, dtype="<u8", mode="r", shape=(self.num_documents,)),
        )

    @property
    def index_path(self) -> Path:
        return _beside(self.path, ".index")


@dataclasses.dataclass(frozen=True)
class TokenArrays:
    """A .ds file and its index, memory-mapped."""

    tokens: npt.NDArray[Any]  # [tokens]
    ends: npt.NDArray[np.uint64]  # [documents]

    def lengths(self, first: int, last: int) -> npt.NDArray[np.int64]:
        """Tokens of the documents first to last - 1."""
        before = int(self.ends[first - 1]) if first else 0
        lengths = self.ends[first:last].astype(np.int64)
        lengths[1:] -= lengths[:-1].copy()
        lengths[0] -= before
        return lengths

    def ids(self, first: int, last: int) -> npt.NDArray[Any]:
        """The ids of the documents first to last - 1, one after another."""
        return self.tokens[int(self.ends[first - 1]) if first else 0 : int(self.ends[last - 1])]

    def chunks(self, first: int, last: int) -> Iterator[tuple[int, int]]:
        """Cut documents first to last - 1 into runs of bounded size, at least one document each."""
        while first < last:
            start = int(self.ends[first - 1]) if first else 0
            end = int(np.searchsorted(self.ends, start + _CHUNK_TOKENS, side="right"))
            end = max(first + 1, min(end, first + _CHUNK_DOCUMENTS, last))
            yield first, end
            first = end


def find_token_files(sources: Sequence[str], vocab_size: int) -> list[TokenFile]:
    """All .ds files in folders and their subfolders, by name, or given one by one or in a list.

    A list is a .txt file with a path in each line, relative to the list's folder; datatrove calls
    it a paths_file. Raises SourceError if there are none, or if a file and its index do not match.
    """
    found: list[TokenFile] = []
    for source in sources:
        path = Path(source)
        if path.suffix == ".txt":
            paths = _read_list(path)
        else:
            paths = sorted(path.rglob("*.ds")) if path.is_dir() else [path]
            if not paths or not all(each.is_file() and each.suffix == ".ds" for each in paths):
                raise SourceError(
                    f"no token files in {path}: expected NAME.ds and NAME.ds.index, as datatrove writes them"
                )
        # A rank of datatrove that had no documents leaves an empty file.
        found += [_inspect(each, vocab_size) for each in paths if each.stat().st_size]
    if not found:
        raise SourceError(f"no tokens in {', '.join(sources)}: all .ds files are empty")
    return found


def _read_list(path: Path) -> list[Path]:
    """The paths in a list, in its order. Raises SourceError."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:
        raise SourceError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}") from None
    numbered = [(number, path.parent / line) for number, line in enumerate(lines, 1) if line.strip()]
    for number, each in numbered:
        if each.suffix != ".ds" or not each.is_file():
            raise SourceError(
                f"cannot read {path}: line {number}: expected the path of a .ds file, found {shorten(str(each))}"
            )
    if not numbered:
        raise SourceError(f"cannot read {path}: it is empty; expected the path of a .ds file in each line")
    return [each for _, each in numbered]


def adopt(
    writer: StoreWriter,
    tokenizer: Tokenizer,
    train: Sequence[TokenFile],
    val: Sequence[TokenFile],
    val_fraction: float,
    progress: Progress,
) -> None:
    """Add the files to a store.

    Without `val`, hold out the last val_fraction of the documents, which datatrove has shuffled.
    The file in which they begin is copied, in two parts.

    progress: counts the bytes of tokens. Raises SourceError, which names the file and document, if
    something cannot be used for training.
    """
    sizes = np.array(tokenizer.byte_lengths(), np.int64)
    first_space = np.array(tokenizer.adds_first_space(), np.bool_)
    left = 0 if val else max(1, round(val_fraction * sum(file.num_documents for file in train)))
    first_val = {id(file): 0 for file in val}  # the first held-out document of a file
    for file in reversed(train):
        if left:
            first_val[id(file)] = max(0, file.num_documents - left)
            left -= min(left, file.num_documents)
    files = [*train, *val]
    origins = {split: DocumentOrigins() for split in SPLITS}
    total, done = sum(file.num_bytes for file in files), 0
    sampled = set(np.linspace(0, len(files) - 1, _SAMPLED_FILES).astype(np.int64).tolist())
    for index, file in enumerate(files):
        count, arrays = file.num_documents, file.map()
        if index in sampled:
            _check_tokenizer(file.path, arrays, tokenizer)
        for name, first, last in _parts(first_val.get(id(file), count), count):
            whole = first == 0 and last == count
            origins[name].add(file.path.name, range(first + 1, last + 1))
            text_bytes = 0
            for start, end in arrays.chunks(first, last):
                ids, lengths = arrays.ids(start, end), arrays.lengths(start, end)
                _check(file.path, start, ids, lengths, tokenizer)
                starts = np.cumsum(lengths) - lengths
                text_bytes_here = int(sizes[ids].sum()) - int(first_space[ids[starts]].sum())
                text_bytes += text_bytes_here
                if not whole:
                    writer.add(name, ids, lengths, text_bytes_here)
                done += ids.nbytes
                progress("checking tokens", done, total)
            if whole:
                writer.link(name, file.path, file.index_path, count, file.num_tokens, text_bytes)
    for split in SPLITS:
        writer.add_origins(split, origins[split])


def _parts(boundary: int, count: int) -> list[tuple[Literal["train", "val"], int, int]]:
    """The ranges of documents before and after the boundary, without empty ones."""
    train: tuple[Literal["train", "val"], int, int] = ("train", 0, boundary)
    val: tuple[Literal["train", "val"], int, int] = ("val", boundary, count)
    return [part for part in (train, val) if part[1] < part[2]]


def _inspect(path: Path, vocab_size: int) -> TokenFile:
    """Compare a .ds file with its index, mask and metadata. Raises SourceError."""
    dtype, index = id_type(vocab_size), _beside(path, ".index")
    if not index.is_file():
        raise SourceError(f"cannot read {path}: {index.name} is missing; datatrove writes it with save_index=True")
    metadata = _beside(path, ".metadata")
    if metadata.is_file():
        size = metadata.read_text(encoding="utf-8", errors="replace").split("\n")[0].rpartition("|")[2]
        if size.isdigit() and int(size) != dtype.itemsize:
            raise SourceError(
                f"cannot read {path}: expected {dtype.itemsize} bytes per token for a vocabulary of {vocab_size:,}, "
                f"found {size} in its .metadata; give the --tokenizer that datatrove used"
            )
    num_bytes, index_bytes = path.stat().st_size, index.stat().st_size
    if num_bytes % dtype.itemsize or index_bytes % 8 or not index_bytes:
        raise SourceError(
            f"cannot read {path}: expected multiples of {dtype.itemsize} bytes of tokens and 8 bytes of index, found "
            f"{num_bytes:,} and {index_bytes:,}; was the file cut off?"
        )
    num_tokens, ends = num_bytes // dtype.itemsize, np.fromfile(index, "<u8")
    if int(ends[-1]) != num_tokens or int(ends[0]) == 0 or not np.all(ends[1:] > ends[:-1]):
        raise SourceError(
            f"cannot read {index}: its ends do not increase from 0 to {num_tokens:,}, the number of tokens in "
            f"{path.name}"
        )
    loss = _beside(path, ".loss")
    if loss.is_file() and (loss.stat().st_size != num_tokens or not np.memmap(loss, np.uint8, "r").all()):
        raise SourceError(
            f"cannot use {loss}: it masks tokens, or does not have one byte per token, and llamita trains on all "
            "tokens; leave out the documents that should not be learned, or remove the file"
        )
    return TokenFile(path, dtype, num_tokens, len(ends))


def _check(path: Path, first: int, ids: npt.NDArray[Any], lengths: npt.NDArray[np.int64], tokenizer: Tokenizer) -> None:
    """Raise SourceError unless all ids are in the vocabulary and every document ends with EOS."""
    if int(ids.max()) >= tokenizer.vocab_size:
        raise SourceError(
            f"cannot use {path}: expected ids below {tokenizer.vocab_size:,}, found {int(ids.max()):,}; give the "
            "--tokenizer that datatrove used"
        )
    assert tokenizer.eos_id is not None
    wrong = np.flatnonzero(ids[np.cumsum(lengths) - 1] != tokenizer.eos_id)
    if wrong.size:
        raise SourceError(
            f"cannot use {path}: document {first + int(wrong[0]):,} does not end with EOS (id "
            f"{tokenizer.eos_id}); run DocumentTokenizer with eos_token={tokenizer.pieces()[tokenizer.eos_id]!r} and "
            "without shuffle_chunk_size"
        )


def _check_tokenizer(path: Path, arrays: TokenArrays, tokenizer: Tokenizer) -> None:
    """Raise SourceError unless a sample of the documents, decoded and encoded, has the same ids."""
    alike = tried = 0
    for number in np.unique(np.linspace(0, len(arrays.ends) - 1, _SAMPLED_DOCUMENTS).astype(np.int64)).tolist():
        ids = arrays.ids(number, number + 1)[:-1].tolist()
        if len(ids) > _SAMPLED_TOKENS or not ids or max(ids) >= tokenizer.vocab_size:
            continue
        tried += 1
        alike += tokenizer.encode(tokenizer.decode(ids).decode("utf-8", "replace")) == ids
    if alike < _MIN_ALIKE * tried:
        raise SourceError(
            f"cannot use {path}: {tried - alike} of {tried} documents change when they are decoded and encoded "
            "again; were they made with this --tokenizer, with EOS and without BOS?"
        )


def _beside(path: Path, suffix: str) -> Path:
    return path.with_name(path.name + suffix)

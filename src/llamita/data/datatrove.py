"""Token files of datatrove's DocumentTokenizer (NAME.ds, NAME.ds.index) to a token store, without copying what fits.

The store's files are links to datatrove's. All of them are read once, to check what training relies on: ids inside the
vocabulary, EOS at every document's end, no token masked (NAME.ds.loss), and on a sample that the
tokenizer is the one that they were made with.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from llamita.data.token_store import StoreWriter, id_type
from llamita.errors import SourceError
from llamita.tokenizer import Tokenizer

_CHUNK_DOCUMENTS = 1 << 16
_CHUNK_TOKENS = 1 << 23
_SAMPLED_DOCUMENTS, _SAMPLED_TOKENS = 16, 512  # of each file: decoded, and encoded again
_MIN_ALIKE = 0.9  # of them: a text that writes out a control token is encoded in another way here


@dataclasses.dataclass(frozen=True)
class TokenFile:
    """One .ds file with its index, mapped."""

    path: Path
    tokens: npt.NDArray[Any]  # [tokens]
    ends: npt.NDArray[np.uint64]  # [documents]

    @property
    def index_path(self) -> Path:
        return _beside(self.path, ".index")

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
        """Cut documents first to last - 1 into runs of bounded size (or one document)."""
        while first < last:
            start = int(self.ends[first - 1]) if first else 0
            end = int(np.searchsorted(self.ends, start + _CHUNK_TOKENS, side="right"))
            end = max(first + 1, min(end, first + _CHUNK_DOCUMENTS, last))
            yield first, end
            first = end


def find_token_files(sources: Sequence[str], vocab_size: int) -> list[TokenFile]:
    """Map all .ds files of some folders (their subfolders too, by name) or given one by one.

    Raises SourceError where there is none, or where a file and its index do not fit together.
    """
    found: list[TokenFile] = []
    for source in sources:
        path = Path(source)
        paths = sorted(path.rglob("*.ds")) if path.is_dir() else [path]
        if not paths or not all(each.is_file() and each.suffix == ".ds" for each in paths):
            raise SourceError(f"no token files in {path}: expected NAME.ds and NAME.ds.index, as datatrove writes them")
        found += [_open(each, vocab_size) for each in paths if each.stat().st_size]  # a rank may have had no documents
    if not found:
        raise SourceError(f"no tokens in {', '.join(sources)}: all .ds files are empty")
    return found


def adopt(
    writer: StoreWriter,
    tokenizer: Tokenizer,
    train: Sequence[TokenFile],
    val: Sequence[TokenFile],
    val_fraction: float,
    progress: Callable[[int], None],
) -> None:
    """Put files into a store: `train` and `val` as they are; without `val` the last val_fraction of the documents is
    held out (datatrove shuffles them), and the file in which that begins is copied in two parts.

    progress(bytes of tokens done). Raises SourceError naming the file and document that cannot be trained on.
    """
    sizes = np.array(tokenizer.byte_lengths(), np.int64)
    first_space = np.array(tokenizer.adds_first_space(), np.bool_)
    left = 0 if val else max(1, round(val_fraction * sum(len(file.ends) for file in train)))
    val_parts: list[tuple[TokenFile, int]] = [(file, 0) for file in val]  # from this document on
    for file in reversed(train):
        if left:
            val_parts.insert(0, (file, max(0, len(file.ends) - left)))
            left -= min(left, len(file.ends))
    borders = {id(file): first for file, first in val_parts}
    done = 0
    for file in [*train, *val]:
        border, count = borders.get(id(file), len(file.ends)), len(file.ends)
        _check_tokenizer(file, tokenizer)
        for name, first, last in _parts(border, count):
            whole = first == 0 and last == count
            text_bytes = 0
            for start, end in file.chunks(first, last):
                ids, lengths = file.ids(start, end), file.lengths(start, end)
                _check(file, start, ids, lengths, tokenizer)
                starts = np.cumsum(lengths) - lengths
                text_bytes_here = int(sizes[ids].sum()) - int(first_space[ids[starts]].sum())
                text_bytes += text_bytes_here
                if not whole:
                    writer.add(name, ids, lengths, text_bytes_here)
                done += ids.nbytes
                progress(done)
            if whole:
                writer.link(name, file.path, file.index_path, count, len(file.tokens), text_bytes)


def _parts(border: int, count: int) -> list[tuple[Literal["train", "val"], int, int]]:
    """The documents before the border are for training, the others held out; parts without documents are left out."""
    train: tuple[Literal["train", "val"], int, int] = ("train", 0, border)
    val: tuple[Literal["train", "val"], int, int] = ("val", border, count)
    return [part for part in (train, val) if part[1] < part[2]]


def _open(path: Path, vocab_size: int) -> TokenFile:
    dtype, index = id_type(vocab_size), _beside(path, ".index")
    if not index.is_file():
        raise SourceError(f"cannot read {path}: no {index.name} beside it; datatrove writes it with save_index=True")
    metadata = _beside(path, ".metadata")
    if metadata.is_file():
        said = metadata.read_text(encoding="utf-8", errors="replace").split("\n")[0].rpartition("|")[2]
        if said.isdigit() and int(said) != dtype.itemsize:
            raise SourceError(
                f"cannot read {path}: its .metadata says {said} bytes a token, a vocabulary of {vocab_size:,} has "
                f"{dtype.itemsize}; give the --tokenizer that datatrove had"
            )
    num_bytes, index_bytes = path.stat().st_size, index.stat().st_size
    if num_bytes % dtype.itemsize or index_bytes % 8 or not index_bytes:
        raise SourceError(
            f"cannot read {path}: {num_bytes:,} bytes of tokens, {index_bytes:,} of index: expected multiples of "
            f"{dtype.itemsize} and of 8; was it cut off?"
        )
    tokens: npt.NDArray[Any] = np.memmap(path, dtype=dtype, mode="r")
    ends: npt.NDArray[np.uint64] = np.memmap(index, dtype="<u8", mode="r")
    if int(ends[-1]) != len(tokens) or int(ends[0]) == 0 or not np.all(ends[1:] > ends[:-1]):
        raise SourceError(f"cannot read {index}: its ends do not rise from 0 to {len(tokens):,}, the tokens of the .ds")
    loss = _beside(path, ".loss")
    if loss.is_file() and (loss.stat().st_size != len(tokens) or not np.memmap(loss, np.uint8, "r").all()):
        raise SourceError(
            f"cannot use {loss}: it masks tokens (or is not one byte for each), and training learns from all; "
            "leave out what should not be learned, or remove the file"
        )
    return TokenFile(path, tokens, ends)


def _check(
    file: TokenFile, first: int, ids: npt.NDArray[Any], lengths: npt.NDArray[np.int64], tokenizer: Tokenizer
) -> None:
    """Raise SourceError unless every id is a token's and every document ends with EOS."""
    if int(ids.max()) >= tokenizer.vocab_size:
        raise SourceError(
            f"cannot use {file.path}: id {int(ids.max()):,} in a vocabulary of {tokenizer.vocab_size:,}; give the "
            "--tokenizer that datatrove had"
        )
    assert tokenizer.eos_id is not None
    wrong = np.flatnonzero(ids[np.cumsum(lengths) - 1] != tokenizer.eos_id)
    if wrong.size:
        raise SourceError(
            f"cannot use {file.path}: document {first + int(wrong[0]):,} does not end with EOS (id "
            f"{tokenizer.eos_id}); run DocumentTokenizer with eos_token={tokenizer.pieces()[tokenizer.eos_id]!r} and "
            "without shuffle_chunk_size"
        )


def _check_tokenizer(file: TokenFile, tokenizer: Tokenizer) -> None:
    """Raise SourceError unless a sample of the file's documents, decoded, is encoded as it was."""
    alike = tried = 0
    for number in np.unique(np.linspace(0, len(file.ends) - 1, _SAMPLED_DOCUMENTS).astype(np.int64)).tolist():
        ids = file.ids(number, number + 1)[:-1].tolist()
        if len(ids) > _SAMPLED_TOKENS or not ids or max(ids) >= tokenizer.vocab_size:
            continue
        tried += 1
        alike += tokenizer.encode(tokenizer.decode(ids).decode("utf-8", "replace")) == ids
    if alike < _MIN_ALIKE * tried:
        raise SourceError(
            f"cannot use {file.path}: {tried - alike} of {tried} documents, decoded, are encoded in another way; were "
            "they made with this --tokenizer, with EOS and without BOS?"
        )


def _beside(path: Path, suffix: str) -> Path:
    return path.with_name(path.name + suffix)

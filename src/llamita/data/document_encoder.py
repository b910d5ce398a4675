"""Encodes documents to token ids with several workers, in the order of the documents.

The engine encodes in threads, many times faster than the `tokenizers` library. It is used only if
both give the same ids; otherwise the library encodes, in processes.
"""

from __future__ import annotations

import collections
import concurrent.futures
import dataclasses
import itertools
import multiprocessing
import os
import re
import signal
import threading
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt
import tokenizers

from llamita.cores import num_cores
from llamita.data.token_store import SplitName, id_type
from llamita.engine import DocumentTokenizer
from llamita.errors import EngineError, OutputError, TokenizerError
from llamita.formats.gguf import encode_header
from llamita.tokenizer import Tokenizer
from llamita.tokenizer.gguf import tokenizer_metadata

_WORKER_BYTES = 4 << 20  # less text is not worth the start of another worker


@dataclasses.dataclass(frozen=True)
class Batch:
    """UTF-8 texts to encode, ideally about a megabyte, in the order of their documents."""

    train: list[bytes]
    val: list[bytes]

    @property
    def texts(self) -> list[bytes]:
        return self.train + self.val


# One split of an encoded batch: split, ids with an EOS after each document [tokens], tokens of each
# document [documents], bytes of text.
Encoded = tuple[SplitName, npt.NDArray[Any], npt.NDArray[np.int64], int]


class DocumentEncoder:
    """A context manager that owns the threads or processes.

    sample: texts on which the engine must agree with the `tokenizers` library before it is used.
    """

    def __init__(self, tokenizer: Tokenizer, num_workers: int | None, total_bytes: int, sample: Sequence[str]) -> None:
        available = num_cores()
        self._num_workers = num_workers or min(available, 1 + total_bytes // _WORKER_BYTES)
        assert tokenizer.eos_id is not None
        dtype = id_type(tokenizer.vocab_size)
        self._arguments = (tokenizer.to_json(), tokenizer.eos_id, dtype.str)
        found = open_engine_encoder(tokenizer, dtype, sample)
        self._engine = None if isinstance(found, str) else found
        self.encoded_by = f"the tokenizers library ({found})" if isinstance(found, str) else "the engine"
        self._encode = _encode_in_process if self._engine is None else self._engine.encode
        self._pool: concurrent.futures.Executor | None = None

    def __enter__(self) -> DocumentEncoder:
        if self._num_workers > 1 and self._engine is not None:
            self._pool = concurrent.futures.ThreadPoolExecutor(self._num_workers)
        elif self._num_workers > 1:
            # Spawned: the threads of torch and of the tokenizers library do not survive a fork.
            self._pool = concurrent.futures.ProcessPoolExecutor(
                self._num_workers,
                mp_context=multiprocessing.get_context("spawn"),
                initializer=_start_process,
                initargs=self._arguments,
            )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)

    def encode(self, batches: Iterable[Batch]) -> Iterator[list[Encoded]]:
        """Encode batch by batch, in order."""
        if self._pool is None:
            encoder = self._engine or _LibraryEncoder(*self._arguments)
            for batch in batches:
                yield _by_split(batch, *encoder.encode(batch.texts))
            return
        waiting: collections.deque[tuple[Batch, concurrent.futures.Future[Any]]] = collections.deque()
        try:
            for batch in batches:
                waiting.append((batch, self._pool.submit(self._encode, batch.texts)))
                if len(waiting) > 2 * self._num_workers:
                    first, future = waiting.popleft()
                    yield _by_split(first, *future.result())
            while waiting:
                first, future = waiting.popleft()
                yield _by_split(first, *future.result())
        except BrokenProcessPool:
            raise OutputError(
                "an encoding process was killed (out of memory?); run the command again with fewer --num-workers"
            ) from None


def _by_split(batch: Batch, ids: npt.NDArray[Any], lengths: npt.NDArray[np.int64]) -> list[Encoded]:
    """Separate the ids of a batch's texts into its splits."""
    documents = len(batch.train)
    tokens = int(lengths[:documents].sum())
    train: Encoded = ("train", ids[:tokens], lengths[:documents], sum(map(len, batch.train)))
    val: Encoded = ("val", ids[tokens:], lengths[documents:], sum(map(len, batch.val)))
    return [part for part in (train, val) if part[2].size]


# ---- the engine


class EngineEncoder:
    """Encodes with the engine: the ids of `Tokenizer.encode_batch`, and EOS. Threads may share it.

    single_spaces: drop the spaces around a text and merge runs of spaces within it, as
    SentencePiece does with remove_extra_whitespaces.
    """

    def __init__(self, tokenizer: DocumentTokenizer, eos_id: int, dtype: np.dtype[Any], *, single_spaces: bool) -> None:
        self._tokenizer, self._eos_id, self._dtype = tokenizer, eos_id, dtype
        self._single_spaces = single_spaces

    def encode(self, texts: Sequence[bytes]) -> tuple[npt.NDArray[Any], npt.NDArray[np.int64]]:
        """ids of all texts, EOS after each [tokens]; tokens of each text [documents]."""
        if self._single_spaces:
            stripped = (text.strip(b" ") for text in texts)
            texts = [re.sub(rb" {2,}", b" ", text) if b"  " in text else text for text in stripped]
        ends = np.cumsum(np.fromiter(map(len, texts), np.uint64, len(texts)), dtype=np.uint64)
        ids, token_ends = self._tokenizer.encode(b"".join(texts), ends, self._eos_id)
        lengths = token_ends.astype(np.int64)
        lengths[1:] -= lengths[:-1].copy()
        return ids.astype(self._dtype), lengths


def open_engine_encoder(tokenizer: Tokenizer, dtype: np.dtype[Any], sample: Sequence[str]) -> EngineEncoder | str:
    """An EngineEncoder if the engine and the `tokenizers` library give the same ids for every text
    of `sample`; otherwise the reason why it cannot be used."""
    assert tokenizer.eos_id is not None
    reason = tokenizer.engine_obstacle
    if reason is not None:
        return reason
    try:
        metadata = tokenizer_metadata(tokenizer, tokenizer.vocab_size, [tokenizer.eos_id])
        engine = DocumentTokenizer(encode_header(metadata), "the store's")
        encoder = EngineEncoder(
            engine,
            tokenizer.eos_id,
            dtype,
            single_spaces=tokenizer.kind == "llama" and tokenizer.remove_extra_whitespaces,
        )
        ids, lengths = encoder.encode([text.encode("utf-8") for text in sample])
    except (EngineError, TokenizerError) as error:
        return str(error)
    ends = np.cumsum(lengths)
    for text, expected, end, length in zip(sample, tokenizer.encode_batch(sample), ends, lengths, strict=True):
        if ids[end - length : end - 1].tolist() != expected:
            return f"the engine gives other ids than the tokenizers library for {text[:40]!r}"
    return encoder


# ---- the tokenizers library


class _LibraryEncoder:
    """Encodes with the `tokenizers` library; each process has its own."""

    def __init__(self, tokenizer_json: str, eos_id: int, dtype: str) -> None:
        self._tokenizer = tokenizers.Tokenizer.from_str(tokenizer_json)
        self._tokenizer.encode_special_tokens = True  # a control token written in a text is text
        self._eos_id = eos_id
        self._dtype = np.dtype(dtype)

    def encode(self, texts: Sequence[bytes]) -> tuple[npt.NDArray[Any], npt.NDArray[np.int64]]:
        """ids of all texts, EOS after each [tokens]; tokens of each text [documents]."""
        encoded = self._tokenizer.encode_batch_fast([str(text, "utf-8") for text in texts], add_special_tokens=False)
        documents = [[*encoding.ids, self._eos_id] for encoding in encoded]
        lengths = np.fromiter(map(len, documents), np.int64, len(documents))
        ids = np.fromiter(itertools.chain.from_iterable(documents), self._dtype, int(lengths.sum()))
        return ids, lengths


_encoder: _LibraryEncoder | None = None  # of this process, if it is a worker


def _start_process(tokenizer_json: str, eos_id: int, dtype: str) -> None:
    """Load the tokenizer once per process. The parent handles Ctrl-C and runs the processes in
    parallel, so the library must not start threads of its own."""
    global _encoder
    threading.Thread(target=_exit_with_parent, daemon=True).start()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    _encoder = _LibraryEncoder(tokenizer_json, eos_id, dtype)


def _exit_with_parent() -> None:
    """Exit when the parent is gone, even if it was killed: nobody waits for the result."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _encode_in_process(texts: Sequence[bytes]) -> tuple[npt.NDArray[Any], npt.NDArray[np.int64]]:
    assert _encoder is not None
    return _encoder.encode(texts)

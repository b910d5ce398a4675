"""Documents to token ids, in the documents' order whatever the number of workers.

The engine encodes, in threads; a tokenizer that it cannot stand in for is left to the `tokenizers` library, in
processes.
"""

from __future__ import annotations

import collections
import concurrent.futures
import dataclasses
import itertools
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt
import tokenizers

from llamita.data.engine_tokenizer import open_engine_encoder
from llamita.data.token_store import SplitName, id_type
from llamita.errors import OutputError
from llamita.tokenizer import Tokenizer

_PROCESS_BYTES = 4 << 20  # a process is worth its start from so much text on


@dataclasses.dataclass(frozen=True)
class Batch:
    """Texts to encode, UTF-8, best about a megabyte of them; of each split in the documents' order."""

    train: list[bytes]
    val: list[bytes]

    @property
    def texts(self) -> list[bytes]:
        return self.train + self.val


# A batch's documents of one split: split, ids with each document's EOS [tokens], tokens [documents], text bytes.
Encoded = tuple[SplitName, npt.NDArray[Any], npt.NDArray[np.int64], int]


class DocumentEncoder:
    """Encodes documents with a tokenizer; a context manager, because it may own threads or processes.

    sample: texts on which the engine has to agree with the `tokenizers` library before it may encode.
    """

    def __init__(self, tokenizer: Tokenizer, num_workers: int | None, total_bytes: int, sample: Sequence[str]) -> None:
        available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)
        self._num_workers = num_workers or min(available, 1 + total_bytes // _PROCESS_BYTES)
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
        elif self._num_workers > 1:  # spawned, never forked: torch and the tokenizers' threads survive no fork
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
        """Encode batch by batch, in their order."""
        if self._pool is None:
            work = self._engine or _Encoder(*self._arguments)
            for batch in batches:
                yield _part(batch, *work.encode(batch.texts))
            return
        waiting: collections.deque[tuple[Batch, concurrent.futures.Future[Any]]] = collections.deque()
        try:
            for batch in batches:
                waiting.append((batch, self._pool.submit(self._encode, batch.texts)))
                if len(waiting) > 2 * self._num_workers:
                    first, future = waiting.popleft()
                    yield _part(first, *future.result())
            while waiting:
                first, future = waiting.popleft()
                yield _part(first, *future.result())
        except BrokenProcessPool:
            raise OutputError(
                "an encoding process was ended from outside (out of memory?); run the command again with fewer "
                "--num-workers"
            ) from None


class _Encoder:
    """One process's tokenizer, of the `tokenizers` library."""

    def __init__(self, tokenizer_json: str, eos_id: int, dtype: str) -> None:
        self._tokenizer = tokenizers.Tokenizer.from_str(tokenizer_json)
        self._tokenizer.encode_special_tokens = True  # control tokens written out in a text are text
        self._eos_id = eos_id
        self._dtype = np.dtype(dtype)

    def encode(self, texts: Sequence[bytes]) -> tuple[npt.NDArray[Any], npt.NDArray[np.int64]]:
        """ids of all texts, EOS after each [tokens]; tokens of each [documents]."""
        encoded = self._tokenizer.encode_batch_fast([str(text, "utf-8") for text in texts], add_special_tokens=False)
        documents = [[*encoding.ids, self._eos_id] for encoding in encoded]
        lengths = np.fromiter(map(len, documents), np.int64, len(documents))
        ids = np.fromiter(itertools.chain.from_iterable(documents), self._dtype, int(lengths.sum()))
        return ids, lengths


_encoder: _Encoder | None = None  # of this process, if it is one of the pool's


def _start_process(tokenizer_json: str, eos_id: int, dtype: str) -> None:
    """Load the tokenizer once a process; Ctrl-C is the parent's business, and so is running in parallel."""
    global _encoder
    threading.Thread(target=_end_with_parent, daemon=True).start()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.environ["TOKENIZERS_PARALLELIZM"] = "false"
    _encoder = _Encoder(tokenizer_json, eos_id, dtype)


def _end_with_parent() -> None:
    """End this process when its parent is gone (killed, even): nobody waits for its work."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _encode_in_process(texts: Sequence[bytes]) -> tuple[npt.NDArray[Any], npt.NDArray[np.int64]]:
    assert _encoder is not None
    return _encoder.encode(texts)


def _part(batch: Batch, ids: npt.NDArray[Any], lengths: npt.NDArray[np.int64]) -> list[Encoded]:
    """Part what was made of a batch's texts into its splits."""
    documents = len(batch.train)
    tokens = int(lengths[:documents].sum())
    train: Encoded = ("train", ids[:tokens], lengths[:documents], sum(map(len, batch.train)))
    val: Encoded = ("val", ids[tokens:], lengths[documents:], sum(map(len, batch.val)))
    return [part for part in (train, val) if part[2].size]

"""Makes the next batch in a thread while a GPU computes: packing takes 4 to 70 ms a step, in which
the launching thread would queue no work."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
import torch

from llamita.training.task import BatchStream


class Prefetcher:
    """A BatchStream that is one batch ahead, with the same batches in the same order.

    Arrays become pinned tensors. `epoch` and `state_dict` are those after the last batch that was
    taken, so that a resumed run misses none.
    """

    def __init__(self, stream: BatchStream, device: torch.device) -> None:
        self._stream = stream
        # a thread that pins memory would otherwise open a context on the first GPU
        self._thread = ThreadPoolExecutor(1, "batches", initializer=torch.cuda.set_device, initargs=(device,))
        self._coming: Future[tuple[Any, int, dict[str, int]]] | None = None
        self._epoch, self._state = stream.epoch, stream.state_dict()

    @property
    def epoch(self) -> int:
        return self._epoch

    def __next__(self) -> Any:
        coming = self._coming or self._thread.submit(self._make)
        self._coming = None
        batch, self._epoch, self._state = coming.result()
        self._coming = self._thread.submit(self._make)
        return batch

    def state_dict(self) -> dict[str, int]:
        return dict(self._state)

    def load_state_dict(self, state: dict[str, int]) -> None:
        self._drop()
        self._stream.load_state_dict(state)
        self._epoch, self._state = self._stream.epoch, self._stream.state_dict()

    def close(self) -> None:
        """Wait for the thread."""
        self._drop()
        self._thread.shutdown()

    def _make(self) -> tuple[Any, int, dict[str, int]]:
        batch = next(self._stream)
        arrays = {name: value for name, value in batch._asdict().items() if isinstance(value, np.ndarray)}
        pinned = {name: torch.from_numpy(array).pin_memory() for name, array in arrays.items()}
        return batch._replace(**pinned), self._stream.epoch, self._stream.state_dict()

    def _drop(self) -> None:
        """Wait for the batch that is being made, and discard it or its error."""
        coming, self._coming = self._coming, None
        if coming is not None:
            coming.exception()


def prefetch(stream: BatchStream, device: torch.device) -> BatchStream:
    """The stream, one batch ahead on a GPU. On a CPU the thread would only take time from training."""
    return Prefetcher(stream, device) if device.type == "cuda" else stream

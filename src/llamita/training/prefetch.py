"""Makes the next step's batches in a thread while a GPU computes, in memory it can copy from."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import torch
from torch import Tensor

from llamita.model.device import accumulator_type
from llamita.training.task import BatchStream


class StepBatches(NamedTuple):
    """The batches of a step: the tensors of each pass, and the targets of all processes."""

    passes: list[tuple[Tensor, ...]]
    num_targets: int


class StepStream(Iterator[StepBatches]):
    """The batches of a stream, num_passes of them for a step.

    ahead: make those of the next step in a thread, pinned for CUDA. `state_dict` is the stream's
    after the batches that were taken, not after those made ahead, so that a run resumes with the
    next one.
    """

    def __init__(self, source: BatchStream, num_passes: int, device: torch.device, *, ahead: bool) -> None:
        self._source, self._num_passes = source, num_passes
        self._device = device
        self._thread = ThreadPoolExecutor(1, "batches", initializer=self._start_thread) if ahead else None
        self._next: Future[tuple[StepBatches, dict[str, int]]] | None = None
        self._state = source.state_dict()

    def __next__(self) -> StepBatches:
        if self._thread is None:
            found, self._state = self._make()
            return found
        if self._next is None:
            self._next = self._thread.submit(self._make)
        ready, self._next = self._next, None
        found, self._state = ready.result()
        self._next = self._thread.submit(self._make)
        return found

    def state_dict(self) -> dict[str, int]:
        """The position after the batches that were taken."""
        return self._state

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Continue at a position. Raises ValueError if there is no such row."""
        self._drop()
        self._source.load_state_dict(state)
        self._state = self._source.state_dict()

    def close(self) -> None:
        """End the thread."""
        self._drop()
        if self._thread is not None:
            self._thread.shutdown()

    def _drop(self) -> None:
        """Wait for the batches that are being made, and forget them or their error."""
        made, self._next = self._next, None
        if made is not None:
            made.exception()

    def _start_thread(self) -> None:
        if self._device.type == "cuda":  # else pinning memory opens a context on the first GPU
            torch.cuda.set_device(self._device)

    def _make(self) -> tuple[StepBatches, dict[str, int]]:
        passes, num_targets = [], 0
        for _ in range(self._num_passes):
            batch = next(self._source)
            num_targets += batch.num_targets
            arrays = [array for name, array in batch._asdict().items() if name != "num_targets"]
            passes.append(tuple(self._tensor(array) for array in arrays))
        return StepBatches(passes, num_targets), self._source.state_dict()

    def _tensor(self, array: Any) -> Tensor:
        tensor = torch.from_numpy(array)
        if tensor.dtype == torch.float64:
            tensor = tensor.to(accumulator_type(self._device))
        return tensor.pin_memory() if self._device.type == "cuda" else tensor

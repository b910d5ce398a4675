"""Asynchronous checkpoints: copies state between two steps, writes it while training continues."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from llamita.checkpoint import TrainingState, sharded_state_directory
from llamita.environment import memory_bytes
from llamita.model.device import synchronize
from llamita.training.distributed import Ranks, full_tensor

MAX_PINNED_SHARE = 0.25  # of the machine's memory, for copies of a GPU's tensors

# Writes weights and state as a checkpoint, points the links at it, deletes older checkpoints.
CheckpointWriter = Callable[[Mapping[str, Tensor], TrainingState], None]


class Checkpointer:
    """Writes one checkpoint at a time, in a thread of rank 0. A context manager: leaving it waits.

    The buffers for the copies are kept: 12 bytes per weight with AdamW, 8 with Muon, on rank 0.
    With FSDP, the full weights are gathered there tensor by tensor, and each rank writes its own
    shard of the optimizer state (torch.distributed.checkpoint).
    """

    def __init__(self, ranks: Ranks, *, sharded: bool) -> None:
        self.ranks = ranks
        self.stalled_seconds = 0.0  # how long training waited
        self.writing_seconds = 0.0  # how long writing the last checkpoint took, in the background
        self._copies: dict[str, Tensor] = {}
        self._pinned_bytes = 0
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
        self._writing: Future[Any] | None = None
        # a separate group, because the writers communicate while training does
        self._group = dist.new_group(backend="gloo") if sharded else None

    def __enter__(self) -> Checkpointer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._thread.shutdown(wait=True)

    def save(
        self,
        checkpoint: Path,
        weights: Mapping[str, Tensor],
        optimizer_state: Mapping[str, Tensor],
        values: dict[str, Any],
        write: CheckpointWriter,
    ) -> None:
        """Copy everything and return; `write` runs later, in the thread of rank 0.

        A collective: every rank calls it. Waits for the previous checkpoint, and raises its error.
        """
        start = time.monotonic()
        self.wait()
        copies = self._copy("weights", weights)
        if self._group is None:
            state = TrainingState(values, self._copy("state", optimizer_state))
            shards: Future[Any] | None = None
        else:
            self.ranks.wait()  # until rank 0 has moved the shards of the previous checkpoint
            folder = sharded_state_directory(checkpoint)
            state = TrainingState(values, {}, folder)
            shards = _save_shards(optimizer_state, folder, self._group)
        synchronize(self.ranks.device)  # the copies are not blocking
        self._writing = (
            self._thread.submit(self._finish, write, copies, state, shards) if self.ranks.is_first else shards
        )
        self.stalled_seconds += time.monotonic() - start

    def check(self) -> None:
        """Raise the error of the last checkpoint, if it has failed by now."""
        if self._writing is not None and self._writing.done():
            self.wait()

    def wait(self) -> None:
        """Wait until the last checkpoint is written. Raises its error."""
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.result()

    def _finish(
        self, write: CheckpointWriter, weights: Mapping[str, Tensor], state: TrainingState, shards: Future[Any] | None
    ) -> None:
        start = time.monotonic()
        if shards is not None:
            shards.result()
        write(weights, state)
        self.writing_seconds = time.monotonic() - start

    def _copy(self, kind: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Full tensors in CPU memory, by name, on rank 0; other ranks only contribute shards."""
        copies: dict[str, Tensor] = {}
        for name, part in tensors.items():
            tensor = full_tensor(part.detach())
            if not self.ranks.is_first:
                continue
            key = f"{kind}/{name}"
            if key not in self._copies:
                pinned = tensor.is_cuda and self._may_pin(tensor.nbytes)
                self._copies[key] = torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu", pin_memory=pinned)
            copies[name] = self._copies[key].copy_(tensor, non_blocking=True)
        return copies

    def _may_pin(self, num_bytes: int) -> bool:
        """Whether a copy of this size may be pinned, which is faster, but cannot be swapped.

        PyTorch's allocator of pinned memory rounds sizes up to powers of two.
        """
        rounded = 1 << max(0, num_bytes - 1).bit_length()
        if self._pinned_bytes + rounded > MAX_PINNED_SHARE * (memory_bytes() or 0):
            return False
        self._pinned_bytes += rounded
        return True


def _save_shards(tensors: Mapping[str, Tensor], folder: Path, group: dist.ProcessGroup) -> Future[Any]:
    """Write this rank's shards to its own files in the background, from a copy of the tensors."""
    from torch.distributed.checkpoint.filesystem import FileSystemWriter
    from torch.distributed.checkpoint.state_dict_saver import async_save

    writer = FileSystemWriter(folder, sync_files=False)  # synced later, with the whole checkpoint
    future = async_save(dict(tensors), storage_writer=writer, process_group=group)
    assert isinstance(future, Future)
    return future
